"""Newton's method for maxima smoothed by exponents: damped, along the tangent of its path."""

from __future__ import annotations

import math

import numpy as np

from drojko.minimax.newton import Newton, State, solve_symmetric

__all__ = ["PathNewton"]

_TANGENT = 1e-3  # of mu: a step that shows where the optimum goes
_COOLING = 0.1  # by which mu falls at most
_TRIES, _HALVES = 14, 4  # dampings, and lengths of a step at each


class PathNewton(Newton):
    r"""`Newton` of objectives whose second derivatives come from ``curved(state, terms)``.

    .. math:: (H + \tau I)\,m = -g, \qquad \frac{dz}{d\mu} = -H^{-1}\,\partial_\mu g

    Where the shares of a maximum are all or nothing H has no curvature to tell a length from: the
    columns are standardised, and tau holds steps to what moves predictions by an ordinary size.
    From one mu to the next the iterate follows the tangent of the path, along which scores that tie
    stay as many mu apart.
    """

    damping = 0.0

    def _move(self, st: State) -> float:
        """A joint step that gains, damped until one does; its length, or 0."""
        o, terms, size = self.objective, st.terms, len(st.z)
        gradient, hessian = self._system(terms, len(st.p))
        plain = solve_symmetric(hessian, -gradient)
        st.decrement = max(-float(gradient @ plain), 0.0)
        norm = float(np.linalg.norm(gradient))
        st.row = {"stationarity": norm / (1.0 + abs(terms.value))}
        rounding = 2e-15 * (abs(terms.value) + 1e-3 * o.unit)
        usual = norm / o.spread
        for _ in range(_TRIES):
            damped = self.damping > 1e-3 * usual
            move = plain
            if damped:
                move = solve_symmetric(hessian + self.damping * np.eye(len(hessian)), -gradient)
            gain, dz, dp = max(-float(gradient @ move), 0.0), move[:size], move[size:]
            du, t = o.rows.predict(dz), self._longest(st.p, dp)
            for _ in range(_HALVES):
                z, u = st.z + t * dz, st.u + t * du
                p = o.tidy(z, u, st.p + t * dp, st.mu)
                new = o.terms(z, p, u, st.mu, {}, second=False)
                if new.value <= terms.value - 1e-4 * t * gain + rounding:
                    self.damping *= 0.1 if t == 1.0 else 1.0
                    if not damped and t == 1.0:
                        self.damping = 0.0
                    slow = terms.value - new.value <= rounding and t < 0.5
                    st.z, st.p, st.u, st.stuck = z, p, u, st.stuck + 1 if slow else 0
                    changed = o.accepted(st)
                    st.terms = o.terms(z, p, u, st.mu, {}) if changed else o.curved(st, new)
                    return t
                t *= 0.4
            self.damping = max(10.0 * self.damping, 0.03 * usual)
        st.stuck, self.damping = st.stuck + 1, 0.0
        return 0.0

    def _renew(self, st: State, before: float) -> None:
        """Along the tangent of the path, where that is better than to stay."""
        o, size = self.objective, len(st.z)
        st.mu = max(st.mu, _COOLING * before)
        gradient, hessian = self._system(st.terms, len(st.p))
        near = o.terms(st.z, st.p, st.u, (1.0 - _TANGENT) * before, {}, second=False)
        options = [(st.z, st.u, o.tidy(st.z, st.u, st.p, st.mu))]
        if math.isfinite(near.value):
            slope = np.append(o.rows.sum(near.gu) + near.gz, near.gp)
            change = (slope - gradient) / _TANGENT
            move = solve_symmetric(hessian, -gradient - change * (1.0 - st.mu / before))
            t = self._longest(st.p, move[size:])
            z = st.z + t * move[:size]
            u = o.rows.predict(z)
            options.append((z, u, o.tidy(z, u, st.p + t * move[size:], st.mu)))
        found = [o.terms(z, p, u, st.mu, {}, second=False) for z, u, p in options]
        best = min(range(len(found)), key=lambda k: found[k].value)
        st.z, st.u, st.p = options[best]
        st.terms = o.curved(st, found[best])

    def bounded(self, st: State) -> float:
        """Against the exact value, of which others are upper bounds."""
        if self.prove:
            st.row = {**st.row, **self.objective.record(st, exact=True)}
            if st.row["robust_risk"] <= st.upper:
                st.upper, st.best = st.row["robust_risk"], (st.z, st.p)
        return super().bounded(st)

    def _bias(self, st: State) -> float:
        """As the objective has it."""
        return self.objective.bias(st)
