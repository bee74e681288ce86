"""Wasserstein balls: the learned worst case, every baseline, and the better of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from drojko._numerics import standard_error
from drojko._random import spawn
from drojko.auditing.attacks.learned import Dual, Learned, learn
from drojko.auditing.attacks.pool import Mixture, Pool
from drojko.auditing.attacks.restarts import MORE, attack
from drojko.auditing.attacks.search import apart, in_blocks, search
from drojko.auditing.certified import infinite, plan_of
from drojko.auditing.checks import Health
from drojko.auditing.reading.own import CLIP
from drojko.auditing.reading.problem import AuditProblem
from drojko.auditing.reading.space import filled
from drojko.auditing.reporting.row import Row, check
from drojko.auditing.reporting.worst_case import MovedRows
from drojko.certificates import Certificate
from drojko.estimators._parallel import in_parallel, workers
from drojko.exceptions import UnboundedRiskError, UnsupportedError
from drojko.inner.solver import InnerSolver
from drojko.inner.transport.candidates import LearnedMap
from drojko.inner.transport.search.rounds import Restarts

__all__ = ["transport"]

#: Share of the radius by which samples of a smooth worst case are spread.
SMOOTHING = 0.1
#: Calls per row of the search without gradients, on a sample, where there are gradients.
SPARE_CALLS, SPARE_ROWS = 40, 300
_REPEATS = 4


def transport(
    problem: AuditProblem,
    sizes: list[tuple[float, Any]],
    inner: InnerSolver,
    general: Health,
    max_evaluations: int,
    n_jobs: int | None = None,
) -> Iterator[Row]:
    """One `Row` per size."""
    if math.isfinite(problem.ambiguity.label_cost) and not problem.n_labels:
        raise UnsupportedError("audit: targets of a regression stay; use label_cost=inf")
    problem.cost.check_inside(filled(problem.x.numpy(), problem.model.space.missing))
    cap = largest_loss(problem)
    known = math.isfinite(cap) or problem.ambiguity.order == 1
    lost = [] if known else _beyond(problem, sizes, inner)
    beyond = {row.size: row for row in lost}
    every, sizes = sizes, [one for one in sizes if one[0] not in beyond]
    if not sizes:
        yield from lost
        return
    pool = Pool.of(problem.x, problem.y, problem.nominal)
    work = _Work(problem, pool, sizes, sizes[-1][1].radius is not None)
    if general.gradients and problem.ambiguity.order == 2:
        work.learned = learn(problem, pool, sizes, inner)
        if not problem.late:
            work.attack = attack(work.learned, work.positive)
        if not problem.late:
            work.spare(max_evaluations)
    else:
        calls = max(8, min(600, max_evaluations // max(1, len(problem.x))))
        search(problem, pool, work.scales(), calls, spawn(problem.generator), n_jobs)
        if work.ball and in_blocks(len(problem.x)) and not problem.late:
            work.shake(n_jobs)
    work.cap, one = cap, None
    for size, _ in problem.progress.over(every, "worst cases", 0.1):
        if size in beyond:
            yield beyond[size]
        else:
            one = work.found(size, one)
            yield one


def _beyond(problem: AuditProblem, sizes: list[tuple[float, Any]], inner: InnerSolver) -> list[Row]:
    """Rows of the sizes at which the worst case is infinite."""
    robust = plan_of(problem, sizes[-1][1], inner).problem(problem.tabular)
    adversary = problem.adversary(robust.objective(problem.x, 1.0))
    batch = adversary.objective.batch(problem.x, problem.y)

    def why(penalty: float | None) -> UnboundedRiskError | None:
        at = adversary if penalty is None else adversary.with_penalty(penalty)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that overflow far away
                at.check_finite(batch, penalty is None)
        except UnboundedRiskError as error:
            return error
        return None

    reasons = {own.penalty: None for size, own in sizes if size > 0.0}
    reasons |= {penalty: why(penalty) for penalty in reasons}
    found = [(size, own, reasons.get(own.penalty)) for size, own in sizes if size > 0.0]
    return [infinite(problem, size, own, error) for size, own, error in found if error]


def largest_loss(problem: AuditProblem) -> float:
    r"""Mean over the rows of the largest loss of any answer, infinity where there is no limit.

    Probabilities are read between 1e-6 and 1, so that logits stay within :math:`\pm\log 10^6` and
    a convex loss is largest at the ends. The bound is loose: the penalty of its dual is 0.
    """
    model = problem.model
    clipped = model.tabular is None and model.probabilities
    limit = -math.log(CLIP) if clipped else math.inf
    largest = problem.loss.largest(problem.y, problem.n_labels, limit, CLIP)
    return float(problem.w @ largest.double())


def _noise(
    problem: AuditProblem, nominal: torch.Tensor, radius: float, generator: torch.Generator
) -> tuple[float, int, int]:
    """Mean loss when every row moves by ``radius`` in a random direction, within the bounds.

    With the rows that were asked about, and the answers amiss.
    """
    total, tally = 0.0, problem.model.tally
    asked, bad = problem.calls[0], tally.bad
    if radius == 0.0:
        return float(problem.w @ nominal), 0, 0
    for _ in range(_REPEATS):
        move = radius * problem.directions(len(problem.x), generator)
        losses = problem.losses(problem.real(problem.x + move), problem.y)
        total += float(problem.w @ losses)
    return total / _REPEATS, problem.calls[0] - asked, tally.bad - bad


@dataclass(eq=False)
class _Work:
    """What was searched, for a ``ball`` of each size or at each penalty."""

    problem: AuditProblem
    pool: Pool
    sizes: list[tuple[float, Any]]
    ball: bool
    learned: Learned | None = None
    attack: dict[float, tuple[float, float, float]] = field(default_factory=dict)
    cap: float = math.inf
    searched: tuple[float, float] | None = None
    shaken: dict[float, float] = field(default_factory=dict)

    @property
    def positive(self) -> list[float]:
        """Sizes at which something can move."""
        return [size for size, _ in self.sizes if size > 0 or not self.ball]

    def scales(self) -> list[float]:
        """Radii for the search; those that penalties may spend where there are none."""
        if self.ball and self.positive:
            return self.positive
        x = torch.as_tensor(filled(self.problem.x.numpy(), self.problem.model.space.missing))
        spread = self.problem.radius_of(float(self.problem.w @ self.problem.price(x - x.mean(0))))
        return [(spread or 1.0) * share for share in (0.03, 0.1, 0.3)]

    def spare(self, max_evaluations: int) -> None:
        """The search without gradients on a sample of the rows: does it find more?"""
        if not self.positive or self.learned is None:
            return
        problem, n = self.problem, len(self.problem.x)
        rows = torch.arange(n)
        if n > SPARE_ROWS:
            rows = torch.randperm(n, generator=spawn(problem.generator))[:SPARE_ROWS].sort().values
        few = problem.part(rows)
        own = Pool.of(few.x, few.y, problem.nominal[rows])
        search(few, own, self.scales(), SPARE_CALLS, spawn(problem.generator))
        penalty = self.learned.penalties[self.positive[-1]]
        theirs = own.at_penalty(few.w, penalty)
        _, _, cost, risk = self.pool.best(problem.w, penalty, _SOLVER)
        value = float(few.w @ (risk - penalty * cost)[rows])
        start = float(few.w @ own.nominal)
        self.searched = (value - start, theirs.risk - penalty * theirs.cost - start)
        if len(rows) == n:
            self.pool.layers += own.layers[1:]
        elif not _enough(*self.searched):
            calls = max(8, min(SPARE_CALLS, max_evaluations // n))
            search(problem, self.pool, self.scales(), calls, spawn(problem.generator))

    def shake(self, n_jobs: int | None) -> None:
        """Random noise of all sizes of a ball, ``n_jobs`` at once."""
        problem, sizes = self.problem, [size for size, _ in self.sizes]
        alone = workers(n_jobs, len(sizes)) == 1
        jobs = [
            (
                problem if alone else apart(problem),
                self.pool.nominal,
                size,
                spawn(problem.generator),
            )
            for size in sizes
        ]
        for size, (noise, asked, bad) in zip(sizes, in_parallel(_noise, jobs, n_jobs), strict=True):
            self.shaken[size] = noise
            if not alone:
                problem.calls[0] += asked
                problem.model.tally.bad += bad

    # -- one size ----------------------------------------------------------------------------

    def found(self, size: float, before: Row | None) -> Row:
        problem, mixture = self.problem, self.mixture(size)
        radius = size if self.ball else problem.radius_of(mixture.cost)
        noise = self.shaken.get(size)
        if noise is None:
            noise, _, _ = _noise(self.problem, self.pool.nominal, radius, spawn(problem.generator))
        certificate = self.certificate(size, mixture, before)
        worst = self.worst(mixture, radius)
        one = Row(size, certificate, worst, (worst.after, worst.labels, worst.mass), noise)
        if self.learned is not None:
            one.ascent = self.mixture(size, ("ascent",)).risk
        if size in self.positive:
            self.compare(one, size, mixture)
        slack = 1e-12 * (1.0 + abs(noise))
        if noise > certificate.worst_case_risk + slack and size > 0 and self.ball:
            one.note(
                f"weak inner solver: random noise of the same budget has risk {noise:.4g}, more "
                f"than the {certificate.worst_case_risk:.4g} that was found"
            )
        if len(self.pool.layers) == 1:
            one.note("nothing was searched")
        return one

    def mixture(self, size: float, sources: Any = None) -> Mixture:
        if self.ball:
            return self.pool.plan(self.problem.w, self.problem.budget(size), sources)
        return self.pool.at_penalty(self.problem.w, size, sources)

    def certificate(self, size: float, mixture: Mixture, before: Row | None) -> Certificate:
        ball, risk = self.ball, mixture.risk
        nominal = float(self.problem.w @ self.pool.nominal)
        lower = risk if ball else risk - size * mixture.cost
        upper, proof = self.upper(size, nominal)
        unknown = proof == "local-estimate"
        if ball and before is not None:  # rounding must not undo what is monotone
            risk = lower = max(risk, before.certificate.worst_case_risk)
        return Certificate(
            nominal_risk=nominal,
            lower=max(lower, nominal),
            upper=max(upper, lower, nominal),
            worst_case_risk=risk,
            radius=size if ball else None,
            penalty=mixture.penalty if ball else size,
            transport_cost=mixture.cost,
            standard_error=self.error(mixture) if self.problem.sampled else 0.0,
            proof=proof,
            search=str(self.restarts(size) or ""),
            unproven=self.learned.unproven if unknown and self.learned is not None else "",
        )

    def restarts(self, size: float) -> Restarts | None:
        """What a thorough search at a size says of itself."""
        return None if self.learned is None else self.learned.restarts.get(size)

    def upper(self, size: float, nominal: float) -> tuple[float, str]:
        """The smallest proven dual value; an estimate only where nothing is proven."""
        ball = self.ball
        if ball and size == 0.0:
            return nominal, "dual"
        duals = list(self.learned.duals) if self.learned is not None else []
        duals.append(Dual(0.0, self.cap, "largest-loss"))
        values = [
            (d.penalty * self.problem.budget(size) + d.value if ball else d.value, d.proof)
            for d in duals
            if ball or d.penalty <= size * (1.0 + 1e-12)  # falls as the penalty rises
        ]
        finite = [v for v in values if math.isfinite(v[0])]
        proven = [v for v in finite if v[1] != "local-estimate"]
        return min(proven or finite or [(math.inf, "local-estimate")])

    def error(self, mixture: Mixture) -> float:
        """Monte-Carlo error of the value, over the fixed draws."""
        value = torch.zeros_like(self.problem.w)
        for choice, share in ((mixture.low, mixture.share), (mixture.high, 1.0 - mixture.share)):
            _, _, cost, risk = self.pool.take(choice)
            priced = mixture.penalty * cost if math.isfinite(mixture.penalty) else 0.0
            value = value + share * (risk - priced)
        return standard_error(value, self.problem.w)

    def worst(self, mixture: Mixture, radius: float) -> MovedRows:
        """The plan as rows before and after."""
        problem, pool = self.problem, self.pool
        parts = []
        split = mixture.low != mixture.high
        everything = torch.ones_like(split)
        shares = [(mixture.high, everything, 1.0 - mixture.share * split.double())]
        if mixture.share > 0.0:
            shares.append((mixture.low, split, mixture.share * split.double()))
        for choice, rows, share in shares:
            x, y, cost, risk = pool.take(choice)
            part = (problem.x, x, problem.y, y, problem.w * share, pool.nominal, risk, cost)
            index = torch.as_tensor(problem.rows.copy())
            parts.append([t[rows & (problem.w * share > 0)].numpy() for t in (*part, index)])
        joined = [np.concatenate(column) for column in zip(*parts)]
        before, after, source, labels, mass, loss_before, loss_after, costs, index = joined
        solver = None if self.learned is None else self.learned.adversary.with_effort("fast")
        return MovedRows(
            before, after, source, labels, mass, index, loss_before, loss_after, costs,
            problem.cost, SMOOTHING * radius if problem.smooth else 0.0, problem.classes,
            problem.model.space.names, problem.cost.weights, solver,
            mixture.penalty if solver is not None else np.inf,
        )  # fmt: skip

    # -- baselines ---------------------------------------------------------------------------

    def compare(self, one: Row, size: float, mixture: Mixture) -> None:
        """Is any baseline better than the inner solver? Findings, and the checklist."""
        nominal = one.certificate.nominal_risk

        def gain(of: Mixture) -> float:
            return (of.risk if self.ball else of.risk - size * of.cost) - nominal

        best, lines = gain(mixture), one.checks
        if self.learned is None:
            lines.append(check("search without gradients", best, None, "gain, a lower bound"))
            one.note(
                "searched without gradients: worst_case_risk is a lower bound"
                + ", and no upper bound is known"
                + (" but the largest loss of any answer" if math.isfinite(self.cap) else "")
            )
            return
        own = gain(self.mixture(size, _SOLVER))
        slack = MORE * abs(own) + 1e-10 * (1.0 + abs(nominal))
        lines.append(check("gain of the inner solver", own, None, "risk above the nominal one"))
        for source, words in _BASELINES.items():
            if source not in {layer.source for layer in self.pool.layers}:
                continue
            theirs = gain(self.mixture(size, (source,)))
            lines.append(check(f"gain of {words}", theirs, theirs <= own + slack, "same budget"))
            if theirs > own + slack:
                kind = "weak inner solver (frozen)" if own <= 0.0 else "weak inner solver"
                one.note(
                    f"{kind}: {words} gains {theirs:.4g}, the inner solver {own:.4g}, the better "
                    "one is used"
                )
        if best > own + slack and not one.findings:
            one.note(
                f"weak inner solver: row by row, baselines raise the gain from {own:.4g} to "
                f"{best:.4g}, the better ones are used"
            )
        restarts = self.restarts(size)
        if restarts is not None:
            words = f"share of the gain, after {restarts.rounds} rounds: an estimate, no bound"
            lines.append(check("estimated missing", restarts.missing, restarts.enough, words))
            if not restarts.enough:
                one.note(f"weak inner solver: {restarts}")
        self._sampled(one, size)
        self._map(one, size)

    def _sampled(self, one: Row, size: float) -> None:
        def versus(name: str, words: str, own: float, theirs: float, known: bool) -> None:
            passed = _enough(own, theirs)
            line = check(name, theirs - own, passed, "gain above the inner solver's")
            one.checks.append(line)
            if not (passed or known):
                one.note(
                    f"weak inner solver: {words.format(f'{theirs:.4g} on a sample of rows')}, the "
                    f"inner solver {own:.4g}, the better ones are used"
                )

        if size in self.attack:
            own, theirs, more = self.attack[size]
            versus("restarts on a sample", "restarts gain {}", own, theirs, bool(one.findings))
            line = check(
                "doubled iterations", more, more <= 0.01, "share of the gain that they add"
            )
            one.checks.append(line)
            if more > 0.01:
                one.note(
                    f"weak inner solver: doubled iterations add {more:.1%} to the gain on a sample"
                )
        if self.searched is not None and size == self.positive[-1]:
            words = "a search without gradients gains {}"
            versus("search on a sample", words, *self.searched, False)

    def _map(self, one: Row, size: float) -> None:
        """A learned map that moves nothing is broken, whatever else finds the worst case."""
        if self.learned is None:
            return
        few, w = self.learned.few, self.learned.w
        objective = self.learned.adversary.objective.with_penalty(self.learned.penalties[size])
        for candidate in self.learned.adversary.candidates:
            if isinstance(candidate, LearnedMap):
                q = objective.coordinates.project(candidate.starts(objective, few)[0])
                moved = float((q - few.q0).square().sum(1).mean().sqrt())
                one.checks.append(check("the learned map moves", moved, moved > 0, "in spreads"))
                if not moved > 0:
                    one.note("frozen map: the learned map moves no row")
                base = self.learned.tried.nominal
                gain = (objective.value(few, q).double() - base).clamp_min(0.0)
                _, _, cost, risk = self.learned.tried.best(w, objective.penalty)
                best = float(w @ (risk - objective.penalty * cost - base))
                share = float(w @ gain) / best if best > 0 else math.nan
                words = "of the gain at that penalty; the rest is found by the search"
                one.checks.append(check("share of the learned map alone", share, None, words))


def _enough(own: float, theirs: float) -> bool:
    """Whether a baseline's gain is no more than the inner solver's."""
    return theirs <= own + MORE * abs(own) + 1e-12


_SOLVER = ("learned",)
_BASELINES = {
    "ascent": "gradient ascent with restarts",
    "search": "the search without gradients",
    "doubled": "doubled iterations",
}
