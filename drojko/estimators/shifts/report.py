"""How environments differ, what would hold such differences, and whether anything should."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator

from drojko._files import plain_values, write_json
from drojko._html import frame_of, table_of
from drojko._random import generator
from drojko._sklearn import checked_data, plain
from drojko._validation import check_scale, chosen, did_you_mean, floats, is_whole, shown
from drojko.ambiguity import AmbiguitySet
from drojko.estimators.radius.environments import FEW, environments_of
from drojko.estimators.shifts.advice import Found, advise
from drojko.estimators.shifts.given import (
    FOLDS,
    Moves,
    columns_of,
    gain_of_moves,
    gain_of_slopes,
    losses,
    moves,
    scores,
)
from drojko.estimators.shifts.reach import (
    Reach,
    auc,
    cells,
    reach_of_ratios,
    reach_of_shares,
    reach_of_transport,
)
from drojko.exceptions import InvalidDataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ShiftReport", "shift_report"]

#: Distinct whole numbers from which on they are no classes.
_MANY = 20
#: Classes, each of which is a fit, and rows to look at.
_CLASSES, _LEAST = 30, 20
#: Standard errors, and share of the loss, from which on a gain is one.
_CLEAR, _WORTH = 2.0, 0.01
#: Environments that are looked at one by one.
_MOST = 20
#: Area under the curve from which on an environment is apart.
_APART = 0.95
_ASPECTS = ("x", "shares of y", "y given x: level", "y given x: slopes")


@dataclass(frozen=True, eq=False)
class ShiftReport:
    """What `shift_report` found.

    Attributes
    ----------
    table : DataFrame
        A row per environment: ``rows``; ``auc`` of telling its x from that of all others (0.5: the
        same, 1: apart); ``shares``, the move of y without x, and ``level``, that of y given x, with
        the standard error ``level_se`` (log odds of ``of``, the class whose moves are largest, or
        units of y); ``unseen``, the same beside a model of the other environments; ``level_gain``
        and ``slopes_gain``, what an intercept and slopes of its own take off the loss of rows that
        were held out, as shares of it.
    differences : DataFrame
        A row per ``aspect`` (x, shares of y, y given x: level, y given x: slopes): ``gain`` of
        knowing the environment for the held-out loss, as a share of it, with ``gain_se``, and
        whether it ``differs`` (beyond two standard errors and 1 %).
    reach : DataFrame
        A row per set: ``size`` (the parameter), what it takes to hold the environment in the
        ``middle`` and the ``furthest`` one beside the others, and what that says (``meaning``).
        Read the sizes of sets that reweight as "at least", and ``alpha`` as "at most".
    recommendation : str
        "none of these", unless a direction was given.
    reasons : list of str
        Why; each a sentence.
    ambiguity : AmbiguitySet or None
        The set that is recommended, ready for an estimator. None: none of these.
    spread : float
        Standard deviation of the level of y given x between environments beyond chance, in log
        odds or units of y: how far they are from the common model, either way.
    unseen : float
        Root mean square of the levels ``unseen``: how far a new environment is from a model that
        has not seen it, chance included.
    rows : int
        Rows that were looked at.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    reach: pd.DataFrame
    recommendation: str
    reasons: list[str]
    spread: float
    unseen: float
    rows: int
    ambiguity: AmbiguitySet | None = None
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        def text(frame: pd.DataFrame) -> str:
            shown = frame.to_string(index=False, float_format=lambda v: f"{v:.3g}")
            return "\n".join(f"  {line}" for line in shown.split("\n"))

        reasons = "\n".join(f"  - {line}" for line in self.reasons)
        parts = [text(self.differences), text(self.table), text(self.reach)]
        return "\n\n".join([f"ShiftReport: {self.recommendation}\n{reasons}", *parts])

    def _repr_html_(self) -> str:
        parts = [
            table_of(
                self.recommendation,
                [(str(k), line) for k, line in enumerate(self.reasons, 1)],
                f"{self.rows} rows of {len(self.table)} environments",
            ),
            frame_of("How environments differ", self.differences, "Gains as shares of the loss."),
            frame_of("Environments", self.table),
            frame_of("What it takes to hold them", self.reach),
        ]
        return "<br>".join(parts)

    def to_json(self, path: Any = None) -> str:
        """The report as strict JSON; with a path it is written there as well, whole or not at all.

        An object with ``schema`` (1), ``drojko`` (version), ``about`` (``task``, ``classes``),
        ``rows``, ``spread``, ``unseen``, ``recommendation``, ``reasons``, ``ambiguity`` (as it
        prints, or null) and the frames ``table``, ``differences`` and ``reach`` as lists of
        objects. What is no number, or infinite, is null.
        """
        found = {
            "schema": 1,
            "drojko": version("drojko"),
            "about": self.about,
            "rows": self.rows,
            "spread": self.spread,
            "unseen": self.unseen,
            "recommendation": self.recommendation,
            "reasons": self.reasons,
            "ambiguity": None if self.ambiguity is None else repr(self.ambiguity),
            "table": self.table,
            "differences": self.differences,
            "reach": self.reach,
        }
        return write_json(path, plain_values(found))


