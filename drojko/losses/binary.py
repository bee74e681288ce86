"""Losses of binary classification: logistic and hinge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor
from torch.nn.functional import logsigmoid

from drojko.losses.base import Loss, sign
from drojko.losses.jets import Jet, even_logistic_root, logistic_jet, logistic_shift
from drojko.losses.multiclass import CrammerSinger, Softmax
from drojko.losses.pieces import Response, Softplus, margins
from drojko.losses.tilts import Tilted, flip, logistic_tilt
from drojko.losses.two_lines import TwoLines

__all__ = ["Hinge", "Logistic", "even_logistic_root"]

_STEPS = 8  # from a nearby worst case
_SHORT = 3e-4  # the last one: ten times its square, at most, is left of the root


class Logistic(Loss):
    r"""Binary logistic loss :math:`\log(1 + e^{-s f})`, ``s = 2 y - 1``.

    The worst case is that of `logistic_shift`: one root, found by Newton's method.

    Examples
    --------
    >>> loss = Logistic()
    >>> f, y = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([1, 1])
    >>> v = -loss.shift(f, y, 0.05)
    >>> bool(torch.allclose(torch.sigmoid(v - f), 2 * 0.05 * v))
    True
    """

    name = "logistic"
    lipschitz = 1.0
    curvature = 0.25
    convex = True
    attained = False

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return -logsigmoid(sign(f, y) * f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        s = sign(f, y)
        return -s * torch.sigmoid(-s * f)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(f) * torch.sigmoid(-f)

    def line(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        s = 2.0 * y - 1.0
        m = torch.from_numpy(s * f)
        low = torch.sigmoid(-m.abs())  # the smaller one of p and 1 - p
        value = (-low).log1p_().neg_().sub_(m.clamp_max(0.0))
        bend = torch.addcmul(low, low, low, value=-1.0)
        return value.numpy(), -s * torch.sigmoid(-m).numpy(), bend.numpy()

    def least(self, slope: Any, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        p = np.clip(np.abs(slope), 0.0, 1.0)
        return entr(p) + entr(1.0 - p)

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = 2.0 * y - 1.0
        return np.minimum(-s, 0.0), np.maximum(-s, 0.0)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        s = sign(f, y)
        return -s * logistic_shift(s * f, kappa)

    @property
    def asymptotes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return (-1.0, 0.0), (0.0, 0.0)

    def curvature_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        nearest = (f.abs() - reach).clamp_min(0.0)
        return torch.sigmoid(nearest) * torch.sigmoid(-nearest)

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        if math.isinf(label_cost):
            return Response.of(Softplus(), *margins(y))
        # log(1 + e^u) - log(1 + e^-u) = u
        lines, prices = ((0.0, 0.0), (1.0, 0.0)), (0.0, -label_cost)
        return Response.of_lines(lines, *margins(y), smooth=Softplus(), prices=prices)

    def _tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        away = 1.0 - 2.0 * y
        return flip(logistic_tilt(away * f, s, eta), away)

    def conic(self, f: Any, y: np.ndarray) -> Any:
        import cvxpy as cp

        return cp.logistic(-self._affine(f, y))

    def multiclass(self) -> Softmax:
        return Softmax()

    def worst_jet(
        self, u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray
    ) -> Jet:
        """Two maximisers from sigma = 2 on."""
        if sigma == 0.0:
            return super().worst_jet(u, y, sigma, mu, dual)
        return logistic_jet(u, y, sigma, mu, dual)

    def kink_free(self, sigma: float) -> bool:
        """Below 2."""
        return sigma < 1.96

    def jumps(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The margins beyond 2."""
        margin = (2.0 * y - 1.0) * f
        return margin[margin > 2.0]

    def _worst_near(
        self, f: np.ndarray, y: np.ndarray, sigma: float, near: np.ndarray | None, second: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        r"""Worst cases :math:`\max_p\, p f + p^2\sigma - \ell^*(p)`, sigma < 2, from nearby ones.

        Returns :math:`-\ell^*(p)`, the slopes p, their derivatives in f on request, and the
        log-odds t of ``|p|`` for the next call: the root of t - 2 sigma sigmoid(t) + m, a margin
        m = s f. Newton's method in single precision leaves a step, which enters by its expansion.
        """
        away = 1.0 - 2.0 * y
        v = torch.from_numpy(away * f)
        t = v.float().add_(sigma) if near is None else torch.tensor(near)
        if not _root(t, v.float(), sigma):
            c = 0.5 + 0.5 * v / sigma
            root = even_logistic_root(c.abs(), torch.tensor(0.25 / sigma, dtype=c.dtype))
            t = torch.where(c >= 0.0, root, -root)
        t = t.double()
        size = t.abs()
        low = torch.sigmoid(-size)  # the smaller one of p and 1 - p
        least = size.mul_(low).sub_((-low).log1p_())  # the entropy of p
        curve = low.sub_(low * low)
        p = torch.sigmoid(t)
        room = torch.rsub(curve, 1.0, alpha=2.0 * sigma)
        step = torch.sub(t, v).sub_(p, alpha=2.0 * sigma).div_(room)
        change = step * curve
        p.sub_(change)
        least.addcmul_(t, change).addcmul_(step, change, value=-0.5)
        bend = curve.div_(room).numpy() if second else None
        return least.numpy(), away * p.numpy(), bend, t.numpy()


def _root(t: Tensor, v: Tensor, sigma: float) -> bool:
    """Whether t was moved to the roots of t - 2 sigma sigmoid(t) - v, but for a short step."""
    p, curve, step = torch.empty_like(t), torch.empty_like(t), torch.empty_like(t)
    for _ in range(_STEPS):
        torch.sigmoid(t, out=p)
        torch.addcmul(p, p, p, value=-1.0, out=curve)
        curve.mul_(-2.0 * sigma).add_(1.0)
        torch.sub(t, v, out=step).sub_(p, alpha=2.0 * sigma).div_(curve)
        t.sub_(step)
        least, most = torch.aminmax(step)
        if max(float(most), -float(least)) <= _SHORT:
            return True
    return False


class Hinge(TwoLines):
    r"""Hinge loss :math:`(1 - s f)_+`, ``s = 2 y - 1``; worst case ``(1 - s f + 1/(4κ))_+``.

    Examples
    --------
    >>> f, y = torch.tensor([0.5, 9.0]), torch.tensor([1, 1])
    >>> Hinge().robust_value(f, y, 0.25)
    tensor([1.5000, 0.0000])
    """

    name = "hinge"
    lipschitz = 1.0
    kinks = (1.0,)
    calibrated = False
    slopes = (0.0, 1.0)
    lines = ((-1.0, 1.0), (0.0, 0.0))

    def _from_kink(self, f: Any, y: Any) -> tuple[Any, Any]:
        s = 2.0 * y - 1.0
        return 1.0 - s * f, -s

    def multiclass(self) -> CrammerSinger:
        return CrammerSinger()


# They know each other; imports both ways would be a circle.
Softmax.two_classes, CrammerSinger.two_classes = Logistic, Hinge
