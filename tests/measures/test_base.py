"""What every measure promises, asked of each of them."""

import pickle
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from drojko.exceptions import InvalidDataError, UnsupportedError
from drojko.measures import (
    KDE,
    ClassConditional,
    Empirical,
    FlowMeasure,
    Gaussian,
    GaussianMixture,
    Joint,
)

TEMPLATES = {
    "empirical": Empirical(),
    "gaussian": Gaussian(),
    "kde": KDE(),
    "kde-likelihood": KDE("likelihood"),
    "mixture": GaussianMixture(2),
    "mixture-bic": GaussianMixture(),
    "flow": FlowMeasure(max_iter=20, hidden_layer_sizes=(8,), batch_size=64),
}
CONTINUOUS = [name for name in TEMPLATES if name != "empirical"]
CLOSED = [name for name in TEMPLATES if name != "flow"]


def two_groups(rng, n=60):
    """Correlated rows in two groups, columns of different units."""
    x = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
    x[: n // 3] += [3.0, -2.0]
    return x * [1.0, 20.0]


def fitted_arrays(measure):
    out = {}
    for name, value in vars(measure).items():
        if name.endswith("_") and isinstance(value, dict):
            out |= value
        elif name.endswith("_"):
            out[name] = np.asarray(value)
    return out


def assert_same_fit(a, b, rtol=0.0):
    first, second = fitted_arrays(a), fitted_arrays(b)
    assert first
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.fixture(params=TEMPLATES)
def template(request):
    return clone(TEMPLATES[request.param])


@pytest.fixture(params=CONTINUOUS)
def continuous(request):
    return clone(TEMPLATES[request.param])


def test_fit_returns_self_and_stores_plain_arrays(template, rng):
    assert template.fit(two_groups(rng)) is template
    for name, value in fitted_arrays(template).items():
        assert isinstance(value, np.ndarray), name
        assert np.isfinite(value).all(), name


def test_shapes_and_dtypes(template, rng, generator):
    template.fit(two_groups(rng))
    x = template.sample(7, generator)
    assert x.shape == (7, 2)
    assert x.dtype == torch.float64
    assert template.dim == 2
    x, w = template.points(50, generator)
    assert x.shape == (len(w), 2)
    assert w.dtype == torch.float64
    assert (w > 0).all()
    assert w.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.promise(4)
def test_weight_is_number_of_copies(template, rng):
    x = two_groups(rng)
    k = rng.integers(0, 4, len(x))
    weighted = clone(template).fit(x, sample_weight=k)
    # Copies at the end: their order must not matter, only that of first appearances.
    copies = np.concatenate([x[k >= c] for c in (1, 2, 3)])
    if isinstance(template, Empirical):
        g = np.linspace(-1, 1, 5)[:, None]
        merged = clone(template).fit(copies)
        for f in (lambda z: z, lambda z: z**2, lambda z: np.tanh(z @ np.ones((2, 1)) * g.T)):
            np.testing.assert_allclose(
                weighted.weights_ @ f(weighted.atoms_),
                merged.weights_ @ f(merged.atoms_),
                rtol=1e-12,
            )
    else:
        assert_same_fit(weighted, clone(template).fit(copies))


@pytest.mark.promise(4)
def test_only_relative_weights_count(template, rng):
    x, w = two_groups(rng), rng.uniform(0.1, 2, 60)
    # 1024 is a power of two: scaling by it is exact.
    assert_same_fit(clone(template).fit(x, w), clone(template).fit(x, 1024 * w))


def test_refit_forgets(template, rng):
    x = two_groups(rng)
    other = clone(template).fit(rng.normal(size=(30, 3)))
    assert_same_fit(other.fit(x), clone(template).fit(x))
    assert other.dim == 2


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.tolist(),
        pd.DataFrame,
        lambda x: pd.DataFrame(x).convert_dtypes(),
        torch.tensor,
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(">f8"),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
)
def test_containers_agree(convert, template, rng):
    x = two_groups(rng, 40)
    before = x.copy()
    fit = clone(template).fit(convert(x))
    assert_same_fit(fit, clone(template).fit(x))
    if not isinstance(template, Empirical):
        expected = fit.log_prob(torch.tensor(x))
        np.testing.assert_array_equal(fit.log_prob(convert(x)).detach(), expected)
    np.testing.assert_array_equal(x, before)


