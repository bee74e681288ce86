"""
==============================================
Regression with a column that cannot move
==============================================

Disease progression from ten baseline measurements. Blood values drift between laboratories and
assays; a patient's sex and age do not. ``immutable`` says so, and the worst case respects it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from drojko import DRORegressor
from drojko.ambiguity import Wasserstein
from drojko.displays import DisplacementDisplay, RobustnessCurveDisplay

X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X = StandardScaler().set_output(transform="pandas").fit_transform(X)

# %%
# Two regressions
# ---------------
#
# The absolute error, so that a unit of risk is a unit of the target.

ball = Wasserstein(radius=0.3, immutable=["age", "sex"])
robust = DRORegressor(ball, loss="absolute", reference="empirical").fit(X, y)
plain = DRORegressor(Wasserstein(radius=0.0), loss="absolute", reference="empirical").fit(X, y)
print(robust.certificate_)

# %%
# For a linear model and the absolute error the worst case of a ball of radius r is known:
# the nominal risk plus r times the norm of the coefficients of the columns that may move.

movable = ~X.columns.isin(["age", "sex"])
nominal = np.abs(robust.predict(X) - y).mean()
exact = nominal + 0.3 * np.linalg.norm(robust.coef_[movable])
print(f"closed form {exact:.6f}, certificate {robust.certificate_.upper:.6f}")

# %%
# The picture
# -----------
#
# The two correlated blood values s1 and s2 have large coefficients of opposite sign in the plain
# model: a shift of few units ruins it. The robust model does not lean on their difference.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for model, name in ((plain, "plain"), (robust, "robust")):
    RobustnessCurveDisplay.from_estimator(
        model, X, y, ambiguity=ball, radii=np.linspace(0, 0.6, 7), name=name, ax=left
    )
left.set_title("mean absolute error in the worst case", loc="left")
DisplacementDisplay.from_estimator(robust, ax=right)
figure.savefig("robust_regression.png", dpi=130)
print("plain ", dict(zip(X.columns, plain.coef_.round(1).tolist())))
print("robust", dict(zip(X.columns, robust.coef_.round(1).tolist())))
