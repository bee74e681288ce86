r"""Losses on predictions, with the structure that exact worst-case risks need.

A loss is a function :math:`\ell(f, y)` of a model output `f` and a label `y`. Beside its value and
derivatives it states, as data, what a proof may use:

- ``lipschitz``: :math:`\sup \|\partial\ell/\partial f\|`;
- ``curvature``: the largest second derivative (``inf`` where there are kinks);
- ``growth``: :math:`\sup_{f'} \ell(f', y) - \kappa (f'-f)^2` is finite for ``kappa > growth``;
- ``kinks``: where it is not differentiable, as margins ``s f`` (classification) or residuals
  ``f - y`` (regression).

Binary labels are class indices 0 and 1 with sign ``s = 2 y - 1``, and `f` has shape (n,). With
K > 2 classes `f` has shape (n, K) and `y` holds class indices.

Scalar ("ridge") losses also solve their worst case exactly: `shift` returns a global maximiser of

.. math:: \ell(f + t, y) - \kappa t^2  \quad\text{over}\quad t \in R,

which is all that an order-2 Wasserstein ball can do to a linear model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError

__all__ = [
    "Absolute",
    "CallableLoss",
    "CrammerSinger",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "Quantile",
    "Softmax",
    "Squared",
    "get_loss",
]

_BLOCK = 1 << 16  # entries per block of an iterative envelope: its work arrays stay in cache
_MAX_NEWTON = 64


class Loss:
    r"""A loss :math:`\ell(f, y)`; see the module's text for the meaning of the attributes.

    Examples
    --------
    >>> loss = get_loss("hinge")
    >>> loss.value(torch.tensor([2.0, 0.0]), torch.tensor([1, 1]))
    tensor([0., 1.])
    >>> loss.lipschitz, loss.curvature, loss.growth, loss.kinks
    (1.0, inf, 0.0, (1.0,))
    """

    name: str = ""
    task: str = "classification"
    scalar: bool = True
    lipschitz: float | None = None
    curvature: float | None = None
    growth: float = 0.0
    kinks: tuple[float, ...] = ()

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """Loss of each row, shape (n,)."""
        raise UnsupportedError(f"{self.name or type(self).__name__} has no value")

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Derivative in `f`, of the shape of `f` (an element of the subdifferential at kinks)."""
        raise UnsupportedError(f"{self.name} has no closed-form gradient")

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        """Second derivative in `f` of a scalar loss, shape (n,); zero at kinks."""
        raise UnsupportedError(f"{self.name} has no second derivative")

    def shift(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser t of ``loss(f + t, y) - kappa t^2``, shape (n,).

        `kappa` is a number or a tensor that broadcasts to (n,); ``inf`` gives zero. Raises
        `UnboundedRiskError` unless every `kappa` exceeds ``growth``.
        """
        k = _as_kappa(kappa, f)
        if not bool((k > self.growth).all()):
            raise UnboundedRiskError(
                f"{self.name} loss: the worst case is infinite for kappa = {float(k.min()):.6g}; "
                f"it is finite for kappa > {self.growth:g} (penalty > {self.growth:g} * squared "
                "norm of the coefficients): raise the penalty"
            )
        infinite = torch.isinf(k)
        if not bool(infinite.any()):
            return self._shift(f, y, k)
        t = self._shift(f, y, torch.where(infinite, self.growth + 1.0, k))
        return torch.where(infinite, torch.zeros_like(t), t)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        raise UnsupportedError(f"{self.name} loss has no one-dimensional worst case")

    def envelope(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser f' of ``loss(f', y) - kappa (f' - f)^2``, shape (n,)."""
        return f + self.shift(f, y, kappa)

    def robust_value(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """The maximum itself, ``max_t loss(f + t, y) - kappa t^2``, shape (n,)."""
        t = self.shift(f, y, kappa)
        cost = torch.where(t == 0, torch.zeros_like(t), _as_kappa(kappa, f) * t * t)
        return self.value(f + t, y) - cost

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        """Bound on the worst case of a linear multi-class model; see the subclasses."""
        raise UnsupportedError(f"{self.name} loss is not a multi-class loss")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _as_kappa(kappa: float | Tensor, f: Tensor) -> Tensor:
    return torch.as_tensor(kappa, dtype=f.dtype, device=f.device)


def _either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    # torch.where on two numbers gives the default dtype, that is float32.
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def _sign(f: Tensor, y: Tensor) -> Tensor:
    return y.to(f.dtype).mul(2.0).sub_(1.0)


class Logistic(Loss):
    r"""Binary logistic loss :math:`\log(1 + e^{-s f})`, ``s = 2 y - 1``.

    Worst case. With margin m = s f and new margin -t (so the margin falls by v = t + m),

    .. math:: \log(1+e^{t}) - \kappa (t+m)^2
              = \log 2\cosh(t/2) - \kappa t^2 + c\,t - \kappa m^2, \qquad c = 1/2 - 2\kappa m.

    All but the term c t is even in t, so a global maximiser has the sign of c: t = sign(c) τ,
    and τ ≥ 0 is the root of the concave function ½ tanh(τ/2) - 2κτ + \|c\|, reached by Newton's
    method from the right, monotonically. At c = 0 and κ < 1/8 both signs are maximisers.

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

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return -logsigmoid(_sign(f, y) * f)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        s = _sign(f, y)
        return -s * torch.sigmoid(-s * f)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(f) * torch.sigmoid(-f)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        s = _sign(f, y)
        c = 0.5 - 2.0 * kappa * (s * f)
        tau = even_logistic_root(c.abs(), kappa.expand_as(c) if kappa.ndim else kappa)
        # The stationarity condition gives v with full relative accuracy even where t ~ -m.
        return -s * torch.sigmoid(torch.where(c >= 0, tau, -tau)) / (2.0 * kappa)


def even_logistic_root(c: Tensor, kappa: Tensor) -> Tensor:
    """Root τ ≥ 0 (the larger one) of ``tanh(τ/2)/2 - 2 κ τ + c`` for ``c >= 0``, elementwise."""
    flat = c.reshape(-1)
    out = torch.empty_like(flat)
    for a in range(0, flat.numel(), _BLOCK):
        k = kappa.reshape(-1)[a : a + _BLOCK] if kappa.ndim else kappa
        out[a : a + _BLOCK] = _even_logistic_block(flat[a : a + _BLOCK], k)
    return out.reshape(c.shape)


def _even_logistic_block(c: Tensor, kappa: Tensor) -> Tensor:
    two_kappa = 2.0 * kappa
    tau = (c + 0.5) / two_kappa
    # tanh(x) <= x gives a second start on the right of the root, closer when κ is large.
    steep = two_kappa - 0.25
    tau = torch.where(steep > 0, torch.minimum(tau, c / steep.clamp_min(1e-300)), tau)
    tolerance = 8.0 * torch.finfo(c.dtype).eps
    live: Tensor | None = None  # indices still moving, once most have stopped
    x, cx, k2 = tau, c, two_kappa
    for iteration in range(_MAX_NEWTON):
        th = torch.tanh(0.5 * x)
        step = (0.5 * th - k2 * x + cx) / (0.25 * (th * th - 1.0) + k2)
        # Concavity: exact steps are negative, so a positive one is rounding at the root.
        step = torch.where(step < 0, step, torch.zeros_like(step))
        x = (x + step).clamp_min_(0.0)
        if live is None:
            tau = x
        else:
            tau[live] = x
        moving = -step > tolerance * x
        count = int(moving.sum())
        if count == 0:
            break
        if iteration >= 4 and count * 4 < x.numel():
            keep = moving.nonzero()[:, 0]
            live = keep if live is None else live[keep]
            x, cx = x[keep], cx[keep]
            k2 = k2[keep] if k2.ndim else k2
    return tau


class Hinge(Loss):
    r"""Hinge loss :math:`(1 - s f)_+`, ``s = 2 y - 1``; worst case ``(1 - s f + 1/(4κ))_+``.

    Examples
    --------
    >>> f, y = torch.tensor([0.5, 9.0]), torch.tensor([1, 1])
    >>> Hinge().robust_value(f, y, 0.25)
    tensor([1.5000, 0.0000])
    """

    name = "hinge"
    lipschitz = 1.0
    curvature = math.inf
    kinks = (1.0,)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (1.0 - _sign(f, y) * f).clamp_min(0.0)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        s = _sign(f, y)
        return torch.where(s * f < 1.0, -s, torch.zeros_like(s))

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        s = _sign(f, y)
        moved = 1.0 - s * f + 1.0 / (4.0 * kappa) > 0
        return torch.where(moved, -s / (2.0 * kappa), torch.zeros_like(s))


class Squared(Loss):
    r"""Squared error :math:`(f - y)^2`; worst case ``κ (f-y)² / (κ-1)``, finite for κ > 1.

    Examples
    --------
    >>> Squared().robust_value(torch.tensor([3.0]), torch.tensor([1.0]), 2.0)
    tensor([8.])
    """

    name = "squared"
    task = "regression"
    lipschitz = math.inf
    curvature = 2.0
    growth = 1.0

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square()

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (f - y)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(f, 2.0)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        return (f - y) / (kappa - 1.0)


class Quantile(Loss):
    r"""Pinball loss :math:`\max(q (y-f), (1-q)(f-y))`, whose minimiser is the `q` quantile.

    Worst case: the larger of the two lines, each raised by slope²/(4κ).

    Examples
    --------
    >>> Quantile(q=0.9).value(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))
    tensor([0.9000, 0.1000])
    """

    name = "quantile"
    task = "regression"
    curvature = math.inf
    kinks = (0.0,)

    def __init__(self, q: float = 0.5) -> None:
        if not 0.0 < q < 1.0:
            raise InvalidDataError(f"quantile loss: q = {q!r}, expected 0 < q < 1")
        self.q = float(q)
        self.slopes = (-self.q, 1.0 - self.q)
        self.lipschitz = max(self.q, 1.0 - self.q)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        r = f - y
        return torch.maximum(self.slopes[0] * r, self.slopes[1] * r)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        low, high = self.slopes
        r = f - y
        return _either(r > 0, high, low, f) * (r != 0)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(f)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        low, high = self.slopes
        # high² - low² = (high - low)(high + low); divided by high - low > 0.
        up = f - y + (high + low) / (4.0 * kappa) >= 0
        return _either(up, high, low, f) / (2.0 * kappa)

    def __repr__(self) -> str:
        return f"Quantile(q={self.q!r})"


class Absolute(Quantile):
    r"""Absolute error :math:`|f - y|`; worst case ``|f-y| + 1/(4κ)``.

    Examples
    --------
    >>> Absolute().robust_value(torch.tensor([3.0]), torch.tensor([1.0]), 0.5)
    tensor([2.5000])
    """

    name = "absolute"

    def __init__(self) -> None:
        self.slopes = (-1.0, 1.0)
        self.lipschitz = 1.0

    def __repr__(self) -> str:
        return "Absolute()"


class Huber(Loss):
    r"""Huber loss: ``r²/2`` for ``|r| <= delta``, else ``delta |r| - delta²/2``, r = f - y.

    Worst case: moving outwards by r/(2κ-1) while that stays inside delta, otherwise by delta/(2κ).
    For κ ≤ 1/2 every residual is moved past delta.

    Examples
    --------
    >>> Huber(delta=1.0).value(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.1250, 2.5000])
    """

    name = "huber"
    task = "regression"
    curvature = 1.0

    def __init__(self, delta: float = 1.35) -> None:
        if not (delta > 0 and math.isfinite(delta)):
            raise InvalidDataError(f"huber loss: delta = {delta!r}, expected a positive number")
        self.delta = float(delta)
        self.lipschitz = self.delta

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        a = (f - y).abs()
        inside = a.clamp_max(self.delta)
        return inside * (a - 0.5 * inside)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y).clamp(-self.delta, self.delta)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        return ((f - y).abs() <= self.delta).to(f.dtype)

    def _shift(self, f: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        r = f - y
        slack = (2.0 * kappa - 1.0).clamp_min(0.0)
        inside = r.abs() < self.delta * slack / (2.0 * kappa)
        near = r / torch.where(slack > 0, slack, torch.ones_like(slack))
        far = _either(r >= 0, self.delta, -self.delta, f) / (2.0 * kappa)
        return torch.where(inside, near, far)

    def __repr__(self) -> str:
        return f"Huber(delta={self.delta!r})"


class Softmax(Loss):
    r"""Cross-entropy :math:`\mathrm{logsumexp}(f) - f_y` on K logits, `f` of shape (n, K).

    In the logits its gradient has norm at most √2 and its Hessian diag(p) - pp' at most 1/2.

    Examples
    --------
    >>> Softmax().value(torch.zeros(1, 3), torch.tensor([2]))
    tensor([1.0986])
    """

    name = "logistic"
    scalar = False
    lipschitz = math.sqrt(2.0)
    curvature = 0.5

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(f, dim=-1) - _own(f, y)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(torch.softmax(f, dim=-1), y)

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""Upper bound of :math:`\sup_{z'} \ell(Wz'+b, y) - \lambda c(z', z)`, shape (n,).

        .. math:: \mathrm{logsumexp}_j (f_j - f_y + \|w_j - w_y\|^2_{C^{-1}} / (4\lambda))

        Proof: logsumexp(a) = max_p p'a + H(p) over the simplex; for fixed p the best move gains
        ‖Σ p_j (w_j - w_y)‖² / (4λ), at most Σ p_j ‖w_j - w_y‖² / (4λ) by Jensen's inequality.

        `f` (n, K) logits of the unmoved points; `pair_norms_squared` (K, K), entry (j, k) the
        squared norm of w_j - w_k with each column j weighted by its inverse cost.
        """
        return torch.logsumexp(_pair_scores(f, y, pair_norms_squared, lam), dim=-1)

    @staticmethod
    def input_curvature(pair_norms_squared: Tensor) -> Tensor:
        """Bound ``max_jk ‖w_j - w_k‖² / 4`` on the second derivative along any unit direction.

        That derivative is the variance of w_J'v under the softmax law of J; a variable with range
        R has variance at most R²/4 (Popoviciu).
        """
        return pair_norms_squared.max() / 4.0


