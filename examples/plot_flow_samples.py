"""
============================
Flows towards a sample
============================

Some references are known by a sample and nothing else: no density, no gradient. Two things are
learned from one here. A flow carries a normal distribution to it, step by step. And the worst case
of a robust classifier gets a map that says where its points would go.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons

from drojko import DROClassifier
from drojko.ambiguity import KL
from drojko.flows import JKOFlow, SemiDualScheme
from drojko.flows.functionals import DivergenceTo
from drojko.measures import Gaussian

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
X, y = make_moons(n_samples=420 if short else 1000, noise=0.12, random_state=0)

# %%
# A flow without densities
# ------------------------
#
# Each step is a game between a map and a potential, which learns the logarithm of the ratio of the
# flow's density to that of the sample. One network holds the map from the start; only the previous
# one is kept beside it, so that the last step costs what the first one did. ``normaliser`` is the
# mean of the learned ratio over samples kept apart, and 1 where it is exact.

steps = 2 if short else 8
scheme = SemiDualScheme(
    iterations=50 if short else 500,
    batch_size=256,
    target_batch=256,
    critic="logistic",
    decay=(0.5, 0.9),
    tol=0.0,
)
start = Gaussian([0.5, 0.25], 0.1 * np.eye(2))
result = JKOFlow(DivergenceTo(X), scheme, step_size=0.5).run(start, steps, random_state=0)
print(result)
print(result.history[["step", "energy", "movement", "normaliser"]].round(3).to_string(index=False))

# %%
# A worst case from a sample
# --------------------------
#
# In a Kullback-Leibler ball the worst case gives the samples other weights, and ``lower``, ``dual``
# and ``upper`` of the learned potential hold the exact value on these samples between them. The
# map moves points instead; it warns where it has not learned to.

model = DROClassifier(KL(radius=0.15), reference="empirical", inner="semidual", random_state=0)
model.fit(X, y)
worst = model.worst_case_
found = worst.potential_flow(0)
print(f"class 0: {found.lower:.4f} <= {found.dual:.4f} <= {found.upper:.4f}")

# %%
# The picture
# -----------
#
# Left and in the middle, the flow after the first and after the last step, over the sample. Right,
# where the worst case moves points: towards the model's boundary, and across.

fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharex=True, sharey=True)
for ax, k in zip(axes[:2], (1, steps)):
    ax.scatter(*X.T, s=6, color="0.8", label="sample")
    points = result.measures[k].sample(600, torch.Generator().manual_seed(0))
    ax.scatter(*points.T, s=6, color="C0", label="flow")
    ax.set_title(f"step {k}")
axes[0].legend(loc="lower left", markerscale=2)

ax = axes[2]
pick = np.random.default_rng(0).choice(len(X), 120, replace=False)
move = worst.transport(X[pick], y[pick]) - X[pick]
for k in (0, 1):
    rows = y[pick] == k
    ax.scatter(*X[pick][rows].T, s=8, facecolor="none", edgecolor=f"C{k + 1}", label=f"class {k}")
    ax.quiver(
        *X[pick][rows].T, *move[rows].T, color=f"C{k + 1}", angles="xy", scale_units="xy", scale=1,
        width=0.004,
    )  # fmt: skip
line = np.linspace(-1.5, 2.5, 2)
coef, intercept = model.coef_[0], model.intercept_[0]
ax.plot(line, -(intercept + coef[0] * line) / coef[1], color="black", lw=1)
ax.set(title="worst case", xlim=(-1.6, 2.6), ylim=(-1.1, 1.6))
ax.legend(loc="lower left")
for ax in axes:
    ax.set_xlabel("$x_0$")
axes[0].set_ylabel("$x_1$")
fig.tight_layout()
fig.savefig("flow_samples.png", dpi=120)
