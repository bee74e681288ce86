"""
===============================
How large should the radius be?
===============================

The radius says how far the world may be from the data. Three ways to choose it: by the shift that
one wants to be safe against, compared on held-out data with cross-validated certificates; by
asking how far the data themselves may be from the truth (robust Wasserstein profile inference);
and, for divergences, such that the worst case is a confidence bound of the risk.

The data: a disease's progress after a year from ten measurements of 442 patients.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import DRORegressor
from drojko.ambiguity import ChiSquare, Wasserstein
from drojko.displays import RobustnessCurveDisplay
from drojko.estimators import select_radius

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
X, y = load_diabetes(return_X_y=True, as_frame=True)
train, test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
model = make_pipeline(
    StandardScaler(), DRORegressor(Wasserstein(radius=0.0), reference="empirical")
)

# %%
# By the shift to be safe against
# -------------------------------
#
# Say that measurements may be off by 0.2 standard deviations in the root mean square. Each
# candidate is trained on four fifths of the rows; on the last fifth its worst case within 0.2 is
# certified. The risk without a shift would have chosen a radius near zero.

feared = 0.2
radii = np.r_[0.0, np.geomspace(0.01, 1.0, 5 if short else 13)].round(4)
by_cv = select_radius(model, train, y_train, radii=radii, at=feared, random_state=0)
print(by_cv)

# %%
# By how far the data may be from the truth
# -----------------------------------------
#
# The true coefficients are optimal for the true law. At which radius does the ball around the
# sample hold, with probability 0.95, some law for which they are optimal? This radius is about
# sampling error alone, and shrinks as more data come in.

by_profile = select_radius(model, train, y_train, method="rwpi", level=0.05, random_state=0)
print(by_profile)

# %%
# By confidence in the risk
# -------------------------
#
# A divergence reweights the patients instead of moving them. Its radius can be calibrated: the
# worst case is an upper confidence bound of the risk. Here of the model that least squares finds.

nominal = model.fit(train, y_train)
squares = (y_test - nominal.predict(test)) ** 2
calibrated = select_radius(
    DRORegressor(ChiSquare(radius=0.1)), test, y_test, method="calibration", level=0.05
)
bound = ChiSquare(radius=calibrated.radius).dual(squares).value
print(calibrated)
print(f"held-out squared error {squares.mean():.0f}, with 95 % confidence below {bound:.0f}")

# %%
# The three models under every shift
# ----------------------------------
#
# Left: what cross-validation saw, and where the choices lie. Right: the worst case of each model
# on rows that none has seen, exact for linear models. Without a shift the three are alike, so that
# the protection costs nothing here; far away from the data they are not.

chosen = {"least squares": 0.0, "profile": by_profile.radius, "cross-validation": by_cv.radius}
colours = ("#0072B2", "#D55E00", "#009E73")
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")

table = by_cv.table[by_cv.table["radius"] > 0]
for column, text, style in (
    ("upper_bound", f"worst case within {feared:g}", "-"),
    ("nominal_risk", "no shift", "--"),
):
    mean, error = table[column], table[f"{column}_se"]
    left.plot(table["radius"], mean, style, color="#4D4D4D", marker="o", ms=4, label=text)
    left.fill_between(table["radius"], mean - error, mean + error, color="#4D4D4D", alpha=0.12)
for (name, radius), colour in zip(chosen.items(), colours, strict=True):
    if radius > 0:
        left.axvline(radius, color=colour, label=f"{name}: {radius:.2g}")
left.set_xscale("log")
left.set_xlabel("radius of training")
left.set_ylabel("held-out squared error")
left.set_title("five folds, mean ± standard error", fontsize=10)
left.grid(color="#E6E6E6")
left.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False)

for name, radius in chosen.items():
    model.set_params(droregressor__ambiguity__radius=radius).fit(train, y_train)
    RobustnessCurveDisplay.from_estimator(
        model,
        test,
        y_test,
        radii=np.linspace(0, 0.4, 5 if short else 17),
        name=f"{name} ({radius:.2g})",
        ax=right,
    )
right.axvline(feared, color="#4D4D4D", linestyle=":", linewidth=1)
right.set_title("the worst of all shifts, on unseen rows", fontsize=10)
figure.savefig("choose_radius.png", dpi=130)

# %%
# The certificate of the last model, on its training data.

print(model[-1].certificate_)
