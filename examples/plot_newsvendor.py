"""
==========================================
How much to stock when demand may change
==========================================

A shop orders before it knows the demand: what is left over costs a little, what is missing a lot.
The best order for the past is a quantile of past demand. How much more to order if the future is
not like the past, and what does that insurance cost?

The demand here is that of a bicycle shop: some sixty weeks with a season, and a few weeks of
exceptional sales.
"""

import os

import matplotlib.pyplot as plt
import numpy as np

from drojko.ambiguity import KL, Wasserstein
from drojko.problems import newsvendor

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
rng = np.random.default_rng(7)
weeks = np.arange(60)
demand = 40 + 12 * np.sin(2 * np.pi * weeks / 52) + rng.gamma(2.0, 6.0, size=60)
demand[rng.choice(60, 4, replace=False)] += 45
holding, shortage = 1.0, 4.0

# %%
# One order, its worst case, and a certificate
# --------------------------------------------
#
# Within a Wasserstein ball demand may shift by 8 bicycles in the root mean square, but never
# below zero. The worst case is known exactly, so that both sides of the certificate meet, and the
# solver proves how far the order is from the best one.

ball = Wasserstein(radius=8.0, bounds=(0.0, None))
solution = newsvendor(demand, ball, holding=holding, shortage=shortage).solve()
print(solution)
print(solution.certificate)

# %%
# Orders and their cost for growing radii
# ---------------------------------------
#
# Reweighting the weeks of the past (KL) cannot imagine a week worse than the worst one; moving
# demand (Wasserstein) can.

radii = np.linspace(0.0, 16.0, 5 if short else 17)
moved = [
    newsvendor(
        demand, Wasserstein(radius=r, bounds=(0.0, None)), holding=holding, shortage=shortage
    ).solve()
    for r in radii
]
divergences = np.linspace(0.0, 0.5, 5 if short else 17)
reweighted = [
    newsvendor(demand, KL(radius=r), holding=holding, shortage=shortage).solve()
    for r in divergences
]

# %%
# The picture
# -----------
#
# Left: where the worst case moves each week's demand. Weeks that already sell more than the order
# sell more still, the slow ones less. Right: the order, and the cost that it guarantees.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
image = solution.worst_case.transport(demand[:, None])[:, 0]
left.vlines(weeks, demand, image, color="#BBBBBB", linewidth=1.5)
left.plot(weeks, demand, "o", color="#0072B2", markersize=4, label="past demand")
left.plot(weeks, image, "^", color="#D55E00", markersize=4, label="worst case")
left.axhline(solution.params, color="black", linewidth=1, linestyle="--")
left.annotate(
    f"order {solution.params:.0f}", (0, solution.params), xytext=(0, 3),
    textcoords="offset points", fontsize=9,
)  # fmt: skip
left.set_xlabel("week")
left.set_ylabel("bicycles")
left.set_title("the worst demand within 8 bicycles", fontsize=10)
left.legend(frameon=False, fontsize=9)

for solutions, colour, marker, name in (
    (moved, "#D55E00", "^", f"moved demand: radius up to {radii[-1]:g} bicycles"),
    (reweighted, "#009E73", "s", f"reweighted weeks: KL up to {divergences[-1]:g} nats"),
):  # fmt: skip
    orders = [s.params for s in solutions]
    costs = [s.objective for s in solutions]
    right.plot(orders, costs, color=colour, marker=marker, markersize=4, label=name)
right.set_xlabel("order")
right.set_ylabel("guaranteed cost per week")
right.set_title("from no insurance (lower left) to a lot of it", fontsize=10)
right.legend(frameon=False, fontsize=9)
for axes in (left, right):
    axes.grid(color="#E6E6E6")
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("newsvendor.png", dpi=130)
