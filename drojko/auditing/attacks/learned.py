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
from drojko.auditing.attacks.steps import in_steps
from drojko.auditing.certified import plan_of
from drojko.auditing.reading.problem import AuditProblem
from drojko.certificates import closed, network_dual
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.objective import Batch
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.adversary import Adversary, Moved
from drojko.inner.transport.bounds import Structure, structure
from drojko.inner.transport.candidates import Stay, Support
from drojko.inner.transport.radius import solve_ball
from drojko.inner.transport.search.rounds import Restarts
from drojko.inner.transport.search.starts import Anchors, draw

__all__ = ["Dual", "Learned", "learn", "placed", "put"]

#: Rows that the map is learned and the penalties are searched on.
LEARNED = 600
#: Corrections of all rows at a penalty that was searched on few.
CORRECTIONS = 25
#: Random starts of each row while prices are looked for.
_SCOUTS = 4
_PRICES = 8  # times that the penalty of a radius is put right
#: Factors above the multiplier at which bounds are tried: larger penalties prove more.
FACTORS = (1.0, 1.6, 2.6, 4.2, 6.7, 10.7, 17.0, 27.0, 60.0, 130.0)


@dataclass(frozen=True)
class Dual:
    """penalty * radius^2 + value bounds the worst-case risk of every radius."""

    penalty: float
    value: float
    proof: str


