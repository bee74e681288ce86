"""Worst cases over reweightings of the atoms, as conic programs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from drojko.ambiguity import AmbiguitySet
from drojko.baselines._programs import Form, Table
from drojko.exceptions import UnsupportedError
from drojko.losses import Loss

__all__ = ["reweighting_form"]

#: Risk, constraints and sizes, which forms make with the module cvxpy.
Parts = tuple[Any, list[Any], list[Any]]
_MOST = 4000  # points up to which the kernel's factor is whole


def reweighting_form(ambiguity: AmbiguitySet, loss: Loss, table: Table) -> Form:
    r"""Inf over dual variables of a function that is nondecreasing in the losses t_i >= loss_i.

    The multiplier of t_i >= loss_i is the worst-case mass of atom i.
    """
    import cvxpy as cp

    n = len(table.x)
    t = cp.Variable(n)
    epigraph = table.losses(loss) <= t
    form = _FORMS.get(ambiguity.conic_form or "")
    if form is None:
        raise UnsupportedError(
            f"{type(ambiguity).__name__} has no conic form here: its conic_form is "
            f"{ambiguity.conic_form!r}, expected one of {sorted(_FORMS)}"
        )
    risk, constraints, sizes = form(cp, ambiguity, t, table)
    return Form(risk, [epigraph, *constraints], sizes, epigraph)


def _mmd(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    """Ball: f0 + E f + r |f| with f0 + f >= loss; penalised: |f|^2 / 4c; f = L b has norm |b|."""
    x, y = table.given or (table.x, table.target)
    bound = ambiguity.on(x, table.mass, labels=y)
    factor = bound.factor()
    if len(factor) > _MOST:
        raise UnsupportedError(
            f"MMD as a conic program takes at most {_MOST} distinct rows, got {len(factor)}: use "
            "drojko.DROClassifier or drojko.DRORegressor"
        )
    b, shift, size = cp.Variable(factor.shape[1]), cp.Variable(), cp.Parameter(nonneg=True)
    risk = shift + (table.mass @ factor) @ b
    above = t <= shift + factor @ b
    if ambiguity.penalty is None:
        return risk + size * cp.norm2(b), [above], [(size, float)]
    return risk + size * cp.sum_squares(b), [above], [(size, lambda penalty: 0.25 / penalty)]


def _group(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    """Total variation of the shares of groups, or any shares, with the groups' mean losses."""
    members = np.asarray(table.members, dtype=np.float64)
    mass = table.mass @ members
    risks = cp.Variable(len(mass))
    means = risks == ((table.mass[:, None] * members) / mass).T @ t
    if ambiguity.radius is None and ambiguity.penalty is None:
        return cp.max(risks), [means], []
    shares = mass / mass.sum()
    risk, constraints, sizes = _total_variation(cp, ambiguity, risks, replace(table, mass=shares))
    return risk, [means, *constraints], sizes


def _cvar(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    eta, inverse = cp.Variable(), cp.Parameter(nonneg=True)
    return (
        eta + inverse * (table.mass @ cp.pos(t - eta)),
        [],
        [(inverse, lambda alpha: 1.0 / alpha)],
    )


def _total_variation(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    """Ball: r max + (1 - r) CVaR; penalised: eta + E max(loss - eta, -c/2), loss - eta <= c/2."""
    ball, mass = ambiguity.penalty is None, table.mass
    eta, size = cp.Variable(), cp.Parameter(nonneg=True)
    if ball:
        rest = cp.Parameter(nonneg=True)
        risk = size * cp.max(t) + rest * eta + mass @ cp.pos(t - eta)
        return risk, [], [(size, float), (rest, lambda radius: 1.0 - radius)]
    risk = eta + mass @ cp.maximum(t - eta, -0.5 * size)
    return risk, [t - eta <= 0.5 * size], [(size, float)]


def _kl(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    """Eta + lambda r, with the mean of lambda exp((loss - eta) / lambda) at most lambda."""
    ball, mass = ambiguity.penalty is None, table.mass
    eta, size, u = cp.Variable(), cp.Parameter(nonneg=True), cp.Variable(t.shape[0])
    lam = cp.Variable(nonneg=True) if ball else size
    cone = cp.constraints.ExpCone(t - eta, lam * np.ones(t.shape[0]), u)
    risk = eta + size * lam if ball else eta
    return risk, [cone, mass @ u <= lam], [(size, float)]


def _chi_square(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    """Ball: eta + sqrt(1 + r) ||(loss - eta)_+||; penalised: eta + c + E (loss - eta)_+^2 / 4c."""
    ball, mass = ambiguity.penalty is None, table.mass
    eta, size = cp.Variable(), cp.Parameter(nonneg=True)
    if ball:
        risk = eta + size * cp.norm2(cp.multiply(np.sqrt(mass), cp.pos(t - eta)))
        return risk, [], [(size, lambda radius: math.sqrt(1.0 + radius))]
    inverse = cp.Parameter(nonneg=True)
    risk = eta + size + inverse * (mass @ cp.square(cp.pos(t - eta)))
    return risk, [], [(size, float), (inverse, lambda penalty: 0.25 / penalty)]


def _cressie_read(cp: Any, ambiguity: Any, t: Any, table: Table) -> Parts:
    r"""Eta + lambda r + (E u - lambda) / k in power cones.

    lambda f*((l - eta) / lambda) + lambda / k = u / k with, for k > 1 and m >= lambda + (k - 1)
    (l - eta), m >= 0: m <= u^{1/k*} lambda^{1/k}; for k < 1 and m <= lambda - (1 - k)(l - eta):
    lambda <= u^{1-k} m^k.
    """
    n, k = t.shape[0], float(ambiguity.k)
    ball, mass = ambiguity.penalty is None, table.mass
    eta, size = cp.Variable(), cp.Parameter(nonneg=True)
    u, m = cp.Variable(n), cp.Variable(n, nonneg=True)
    lam = cp.Variable(nonneg=True) if ball else size
    spread = lam * np.ones(n)
    if k > 1:
        tie = m >= spread + (k - 1.0) * (t - eta)
        cone = cp.constraints.PowCone3D(u, spread, m, np.full(n, (k - 1.0) / k))
    else:
        tie = m <= spread - (1.0 - k) * (t - eta)
        cone = cp.constraints.PowCone3D(u, m, spread, np.full(n, 1.0 - k))
    risk = eta + (mass @ u - lam) / k
    if ball:
        risk = risk + size * lam
    return risk, [tie, cone], [(size, float)]


#: Conic forms by the name that sets give them.
_FORMS: dict[str, Any] = {
    "mmd": _mmd,
    "group": _group,
    "cvar": _cvar,
    "total-variation": _total_variation,
    "kl": _kl,
    "chi-square": _chi_square,
    "cressie-read": _cressie_read,
}
