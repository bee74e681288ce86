"""Everyday preprocessing: missing values, pipelines in files, categories that are merged."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from torch import nn

from drojko import DROClassifier, audit, load
from drojko._persist import save
from drojko.ambiguity import KL, MMD, CVaR, Group, TotalVariation, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError

A, B = make_classification(200, 4, random_state=0, flip_y=0.1)
GAPS = A.copy()
GAPS[::7, 1] = GAPS[3, 0] = np.nan
EQUAL = np.full(200, 1 / 200)


def cross_entropy(model, X):
    return -np.log(np.clip(model.predict_proba(X)[np.arange(200), B], 1e-6, 1.0))


# Missing values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingClassifier(max_iter=5),
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()),
    ],
    ids=["boosting", "imputer", "indicator"],
)
@pytest.mark.parametrize("ambiguity", [KL(0.1), CVaR(0.5), TotalVariation(0.2)], ids=repr)
def test_rows_with_missing_values_are_reweighted(model, ambiguity):
    """The losses are those of the model's own answers, and the set sees nothing else."""
    model.fit(GAPS, B)
    report = audit(model, GAPS, B, ambiguity, random_state=0)
    losses = cross_entropy(model, GAPS)
    row = report.table.iloc[0]
    assert row.nominal_risk == pytest.approx(losses.mean(), rel=1e-12)
    exact = ambiguity.on(A, EQUAL).dual(losses).value
    assert row.worst_case_risk == pytest.approx(exact, rel=1e-9)
    assert report.table.filter(like="accuracy").iloc[0, 0] == model.score(GAPS, B)
    drawn = report.samples(400)
    assert drawn.x1.isna().any()
    assert drawn[["x2", "x3"]].notna().all(axis=None)
    moved = report.displacement().set_index("feature")
    assert moved.loc[["x0", "x1"], "share"].isna().all()
    assert moved.share.sum() == pytest.approx(1.0)


def test_groups_with_missing_values():
    model = HistGradientBoostingClassifier(max_iter=5).fit(GAPS, B)
    found = audit(model, GAPS, B, Group(), groups=B, random_state=0)
    losses = cross_entropy(model, GAPS)
    assert found.table.worst_case_risk[0] == pytest.approx(
        max(losses[k == B].mean() for k in (0, 1)), rel=1e-9
    )


def test_a_missing_text_is_a_category():
    frame = pd.DataFrame(GAPS, columns=list("abcd"))
    frame["k"] = pd.Series(np.random.default_rng(0).choice(list("xyz"), 200), dtype=object)
    frame.loc[5:40, "k"] = np.nan
    encoder = make_column_transformer((OneHotEncoder(), ["k"]), (SimpleImputer(), list("abcd")))
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, B)
    row = audit(model, frame, B, KL(0.1), random_state=0).table.iloc[0]
    assert row.nominal_risk == pytest.approx(cross_entropy(model, frame).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("ambiguity", "reference"),
    [(Wasserstein(0.1), "gaussian"), (MMD(radius=0.1), "kde"), (KL(0.1), "gaussian")],
    ids=repr,
)
def test_where_rows_move_they_must_be_complete(ambiguity, reference):
    model = HistGradientBoostingClassifier(max_iter=5).fit(GAPS, B)
    with pytest.raises(InvalidDataError, match=r"column 'x[01]' holds nan"):
        audit(model, GAPS, B, ambiguity, reference=reference)


def test_missing_values_stay_where_rows_move():
    frame = pd.DataFrame(GAPS, columns=list("abcd"))
    model = HistGradientBoostingClassifier(max_iter=5).fit(frame, B)
    report = audit(model, frame, B, Wasserstein(0.3), random_state=0, max_evaluations=4_000)
    worst, table = report.worst_case(), report.space.table
    before, after = table(worst.before), table(worst.after)
    pd.testing.assert_frame_equal(after.isna(), before.isna())
    assert ((after - before) ** 2).fillna(0.0).sum(axis=1) @ worst.mass <= 0.09 * (1 + 1e-9)
    answers = model.predict_proba(after)[np.arange(len(after)), worst.labels]
    np.testing.assert_allclose(worst.loss_after, -np.log(np.clip(answers, 1e-6, 1)), rtol=1e-9)
    assert report.table.worst_case_risk[0] > report.table.nominal_risk[0] + 0.01


def test_modules_take_complete_rows():
    with pytest.raises(InvalidDataError, match="holds nan"):
        audit(nn.Linear(4, 2), GAPS, B, KL(0.1))


# Pipelines in files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        OneHotEncoder(handle_unknown="ignore"),
        OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist"),
        OrdinalEncoder(),
        SimpleImputer(add_indicator=True),
        FunctionTransformer(np.log1p),
        KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform"),
        make_column_transformer((OneHotEncoder(), [0]), (SimpleImputer(), [1, 2, 3])),
    ],
    ids=repr,
)
def test_pipelines_with_usual_steps_are_saved(step, tmp_path):
    X = np.abs(np.round(A))
    if "sparse_output" in step.get_params():
        step.set_params(sparse_output=False)
    ball = Wasserstein(0.01)
    model = make_pipeline(step, DROClassifier(ball, reference="empirical")).fit(X, B)
    save(model, tmp_path / "m.drojko")
    np.testing.assert_array_equal(load(tmp_path / "m.drojko").predict(X), model.predict(X))


def test_code_of_ones_own_is_refused(tmp_path):
    step = FunctionTransformer(lambda x: x)
    model = make_pipeline(step, DROClassifier(reference="empirical")).fit(A, B)
    with pytest.raises(UnsupportedError, match="is code"):
        save(model, tmp_path / "m.drojko")


# Rare categories that an encoder merges ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["one-hot", "ordinal", "few"])
def test_merged_categories_keep_the_gradients(kind):
    """The copy answers as the model does, and its bound is exact."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "x": rng.normal(size=150),
        "c": rng.choice(list("abcdef"), 150, p=[0.4, 0.3, 0.2, 0.05, 0.03, 0.02]),
        "d": rng.choice(["u", "v"], 150),
    })  # fmt: skip
    label = (table.x + (table.c == "a") + rng.normal(size=150) > 0.5).astype(int)
    encoder = {
        "one-hot": OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist"),
        "ordinal": OrdinalEncoder(min_frequency=20),
        "few": OneHotEncoder(max_categories=3),
    }[kind]
    encode = ColumnTransformer([("n", StandardScaler(), ["x"]), ("c", encoder, ["c", "d"])])
    model = make_pipeline(encode, LogisticRegression()).fit(table, label)
    report = audit(model, table, label, Wasserstein(), radii=[0.0, 0.3], random_state=0)
    row = report.table.iloc[-1]
    assert row.proof == "ridge-1d"
    assert row.upper_bound == pytest.approx(row.worst_case_risk, rel=1e-9)
    loss = -model.predict_log_proba(table)[np.arange(150), label]
    assert row.nominal_risk == pytest.approx(loss.mean(), rel=1e-9)
    slope = abs(model[-1].coef_[0, 0] / model[0].named_transformers_["n"].scale_[0])
    assert row.nominal_risk < row.worst_case_risk <= row.nominal_risk + 0.3 * slope
