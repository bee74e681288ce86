"""Rejection-resampling steps: the density's exact update, and all steps of a block at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drojko._numerics import root
from drojko.exceptions import SolverError

__all__ = [
    "LEAST",
    "RejectionBlock",
    "RejectionStep",
    "draw_kept",
    "effective_sample_size",
    "tail_index",
    "tail_share",
]

#: Effective sample size below which rejections, which aim at 0.999, have missed their aim by far.
LEAST = 0.9
_MOST_STEPS = 200  # each makes what is left of the error a fifth, at the end


def draw_kept(
    n: int, draw: Callable[[int], Sequence[Tensor]], cost: float, most: int = 65_536
) -> list[Tensor]:
    """Tensors of n rows: what ``draw(m)`` keeps of m draws, about one in ``cost``, until there are.

    >>> draw_kept(3, lambda m: [torch.ones(max(1, m // 100))], 100.0)
    [tensor([1., 1., 1.])]
    """
    found: list[Sequence[Tensor]] = []
    missing = n
    while missing > 0:
        kept = draw(min(most, int(1.1 * missing * cost) + 64))
        found.append([part[:missing] for part in kept])
        missing -= len(found[-1][0])
    return [torch.cat(parts) for parts in zip(*found)]


@dataclass(frozen=True)
class RejectionStep:
    """log c, which rises towards log Z - log(1 - r) step by step, and E alpha of one step."""

    log_bound: float
    acceptance: float


def effective_sample_size(log_weight: Tensor, weight: Tensor | None = None) -> float:
    r"""(E w)^2 / E w^2 in (0, 1] of weights exp(``log_weight``) on points of mass ``weight``.

    >>> effective_sample_size(torch.log(torch.tensor([1.0, 1.0, 0.0, 0.0])))
    0.5
    """
    if weight is None:
        weight = torch.full_like(log_weight, 1.0 / len(log_weight))
    weight = weight / weight.sum()
    top = float(log_weight[weight > 0].max())
    if top == -math.inf:
        return 0.0
    w = (log_weight - top).exp()
    return float((weight * w).sum() ** 2 / (weight * w.square()).sum())


def tail_index(log_weight: Tensor) -> float:
    r"""Shape k of the generalised Pareto law fitted to the largest weights; NaN for too few.

    Weights have a variance where k < 1/2, and a mean where k < 1. The fit is that of Zhang and
    Stephens (2009) to the exceedances of the largest 3 sqrt(n) weights, at most a fifth of all.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (2024, arXiv 1507.02646).

    >>> u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    >>> [round(tail_index(-k * u.log()), 1) for k in (0.3, 0.8)]     # of Pareto laws
    [0.3, 0.8]
    """
    finite = log_weight[log_weight > -math.inf].double()
    m = _tail_size(log_weight)
    if m < 5 or len(finite) <= m:
        return math.nan
    top = finite.topk(m + 1).values.flip(0)
    x = (top - top[-1]).exp()
    x = x[1:] - x[0]
    x = x[x > 0]
    if len(x) < 5 or not float(x[-1]) > 1e-12:
        return math.nan
    n, quarter = len(x), float(x[max(int(len(x) / 4 + 0.5) - 1, 0)])
    count = 30 + int(math.sqrt(n))
    grid = torch.arange(1, count + 1, dtype=torch.float64)
    b = 1.0 / x[-1] + (1.0 - torch.sqrt(count / (grid - 0.5))) / (3.0 * quarter)
    k = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    likelihood = n * ((-b / k).log() - k - 1.0)
    weight = likelihood.softmax(0)
    return float(torch.log1p(-(weight @ b) * x).mean())


def tail_share(log_weight: Tensor) -> float:
    """Share of the sum of weights by which the largest ones exceed where their tail begins."""
    weight = (log_weight - log_weight.max()).exp()
    top = weight.topk(_tail_size(log_weight) + 1).values
    return float((top[:-1] - top[-1]).sum() / weight.sum())


def _tail_size(log_weight: Tensor) -> int:
    return int(min(0.2 * len(log_weight), 3.0 * math.sqrt(len(log_weight))))


@dataclass(frozen=True)
class RejectionBlock:
    r"""K rejection-resampling steps in a row, as one density ratio of u = log(g / p)(x).

    .. math:: p_{j+1} = p_j\,(\alpha_j + 1 - E_{p_j}\alpha_j), \qquad
        \alpha_j = \min(1, g / (c_j p_j)), \qquad E_{p_j} \alpha_j = 1 - r

    Draw x from p_j, keep it with probability alpha_j(x), else replace it by another draw: that
    has law p_{j+1}, and KL(p_{j+1} | g) <= KL(p_j | g). Every ratio p_j / p is an increasing
    function of u alone. The whole block is therefore one acceptance test of draws from p, with
    probability exp(log_ratio(u) - log_ratio(ceiling)), where u above the ceiling counts as the
    ceiling. Its cost, exp(log_ratio(ceiling)) draws per sample, is at most the (1 + r)^K of steps
    that call each other, and never more than the cap.

    Attributes
    ----------
    steps : tuple of RejectionStep
    ceiling : float
        u above it counts as the ceiling.
    shift : float
        Log of the normaliser: log_ratio has E_p exp(log_ratio) = 1 on the draws it came from.
    error : float
        Standard error of that logarithm.

    Notes
    -----
    Source: Hertrich, Gruhlke (2025, arXiv 2407.20444), the steps; that they compose to one test
    is elementary. Once c >= sup g/p one step is the mixture (1 - r) g + r p.

    Examples
    --------
    Two atoms of mass 1/2 and a target of masses 0.8, 0.2:

    >>> u = torch.log(torch.tensor([0.8, 0.2], dtype=torch.float64) / 0.5)
    >>> block = RejectionBlock.design(u, steps=2, rate=0.2)
    >>> [round(p, 6) for p in (0.5 * block.log_ratio(u).exp()).tolist()]
    [0.72, 0.28]
    """

    steps: tuple[RejectionStep, ...]
    ceiling: float
    shift: float
    error: float

    def log_ratio(self, u: Tensor) -> Tensor:
        """Log of p_K / p where log(g / p) is u, shape (n,)."""
        u = u.clamp_max(self.ceiling)
        total = torch.zeros_like(u)
        for step in self.steps:
            total = total + _update(u - total, step)
        return total - self.shift

    @property
    def log_cost(self) -> float:
        """Log of the expected number of draws from p per sample."""
        return float(self.log_ratio(torch.tensor([self.ceiling], dtype=torch.float64)))

    @staticmethod
    def design(
        u: Tensor,
        steps: int | None,
        rate: float,
        *,
        most_draws: float = 30.0,
        enough: float = 0.999,
        n_groups: int = 1,
    ) -> RejectionBlock:
        """The block for draws with u = log(g / p): bounds c and normalisers.

        Parameters
        ----------
        u : Tensor of shape (n,)
            Of independent draws from p; -inf where g vanishes.
        steps : int, default=None
            How many; None: until the effective sample size is ``enough``. Both stop where
            another step could ask for more than ``most_draws`` per sample.
        rate : float
            r, the share that is drawn again.
        n_groups : int
            Groups of equal size that u consists of, drawn independently of each other but
            stratified inside: the standard error comes from the spread of their means.

        Raises
        ------
        SolverError
            Where fewer than 10 of the draws carry the target: nothing can be estimated then.
        """
        carried = effective_sample_size(u) * len(u)
        if carried < min(10.0, 0.5 * len(u)):
            raise SolverError(
                f"a rejection step: of {len(u)} draws only {carried:.1f} carry the target "
                "(effective sample size), too few to estimate its acceptance. Take more or longer "
                "JKO steps before it, a wider initial measure, or more n_calibration draws"
            )
        total = torch.zeros_like(u)
        found: list[RejectionStep] = []
        while len(found) < (_MOST_STEPS if steps is None else steps):
            mass = total.exp()
            mass = mass / mass.sum()
            if steps is None and effective_sample_size(u - total, mass) >= enough:
                break
            step = _bound(u - total, mass, rate)
            update = _update(u - total, step)
            if float((total + update).max()) > math.log(most_draws):
                break
            total = total + update
            found.append(step)
        ratio = total.exp()
        mean = ratio.mean()
        groups = ratio.view(n_groups, -1).mean(1) if n_groups > 1 else ratio
        error = float(groups.std() / mean / math.sqrt(len(groups))) if len(groups) > 1 else 0.0
        return RejectionBlock(tuple(found), float(u.max()), float(mean.log()), error)


def _update(s: Tensor, step: RejectionStep) -> Tensor:
    """Log of alpha + 1 - E alpha where log(g / p_j) is s."""
    return ((s - step.log_bound).clamp_max(0.0).exp() + (1.0 - step.acceptance)).log()


def _bound(s: Tensor, mass: Tensor, rate: float) -> RejectionStep:
    """Log c with E alpha = 1 - r; mass sums to 1."""
    kept = s > -math.inf
    rate = max(rate, 1.0 - 0.999 * float(mass[kept].sum()))  # g may vanish on more than r
    low, high = float(s[kept].min()) - 1.0, float(s.max()) + 1.0 - math.log(1.0 - rate)

    def refused(log_bound: float) -> tuple[float, float]:
        accepted = mass * (s - log_bound).clamp_max(0.0).exp()
        return 1.0 - rate - float(accepted.sum()), float(accepted[s < log_bound].sum())

    log_bound = root(refused, 0.5 * (low + high), low=low, high=high)
    return RejectionStep(log_bound, 1.0 - rate - refused(log_bound)[0])
