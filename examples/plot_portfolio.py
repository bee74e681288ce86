"""
=====================================================
A portfolio that does not believe its own history
=====================================================

Twelve assets, two and a half years of weekly returns to decide on and ten years to live with the
decision. Minimising the mean loss of the worst tenth of the weeks (CVaR) on so few weeks promises
more than it keeps. A portfolio for the worst distribution near the data believes less.

The returns are simulated from a market and two sectors with heavy tails, so that the truth is
known: sizes are those of weekly stock returns.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from drojko.ambiguity import ChiSquare, Wasserstein
from drojko.problems import portfolio

n_histories = 1 if os.environ.get("DROJKO_EXAMPLES_SHORT") else 12
TAIL = 0.1
names = [f"asset {i + 1}" for i in range(12)]


def weekly_returns(rng, weeks):
    """A market and two sectors, t-distributed with 4 degrees of freedom, and own noise."""
    t = rng.standard_t(4, size=(weeks, 15)) / np.sqrt(2.0)
    market, sectors, own = t[:, :1], t[:, 1:3], t[:, 3:]
    beta = np.linspace(0.6, 1.4, 12)
    sector = np.repeat(np.eye(2), 6, axis=0).T
    noise = np.tile([0.010, 0.015, 0.020, 0.025, 0.030, 0.035], 2)
    returns = 0.0015 * beta + 0.018 * beta * market + 0.012 * sectors @ sector + noise * own
    return pd.DataFrame(returns, columns=names)


def cvar(weights, returns):
    """Mean loss of the worst tenth of the weeks."""
    losses = np.sort(-returns.to_numpy() @ weights)[::-1]
    return losses[: int(TAIL * len(losses))].mean()


# %%
# One history, one radius
# -----------------------
#
# Weights and threshold are decided together. The worst case adds radius / sqrt(tail) times the
# length of the weight vector to the CVaR: ambiguity is a reason to diversify.

rng = np.random.default_rng(0)
past = weekly_returns(rng, 130)
solution = portfolio(past, Wasserstein(radius=0.01), tail=TAIL).solve()
print(solution)
print(solution.certificate)

# %%
# What was promised, and what came
# --------------------------------
#
# For each radius: the CVaR that the portfolio promises (its certificate) and the one it has in
# the ten years to come, over several histories.

radii = [0.0, 0.0025, 0.005, 0.01, 0.02]
sizes = [0.0, 0.02, 0.05, 0.1, 0.2]
families = {
    "moved returns (Wasserstein)": [Wasserstein(radius=r) for r in radii],
    "reweighted weeks (chi-square)": [ChiSquare(radius=r) for r in sizes],
}
promised = {name: np.zeros((n_histories, 5)) for name in families}
came = {name: np.zeros((n_histories, 5)) for name in families}
shown = []
for history in range(n_histories):
    rng = np.random.default_rng(history)
    past, future = weekly_returns(rng, 130), weekly_returns(rng, 5200)
    for name, sets in families.items():
        for k, ambiguity in enumerate(sets):
            found = portfolio(past, ambiguity, tail=TAIL).solve(tol=1e-3)
            if history == 0 and name.startswith("moved"):
                shown.append(found)
            promised[name][history, k] = found.objective
            came[name][history, k] = cvar(found.params["weights"], future)

# %%
# The picture
# -----------
#
# Left: weights of one history. Right: promises (dashed) below what came (solid) are broken ones.
# Robust portfolios lose about as much as the others in a bad week, but say so beforehand.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
bottom = np.zeros(len(radii))
colours = plt.get_cmap("tab20")(np.arange(12))
for j, name in enumerate(names):
    height = np.array([s.params["weights"][j] for s in shown])
    left.bar(range(len(radii)), height, bottom=bottom, color=colours[j], label=name)
    bottom += height
left.set_xticks(range(len(radii)), [f"{100 * r:g} %" for r in radii])
left.set_xlabel("radius: root mean square change of a week's returns")
left.set_ylabel("weights")
left.set_title("ambiguity diversifies", fontsize=10)
left.legend(frameon=False, fontsize=7, ncol=1, loc="center left", bbox_to_anchor=(1.0, 0.5))

for (name, values), colour, marker in zip(came.items(), ("#D55E00", "#009E73"), "^s"):
    steps = np.arange(5)
    right.plot(steps, 100 * values.mean(0), color=colour, marker=marker, label=f"{name}: came")
    right.plot(steps, 100 * promised[name].mean(0), color=colour, linestyle="--",
               label="    promised")  # fmt: skip
ticks = [f"{100 * r:g} %\n{s:g}" for r, s in zip(radii, sizes)]
right.set_xticks(range(5), ticks)
right.set_xlabel("radius (Wasserstein; chi-square below)")
right.set_ylabel("mean loss of the worst tenth of weeks (%)")
right.set_title(f"ten years that follow, mean of {n_histories} histories", fontsize=10)
right.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
right.grid(color="#E6E6E6")
figure.savefig("portfolio.png", dpi=130)
