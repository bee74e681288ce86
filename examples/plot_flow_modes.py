"""
=========================================
Eight modes, each with its proper share
=========================================

The gradient flow of KL(rho | g) carries a Gaussian to a target g, but a mode that starts far away
gets too little mass: no velocity field of moderate size moves mass between separate modes.
Rejection steps do, and since their density is known as well, importance weights say how good the
result is: log Z (here 0) with a standard error, and an effective sample size.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from drojko import DROClassifier
from drojko.ambiguity import KL
from drojko.flows import ImportanceCorrectedScheme, JKOFlow
from drojko.flows.functionals import KLDivergence
from drojko.inner import Importance
from drojko.measures import Gaussian, GaussianMixture

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))

# %%
# The target, and the flow
# ------------------------
#
# Two JKO steps, then as many rejection steps as bring the effective sample size to 0.999.

angle = np.arange(8) * np.pi / 4
means = np.stack([np.cos(angle) - 1, np.sin(angle)], axis=1)
target = GaussianMixture(means=means, covariances=[0.01 * np.eye(2)] * 8)

scheme = ImportanceCorrectedScheme(
    width=48,
    iterations=200 if short else 400,
    batch_size=256 if short else 512,
    integration_steps=3,
    n_particles=5000 if short else 50_000,
    n_calibration=20_000 if short else 100_000,
)
flow = JKOFlow(KLDivergence(target.log_prob), scheme, step_size=[0.1, 0.4])
result = flow.run(Gaussian([0.0, 0.0], np.eye(2)), 2, random_state=0)
print(result.history[["step", "energy", "rejections", "effective_sample_size"]])
last = result.measures[-1]
print(last)
print(last.evidence(2000 if short else 10_000, random_state=1))

# %%
# Shares of the modes, before and after the rejection steps
# ---------------------------------------------------------

n = 1000 if short else 4000
generator = torch.Generator().manual_seed(2)
before = type(last)(last.base, target.log_prob, last.stages[:-1]).sample(n, generator)
after = last.sample(n, generator)
for name, x in (("JKO steps alone", before), ("with rejections", after)):
    nearest = torch.cdist(x, torch.from_numpy(means)).argmin(1)
    print(name, np.round(np.bincount(nearest, minlength=8) / n, 3))

# %%
# The worst case of a classifier whose reference has separate parts
# -----------------------------------------------------------------
#
# Under a KL set points keep their place and masses change. `inner="importance"` samples the worst
# case of a continuous reference, and says which way it took.

rng = np.random.default_rng(0)
centres = np.array([[-2.5, -1.0], [0.5, -2.5], [2.0, 1.0], [-0.5, 2.5]])
X = np.concatenate([rng.normal(c, 0.9, size=(100, 2)) for c in centres])
y = np.repeat([0, 1], 200)
inner = Importance(n_calibration=8000, n_draws=1000) if short else "importance"
classifier = DROClassifier(
    ambiguity=KL(radius=0.05), reference="mixture", inner=inner, random_state=0
).fit(X, y)
worst = classifier.worst_case_
print(classifier.certificate_)
print(worst.choice)
Z, labels = worst.sample(400, random_state=0)

# %%
# The picture
# -----------

figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
for ax, x, title in (
    (axes[0], before, "JKO steps alone"),
    (axes[1], after, "with rejection steps"),
):
    ax.plot(*x.T.numpy(), ".", markersize=2, alpha=0.4, color="tab:blue")
    ax.plot(*means.T, "x", color="black")
    ax.set(title=title, xlim=(-2.6, 0.6), ylim=(-1.6, 1.6), aspect="equal")
for k, colour in enumerate(("tab:blue", "tab:orange")):
    axes[2].plot(*X[y == k].T, "o", mfc="none", color=colour, alpha=0.35, label=f"class {k}")
    axes[2].plot(*Z[labels == k].T, ".", color=colour, label=f"class {k}, worst case")
w, b = classifier.coef_[0], classifier.intercept_[0]
line = np.array([-4.5, 4.0])
axes[2].plot(line, -(w[0] * line + b) / w[1], "k--", linewidth=1)
axes[2].set(title="KL worst case of a classifier", xlim=(-5, 4), ylim=(-4.6, 4.6))
axes[2].legend(fontsize=8)
figure.savefig("flow_modes.png", dpi=130)