def shift_report(
    X: Any,
    y: Any,
    groups: Any,
    *,
    task: Literal["auto", "classification", "regression"] = "auto",
    direction: Any = None,
    max_rows: int = 5000,
    random_state: Any = None,
) -> ShiftReport:
    r"""How environments differ in x, in shares of y and in y given x, and what would hold that.

    .. math:: \mathrm{gain} = 1 - \frac{\sum_i \ell(s_i + a_{e(i)} + b_{e(i)}^\top x_i;\, y_i)}
        {\sum_i \ell(s_i; y_i)}, \qquad a_e \sim N(0, \tau^2)

    s are scores of an L2 penalised linear model of all environments, a and b what environment e
    adds to them; each is fitted to other rows than those that it is judged by. The same with the
    environment in the place of y says whether x differs. ``spread`` is tau. The default answer is
    "none of these": robustness pays where costly rows become more frequent, and nothing in the
    source says whether they will.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Numbers, in the units in which distances matter.
    y : array-like of shape (n,)
        Classes (several: one against the rest), or numbers.
    groups : array-like of shape (n,)
        The environment of each row: hospital, year, region.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto": regression for numbers with fractions, or more than 20 distinct whole numbers.
    direction : class label, default=None
        What you know and the data do not: the class that will be more frequent.
    max_rows : int, default=5000
        Rows that are looked at, drawn at random beyond that.
    random_state : None, int or generator, default=None
        Of folds, draws and shuffles.

    Returns
    -------
    ShiftReport

    Raises
    ------
    InvalidDataError
        For X, y, groups and arguments that say nothing: one environment, one class, fewer than 20
        rows, a direction that names no class.

    Notes
    -----
    The 20 largest environments are looked at one by one in x and for `reach`. Of one of a few rows
    nothing can be said: its intercept is shrunk to the others', and it gets no slopes. Divergences
    are those of rows that a linear model of x, x squared and y tells apart, merged to five cells:
    balls that hold the environment are at least as large. Chance is taken off one by one: of many
    environments that are alike the furthest still needs a little, and half of all such data have a
    ``spread`` above 0.

    References
    ----------
    R. Paule, J. Mandel (1982), Consensus values and weighting factors. I. Gulrajani, D. Lopez-Paz
    (2020), In search of lost domain generalization, arXiv 2007.01434.

    Examples
    --------
    Three hospitals, in which the same patients fare differently:

    >>> import numpy as np
    >>> from drojko import shift_report
    >>> rng = np.random.default_rng(0)
    >>> X, hospital = rng.normal(size=(900, 2)), np.repeat(["A", "B", "C"], 300)
    >>> level = np.repeat([-1.5, 0.0, 1.5], 300)
    >>> y = (X[:, 0] + level + rng.logistic(size=900) > 0).astype(int)
    >>> report = shift_report(X, y, hospital, random_state=0)
    >>> report.differences.set_index("aspect")["differs"].to_dict()
    {'x': False, 'shares of y': True, 'y given x: level': True, 'y given x: slopes': False}
    >>> report.recommendation, report.ambiguity
    ('none of these', None)
    >>> shift_report(X, y, hospital, direction=1, random_state=0).recommendation
    'ClassShift(between=(0.0, 3.7), direction=1)'
    """
    chosen("task", task, ("auto", "classification", "regression"))
    if not is_whole(max_rows, 100):
        raise InvalidDataError(f"max_rows={shown(max_rows)}; expected 100 or more")
    names, place = environments_of(groups, "shift_report")
    X = checked_data(BaseEstimator(), X, dtype=np.float64)
    check_scale(X, "X")
    if not len(X) == len(y) == len(place):
        raise InvalidDataError(
            f"X, y and groups have {len(X)}, {len(y)} and {len(place)} rows: give one of each a row"
        )
    if len(X) < _LEAST:
        raise InvalidDataError(f"{len(X)} rows say nothing of environments: {_LEAST} are needed")
    seed = torch.randint(2**31 - 1, (1,), generator=generator(random_state))
    rng = np.random.default_rng(int(seed))
    targets, classes = _targets(y, task)
    column = _direction(direction, classes)
    if len(X) > max_rows:
        kept = np.sort(rng.choice(len(X), max_rows, replace=False))
        X, targets, place = X[kept], targets[kept], place[kept]
        present = np.unique(place)
        names, place = names[present], np.searchsorted(present, place)
    return _report(X, targets, classes, place, [plain(name) for name in names], column, rng)


