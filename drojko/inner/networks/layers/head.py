r"""Networks cut behind their first units: lines above the cut, one hidden layer below it.

Backward substitution from a margin stops at the units of what is affine in the displacement d,

.. math:: m(d) \le c + a^\top d + \sum_j q_j\, \phi(b_j + w_j^\top d),

a perceptron with one hidden layer, of which there are quadratic bounds. What the first layer loses
to lines is most of what a network of few layers loses on small balls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drojko.inner.networks.activations import Activation
from drojko.inner.networks.layers.chain import between, composed
from drojko.inner.networks.layers.entry import Entry
from drojko.inner.networks.layers.operations import Piece, Unit, flat
from drojko.inner.networks.layers.run import Run
from drojko.inner.networks.linear import Head
from drojko.inner.networks.network import Margins, Network

__all__ = ["FirstUnits", "TwoLayers"]

_EPS = torch.finfo(torch.float64).eps
#: Hidden units and coordinates at most: a bound takes the square of these times the units.
_UNITS, _SIDE = 8192, 512
#: Entries of the matrix between two layers.
_BETWEEN = 1_000_000


@dataclass(frozen=True)
class FirstUnits:
    """The units of what is affine in the displacement, piece by piece.

    Attributes
    ----------
    places : tuple of (node, Piece)
        One after the other, they are the hidden layer.
    weight : Tensor of shape (width, r)
    act : Activation
        Of all of them.
    """

    places: tuple[tuple[int, Piece], ...]
    weight: Tensor
    act: Activation

    @staticmethod
    def of(entry: Entry) -> FirstUnits | None:
        """Of a program; None: they are of several kinds, too many, or none that curve."""
        if "first units" not in entry.kept:
            entry.kept["first units"] = FirstUnits._found(entry)
        return entry.kept["first units"]

    @staticmethod
    def _found(entry: Entry) -> FirstUnits | None:
        program = entry.program
        places: list[tuple[int, Piece]] = []
        for k in program.units:
            operation = program.nodes[k].operation
            if program.straight[program.nodes[k].sources[0]]:
                assert isinstance(operation, Unit)
                places += [(k, piece) for piece in operation.pieces]
        width = sum(program.nodes[k].count for k, _ in places)
        acts = {piece.act for _, piece in places}
        if len(acts) != 1 or width > _UNITS or entry.dim > _SIDE:
            return None
        act = acts.pop()
        if not act.anchored:
            return None
        parts = []
        for k, piece in places:
            rows = entry.first_rows(program.nodes[k].sources[0])
            if rows is None:
                return None
            parts.append(piece.rate * rows)
        return FirstUnits(tuple(places), torch.cat(parts), act)

    @property
    def stops(self) -> set[int]:
        """Where substitution ends."""
        return {k for k, _ in self.places}

    def head(self, run: Run, rows: Tensor, levels: Tensor) -> Head:
        """Of ``rows @ outputs + levels``, (n, K) and (n,), over the region of a run."""
        program, last = run.program, len(run.program.nodes) - 1
        level, along, at = run.cut(last, rows.unsqueeze(1), levels.unsqueeze(1), self.stops)
        known: dict[int, list[Tensor]] = {}
        for k in self.stops:
            level, along = self._affine(run, k, at.get(k), level, along)
        parts: list[list[Tensor]] = [[], [], [], [], []]
        for k, piece in self.places:
            source = program.nodes[k].sources[0]
            if source not in known:
                low, high = run.intervals[source]
                raw = run.values[source], run.sizes[source], low, high
                known[source] = [flat(part) for part in raw]
            value, size, low, high = known[source]
            size = piece.rate * size + abs(piece.shift)
            room = 8.0 * _EPS * size
            row = at.get(k)
            row = torch.zeros_like(value) if row is None else flat(row).expand_as(value)
            found = (
                piece.rate * value + piece.shift, size, piece.rate * low + piece.shift - room,
                piece.rate * high + piece.shift + room, piece.height * row,
            )  # fmt: skip
            for part, own in zip(parts, found, strict=True):
                part.append(own)
        centre, size, low, high, pull = (torch.cat(part, 1) for part in parts)
        one = _units((self.weight,), (), (self.act,), centre, size, pull, program.slack)
        return Head(one, pull, level[:, 0], [(low, high)], along[:, 0])

    def _affine(
        self, run: Run, k: int, at: Tensor | None, level: Tensor, along: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is affine of a unit itself, and how far torch's may be from it."""
        operation = run.program.nodes[k].operation
        assert isinstance(operation, Unit)
        if at is None:
            return level, along
        pull = flat(at, 2)
        off = pull.abs().sum(2) * (operation.error + 8.0 * _EPS * abs(operation.level))
        level = level + pull.sum(2) * operation.level + off
        if operation.slope:
            source = run.program.nodes[k].sources[0]
            more, added = run.substituted(source, operation.slope * at, torch.zeros_like(level))
            level, along = level + more, along + added
        return level, along


