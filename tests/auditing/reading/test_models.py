"""The audited model is the user's: its own predict, and copies that answer as it does."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_expit, logsumexp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, load_wine, make_classification
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC, NuSVC

from drojko import DROClassifier, audit
from drojko.ambiguity import KL, Sinkhorn, Wasserstein
from drojko.exceptions import InvalidDataError, UnsupportedError

A, B = make_classification(200, 4, random_state=0, flip_y=0.1)


# Accuracy ----------------------------------------------------------------------------------------


class Reserved(LogisticRegression):
    """Answers "neither" where it is not sure."""

    def predict(self, X):
        sure = np.abs(self.decision_function(X)) > 0.5
        return np.where(sure, super().predict(X), -1)


@pytest.mark.parametrize(
    "model",
    [
        FixedThresholdClassifier(LogisticRegression(), threshold=0.1),
        FixedThresholdClassifier(
            make_pipeline(StandardScaler(), LogisticRegression()), threshold=0.9
        ),
        TunedThresholdClassifierCV(LogisticRegression(), scoring="balanced_accuracy"),
        NuSVC(nu=0.1),
        SGDClassifier(loss="modified_huber", random_state=0),
        CalibratedClassifierCV(LinearSVC()),
        Reserved(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_accuracy_is_that_of_predict(model):
    X, y = make_classification(400, 5, weights=[0.9], flip_y=0.1, random_state=0)
    model.fit(X, y)
    report = audit(model, X, y, KL(radius=0.1), random_state=0)
    row = report.table.iloc[0]
    assert row.nominal_accuracy == pytest.approx(model.score(X, y), abs=1e-12)
    moves = report.moves(len(X)).xs("after", level="state").loc[np.arange(len(X))]
    right = model.predict(X) == y
    assert row.worst_case_accuracy == pytest.approx(moves["mass"] @ right, rel=1e-9)
    np.testing.assert_array_equal(moves["prediction"], model.predict(X))


def test_accuracy_of_a_threshold_at_rows_that_moved():
    X, y = make_classification(400, 5, weights=[0.9], flip_y=0.1, random_state=0)
    model = FixedThresholdClassifier(LogisticRegression(), threshold=0.1).fit(X, y)
    report = audit(model, X, y, Wasserstein(radius=0.2), random_state=0)
    worst, row = report.worst_case(), report.table.iloc[0]
    assert row.nominal_accuracy == pytest.approx(0.6175)
    right = model.predict(worst.after) == worst.labels
    assert row.worst_case_accuracy == pytest.approx(worst.mass @ right, rel=1e-12)
    assert row.proof == "ridge-1d"  # of the model inside


def test_probabilities_of_a_machine_that_do_not_decide():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # probability=True is on its way out
        model = SVC(probability=True, random_state=0).fit(A[:30], B[:30])
    report = audit(model, A, B, KL(radius=0.1), random_state=0)
    assert report.table.nominal_accuracy[0] == pytest.approx(model.score(A, B))


# Copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wrapped"), [(load_iris, False), (load_wine, False), (load_iris, True)]
)
def test_one_class_against_the_rest(data, wrapped):
    """p_k is sigmoid(f_k) over their sum; where it is nearly 0, its logarithm is still known."""
    X, y = data(return_X_y=True)
    model = SGDClassifier(loss="log_loss", random_state=0)
    model = (OneVsRestClassifier(model) if wrapped else model).fit(X, y)
    logs = log_expit(model.decision_function(X))
    losses = logsumexp(logs, axis=1) - logs[np.arange(len(y)), y]
    report = audit(model, X, y, KL(radius=0.1), random_state=0)
    assert report.table.nominal_risk[0] == pytest.approx(losses.mean(), rel=1e-9)
    exact = KL(radius=0.1).dual(losses).value
    assert report.table.worst_case_risk[0] == pytest.approx(exact, rel=1e-8)
    assert wrapped or losses.max() > -np.log(
        1e-6
    )  # beyond what probabilities are read as without a copy
    assert report.about["gradients"]


class Late(LogisticRegression):
    """Another answer for the last rows alone."""

    def predict_proba(self, X):
        p = super().predict_proba(X)
        return np.where((X[:, :1] == self.odd_), 0.5, p)


class Far(LogisticRegression):
    """Another answer outside a box around the data."""

    def predict_proba(self, X):
        return super().predict_proba(np.clip(X, -self.edge_, self.edge_))


@pytest.fixture
def as_ours(monkeypatch):
    """Let a class pass for one of scikit-learn, whose copies are tried."""

    def change(kind):
        monkeypatch.setattr(kind, "__module__", "sklearn.linear_model._logistic")
        return kind()

    return change


def test_copies_are_compared_on_all_rows(as_ours):
    X, y = make_classification(1000, 4, random_state=0)
    model = as_ours(Late).fit(X, y)
    model.odd_ = X[-1, 0]
    report = audit(model, X, y, KL(radius=0.1), random_state=0)
    assert "differ at 1 of 1000 points" in " ".join(report.findings)
    assert "no gradients" in report.about["note"]
    p = model.predict_proba(X)[np.arange(len(y)), y]
    assert report.table.nominal_risk[0] == pytest.approx(-np.log(p).mean(), rel=1e-6)
    row = report.checks[report.checks.check == "copy answers as the model"].iloc[0]
    assert (row["value"], row["passed"]) == (1, False)


@pytest.mark.parametrize(
    ("ball", "edge"),
    [
        (Wasserstein(radius=0.1), float(np.abs(A).max())),
        (Wasserstein(radius=1.0), 4.0),
        (Wasserstein(penalty=0.1), 4.0),
        (Wasserstein(radius=0.1, bounds=(-9.0, 9.0)), 8.5),
    ],
    ids=repr,
)
def test_copies_are_compared_on_rows_moved_out(as_ours, ball, edge):
    model = as_ours(Far).fit(A, B)
    model.edge_ = edge
    report = audit(model, A, B, ball, random_state=0, max_evaluations=20_000)
    assert "the model's own answers are used" in " ".join(report.findings)
    assert not report.about["gradients"]
    worst = report.worst_case()
    p = model.predict_proba(worst.after)[np.arange(len(worst.labels)), worst.labels]
    # Probabilities are read between 1e-6 and 1.
    assert report.table.worst_case_risk[0] == pytest.approx(worst.mass @ -np.log(p), rel=1e-4)


def test_copies_that_answer_as_the_model_stay():
    for model in (
        LogisticRegression(C=1e6),
        make_pipeline(MinMaxScaler(), LogisticRegression(C=100.0)),
        MLPClassifier((3,), max_iter=20, random_state=0),
        DROClassifier(Wasserstein(0.1), reference="empirical", dtype="float32"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(A, B)
        ball = Wasserstein(radius=3.0)
        report = audit(model, A[:20], B[:20], ball, inner="pointwise", random_state=0)
        row = report.checks[report.checks.check == "copy answers as the model"].iloc[0]
        assert (row["value"], row["passed"]) == (0, True)
        assert report.about["gradients"]


@pytest.mark.parametrize("scaler", [MaxAbsScaler(clip=True), MinMaxScaler((-1, 1), clip=True)])
def test_clipped_columns_have_a_largest_loss(scaler):
    """In the scaler's box a row has no loss above softplus(-y b + |coef|_1)."""
    model = make_pipeline(scaler, LogisticRegression(C=100.0)).fit(A, B)
    last = model[-1]
    sign = 2.0 * B - 1.0
    most = np.logaddexp(0.0, np.abs(last.coef_).sum() - sign * last.intercept_[0])
    if isinstance(scaler, MaxAbsScaler):
        assert most.max() == pytest.approx(12.40, abs=0.005)
    report = audit(model, A, B, Wasserstein(radius=20.0), random_state=0, max_evaluations=40_000)
    row = report.table.iloc[0]
    assert 0.9 * most.mean() <= row.worst_case_risk <= most.mean() * (1 + 1e-9)
    assert row.proof != "ridge-1d"
    assert not row.upper_bound < most.mean()
    assert "clip=True" in report.about["note"]
    with pytest.raises(UnsupportedError, match="clips"):
        audit(model, A, B, Sinkhorn(0.1, radius=0.1))


