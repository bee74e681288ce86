"""`worst_inputs`: a batch moved to the worst place that a Wasserstein set allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._numerics import root
from drojko._validation import checked, is_whole, refuse, shown
from drojko.ambiguity import AmbiguitySet, GroundCost
from drojko.ambiguity.duals.scaling import NonFiniteLossError
from drojko.exceptions import InvalidDataError, UnsupportedError

__all__ = ["worst_inputs"]

_HALF = (torch.float16, torch.bfloat16)


@checked()
def worst_inputs(
    module: Callable,
    loss: Any,
    x: Any,
    y: Any,
    ambiguity: AmbiguitySet,
    *,
    steps: int = 15,
) -> Tensor:
    r"""Move the inputs of a batch to where a module's loss is worst, at the price of the distance.

    .. math:: x'_i \approx \arg\max_z\; \ell(f(z), y_i) - \lambda\, c(x_i, z), \qquad
        c(x, z) = \sum_j w_j (x_j - z_j)^2

    with lambda the set's penalty or, for a radius r, the multiplier of the batch,
    :math:`\frac1n \sum_i c(x_i, x'_i) \le r^2`: some inputs move far, others stay. Train on
    ``module(x')`` as on any batch. The result is attained, so that the loss there is a lower bound
    of the worst case: for a linear module and a convex loss of its output the worst case itself.

    Parameters
    ----------
    module : torch.nn.Module or callable
        Takes tensors like x. It runs in evaluation mode and is left as it was: modes, buffers,
        parameters, their gradients and flags.
    loss : callable or Loss
        ``loss(module(x), y) -> (n,)``, a loss per row: of torch's own, with reduction="none".
    x : Tensor of shape (n, ...)
        Of any floating dtype and any shape, images too; inside the bounds of the set.
    y : Tensor, array or object
        What ``loss`` takes, arrays as tensors; labels stay.
    ambiguity : AmbiguitySet
        `Wasserstein` of order 2, with radius or penalty. Its ``weights``, ``immutable`` and
        ``bounds`` count the columns of ``x.flatten(1)``; one number, or one pair, is for all.
    steps : int, default=15
        Gradients taken, each through the whole module, beside the first one.

    Returns
    -------
    Tensor of shape (n, ...)
        x', detached, of the dtype and device of x. A radius is kept to: rounding included, the
        mean cost is at most its square.

    Raises
    ------
    UnsupportedError
        For sets that reweight, of order 1, with entropy, or where labels or categories change.
    InvalidDataError
        For inputs that are no floating tensor or outside the bounds, and losses that are not one
        per row, have no gradient in x or, as NonFiniteError too, are not finite at x.

    Notes
    -----
    Proximal steps :math:`x' - x \leftarrow (W^{-1}\nabla\ell + \kappa (x' - x)) / (2\lambda +
    \kappa)`, with the curvature kappa of Barzilai and Borwein (1988) of each row; the first has
    kappa = 0, exact for losses that are linear between the points. With a radius, each step has the
    lambda at which the batch spends it, by a root search that starts from the last one and asks
    the module nothing. Steps that lower the penalised loss of a row are undone. Ascent is local: it
    can miss distant maxima, and a penalty below half the loss's curvature has no finite worst case.
    No random numbers are drawn, unless the module draws them in evaluation mode.

    References
    ----------
    A. Sinha, H. Namkoong, R. Volpi, J. Duchi (2018), Certifying some distributional robustness with
    principled adversarial training, arXiv 1710.10571 (the penalised form).

    Examples
    --------
    >>> import torch
    >>> from drojko.ambiguity import Wasserstein
    >>> from drojko.nn import worst_inputs
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.zeros(1)})
    >>> squared = lambda f, y: (f.squeeze(1) - y) ** 2
    >>> x, y = torch.zeros(2, 2), torch.tensor([1.0, -3.0])
    >>> worst = worst_inputs(model, squared, x, y, Wasserstein(radius=0.1))
    >>> risk = squared(model(worst), y).mean()
    >>> round(risk.item(), 4), round((5**0.5 + 0.1 * 5) ** 2, 4)  # (root of the risk + r |theta|)^2
    (7.4861, 7.4861)
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise InvalidDataError(
            f"x is {shown(x)}; expected a floating tensor of shape (n, ...), a row for each sample"
        )
    refuse(x, "x")
    if not is_whole(steps, 0):
        raise InvalidDataError(f"steps={shown(steps)}; expected an integer of at least 0")
    if not len(x) or x[0].numel() == 0:
        raise InvalidDataError(f"x has shape {tuple(x.shape)}; it holds nothing to move")
    cost = _ground_cost(ambiguity, x[0].numel())
    value = getattr(loss, "value", loss)
    if not callable(value):
        raise InvalidDataError(
            f"loss={shown(loss)}; expected a callable loss(prediction, y) -> (n,), such as "
            "torch.nn.CrossEntropyLoss(reduction='none'), or a drojko.losses.Loss"
        )
    with torch.inference_mode(False), torch.enable_grad(), _undisturbed(module):
        space = _Space.of(x, cost)
        asked = _Asked(space, module, value, _labels(y, x))
        if ambiguity.budget is not None:
            return space.inputs(_in_ball(asked, float(ambiguity.budget), steps)).detach()
        return space.inputs(_priced(asked, float(ambiguity.penalty or 0.0), steps)).detach()


