"""Worst cases of sets that reweight: by a function of the loss, or known as measures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko._random import spawn
from drojko.ambiguity.duals.bounded import BoundedRatio
from drojko.ambiguity.duals.density_ratio import DensityRatioSet
from drojko.exceptions import InvalidDataError, UnboundedRiskError, UnsupportedError
from drojko.flows.importance.rejection import draw_kept
from drojko.flows.particles import match_moments
from drojko.inner.reweighting.density_flow import ClassFlow, DensityFlow
from drojko.inner.sinkhorn.gaussian_moments import TiltedNormals
from drojko.inner.worst_case import WorstCase, quantiles
from drojko.measures.base import LabelledMeasure, Measure, choose, components, draws
from drojko.measures.empirical import Empirical
from drojko.measures.gaussian import Gaussian
from drojko.measures.mixture import net
from drojko.transport.maps import TransportMap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MassesMove", "MeasuredWorstCase", "Pool", "ReweightedWorstCase"]

_PAIRED = 400  # pairs of draws matched at most (the matching is cubic)
_COLUMNS = 50  # of a learned map
#: Points (n, d), labels and masses (n,).
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _arrays(x: Tensor, y: Tensor, mass: Tensor) -> Rows:
    return x.numpy(), y.numpy(), mass.numpy()


@dataclass(frozen=True, eq=False)
class Pool:
    """Weighted draws of the reference with their losses and ratios dP*/dP0.

    ``w`` and ``w * ratio`` sum to 1. ``normaliser`` is the mean of the ratio before that: 1 up to
    the error of the draws that the dual point came from. ``bounded`` is what it is made of: the
    ratio is ``tilt`` for ``bounded.share`` of the mass, 1 for the rest.
    """

    x: Tensor
    y: Tensor
    w: Tensor
    losses: Tensor
    tilt: Tensor
    normaliser: float = 1.0
    bounded: BoundedRatio = field(default_factory=BoundedRatio)

    @property
    def ratio(self) -> Tensor:
        """dP*/dP0, of mean 1."""
        return self.bounded.mixed(self.tilt)

    @property
    def mass(self) -> Tensor:
        """The masses under the worst case."""
        return self.w * self.ratio

    def sides(self) -> tuple[Rows, Rows]:
        """Points, labels and masses under P0, and under P*."""
        return _arrays(self.x, self.y, self.w), _arrays(self.x, self.y, self.mass)

    @property
    def effective_sample_size(self) -> float:
        """(E r)^2 / E r^2 in (0, 1]: 1 where nothing is reweighted."""
        return 1.0 / float((self.w * self.ratio.square()).sum())


class MassesMove(WorstCase):
    """A worst case whose points keep their place while masses change."""

    share_of = "change, in standard deviations"
    pool: Any

    @abstractmethod
    def _sides(self) -> tuple[Rows, Rows]:
        """Points (n, d), labels and masses (n,) under P0, and under P*."""

    def displacement(self) -> pd.DataFrame:
        """How each column changes from P0 to P*: a row per class and feature.

        Columns: ``class`` (absent for regression), ``feature``; differences of weighted ``mean``
        and of the quantiles ``q05``, ``median``, ``q95``, in the units of X; ``rms``, the W2
        distance between the two distributions of that column; ``share`` of the sum of squares of
        all of them, in standard deviations of the columns (each class with its mass under P*), and
        ``mass``, the change of the class's probability (absent for regression).
        """
        return super().displacement()

    def _changes(self, group: Any) -> Iterator[tuple[dict[str, float], float]]:
        (x, y, w), (z, labels, mass) = self._sides()
        middle = w @ x
        spread = np.sqrt(w @ (x - middle) ** 2)
        rows, images = np.ones(len(w), bool), np.ones(len(mass), bool)
        if group is not None:
            rows, images = (self._decode(torch.as_tensor(part)) == group for part in (y, labels))
        before, after = w[rows].sum(), mass[images].sum()
        if before > 0 and after > 0:
            w, mass = w[rows] / before, mass[images] / after
            for one, two, scale in zip(x[rows].T, z[images].T, spread):
                row = _marginal_change(one, w, two, mass)
                cost = after * (row["rms"] / scale) ** 2 if scale > 1e-12 * abs(one).max() else 0.0
                yield row if group is None else {**row, "mass": float(after - before)}, cost


@dataclass(frozen=True, repr=False)
class ReweightedWorstCase(MassesMove):
    r"""The worst case of a set that limits the density ratio: points keep their place.

    .. math:: \frac{dP_*}{dP_0}(x, y) =
        (f^*)'\left(\frac{\ell(x, y) - \mathrm{shift}}{\mathrm{penalty}}\right)

    for KL, chi-square, Cressie-Read, total variation and CVaR sets, (penalty, shift) being a dual
    point. Weighting reaches labels, too: label shares change with the losses of the labels.

    An empirical reference is reweighted exactly, by the dual on its own atoms. Of a continuous one
    ``n_pool`` weighted draws are kept, with the classes' exact means and covariances where the
    reference knows them, and the ratio is normalised on them.

    Parameters
    ----------
    ambiguity : DensityRatioSet
    penalty, shift : float
        The dual point, in the units of the loss (`Dual`). An empirical reference does without.
    loss_function : callable
        (x, y) -> losses, tensors of shape (n, d), (n,) and (n,); y are class indices 0..K-1, or
        real targets.
    reference : LabelledMeasure
        P0.
    classes : ndarray of shape (K,), default=None
        Labels of the classes; None: regression.
    feature_names : tuple of str, default=None
    attained_risk : float, default=None
        What `risk` returns; None: the mean loss over the pool.
    n_pool : int, default=20000
        Draws of a continuous reference.
    seed : int, default=0
        Of those draws.
    cost_weights : ndarray of shape (d,), default=None
        Weights of the columns by which displacements are measured; None: ones.
    bounded : BoundedRatio, default=None
        How the ratio of the dual point is bounded; None: as the pool says
        (`DensityRatioSet.bounded`).
    law : TiltedNormals, default=None
        The worst case in closed form, where it has one.

    Raises
    ------
    UnboundedRiskError
        On first use, where the dual point gives infinite ratios to more than the largest losses:
        Cressie-Read with k < 1 has no worst case on losses without a bound.

    Notes
    -----
    Where the worst case puts mass on the largest loss alone (total variation, Cressie-Read with
    k < 1, and any set from the radius on where the largest loss is the answer), or where a few
    draws carry it, a continuous reference has no such point: the 1 % of its mass with the largest
    losses stands for it (`DensityRatioSet.bounded`). That keeps P* in the set and falls short of
    the supremum by the spread of the losses within that slice; the lower side of the certificate
    is that of P*. The dual point comes from draws; where their P* leaves the set on others, it is
    mixed with the reference until it is back.

    Examples
    --------
    >>> from drojko.ambiguity import KL
    >>> from drojko.measures import ClassConditional, Gaussian
    >>> P0 = ClassConditional(measures=[Gaussian(mean=[0.0], covariance=[[1.0]])])
    >>> worst = ReweightedWorstCase(KL(penalty=2.0), 2.0, 0.25, lambda x, y: x[:, 0], P0,
    ...                             classes=np.array([0]))
    >>> X, y = worst.sample(4000, random_state=0)     # exactly N(1 / penalty, 1)
    >>> bool(abs(X.mean() - 0.5) < 0.05), abs(worst.risk() - 0.5) < 0.02
    (True, True)
    """

    ambiguity: DensityRatioSet
    penalty: float
    shift: float
    loss_function: Callable[[Tensor, Tensor], Tensor]
    reference: LabelledMeasure
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    attained_risk: float | None = None
    n_pool: int = 20_000
    seed: int = 0
    cost_weights: np.ndarray | None = None
    bounded: BoundedRatio | None = None
    law: TiltedNormals | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, compare=False)

    _learned_by = ""  # what representations add

    @property
    def n_features(self) -> int:
        return self.reference.dim

    # -- the ratio ---------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether the reference has atoms, so that nothing is drawn."""
        return all(isinstance(part, Empirical) for part in components(self.reference))

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self.loss_function(x, y).detach().double().cpu()

    def _capped_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss, with values in the slice of the largest as its least; differentiable."""
        losses, top = self.loss_function(x, y), self.pool.bounded.top
        return losses if top == np.inf else losses.clamp(max=top)

    @cached_property
    def pool(self) -> Pool:
        """Weighted draws of the reference with their ratios."""
        gen = make_generator(self.seed)
        x, y, w = self.reference.points(self.n_pool, gen)
        parts = components(self.reference)
        if self.classes is not None and not self.exact and len(parts) == len(self.classes):
            x = x.clone()
            for k, part in enumerate(parts):
                rows = y == k
                if isinstance(part, Gaussian) and self.n_features <= _COLUMNS and rows.sum() > 1:
                    x[rows] = net(part, int(rows.sum()), spawn(gen))  # more even than its points
                if bool(rows.any()) and isinstance(part, Measure):
                    mass = w[rows] / w[rows].sum()
                    x[rows] = match_moments(part, x[rows], mass)
        losses = self._losses(x, y)
        if self.exact:
            dual = self.ambiguity.dual(losses, w)
            return Pool(x, y, w, losses, torch.from_numpy(dual.ratio))
        bounded = self.bounded
        if bounded is None:
            bounded = self.ambiguity.bounded(losses, w, self.penalty, self.shift)
        tilt = torch.from_numpy(self._tilt(bounded, losses))
        normaliser = float((w * tilt).sum())
        if not normaliser > 0:
            raise InvalidDataError(
                f"the dual point (penalty={self.penalty:.6g}, shift={self.shift:.6g}) leaves no "
                "mass on the reference: it belongs to other losses"
            )
        return Pool(x, y, w, losses, tilt / normaliser, normaliser, bounded)

    def _tilt(self, bounded: BoundedRatio, losses: Tensor) -> np.ndarray:
        ratio = bounded.at(self.ambiguity, losses.numpy(), self.penalty, self.shift)
        if not np.isfinite(ratio).all():
            raise UnboundedRiskError(
                f"{self.ambiguity!r}: a loss of {float(losses.max()):.6g} has an infinite ratio at "
                "this dual point: losses without a bound have no worst case in this set; use a "
                "bounded loss, an empirical reference, or KL with a larger penalty"
            )
        return ratio

    def _ratio(self, losses: Tensor) -> Tensor:
        """The normalised ratio at fresh points."""
        pool = self.pool
        total = 1.0 if self.law is not None else pool.normaliser
        return pool.bounded.mixed(torch.from_numpy(self._tilt(pool.bounded, losses)) / total)

    @property
    def effective_sample_size(self) -> float:
        """Share (E r)^2 / E r^2 of the draws that carry the worst case."""
        return self.pool.effective_sample_size

    @property
    def normaliser(self) -> float:
        """Mean of the ratio over the pool before it is normalised: 1 up to sampling error."""
        return self.pool.normaliser

    # -- the measure -------------------------------------------------------------------------

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` samples: X of shape (n, d) and labels of shape (n,).

        Atoms are drawn with their new weights. A continuous reference is sampled by rejection,
        exactly, as the ratio is bounded, or from the law in closed form: draws are independent,
        and none comes up twice.
        """
        n, gen = draws(n, random_state)
        pool = self.pool
        if self.exact:
            rows = choose(pool.mass.numpy(), n, gen)
            return pool.x[rows].numpy(), self._decode(pool.y[rows])
        stay = torch.rand(n, generator=gen, dtype=torch.float64) >= pool.bounded.share
        parts = []
        for rows, draw in ((~stay, self._tilted), (stay, self.reference.sample)):
            if bool(rows.any()):
                parts.append((rows, *draw(int(rows.sum()), gen)))
        order = torch.cat([rows.nonzero()[:, 0] for rows, _, _ in parts]).argsort()
        x, y = (torch.cat([part[i] for part in parts])[order] for i in (1, 2))
        return x.numpy(), self._decode(y)

    def _tilted(self, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of the part that is tilted."""
        if self.law is not None:
            z = self.law.sample(n, gen)
            return z[:, :-1], z[:, -1]
        bounded = self.pool.bounded
        bound = min(bounded.level, self.ambiguity.ratio_bound)
        if np.isinf(bound):  # nothing is tilted
            return self.reference.sample(n, gen)

        def draw(m: int) -> tuple[Tensor, Tensor]:
            x, y = self.reference.sample(m, gen)
            coin = torch.rand(m, generator=gen, dtype=torch.float64)
            kept = coin * bound < torch.from_numpy(self._tilt(bounded, self._losses(x, y)))
            return x[kept], y[kept]

        x, y = draw_kept(n, draw, bound / self.pool.normaliser)
        return x, y

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        r"""Log density of X given y, shape (n,).

        .. math:: \log p_*(x | y) = \log p_0(x | y) + \log r(x, y) - \log E_0[r | y]

        Raises
        ------
        UnsupportedError
            For a reference without density, and in regression, where E0[r | y] at a real y would
            have to be known.
        """
        if self.classes is None:
            raise UnsupportedError(
                "log_prob: of a reweighted joint measure the density of x given a real target is "
                "not known; use log_joint for the density of (x, y)"
            )
        x, labels = self._queries(X, y)
        shares = torch.from_numpy(self.label_shares() / self._shares(self.pool.w))
        base = self.reference.log_prob(x, labels)
        ratio = self._ratio(self._losses(x, labels))
        return (base + ratio.log() - shares.log()[labels]).numpy()

    def log_joint(self, X: Any, y: Any) -> np.ndarray:
        """Log density of (X, y), shape (n,); in classification y counts by its probability.

        Raises `UnsupportedError` for a reference without density.
        """
        x, labels = self._queries(X, y)
        if self.classes is None:
            (joint,) = components(self.reference)
            base = joint.log_prob(torch.cat([x, labels[:, None]], 1))
        else:
            shares = torch.from_numpy(self._shares(self.pool.w))
            base = self.reference.log_prob(x, labels) + shares.log()[labels]
        return (base + self._ratio(self._losses(x, labels)).log()).numpy()

    def risk(self) -> float:
        """Mean loss under this measure, on the draws of the certificate or else on the pool."""
        if self.attained_risk is not None:
            return self.attained_risk
        return float((self.pool.mass * self.pool.losses).sum())

    def label_shares(self) -> np.ndarray:
        """P*(y = k) of each class, shape (K,); they sum to 1."""
        return self._shares(self.pool.mass)

    def _tilted_shares(self) -> np.ndarray:
        return self._shares(self.pool.w * self.pool.tilt)

    def _shares(self, mass: Tensor) -> np.ndarray:
        if self.classes is None:
            raise UnsupportedError("label_shares: a regression has no classes")
        labels = self.pool.y.numpy()
        return np.bincount(labels, weights=mass.numpy(), minlength=len(self.classes))

    # -- what it does ------------------------------------------------------------------------

    def transport(self, X: Any, y: Any) -> np.ndarray:
        """Where rows X with labels y are moved, shape (n, d), by a learned map of each class.

        Reweighting has no map of its own: this is the gradient of a convex potential that carries
        the class's reference to its worst case (`DensityFlow`), learned on first use.

        Raises
        ------
        UnsupportedError
            For total variation and CVaR (densities with jumps), a reference without density,
            regression, and more than 50 columns.
        """
        x, labels = self._queries(X, y)
        return self._by_class(labels, lambda k, rows: self._map(k).map(x[rows])).numpy()

    def _by_class(self, labels: Tensor, make: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Points of each class k at its rows, (n, d): ``make`` gets k and the rows as a mask."""
        out = torch.empty(len(labels), self.n_features, dtype=torch.float64)
        for k in labels.unique().tolist():
            rows = labels == k
            out[rows] = make(int(k), rows).double()
        return out

    def _by_label(
        self, n: int, gen: torch.Generator, sample: Callable[[int, int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Draw n labels, and ``sample(k, m)`` points of each class k that came up m times."""
        labels = choose(self._tilted_shares(), n, gen)
        return self._by_class(labels, lambda k, rows: sample(k, int(rows.sum()))), labels

    def _map(self, k: int) -> TransportMap:
        return self.flow(k).map

    def flow(self, k: int = 0) -> ClassFlow:
        """The learned map of class index ``k`` with what it attains; computed once."""
        if self.n_features > _COLUMNS:
            raise UnsupportedError(
                f"transport: {self.n_features} columns; exact log-determinants are offered up to "
                f"{_COLUMNS}. Use sample, which needs none"
            )
        if ("flow", k) not in self._cache:
            loss, reference, share = self._part(k)
            self._cache["flow", k] = DensityFlow().fit(
                self.ambiguity, self.penalty, self.shift, loss, reference, self.seed, share
            )
        return self._cache["flow", k]

    def _part(self, k: int) -> tuple[Callable[[Tensor], Tensor], Measure, float]:
        """Loss and reference of class index k, and the log of the change of its mass."""
        if self.classes is None:
            raise UnsupportedError(
                "transport: a map of a joint measure would move the targets too; use sample"
            )
        if not 0 <= k < len(self.classes):
            raise InvalidDataError(f"k={k}; expected a class index below {len(self.classes)}")
        share = float(np.log(self._tilted_shares()[k] / self._shares(self.pool.w)[k]))

        def loss(z: Tensor) -> Tensor:
            return self._capped_loss(z, torch.full((len(z),), k))

        return loss, components(self.reference)[k], share

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Up to 400 draws of P0 and of P* in each class: how mass would move if it moved.

        They are matched with the least squared distance after columns are scaled.
        """
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist

        pool, gen = self.pool, make_generator(self.seed)
        labels = pool.y.numpy() if self.classes is not None else np.zeros(len(pool.y))
        parts = []
        for k in np.unique(labels):
            rows = np.flatnonzero(labels == k)
            w, mass = pool.w.numpy()[rows], pool.mass.numpy()[rows]
            if not mass.any():
                continue
            source = rows[choose(w / w.sum(), _PAIRED, gen).numpy()]
            image = rows[choose(mass / mass.sum(), _PAIRED, gen).numpy()]
            start, end = pool.x.numpy()[source], pool.x.numpy()[image]
            scale = np.maximum(np.std(start, axis=0), 1e-300)
            _, match = linear_sum_assignment(cdist(start / scale, end / scale, "sqeuclidean"))
            weight = np.full(_PAIRED, mass.sum() / _PAIRED)
            parts.append((start, end[match], self._decode(pool.y[source]), weight))
        x, z, y, share = (np.concatenate(part) for part in zip(*parts))
        return x, z, y, share

    def _sides(self) -> tuple[Rows, Rows]:
        return self.pool.sides()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.ambiguity!r}, risk={self.risk():.6g}, "
            f"effective_sample_size={self.effective_sample_size:.3g}{self._learned_by})"
        )


def _marginal_change(
    x: np.ndarray, w: np.ndarray, z: np.ndarray, mass: np.ndarray
) -> dict[str, float]:
    """Differences of mean and quantiles of one column from (x, w) to (z, mass), and their W2."""
    order, other = np.argsort(x, kind="stable"), np.argsort(z, kind="stable")
    first, second = np.cumsum(w[order]), np.cumsum(mass[other])
    # Both quantile functions are constant between the merged jumps.
    jumps = np.union1d(first, second)
    length = np.diff(jumps, prepend=0.0)
    middle = jumps - 0.5 * length
    one = x[order][np.minimum(np.searchsorted(first, middle), len(x) - 1)]
    two = z[other][np.minimum(np.searchsorted(second, middle), len(z) - 1)]
    low, mid, high = (float(v) for v in quantiles(z, mass) - quantiles(x, w))
    rms = float(np.sqrt(length @ (two - one) ** 2))
    mean = float(mass @ z - w @ x)
    return {"mean": mean, "q05": low, "median": mid, "q95": high, "rms": rms}


@dataclass(frozen=True, repr=False)
class MeasuredWorstCase(MassesMove):
    """A worst case given as a labelled measure: points keep their place, masses change.

    Of a `Group` set it is the worst mixture of the groups' measures, with a density where these
    have one; of an `MMD` set the points of the certificate with their worst masses, which has
    none.

    Parameters
    ----------
    measure : LabelledMeasure
        P*.
    attained_risk : float
        What `risk` returns.
    classes : ndarray of shape (K,), default=None
        Labels of the classes; None: regression.
    feature_names : tuple of str, default=None
    group_weights : dict, default=None
        Shares of the groups under P*, of a `Group` set.
    reference : LabelledMeasure, default=None
        P0, which `displacement` compares with; None: P* itself.
    pool : Pool, default=None
        The rows with their masses under both, where these are known.

    Examples
    --------
    >>> import numpy as np
    >>> from drojko.inner.reweighting.worst_case import MeasuredWorstCase
    >>> from drojko.measures import ClassConditional, Gaussian
    >>> P = ClassConditional(measures=[Gaussian(mean=[1.0], covariance=[[1.0]])])
    >>> worst = MeasuredWorstCase(P, 0.3, classes=np.array(["a"]))
    >>> X, y = worst.sample(3, random_state=0)
    >>> X.shape, y.tolist(), worst.risk()
    ((3, 1), ['a', 'a', 'a'], 0.3)
    """

    measure: LabelledMeasure
    attained_risk: float
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    group_weights: dict[Any, float] | None = None
    cost_weights: np.ndarray | None = None
    reference: LabelledMeasure | None = None
    pool: Pool | None = None

    def __repr__(self) -> str:
        shares = ""
        if self.group_weights is not None:
            parts = (f"{name!r}: {share:.4g}" for name, share in self.group_weights.items())
            shares = f", group_weights={{{', '.join(parts)}}}"
        return f"{type(self).__name__}(risk={self.attained_risk:.6g}{shares})"

    @property
    def n_features(self) -> int:
        return self.measure.dim

    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.measure.sample(n, make_generator(random_state))
        return x.numpy(), self._decode(y)

    def transport(self, X: Any, y: Any) -> np.ndarray:
        """The rows themselves: this set moves masses, not points."""
        return np.array(X, dtype=np.float64)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density of X given y, shape (n,); UnsupportedError for atoms, which have none."""
        return self.measure.log_prob(*self._queries(X, y)).numpy()

    def _sides(self) -> tuple[Rows, Rows]:
        if self.pool is not None:
            return self.pool.sides()
        measures = (self.reference or self.measure, self.measure)
        one, two = (measure.points(2000, make_generator(0)) for measure in measures)
        return _arrays(*one), _arrays(*two)

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        x, y, w = self.measure.points(2000, make_generator(0))
        return x.numpy(), x.numpy(), self._decode(y), w.numpy()