def test_read_only_input_and_state(template, rng, generator):
    x = two_groups(rng)
    x.flags.writeable = False
    template.fit(x)
    for value in fitted_arrays(template).values():
        if isinstance(value, np.ndarray) and value.base is None:
            value.flags.writeable = False  # as joblib's memory maps are
    template.points(10, generator)


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (np.zeros((0, 2)), None, "0 samples"),
        (np.ones(5), None, "reshape"),
        ([[1.0, np.nan], [0.0, 1.0]], None, "NaN or infinity in column 1"),
        (pd.DataFrame({"a": [1.0, np.inf], "b": [0.0, 1.0]}), None, "column 'a'"),
        ([["red", 1.0], ["blue", 2.0]], None, "encode"),
        ([[1.0], [2.0]], [1.0, -1.0], "sample_weight"),
        ([[1.0], [2.0]], [0.0, 0.0], "sample_weight"),
        ([[1.0], [2.0]], [1.0], "sample_weight has shape"),
    ],
)
def test_bad_data_is_named(template, x, weight, message):
    with pytest.raises(InvalidDataError, match=message):
        template.fit(x, sample_weight=weight)


@pytest.mark.parametrize("weight", [None, [1.0, 0.0, 3.0]])
def test_one_distinct_row_has_no_scale(continuous, weight):
    x = np.ones((3, 2)) if weight is None else [[1.0, 2.0], [5.0, 6.0], [1.0, 2.0]]
    with pytest.raises(InvalidDataError, match="1 sample"):
        continuous.fit(x, sample_weight=weight)


def test_unfitted_use_is_refused(template):
    for use in (lambda: template.sample(3), lambda: template.points(3), lambda: template.dim):
        with pytest.raises(NotFittedError, match="call fit"):
            use()
    if not isinstance(template, Empirical):
        with pytest.raises(NotFittedError, match="call fit"):
            template.log_prob([[0.0, 1.0]])


def test_bad_queries_are_refused(continuous, rng):
    continuous.fit(two_groups(rng))
    with pytest.raises(InvalidDataError, match="3 columns"):
        continuous.log_prob(np.zeros((4, 3)))
    with pytest.raises(InvalidDataError, match="NaN"):
        continuous.log_prob(torch.tensor([[0.0, torch.nan]]))
    for n in (0, 1.5, "many"):
        with pytest.raises(InvalidDataError, match="n is"):
            continuous.sample(n)


