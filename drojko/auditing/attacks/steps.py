"""Columns of whole numbers: the best candidates improved by whole steps, one column at a time."""

from __future__ import annotations

import numpy as np
import torch

from drojko.auditing.attacks.pool import Pool
from drojko.auditing.reading.problem import AuditProblem

__all__ = ["in_steps"]

#: Rounds at most, columns that are tried in each, and times that the price is put right.
_ROUNDS, _COLUMNS, _PRICES = 12, 32, 3
#: Rows of one question.
_ATONCE = 65_536


def in_steps(problem: AuditProblem, pool: Pool, radii: list[float], penalties: list[float]) -> None:
    """Layers of the source "learned" whose whole numbers cannot gain by one step more or less.

    What a search among fractions found has been rounded; of rows that rounding puts back where
    they were, some gain by a whole step all the same.
    """
    whole = problem.cost.whole
    if whole is None or not (whole & problem.cost.mutable).any():
        return
    columns = _columns(problem, np.flatnonzero(whole & problem.cost.mutable))
    for size in problem.progress.over((*radii, *penalties), "whole steps", 0.1):
        before = None
        for _ in range(_PRICES if size in radii else 1):
            price = pool.plan(problem.w, size**2).penalty if size in radii else size
            if before is not None and abs(price - before) <= 0.03 * before:
                break
            if not price > 0:  # more budget than use
                price = 1e-3 * float(problem.nominal.abs().max()) / max(size**2, 1e-300)
            _climb(problem, pool, price, columns)
            before = price


def _columns(problem: AuditProblem, columns: np.ndarray) -> np.ndarray:
    """Those in which a step of all rows changes the losses most for its cost, where many are."""
    if len(columns) <= _COLUMNS:
        return columns
    gains = []
    for j in columns:
        x = problem.x.clone()
        x[:, j] += 1.0
        change = (problem.losses(problem.cost.project(x), problem.y) - problem.nominal).abs()
        gains.append(float(problem.w @ change) / problem.cost.weights[j])
    return columns[np.argsort(gains)[::-1][:_COLUMNS]]


def _climb(problem: AuditProblem, pool: Pool, price: float, columns: np.ndarray) -> None:
    x, y, cost, risk = pool.best(problem.w, price)
    value = risk - price * cost
    for _ in range(_ROUNDS):
        if problem.late:
            break
        best, best_value = (x, cost, risk), value
        for j in columns:
            for step in (-1.0, 1.0):
                trial = x.clone()
                trial[:, j] += step
                trial = problem.cost.snap(problem.cost.project(trial))
                extra = problem.cost.weighted_square(trial - problem.x)
                spent = cost + extra - problem.cost.weighted_square(x - problem.x)
                blocks = zip(trial.split(_ATONCE), y.split(_ATONCE), strict=True)
                found = torch.cat([problem.losses(a, b) for a, b in blocks])
                wins = found - price * spent > best_value + 1e-12 * (1.0 + best_value.abs())
                best_value = torch.where(wins, found - price * spent, best_value)
                parts = zip((trial, spent, found), best, strict=True)
                best = tuple(
                    torch.where(wins.unsqueeze(1) if a.ndim == 2 else wins, a, b) for a, b in parts
                )
        if torch.equal(best_value, value):
            break
        (x, cost, risk), value = best, best_value
        pool.add(x, y, cost, risk, "learned")
