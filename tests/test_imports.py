"""What importing drojko costs and changes, and which room knows which (promises 10 and 14)."""

import ast
import importlib.metadata
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import drojko

ROOT = Path(drojko.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in MODULES]
LAZY = {"click", "cvxpy", "jinja2", "matplotlib", "ot", "pandas", "rich", "skops", "zuko"}


def in_a_fresh_process(script):
    """Run a script that prints one JSON value and return the value."""
    environment = {"PYTHONPATH": ":".join([str(ROOT.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.promise(14)
def test_import_loads_nothing_heavy():
    loaded = in_a_fresh_process("""
        import json, sys
        import drojko
        drojko.__all__, dir(drojko), drojko.__version__
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
    """)
    assert not {"torch", "sklearn", "numpy", "scipy"} & set(loaded)
    assert not LAZY & set(loaded)


@pytest.mark.promise(14)
def test_using_every_public_name_loads_no_more_than_torch_and_scikit_learn():
    extra = in_a_fresh_process("""
        import json, sys
        import torch, sklearn.base, sklearn.callback
        before = set(sys.modules)
        import drojko
        for name in drojko.__all__:
            getattr(drojko, name)
        print(json.dumps(sorted(set(sys.modules) - before)))
    """)
    forbidden = {"click", "cvxpy", "matplotlib", "ot", "skops", "sympy", "zuko"}
    assert not {name for name in extra if name.split(".")[0] in forbidden}
    assert not {name for name in extra if name.startswith(("torch._dynamo", "torch._inductor"))}


@pytest.mark.promise(14)
@pytest.mark.promise(10)
def test_import_changes_no_global_setting():
    before, after = in_a_fresh_process("""
        import hashlib, json, os, random, warnings
        import numpy, torch, sklearn.base, sklearn.callback

        def digest(value):
            return hashlib.sha256(repr(value).encode()).hexdigest()

        def settings():
            return {
                "filters": repr(warnings.filters),
                "dtype": repr(torch.get_default_dtype()),
                "device": repr(torch.get_default_device()),
                "threads": torch.get_num_threads(),
                "grad": torch.is_grad_enabled(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "anomaly": torch.is_anomaly_enabled(),
                "validate": torch.distributions.Distribution._validate_args,
                "print": repr(numpy.get_printoptions()),
                "errors": repr(numpy.geterr()),
                "config": repr(sklearn.get_config()),
                "environment": digest(sorted(os.environ.items())),
                "torch": digest(torch.get_rng_state().tolist()),
                "numpy": digest(numpy.random.get_state()),
                "random": digest(random.getstate()),
            }

        before = settings()
        import drojko
        for name in drojko.__all__:
            getattr(drojko, name)
        print(json.dumps([before, settings()]))
    """)
    assert before == after


@pytest.mark.parametrize("name", drojko.__all__)
def test_public_names_exist_and_are_documented(name):
    value = getattr(drojko, name)
    assert name in dir(drojko)
    assert value.__doc__


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = drojko.nothing
    assert set(drojko._HOME) <= set(drojko.__all__)


def test_version_is_that_of_the_metadata():
    assert importlib.metadata.version("drojko") == drojko.__version__


# The source itself ------------------------------------------------------------------------------


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node):
    """Yield the dotted names that a tree imports, one per imported module or name."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def without_functions(tree):
    """The statements that run on import: neither function bodies nor type-checking blocks."""
    for node in tree.body:
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not checking and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


@pytest.mark.promise(14)
@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_heavy_packages_are_imported_inside_functions(path):
    if "_cli" in path.parts:
        pytest.skip("the command line is not imported by the library")
    names = {
        name.split(".")[0] for node in without_functions(parsed(path)) for name in imports(node)
    }
    assert not names & LAZY


#: Functions that draw from the global generator unless they are given one.
SAMPLERS = {
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "kaiming_normal_",
    "kaiming_uniform_", "log_normal_", "multinomial", "normal", "normal_", "orthogonal_", "poisson",
    "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random_", "randperm",
    "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_",
}  # fmt: skip
#: Functions that draw from, or set, the global state and take no generator.
BANNED = {
    "torch.manual_seed", "torch.random.manual_seed", "torch.seed", "torch.set_rng_state",
    "torch.random.fork_rng", "torch.set_default_dtype", "torch.set_default_device",
    "torch.set_num_threads", "torch.autograd.set_detect_anomaly", "np.random.seed",
    "np.random.normal", "np.random.rand", "np.random.randn", "np.random.uniform",
    "np.random.choice", "np.random.permutation", "np.random.shuffle", "warnings.simplefilter",
    "warnings.filterwarnings",
}  # fmt: skip


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)])


def global_state_calls(tree):
    """Yield (line, what) for calls that touch global random or torch state."""
    local_filters = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any("catch_warnings" in ast.dump(item.context_expr) for item in node.items)
        for call in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = dotted(node.func)
        if name.startswith("warnings.") and id(node) in local_filters:
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        root = name.split(".")[0]
        # numpy's and scipy's generators and distributions have the same method names.
        from_torch = root in {"torch", "nn", "init"} or node.func.attr.endswith("_")
        if name in BANNED or node.func.attr in {"rsample", "fork_rng"}:
            yield node.lineno, name
        elif from_torch and node.func.attr in SAMPLERS and "generator" not in keywords:
            yield node.lineno, f"{name} without generator="


@pytest.mark.promise(10)
@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_global_random_or_torch_state(path):
    found = list(global_state_calls(parsed(path)))
    if path.name == "_threads.py":
        found = [item for item in found if item[1] != "torch.set_num_threads"]
    if path.name == "_models.py":  # a user's own module can only be seeded globally
        found = [item for item in found if item[1] != "torch.random.fork_rng"]
    assert not found


def test_the_search_for_global_state_finds_it():
    bad = """
        torch.randn(3)
        w.normal_(0, 1)
        nn.init.kaiming_uniform_(w)
        torch.manual_seed(0)
        np.random.seed(0)
        q.rsample()
        warnings.simplefilter("ignore")
    """
    good = """
        torch.randn(3, generator=g)
        rng.normal(size=3)
        torch.Generator().manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
    """
    assert len(list(global_state_calls(ast.parse(textwrap.dedent(bad))))) == 7
    assert not list(global_state_calls(ast.parse(textwrap.dedent(good))))
