"""The inner solver's worst cases along a path of radii, and proven bounds beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drojko._random import spawn
from drojko.auditing.attacks.blocks import climb, plain, solve, upper
from drojko.auditing.attacks.pool import Pool
from drojko.auditing.certified import plan_of
from drojko.auditing.reading.problem import AuditProblem
from drojko.exceptions import UnboundedRiskError
from drojko.inner.objective import Batch
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.bounds import Structure, structure
from drojko.inner.transport.candidates import OtherLabel, Stay, Support
from drojko.inner.transport.radius import solve_ball

__all__ = ["Dual", "Learned", "learn"]

#: Rows that the map is learned and the penalties are searched on.
LEARNED = 600
#: Corrections of all rows at a penalty that was searched on few.
CORRECTIONS = 25
_PRICES = 8  # times that the penalty of a radius is put right
#: Factors above the multiplier at which bounds are tried: larger penalties prove more.
FACTORS = (1.0, 1.6, 2.6, 4.2, 6.7, 10.7, 17.0, 27.0, 60.0, 130.0)


@dataclass(frozen=True)
class Dual:
    """penalty * radius^2 + value bounds the worst-case risk of every radius."""

    penalty: float
    value: float
    proof: str


@dataclass(eq=False)
class Learned:
    """An adversary with what it found: layers of a pool, and dual points."""

    adversary: Adversary
    batch: Batch
    sample: Tensor
    duals: list[Dual] = field(default_factory=list)
    penalties: dict[float, float] = field(default_factory=dict)

    @property
    def all_rows(self) -> bool:
        """Whether nothing was left out while the penalties were searched."""
        return len(self.sample) == len(self.batch)


def put(pool: Pool, adversary: Adversary, moved: Moved, source: str) -> None:
    """Add what was found to a pool."""
    x = adversary.objective.decode(moved.at, moved.q)
    pool.add(x, moved.labels, moved.cost, moved.risk, source)


def begin(problem: AuditProblem) -> Pool:
    """A pool that holds the rows themselves."""
    pool = Pool()
    zero = torch.zeros_like(problem.w)
    pool.add(problem.x, problem.y, zero, problem.losses(problem.x, problem.y), "stay")
    return pool


@torch.no_grad()
def learn(
    problem: AuditProblem, pool: Pool, sizes: list[tuple[float, Any]], inner: InnerSolver
) -> Learned:
    """Worst cases at every size; layers are added to ``pool``."""
    plan = plan_of(problem, sizes[-1][1], inner)
    model = problem.tabular
    objective = plan.problem(model).objective(problem.x, 1.0)
    batch = objective.batch(problem.x, problem.y)
    adversary = Adversary(
        objective, (Stay(),), n_labels=problem.n_labels, label_cost=problem.label_cost
    )
    rows = _sample(problem, LEARNED)
    found = Learned(adversary, batch, rows)
    radii = [size for size, own in sizes if own.radius is not None and size > 0]
    given = [size for size, own in sizes if own.penalty is not None]
    if adversary.exact:
        _exact(problem, pool, found, inner, radii, given)
        return found
    few = batch.take(rows)
    w = problem.w[rows] / problem.w[rows].sum()
    path = _Path(problem, found, inner, few, w)
    path.scout(radii, given)
    path.search(radii, given)
    path.spread(pool, radii, given)
    return found


def _sample(problem: AuditProblem, size: int) -> Tensor:
    """Rows drawn by mass, in order; all of them where there are few."""
    n = len(problem.x)
    if n <= size * 5 // 3:
        return torch.arange(n)
    return (
        torch.multinomial(problem.w, size, False, generator=spawn(problem.generator)).sort().values
    )


def _exact(
    problem: AuditProblem, pool: Pool, found: Learned, inner: InnerSolver, radii: Any, given: Any
) -> None:
    """Linear models with scalar losses: both sides from one root."""
    known = structure(found.adversary.objective)
    start = None
    for radius in problem.progress.over(radii, "exact worst cases", 0.6):
        ball = solve_ball(found.adversary, found.batch, problem.w, radius, start=start)
        start = ball.penalty
        found.penalties[radius] = ball.penalty
        for penalty, moved in {ball.low_penalty: ball.low, ball.high_penalty: ball.high}.items():
            at = found.adversary.with_penalty(penalty)
            put(pool, at, moved, "learned")
            bound, proof = at.upper(moved, known)
            found.duals.append(Dual(penalty, float(problem.w @ bound), proof))
    for penalty in given:
        at = found.adversary.with_penalty(penalty)
        moved = at.solve(found.batch)
        put(pool, at, moved, "learned")
        bound, proof = at.upper(moved, known)
        found.duals.append(Dual(penalty, float(problem.w @ bound), proof))
        found.penalties[penalty] = penalty


@dataclass(eq=False)
class _Path:
    """The search for penalties on few rows, then the solves of all rows."""

    problem: AuditProblem
    found: Learned
    inner: InnerSolver
    few: Batch
    w: Tensor
    pool: Pool = field(default_factory=Pool)
    level: float = 0.0

    def __post_init__(self) -> None:
        base = self.found.adversary.objective.risk(self.few, self.few.q0).double()
        zero = torch.zeros_like(base)
        self.pool.add(self.few.x, self.few.y, zero, base, "stay")

    # -- on few rows -------------------------------------------------------------------------

    def scout(self, radii: list[float], given: list[float]) -> None:
        """Penalties of the radii by plain ascents from the rows and towards other labels."""
        objective = self.found.adversary.objective
        starts: list[Tensor] = []
        if self.problem.n_labels and self.inner.corrections:
            picked = torch.randperm(len(self.few), generator=spawn(self.problem.generator))[:64]
            other = OtherLabel(self.few.q0[picked], self.few.y[picked])
            starts = other.starts(objective, self.few)
        value, gradient = objective.with_penalty(0.0).value_and_gradient(self.few, self.few.q0)
        slope = math.sqrt(float(self.w @ gradient.double().square().sum(1)))
        slope /= objective.coordinates.scale
        self.level = level = float(self.w @ value.double().abs())
        steps = min(40, self.inner.corrections)
        for size in given:
            self._try(size, starts, steps)
            self.found.penalties[size] = size
        last: tuple[float, float] | None = None
        for radius in self.problem.progress.over(radii, "prices of the radii", 0.1):
            guess = max(slope / (2.0 * radius), 1e-3 * level / radius**2, 1e-12)
            if last is not None:  # the budget rises with the square of the radius
                guess = last[1] * last[0] / radius
            for _ in range(8):
                self._try(guess, [*starts, *self._known(guess)], steps)
                penalty = self.pool.plan(self.w, radius**2).penalty
                if penalty <= 0.0:  # all that can be gained costs less than the budget
                    penalty = guess / 4.0
                    if penalty * radius**2 < 1e-6 * (level + 1e-300):
                        break
                near = abs(math.log(penalty / guess)) < 0.05
                guess = penalty
                if near:
                    break
            last = (radius, guess)
            self.found.penalties[radius] = guess

    def _known(self, penalty: float) -> list[Tensor]:
        """Positions of the pool that are best at a penalty."""
        choice = self.pool.at_penalty(self.w, penalty).low
        x = self.pool.take(choice)[0]
        return [self.found.adversary.objective.coordinates.encode(x)]

    def _try(self, penalty: float, starts: list[Tensor], steps: int) -> Moved:
        at = self.found.adversary.with_penalty(penalty)
        if plain(at):
            moved = climb(at, self.few, starts, steps, screening=min(4, steps))
        else:
            quick = replace(at, corrections=steps, screening=min(4, steps))
            solved = solve(quick, self.few, starts)
            if solved is None:
                return at.stay(self.few)
            moved = solved
        put(self.pool, at, moved, "learned")
        return moved

    def search(self, radii: list[float], given: list[float]) -> None:
        """Learn the map at one or two penalties, and solve in full at each."""
        penalties = [self.found.penalties[size] for size in (*radii, *given)]
        if not penalties:
            return
        learned = self._fit(penalties)
        for size in self.problem.progress.over((*radii, *given), "learned maps", 0.2):
            penalty = self.found.penalties[size]
            for _ in range(3):
                at = learned.with_penalty(penalty)
                moved = solve(at, self.few, self._known(penalty) if at.corrections else ())
                if moved is None:
                    penalty *= 2.0
                    continue
                put(self.pool, at, moved, "learned")
                self._overshoot(penalty, at)
                if size in given:
                    break
                better = self.pool.plan(self.w, size**2).penalty
                if better <= 0.0 or abs(math.log(better / penalty)) < 0.03:
                    break
                penalty = better
            self.found.penalties[size] = penalty

    def _overshoot(self, penalty: float, adversary: Adversary) -> None:
        """Farther out at lower penalties, and back: basins that an ascent at one penalty misses."""
        if not (plain(adversary) and adversary.corrections):
            return
        steps = min(60, adversary.corrections)
        # Many radii see each other's penalties already.
        for factor in (0.5, 0.2) if len(self.found.penalties) < 5 else (0.4,):
            low = adversary.with_penalty(factor * penalty)
            far = climb(low, self.few, [], steps)
            put(self.pool, low, far, "learned")
            labels = self.few.y if self.problem.n_labels else None
            support = Support(far.q, labels, far.risk)  # where one row went, others may go
            starts = [far.q, *support.starts(adversary.objective, self.few)]
            back = climb(adversary, self.few, starts, steps, screening=8)
            put(self.pool, adversary, back, "learned")

    def _fit(self, penalties: list[float]) -> Adversary:
        """The inner solver at the middle of the path and at its end, all candidates together."""
        order = sorted(penalties, reverse=True)
        ends = {order[len(order) // 2], order[-1]}
        adversary: Adversary | None = None
        for penalty in sorted(ends, reverse=True):
            objective = self.found.adversary.objective.with_penalty(penalty)
            try:
                own = self.inner.fit(
                    objective,
                    self.few,
                    spawn(self.problem.generator),
                    n_labels=self.problem.n_labels,
                    label_cost=self.problem.label_cost,
                )
            except UnboundedRiskError:
                continue
            if adversary is None:
                adversary = own
            else:
                more = tuple(c for c in own.candidates if not isinstance(c, Stay | OtherLabel))
                weak = adversary if adversary.corrections <= own.corrections else own
                adversary = replace(weak, candidates=(*adversary.candidates, *more))
        if adversary is None:
            return replace(self.found.adversary, corrections=self.inner.corrections)
        self.found.adversary = adversary
        return adversary

    # -- on all rows -------------------------------------------------------------------------

    def spread(self, pool: Pool, radii: list[float], given: list[float]) -> None:
        """Solve all rows at the penalties found, and bound them."""
        adversary, problem = self.found.adversary, self.problem
        known = structure(adversary.objective)
        if self.found.all_rows:
            for k in range(1, len(self.pool.x)):
                layer = (self.pool.x[k], self.pool.y[k], self.pool.cost[k], self.pool.risk[k])
                pool.add(*layer, "learned")
        steps = min(CORRECTIONS, adversary.corrections)
        full = min(400, 8 * adversary.corrections)
        start: Tensor | None = None
        order = sorted((*radii, *given), key=lambda s: self.found.penalties[s])
        for size in problem.progress.over(order, "all rows", 0.2):
            penalty = self.found.penalties[size]
            start = self._all(pool, penalty, start, steps)
            for _ in range(0 if size in given or self.found.all_rows else 4):
                better = pool.plan(problem.w, size**2, ("learned",)).penalty
                if better <= 0.0:  # not all of the budget is spent yet
                    if penalty * size**2 <= 1e-6 * self.level:
                        break
                    better = penalty / 1.5
                elif abs(math.log(better / penalty)) <= 0.1:
                    break
                penalty = better
                start = self._all(pool, penalty, start, max(1, steps // 2))
            self.found.penalties[size] = penalty
        if self.found.all_rows:
            for size in (*radii, *given):
                # A mixture of moves for two penalties is worse than moves for the one between.
                for _ in range(_PRICES):
                    before = self.found.penalties[size]
                    if size in radii:
                        better = pool.plan(problem.w, size**2, ("learned",)).penalty
                        self.found.penalties[size] = better or before
                    self._all(pool, self.found.penalties[size], None, full)
                    if abs(math.log(self.found.penalties[size] / before)) < 1e-6:
                        break
        self.bound(pool, radii, given, known)

    def _all(self, pool: Pool, penalty: float, start: Tensor | None, steps: int) -> Tensor:
        """Climb from the best known positions, those of few rows that may serve others too."""
        adversary = self.found.adversary.with_penalty(penalty)
        objective, batch = adversary.objective, self.found.batch
        encode = objective.coordinates.encode
        choice = pool.at_penalty(self.problem.w, penalty, ("learned",)).low
        starts = [encode(pool.take(choice)[0])]
        starts += [] if start is None else [start]
        if not self.found.all_rows and plain(adversary) and adversary.corrections:
            few = self.pool.at_penalty(self.w, penalty).low
            x, y, _, risk = self.pool.take(few)
            support = Support(encode(x), y if self.problem.n_labels else None, risk)
            starts += support.starts(objective, batch)
        if plain(adversary):
            moved = climb(adversary, batch, starts, steps)
        else:
            solved = solve(adversary, batch, starts)
            if solved is None:
                return batch.q0
            moved = solved
        put(pool, adversary, moved, "learned")
        return moved.q

    # -- bounds ------------------------------------------------------------------------------

    def bound(self, pool: Pool, radii: list[float], given: list[float], known: Structure) -> None:
        """Dual points: penalties that are best on few rows, then evaluated on all of them."""
        tried: dict[float, Dual] = {}
        wanted: list[float] = list(given)
        for radius in self.problem.progress.over(radii, "bounds on some rows", 0.1):
            best: tuple[float, float] | None = None
            for factor in FACTORS:
                penalty = self.found.penalties[radius] * factor
                near = [p for p in tried if abs(math.log(p / penalty)) < 0.1]
                if not near:
                    tried[penalty] = self._dual(self.pool, self.few, self.w, penalty, known, 40)
                penalty = near[0] if near else penalty
                value = penalty * radius**2 + tried[penalty].value
                if best is None or value < best[0]:
                    best = (value, penalty)
                elif value > best[0] * 1.02 and math.isfinite(best[0]):
                    break
            if best is not None and best[1] not in wanted:
                wanted.append(best[1])
        for penalty in self.problem.progress.over(wanted, "bounds", 0.1):
            # A Lipschitz bound hardly depends on how near the maximiser is; concavity does.
            rough = penalty in tried and tried[penalty].proof == "lipschitz"
            dual = self._dual(
                pool, self.found.batch, self.problem.w, penalty, known, 5 if rough else 60
            )
            self.found.duals.append(dual)

    def _dual(
        self, pool: Pool, batch: Batch, w: Tensor, penalty: float, known: Structure, steps: int
    ) -> Dual:
        adversary = self.found.adversary.with_penalty(penalty)
        choice = pool.at_penalty(w, penalty, ("learned",)).low
        start = adversary.objective.coordinates.encode(pool.take(choice)[0])
        quick = replace(adversary, candidates=())
        if plain(adversary):
            moved = climb(quick, batch, [start], steps, tol=1e-10)
        else:
            solved = solve(quick, batch, [start])
            if solved is None:
                return Dual(penalty, math.inf, "lipschitz")
            moved = solved
        bound, proof = upper(quick, moved, known)
        return Dual(penalty, float(w @ bound.double()), proof)
