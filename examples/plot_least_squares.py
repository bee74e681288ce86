"""
===============================================
Equations that were not measured exactly
===============================================

A polynomial through measured points is a system of linear equations for its coefficients. If the
places of the measurements are uncertain, so are the powers in the system, and the solution of a
nearly singular system can be anything. The robust solution minimises the worst residual over all
systems near the measured one.
"""

import os

import matplotlib.pyplot as plt
import numpy as np

from drojko.ambiguity import Wasserstein
from drojko.problems import MinimaxProblem, least_squares

n_trials = 2 if os.environ.get("DROJKO_EXAMPLES_SHORT") else 12
truth = np.array([0.5, -1.0, 0.0, 1.5, 0.0, -0.5])
degree = len(truth) - 1


def powers(t):
    """1, t, t^2, ..."""
    return np.vander(t, degree + 1, increasing=True)


def measured(rng, error=0.05, n=14):
    """Equations as measured: places and values both with errors."""
    places = rng.uniform(-1, 1, size=n)
    values = powers(places) @ truth + error * rng.normal(size=n)
    return powers(places + error * rng.normal(size=n)), values


# %%
# One system
# ----------
#
# Every row (powers, value) is a sample; all entries move except the constant column. The ball of
# order 2 adds radius times the length of (coefficients, -1) to the root mean square residual.

A, b = measured(np.random.default_rng(3))
ball = Wasserstein(radius=0.1, immutable=[0])
problem: MinimaxProblem = least_squares(A, b, ball)
solution = problem.solve()
plain, *_ = np.linalg.lstsq(A, b, rcond=None)
print(solution)
print(solution.certificate)
certificate, _ = problem.evaluate(plain)
print(f"\nworst mean square: {certificate.upper:.4f} plain, {solution.objective:.4f} robust")

# %%
# How far from the truth, over many systems
# -----------------------------------------

radii = np.array([0.0, 0.02, 0.05, 0.1, 0.2])
grid = np.linspace(-1, 1, 201)
errors = np.zeros((n_trials, len(radii)))
for trial in range(n_trials):
    system = measured(np.random.default_rng(trial))
    for k, radius in enumerate(radii):
        ambiguity = Wasserstein(radius=radius, immutable=[0])
        x = least_squares(*system, ambiguity).solve(tol=1e-3).params
        errors[trial, k] = np.sqrt(np.mean((powers(grid) @ (x - truth)) ** 2))

# %%
# The picture
# -----------

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
left.plot(grid, powers(grid) @ truth, color="black", linewidth=1, label="truth")
left.plot(A[:, 1], b, "o", color="#999999", markersize=4, label="measured")
for x, name, colour, style in (
    (plain, "least squares", "#0072B2", "--"), (solution.params, "robust", "#D55E00", "-"),
):  # fmt: skip
    left.plot(grid, powers(grid) @ x, color=colour, linestyle=style, label=name)
left.set_ylim(-0.5, 2.5)
left.set_xlabel("place")
left.set_ylabel("value")
left.set_title("one system, radius 0.1", fontsize=10)
left.legend(frameon=False)

low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75], axis=0)
ticks = np.arange(len(radii))
right.plot(ticks, middle, color="#D55E00", marker="^", label="median")
right.fill_between(ticks, low, high, color="#D55E00", alpha=0.15, linewidth=0, label="middle half")
right.set_xticks(ticks, [f"{r:g}" for r in radii])
right.set_yscale("log")
right.set_xlabel("radius")
right.set_ylabel("root mean square distance from the truth")
right.set_title(f"{n_trials} systems", fontsize=10)
right.legend(frameon=False)
for axes in (left, right):
    axes.grid(color="#E6E6E6")
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("least_squares.png", dpi=130)