class CrammerSinger(Loss):
    r"""Multi-class hinge :math:`\max_j f_j - f_y + 1[j \ne y]`, `f` of shape (n, K).

    Examples
    --------
    >>> CrammerSinger().value(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor([0.5000])
    """

    name = "hinge"
    scalar = False
    lipschitz = math.sqrt(2.0)
    curvature = math.inf
    kinks = (1.0,)

    def _scores(self, f: Tensor, y: Tensor) -> Tensor:
        return _minus_one(f - _own(f, y)[:, None] + 1.0, y)

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        return self._scores(f, y).amax(dim=-1)

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        scores = self._scores(f, y)
        top = torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        return _minus_one(top, y)

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        r"""The worst case :math:`\max_j f_j - f_y + 1[j\ne y] + \|w_j-w_y\|^2/(4\lambda)`, exact.

        The loss is a maximum of affine functions, and suprema commute. Shapes as in `Softmax`.
        """
        scores = _pair_scores(f, y, pair_norms_squared, lam)
        return _minus_one(scores + 1.0, y).amax(dim=-1)


def _own(f: Tensor, y: Tensor) -> Tensor:
    return f.gather(-1, y[:, None])[:, 0]


def _minus_one(a: Tensor, y: Tensor) -> Tensor:
    """`a` with one taken off the entry of each row's own class."""
    return a.scatter_add(-1, y[:, None], a.new_full((a.shape[0], 1), -1.0))