def placed(
    problem: AuditProblem, adversary: Adversary, moved: Moved
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (n, d) of rows that can exist, their costs and losses (n,)."""
    x, cost, risk = adversary.objective.decode(moved.at, moved.q), moved.cost, moved.risk
    real = problem.cost.snap(x)
    if real is x:
        return x, cost, risk
    extra = problem.cost.weighted_square(real - moved.batch.x)
    cost = cost.double() + extra - problem.cost.weighted_square(x - moved.batch.x)
    return real, cost, problem.losses(real, moved.labels)


def put(problem: AuditProblem, pool: Pool, adversary: Adversary, moved: Moved, source: str) -> None:
    x, cost, risk = placed(problem, adversary, moved)
    pool.add(x, moved.labels, cost, risk, source)


@torch.no_grad()
def learn(
    problem: AuditProblem,
    pool: Pool,
    sizes: list[tuple[float, Any]],
    inner: InnerSolver,
) -> Learned:
    """Worst cases at every size; layers are added to ``pool``."""
    plan, n = plan_of(problem, sizes[-1][1], inner), len(problem.x)
    objective = plan.problem(problem.tabular).objective(problem.x, 1.0)
    adversary = problem.adversary(objective)
    sample = torch.arange(n)
    if n > LEARNED * 5 // 3:  # rows drawn by mass, in order
        gen = spawn(problem.generator)
        sample = torch.multinomial(problem.w, LEARNED, False, generator=gen).sort().values
    found = Learned(
        problem,
        pool,
        inner,
        adversary,
        objective.batch(problem.x, problem.y),
        sample,
        [size for size, own in sizes if own.radius is not None and size > 0],
        [size for size, own in sizes if own.penalty is not None],
    )
    if adversary.exact:
        found.exact()
    else:
        found.scout()
        found.search()
        found.spread()
        found.bound()
    in_steps(problem, pool, found.radii, found.given)
    return found


@dataclass(eq=False)
class Learned:
    """An adversary with what it found: layers of a pool, penalties of the sizes, dual points.

    Penalties of the ``radii`` are searched on ``few`` rows, those of ``sample``, with masses ``w``
    and a pool ``tried`` of their own; then all rows are solved.
    """

    problem: AuditProblem
    pool: Pool
    inner: InnerSolver
    adversary: Adversary
    batch: Batch
    sample: Tensor
    radii: list[float]
    given: list[float]
    duals: list[Dual] = field(default_factory=list)
    unproven: str = ""  # what no bounds are known of
    penalties: dict[float, float] = field(default_factory=dict)
    restarts: dict[float, Restarts | None] = field(default_factory=dict)
    level: float = 0.0

    def __post_init__(self) -> None:
        self.few = self.batch.take(self.sample)
        self.w = self.problem.w[self.sample] / self.problem.w[self.sample].sum()
        self.tried = Pool.of(self.few.x, self.few.y, self.problem.nominal[self.sample])

    @property
    def all_rows(self) -> bool:
        """Whether nothing was left out while the penalties were searched."""
        return len(self.sample) == len(self.batch)

    def exact(self) -> None:
        """Linear models with scalar losses: both sides from one root."""
        problem, known, start = self.problem, structure(self.adversary.objective), None
        found: list[tuple[float, Moved]] = []
        for radius in problem.progress.over(self.radii, "exact worst cases", 0.6):
            ball = solve_ball(self.adversary, self.batch, problem.w, radius, start=start)
            self.penalties[radius] = start = ball.penalty
            found += {ball.low_penalty: ball.low, ball.high_penalty: ball.high}.items()
        for penalty in self.given:
            found.append((penalty, self.adversary.with_penalty(penalty).solve(self.batch)))
            self.penalties[penalty] = penalty
        for penalty, moved in found:
            at = self.adversary.with_penalty(penalty)
            put(problem, self.pool, at, moved, "learned")
            bound, proof = at.upper(moved, known)
            self.duals.append(Dual(penalty, float(problem.w @ bound), proof))
        if problem.cost.whole is not None:
            self._refill()

    def _refill(self) -> None:
        """Spend what rows that can exist have left of each budget: solve at lower prices."""
        for radius in self.radii:
            price = self.penalties[radius]
            for _ in range(_PRICES):
                lower = self.pool.plan(self.problem.w, radius**2).penalty
                if not lower < 0.97 * price:
                    break
                price = max(lower, 0.3 * price)
                at = self.adversary.with_penalty(price)
                moved = solve(at, self.batch)
                if moved is None:
                    break
                put(self.problem, self.pool, at, moved, "learned")

    # -- on few rows -------------------------------------------------------------------------

    def scout(self) -> None:
        """Penalties of the radii by plain ascents from the rows and towards other labels."""
        objective = self.adversary.objective
        starts: list[Tensor] = []
        if self.inner.corrections:
            anchors = Anchors(self.few.x, self.few.y, self.problem.n_labels > 0)
            gen = spawn(self.problem.generator)
            starts = [*draw(objective, self.few, anchors, (_SCOUTS, 0, 0), 0.0, gen)]
        value, gradient = objective.with_penalty(0.0).value_and_gradient(self.few, self.few.q0)
        slope = math.sqrt(float(self.w @ gradient.double().square().sum(1)))
        slope /= objective.coordinates.scale
        self.level = level = float(self.w @ value.double().abs())
        steps = min(40, self.inner.corrections)
        for size in self.given:
            self._try(size, starts, steps)
            self.penalties[size] = size
        last: tuple[float, float] | None = None
        for radius in self.problem.progress.over(self.radii, "prices of the radii", 0.1):
            guess = max(slope / (2.0 * radius), 1e-3 * level / radius**2, 1e-12)
            if last is not None:  # the budget rises with the square of the radius
                guess = last[1] * last[0] / radius
            for _ in range(8):
                self._try(guess, [*starts, *self._known(guess)], steps)
                penalty = self.tried.plan(self.w, radius**2).penalty
                if penalty <= 0.0:  # all that can be gained costs less than the budget
                    penalty = guess / 4.0
                    if penalty * radius**2 < 1e-6 * (level + 1e-300):
                        break
                near = abs(math.log(penalty / guess)) < 0.05
                guess = penalty
                if near:
                    break
            last = (radius, guess)
            self.penalties[radius] = guess

    def _known(self, penalty: float) -> list[Tensor]:
        """Positions of the pool that are best at a penalty."""
        x = self.tried.best(self.w, penalty)[0]
        return [self.adversary.objective.coordinates.encode(x)]

    def _try(self, penalty: float, starts: list[Tensor], steps: int) -> None:
        at, first = self.adversary.with_penalty(penalty), min(4, steps)
        quick = replace(at, corrections=steps, screening=first)
        moved = climb(quick, self.few, starts, steps, screening=first)
        if moved is not None:
            put(self.problem, self.tried, at, moved, "learned")

    def search(self) -> None:
        """Learn the map at one or two penalties, and solve in full at each."""
        penalties = [self.penalties[size] for size in (*self.radii, *self.given)]
        if not penalties:
            return
        learned = self._fit(penalties)
        for size in self.problem.progress.over((*self.radii, *self.given), "learned maps", 0.2):
            penalty, found = self.penalties[size], None
            for _ in range(3):
                at = learned.with_penalty(penalty)
                known = self._known(penalty) if at.corrections else ()
                if (found is None or at.search is None) and not self.problem.late:
                    found = moved = solve(at, self.few, known)
                else:  # near enough to what was searched in full
                    moved = climb(at, self.few, known, at.corrections)
                if moved is None:
                    penalty *= 2.0
                    continue
                put(self.problem, self.tried, at, moved, "learned")
                if size in self.given:
                    break
                better = self.tried.plan(self.w, size**2).penalty
                if better <= 0.0 or abs(math.log(better / penalty)) < 0.03:
                    break
                penalty = better
            self.penalties[size] = penalty
            if found is not None:
                evidence, gain = found.found.evidence, found.risk - self.tried.nominal
                self.restarts[size] = Restarts.of(evidence, gain - penalty * found.cost, self.w)

    def _fit(self, penalties: list[float]) -> Adversary:
        """The inner solver at the middle of the path and at its end, all candidates together.

        Of rows that are the reference themselves nothing is learned, and once is enough.
        """
        order, atoms = sorted(penalties, reverse=True), not self.problem.sampled
        ends = {order[len(order) // 2], *([] if atoms else order[-1:])}
        adversary: Adversary | None = None
        for penalty in sorted(ends, reverse=True):
            objective = self.adversary.objective.with_penalty(penalty)
            try:
                own = self.inner.fit(
                    objective,
                    self.few,
                    spawn(self.problem.generator),
                    n_labels=self.problem.n_labels,
                    label_cost=self.problem.ambiguity.label_cost,
                    max_time=self.problem.time_left,
                    effort=self.problem.effort,
                    atoms=atoms,
                )
            except UnboundedRiskError:
                continue
            if adversary is None:
                adversary = own
            else:
                more = tuple(c for c in own.candidates if not isinstance(c, Stay))
                weak = adversary if adversary.corrections <= own.corrections else own
                adversary = replace(weak, candidates=(*adversary.candidates, *more))
        if adversary is None:
            return replace(self.adversary, corrections=self.inner.corrections)
        self.adversary = adversary
        return adversary

    # -- on all rows -------------------------------------------------------------------------

    def spread(self) -> None:
        """Solve all rows at the penalties found, and bound them."""
        adversary, problem, pool = self.adversary, self.problem, self.pool
        if self.all_rows:
            pool.layers += self.tried.layers[1:]
        steps = min(CORRECTIONS, adversary.corrections)
        full = min(400, 8 * adversary.corrections)
        start: Tensor | None = None
        order = sorted((*self.radii, *self.given), key=lambda s: self.penalties[s])
        few = (
            () if self.all_rows else {order[len(order) * k // 3] for k in range(3)} if order else ()
        )
        for size in problem.progress.over(order, "all rows", 0.2):
            penalty = self.penalties[size]
            start = self._all(penalty, start, steps, size in few)
            for _ in range(0 if size in self.given or self.all_rows or problem.late else 4):
                better = pool.plan(problem.w, size**2, ("learned",)).penalty
                if better <= 0.0:  # not all of the budget is spent yet
                    if penalty * size**2 <= 1e-6 * self.level:
                        break
                    better = penalty / 1.5
                elif abs(math.log(better / penalty)) <= 0.1:
                    break
                penalty = better
                start = self._all(penalty, start, max(1, steps // 2))
            self.penalties[size] = penalty
        if self.all_rows:
            for size in (*self.radii, *self.given):
                # A mixture of moves for two penalties is worse than moves for the one between.
                for _ in range(1 if problem.late else _PRICES):
                    before = self.penalties[size]
                    if size in self.radii:
                        better = pool.plan(problem.w, size**2, ("learned",)).penalty
                        self.penalties[size] = better or before
                    self._all(self.penalties[size], None, full)
                    if abs(math.log(self.penalties[size] / before)) < 1e-6:
                        break

    def _all(
        self, penalty: float, start: Tensor | None, steps: int, in_full: bool = False
    ) -> Tensor:
        """Climb from the best known positions, those of few rows that may serve others too.

        ``in_full``: with a search of their own.
        """
        adversary = self.adversary.with_penalty(penalty)
        objective, batch = adversary.objective, self.batch
        encode = objective.coordinates.encode
        starts = [encode(self.pool.best(self.problem.w, penalty, ("learned",))[0])]
        starts += [] if start is None else [start]
        if not self.all_rows and plain(adversary) and adversary.corrections:
            x, y, _, risk = self.tried.best(self.w, penalty)
            support = Support(encode(x), y if self.problem.n_labels else None, risk)
            starts += support.starts(objective, batch)
        if in_full and adversary.search is not None and not self.problem.late:
            moved = solve(adversary.with_effort("fast"), batch, starts)
        else:
            moved = climb(adversary, batch, starts, steps)
        if moved is None:
            return batch.q0
        put(self.problem, self.pool, adversary, moved, "learned")
        return moved.q

    # -- bounds ------------------------------------------------------------------------------

    def bound(self) -> None:
        """Dual points of each size: where it is searched; of networks, where bounds are best."""
        known, sizes = structure(self.adversary.objective), (*self.radii, *self.given)
        tried: dict[float, Dual] = {}
        for k, size in enumerate(self.problem.progress.over(sizes, "bounds", 0.2)):
            penalty = self.penalties[size]
            first = self._dual(False, penalty, known, 60)
            self.duals.append(first)
            _, _, cost, risk = self.pool.best(self.problem.w, penalty, ("learned",))
            found = float(self.problem.w @ (risk - penalty * cost))
            if closed(first.value, found, first.proof):
                continue
            left = self.problem.time_left
            share = None if left is None else left / (len(sizes) - k)
            network = self._network(size, penalty, share)
            if network is not None:
                self.duals.append(network)
            elif size in self.radii and not self.problem.late:
                self._raised(size, known, tried)

    def _network(self, size: float, penalty: float, max_time: float | None) -> Dual | None:
        """The dual point of a network's bounds by relaxation."""
        problem, at = self.problem, self.adversary.with_penalty(penalty)
        known = at.objective.coordinates.encode(self.pool.best(problem.w, penalty)[0])
        radius = size if size in self.radii else None
        limits = problem.effort, max_time
        try:
            found = network_dual(at, self.batch, problem.w, radius, (known,), *limits)
        except UnsupportedError as error:
            self.unproven = str(error)
            return None
        value = found.value - (found.penalty * size**2 if radius is not None else 0.0)
        return Dual(found.penalty, value, found.proof)

    def _raised(self, radius: float, known: Structure, tried: dict[float, Dual]) -> None:
        """Of other models at larger penalties, tried on few rows: these may prove more."""
        best: tuple[float, float] | None = None
        for factor in FACTORS:
            penalty = self.penalties[radius] * factor
            near = [p for p in tried if abs(math.log(p / penalty)) < 0.1]
            if not near:
                tried[penalty] = self._dual(True, penalty, known, 40)
            penalty = near[0] if near else penalty
            value = penalty * radius**2 + tried[penalty].value
            if best is None or value < best[0]:
                best = (value, penalty)
            elif value > best[0] * 1.02 and math.isfinite(best[0]):
                break
        if best is not None and all(dual.penalty != best[1] for dual in self.duals):
            # A Lipschitz bound hardly depends on how near the maximiser is; concavity does.
            rough = tried[best[1]].proof == "lipschitz"
            self.duals.append(self._dual(False, best[1], known, 5 if rough else 60))

    def _dual(self, few: bool, penalty: float, known: Structure, steps: int) -> Dual:
        pool, batch, w = self.pool, self.batch, self.problem.w
        if few:
            pool, batch, w = self.tried, self.few, self.w
        quick = replace(self.adversary.with_penalty(penalty), candidates=())
        start = quick.objective.coordinates.encode(pool.best(w, penalty, ("learned",))[0])
        moved = climb(quick, batch, [start], steps, tol=1e-10)
        if moved is None:
            return Dual(penalty, math.inf, "lipschitz")
        bound, proof = upper(quick, moved, known)
        return Dual(penalty, float(w @ bound.double()), proof)