def _labels(y: Any, x: Tensor) -> Any:
    """Arrays as tensors beside x; anything else as it is."""
    if isinstance(y, Tensor) or not hasattr(y, "__array__"):
        return y
    refuse(y, "y")
    try:
        return torch.as_tensor(np.asarray(y), device=x.device)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(f"y is {shown(y)}; expected numbers: {error}") from error


def _ground_cost(ambiguity: AmbiguitySet, d: int) -> GroundCost:
    """What moving costs; an error for sets that do anything else."""
    ambiguity._validate_params()
    if not ambiguity.moves:
        raise UnsupportedError(
            f"worst_inputs moves rows, and {ambiguity!r} reweights them: use "
            "drojko.nn.RobustLoss(ambiguity), or Wasserstein(radius=...)"
        )
    if ambiguity.order != 2 or ambiguity.epsilon is not None:
        raise UnsupportedError(
            f"worst_inputs needs Wasserstein of order 2; got {ambiguity!r}, whose worst case is no "
            "single place for each input: use Wasserstein(radius=...), or DROClassifier"
        )
    if math.isfinite(ambiguity.label_cost):
        raise UnsupportedError(
            f"worst_inputs keeps labels; got label_cost={ambiguity.label_cost:g}: leave it at "
            "infinity, or use DROClassifier"
        )
    cost = ambiguity.resolve(d, None)
    if cost.swaps:
        raise UnsupportedError(
            "worst_inputs swaps no categories: leave swap_cost at infinity, so that they stay, or "
            "use DROClassifier"
        )
    return cost


@contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """Evaluation mode, every part's own mode given back; no exchange between ranks."""
    parts = list(module.modules()) if hasattr(module, "modules") else []
    modes = [part.training for part in parts]
    with ExitStack() as stack:
        if hasattr(module, "no_sync"):  # DistributedDataParallel would wait for a backward pass
            stack.enter_context(module.no_sync())
        try:
            for part in parts:
                part.training = False
            yield
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode


@dataclass(frozen=True, eq=False)
class _Space:
    """Where inputs may go: displacements (n, d) around x, in float32 where x is of half precision.

    ``weights`` and ``inverse`` (d,) are the metric, 0 and 0 for columns that stay.
    """

    x: Tensor
    flat: Tensor
    weights: Tensor
    inverse: Tensor
    lower: Tensor | None
    upper: Tensor | None

    @classmethod
    def of(cls, x: Tensor, cost: GroundCost) -> _Space:
        x = x.detach().clone()  # of a tensor made in inference mode too
        work = torch.float32 if x.dtype in _HALF else x.dtype
        like = {"dtype": work, "device": x.device}
        stays = ~torch.as_tensor(cost.mutable, device=x.device)
        weights = torch.as_tensor(cost.weights, **like).masked_fill(stays, 0.0)
        inverse = torch.as_tensor(cost.inverse_weights, **like)
        lower = upper = None
        if cost.lower is not None and cost.upper is not None:
            cost.check_inside(x.flatten(1))
            lower, upper = (
                _inside(torch.as_tensor(bound, device=x.device), x.dtype, way)
                for bound, way in ((cost.lower, math.inf), (cost.upper, -math.inf))
            )
        return cls(x, x.flatten(1).to(work), weights, inverse, lower, upper)

    def inputs(self, move: Tensor) -> Tensor:
        """The inputs after a displacement, as the module takes them; those that stay bit by bit."""
        z = (self.flat + move).to(self.x.dtype)
        if self.lower is not None:
            z = z.clamp(self.lower, self.upper)
        z = torch.where(move == 0, self.x.flatten(1), z)
        return z.reshape(self.x.shape)

    def rounded(self, move: Tensor) -> Tensor:
        """The displacement that is left once bounds and rounding have had their say."""
        return self.inputs(move).flatten(1).to(self.flat.dtype) - self.flat

    def cost(self, move: Tensor) -> Tensor:
        """Cost of each row (n,), in float64."""
        return (move.square() * self.weights).sum(1, dtype=torch.float64)

    def clipped(self, move: Tensor) -> Tensor:
        if self.lower is None or self.upper is None:
            return move
        lower, upper = self.lower.to(move.dtype), self.upper.to(move.dtype)
        return (self.flat + move).clamp(lower, upper) - self.flat


def _inside(bound: Tensor, dtype: torch.dtype, way: float) -> Tensor:
    """A bound in another precision, rounded to the inside."""
    near = bound.to(dtype)
    beyond = (bound - near.double()) * way > 0
    step = torch.finfo(dtype).eps * near.abs().clamp_min(torch.finfo(dtype).tiny)
    return torch.where(beyond, near + math.copysign(1.0, way) * step, near)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The module's losses and their gradients."""

    space: _Space
    module: Any
    loss: Any
    y: Any

    def __call__(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) in float64 and gradients (n, d) at a displacement."""
        z = self.space.inputs(move).detach().requires_grad_()
        prediction = self.module(z)
        values = self.loss(prediction, self.y)
        n = len(z)
        if not isinstance(values, Tensor) or values.shape != (n,):
            raise InvalidDataError(
                f"loss(module(x), y) is {shown(values)}; expected a tensor of shape ({n},), a loss "
                "per row (in torch's own losses: reduction='none')"
            )
        if not values.requires_grad:
            raise InvalidDataError(
                "loss(module(x), y) has no gradient in x: leave out detach() and no_grad() within"
            )
        (gradient,) = torch.autograd.grad(values.double().sum(), z, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(z)
        return values.detach().double(), gradient.flatten(1).to(move.dtype)

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """No displacement, the losses and gradients there."""
        move = torch.zeros_like(self.space.flat)
        value, gradient = self(move)
        if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
            raise NonFiniteLossError(
                "loss(module(x), y) or its gradient in x is not finite at x itself: look at the "
                "module, or at the scale of the inputs"
            )
        return move, value, gradient


@dataclass(frozen=True, eq=False)
class _Climb:
    """Displacements with losses and gradients there; ``bend`` (n,) is kappa."""

    asked: _Asked
    move: Tensor
    value: Tensor
    gradient: Tensor
    bend: Tensor

    @classmethod
    def at_start(cls, asked: _Asked) -> _Climb:
        move, value, gradient = asked.start()
        return cls(asked, move, value, gradient, torch.zeros_like(value))

    @property
    def pull(self) -> Tensor:
        """What a step divides by 2 lambda + kappa, (n, d)."""
        bend = self.bend.to(self.move.dtype).unsqueeze(1)
        return self.gradient * self.asked.space.inverse + bend * self.move

    def trial(self, penalty: float) -> Tensor:
        """Displacement after a proximal step."""
        space = self.asked.space
        length = (2.0 * penalty + self.bend).clamp_min(1e-300).reciprocal()
        step = self.pull * length.to(self.move.dtype).unsqueeze(1)
        return space.rounded(torch.nan_to_num(step))

    def after(self, trial: Tensor, penalty: float) -> tuple[_Climb, Tensor]:
        """Where the step was worth its cost, row by row; and the losses of the trial (n,)."""
        cost = self.asked.space.cost
        value, gradient = self.asked(trial)
        gain = value - self.value - penalty * (cost(trial) - cost(self.move))
        finite = torch.isfinite(value) & torch.isfinite(gradient).all(1)
        better = (gain >= 0) & finite
        moved = trial - self.move
        change = (moved * (gradient - self.gradient)).sum(1, dtype=torch.float64)
        bend = (-change / cost(moved)).nan_to_num(0.0).clamp(-penalty, 1e6 * penalty)
        shorter = 4.0 * (2.0 * penalty + self.bend) - 2.0 * penalty
        bend = torch.where(better, bend, shorter.clamp_max(1e12 * max(penalty, 1e-280)))
        pick = better.unsqueeze(1)
        climb = _Climb(
            self.asked,
            torch.where(pick, trial, self.move),
            torch.where(better, value, self.value),
            torch.where(pick, gradient, self.gradient),
            bend,
        )
        return climb, torch.where(finite, value, -math.inf)


def _priced(asked: _Asked, penalty: float, steps: int) -> Tensor:
    """Ascent of each row on its penalised loss."""
    climb = _Climb.at_start(asked)
    for _ in range(steps):
        climb, _ = climb.after(climb.trial(penalty), penalty)
    return climb.move


def _in_ball(asked: _Asked, budget: float, steps: int) -> Tensor:
    """Ascent of the batch's mean loss, at the penalty of each step that spends the budget."""
    climb, space = _Climb.at_start(asked), asked.space
    best, most = climb.move, float(climb.value.mean())
    if budget == 0.0:
        return best
    penalty = None
    for _ in range(steps):
        penalty = _spending(climb, budget, penalty)
        if penalty is None:
            break
        trial = _within(space, climb.trial(penalty), budget)
        climb, values = climb.after(trial, penalty)
        for move, value in ((trial, values), (climb.move, climb.value)):
            mean = float(value.mean())
            if mean > most and float(space.cost(move).mean()) <= budget:
                best, most = move, mean
    return best