def _pair_scores(f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float) -> Tensor:
    classes = (f.shape[-1], f.shape[-1])
    if tuple(pair_norms_squared.shape) != classes:
        raise InvalidDataError(
            f"pair_norms_squared has shape {tuple(pair_norms_squared.shape)}, expected {classes}"
        )
    if not lam > 0:
        raise UnboundedRiskError(f"the penalty is {lam!r}; the worst case is finite for any > 0")
    return f - _own(f, y)[:, None] + pair_norms_squared.to(f.dtype)[:, y].T / (4.0 * lam)


class CallableLoss(Loss):
    """A user's ``loss(prediction, y) -> (n,)``; derivatives by autograd, no proven bounds.

    Examples
    --------
    >>> loss = CallableLoss(lambda f, y: (f - y) ** 4, task="regression")
    >>> loss.gradient(torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([4.])
    """

    name = "callable"
    lipschitz = None
    curvature = None
    growth = math.inf

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        task: str = "classification",
        scalar: bool = True,
    ) -> None:
        self.fn = fn
        self.task = task
        self.scalar = scalar

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        out = self.fn(f, y)
        if not isinstance(out, Tensor) or tuple(out.shape) != (f.shape[0],):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InvalidDataError(
                f"the loss returned {got}; expected one value per row, a tensor of shape "
                f"({f.shape[0]},)"
            )
        return out

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            return torch.autograd.grad(self.value(leaf, y).sum(), leaf)[0]

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        if f.ndim != 1:
            raise UnsupportedError("second_derivative is defined for outputs of shape (n,)")
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.value(leaf, y).sum(), leaf, create_graph=True)
            if not g.requires_grad:
                return torch.zeros_like(f)
            (h,) = torch.autograd.grad(g.sum(), leaf, allow_unused=True)
        return torch.zeros_like(f) if h is None else h.detach()

    def shift(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        raise UnsupportedError(
            "a callable loss has no exact one-dimensional worst case; use a named loss or an "
            "inner solver that works on samples"
        )

    def __repr__(self) -> str:
        return f"CallableLoss({self.fn!r}, task={self.task!r})"


_CLASSIFICATION = {"logistic": (Logistic, Softmax), "hinge": (Hinge, CrammerSinger)}
_REGRESSION = {"squared": Squared, "absolute": Absolute, "huber": Huber, "quantile": Quantile}


def get_loss(
    loss: str | Callable[[Tensor, Tensor], Tensor] | Loss,
    task: str | None = None,
    n_classes: int | None = None,
    **params: float,
) -> Loss:
    """The `Loss` of a name, of a callable, or a `Loss` itself.

    Parameters
    ----------
    loss : "logistic", "hinge", "squared", "absolute", "huber", "quantile", callable or Loss
    task : "classification" or "regression"; checked against the loss where given.
    n_classes : with more than 2, "logistic" and "hinge" are `Softmax` and `CrammerSinger`.
    **params : ``delta`` of "huber", ``q`` of "quantile".

    Examples
    --------
    >>> get_loss("huber", task="regression", delta=2.0)
    Huber(delta=2.0)
    >>> get_loss("logistic", n_classes=3)
    Softmax()
    """
    if isinstance(loss, Loss):
        found = loss
    elif isinstance(loss, str):
        known = {**_CLASSIFICATION, **_REGRESSION}
        if loss not in known:
            raise InvalidDataError(f"unknown loss {loss!r}; known: {', '.join(sorted(known))}")
        if loss in _CLASSIFICATION:
            factory = _CLASSIFICATION[loss][int((n_classes or 2) > 2)]
        else:
            factory = _REGRESSION[loss]
        try:
            found = factory(**params)
        except TypeError as error:
            raise InvalidDataError(f"loss {loss!r}: {error}") from error
    elif callable(loss):
        return CallableLoss(
            loss, task=task or "classification", scalar=(n_classes or 2) <= 2, **params
        )
    else:
        raise InvalidDataError(f"loss is {loss!r}; expected a name, a callable or a Loss")
    if task is not None and found.task != task:
        raise InvalidDataError(f"loss {found.name!r} is for {found.task}, but the task is {task}")
    return found
