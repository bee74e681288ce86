"""
==========================
What the worst case does
==========================

A robust model is robust against something: a distribution that drojko computes and shows. Here two
small networks learn the two moons, one from the data as they are, one for the worst distribution
within a Wasserstein ball. The worst case of the second one is a map: it says where each sample
would have to go.
"""

import os

import matplotlib.pyplot as plt
from sklearn.datasets import make_moons

from drojko import DROClassifier
from drojko.ambiguity import Wasserstein
from drojko.displays import WorstCaseDisplay

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
X, y = make_moons(n_samples=60 if short else 300, noise=0.15, random_state=0)

# %%
# Before and after
# ----------------
#
# Radius 0 is plain training. With radius 0.2 samples may move by 0.2 in the root mean square; the
# few that gain most by crossing over move farthest.

settings = {
    "model": "mlp",
    "hidden_layer_sizes": (8,) if short else (32, 32),
    "max_iter": 40 if short else 200,
    "tol": 0.1 if short else 1e-2,
    "inner": "pointwise" if short else "icnn",
    "random_state": 0,
}
plain = DROClassifier(Wasserstein(radius=0.0), **settings).fit(X, y)
robust = DROClassifier(Wasserstein(radius=0.2), **settings).fit(X, y)
print(robust.certificate_)

# %%
# The certificate tells apart what is attained and what is proven: the lower bound is the risk of
# the distribution in the picture, the upper bound holds for every distribution in the ball. In the
# plane it is found by branch and bound, and lies half a per cent above.

attacked = Wasserstein(radius=0.2)
for name, model in (("plain", plain), ("robust", robust)):
    certificate = model.robust_certificate(X, y, attacked)
    print(
        f"{name:>6}: risk {certificate.nominal_risk:.3f}, "
        f"{certificate.lower:.3f} in the worst case found within radius 0.2"
    )

# %%
# The picture
# -----------
#
# Hollow marks are draws of the reference, filled ones the worst case, arrows the transport between
# them. Without a radius nothing moves.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True, layout="constrained")
WorstCaseDisplay.from_estimator(plain, ax=axes[0], n_samples=160)
axes[0].set_title("plain training (radius 0)", loc="left")
WorstCaseDisplay.from_estimator(robust, ax=axes[1], n_samples=160)
axes[1].set_title("trained for the worst case (radius 0.2)", loc="left")
axes[0].get_legend().remove()
figure.savefig("worst_case.png", dpi=130)
