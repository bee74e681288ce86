"""What to make of differences between environments, in words: "none of these" unless told more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drojko.ambiguity import AmbiguitySet, ClassShift
from drojko.estimators.shifts.figures import TASKS, quoted

__all__ = ["Found", "advise"]

#: Environments from which on twice their root mean square distance is a range.
_SEVERAL = 5


@dataclass(frozen=True)
class Found:
    """Differences by aspect; ``apart`` is the share of environments that x alone gives away.

    ``few`` are environments of few rows, ``pure`` those of one class, of ``count`` in all.
    """

    differs: dict[str, bool]
    gains: dict[str, float]
    apart: float
    spread: float
    logistic: bool
    few: list[Any]
    pure: list[Any]
    count: int
    direction: tuple[Any, float] | None


def advise(found: Found) -> tuple[AmbiguitySet | None, list[str]]:
    """The set to use, None by default, and the reasons."""
    reasons = []
    level, slopes = (found.differs[f"y given x: {part}"] for part in ("level", "slopes"))
    unit = " log odds" if found.logistic else " (units of y)"
    if not any(found.differs.values()):
        reasons.append(
            "Beyond chance the environments do not differ, neither in x nor in y: no size of any "
            "set can be read from them."
        )
    if found.differs["x"]:
        text = "x differs between environments, which alone does no harm to a model that is right"
        if found.apart > 0:
            text += (
                f"; {found.apart:.0%} of them are told apart from the others by x (AUC of 0.95 or "
                "more): sets that reweight cannot reach such a place, and models extrapolate there"
            )
        reasons.append(text + ".")
    if level:
        reasons.append(
            f"The level of y given x moves by {found.spread:.2g}{unit} from one environment to the "
            f"next (knowing it takes {found.gains['y given x: level']:.0%} off the loss). No ball "
            "with locked labels holds that move, and a set in both directions is a bet: some fifty "
            "labels of the new environment, for the intercept alone, do more than any set: on "
            f"{TASKS} shifts as they occur {quoted('50 target labels: level')}, against tuned L2."
        )
    elif found.differs["shares of y"]:
        reasons.append(
            "Shares of y differ, and x explains it: given x the level is the same, so that a plain "
            "model follows such a shift by itself."
        )
    if slopes:
        reasons.append(
            "Slopes differ between environments beyond their levels (knowing them takes "
            f"{found.gains['y given x: slopes']:.0%} off the loss): no set here holds that; more "
            "environments, interactions or a model for each do."
        )
    if found.few:
        reasons.append(
            f"{len(found.few)} of the environments, such as {found.few[0]!r}, have fewer than 10 "
            "rows: join small ones."
        )
    if found.pure:
        reasons.append(
            f"All rows of {len(found.pure)} of the environments, such as {found.pure[0]!r}, are of "
            "one class: how far their level is from others is a bound of what such rows can show, "
            "not a measurement. Unless a class is rare, see whether the environment is another "
            "name for y."
        )
    ambiguity = None
    if found.direction is not None:
        ambiguity = _directed(*found.direction, level, found.count, reasons)
    if ambiguity is None:
        reasons.append(
            "A plain model, its penalty chosen by left-out environments, is the default; a robust "
            "set is for stress tests, for named groups, and for a direction that you know. On "
            f"{TASKS} shifts as they occur, sizes chosen by environments against tuned L2 were "
            f"{quoted('W2, environments')} (Wasserstein) and {quoted('CVaR, environments')} "
            f"(CVaR); a stack of L2 and trees {quoted('stack of L2 and trees')}. "
            'select_radius(method="environments") says whether any size of a set helps on these '
            "rows."
        )
    return ambiguity, reasons


def _directed(
    name: Any, away: float, differs: bool, count: int, reasons: list[str]
) -> AmbiguitySet | None:
    """The set of moves towards a class, of the size that is seen between environments."""
    if away == 0.0 or not differs:
        reasons.append(
            f"You know that {name!r} becomes more frequent, and these environments do not say by "
            "how much: their levels do not differ beyond chance. Give the range yourself, as "
            f"ClassShift(between=(0, high), direction={name!r})."
        )
        return None
    high = float(f"{2.0 * away:.2g}")
    held = "which holds 19 of 20 of them"
    if count < _SEVERAL:
        held = f"an order of magnitude, as {count} environments show no more"
    reasons.append(
        f"You know that {name!r} becomes more frequent: the range of its log odds is twice their "
        f"distance from a model of the other environments, {held}. Where that "
        "class is the rare one the worst case moves; where it is the common one the worst "
        "case is that nothing moves, and weighting its rows by what you expect does more than "
        f"the set. Told the direction, on {TASKS} shifts as they occur, such a set was "
        f"{quoted('told the direction: set')}, and moving the intercept by that distance "
        f"{quoted('told the direction: level')}."
    )
    return ClassShift(between=(0.0, high), direction=name)
