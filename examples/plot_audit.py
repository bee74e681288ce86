"""
====================================
Audit a model before it is deployed
====================================

Two models of the same biopsies, trained by scikit-learn as usual: a regularised logistic
regression and a small neural network. Their held-out accuracy is about the same. An audit asks a
further question: if the next clinic's measurements shift a little, in the worst direction, how bad
does each of them get, and which measurements carry the shift? Nothing is trained again.
"""

import os

import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import audit
from drojko.ambiguity import CVaR, Wasserstein
from drojko.auditing import compare
from drojko.displays import RobustnessCurveDisplay

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
X, y = load_breast_cancer(return_X_y=True, as_frame=True)
y = y.map({0: "malignant", 1: "benign"})
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.1 if short else 0.5, stratify=y, random_state=0
)
models = {
    "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
    "network": make_pipeline(
        StandardScaler(), MLPClassifier((8 if short else 32,), max_iter=2000, random_state=0)
    ),
}
for name, model in models.items():
    print(f"{name}: held-out accuracy {model.fit(X_train, y_train).score(X_test, y_test):.3f}")

# %%
# The worst shift of each size
# ----------------------------
#
# Distances are in standard deviations of the columns. The scaler inside the pipelines is part of
# the model: rows move in their own units, and the table shows them so.

radii = [0.0, 0.1, 0.3] if short else [0.0, 0.05, 0.1, 0.2, 0.3]
reports = {
    name: audit(
        model, X_test, y_test, Wasserstein(), radii=radii, scale="standard", name=name,
        random_state=0,
    )
    for name, model in models.items()
}  # fmt: skip
columns = ["model", "radius", "worst_case_risk", "upper_bound", "proof", "worst_case_accuracy"]
print(compare(reports)[columns].round(3).to_string(index=False))

# %%
# Which measurements, and which biopsies
# --------------------------------------

network = reports["network"]
share = network.displacement().groupby("feature")["share"].sum()
print(network.certificate())
print(share.nlargest(5).round(3).to_string())
print(network.moves(1)[["worst texture", "worst area", "target", "prediction", "loss"]])

# %%
# Without moving anything: the worst tenth of the patients
# --------------------------------------------------------
#
# Sets that reweight are exact for any model, trees too.

for name, model in models.items():
    worst = audit(model, X_test, y_test, CVaR(alpha=0.1), name=name).table.iloc[0]
    print(
        f"{name}: log loss {worst.nominal_risk:.3f}, {worst.worst_case_risk:.3f} on the worst 10 %"
    )

# %%
# The picture, and the page
# -------------------------
#
# The page is one file: a slider over the radii, sortable tables, the most harmful moves.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, report in reports.items():
    RobustnessCurveDisplay.from_report(report, name=name, ax=axes[0])
    RobustnessCurveDisplay.from_report(report, name=name, ax=axes[1], metric="accuracy")
figure.savefig("audit.png", dpi=150)
print(network.to_html("audit.html"))
