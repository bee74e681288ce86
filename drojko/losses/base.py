"""What every loss offers: its values, its structure as data, and what solvers ask of it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import endless
from drojko._validation import Checked
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.losses.jets import Jet, smooth_jet, smooth_shift
from drojko.losses.pieces import Response, SmoothLoss, margins, residuals
from drojko.losses.smoothing import Smoothed, conjugate_bound
from drojko.losses.tilts import Tilted, still

__all__ = ["Loss", "as_kappa", "either", "sign"]

_FAR = 1e6  # where a loss without stated asymptotes is read for them


class _Growth:
    """What follows from slopes and curvature; a class or an instance may state another."""

    def __get__(self, loss: Loss | None, kind: type[Loss]) -> float:
        stated = kind if loss is None else loss
        if stated.lipschitz is not None and math.isfinite(stated.lipschitz):
            return 0.0
        return math.inf if stated.curvature is None else 0.5 * stated.curvature


class Loss(Checked):
    r"""A loss :math:`\ell(f, y)` with its structure.

    A loss of your own derives from this class. It needs `value`, `gradient` and
    `second_derivative`, and states as attributes what is true of it; what it leaves at the
    defaults is unknown, and nothing that needs it is called proven. The methods below have
    defaults or raise `UnsupportedError`, which names the method and who asks for it. `u` is the
    margin ``s f`` of a classification, ``s = 2 y - 1``, and the residual ``f - y`` of a regression.

    Attributes
    ----------
    name : str
    task : "classification" or "regression"
    scalar : bool
        Whether `f` has shape (n,); otherwise (n, K).
    lipschitz, curvature : float or None
        Bounds of the norm of the gradient and of the second derivative; ``inf`` where there is
        none, None where it is not known.
    growth : float
        The worst case ``loss(f + t) - kappa t^2`` is finite for ``kappa > growth``; by default what
        follows from the two above. Infinite stands for unknown, too: it is then measured far away.
    kinks : tuple of float
        The `u` where the loss is not differentiable.
    convex : bool
        Whether the loss is convex in `f`.
    attained : bool
        Whether the infimum in `f` is attained; the cross-entropies reach it only as a margin grows
        without end, so that separable classes have no minimiser.
    quadratic : bool
        Whether it is ``u^2`` itself.
    calibrated : bool
        Whether the outputs are logits of probabilities.
    structured : bool
        Whether the attributes may be relied on; False for a callable, which may look at anything.
    lines : tuple of (slope, level)
        The affine pieces ``slope * u + level`` whose maximum it is, from steepest fall to steepest
        rise; empty if it is none.
    asymptotes : ((slope, level), (slope, level)) or None
        The lines in `u` that it approaches towards -inf and +inf and never falls below.
    conjugate_bend : float or None
        The k of a conjugate that is ``k p^2`` plus a linear function of the slope p.
    straight : bool
        Whether a smooth loss has straight parts, where Newton's method needs smoothing to start.
    most : float
        The largest value that the loss can take, infinity where there is none.
    margin : float
        Several classes: what it adds to f_j - f_y once that outgrows everything else.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> loss = get_loss("hinge")
    >>> loss.value(torch.tensor([2.0, 0.0]), torch.tensor([1, 1]))
    tensor([0., 1.])
    >>> loss.lipschitz, loss.curvature, loss.growth, loss.kinks
    (1.0, inf, 0.0, (1.0,))
    """

    any_outputs = False  # whether predictions of any number of columns will do
    _shapes = {"f": "~", "y": "~ real", "kappa": "~"}
    name: str = ""
    task: str = "classification"
    scalar: bool = True
    lipschitz: float | None = None
    curvature: float | None = None
    growth: float = _Growth()  # type: ignore[assignment]
    kinks: tuple[float, ...] = ()
    convex: bool = False
    attained: bool = True
    quadratic: bool = False
    calibrated: bool = True
    structured: bool = True
    lines: tuple[tuple[float, float], ...] = ()
    most: float = math.inf
    margin: float = 0.0
    conjugate_bend: float | None = None
    straight: bool = False

    # -- values and derivatives ---------------------------------------------------------------

    def value(self, f: Tensor, y: Tensor) -> Tensor:
        """Loss of each row, shape (n,)."""
        raise self._lacks("value", "everything needs")

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Derivative in `f`, of the shape of `f` (an element of the subdifferential at kinks)."""
        raise self._lacks("gradient", "every solver needs", _AUTOGRAD)

    def second_derivative(self, f: Tensor, y: Tensor) -> Tensor:
        """Second derivative in `f` of a scalar loss, shape (n,); zero at kinks."""
        raise self._lacks("second_derivative", "the solvers of linear models need", _AUTOGRAD)

    # -- the one-dimensional worst case -------------------------------------------------------

    @property
    def has_worst_case(self) -> bool:
        """Whether `shift` is known in closed form (several classes: `class_moves`)."""
        return self.offers("_shift" if self.scalar else "class_moves")

    def shift(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser t of ``loss(f + t, y) - kappa t^2``, shape (n,).

        `kappa` is a number or a tensor that broadcasts to (n,); ``inf`` gives zero. Raises
        `UnboundedRiskError` unless every `kappa` exceeds ``growth``. A loss of your own implements
        ``_shift(f, y, kappa)``, which is asked for finite `kappa` above ``growth`` only.
        """
        if not self.scalar or not (self.offers("_shift") or self.smooth_within):
            raise self._lacks(
                "_shift",
                "exact worst cases of linear models need",
                "use an inner solver that works on samples",
            )
        k = as_kappa(kappa, f)
        if not bool(((k > self.growth) & (k >= torch.finfo(k.dtype).tiny)).all()):
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
        flat = [v.reshape(-1).numpy(force=True) for v in (f.double(), y.expand_as(f).double())]
        each = kappa.double().expand_as(f).reshape(-1).numpy(force=True)
        found = np.empty_like(flat[0])
        for k in np.unique(each):
            rows = each == k
            found[rows] = smooth_shift(self, flat[0][rows], flat[1][rows], 0.25 / float(k))
        return torch.from_numpy(found).reshape(f.shape).to(f)

    def worst_jet(
        self, u: np.ndarray, y: np.ndarray, sigma: float, mu: float, dual: np.ndarray
    ) -> Jet:
        r"""The worst case with its derivatives, kinks smoothed by `mu`; arrays of shape (n,).

        .. math:: G(u, \sigma) = \max_t\; \ell(u + t, y) - t^2 / 4\sigma

        `dual` is that of `drojko.losses.jets`. A smooth convex loss has it by default as long as
        ``2 sigma * curvature < 1``.
        """
        if not self.smooth_within:
            raise self._lacks("worst_jet", "exact linear training under order 2 needs")
        return smooth_jet(self, u, y, sigma)

    @property
    def has_worst_jet(self) -> bool:
        """Whether `worst_jet` is there, at any sigma or at small ones."""
        return self.scalar and (self.offers("worst_jet") or self.smooth_within)

    def kink_free(self, sigma: float) -> bool:
        """Whether `worst_jet` is smooth at this sigma, with a margin for later changes of it."""
        return self.smooth_within and 2.0 * sigma * float(self.curvature or 0.0) < 0.98

    def jumps(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The sigmas at which maximisers of the worst case at `f` jump."""
        return np.empty(0)

    def envelope(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """A global maximiser f' of ``loss(f', y) - kappa (f' - f)^2``, shape (n,)."""
        return f + self.shift(f, y, kappa)

    def robust_value(self, f: Tensor, y: Tensor, kappa: float | Tensor) -> Tensor:
        """The maximum itself, ``max_t loss(f + t, y) - kappa t^2``, shape (n,)."""
        t = self.shift(f, y, kappa)
        cost = torch.where(t == 0, torch.zeros_like(t), as_kappa(kappa, f) * t * t)
        return self.value(f + t, y) - cost

    def rate_bound(self, f: Tensor, y: Tensor, rates: Tensor, strength: float) -> Tensor:
        r"""Upper bound of :math:`\sup_{t \ge 0} \ell - \lambda t^2`, shape (n,).

        The output moves by at most ``rates * t``, of shape () or (n, 1); with several classes the
        differences f_j - f_y do, rates of shape (n, K). Infinite where nothing is known. Exact for
        a scalar loss with a closed-form `shift`; otherwise the better of the bounds from
        ``lipschitz`` and ``curvature``.
        """
        if not self.scalar:
            return torch.full_like(f[:, 0], torch.inf)
        square = rates.reshape(-1).square().to(f.dtype)
        kappa = torch.where(square > 0, strength / square.clamp_min(1e-300), torch.inf)
        if self.has_worst_case:
            finite = kappa > self.growth
            safe = torch.where(finite, kappa, self.growth + 1.0)
            return torch.where(finite, self.robust_value(f, y, safe), torch.inf)
        bound = torch.full_like(f, torch.inf)
        if self.lipschitz is not None and math.isfinite(self.lipschitz):
            bound = self.value(f, y) + self.lipschitz**2 / (4.0 * kappa)
        if self.curvature is not None and math.isfinite(self.curvature):
            spare = kappa - 0.5 * self.curvature
            rise = self.gradient(f, y).square() / (4.0 * spare)
            quadratic = torch.where(spare > 0, self.value(f, y) + rise, torch.inf)
            bound = torch.minimum(bound, quadratic)
        return bound

    # -- smoothed kinks and the conjugate -----------------------------------------------------

    def smoothed(
        self, f: np.ndarray, y: np.ndarray, mu: float, dual: np.ndarray | None = None
    ) -> Smoothed:
        """Value, slope and curvature with kinks smoothed by mu > 0; arrays of shape (n,).

        ``dual`` is what ``record.moved`` of an earlier one gave. A smooth loss is its own.
        """
        if self.kinks:
            raise self._lacks("smoothed", "linear training with kinks needs", _AUTOGRAD)
        line = self.line(f, y)
        return Smoothed(*line, line[1], own=True)

    def least(self, slope: Any, y: np.ndarray, near: np.ndarray | None = None) -> np.ndarray:
        r"""Return :math:`\inf_f \ell(f, y) - s f` for slopes s in `domain`: minus the conjugate.

        Of a convex loss without a formula it is a lower bound, found numerically from ``near`` on;
        -inf where there is none.
        """
        if not self.convex:
            return np.full_like(slope, -np.inf)

        def line(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            value, first, second = self.line(f, y)
            return value - slope * f, first - slope, second

        return conjugate_bound(line, np.zeros_like(slope) if near is None else near)

    def domain(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest slope of each row: the domain of the conjugate."""
        bound = math.inf if self.lipschitz is None else self.lipschitz
        return np.full(len(y), -bound), np.full(len(y), bound)

    def line(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value, slope and curvature of a scalar loss, shape (n,) each."""
        at, target = torch.from_numpy(f), torch.from_numpy(y)
        parts = (self.value, self.gradient, self.second_derivative)
        value, slope, second = (part(at, target).detach().numpy() for part in parts)
        return value, slope, second

    @property
    def has_bounds(self) -> bool:
        """Whether `rate_bound` may be finite, and a proof."""
        known = (self.lipschitz, self.curvature)
        stated = any(bound is not None and math.isfinite(bound) for bound in known)
        return self.structured and (
            self.has_worst_case or stated if self.scalar else self.has_pairs
        )

    # -- bounds on balls of outputs -----------------------------------------------------------

    @property
    def smooth_within(self) -> bool:
        """Whether the next four methods are proofs: a smooth convex loss of known curvature."""
        known = self.structured and self.convex
        smooth = self.curvature is not None and math.isfinite(self.curvature)
        return known and smooth and (self.scalar or self.offers("odds_within"))

    def value_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Largest value where `f` moves by at most `reach` (n, 1); convex: at an end."""
        reach = reach[:, 0]
        return torch.maximum(self.value(f + reach, y), self.value(f - reach, y))

    def slope_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Largest absolute slope where `f` moves by at most `reach`, both of shape (n,)."""
        return torch.maximum(
            self.gradient(f + reach, y).abs(), self.gradient(f - reach, y).abs()
        )  # convex: at an end

    def curvature_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Bound of the second derivative where `f` moves by at most `reach`, both (n,)."""
        return torch.full_like(f, math.inf if self.curvature is None else self.curvature)

    def odds_within(self, f: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Several classes: bounds (n, K) of the gradient in f_j - f_y, which move by `reach`."""
        raise self._lacks("odds_within", "local bounds of networks need")

    def largest(self, y: Tensor, n_classes: int, limit: float, clip: float) -> Tensor:
        """Largest loss of any classifier's answer, shape (n,); infinite if that is not known.

        Logits lie within ``limit = -log(clip)`` of zero, as probabilities lie above ``clip``.
        """
        if math.isfinite(self.most) or not (self.convex and self.structured and limit < math.inf):
            return torch.full(y.shape, self.most, dtype=torch.float64)
        if n_classes == 2:
            ends = torch.tensor([-limit, limit], dtype=torch.float64)
            return torch.stack([self.value(e.expand(len(y)), y) for e in ends]).amax(0)
        # One answer certain, the others impossible.
        corners = -limit * (1.0 - torch.eye(n_classes, dtype=torch.float64))
        values = [self.value(c.expand(len(y), n_classes), y).double() for c in corners]
        return torch.stack(values).amax(0)

    # -- several classes ----------------------------------------------------------------------

    @property
    def has_pairs(self) -> bool:
        """Whether the gradient is p - e_y with probabilities p, so that differences decide."""
        return self.offers("pairwise_upper_bound")

    def pairwise_upper_bound(
        self, f: Tensor, y: Tensor, pair_norms_squared: Tensor, lam: float
    ) -> Tensor:
        """Bound on the worst case of a linear multi-class model; see the subclasses."""
        raise self._lacks("pairwise_upper_bound", "bounds of multi-class models need")

    @staticmethod
    def input_curvature(pair_norms_squared: Tensor) -> Tensor | float:
        """Bound on the second derivative along unit directions of the input of a linear model."""
        return math.inf

    def worst_probabilities(self, f: Tensor, y: Tensor, gram: Tensor, half: float) -> Tensor:
        r"""Class probabilities p at the worst case of a linear model, shape (n, K).

        It moves by :math:`W^\top (p - e_y) / 2\lambda`; ``gram`` is W W', ``half`` 1 / 2 lambda.
        """
        arrays = (part.detach().cpu().double().numpy() for part in (f, y, gram))
        f64, labels, gram64 = arrays
        moves = self.class_moves(f64, labels.astype(np.int64), gram64, half, None, 1e-11)
        return torch.as_tensor(moves.best(), dtype=f.dtype, device=f.device)

    def class_moves(
        self, f: np.ndarray, y: np.ndarray, gram: np.ndarray, half: float, near: Any, done: float
    ) -> Any:
        """Worst cases of a linear model, a `drojko.losses.class_moves.Moves`.

        Arguments as in `worst_probabilities`, as arrays; ``near``: those of a model nearby, or
        None; ``done``: how far probabilities may be from where they end.
        """
        raise self._lacks("class_moves", "exact multi-class training needs")

    def class_ceilings(
        self, f: np.ndarray, y: np.ndarray, gram: np.ndarray, moves: Any, w: np.ndarray, nodes: Any
    ) -> tuple[np.ndarray, str]:
        """Upper bounds of these worst cases, shape (n,), and what proves them.

        ``nodes``: how much work they are worth, None for some.
        """
        raise self._lacks("class_ceilings", "exact multi-class certificates need")

    def noise_bound(
        self, away: Tensor, y: Tensor, square: Tensor, beta: float, epsilon: float
    ) -> Tensor:
        """Several classes under noise: bound of log-mean-exp at inverse temperature `beta`, (n,).

        ``away`` (n, K): means of f_j - f_y; they are sub-Gaussian with variance ``epsilon / 2``
        times ``square`` (n, K).
        """
        raise self._lacks("noise_bound", "Sinkhorn certificates of several classes need")

    def multiclass(self) -> Loss:
        """The loss of K > 2 logits that this one of two classes stands for."""
        if not self.scalar:
            return self
        raise self._lacks("multiclass", "more than two classes need", "give one with scalar=False")

    def binary(self) -> Loss:
        """The loss of one logit that this one of several classes stands for."""
        if self.scalar:
            return self
        raise self._lacks("binary", "two classes need", "give one with scalar=True")

    # -- training -----------------------------------------------------------------------------

    def rescaled(self, unit: float) -> tuple[Loss, float] | None:
        """(l', c) with ``loss(unit f, unit y) = c l'(f, y)`` for a loss of residuals, or None."""
        return None

    def constants(self, y: np.ndarray, w: np.ndarray, n_outputs: int) -> list[np.ndarray]:
        """Constant outputs of shape (n_outputs,) among which a good one is, but for zero.

        ``y`` (n,) labels and ``w`` (n,) masses of sum one.
        """
        if self.task == "regression":
            order = np.argsort(y)
            at = np.searchsorted(np.cumsum(w[order]), self._level).clip(0, len(y) - 1)
            median = np.searchsorted(np.cumsum(w[order]), 0.5).clip(0, len(y) - 1)
            return [y[order][k : k + 1] for k in (median, at)] + [np.array([w @ y])]
        shares = np.bincount(y, weights=w, minlength=max(2, n_outputs))
        logs = np.log(np.maximum(shares, 1e-300))
        major = np.eye(len(shares))[shares.argmax()]
        scores = (logs, major, 2.0 * major)
        return [s[1:] - s[:1] if n_outputs == 1 else s for s in scores]

    def bottomless(self, y: np.ndarray, n_outputs: int) -> bool:
        """Whether, as a constant output grows, its loss falls without end under all labels (n,)."""
        y = np.unique(y)
        labels = torch.from_numpy(y[np.linspace(0, len(y) - 1, min(64, len(y))).astype(int)])
        far = _FAR * (1.0 + float(labels.abs().max()))
        ways = torch.eye(n_outputs, dtype=torch.float64)

        def worst(way: Tensor) -> float:
            f = far * way.expand(len(labels), n_outputs)
            return float(self.value(f[:, 0] if self.scalar else f, labels).max())

        low = [way for way in (*ways, *-ways) if worst(way) < 0.0]
        return any(endless(lambda t, w=w: worst(t * w), 6) for w in low)

    _level = 0.5  # the quantile that is the best constant, where there is one

    def pieces(self, y: np.ndarray, n_outputs: int, label_cost: float = math.inf) -> Response:
        """Smooth part and affine pieces on labels y (n,), as order-1 training takes them.

        With a finite ``label_cost`` class labels may change at that price.
        """
        flips = math.isfinite(label_cost) and self.task == "classification"
        if self.lines:
            lines, prices = list(self.lines), [0.0] * len(self.lines)
            if flips:
                # Of the other label the margin is -u; what labels have in common costs nothing.
                lines += [(-s, level) for s, level in lines if (-s, level) not in lines]
                prices += [-label_cost] * (len(lines) - len(prices))
            signs = residuals(y) if self.task == "regression" else margins(y)
            return Response.of_lines(lines, *signs, prices=prices)
        smooth = self.curvature is not None and math.isfinite(self.curvature)
        if not (self.scalar and self.convex and smooth) or flips:
            who = "order=1 with a finite label_cost needs" if flips else "order=1 needs"
            raise self._lacks("pieces", who, "use order=2")
        return Response.of(SmoothLoss(self, y), np.ones((len(y), 1)), np.zeros((len(y), 1)))

    @property
    def asymptotes(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        return (self.lines[0], self.lines[-1]) if self.lines else None

    def far_deficits(self, f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How much of the steepest slope times distance a far move loses: falling and rising u.

        Two arrays of shape (n,); infinite in the direction that is not the steepest.
        """
        u = f * (2.0 * y - 1.0) if self.task == "classification" else f - y
        own = self._numeric(f, y)
        if self.asymptotes is not None:
            (down, low), (up, high) = self.asymptotes
            top = max(up, -down)
            fall = own - (down * u + low) if -down == top else np.full_like(u, np.inf)
            rise = own - (up * u + high) if up == top else np.full_like(u, np.inf)
            return fall, rise
        if not self.scalar or self.lipschitz is None or not math.isfinite(self.lipschitz):
            raise self._lacks("asymptotes", "order=1 needs", "use order=2")
        s = 2.0 * y - 1.0 if self.task == "classification" else np.ones_like(u)
        far = _FAR * (1.0 + float(np.abs(u).max(initial=0.0)))
        gain = [self._numeric(f + sign * s * far, y) for sign in (-1.0, 1.0)]
        fall, rise = (own + self.lipschitz * far - g for g in gain)
        return fall, rise

    def _numeric(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self.value(torch.from_numpy(f), torch.from_numpy(np.asarray(y))).numpy()

    # -- Gaussian noise on the output ---------------------------------------------------------

    @property
    def has_tilt(self) -> bool:
        """Whether `tilt` is known; such a loss is convex."""
        return self.offers("_tilt")

    def tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        r"""Log-mean-exp under Gaussian noise, and the moments that are its derivatives.

        .. math:: \tfrac1\eta \log E\, e^{\eta\, \ell(f + s g, y)}, \qquad g \sim N(0, 1)

        A loss of your own implements ``_tilt(f, y, s, eta)``, which is asked for s > 0 only.

        Parameters
        ----------
        f, y : arrays of shape (n,)
        s : float, the noise's deviation in units of f.
        eta : float, inverse temperature in units of 1 / loss; 0: plain expectations.

        Raises
        ------
        UnboundedRiskError
            Squared loss with 2 eta s^2 >= 1: the mean is infinite.
        UnsupportedError
            For losses without known moments.

        Examples
        --------
        >>> from drojko.losses import get_loss
        >>> f, y = np.array([3.0]), np.array([1.0])
        >>> found = get_loss("squared", "regression").tilt(f, y, 1.0, 0.25)
        >>> found.value.round(6)  # r^2 / k - log(k) / (2 eta), k = 1 - 2 eta s^2 = 1/2
        array([9.386294])
        """
        if s == 0.0:
            return still(self, f, y)
        return self._tilt(f, y, s, eta)

    def _tilt(self, f: np.ndarray, y: np.ndarray, s: float, eta: float) -> Tilted:
        raise self._lacks("_tilt", "exact Sinkhorn risks of linear models need", "sample instead")

    def gaussian_tilt(
        self, f: np.ndarray, y: np.ndarray, s: float, eta: float
    ) -> tuple[np.ndarray, float] | None:
        """Mean (n,) and deviation of the tilted noise where it is Gaussian; None where not."""
        return None

    # -- conic programs -----------------------------------------------------------------------

    def conic(self, f: Any, y: np.ndarray) -> Any:
        """Loss of each row as a convex cvxpy expression of the affine expression ``f``."""
        if not self.lines:
            raise self._lacks("conic", "the conic baselines need")
        import cvxpy as cp

        u = self._affine(f, y)
        return cp.maximum(*[slope * u + level for slope, level in self.lines])

    def _affine(self, f: Any, y: np.ndarray) -> Any:
        """Margins or residuals, an affine cvxpy expression."""
        import cvxpy as cp

        return cp.multiply(2.0 * y - 1.0, f) if self.task == "classification" else f - y

    # -- as a plain value ---------------------------------------------------------------------

    def offers(self, method: str) -> bool:
        """Whether the class implements a method that `Loss` only names."""
        return getattr(type(self), method) is not getattr(Loss, method)

    def _lacks(self, method: str, need: str, instead: str = "") -> UnsupportedError:
        rest = f", or {instead}" if instead else ""
        return UnsupportedError(
            f"{type(self).__name__} has no `{method}`, which {need}: implement it{rest}"
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        own = vars(self)
        names = [name for name in inspect.signature(type(self)).parameters if name in own]
        return f"{type(self).__name__}({', '.join(f'{n}={own[n]!r}' for n in names)})"


_AUTOGRAD = "give the function itself as loss=, whose derivatives are taken by autograd"


def as_kappa(kappa: float | Tensor, f: Tensor) -> Tensor:
    return torch.as_tensor(kappa, dtype=f.dtype, device=f.device)


def either(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    # torch.where on two numbers gives the default dtype, that is float32.
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def sign(f: Tensor, y: Tensor) -> Tensor:
    return y.to(f.dtype).mul(2.0).sub_(1.0)
