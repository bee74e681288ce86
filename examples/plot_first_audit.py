"""
===================================================
A table as people have it: the first audit of a CSV
===================================================

A file with text, blanks and dates, a pipeline that makes numbers of it, and an audit in the terms
of the table: which rows that could exist harm the model most, and how sure is that?
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

import drojko
from drojko.ambiguity import KL, Wasserstein
from drojko.exceptions import InvalidDataError

short = bool(os.environ.get("DROJKO_EXAMPLES_SHORT"))
rng, n = np.random.default_rng(0), 200 if short else 1500
made = pd.DataFrame(
    {
        "date": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 366, n), "D"),
        "carrier": rng.choice(["9E", "AA", "UA", "WN"], n, p=[0.1, 0.3, 0.4, 0.2]),
        "origin": rng.choice(["EWR", "JFK", "LGA"], n),
        "miles": rng.integers(90, 2600, n),
        "dep_delay": np.round(rng.gamma(2.0, 12.0, n) - 8.0, 1),
    }
)
score = 0.08 * made.dep_delay - 0.0005 * made.miles + 0.9 * (made.carrier == "9E")
made["late"] = np.where(score + rng.standard_normal(n) > 1, "yes", "no")
made.loc[rng.random(n) < 0.05, "dep_delay"] = None
made.to_csv("flights.csv", index=False)

# %%
# Dates become features
# ---------------------
#
# Whatever a model does with a date, moving one by so many seconds means nothing. Its month and its
# weekday are numbers that mean something.

table = pd.read_csv("flights.csv", parse_dates=["date"])
table["month"], table["weekday"] = table.date.dt.month, table.date.dt.day_of_week
X, y = table.drop(columns=["date", "late"]), table["late"]
fit, test = np.arange(n) % 2 == 0, np.arange(n) % 2 == 1
print(X.head(3))

text, gaps, numbers = ["carrier", "origin"], ["dep_delay"], ["miles", "month", "weekday"]
linear = make_pipeline(
    make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), text),
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), gaps),
        (StandardScaler(), numbers),
    ),
    LogisticRegression(),
).fit(X[fit], y[fit])
boosted = make_pipeline(
    make_column_transformer((OrdinalEncoder(), text), remainder="passthrough"),
    HistGradientBoostingClassifier(max_iter=20, random_state=0),
).fit(X[fit], y[fit])

# %%
# Rows that weigh more
# --------------------
#
# Sets that reweight take every model and every table: what would the loss be if the rows that the
# model gets wrong were more frequent? The bound is exact.

report = drojko.audit(boosted, X[test], y[test], KL(), radii=[0.0, 0.05, 0.1], random_state=0)
columns = ["radius", "nominal_risk", "worst_case_risk", "upper_bound", "worst_case_accuracy"]
print(report.table[columns])

# %%
# Rows that move
# --------------
#
# ``categorical_features="auto"`` reads the table: text is swapped or stays, whole numbers move in
# whole steps, blanks stay blank, and miles stay above 0. ``scale="standard"`` measures in standard
# deviations of the columns. Complete rows give a linear model its exact bound.

ball = Wasserstein(categorical_features="auto", swap_cost="auto")
complete = X[test].dropna()
radii = [0.1, 0.3] if short else [0.05, 0.1, 0.2, 0.3]
reports = {
    name: drojko.audit(
        model, rows, y[rows.index], ball, radii=radii, scale="standard", random_state=0,
        max_evaluations=20_000 if short else 100_000,
    )
    for name, model, rows in [("linear", linear, complete), ("boosted", boosted, X[test])]
}  # fmt: skip
for name, found in reports.items():
    worst = found.worst_case()
    print(name, worst, "lower bounds:", found.table.worst_case_risk.round(3).tolist())
    before, after = found.space.table(worst.before), found.space.table(worst.after)
    assert (after.month.dropna() % 1 == 0).all()
    assert (after.miles >= 0).all()
    print(pd.concat({"before": before[:3], "after": after[:3]}, axis=1).to_string())

# %%
# Messages say what to do
# -----------------------
#
# Columns in another order, or a column too many, are named, and so is the way out.

for rows in (X[X.columns[::-1]], table.drop(columns="late")):
    try:
        drojko.audit(linear, rows, y, KL(radius=0.1))
    except InvalidDataError as error:
        print(error)

drojko.save(linear, "flights.drojko")
print(Path("flights.drojko").stat().st_size, "bytes;", drojko.load("flights.drojko").predict(X[:3]))

figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
for name, found in reports.items():
    axis.plot(found.table.radius, found.table.worst_case_risk, marker="o", label=name)
axis.set_xlabel("root mean square move, in standard deviations")
axis.set_ylabel("worst-case loss (attained)")
axis.legend(frameon=False)
figure.savefig("first_audit.png", dpi=130)
