"""Losses on K > 2 logits, with the worst cases of linear models and bounds of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from drojko._validation import shown
from drojko.exceptions import InvalidDataError, UnboundedRiskError
from drojko.losses.base import Loss
from drojko.losses.pieces import LogSumExp, Response, Smooth

__all__ = ["CrammerSinger", "Softmax", "best_class_move", "radial_supremum"]

_MANY, _LONG = 24, 60  # classes from which on fixed-point steps are the cheap ones, and how many
_ENTRIES = 1 << 20  # of the systems that Newton's method solves at a time
_ASCENTS, _NEWTONS = 6, 7
_ROUGH_NEWTONS = 1
_CELLS, _REFINED, _PARTS, _BLOCK = 128, 3, 16, 1024


class _Pairwise(Loss):
    """What losses of differences f_j - f_y have in common: their gradient is p - e_y."""

    scalar = False
    lipschitz = math.sqrt(2.0)
    convex = True
    two_classes: type[Loss] = Loss

    def binary(self) -> Loss:
        return self.two_classes()

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""Upper bound of :math:`\sup_{z'} \ell(Wz'+b, y) - \lambda c(z', z)`, shape (n,).

        A displacement of cost t² moves f_j - f_y by at most t ‖w_j - w_y‖: see `rate_bound`.
        `f` (n, K) logits of the unmoved points; `pair_norms_squared` (K, K), entry (j, k) the
        squared norm of w_j - w_k with each column j weighted by its inverse cost.
        """
        classes = (f.shape[-1], f.shape[-1])
        if tuple(pair_norms_squared.shape) != classes:
            got = tuple(pair_norms_squared.shape)
            raise InvalidDataError(f"pair_norms_squared has shape {got}, expected {classes}")
        if not lam > 0:
            raise UnboundedRiskError(
                f"the penalty is {lam!r}; the worst case is finite for any > 0"
            )
        return self.rate_bound(f, y, pair_norms_squared.to(f.dtype)[:, y].T.sqrt(), lam)


