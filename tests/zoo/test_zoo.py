"""A part of the zoo that takes seconds: each pipeline once at least, and each kind of model.

``python -m tests.zoo`` goes through all of it.
"""

import pytest

from tests.zoo.models import MODELS
from tests.zoo.pipelines import PIPELINES
from tests.zoo.run import SETS, animal, meaningful, trained

PAIRS = [
    ("numbers", "torch"),
    ("numbers", "skorch"),
    ("one-hot", "logistic"),
    ("ordinal", "forest"),
    ("target", "calibrated"),
    ("imputed", "neighbours"),
    ("categories", "boosting"),
    ("categories", "lightgbm"),
    ("counts", "svc"),
    ("counts", "torchscript"),
    ("log", "ridge"),
    ("bins", "threshold"),
    ("polynomial", "drojko linear"),
    ("selected", "mlp"),
    ("dates", "sgd"),
    ("dates", "boosted numbers"),
]
#: What has no meaning, or no formula: what the audit says about it.
SAYS = {"file": ("a model file cannot", "is code", "type")}


@pytest.mark.parametrize(("pipeline", "model"), PAIRS)
def test_everyday_models_are_audited_and_saved(pipeline, model):
    assert meaningful(pipeline, model)
    found = animal(pipeline, model, fresh=False)
    assert {one.task for one in found} >= set(SETS)
    for one in found:
        said = one.state == "says" and any(w in one.words for w in SAYS.get(one.task, ()))
        assert one.state == "works" or said, (one.task, one.words)


def test_two_outputs_are_refused_in_a_sentence():
    for one in animal("log", "two outputs", fresh=False):
        assert one.state == "says"
        assert "one output at a time" in one.words or one.task == "file"


@pytest.mark.parametrize("pipeline", sorted({*PIPELINES} - {"categories"}))
def test_training_behind_a_pipeline(pipeline):
    for kind in SETS:
        one = trained(pipeline, kind)
        assert one.state == "works", (kind, one.words)


def test_all_kinds_of_models_are_there():
    assert len(MODELS) >= 10
    assert len(PIPELINES) == 12