def _targets(y: Any, task: str) -> tuple[np.ndarray, list[Any] | None]:
    """Class indices and the classes, or numbers and None."""
    values = np.asarray(y)
    if values.ndim != 1:
        raise InvalidDataError(f"y is {shown(y)}; expected a class or a number for each row")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidDataError("y holds NaN or infinity: drop these rows")
    try:
        classes, index = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise InvalidDataError("y mixes labels that have no order: make them strings") from error
    if len(classes) < 2:
        raise InvalidDataError(f"y holds 1 class, {plain(classes[0])!r}; 2 or more are needed")
    whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and (values % 1 == 0).all())
    number = values.dtype.kind in "iuf" and not (whole and len(classes) <= _MANY)
    if task == "regression" or (task == "auto" and number):
        found = floats(y, "y")
        check_scale(found, "y")
        return found, None
    if len(classes) > _CLASSES:
        raise InvalidDataError(
            f"y has {len(classes)} classes; at most {_CLASSES} are looked at: give "
            'task="regression" for numbers, or merge rare classes'
        )
    return index, classes.tolist()


def _direction(direction: Any, classes: list[Any] | None) -> int | None:
    """Index of the class that gains."""
    if direction is None:
        return None
    if classes is None:
        raise InvalidDataError(
            f"direction={direction!r} is about classes, and y holds numbers: where you know that "
            "targets will be higher, add what you know to the intercept"
        )
    if direction not in classes:
        hint = did_you_mean(direction, map(str, classes), "the classes are: ")
        raise InvalidDataError(f"direction={direction!r} names no class; {hint}")
    return classes.index(direction)


def _report(
    X: np.ndarray, y: np.ndarray, classes: list[Any] | None, place: np.ndarray, names: list[Any],
    direction: int | None, rng: np.random.Generator,
) -> ShiftReport:  # fmt: skip
    import pandas as pd

    count = len(names)
    fold = _folds(place, y if classes else np.zeros(len(y)), rng)
    features = columns_of(X)
    if not features.shape[1]:
        raise InvalidDataError("all columns of X are constant: there is no x to look at")
    # One column for numbers and for two classes, one against the rest for more.
    columns = [(y == k).astype(float) for k in range(len(classes))] if classes else [y]
    columns = columns[1:] if len(columns) == 2 else columns
    linear = columns_of(X, squares=False)
    parts = [_of_column(column, linear, place, count, bool(classes), fold) for column in columns]
    base, alone, shares, level, slopes = np.sum([part.rows for part in parts], axis=0)
    rows = np.bincount(place, minlength=count)
    looked = np.sort(np.argsort(-rows, kind="stable")[:_MOST])
    apart = _apart(features, columns_of(X, y.astype(float)), place, looked, fold)
    differences = _differences(
        [(apart.gain, apart.base), (shares, alone), (level, base), (slopes, base)]
    )
    which = int(np.argmax([part.level.spread for part in parts]))
    widest = parts[which]
    areas = np.full(count, math.nan)
    areas[looked] = apart.auc
    total = np.bincount(place, base, count)
    table = pd.DataFrame({
        "environment": names, "rows": rows, "auc": areas, "shares": widest.shares.move,
        "level": widest.level.move, "level_se": widest.level.error, "unseen": widest.unseen,
        "level_gain": np.bincount(place, level, count) / total,
        "slopes_gain": np.bincount(place, slopes, count) / total,
    })  # fmt: skip
    if classes:
        table["of"] = classes[which + (len(classes) == 2)]
    inside = [place == e for e in looked]
    reaches = reach_of_ratios(apart.cells, inside, rng)
    if classes:
        reaches += reach_of_shares(y, inside, len(classes))
    seed = int(rng.integers(2**31 - 1))
    reaches.append(reach_of_transport(X, y if classes else None, inside, seed))
    known = None
    if direction is not None and classes:
        own = parts[direction] if len(parts) > 1 else widest  # two classes move as one
        known = plain(classes[direction]), own.away
    found = Found(
        dict(zip(_ASPECTS, differences["differs"], strict=True)),
        dict(zip(_ASPECTS, differences["gain"], strict=True)),
        float(np.mean(apart.auc >= _APART)), widest.level.spread, bool(classes),
        [names[e] for e in np.flatnonzero(rows < FEW)], _pure(y, place, names, rows, classes),
        count, known,
    )  # fmt: skip
    ambiguity, reasons = advise(found)
    return ShiftReport(
        table, differences, _reach(reaches),
        "none of these" if ambiguity is None else repr(ambiguity), reasons,
        widest.level.spread, widest.away, len(y), ambiguity,
        {"task": "classification" if classes else "regression", "classes": classes},
    )  # fmt: skip