class Softmax(_Pairwise):
    r"""Cross-entropy :math:`\mathrm{logsumexp}(f) - f_y` on K logits, `f` of shape (n, K).

    In the logits its gradient has norm at most √2 and its Hessian diag(p) - pp' at most 1/2.

    Examples
    --------
    >>> Softmax().value(torch.zeros(1, 3), torch.tensor([2]))
    tensor([1.0986])
    """

    name = "logistic"
    curvature = 0.5
    attained = False

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(f, dim=-1) - _own(f, y)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(torch.softmax(f, dim=-1), y)

    def rate_bound(self, f: Tensor, y: Tensor, rates: Tensor, strength: float) -> Tensor:
        r"""Upper bound of the worst case where f_j - f_y moves by at most ``rates * t``.

        .. math:: \sup_{t \ge 0} \mathrm{logsumexp}_j (f_j - f_y + t \|w_j - w_y\|_{C^{-1}})
                  - \lambda t^2

        Exact for two classes, and tight where one competitor of y matters; `radial_supremum`.
        """
        return radial_supremum(_differences(f, y), rates, strength)

    @staticmethod
    def input_curvature(pair_norms_squared: Tensor) -> Tensor:
        """Bound ``max_jk ‖w_j - w_k‖² / 4`` on the second derivative along any unit direction.

        That derivative is the variance of w_J'v under the softmax law of J; a variable with range
        R has variance at most R²/4 (Popoviciu).
        """
        return pair_norms_squared.max() / 4.0

    def value_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        return torch.logsumexp(_differences(f, y) + reach, dim=1)

    def odds_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        own = one_hot(y, f.shape[1]).bool()
        return torch.sigmoid(_differences(f, y) + reach).masked_fill(own, 0.0)

    def largest(self, y: Tensor, n_classes: int, limit: float, clip: float) -> Tensor:
        # -log p_y + log(sum of the clipped probabilities), which is at most 1 + K * clip.
        top = limit + math.log1p(n_classes * clip)
        return torch.full(y.shape, top, dtype=torch.float64)

    def worst_probabilities(self, f: Tensor, y: Tensor, gram: Tensor, half: float) -> Tensor:
        (p, value), (other, at_other) = fixed_points(self, f, y, gram, half)
        return torch.where((at_other > value).unsqueeze(1), other, p)

    def smoothed_worst(
        self, f: Tensor, y: Tensor, w: Tensor, gram: Tensor, half: float, mu: float, rough: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = fixed_points(self, f, y, gram, half, rough)
        stacked = torch.stack([value for _, value in found], 1)
        share = torch.softmax(stacked / mu, 1)
        values = mu * torch.logsumexp(stacked / mu, 1)
        own = one_hot(y, f.shape[1]).to(f.dtype)
        pull, second = torch.zeros_like(f), torch.zeros_like(gram)
        for (probabilities, _), weight in zip(found, share.T, strict=True):
            c = probabilities - own
            mass = (weight * w).unsqueeze(1)
            pull += mass * c
            second += c.T @ (mass * c)
        return values, pull, second

    def noise_bound(
        self, away: Tensor, y: Tensor, square: Tensor, beta: float, epsilon: float
    ) -> Tensor:
        return torch.logsumexp(away + 0.25 * epsilon * max(1.0, beta) * square, 1)

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        eye, plain = np.eye(n_outputs), (np.ones((len(y), 1)), np.zeros((len(y), 1)))
        if math.isinf(label_cost):
            return Response.of(LogSumExp(), *plain, -eye[y], n_outputs)
        prices = -label_cost * (1.0 - eye[y])
        return Response(*plain, LogSumExp(), None, -eye, prices, np.zeros((1, n_outputs)))

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        own = np.eye(f.shape[1])[y]
        return cp.log_sum_exp(f, axis=1) - cp.sum(cp.multiply(own, f), axis=1)


class CrammerSinger(_Pairwise):
    r"""Multi-class hinge :math:`\max_j f_j - f_y + 1[j \ne y]`, `f` of shape (n, K).

    Examples
    --------
    >>> CrammerSinger().value(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor([0.5000])
    """

    name = "hinge"
    curvature = math.inf
    kinks = (1.0,)
    calibrated = False
    margin = 1.0

    def _scores(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(f - _own(f, y)[:, None] + 1.0, y)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return self._scores(f, y).amax(dim=-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        scores = self._scores(f, y)
        top = torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return _minus_one(top, y)

    def rate_bound(self, f: Tensor, y: Tensor, rates: Tensor, strength: float) -> Tensor:
        r"""The worst case :math:`\max_j f_j - f_y + 1[j\ne y] + \|w_j-w_y\|^2/(4\lambda)`, exact.

        The loss is a maximum of affine functions, and suprema commute.
        """
        return (self._scores(f, y) + rates.square() / (4.0 * strength)).amax(dim=-1)

    def worst_probabilities(self, f: Tensor, y: Tensor, gram: Tensor, half: float) -> Tensor:
        choice = best_class_move(self, f, y, gram, half)
        return one_hot(choice, f.shape[1]).to(f.dtype)

    def smoothed_worst(
        self, f: Tensor, y: Tensor, w: Tensor, gram: Tensor, half: float, mu: float, rough: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The maximisers are vertices p = e_j.
        own = one_hot(y, f.shape[1]).to(f.dtype)
        scores = f - f.gather(1, y[:, None]) + 1.0 - own + 0.5 * half * _squares(gram)[y]
        share = torch.softmax(scores / mu, 1)
        values = mu * torch.logsumexp(scores / mu, 1)
        mass = w[:, None] * share
        pairs = mass.T @ own  # (j, y): mass that moves from class y towards j
        second = torch.diag(pairs.sum(0) + pairs.sum(1)) - pairs - pairs.T
        return values, mass - w[:, None] * own, second

    def noise_bound(
        self, away: Tensor, y: Tensor, square: Tensor, beta: float, epsilon: float
    ) -> Tensor:
        away = away + (1.0 - one_hot(y, away.shape[1]).to(away.dtype))
        return torch.logsumexp(beta * away + 0.25 * epsilon * beta**2 * square, 1) / beta

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        eye, plain = np.eye(n_outputs), (np.ones((len(y), 1)), np.zeros((len(y), 1)))
        if math.isinf(label_cost):
            prices = np.zeros((1, n_outputs))
            return Response(*plain, Smooth(), -eye[y], eye, prices, 1.0 - eye[y])
        pairs = [(j, k) for j in range(n_outputs) for k in range(n_outputs) if j != k]
        slopes = np.array([np.zeros(n_outputs)] + [eye[j] - eye[k] for j, k in pairs])
        label = np.array([k for _, k in pairs])
        prices = np.zeros((len(y), len(slopes)))
        prices[:, 1:] = -label_cost * (label[None] != y[:, None])
        levels = np.concatenate([[0.0], np.ones(len(pairs))])[None]
        return Response(*plain, Smooth(), None, slopes, prices, levels)

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        own = np.eye(f.shape[1])[y]
        return cp.max(f + (1.0 - own), axis=1) - cp.sum(cp.multiply(own, f), axis=1)


def _own(f: Tensor, y: Tensor) -> Tensor:
    check_classes(f, y)
    return f.gather(-1, y[:, None])[:, 0]


def check_classes(f: Tensor, y: Tensor) -> None:
    """Raise unless f has a column for each class that y names."""
    if f.ndim != 2 or y.shape != f.shape[:1] or y.dtype != torch.int64:
        raise InvalidDataError(
            f"f is {shown(f)}, y {shown(y)}; expected outputs (n, K) and class indices (n,), int64"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < f.shape[1]:
        raise InvalidDataError(f"y names classes beyond the {f.shape[1]} columns of f")


def _minus_one(a: Tensor, y: Tensor) -> Tensor:
    """`a` with one taken off the entry of each row's own class."""
    check_classes(a, y)
    return a.scatter_add(-1, y[:, None], a.new_full((a.shape[0], 1), -1.0))


def _differences(f: Tensor, y: Tensor) -> Tensor:
    return f - _own(f, y)[:, None]


def _squares(gram: Tensor) -> Tensor:
    """Squared norms of w_j - w_k, of shape (K, K)."""
    diagonal = gram.diagonal()
    return diagonal + diagonal[:, None] - 2.0 * gram


def fixed_points(
    loss: Any, f: Tensor, y: Tensor, gram: Tensor, half: float, rough: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """The two candidates for a worst case of the cross-entropy, as (p, J): from sample and vertex.

    p = softmax(f + W W' (p - e_y) / 2 lambda): the fixed-point iteration raises J at every step,
    because the loss is convex and the step maximises its linearisation minus the cost; Newton
    steps finish it. Where both starts lie in one basin, the second has J = -inf. ``rough``: fewer
    Newton steps.
    """
    newtons = _ROUGH_NEWTONS if rough else _NEWTONS
    own = one_hot(y, f.shape[1]).to(f.dtype)
    stay, value = _fixed_point(torch.softmax(f, 1), f, own, gram, half, newtons)
    other, at_other = stay.clone(), torch.full_like(value, -torch.inf)
    squares = _squares(gram)
    if half * float(squares.max()) < 4.0:  # 2 lambda > curvature: one basin
        return [(stay, value), (other, at_other)]
    # By Jensen no basin holds more than this bound: most samples have nowhere else to look.
    scores = f - f.gather(1, y[:, None]) + 0.5 * half * squares[y]
    rows = (torch.logsumexp(scores, 1) > value + 1e-12).nonzero()[:, 0]
    f_rows, own_rows = f[rows], own[rows]
    choice = best_class_move(loss, f_rows, y[rows], gram, half, away=True)
    vertex = one_hot(choice, f.shape[1]).to(f.dtype)
    moved, at_moved = _fixed_point(vertex, f_rows, own_rows, gram, half, newtons)
    apart = (moved - stay[rows]).abs().amax(1) > 1e-6
    other[rows[apart]], at_other[rows[apart]] = moved[apart], at_moved[apart]
    return [(stay, value), (other, at_other)]


def best_class_move(
    loss: Any, f: Tensor, y: Tensor, gram: Tensor, half: float, away: bool = False
) -> Tensor:
    """The class j whose move (w_j - w_y) / 2 lambda attains most, y for none; ``away``: not y."""
    own, squares = gram[y], _squares(gram)[y]
    best, choice = loss.value(f, y), y
    if away:
        best = torch.full_like(best, -torch.inf)
    for j in range(f.shape[1]):
        value = loss.value(f + half * (gram[j] - own), y) - 0.5 * half * squares[:, j]
        better = (value > best) & ~(away & (y == j))
        best = torch.where(better, value, best)
        choice = torch.where(better, torch.full_like(choice, j), choice)
    return choice


def _value(p: Tensor, f: Tensor, own: Tensor, gram: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """J at the displacement of p, and the probabilities there."""
    c = p - own
    pulled = c @ gram
    moved = f + half * pulled
    value = torch.logsumexp(moved, 1) - (moved * own).sum(1) - 0.5 * half * (c * pulled).sum(1)
    return value, torch.softmax(moved, 1)


def _newton_step(
    here: Tensor, there: Tensor, eye: Tensor, gram: Tensor, half: float
) -> tuple[Tensor, Tensor]:
    """Newton's step towards p = image(p), and whether it could be solved for, of some samples."""
    # d image / d p = half * (diag(image) - image image') gram
    row = (there @ gram).unsqueeze(1)
    slope = half * there.unsqueeze(2) * (gram - row)
    return torch.linalg.solve_ex(eye - slope, there - here)


def _fixed_point(
    p: Tensor, f: Tensor, own: Tensor, gram: Tensor, half: float, newtons: int
) -> tuple[Tensor, Tensor]:
    """Solution of p = image(p) near a start, and J there; finished samples are left alone."""
    p, many = p.clone(), f.shape[1] > _MANY
    done = 1e-7 if many and newtons == _ROUGH_NEWTONS else 1e-11
    value, image = _value(p, f, own, gram, half)
    active = torch.arange(len(p), device=p.device)
    for _ in range(_LONG if many else _ASCENTS):
        active = active[(image - p)[active].abs().amax(1) > (done if many else 1e-2)]
        if len(active) == 0:
            break
        p[active] = image[active]
        value[active], image[active] = _value(p[active], f[active], own[active], gram, half)
    eye = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    active = torch.arange(len(p), device=p.device)
    chunk = max(_ENTRIES // f.shape[1] ** 2, 1)
    for _ in range(newtons):
        active = active[(image - p)[active].abs().amax(1) > done]
        if len(active) == 0:
            break
        here, there = p[active], image[active]
        fixed = (f[active], own[active], gram, half)
        solved = [
            _newton_step(a, b, eye, gram, half)
            for a, b in zip(here.split(chunk), there.split(chunk), strict=True)
        ]
        step, info = (torch.cat(parts) for parts in zip(*solved, strict=True))
        trial = here + step
        trial_value, trial_image = _value(trial, *fixed)
        # Where Newton does not raise J, the fixed-point step does.
        enough = value[active] - 1e-13 * (1.0 + value[active].abs())  # rounding is no decrease
        good = (trial_value >= enough) & torch.isfinite(trial_value) & (info == 0)
        plain_value, plain_image = _value(there, *fixed)
        pick = good.unsqueeze(1)
        p[active] = torch.where(pick, trial, there)
        value[active] = torch.where(good, trial_value, plain_value)
        image[active] = torch.where(pick, trial_image, plain_image)
    return p, value


def radial_supremum(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    r"""Upper bound of :math:`\sup_{t\ge 0}\, \log\sum_j e^{a_j + L_j t} - \lambda t^2`, shape (n,).

    If outputs move at most at the rates L_j >= 0 with the displacement t, this bounds the worst
    case of the cross-entropy with scores a_j = f_j - f_y (and L_y = 0).

    The log-sum-exp is convex in t, so on a cell it lies below its chord, and a chord minus
    lambda t^2 has its maximum in closed form: every cell gives a bound, the largest of them holds,
    and the cells that decide are divided once more. The error falls with the square of the width.

    Parameters
    ----------
    scores, rates : Tensor of shape (n, k)
    strength : float
        lambda > 0.

    Examples
    --------
    >>> zero = torch.zeros(1, 1, dtype=torch.float64)
    >>> round(float(radial_supremum(zero, zero + 2.0, 1.0)), 6)  # linear: L^2 / (4 lambda)
    1.0
    """
    blocks = zip(scores.split(_BLOCK), rates.split(_BLOCK), strict=True)
    return torch.cat([_block(a, rate, strength) for a, rate in blocks])


def _block(scores: Tensor, rates: Tensor, strength: float) -> Tensor:
    # Beyond t = max L / 2 lambda the derivative is negative.
    far = rates.amax(1) / (2.0 * strength)
    grid = torch.linspace(0.0, 1.0, _CELLS + 1, dtype=scores.dtype, device=scores.device)
    nodes = far[:, None] * grid
    bounds = _cells(nodes, _log_sum(scores, rates, nodes), strength)
    top, index = bounds.topk(_REFINED + 1, dim=1)
    rest = top[:, -1]
    parts = torch.linspace(0.0, 1.0, _PARTS + 1, dtype=scores.dtype, device=scores.device)
    for k in range(_REFINED):
        left = nodes.gather(1, index[:, k : k + 1])
        inner = left + (far[:, None] / _CELLS) * parts
        refined = _cells(inner, _log_sum(scores, rates, inner), strength).amax(1)
        rest = torch.maximum(rest, refined)
    # The sum of rounding errors is far below this relative slack.
    return rest + 1e-13 * (1.0 + rest.abs())


def _log_sum(scores: Tensor, rates: Tensor, nodes: Tensor) -> Tensor:
    return torch.logsumexp(scores[:, None, :] + rates[:, None, :] * nodes[:, :, None], dim=2)


def _cells(nodes: Tensor, values: Tensor, strength: float) -> Tensor:
    """Largest chord minus strength t^2 on each cell."""
    left, right = nodes[:, :-1], nodes[:, 1:]
    width = right - left
    slope = torch.where(
        width > 0, values.diff(dim=1) / width.clamp_min(1e-300), torch.zeros_like(width)
    )
    t = torch.minimum(torch.maximum(slope / (2.0 * strength), left), right)
    return values[:, :-1] + slope * (t - left) - strength * t.square()
