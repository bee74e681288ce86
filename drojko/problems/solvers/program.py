"""Linear and quadratic programs over a region, for Clarabel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from drojko.problems.constraints import Region

__all__ = ["Program", "View"]


@dataclass(frozen=True)
class View:
    """What a program sees: the region from a point of it, in sizes of moves and of values."""

    region: Region
    best: np.ndarray
    scale: np.ndarray
    unit: float


@dataclass
class Program:
    """A quadratic program in scaled moves y from a centre, for Clarabel."""

    size: int
    matrices: list[np.ndarray]
    bounds: list[np.ndarray]
    cones: list[tuple[str, int]]
    sizes: list[np.ndarray]

    @staticmethod
    def of(view: View, box: np.ndarray, extra: int) -> Program:
        """The constraints of the region, and a box around the best point, on best + scale * y."""
        region, centre, scale = view.region, view.best, view.scale
        n = len(scale)
        program = Program(n + extra, [], [], [], [])
        pad = np.zeros((n, extra))
        for where, total in region.sums:
            row = np.zeros((1, n + extra))
            row[0, where] = scale[where]
            program.add("zero", row, np.array([total - centre[where].sum()]))
        eye = np.column_stack([np.eye(n), pad])
        program.add("rows", eye, np.clip(region.upper - centre, 0.0, box) / scale)
        program.add("rows", -eye, np.clip(centre - region.lower, 0.0, box) / scale)
        for where, middle, radius in region.balls:
            rows = np.zeros((where.stop - where.start + 1, n + extra))
            rows[1:, where] = -np.diag(scale[where])
            bound = np.append(radius, centre[where] - middle)
            program.add("ball", rows, bound, radius)
        return program

    def add(
        self, kind: str, matrix: np.ndarray, bound: np.ndarray, size: float | None = None
    ) -> None:
        """Rows bound - matrix @ y in a cone, each divided by its size; of "rows" at least 0."""
        sizes = np.full(len(bound), size)
        if size is None:
            sizes = np.maximum(np.abs(matrix).max(1), 1e-300)
        self.matrices.append(matrix / sizes[:, None])
        self.bounds.append(bound / sizes)
        self.cones.append((kind, len(bound)))
        self.sizes.append(sizes)

    def solve(
        self, quadratic: np.ndarray, linear: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None, float]:
        """Minimiser of y' diag(quadratic) y / 2 + linear'y, multipliers, dual; None: failed."""
        import clarabel as clarabel_module
        from scipy.sparse import csc_array, diags_array

        clarabel: Any = clarabel_module
        kinds = {
            "zero": clarabel.ZeroConeT,
            "rows": clarabel.NonnegativeConeT,
            "ball": clarabel.SecondOrderConeT,
        }
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_threads = 1
        solver = clarabel.DefaultSolver(
            csc_array(diags_array(quadratic)),
            linear,
            csc_array(np.vstack(self.matrices)),
            np.concatenate(self.bounds),
            [kinds[kind](size) for kind, size in self.cones],
            settings,
        )
        found = solver.solve()
        if str(found.status) not in ("Solved", "AlmostSolved"):
            return None, None, -math.inf
        multipliers = np.array(found.z) / np.concatenate(self.sizes)
        return np.array(found.x), multipliers, float(found.obj_val_dual)