@dataclass(frozen=True)
class TwoLayers:
    """The first two layers of units, where all that follows comes from the second.

    Attributes
    ----------
    ends : (int, int)
        Their nodes.
    weights : (Tensor, Tensor)
    bias : Tensor
        Of the second.
    acts : (Activation, Activation)
    """

    ends: tuple[int, int]
    weights: tuple[Tensor, Tensor]
    bias: Tensor
    acts: tuple[Activation, Activation]

    @staticmethod
    def of(entry: Entry) -> TwoLayers | None:
        """Of a program; None: it is of another kind, or the matrix between them too large."""
        if "two layers" not in entry.kept:
            entry.kept["two layers"] = TwoLayers._found(entry)
        return entry.kept["two layers"]

    @staticmethod
    def _found(entry: Entry) -> TwoLayers | None:
        program, first = entry.program, FirstUnits.of(entry)
        if first is None or len(first.places) > 1 or len(program.units) < 2:
            return None
        one, two = program.units[:2]
        if not (between(program, 0, one) and between(program, one, two)):
            return None
        if any(k < two for node in program.nodes[two + 1 :] for k in node.sources):
            return None
        pieces = [program.nodes[k].operation for k in (one, two)]
        if any(not isinstance(p, Unit) or p != _plain(p) for p in pieces):
            return None
        counts = [program.nodes[k].count for k in (one, two)]
        if counts[0] * counts[1] > _BETWEEN:
            return None
        acts = pieces[0].pieces[0].act, pieces[1].pieces[0].act  # type: ignore[union-attr]
        if not acts[1].anchored:
            return None
        matrix, offset = composed(program, one, two - 1)
        return TwoLayers((one, two), (first.weight, matrix), offset, acts)

    def head(self, run: Run, rows: Tensor, levels: Tensor) -> Head:
        """Of ``rows @ outputs + levels``, (n, K) and (n,), over the region of a run."""
        program, (one, two) = run.program, self.ends
        last = len(program.nodes) - 1
        level, _, at = run.cut(last, rows.unsqueeze(1), levels.unsqueeze(1), {two})
        spans = [run.intervals[program.nodes[k].sources[0]] for k in self.ends]
        source = program.nodes[one].sources[0]
        centre, size = flat(run.values[source]), flat(run.sizes[source])
        pull = flat(at[two]).expand(len(centre), -1)
        biases = self.bias[:0], self.bias
        network = _units(self.weights, biases, self.acts, centre, size, pull, program.slack)
        between = [(flat(low), flat(high)) for low, high in spans]
        return Head(network, pull, level[:, 0], between)


def _units(
    weights: tuple[Tensor, ...], biases: tuple[Tensor, ...], acts: tuple[Activation, ...],
    centre: Tensor, size: Tensor, pull: Tensor, slack: float,
) -> Network:  # fmt: skip
    """Layers of units as a network with no more to it, whose rows are their pulls."""
    nothing: Any = None
    none = pull.new_zeros(len(pull), 1)
    margins = Margins(nothing, "none", pull[:1], pull.unsqueeze(1), none, none[:, 0])
    network = Network(weights, biases, acts, centre, size, margins)
    # Rounding of what led to the centre is that of the whole program.
    return replace(network, size=size * max(1.0, slack / network.slack))


def _plain(unit: Unit) -> Unit:
    """The same with one piece alone, as it is."""
    return Unit((Piece(unit.pieces[0].act),), unit.slopes, unit.values)
