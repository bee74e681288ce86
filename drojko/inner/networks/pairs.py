r"""Losses of several margins that cannot all be largest at one point: bounds of means of pairs.

With m_j <= u_j and (m_j + m_k)/2 <= a_jk the loss is largest where no single bound says: of the
margins in question one, the leader j, is largest. Where it is u_j - s, s >= 0, another is at most

.. math:: \min(u_k,\; u_j - s,\; 2 a_{jk} - u_j + s).

On an interval of s any one of the three may be used throughout; the loss of numbers that are linear
in s and in t² is convex, so that the ends of both intervals have its largest value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drojko.inner.networks.network import Margins

__all__ = ["TOP", "Pairs", "leading", "paired"]

#: Margins of a region that pairs are made of.
TOP = 4
_ROOM = 1e-13
_ENTRIES = 2_000_000


@dataclass(frozen=True)
class Pairs:
    """On the ball of a shell (m_j + m_k)/2 <= constant + curvature t²/2; one entry each."""

    sample: Tensor
    shell: Tensor
    first: Tensor
    second: Tensor
    constant: Tensor
    curvature: Tensor

    @staticmethod
    def none() -> Pairs:
        index, number = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
        return Pairs(index, index, index, index, number, number)

    def __len__(self) -> int:
        return len(self.sample)

    def joined(self, more: Pairs) -> Pairs:
        """Both."""
        both = {name: torch.cat([own, getattr(more, name)]) for name, own in vars(self).items()}
        return replace(self, **both)

    def onto(self, ball: Tensor) -> Pairs:
        """On shells k that lie in the balls ``ball[k]`` of these."""
        entry, shell = (self.shell[:, None] == ball).nonzero(as_tuple=True)
        parts = {name: part[entry] for name, part in vars(self).items()}
        return replace(self, **parts | {"shell": shell})

    def within(self, shells: slice) -> Pairs:
        """Those of some shells."""
        keep = (self.shell >= shells.start) & (self.shell < shells.stop)
        return Pairs(*(part[keep] for part in vars(self).values()))

    def regions(self, shells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples and shells that there are, and which of them each entry belongs to."""
        found, place = torch.unique(self.sample * shells + self.shell, return_inverse=True)
        return found // shells, found % shells, place

    def table(self, place: Tensor, top: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Constants and curvatures (R, T, T) between leading margins ``top`` (R, T).

        Of several for the same pair the lowest in the middle (R,); infinite where there is none.
        """
        r, t = top.shape
        one = (top[place] == self.first[:, None]).double()
        two = (top[place] == self.second[:, None]).double()
        known = (one.sum(1) * two.sum(1) > 0).nonzero().squeeze(1)
        at = self.constant + 0.5 * self.curvature * middle[place].square()
        known = known[at[known].argsort(descending=True)]  # what is written last is the lowest
        constant = torch.full((r, t, t), torch.inf, dtype=torch.float64)
        curvature = torch.zeros_like(constant)
        spots = (place[known] * t + one[known].argmax(1)) * t + two[known].argmax(1)
        # Duplicates are left out by hand: the order of writes to one place is not defined.
        _, spot = torch.unique(spots, return_inverse=True)
        last = torch.zeros(int(spot.max()) + 1 if len(spot) else 0, dtype=torch.long)
        last = last.scatter_reduce(0, spot, torch.arange(len(spot)), "amax", include_self=False)
        chosen, spots = known[last], spots[last]
        constant.view(-1)[spots], curvature.view(-1)[spots] = (
            self.constant[chosen], self.curvature[chosen],
        )  # fmt: skip
        other = constant.mT < constant  # each pair is written once
        return torch.where(other, constant.mT, constant), torch.where(
            other, curvature.mT, curvature
        )


def leading(u: Tensor, own: Tensor, count: int = TOP) -> Tensor:
    """The margins (R, T) with the largest of numbers (R, m)."""
    count = min(count, u.shape[1] - 1)
    return u.masked_fill(own, -torch.inf).topk(count, dim=1).indices


def paired(margins: Margins, top: Tensor, u: Tensor, a: Tensor) -> Tensor:
    """The loss's bounds (2, R) where t² is at the ends of an interval.

    ``u`` (2, R, m) bounds the margins there, ``a`` (2, R, T, T) means of pairs of ``top``.
    """
    r, t = top.shape
    parts = torch.arange(r).split(max(1, _ENTRIES // (4 * (3 * t + 1) * u.shape[2])))
    out = [_led(margins.take(p), top[p], u[:, p], a[:, p]) for p in parts]
    return torch.cat(out, 1)


def _led(margins: Margins, top: Tensor, u: Tensor, a: Tensor) -> Tensor:
    best = torch.full(u.shape[:2], -torch.inf, dtype=torch.float64)
    x = torch.stack([end.gather(1, top) for end in u])
    size = u.abs().amax((0, 2))
    for j in range(top.shape[1]):
        best = torch.maximum(best, _leader(margins, top, u, x, a[:, :, j], j))
    best = best + _ROOM * (1.0 + best.abs() + size)
    return torch.where(best.isnan(), torch.inf, best)


def _leader(margins: Margins, top: Tensor, u: Tensor, x: Tensor, a: Tensor, j: int) -> Tensor:
    """The same where margin ``j`` of ``top`` is the largest of them; a (2, R, T)."""
    own, low, mean = x[..., j : j + 1], x.mean(0), a.mean(0)
    lead = low[:, j : j + 1]
    breaks = torch.cat([lead - low, lead + low - 2.0 * mean, lead - mean], 1)
    breaks = torch.nan_to_num(breaks.clamp_min(0.0), nan=0.0, posinf=0.0)
    s = torch.cat([torch.zeros_like(lead), breaks], 1).sort(1).values  # (R, P)
    # (2, R, P - 1, T, 3) would be what may be used on each interval: slopes in s are 0, -1, 1.
    centre = 0.5 * (s[:, 1:] + s[:, :-1])[..., None]
    three = torch.stack([
        (low[:, None]).expand(-1, centre.shape[1], -1),
        (lead[:, None] - centre).expand(-1, -1, low.shape[1]),
        2.0 * mean[:, None] - lead[:, None] + centre,
    ])  # fmt: skip
    pick = three.argmin(0)
    pick[..., j] = 1
    out = torch.full(u.shape[:2], -torch.inf, dtype=torch.float64)
    for end in range(2):
        full = u[end][:, None].expand(-1, s.shape[1] - 1, -1)
        for at in (s[:, :-1], s[:, 1:]):
            at = at[..., None]
            options = torch.stack([
                x[end][:, None].expand(-1, at.shape[1], -1),
                (own[end][:, None] - at).expand(-1, -1, low.shape[1]),
                2.0 * a[end][:, None] - own[end][:, None] + at,
            ])  # fmt: skip
            m = full.scatter(2, top[:, None].expand_as(pick), options.gather(0, pick[None])[0])
            out[end] = torch.maximum(out[end], margins(m).amax(1))
        # Beyond the last break all are at most the leader, which falls.
        last = (own[end] - s[:, -1:]).expand(-1, top.shape[1])
        out[end] = torch.maximum(out[end], margins(u[end].scatter(1, top, last)))
    return out
