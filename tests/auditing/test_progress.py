import pickle

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drojko import audit
from drojko.ambiguity import KL, Group, Wasserstein
from drojko.auditing import front
from drojko.auditing.progress import Progress


@pytest.fixture(scope="module")
def table():
    X, y = load_breast_cancer(return_X_y=True)
    return X[:120, :5], y[:120]


MODELS = {
    "linear": (lambda: LogisticRegression(), Wasserstein()),
    "network": (lambda: MLPClassifier((5,), max_iter=300, random_state=0), Wasserstein()),
    "forest": (lambda: RandomForestClassifier(5, random_state=0), Wasserstein()),
    "ratio": (lambda: LogisticRegression(), KL()),
    "groups": (lambda: LogisticRegression(), Group()),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_shares_say_what_is_done_and_never_pass_the_whole(table, kind, monkeypatch):
    X, y = table
    make, ambiguity = MODELS[kind]
    model = make_pipeline(StandardScaler(), make()).fit(X, y)
    seen = []

    class Recorder:
        def __enter__(self):
            return Progress(lambda text, share: seen.append((text, share)))

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(front, "progress_bar", lambda shown: Recorder())
    given = {"groups": y} if kind == "groups" else {}
    radii = [0.1, 0.3]
    report = audit(model, X, y, ambiguity, radii=radii, scale="standard", random_state=0,
                   max_evaluations=4000, verbose=True, **given)  # fmt: skip
    total = sum(share for _, share in seen)
    assert 0.5 <= total <= 1.0 + 1e-9
    assert all(share >= 0 and text for text, share in seen)
    pickle.dumps(report.problem.progress)  # the report keeps nothing of the bar


def test_the_bar_is_on_standard_error_and_ends_whole(table, capsys):
    X, y = table
    model = LogisticRegression(max_iter=2000).fit(X, y)
    quiet = audit(model, X, y, KL(), radii=[0.1], random_state=0)
    out, err = capsys.readouterr()
    assert out == err == ""
    loud = audit(model, X, y, KL(), radii=[0.1], random_state=0, verbose=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert "audit" in err
    assert loud.table.equals(quiet.table)
    assert torch.get_num_threads() == 1
