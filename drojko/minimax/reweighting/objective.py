r"""Linear models against a set that reweights, as one smooth problem with a provable bound.

.. math:: \min_{z, p}\; c^\top p + \sum_g w_g\,\Psi(L_g, p) + \tfrac12 z^\top R z, \qquad
          L_g = \sum_i a_{ig}\,\ell((Bz)_i, y_i)

Cells g are the rows, or groups of rows; Psi and the levels p are the set's
(`drojko.ambiguity.divergence`).

**Bound.** For a density q of the set and slopes s in the domain of the conjugate, with
E q s x = 0 on columns without a penalty and c = E q s x on the others,

.. math:: \min \;\ge\; E\,q\,\inf_f(\ell(f) - s f) - \mathrm{price}(q)
          - \tfrac12 \sum_j c_j^2 / R_{jj} .

q and s are the kinks' duals, brought to balance by Newton steps with the rows' own curvatures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from drojko.ambiguity.divergence import Levels, Part, Plain, Priced, Rise
from drojko.losses import Loss
from drojko.losses.smoothing import Smoothed
from drojko.minimax.newton import MOST, State, Terms, step_of
from drojko.rows import Rows

__all__ = ["SEPARABLE", "Reweighted"]

SEPARABLE = (
    "The classes can be separated, and a set that reweights moves no point: without alpha the "
    "worst-case risk falls to zero as the coefficients grow and no minimum exists: add alpha > 0."
)
_REPAIRS = 10  # Newton steps towards balance at most
_HALVINGS = 6  # of a step of slopes
_BESIDE, _ENOUGH = 10.0, 20  # smoothings from a kink that they reach, and rows a parameter
_BALANCE = 1e-11  # imbalance of the masses, over their sum, that is rounding


@dataclass(frozen=True, eq=False)
class _Detail:
    """What the bound needs of an evaluation."""

    loss: Smoothed
    rise: Rise


class Reweighted:
    """The objective; ``bound`` is the set on its points (`Reweighting`, `BoundGroup`)."""

    def __init__(self, rows: Rows, loss: Loss, bound: Any, alpha: float = 0.0, goal: float = 1e-6):
        self.rows, self.loss, self.bound, self.alpha = rows, loss, bound, alpha
        self.ridge = np.zeros(rows.size)
        self.ridge[: rows.d] = alpha / rows.scale**2
        self.cells: np.ndarray | None = bound.cells
        self.goal, self.unit = goal, 1.0
        self.levels: Levels = Plain(None, np.ones(1))
        self.positive: tuple[int, ...] = ()
        self.first_smoothing, self.cooling = 0.3, 0.3
        self._last: tuple[Any, float, Any] = (None, 0.0, None)

    # Cells --------------------------------------------------------------------------------------

    def _means(self, losses: np.ndarray) -> np.ndarray:
        """Losses of the cells."""
        return losses if self.cells is None else losses @ self.cells

    def _masses(self, density: np.ndarray) -> np.ndarray:
        """Masses of the rows under a density of the cells."""
        mass = self.levels.weights * density
        return mass if self.cells is None else self.cells @ mass

    # The protocol -------------------------------------------------------------------------------

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The best constant of the plain risk, roughly, with its levels."""
        rows, z = self.rows, np.zeros(self.rows.size)
        y, w = rows.y, rows.w
        if rows.intercept and self.loss.task == "regression":
            z[-1] = self._constant()
        losses = self.exact(rows.predict(z))
        unit = max(float(w @ np.abs(losses)), 1e-290)
        if self.loss.task == "regression" and rows.intercept:
            # A target that is constant to rounding is fitted.
            near = self.exact(y + 8e-16 * float(np.abs(y).max(initial=0.0)))
            unit = 1e-290 if unit <= float(near.max()) else unit
        self.unit = unit
        self.levels = self.bound.levels(unit)
        self.positive = self.levels.positive
        smooth = not self.loss.kinks and not self.levels.kinked
        both = self.levels.kinked and self.loss.kinks
        self.first_smoothing = 0.3 * self.goal if smooth else 0.3 if both else 0.03
        self.cooling = 0.3 if both else 0.2 if self.levels.kinked else 0.1
        if unit <= 1e-280:  # fitted: there is nothing to solve
            return z, np.zeros(self.levels.count)
        z = self._plain(z, 1.5 * unit)
        losses = self._means(self.exact(rows.predict(z)))
        self.first_smoothing = max(self.first_smoothing, self.levels.warmth(losses) / unit)
        return z, self.levels.start(losses, self.first_smoothing * unit)

    def _plain(self, z: np.ndarray, mu: float) -> np.ndarray:
        """A step towards the least plain risk: where all losses are equal, no set has a say."""
        rows, w, y = self.rows, self.rows.w, self.rows.y
        jet = self.loss.smoothed(rows.predict(z), y, mu)
        left = -(rows.sum(w * jet.slope) + self.ridge * z)
        move = step_of(rows, left, w * jet.second, 0.0, np.zeros((0, 0)), self.ridge)
        with np.errstate(over="ignore", invalid="ignore"):  # where there is no curvature at all
            new = self.loss.smoothed(rows.predict(z + move), y, mu)
            rise = 0.5 * float(self.ridge @ ((z + move) ** 2 - z**2))
            better = float(w @ (new.value - jet.value)) + rise < 0.0
        return z + move if better else z

    def _constant(self) -> float:
        """Mean target where the loss has no bounded slopes, otherwise the quantile it asks for."""
        y, w = self.rows.y, self.rows.w
        low, high = (float(side[0]) for side in self.loss.domain(y[:1]))
        if not (math.isfinite(low) and math.isfinite(high) and low < 0 < high):
            return float(w @ y)
        order = np.argsort(y)
        cut = int(np.searchsorted(np.cumsum(w[order]), -low / (high - low)))
        return float(y[order[min(cut, len(y) - 1)]])

    @property
    def needs_largest(self) -> bool:
        """Whether the largest loss has a say."""
        return bool(self.bound.ambiguity.needs_largest(self.bound.ambiguity.penalty or 1.0))

    def sample(self, index: np.ndarray, w: np.ndarray) -> Reweighted | None:
        """The same problem on some rows, where cells are rows."""
        if self.cells is not None or self.bound.ambiguity.sees_points:
            return None
        rows = self.rows.take(index, w)
        bound = self.bound.ambiguity.on(None, rows.w)
        return Reweighted(rows, self.loss, bound, self.alpha, 1e-3)

    def exact(self, u: np.ndarray) -> np.ndarray:
        """Losses at predictions u, not smoothed."""
        return self.loss.value(torch.from_numpy(u), torch.from_numpy(self.rows.y)).numpy()

    def _smoothed(self, u: np.ndarray, mu: float, dual: Any = None) -> Smoothed:
        """The smoothed losses; levels and terms ask for the same ones in turn."""
        last_u, last_mu, last = self._last
        again = u is last_u and mu == last_mu
        if again and dual is None:
            return last
        found = self.loss.smoothed(u, self.rows.y, mu, dual)
        if again:  # the same values, by which levels know them
            return replace(found, value=last.value)
        self._last = (u, mu, found)
        return found

    def terms(
        self,
        z: np.ndarray,
        p: np.ndarray,
        u: np.ndarray,
        mu: float,
        duals: Mapping[str, Any],
        second: bool = True,
    ) -> Terms:
        """Loss by row, set by cell, ridge; without ``second`` second derivatives may be absent."""
        levels, rows = self.levels, self.rows
        loss = self._smoothed(u, mu, duals.get("loss") if second else None)
        rise = None
        if np.isfinite(loss.value).all():
            rise = levels.rise(self._means(loss.value), p, mu, duals, second)
        if rise is None:
            return Terms(math.inf)
        value = rise.value + 0.5 * float(self.ridge @ z**2)
        records = dict(rise.records)
        if loss.record is not None:
            records["loss"] = loss.record
        mass = self._masses(rise.density)
        gu, gz = mass * loss.slope, self.ridge * z
        if not second:
            return Terms(value, gu, gz=gz, gp=rise.gradient, Hpp=rise.hessian, records=records)
        w = levels.weights
        huu, hup, Hz, Hzp = mass * loss.second, 0.0, self.ridge, 0.0
        if self.cells is None:
            pull = w * loss.slope
            hup = (rise.cross * pull).T
            pull *= loss.slope
            pull *= rise.steep
            huu += pull
        else:
            pull = rows.sum(self.cells * loss.slope[:, None])
            Hz = np.diag(Hz) + (pull * (w * rise.steep)) @ pull.T
            Hzp = pull @ (w * rise.cross).T
        detail = _Detail(loss, rise)
        return Terms(value, gu, huu, gz, Hz, rise.gradient, rise.hessian, hup, Hzp, records, detail)

    def tidy(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """The best levels: with them the joint step is that of the eliminated problem.

        Where levels are kinks, theirs have duals of their own.
        """
        if not p.size or self.levels.kinked:
            return p
        losses = self._smoothed(u, mu).value
        if not np.isfinite(losses).all():
            return p
        return self.levels.best(self._means(losses), p, mu)

    def restart(self, z: np.ndarray, u: np.ndarray, p: np.ndarray, mu: float) -> np.ndarray:
        """Levels of the smoothed losses from scratch."""
        losses = self.loss.smoothed(u, self.rows.y, mu).value
        return self.levels.start(self._means(losses) + 2.0 * mu, mu)

    def unbounded(self, state: State) -> str | None:
        """Strictly separated classes and nothing that penalises coefficients."""
        if self.loss.attained or self.alpha:
            return None
        return SEPARABLE if bool(((2.0 * self.rows.y - 1.0) * state.u > 0).all()) else None

    def record(self, state: State, exact: bool = False) -> dict[str, float]:
        """Objective, multiplier and discrepancy; those of the levels, where they are a dual point.

        At levels that are best for the smoothed losses the bound of the exact ones is above their
        worst case by the second order of the smoothing.
        """
        detail, levels = state.terms.detail, self.levels
        ridge = 0.5 * float(self.ridge @ state.z**2)
        if not exact and detail is not None and detail.loss.own and self._last[0] is state.u:
            losses = detail.loss.value
        else:
            losses = self.exact(state.u)
        if exact or not isinstance(levels, Priced) or not levels.cooled(state.mu):
            dual = self.bound.dual(losses)
            value, penalty, spent = dual.value, dual.penalty, dual.radius
        else:
            losses, ambiguity = self._means(losses), levels.ambiguity
            penalty = float(state.p[1] if levels.ball else ambiguity.penalty)
            bounds = ambiguity.bounds_at(losses, penalty, float(state.p[0]))
            value, q = float(levels.weights @ bounds), state.terms.detail.rise.density
            spent = (float(levels.weights @ (q * losses)) - value) / penalty
            spent += float(ambiguity.radius) if levels.ball else 0.0
        return {"robust_risk": value + ridge, "penalty": penalty, "transport_cost": spent}

    # The bound ----------------------------------------------------------------------------------

    def bias(self, state: State) -> float:
        """Value minus the dual value of the duals, as if they were balanced."""
        detail: _Detail = state.terms.detail
        q, tangent = _total(detail.rise.parts), detail.loss.value
        if not detail.loss.own:
            s = self._clipped(detail.loss.dual_slope)
            tangent = s * state.u + self.loss.least(s, self.rows.y, state.u)
        dual = self._masses(q) @ tangent - self.levels.price(q)
        return max(float(state.terms.value - dual - 0.5 * self.ridge @ state.z**2), 0.0)

    def lower(self, state: State, need: float) -> float:
        """The bound of repaired duals, or of the losses alone."""
        return max(self._repaired(state, need), self._trivial())

    def _trivial(self) -> float:
        """The mean of the losses' infima: no model is better on any row."""
        y = self.rows.y
        low, high = self.loss.domain(y)
        if not ((low <= 0) & (high >= 0)).all():
            return -math.inf
        least = self.loss.least(np.zeros(len(y)), y)
        return float(self.rows.w @ least) if least.min() == least.max() else -math.inf

    def _clipped(self, s: np.ndarray) -> np.ndarray:
        return np.clip(s, *self.loss.domain(self.rows.y))

    def _repaired(self, state: State, need: float) -> float:
        """The best bound of a few Newton steps on (s, q) towards balance, inside their domains."""
        rows, levels = self.rows, self.levels
        detail: _Detail = state.terms.detail
        low, high = self.loss.domain(rows.y)
        s, bend = np.clip(detail.loss.dual_slope, low, high), detail.loss.second.copy()
        if not self.loss.convex or bend.min(initial=0.0) < -1e-9 * bend.max(initial=0.0):
            return -math.inf
        parts = [
            part._replace(density=np.clip(part.density, 0.0, part.cap))
            for part in detail.rise.parts
        ]
        best, left = -math.inf, math.inf
        if rows.ample and self.cells is None:  # so many that slopes alone have room
            best = self._by_slopes(state, parts, s, bend)
            if best > -math.inf:
                return best
        duals, Hpp = (parts, s, bend), state.terms.Hpp
        wide = rows.size > MOST
        corner = rows.blank() if wide else rows
        for step in range(_REPAIRS):
            parts, s, _ = duals
            q = _total(parts)
            before, best = best, max(best, self._bound(state, q, s))
            # Balanced, it is what it is.
            if best >= need or (before > -math.inf and best - before <= 1e-3 * (need - best)):
                return best
            before = left
            left, duals = self._balanced(rows, self.ridge, -self.ridge * state.z, duals, Hpp)
            if left <= 1e-16 * float(levels.weights @ q) or (step >= 4 and left > 0.3 * before):
                break
            # Products leave a rest, which intercept and levels have no room for.
            for _ in range(_REPAIRS if wide else 0):
                none = np.zeros(corner.size)
                close, duals = self._balanced(corner, none, none, duals, Hpp)
                if close <= 1e-15 * float(levels.weights @ q):
                    break
        parts, s, _ = duals
        return max(best, self._bound(state, _total(parts), s))

    def _by_slopes(self, state: State, parts: list[Part], s: np.ndarray, bend: np.ndarray) -> float:
        """The bound where densities keep to their masses, and slopes alone balance.

        Slopes s + bend B h within their domains: h is the least point of a convex function, whose
        derivatives along a step tell how long that may be.
        """
        rows, size, y = self.rows, self.rows.size, self.rows.y
        losses = self._means(state.terms.detail.loss.value)
        parts = [_of_mass(part, self.levels.weights, losses) for part in parts]
        mass, (low, high) = self._masses(_total(parts)), self.loss.domain(y)
        scale, none = float(mass @ np.abs(s)) + 1e-300, np.zeros((0, 0))
        pinned, h = (self.ridge == 0.0) & rows.free, np.zeros(size)
        if not state.terms.detail.loss.own:  # rows beside the kinks, which help and cost little
            width = _BESIDE * state.mu
            for _ in range(_HALVINGS):
                bend = self.loss.smoothed(state.u, y, width).second
                if int((mass * bend > 0.2 * (mass * bend).max()).sum()) > _ENOUGH * size:
                    break
                width *= 3.0

        def left(slopes: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            inside = np.clip(slopes, low, high)
            residual = rows.sum(mass * inside) + self.ridge * (state.z + h)
            return inside, np.where(rows.free, residual, 0.0)

        raw = s
        s, residual = left(raw, h)
        for _ in range(_REPAIRS):
            if (np.abs(residual[pinned]) <= 0.1 * _BALANCE * scale).all():
                break
            live = np.where((raw > low) & (raw < high), bend, 0.0)
            move, t = step_of(rows, -residual, mass * live, 0.0, none, self.ridge), 1.0
            du, slope = bend * rows.predict(move), float(residual @ move)
            for _ in range(_HALVINGS):
                new, there = left(raw + t * du, h + t * move)
                if float(there @ move) <= -0.5 * slope:
                    break
                t *= 0.5
            raw, h, s, residual = raw + t * du, h + t * move, new, there
        return self._bound(state, _total(parts), s)

    def _balanced(
        self, rows: Rows, ridge: np.ndarray, want: np.ndarray, duals: tuple, Hpp: np.ndarray
    ) -> tuple[float, tuple]:
        """The largest imbalance, and the densities, slopes and their rates after a step."""
        (parts, s, bend), levels, w, size = duals, self.levels, self.levels.weights, rows.size
        lack = sum((levels.missing(part) for part in parts), levels.tied(parts))
        mass = self._masses(_total(parts))
        residual = np.append(rows.sum(mass * s) - want, lack)
        left = float(np.abs(residual).max(initial=0.0))
        steep = sum(part.steep for part in parts)
        cross: Any = sum(part.cross for part in parts)
        response = levels.response(parts, Hpp)
        if self.cells is None:
            huu = mass * bend + w * steep * s * s
            hup = (w * cross * s).T if len(Hpp) else 0.0
            move = step_of(rows, -residual, huu, hup, response, ridge)
        else:
            pull = rows.sum(self.cells * s[:, None])
            Hz = np.diag(ridge) + (pull * (w * steep)) @ pull.T
            move = step_of(rows, -residual, mass * bend, 0.0, response, Hz, pull @ (w * cross).T)
        low, high = self.loss.domain(self.rows.y)
        du = rows.predict(move[:size])
        rise = self._means(s * du) if self.cells is None else (s * du) @ self.cells
        s, bend = _within(s, s + bend * du, low, high, bend)
        return left, ([_stepped(part, rise, move[size:]) for part in parts], s, bend)

    def _bound(self, state: State, q: np.ndarray, s: np.ndarray) -> float:
        """The bound of a density and slopes, -inf where they are not balanced.

        Thinning (slope 0 for a share of all mass) keeps the balance and makes q one of the set's.
        """
        rows, w = self.rows, self.levels.weights
        total = float(w @ q)
        if not total > 0.0:
            return -math.inf
        # A density of rounding's size would make the thinning below arbitrary; what many rows have
        # below a few high ones belongs to the balance.
        q = np.where(q > 1e-12 * min(q.max(), total), q / max(total, 1.0), 0.0)
        mass = self._masses(q)
        c = rows.sum(mass * s)
        scale = float(mass @ np.abs(s)) + 1e-300
        pinned = (self.ridge == 0.0) & rows.free
        if (np.abs(c[pinned]) > _BALANCE * scale).any():
            return -math.inf
        full, price = self.levels.inside(q + (1.0 - w @ q))
        some = q > 0.0
        keep = min(1.0, float((full[some] / q[some]).min()))
        mass, c = keep * mass, keep * c
        least = self.loss.least(s, rows.y, state.u)
        rest = self._masses(full) - mass
        if float(rest.sum()) > 1e-15:
            base = self.loss.least(np.zeros_like(s), rows.y)
            least_rest = float(np.maximum(rest, 0.0) @ base)
        else:
            least_rest = 0.0
        held = self.ridge > 0.0
        value = float(mass @ least) + least_rest - price
        value -= 0.5 * float((c[held] ** 2 / self.ridge[held]).sum())
        # Rounding, outwards: of the sums, and of a balance that is not exact.
        sums = float(mass @ (np.abs(least) + np.abs(s * rows.y))) + abs(price)
        drift = 2.0 * float(np.abs(c[pinned]) @ np.abs(state.z[pinned]))
        return value - 4e-16 * sums - drift


def _total(parts: Sequence[Part]) -> np.ndarray:
    """The density of a sum of kinks."""
    first, *rest = (part.density for part in parts)
    return sum(rest, first)


def _of_mass(part: Part, weights: np.ndarray, losses: np.ndarray) -> Part:
    """A density of the mass that it is to have, where that is given.

    Rows on the kink share what is missing; if they are too few, the next ones follow in the order
    of their losses.
    """
    density = part.density
    if part.mass is None:
        return part
    for _ in range(3):
        lack = part.mass - float(weights @ density)
        room = np.where(lack > 0, part.cap - density, density) * part.steep
        rate = np.where(np.isfinite(room), np.minimum(part.steep, room), part.steep)
        total = float(weights @ rate)
        if not total > 0.0:
            break
        density = np.clip(density + lack / total * rate, 0.0, part.cap)
    total = float(weights @ density)
    density = np.minimum(density * (part.mass / total), part.cap) if total > 0.0 else density
    lack = part.mass - float(weights @ density)
    if lack > 1e-15 * part.mass:
        room = np.where(density < part.cap, weights * (part.cap - density), 0.0)
        order = np.argsort(-losses, kind="stable")
        order = order[room[order] > 0.0]
        share = np.clip((lack - np.cumsum(room[order]) + room[order]) / room[order], 0.0, 1.0)
        density[order] += share * (room / weights)[order]
    return part._replace(density=density)


def _within(
    old: np.ndarray, new: np.ndarray, low: Any, high: Any, rate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clipped values, and rates of 0 where they were clipped."""
    out = (new < low) | (new > high)
    return np.clip(new, low, high), np.where(out, 0.0, rate)


def _stepped(part: Part, rise: np.ndarray, dp: np.ndarray) -> Part:
    """A density after a step, clipped; what was clipped no longer responds."""
    new = part.density + part.steep * rise + dp @ part.cross
    out = (new < 0.0) | (new > part.cap)
    return part._replace(
        density=np.clip(new, 0.0, part.cap),
        steep=np.where(out, 0.0, part.steep),
        cross=np.where(out, 0.0, part.cross),
    )