def _pure(y: Any, place: Any, names: list[Any], rows: Any, classes: Any) -> list[Any]:
    """Environments of several rows of one class."""
    if not classes:
        return []
    seen = np.zeros((len(names), len(classes)), dtype=bool)
    seen[place, y] = True
    return [names[e] for e in np.flatnonzero((seen.sum(1) == 1) & (rows >= FEW))]


def _differences(pairs: list[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """Gains of the rows as shares of their losses, aspect by aspect.

    Losses next to nothing beside those without x count as a little: what is left is no noise.
    """
    import pandas as pd

    least = 1e-3 * float(pairs[1][1].mean())  # in the units of the losses of y
    rows = []
    for aspect, (gains, of) in zip(_ASPECTS, pairs, strict=True):
        floor = least if aspect.startswith("y") else np.finfo(float).tiny
        total = max(float(of.mean()), floor)
        gain = float(gains.mean()) / total
        error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) / total
        differs = gain > max(_CLEAR * error, _WORTH)
        rows.append({"aspect": aspect, "gain": gain, "gain_se": error, "differs": differs})
    return pd.DataFrame(rows)


def _folds(place: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold (n,) of each row: those of an environment and a class are spread over all of them."""
    order = np.lexsort([rng.random(len(y)), y, place])
    fold = np.empty(len(y), dtype=int)
    fold[order] = np.arange(len(y)) % FOLDS
    return fold


@dataclass(frozen=True)
class _Column:
    """Of one target: losses of the rows given x and without it, what shares of y, levels and slopes
    take off them, and the moves of environments; ``unseen`` (G,) beside models without them.
    """

    rows: list[np.ndarray]
    shares: Moves
    level: Moves
    unseen: np.ndarray

    @property
    def away(self) -> float:
        return math.sqrt(float(np.mean(self.unseen**2)))


def _of_column(
    y: np.ndarray, X: np.ndarray, place: np.ndarray, count: int, logistic: bool, fold: np.ndarray
) -> _Column:
    alone = scores(np.empty((len(y), 0)), y, logistic, fold)
    shares, _ = gain_of_moves(alone, y, place, count, logistic, fold)
    score = scores(X, y, logistic, fold)
    level, moved = gain_of_moves(score, y, place, count, logistic, fold)
    slopes = gain_of_slopes(X, moved, y, place, count, logistic, fold)
    beside = scores(X, y, logistic, place % _MOST)  # of models without the environment
    return _Column(
        [losses(score, y, logistic), losses(alone, y, logistic), shares, level, slopes],
        moves(alone, y, place, count, logistic), moves(score, y, place, count, logistic),
        moves(beside, y, place, count, logistic).move,
    )  # fmt: skip


@dataclass(frozen=True)
class _Apart:
    """How well environments are told apart: by x, and (in cells) by x and y."""

    gain: np.ndarray
    base: np.ndarray
    auc: np.ndarray
    cells: list[np.ndarray]


def _apart(
    features: np.ndarray, joint: np.ndarray, place: np.ndarray, looked: np.ndarray,
    fold: np.ndarray,
) -> _Apart:  # fmt: skip
    gain, base = np.zeros(len(place)), np.zeros(len(place))
    areas, cut = [], []
    for e in looked:
        inside = place == e
        target = inside.astype(float)
        known = losses(scores(np.empty((len(place), 0)), target, True, fold), target, True)
        score = scores(features, target, True, fold)
        base += known
        gain += known - losses(score, target, True)
        areas.append(auc(score, inside))
        cut.append(cells(scores(joint, target, True, fold), inside))
    return _Apart(gain, base, np.array(areas), cut)


def _reach(found: list[Reach]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for one in found:
        needed = one.needed[np.isfinite(one.needed)]
        ends = (needed.min if one.size == "alpha" else needed.max) if needed.size else None
        rows.append({
            "set": one.name, "size": one.size,
            "middle": float(np.median(needed)) if needed.size else math.nan,
            "furthest": float(ends()) if ends else math.nan, "meaning": one.meaning,
        })  # fmt: skip
    return pd.DataFrame(rows)