def test_columns_that_a_pipeline_drops():
    X = pd.DataFrame(A, columns=list("abcd")).assign(name=["x", "y"] * 100)
    keep = ColumnTransformer([("n", StandardScaler(), ["a", "b"])])
    report = audit(make_pipeline(keep, LogisticRegression()).fit(X, B), X, B, Wasserstein(0.1))
    assert report.table.proof[0] == "ridge-1d"
    assert set(report.displacement()["feature"]) == set("abcd")


# Modules -----------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))).squeeze(1)


class Cast(Net):
    def forward(self, x):
        return super().forward(x.float())


class Twice(torch.nn.Sequential):
    def forward(self, x):
        return 2.0 * super().forward(x)


@pytest.fixture(scope="module")
def net():
    module = Net().eval()
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=gen) * 0.5)
    return module


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("how", ["script", "trace", "freeze", "cast"])
def test_scripted_modules_are_audited_as_they_are(net, how):
    if how == "cast":
        module = Cast()
        module.load_state_dict(net.state_dict())
    elif how == "trace":
        module = torch.jit.trace(net, torch.zeros(3, 4))
    else:
        module = torch.jit.script(net)
        module = torch.jit.freeze(module) if how == "freeze" else module
    plain = audit(net, A, B, KL(radius=0.1), random_state=0).table
    found = audit(module, A, B, KL(radius=0.1), random_state=0).table
    numbers = ["nominal_risk", "worst_case_risk", "upper_bound", "nominal_accuracy"]
    np.testing.assert_allclose(found[numbers], plain[numbers], rtol=1e-5)
    few = slice(0, 8)
    ball = audit(module, A[few], B[few], Wasserstein(radius=0.3), inner="pointwise").table
    assert ball.worst_case_risk[0] > ball.nominal_risk[0] * 1.01  # gradients, too


def test_a_sequence_with_a_forward_of_its_own():
    module = Twice(torch.nn.Linear(4, 1))
    with torch.no_grad():
        f = module.double()(torch.tensor(A)).squeeze(1).numpy()
    report = audit(module, A, B, KL(radius=0.1), random_state=0)
    losses = np.logaddexp(0.0, (1.0 - 2.0 * B) * f)
    assert report.table.nominal_risk[0] == pytest.approx(losses.mean(), rel=1e-9)


# Several outputs ---------------------------------------------------------------------------------


def test_models_of_several_outputs_say_so():
    Y, labels = np.c_[A[:, 0], A[:, 1]], np.c_[B, 1 - B]
    ball = Wasserstein(radius=0.1)
    for model, y in (
        (Ridge().fit(A, Y), Y),
        (Ridge().fit(A, Y), A[:, 0]),
        (MultiOutputClassifier(LogisticRegression()).fit(A, labels), labels),
        (MultiOutputClassifier(LogisticRegression()).fit(A, labels), B),
        (torch.nn.Linear(4, 2), Y),
        (torch.nn.Linear(4, 2), A[:, 0]),
    ):
        with pytest.raises(InvalidDataError, match="one output at a time"):
            audit(model, A, y, ball)