@pytest.mark.promise(10)
def test_draws_follow_the_generator_and_spare_the_global_ones(template, rng):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    x = two_groups(rng)
    once, twice = clone(template).fit(x), clone(template).fit(x)
    assert_same_fit(once, twice)
    for name in ("sample", "points"):
        a, b, c = (
            getattr(m, name)(20, torch.Generator().manual_seed(s))
            for m, s in ((once, 1), (twice, 1), (once, 2))
        )
        a, b, c = (v if isinstance(v, torch.Tensor) else v[0] for v in (a, b, c))
        assert torch.equal(a, b)
        assert isinstance(template, Empirical) or not torch.equal(a, c)
    template.fit(x).sample(5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.promise(10)
def test_threads_do_not_disturb_each_other(rng):
    x, fits = two_groups(rng, 30), [None] * 4

    def work(i):
        fits[i] = FlowMeasure(max_iter=5, hidden_layer_sizes=(8,)).fit(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in fits[1:]:
        assert_same_fit(fits[0], other)


@pytest.mark.promise(11)
def test_pickle_keeps_draws_and_density(template, rng):
    template.fit(two_groups(rng))
    template.sample(3)  # fills whatever is cached
    copy = pickle.loads(pickle.dumps(template))
    draws = [m.sample(9, torch.Generator().manual_seed(0)) for m in (template, copy)]
    assert torch.equal(*draws)
    if not isinstance(template, Empirical):
        assert torch.equal(template.log_prob(draws[0]), copy.log_prob(draws[0]))


@pytest.mark.promise(11)
def test_skops_round_trip(template, rng):
    import skops.io

    template.fit(two_groups(rng))
    template.sample(3)
    data = skops.io.dumps(template)
    foreign = skops.io.get_untrusted_types(data=data)
    assert all(name.startswith("drojko.") for name in foreign)
    copy = skops.io.loads(data, trusted=foreign)
    assert_same_fit(template, copy)


def test_clone_keeps_settings_and_drops_the_fit(template, rng):
    before = template.get_params()
    template.fit(two_groups(rng))
    copy = clone(template)
    assert copy.get_params() == before == template.get_params()
    assert not copy.__sklearn_is_fitted__()
    assert template.__sklearn_is_fitted__()
    assert type(template).__name__ in repr(template)


@pytest.mark.parametrize("name", CLOSED)
def test_moments_match_points_and_sample(name, rng, generator):
    measure = clone(TEMPLATES[name]).fit(two_groups(rng))
    mean, covariance = measure.mean, measure.covariance
    deviation = covariance.diagonal().sqrt()
    n = 40_000
    x = measure.sample(n, generator)
    # Six standard errors of a mean; four-fold kurtosis allowance for second moments.
    assert ((x.mean(0) - mean).abs() < 6 * deviation / n**0.5).all()
    error = (torch.cov(x.T) - covariance) / torch.outer(deviation, deviation)
    assert error.abs().max() < 12 / n**0.5
    p, w = measure.points(20_000, generator)
    assert ((w @ p - mean).abs() < 6 * deviation / n**0.5).all()
    centred = p - mean
    error = ((w[:, None] * centred).T @ centred - covariance) / torch.outer(deviation, deviation)
    assert error.abs().max() < 12 / 20_000**0.5


@pytest.mark.parametrize("name", CONTINUOUS)
def test_density_integrates_to_one_in_the_plane(name, rng):
    measure = clone(TEMPLATES[name]).fit(two_groups(rng))
    axes = [torch.linspace(*span, 301, dtype=torch.float64) for span in ((-10, 13), (-200, 200))]
    grid = torch.cartesian_prod(*axes)
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    # Trapezoids on smooth densities: the error is that of the tails (splines: of their knots).
    tolerance = 0.01 if name == "flow" else 1e-6
    assert (measure.log_prob(grid).exp().sum() * cell).item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_density_integrates_to_one_on_the_line(name, rng):
    measure = clone(TEMPLATES[name]).fit(rng.normal(size=(30, 1)) + np.arange(30)[:, None] % 3)
    grid = torch.linspace(-20, 22, 42_001, dtype=torch.float64)
    total = torch.trapezoid(measure.log_prob(grid[:, None]).exp(), grid).item()
    assert total == pytest.approx(1, abs=0.01 if name == "flow" else 1e-6)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_prob_has_the_right_gradient(name, rng):
    measure = clone(TEMPLATES[name]).fit(two_groups(rng) / [1.0, 20.0])
    x = torch.tensor(rng.normal(size=(4, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: measure.log_prob(z), (x,), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CLOSED if name != "empirical"])
def test_marginal_is_the_integral(name, rng):
    measure = clone(TEMPLATES[name]).fit(two_groups(rng))
    marginal = measure.marginal([1])
    at = torch.tensor([[-30.0], [5.0]], dtype=torch.float64)
    grid = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    for y in at:
        plane = torch.stack([grid, y.expand(len(grid))], dim=1)
        integral = torch.trapezoid(measure.log_prob(plane).exp(), grid)
        np.testing.assert_allclose(marginal.log_prob(y[None]).exp(), integral, rtol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_marginal_picks_moments(name, rng):
    measure = clone(TEMPLATES[name]).fit(rng.normal(size=(40, 3)) * [1, 2, 3])
    part = measure.marginal([2, 0])
    assert part.dim == 2
    torch.testing.assert_close(part.mean, measure.mean[[2, 0]])
    torch.testing.assert_close(part.covariance, measure.covariance[[2, 0]][:, [2, 0]])
    with pytest.raises(InvalidDataError, match="3 columns"):
        measure.marginal([3])


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    "x",
    [
        [[0.0, 1.0], [2.0, 0.0]],
        [[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]],
        [[0.0, 1.0]] * 5 + [[1.0, 1.0]] * 2,
        np.eye(4, 9),
    ],
    ids=["two rows", "constant column", "duplicates", "more columns than rows"],
)
def test_degenerate_data_work(template, x, generator):
    template.fit(x)
    assert torch.isfinite(template.sample(20, generator)).all()
    if not isinstance(template, Empirical):
        assert torch.isfinite(template.log_prob(x)).all()


@pytest.mark.promise(7)
@pytest.mark.parametrize("power", [-30, -8, 8, 30])
def test_units_do_not_matter(continuous, power, rng):
    x, unit = two_groups(rng), 2.0 ** (3 * power)
    plain, scaled = clone(continuous).fit(x), clone(continuous).fit(unit * x)
    expected = plain.log_prob(x) - 2 * np.log(unit)
    torch.testing.assert_close(scaled.log_prob(unit * x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.promise(4)
@given(
    x=arrays(
        float,
        st.tuples(st.integers(3, 12), st.just(2)),
        elements=st.floats(-5, 5, width=32).map(lambda v: round(v, 2)),
        unique=True,
    ),
    shift=st.integers(-8, 8),
    data=st.data(),
)
def test_permutation_and_translation(x, shift, data):
    order = data.draw(st.permutations(range(len(x))))
    for name in ("gaussian", "kde", "kde-likelihood"):
        base = clone(TEMPLATES[name]).fit(x)
        expected = base.log_prob(x)
        permuted = clone(TEMPLATES[name]).fit(x[order])
        # The bandwidth search stops within 1e-4 of log h: its own rounding is the larger one.
        rtol = 1e-2 if name == "kde-likelihood" else 1e-5
        torch.testing.assert_close(permuted.log_prob(x), expected, rtol=rtol, atol=rtol)
        moved = clone(TEMPLATES[name]).fit(x + shift)
        torch.testing.assert_close(moved.log_prob(x + shift), expected, rtol=rtol, atol=rtol)
        swapped = clone(TEMPLATES[name]).fit(x[:, ::-1])
        torch.testing.assert_close(swapped.log_prob(x[:, ::-1]), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", CLOSED)
def test_labelled_measures_take_every_template(name, rng, generator):
    x = two_groups(rng)
    y = (np.arange(60) % 3 == 0).astype(int)
    by_class = ClassConditional(TEMPLATES[name]).fit(x, y)
    joint = Joint(TEMPLATES[name]).fit(x, x[:, 0] + rng.normal(size=60))
    for measure, dtype in ((by_class, torch.long), (joint, torch.float64)):
        drawn, label = measure.sample(10, generator)
        assert drawn.shape == (10, 2)
        assert label.shape == (10,)
        assert label.dtype == dtype
        drawn, label, w = measure.points(30, generator)
        assert len(drawn) == len(label) == len(w)
        assert w.sum().item() == pytest.approx(1, abs=1e-12)
        assert measure.dim == 2
        if name == "empirical":
            with pytest.raises(UnsupportedError, match="no density"):
                measure.log_prob(drawn, label)
        else:
            assert torch.isfinite(measure.log_prob(drawn, label)).all()
        copy = pickle.loads(pickle.dumps(measure))
        pairs = [m.points(9, torch.Generator().manual_seed(0)) for m in (measure, copy)]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
        assert not clone(measure).__sklearn_is_fitted__()
