"""What takes a device, on a CUDA device: the answers of the processor."""

import numpy as np
import pytest
import torch

from drojko import DROClassifier, audit
from drojko.ambiguity import KL, Wasserstein
from drojko.flows.icnn.map_state import MapState
from drojko.nn import RobustLoss, worst_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
DEVICE = "cuda"


def data(n=120):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(n, 4))
    return X, (X[:, 0] * X[:, 1] + 0.3 * draw.normal(size=n) > 0.0).astype(int)


@pytest.mark.parametrize("ambiguity", [Wasserstein(0.2), KL(0.1)], ids=["order 2", "KL"])
def test_a_network_and_its_certificate_are_those_of_the_processor(ambiguity):
    X, y = data()
    options = {"hidden_layer_sizes": (8,), "max_iter": 4, "random_state": 0}
    one, other = (
        DROClassifier(ambiguity, model="mlp", reference="empirical", device=device, **options)
        for device in ("cpu", DEVICE)
    )
    one.fit(X, y)
    other.fit(X, y)
    np.testing.assert_allclose(
        other.parameters_["weights.0"], one.parameters_["weights.0"], rtol=1e-5, atol=1e-7
    )
    assert other.certificate_.lower == pytest.approx(one.certificate_.lower, rel=1e-5)
    assert other.certificate_.lower <= other.certificate_.upper
    moved = other.worst_case_.transport(X, y) if ambiguity.moves else X
    assert np.isfinite(moved).all()


def test_audits_take_modules_on_a_device():
    X, y = data(60)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 2))
    module = module.double().to(DEVICE)
    report = audit(module, X, y, ambiguity=Wasserstein(0.2), random_state=0)
    assert next(module.parameters()).device.type == torch.device(DEVICE).type
    assert all(one.lower <= one.upper for one in report.certificates)
    assert report.certificates[-1].lower > report.certificates[-1].nominal_risk


def test_your_own_loop_stays_on_its_device():
    X, y = data(40)
    x, target = torch.tensor(X, device=DEVICE), torch.tensor(y, device=DEVICE)
    module = torch.nn.Linear(4, 2, device=DEVICE, dtype=torch.float64)
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    moved = worst_inputs(module, loss, x, target, Wasserstein(0.5))
    assert moved.device == x.device
    assert loss(module(moved), target).mean() > loss(module(x), target).mean()
    value = RobustLoss(KL(0.1))(loss(module(moved), target))
    value.backward()
    assert torch.isfinite(module.weight.grad).all()


def test_an_icnn_steps_as_on_the_processor():
    points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = []
    for device in ("cpu", DEVICE):
        own = points.to(device)
        flow = MapState.start(own, generator=torch.Generator().manual_seed(1), hidden=(8, 8))
        for _ in range(5):
            flow.advance(own, None, lambda at: 0.9 * at + 0.1, 1e-2, 2)
        images.append(flow.image(own, None).cpu())
    torch.testing.assert_close(images[1], images[0], rtol=1e-8, atol=1e-8)