def _spending(climb: _Climb, budget: float, last: float | None) -> float | None:
    """The penalty at which the next step spends the budget, or less where it cannot."""
    space, bend, pull = climb.asked.space, climb.bend, climb.pull
    square = space.cost(pull)
    size = math.sqrt(float(square.mean()) / budget)
    least = float(bend.min())
    high = 0.5 * (size - min(least, 0.0))
    if not 0.0 < high < math.inf:
        return None  # the loss is flat everywhere
    low = max(0.55 * max(-least, 0.0), 1e-12 * high)

    def unspent(log_penalty: float) -> float:
        length = (2.0 * math.exp(log_penalty) + bend).reciprocal()
        if space.lower is None:
            mean = float((square * length.square()).mean())
        else:
            step = pull * length.to(pull.dtype).unsqueeze(1)
            mean = float(space.cost(space.clipped(step)).mean())
        return 0.5 * math.log(budget / mean) if mean > 0.0 else 1e9

    ends = math.log(low), math.log(high)
    if low >= high or unspent(ends[0]) >= 0.0:
        return low
    start = last if last is not None and low < last < high else 0.9 * high
    return math.exp(root(unspent, math.log(start), slope=1.0, low=ends[0], high=ends[1], tol=1e-12))


def _within(space: _Space, move: Tensor, budget: float) -> Tensor:
    """The displacement shortened until rounding keeps it within the budget."""
    tiny = torch.finfo(space.x.dtype).eps
    for k in range(40):
        cost = float(space.cost(move).mean())
        if cost <= budget:
            return move
        move = space.rounded(move * (math.sqrt(budget / cost) * (1.0 - min(tiny * 2.0**k, 0.5))))
    return torch.zeros_like(move)
