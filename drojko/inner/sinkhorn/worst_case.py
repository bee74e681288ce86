"""The worst case of a Sinkhorn set: every sample becomes a tilted Gaussian cloud."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drojko._random import generator as make_generator
from drojko.exceptions import UnsupportedError
from drojko.inner.objective import Objective
from drojko.inner.sinkhorn.particles import draw_particles
from drojko.inner.transport.adversary import Adversary
from drojko.inner.transport.bounds import is_single
from drojko.inner.transport.candidates import first_candidates
from drojko.inner.worst_case import WorstCase
from drojko.losses import Loss
from drojko.measures.base import LabelledMeasure

__all__ = ["GibbsWorstCase", "draw_tilted"]

_ROWS = 1 << 21  # numbers in the particles, or the pairs of points, of one block
_POOL = 2000


@dataclass(frozen=True, repr=False)
class GibbsWorstCase(WorstCase):
    r"""The mixture of tilted Gaussians :math:`\gamma_x \propto e^{\ell/(\lambda\varepsilon)} Q_x`.

    x runs through the reference, Q_x = N(x, (epsilon / 2) diag(w)^{-1}). Of a linear model with a
    scalar loss only one direction is tilted, and everything is exact; of other models laws are
    represented by ``m`` weighted draws per sample.

    Parameters
    ----------
    objective : Objective
        Model, loss, coordinates of the ground cost, and the penalty lambda (infinite: no tilt).
    reference : LabelledMeasure
    epsilon : float
        In squared units of X.
    attained_risk : float
    classes, feature_names, cost_weights
        As in `WorstCase`; ``cost_weights`` of shape (d,), infinite for immutable columns.
    m : int, default=512

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from drojko import DRORegressor
    >>> from drojko.ambiguity import Sinkhorn
    >>> X, y = load_diabetes(return_X_y=True)
    >>> reg = DRORegressor(Sinkhorn(1e-4, radius=1e-4), reference="empirical").fit(X, y)
    >>> Z, target = reg.worst_case_.sample(20_000, random_state=0)
    >>> risk = np.mean((reg.predict(Z) - target) ** 2)
    >>> bool(abs(risk / reg.worst_case_.risk() - 1) < 0.05)
    True
    """

    objective: Objective
    reference: LabelledMeasure
    epsilon: float
    attained_risk: float
    classes: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    cost_weights: np.ndarray | None = None
    m: int = 512
    corrections: int = 30

    # -- geometry ----------------------------------------------------------------------------

    @property
    def n_features(self) -> int:
        return self.objective.coordinates.n_features

    @property
    def exact(self) -> bool:
        """Whether the tilts are one-dimensional, so that nothing is approximated."""
        return is_single(self.objective) and self.objective.loss.has_tilt

    @property
    def _inverse(self) -> np.ndarray:
        d = self.n_features
        return np.ones(d) if self.cost_weights is None else 1.0 / np.asarray(self.cost_weights)

    @property
    def _direction(self) -> tuple[np.ndarray, float]:
        """(coef, s): the direction that is tilted and the noise's deviation along it."""
        coef = self.objective.model.linearise(torch.zeros(1, self.n_features, **self._like))[1]
        theta = coef(torch.ones(1, **self._like))[0].detach().double().cpu().numpy()
        return theta, math.sqrt(0.5 * self.epsilon * float(self._inverse @ theta**2))

    @property
    def _like(self) -> dict[str, Any]:
        return self.objective.model_like()

    def _eta(self, s: float) -> float:
        penalty = self.objective.penalty
        return 0.0 if s == 0.0 or math.isinf(penalty) else 1.0 / (penalty * self.epsilon)

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = self.objective.model.linearise(torch.as_tensor(x, **self._like))[0]
        return found.double().cpu().numpy()

    def _particles(self, x: Tensor, y: Tensor, gen: torch.Generator) -> Iterator[tuple[Any, Any]]:
        objective = self.objective
        labels = y.to(self._like["device"]) if self.classes is not None else y.to(**self._like)
        batch = objective.batch(x.to(**self._like), labels)
        size = max(1, _ROWS // (self.m * max(1, batch.q0.shape[1])))
        adversary = Adversary(
            objective, first_candidates(objective), screening=0, corrections=self.corrections
        )
        for rows in torch.arange(len(x), device=batch.x.device).split(size):
            some = batch.take(rows)
            still = math.isinf(objective.penalty)
            modes = some.q0 if still else adversary.solve(some).q
            yield some, draw_particles(objective, some, modes, self.epsilon, self.m, gen)

    # -- the measure -------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``n`` samples: X of shape (n, d) and labels of shape (n,).

        x from the reference, then z from gamma_x: exactly along the tilted direction of a linear
        model, with untouched noise across it; otherwise one of ``m`` draws, picked by weight.
        """
        gen = make_generator(random_state)
        x, y = self.reference.sample(n, gen)
        return self._draw(x, y, gen), self._decode(y)

    @torch.no_grad()
    def _draw(self, x: Tensor, y: Tensor, gen: torch.Generator) -> np.ndarray:
        # Coordinates that the loss does not see keep the noise of Q_x.
        deviation = np.sqrt(0.5 * self.epsilon * self._inverse)
        noise = torch.randn(x.shape, generator=gen, dtype=torch.float64).numpy() * deviation
        base = x.double().cpu().numpy()
        if self.exact:
            theta, s = self._direction
            z = base + noise
            if s > 0.0:
                f, target = self._outputs(base), y.double().cpu().numpy()
                u = draw_tilted(self.objective.loss, f, target, s, self._eta(s), gen)
                across = self._inverse * theta / float(self._inverse @ theta**2)
                z += (u - noise @ theta)[:, None] * across
            return z
        out, start = base + noise, 0
        coordinates = self.objective.coordinates
        for some, found in self._particles(x, y, gen):
            weights = found.weights(self.objective.penalty).T.double().cpu()
            pick = torch.multinomial(weights, 1, generator=gen).T
            index = pick.to(found.q.device)[:, :, None].expand(1, *found.q.shape[1:])
            q = found.q.gather(0, index)[0]
            at = slice(start, start + len(some))
            seen = coordinates.encode(torch.as_tensor(noise[at], **self._like))
            zero = torch.zeros(len(some), self.n_features, **self._like)
            seen = coordinates.decode(zero, torch.zeros_like(seen), seen)
            across = noise[at] - seen.double().cpu().numpy()
            out[at] = coordinates.decode(some.x, some.q0, q).double().cpu().numpy() + across
            start += len(some)
        return out

    @torch.no_grad()
    def transport(self, X: Any, y: Any) -> np.ndarray:
        """Conditional mean of gamma_x for rows X with labels y, shape (n, d)."""
        x, labels = self._arrays(X, y)
        if self.exact:
            theta, s = self._direction
            eta = self._eta(s)
            if eta == 0.0:
                return x
            found = self.objective.loss.tilt(self._outputs(x), labels.astype(float), s, eta)
            # Stein: E u = s^2 eta E l'(f + u).
            shift = 0.5 * self.epsilon * eta * found.mean[0]
            return x + shift[:, None] * (self._inverse * theta)
        parts = []
        gen = make_generator(0)
        for some, found in self._particles(torch.as_tensor(x), torch.as_tensor(labels), gen):
            weights = found.weights(self.objective.penalty)
            q = (weights.unsqueeze(2) * found.q).sum(0)
            # The same draws without tilt: their mean is x, and its error is taken off.
            plain = torch.softmax(found.ratio, 0)
            q = q - (plain.unsqueeze(2) * found.q).sum(0) + some.q0
            parts.append(self.objective.decode(some, q).double().cpu().numpy())
        return np.concatenate(parts) if parts else x

    def _log_normaliser(self, x: Tensor, y: Tensor) -> np.ndarray:
        """Log E_{Q_x} e^{l / (lambda epsilon)} of reference points, shape (n,)."""
        penalty = self.objective.penalty
        if self.exact:
            _, s = self._direction
            eta = self._eta(s)
            f = self._outputs(x.double().cpu().numpy())
            if eta == 0.0:
                return np.zeros(len(f))
            target = y.double().cpu().numpy()
            return eta * self.objective.loss.tilt(f, target, s, eta).value
        if math.isinf(penalty):
            return np.zeros(len(x))
        values = [part.value(penalty) for _, part in self._particles(x, y, make_generator(0))]
        return torch.cat(values).double().cpu().numpy() / (penalty * self.epsilon)

    @cached_property
    def _atoms(self) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """Points of the reference, labels, masses and log normalisers."""
        x, y, w = self.reference.points(_POOL, make_generator(0))
        with torch.no_grad():
            return x, y, w.cpu().numpy(), self._log_normaliser(x, y)

    @torch.no_grad()
    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        r"""Log density of X given y, shape (n,).

        .. math:: \log \sum_{i: y_i = y} \frac{w_i}{\sum_{y_j = y} w_j}\,
            \frac{e^{\ell(z, y)/T} Q_{x_i}(z)}{E_{Q_{x_i}} e^{\ell/T}}, \qquad
            T = \lambda\varepsilon

        over the atoms of the reference, or 2000 weighted draws of a continuous one.

        Raises
        ------
        UnsupportedError
            For immutable columns, which keep the atoms of the data, and in regression, where
            every target has an atom of its own: see `log_marginal`.
        """
        if self.classes is None:
            raise UnsupportedError(
                "log_prob: in regression hardly two samples share a target, so there is no density "
                "of X given y; log_marginal(X) is the density of X"
            )
        x, labels = self._arrays(X, y)
        atoms = self._atoms[1].cpu().numpy()
        out = np.full(len(x), -np.inf)
        for label in np.unique(labels):
            rows = labels == label
            out[rows] = self._mixture(x[rows], np.flatnonzero(atoms == label))
        return out

    @torch.no_grad()
    def log_marginal(self, X: Any) -> np.ndarray:
        """Log density of X with labels left out, shape (n,); raises as `log_prob` for columns."""
        x = self._points(X).numpy()
        return self._mixture(x, np.arange(len(self._atoms[2])))

    def _mixture(self, z: np.ndarray, rows: np.ndarray) -> np.ndarray:
        from scipy.spatial.distance import cdist

        inverse = self._inverse
        if not (inverse > 0).all():
            raise UnsupportedError(
                "log_prob: immutable columns keep the atoms of the data and have no density; use "
                "sample"
            )
        x, y, w, normaliser = self._atoms
        x, labels = x.double().cpu().numpy()[rows], y[rows]
        log_mass = np.log(w[rows] / w[rows].sum()) - normaliser[rows]
        root = np.sqrt(1.0 / inverse)
        constant = 0.5 * self.n_features * math.log(math.pi * self.epsilon) - np.log(root).sum()
        _, s = self._direction if self.exact else (None, 1.0)
        eta = self._eta(s)
        out = np.empty(len(z))
        shared = len(np.unique(labels.cpu().numpy())) == 1
        for part in np.array_split(np.arange(len(z)), max(1, len(z) * len(rows) // _ROWS)):
            square = cdist(z[part] * root, x * root, "sqeuclidean")
            exponent = log_mass - square / self.epsilon
            if eta > 0.0 and shared:
                exponent += eta * self._losses(z[part], labels[:1].expand(len(part)))[:, None]
            elif eta > 0.0:
                losses = [self._losses(z[[k]].repeat(len(rows), 0), labels) for k in part]
                exponent += eta * np.stack(losses)
            out[part] = np.logaddexp.reduce(exponent, axis=1) - constant
        return out

    def _losses(self, z: np.ndarray, y: Tensor) -> np.ndarray:
        f = self.objective.model.linearise(torch.as_tensor(z, **self._like))[0]
        labels = y.to(f.device) if self.classes is not None else y.to(f)
        return self.objective.loss.value(f, labels).double().cpu().numpy()

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        gen = make_generator(0)
        x, y, w = self.reference.points(_POOL, gen)
        return x.double().cpu().numpy(), self._draw(x, y, gen), self._decode(y), w.cpu().numpy()

    def __repr__(self) -> str:
        return (
            f"GibbsWorstCase(risk={self.attained_risk:.6g}, epsilon={self.epsilon:g}, "
            f"penalty={self.objective.penalty:.6g})"
        )


_TAIL = 8.5
_BLOCK = 1 << 20
_CELLS = 64
_DROP = 40.0


def draw_tilted(
    loss: Loss, f: np.ndarray, y: np.ndarray, s: float, eta: float, generator: torch.Generator
) -> np.ndarray:
    r"""One draw of u for each sample, shape (n,); exact up to a mass of 1e-16 in the tails.

    Rejection from piecewise exponentials through the log density on a grid of step h. Between two
    nodes eta l lies below its chord, as l is convex, and -u^2 / (2 s^2) exceeds its own by at most
    h^2 / (8 s^2): so that much above the chords is an envelope, and nearly all draws are kept.

    Examples
    --------
    >>> from drojko.losses import get_loss
    >>> gen = torch.Generator().manual_seed(0)
    >>> f, y = np.zeros(40_000), np.ones(40_000)
    >>> u = draw_tilted(get_loss("absolute"), f - 9.0, y, 0.5, 2.0, gen)
    >>> bool(abs(u.mean() + 0.5) < 0.01), bool(abs(u.std() - 0.5) < 0.01)  # slope -1: N(-1/2, 1/4)
    (True, True)
    """
    n = len(f)
    if eta == 0.0:
        return s * torch.randn(n, generator=generator, dtype=torch.float64).numpy()
    if (normal := loss.gaussian_tilt(f, y, s, eta)) is not None:
        noise = torch.randn(n, generator=generator, dtype=torch.float64).numpy()
        return normal[0] + noise * normal[1]
    low, high = _windows(loss, f, y, s, eta)
    count = np.maximum(np.ceil((high - low) / (0.4 * s)).astype(np.int64), 1)
    count = 1 << np.ceil(np.log2(count)).astype(np.int64)
    out = np.empty(n)
    for size in np.unique(count):
        rows = np.flatnonzero(count == size)
        for part in np.array_split(rows, -(-len(rows) * int(size) // _BLOCK)):
            grid = np.linspace(0.0, 1.0, size + 1)
            nodes = low[part, None] + (high - low)[part, None] * grid
            out[part] = _reject(loss, f[part], y[part], s, eta, nodes, generator)
    return out


def _log_density(loss: Loss, f: np.ndarray, y: np.ndarray, s: float, eta: float, u: np.ndarray):
    at, label = np.broadcast_arrays(f[:, None], y[:, None], u)[:2] if u.ndim == 2 else (f, y)
    x, target = (torch.from_numpy(part) for part in (at + u, label.copy()))
    value = loss.value(x.flatten(), target.flatten()).numpy().reshape(u.shape)
    return eta * value - 0.5 * (u / s) ** 2


def _windows(loss, f, y, s, eta):
    """Where the mass is: between the tilts of the extreme slopes, cells that matter only."""
    steep = float(loss.lipschitz or 0.0)
    far = eta * s * s * steep + _TAIL * s
    low, high = np.empty(len(f)), np.empty(len(f))
    nodes = np.linspace(-far, far, _CELLS + 1)
    step = nodes[1] - nodes[0]
    for part in np.array_split(np.arange(len(f)), -(-len(f) * _CELLS // _BLOCK)):
        u = np.broadcast_to(nodes, (len(part), len(nodes)))
        values = _log_density(loss, f[part], y[part], s, eta, u)
        convex = values + 0.5 * (u / s) ** 2
        slope = np.diff(convex, axis=1) / step
        best = np.clip(slope * s * s, nodes[:-1], nodes[1:])
        bound = convex[:, :-1] + slope * (best - nodes[:-1]) - 0.5 * (best / s) ** 2
        kept = bound >= values.max(axis=1, keepdims=True) - _DROP
        low[part] = nodes[kept.argmax(axis=1)]
        high[part] = nodes[_CELLS - kept[:, ::-1].argmax(axis=1)]
    return low, high


def _reject(loss, f, y, s, eta, nodes, generator: torch.Generator) -> np.ndarray:
    def uniform(k: int) -> np.ndarray:
        return torch.rand(k, generator=generator, dtype=torch.float64).numpy()

    values = _log_density(loss, f, y, s, eta, nodes)
    values -= values.max(axis=1, keepdims=True)
    step = nodes[:, 1] - nodes[:, 0]
    rise = np.diff(values, axis=1)
    # Mass of e^(chord) over a cell: step * e^(larger end) * (1 - e^-|rise|) / |rise|.
    size = np.abs(rise)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(size > 1e-8, -np.expm1(-size) / size, 1.0 - 0.5 * size)
    mass = np.exp(np.maximum(values[:, :-1], values[:, 1:])) * part
    edges = np.cumsum(mass, axis=1)
    slack = step**2 / (8.0 * s * s)
    out = np.empty(len(f))
    left = np.arange(len(f))
    while len(left):
        target = uniform(len(left)) * edges[left, -1]
        cell = np.minimum((edges[left] < target[:, None]).sum(axis=1), mass.shape[1] - 1)
        slope, v = rise[left, cell], uniform(len(left))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            down = np.log1p(v * np.expm1(-np.abs(slope))) / -np.abs(slope)
        t = np.where(np.abs(slope) > 1e-8, down, v)  # falls from the larger end
        t = np.where(slope > 0.0, 1.0 - t, t)
        chord = values[left, cell] + slope * t
        u = nodes[left, cell] + step[left] * t
        # The grid's values are relative to their maximum: so is the density.
        at = nodes[left, 0]
        base = _log_density(loss, f[left], y[left], s, eta, at) - values[left, 0]
        log_ratio = _log_density(loss, f[left], y[left], s, eta, u) - base - chord - slack[left]
        kept = np.log(uniform(len(left))) < log_ratio
        out[left[kept]] = u[kept]
        left = left[~kept]
    return out
