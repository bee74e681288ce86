"""
======================================
Tables with categories in some columns
======================================

A category cannot move by a tenth: it stays or it is swapped for another one. Here some columns of
the breast cancer data become categories, as a form with "low", "middle" and "high" would record
them, and a linear model is trained for a worst case that moves the numbers and swaps the
categories, each swap at its price.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, StandardScaler

from drojko import DROClassifier
from drojko.ambiguity import Wasserstein, one_hot_groups

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
X, y = load_breast_cancer(return_X_y=True, as_frame=True)
rows = np.random.default_rng(0).permutation(len(X))[: 80 if short else 300]
numbers = ["mean radius", "mean texture", "mean smoothness"]
binned = ["worst concavity", "worst symmetry", "mean compactness"]
table, y = X.iloc[rows][numbers + binned].reset_index(drop=True), y.iloc[rows].to_numpy()
bins = KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf")
codes = bins.fit_transform(table[binned]).astype(int)
for j, name in enumerate(binned):
    table[name] = np.array(["low", "middle", "high"])[codes[:, j]]
print(table.head(3))

# %%
# One group of columns for each category
# --------------------------------------
#
# The encoder makes three columns of each category. ``one_hot_groups`` tells the ambiguity set which
# of them belong together: a worst case holds exactly one 1 in each group.

encode = ColumnTransformer(
    [
        ("scale", StandardScaler(), numbers),
        ("encode", OneHotEncoder(sparse_output=False), binned),
    ],
    verbose_feature_names_out=False,
).set_output(transform="pandas")
groups = one_hot_groups(encode.fit(table))
print(groups)

# %%
# Robust against swaps, or not
# ----------------------------
#
# Swap costs are in the units of the squared distance, here squared standard deviations: a swap at
# cost 0.3 is as dear as moving one column by 0.55 of its spread. Both models have the same radius;
# the first one takes for granted that categories are recorded without error.

radius, prices = 0.25, (np.inf, 0.3)
models = {}
for name, price in zip(("categories stay", "categories swap"), prices, strict=True):
    ambiguity = Wasserstein(radius, categorical_features=groups, swap_cost=price)
    model = DROClassifier(
        ambiguity, reference="empirical", tol=1.0 if short else 1e-2, random_state=0
    )
    models[name] = make_pipeline(encode, model).fit(table, y)
    print(name, model.certificate_, sep="\n")

rows = encode.transform(table)
attack = Wasserstein(radius, categorical_features=groups, swap_cost=prices[1])
for name, pipeline in models.items():
    certificate = pipeline[-1].robust_certificate(rows, y, attack)
    print(
        f"trained as if {name}: risk {certificate.nominal_risk:.3f}, "
        f"{certificate.upper:.3f} in the worst case with swaps"
    )

# %%
# What the worst case does
# ------------------------
#
# The share of the budget that goes into each column: for a category the shares of its columns add
# up. Swaps go where the model relies on a category most for its price.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
positions = np.arange(len(numbers) + len(binned))
for k, (name, pipeline) in enumerate(models.items()):
    model = pipeline[-1]
    frame = model.worst_case_.displacement()
    spent = frame.groupby("feature")["share"].sum()
    budget = [spent[column] for column in numbers] + [spent[group].sum() for group in groups]
    axes[0].barh(positions - 0.2 + 0.4 * k, budget, height=0.38, color=f"C{k}", label=name)
    weights = dict(zip(model.feature_names_in_, model.coef_[0], strict=True))
    reliance = [abs(weights[column]) for column in numbers]
    reliance += [max(weights[c] for c in g) - min(weights[c] for c in g) for g in groups]
    axes[1].barh(positions - 0.2 + 0.4 * k, reliance, height=0.38, color=f"C{k}")
axes[0].set_yticks(positions, [*numbers, *binned])
axes[1].set_yticks(positions, [])
for axis in axes:
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_title("share of the transport budget in its own worst case", loc="left")
axes[1].set_title("largest effect on the score: per deviation, or per swap", loc="left")
axes[0].legend(frameon=False, loc="lower right")
figure.savefig("mixed_data.png", dpi=130)
