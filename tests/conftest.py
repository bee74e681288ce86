"""Options and fixtures of the whole suite.

``--dtype`` and ``--device`` choose what the numeric tests run on, ``--seed`` changes every seed
that a test takes from the fixtures: a test must not live off a lucky one.
"""

import os
import signal
import threading

# Before matplotlib or any OpenMP pool starts: no window, and no pools that wait for each other.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import hypothesis.core
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # noqa: TID251  the tests own their process
# A job in the background ignores Ctrl-C, which the tests of interrupts raise.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a change is judged by what it changed; ``--seed`` draws
# others.
hypothesis.settings.register_profile("drojko", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("drojko")


def pytest_addoption(parser):
    group = parser.getgroup("drojko")
    group.addoption("--dtype", choices=["float64", "float32"], default="float64")
    group.addoption("--device", default="cpu", help="torch device of the numeric tests")
    group.addoption("--seed", type=int, default=0, help="changes every seed of the suite")
    group.addoption("--long", action="store_true", help="1000 damaged files, 200 interrupts")
    group.addoption("--problems", type=int, default=168, help="how many random linear problems")


def pytest_configure(config):
    seed = config.getoption("--seed")
    if seed:
        hypothesis.settings.load_profile("search")
    if seed and config.getoption("--hypothesis-seed", None) is None:
        hypothesis.core.global_force_seed = seed


def pytest_report_header(config):
    options = " ".join(f"--{name}={config.getoption(name)}" for name in ("dtype", "device", "seed"))
    return f"drojko: {options}"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def seed(request) -> int:
    """The integer from ``--seed``; add constants to it for several streams."""
    return request.config.getoption("--seed")


@pytest.fixture(scope="session")
def dtype(request) -> torch.dtype:
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def generator(seed) -> torch.Generator:
    """A CPU generator, fresh for each test."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rng(seed) -> np.random.Generator:
    """A numpy generator, fresh for each test."""
    return np.random.default_rng(seed)
