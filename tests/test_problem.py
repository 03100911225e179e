"""Spectra, and the two problems on which everything else runs."""

import tracemalloc

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.linear_model import LinearRegression

import jaxclip as jc
from helpers import assert_within, mean_and_error
from jaxclip._random import bits, normal
from jaxclip.problem.linear import _spectrum

float32 = pytest.mark.float32


# Spectra


@float32
def test_isotropic():
    spectrum = jc.Spectrum.isotropic(7, 2.5)
    np.testing.assert_array_equal(spectrum.eigenvalues, [2.5])
    np.testing.assert_array_equal(spectrum.multiplicity, [7])
    assert spectrum.dim == 7
    np.testing.assert_allclose(spectrum.trace, 17.5, rtol=1e-6)
    np.testing.assert_allclose(spectrum.feature_norm, 17.5**0.5, rtol=1e-6)
    np.testing.assert_allclose(spectrum.intrinsic_dimension, 7, rtol=1e-6)


@float32
def test_power_law():
    spectrum = jc.Spectrum.power_law(100, 0.7)
    expected = np.arange(1, 101) ** -0.7
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=1e-6)
    assert spectrum.dim == 100
    np.testing.assert_allclose(spectrum.trace, expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(spectrum.intrinsic_dimension, expected.sum(), rtol=1e-6)


def test_multiplicities_count_in_every_summary():
    spectrum = jc.Spectrum([0.5, 2.0, 0.1], [3, 1, 4])
    assert spectrum.dim == 8
    np.testing.assert_allclose(spectrum.trace, 3.9, rtol=1e-14)
    np.testing.assert_allclose(spectrum.feature_norm, 3.9**0.5, rtol=1e-14)
    np.testing.assert_allclose(spectrum.intrinsic_dimension, 1.95, rtol=1e-14)
    expanded = spectrum.expand(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(expanded, [1, 1, 1, 2, 3, 3, 3, 3])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_marchenko_pastur_has_the_quantiles_of_its_density(ratio):
    dim = 50
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2

    def density(x):
        return np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x)

    quantiles = np.asarray(jc.Spectrum.marchenko_pastur(dim, ratio).eigenvalues) * high
    assert np.all(np.diff(quantiles) < 0)
    for i in [0, 1, 17, 49]:
        below = scipy.integrate.quad(density, low, quantiles[i], epsabs=1e-10)[0]
        np.testing.assert_allclose(below, 1 - (i + 0.5) / dim, atol=2e-6)


def test_marchenko_pastur_is_the_spectrum_of_a_sample_covariance():
    dim, ratio = 500, 0.4
    rows = np.random.default_rng(0).normal(size=(int(dim / ratio), dim))
    sampled = np.linalg.eigvalsh(rows.T @ rows / len(rows))[::-1]
    top = (1 + ratio**0.5) ** 2
    expected = top * np.asarray(jc.Spectrum.marchenko_pastur(dim, ratio).eigenvalues)
    # Eigenvalues of a sample repel each other: each is within a few spacings of its
    # quantile, 1 / dim, and the edges within dim^(-2/3).
    np.testing.assert_allclose(sampled, expected, atol=0.05)
    np.testing.assert_allclose(sampled[50:-50], expected[50:-50], atol=0.015)


def test_marchenko_pastur_moments():
    ratio = 0.3
    spectrum = jc.Spectrum.marchenko_pastur(4000, ratio)
    values = np.asarray(spectrum.eigenvalues) * (1 + ratio**0.5) ** 2
    assert np.max(spectrum.eigenvalues) <= 1
    moments = [np.mean(values**p) for p in (1, 2, 3)]
    np.testing.assert_allclose(moments, [1, 1 + ratio, 1 + 3 * ratio + ratio**2], 1e-5)


def test_from_covariance():
    eigenvalues = np.array([3.0, 1.0, 0.25, 1e-3])
    rotation = scipy.stats.ortho_group.rvs(4, random_state=1)
    matrix = rotation * eigenvalues @ rotation.T
    spectrum = jc.Spectrum.from_covariance(matrix)
    np.testing.assert_allclose(spectrum.eigenvalues, eigenvalues, rtol=1e-12)
    np.testing.assert_array_equal(spectrum.multiplicity, np.ones(4))


@pytest.mark.parametrize("shape", [(50, 7), (7, 50), (9, 9)])
@pytest.mark.parametrize("block", [1, 30, 2**22])
def test_a_spectrum_from_data(monkeypatch, shape, block):
    """However the table is cut, and whichever side of it is the longer one."""
    monkeypatch.setattr(_spectrum, "_BLOCK", block)
    X = np.random.default_rng(0).standard_normal(shape) + 0.5
    spectrum = jc.Spectrum.from_data(X)
    expected = np.linalg.svd(X, compute_uv=False) ** 2 / len(X)
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=1e-11)


@pytest.mark.parametrize("shape", [(200_000, 20), (20, 200_000)])
def test_a_spectrum_from_a_file_takes_little_memory(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(_spectrum, "_BLOCK", 2**14)
    X = np.memmap(tmp_path / "X", np.float64, "w+", shape=shape)
    X[:] = np.random.default_rng(0).standard_normal(shape)
    tracemalloc.start()
    spectrum = jc.Spectrum.from_data(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spectrum.dim == 20
    # The block, twice while it is converted, and what is small; the table is 32 MB.
    assert peak < 2 * 8 * 2**14 + 100_000


def test_a_spectrum_from_a_wide_table_of_low_rank():
    u, v = np.random.default_rng(0).standard_normal((2, 60))
    spectrum = jc.Spectrum.from_data(np.outer(u[:8], v))
    np.testing.assert_allclose(
        spectrum.eigenvalues, [u[:8] @ u[:8] * (v @ v) / 8], rtol=1e-12
    )


def test_from_covariance_leaves_out_what_is_rounding():
    rows = np.random.default_rng(2).normal(size=(3, 10))
    spectrum = jc.Spectrum.from_covariance(rows.T @ rows)
    expected = np.linalg.svd(rows)[1] ** 2
    np.testing.assert_allclose(spectrum.eigenvalues, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.Spectrum([1.0, -1.0]), "`eigenvalues` must be positive"),
        (lambda: jc.Spectrum([1.0, 0.0]), "`eigenvalues` must be positive"),
        (lambda: jc.Spectrum([np.inf]), "`eigenvalues` must be positive and finite"),
        (lambda: jc.Spectrum([np.nan]), "`eigenvalues` must be positive and finite"),
        (lambda: jc.Spectrum([[1.0]]), r"`eigenvalues` must be a vector.*\(1, 1\)"),
        (lambda: jc.Spectrum([]), "`eigenvalues` must be a vector with at least one"),
        (lambda: jc.Spectrum("ab"), "`eigenvalues` must be a number or an array"),
        (lambda: jc.Spectrum([1j]), "`eigenvalues` must be real"),
        (lambda: jc.Spectrum([1.0], [0]), "`multiplicity` must be positive integers"),
        (lambda: jc.Spectrum([1.0], [-2]), "`multiplicity` must be positive integers"),
        (lambda: jc.Spectrum([1.0], [1.5]), "`multiplicity` must be positive integers"),
        (lambda: jc.Spectrum([1.0], [np.nan]), "`multiplicity` must be positive"),
        (lambda: jc.Spectrum([1.0], ["a"]), "`multiplicity` must be positive"),
        (lambda: jc.Spectrum([1.0], [1, 2]), r"must have the shape of `eigenvalues`"),
        (lambda: jc.Spectrum([1.0, 2.0], 3), r"must have the shape of `eigenvalues`"),
        (lambda: jc.Spectrum.isotropic(0), "`dim` must be at least 1"),
        (lambda: jc.Spectrum.isotropic(-3), "`dim` must be at least 1"),
        (lambda: jc.Spectrum.isotropic(True), "`dim` must be a Python integer"),
        (lambda: jc.Spectrum.isotropic(3, 0.0), "`eigenvalues` must be positive"),
        (lambda: jc.Spectrum.power_law(0, 1.0), "`dim` must be at least 1"),
        (lambda: jc.Spectrum.power_law(3, np.nan), "`eigenvalues` must be positive"),
        (lambda: jc.Spectrum.marchenko_pastur(3, 0.0), r"`ratio` must be in \(0, 1\)"),
        (lambda: jc.Spectrum.marchenko_pastur(3, 1.0), r"`ratio` must be in \(0, 1\)"),
        (lambda: jc.Spectrum.from_data(np.ones(3)), r"a row for each sample.* \(3,"),
        (lambda: jc.Spectrum.from_data(np.ones((0, 3))), "a row for each sample"),
        (lambda: jc.Spectrum.from_data([[1, np.nan]]), "`X` must be finite"),
        (lambda: jc.Spectrum.from_data(np.zeros((3, 2))), "a column that is not zero"),
        (lambda: jc.Spectrum.from_covariance(np.ones((2, 3))), "a square matrix"),
        (lambda: jc.Spectrum.from_covariance(np.ones(4)), "a square matrix"),
        (lambda: jc.Spectrum.from_covariance([[1, 2], [3, 4]]), "finite and symmetric"),
        (lambda: jc.Spectrum.from_covariance([[np.nan]]), "finite and symmetric"),
        (lambda: jc.Spectrum.from_covariance([[1, 2], [2, 1]]), "semidefinite"),
        (lambda: jc.Spectrum.from_covariance(np.zeros((2, 2))), "and not zero"),
    ],
)
def test_spectrum_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_traced_multiplicity_is_refused():
    with pytest.raises(ValueError, match="must be known before tracing"):
        jax.jit(lambda m: jc.Spectrum([1.0, 2.0], m).trace)(np.array([1, 2]))


def test_eigenvalues_may_be_traced():
    def trace(eigenvalues):
        return jc.Spectrum(eigenvalues, np.array([2, 3])).trace

    np.testing.assert_allclose(jax.grad(trace)(jnp.array([1.0, 2.0])), [2.0, 3.0])


# Random numbers of the stream


def test_bits_are_those_of_jax():
    for seed in range(3):
        key = jr.key(seed)
        expected = jr.bits(key, (1001,), jnp.uint32)
        np.testing.assert_array_equal(bits(key, 1001), expected)
    # Keys of the old style, and of another generator, which is handed on.
    for key in [jr.PRNGKey(4), jr.key(5, impl="rbg")]:
        expected = jr.bits(key, (10,), jnp.uint32)
        np.testing.assert_array_equal(bits(key, 10), expected)
    other = normal(jr.key(5, impl="rbg"), 10_000)
    assert scipy.stats.kstest(other, "norm").pvalue > 1e-3


@float32
def test_normals_are_those_of_jax_in_float32():
    expected = np.asarray(jr.normal(jr.key(6), (1001,), jnp.float32))
    got = normal(jr.key(6), 1001)
    assert got.dtype == jnp.result_type(float)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# Least squares

PROBLEM = jc.LinearModel(
    jc.Spectrum([0.5, 2.0, 0.1], [2, 1, 2]), jc.Exponential(0.7), [1.0, 0.3, 2.0]
)
K = np.diag([0.5, 0.5, 2.0, 0.1, 0.1])


@pytest.fixture(scope="module")
def examples():
    """Many examples: the features, shape (n, 5), and the labels, shape (n,)."""
    stream = PROBLEM.stream(jr.key(7))
    draw = jax.jit(jax.vmap(PROBLEM.example, (None, 0)))
    return draw(stream, jnp.arange(200_000))


@float32
def test_start():
    z0 = PROBLEM.init()
    assert z0.shape == (5,)
    norms = [np.linalg.norm(part) for part in np.split(np.asarray(z0), [2, 3])]
    np.testing.assert_allclose(norms, [1.0, 0.3, 2.0], rtol=1e-6)
    risk = (0.5 * 1.0**2 + 2 * 0.3**2 + 0.1 * 2.0**2) / 2
    np.testing.assert_allclose(PROBLEM.risk(z0), risk, rtol=1e-6)


def test_features_have_the_covariance(examples):
    features, _ = examples
    assert_within(*mean_and_error(features), np.zeros(5))
    products = features[:, :, None] * features[:, None, :]
    assert_within(*mean_and_error(products), K, power=0.05)
    # Gaussian: the fourth moment too.
    fourth = mean_and_error(features**4)
    assert_within(*fourth, 3 * np.diag(K) ** 2, power=0.5)


def test_labels_are_noise_around_the_optimum(examples):
    features, labels = examples
    assert_within(*mean_and_error(labels), 0.0, power=0.01)
    assert_within(*mean_and_error(labels**2), 0.7**2, power=0.02)
    assert_within(*mean_and_error(labels**3), 2 * 0.7**3, power=0.1)
    assert_within(*mean_and_error(features * labels[:, None]), np.zeros(5))


def test_gradient_is_unbiased(examples):
    z = jnp.array([1.0, -0.4, 0.3, 0.8, -2.0])
    gradients = jax.jit(jax.vmap(PROBLEM.gradient, (None, 0)))(z, examples)
    assert_within(*mean_and_error(gradients), K @ z, power=0.05)


def test_risk_is_the_excess_loss(examples):
    z = jnp.array([1.0, -0.4, 0.3, 0.8, -2.0])
    features, labels = examples
    excess = ((features @ z - labels) ** 2 - labels**2) / 2
    np.testing.assert_allclose(PROBLEM.risk(z), z @ K @ z / 2, rtol=1e-14)
    assert_within(*mean_and_error(excess), PROBLEM.risk(z), power=0.02)


def test_an_example_is_a_function_of_the_key_and_the_index(examples):
    stream = PROBLEM.stream(jr.key(7))
    features, labels = examples
    for index in [0, 1, 12_345]:
        alone = PROBLEM.example(stream, index)
        np.testing.assert_array_equal(alone[0], features[index])
        np.testing.assert_array_equal(alone[1], labels[index])
    other = PROBLEM.example(PROBLEM.stream(jr.key(8)), 0)
    assert not np.any(other[0] == features[0])
    assert len(np.unique(features)) > 0.9 * features.size


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([1.0, 1.0], r"`start` must have one number for each.*\(1,\)\. Got \(2,\)"),
        (1.0, r"`start` must have one number for each"),
        ([-1.0], "`start` must be norms: non-negative"),
        ([np.nan], "`start` must be norms: non-negative and finite"),
        ([np.inf], "`start` must be norms: non-negative and finite"),
        ("x", "`start` must be a number or an array of numbers"),
    ],
)
def test_least_squares_errors(start, message):
    with pytest.raises(ValueError, match=message):
        jc.LinearModel(jc.Spectrum.isotropic(3), jc.Gaussian(1.0), start)


# Rows of a table

_rng = np.random.default_rng(3)
X = _rng.normal(size=(40, 4)) @ np.array(
    [[2.0, 1, 0, 0], [0, 1, 0.5, 0], [0, 0, 0.3, 0], [0.1, 0, 0, 1]]
)
Y = X @ np.array([1.0, -2, 0.5, 0]) + _rng.exponential(size=40)
START = np.array([0.5, 0.0, -1.0, 2.0])


def test_optimum_is_the_least_squares_solution():
    problem = jc.Regression(X, Y, start=START)
    by_sklearn = LinearRegression(fit_intercept=False).fit(X, Y).coef_
    np.testing.assert_allclose(problem.optimum, by_sklearn, rtol=1e-10)
    by_numpy = np.linalg.lstsq(X, Y, rcond=None)[0]
    np.testing.assert_allclose(problem.optimum, by_numpy, rtol=1e-10)
    np.testing.assert_allclose(problem.residuals, Y - X @ by_numpy, rtol=1e-9)
    np.testing.assert_array_equal(problem.init(), START)
    np.testing.assert_array_equal(jc.Regression(X, Y).init(), np.zeros(4))


def test_optimum_of_collinear_columns_is_the_smallest():
    twice = np.concatenate([X, X[:, :1]], axis=1)
    problem = jc.Regression(twice, Y)
    expected = np.linalg.pinv(twice) @ Y
    np.testing.assert_allclose(problem.optimum, expected, rtol=1e-9)
    seen = jc.LinearModel.from_regression(problem)
    assert seen.spectrum.dim == 4
    assert seen.start.shape == (4,)


@float32
def test_risk_is_the_excess_loss_on_the_rows():
    problem = jc.Regression(X, Y)
    optimum = np.linalg.lstsq(X, Y, rcond=None)[0]

    def loss(params):
        return np.mean((X @ params - Y) ** 2) / 2

    rtol = 1e-12 if problem.X.dtype == jnp.float64 else 1e-5
    for params in [START, 10 * START, np.zeros(4)]:
        risk = problem.risk(jnp.asarray(params, problem.X.dtype))
        np.testing.assert_allclose(risk, loss(params) - loss(optimum), rtol=rtol)
    assert problem.risk(problem.optimum) == 0


def test_gradient_is_that_of_the_loss_on_a_row():
    problem = jc.Regression(X, Y)
    example = (problem.X[5], problem.y[5])
    expected = jax.grad(lambda x: (example[0] @ x - example[1]) ** 2 / 2)
    gradient = problem.gradient(jnp.asarray(START), example)
    np.testing.assert_allclose(gradient, expected(jnp.asarray(START)), rtol=1e-12)


def _rows_drawn(problem, key, samples):
    """Which rows a run sees, found by their labels, which all differ."""
    _, labels = jax.vmap(problem.example, (None, 0))(
        problem.stream(key), jnp.arange(samples)
    )
    order = np.argsort(Y)
    return order[np.searchsorted(Y[order], np.asarray(labels))]


def test_one_pass_visits_each_row_once_in_the_keys_order():
    problem = jc.Regression(X, Y, replacement=False)
    rows = _rows_drawn(problem, jr.key(0), 40)
    np.testing.assert_array_equal(np.sort(rows), np.arange(40))
    assert np.any(rows != np.arange(40))
    np.testing.assert_array_equal(rows, _rows_drawn(problem, jr.key(0), 40))
    assert np.any(rows != _rows_drawn(problem, jr.key(1), 40))


def test_rows_with_replacement_are_uniform():
    problem = jc.Regression(X, Y)
    rows = _rows_drawn(problem, jr.key(2), 40_000)
    counts = np.bincount(rows, minlength=40)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # Draws that follow each other are independent.
    pairs = np.bincount(rows[1:] * 40 + rows[:-1], minlength=1600)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


def test_a_row_carries_its_own_label():
    problem = jc.Regression(X, Y)
    stream = problem.stream(jr.key(3))
    features, labels = jax.vmap(problem.example, (None, 0))(stream, jnp.arange(20))
    rows = _rows_drawn(problem, jr.key(3), 20)
    np.testing.assert_array_equal(features, X[rows])
    np.testing.assert_array_equal(labels, Y[rows])


def test_tables_of_integers_and_lists():
    problem = jc.Regression([[1, 0], [0, 2], [1, 1]], [1, 2, 4])
    assert problem.X.dtype == jnp.result_type(float)
    expected = np.linalg.lstsq(
        np.array([[1.0, 0], [0, 2], [1, 1]]), [1, 2, 4], rcond=None
    )[0]
    np.testing.assert_allclose(problem.optimum, expected, rtol=1e-12)


def _with(array, value):
    array = array.copy()
    array.flat[3] = value
    return array


@pytest.mark.parametrize(
    ("X", "y", "settings", "message"),
    [
        (X, Y[:-1], {}, r"a vector with a number for each row.*\(40, 4\) and \(39,\)"),
        (X, Y[:, None], {}, "a vector with a number for each row"),
        (X[:, 0], Y, {}, "`X` must be a matrix of rows"),
        (_with(X, np.nan), Y, {}, "`X` must be finite: 1 of its numbers"),
        (_with(X, np.inf), Y, {}, "`X` must be finite: 1 of its numbers"),
        (X, _with(Y, np.nan), {}, "`y` must be finite: 1 of its numbers"),
        (X[:1], Y[:1], {}, "`X` must have at least two rows. Got 1"),
        (X[:0], Y[:0], {}, "`X` must have at least two rows. Got 0"),
        (X[:, :0], Y, {}, "`X` must have at least one column"),
        (0 * X, Y, {}, "`X` must have a column that is not zero"),
        (X[:4], Y[:4], {}, "`X` has 4 features and only 4 rows"),
        (X[:3], Y[:3], {}, "`X` has 4 features and only 3 rows"),
        ([["a"]], [1], {}, "`X` and `y` must be arrays of numbers"),
        ([[1, 2], [3]], [1, 2], {}, "`X` and `y` must be arrays of numbers"),
        (X, Y, {"start": np.zeros(3)}, "`start` must be a finite vector.*4 features"),
        (X, Y, {"start": [0, 0, 0, np.nan]}, "`start` must be a finite vector"),
    ],
)
@pytest.mark.parametrize("make", [jc.Regression, jc.LinearModel.from_data])
def test_table_errors(make, X, y, settings, message):
    with pytest.raises(ValueError, match=message):
        make(X, y, **settings)


def test_one_pass_has_no_more_samples_than_rows():
    problem = jc.Regression(X, Y, replacement=False)
    problem.check_length(40)
    with pytest.raises(ValueError, match="One pass over 40 rows has no 41 samples"):
        problem.check_length(41)
    jc.Regression(X, Y).check_length(10**9)


# The problem that a table poses


def test_from_data():
    problem = jc.LinearModel.from_data(X, Y, start=START)
    covariance = X.T @ X / len(X)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(problem.spectrum.eigenvalues, eigenvalues[::-1], 1e-10)
    optimum = np.linalg.lstsq(X, Y, rcond=None)[0]
    error = np.abs(vectors.T @ (START - optimum))[::-1]
    np.testing.assert_allclose(problem.start, error, rtol=1e-9)
    residuals = Y - X @ optimum
    assert isinstance(problem.noise, jc.Empirical)
    np.testing.assert_allclose(problem.noise.residuals, residuals, rtol=1e-9)
    np.testing.assert_allclose(problem.noise.variance, np.mean(residuals**2), 1e-12)


@pytest.mark.float32
def test_from_data_keeps_columns_of_any_size():
    # A column in thousands has a variance that float32 cannot tell the others beside,
    # and one of 1e7 times the others, squared, leaves nothing of them in float64.
    rng = np.random.default_rng(8)
    z, noise = rng.standard_normal((300, 10)), rng.standard_normal(300)
    for large in (5e3, 1e7):
        sizes = np.append(np.ones(9), large)
        problem = jc.LinearModel.from_data(z * sizes, z @ np.ones(10) + noise)
        assert problem.spectrum.dim == 10
        # The risk of a start at 0 does not depend on the columns' units.
        same = jc.LinearModel.from_data(z, z @ np.ones(10) + noise)
        risks = [float(p.risk(p.init())) for p in (problem, same)]
        optimum = np.linalg.lstsq(z, z @ np.ones(10) + noise, rcond=None)[0]
        np.testing.assert_allclose(risks, np.mean((z @ optimum) ** 2) / 2, rtol=1e-5)
        # The nine are those of the columns less what the tenth explains of them.
        rest = z[:, :9] - z[:, 9:] * (z[:, 9] @ z[:, :9] / (z[:, 9] @ z[:, 9]))
        small = np.linalg.eigvalsh(rest.T @ rest / 300)[::-1]
        np.testing.assert_allclose(problem.spectrum.eigenvalues[1:], small, rtol=1e-5)


def test_from_data_starts_at_the_risk_on_the_rows():
    rows = jc.Regression(X, Y, start=START)
    problem = jc.LinearModel.from_regression(rows)
    np.testing.assert_allclose(
        problem.risk(problem.init()), rows.risk(rows.init()), rtol=1e-12
    )


def test_from_data_with_random_features():
    problem = jc.LinearModel.from_data(X, Y, features=6, key=jr.key(4))
    features = jc.problem.random_features(X, 6, key=jr.key(4))
    expected = jc.LinearModel.from_data(features, Y)
    np.testing.assert_array_equal(problem.start, expected.start)
    np.testing.assert_allclose(problem.spectrum.eigenvalues[0], 1, rtol=1e-12)
    for settings in [{"features": 6}, {"key": jr.key(4)}]:
        with pytest.raises(ValueError, match="`features` and `key` go together"):
            jc.LinearModel.from_data(X, Y, **settings)


@float32
def test_random_features():
    features = np.asarray(jc.problem.random_features(X, 9, key=jr.key(5)))
    assert features.shape == (40, 9)
    W = np.asarray(jr.normal(jr.key(5), (4, 9)), np.float64) / 2
    expected = np.tanh(X @ W)
    expected -= expected.mean(axis=0)
    # Up to the scale, which makes the largest eigenvalue 1.
    scale = np.linalg.norm(features) / np.linalg.norm(expected)
    np.testing.assert_allclose(features, scale * expected, atol=1e-6)
    covariance = features.T @ features / 40
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[-1], 1, rtol=1e-6)
    assert not np.allclose(features, jc.problem.random_features(X, 9, key=jr.key(6)))


@pytest.mark.parametrize(
    ("X", "count", "message"),
    [
        (X[:, 0], 3, r"`X` must be a finite matrix. Got shape \(40,\)"),
        (_with(X, np.nan), 3, "`X` must be a finite matrix"),
        (X, 0, "`count` must be at least 1"),
        (np.ones((5, 2)), 3, "`X` must have a column that varies"),
        (X[:0], 3, "`X` must be a finite matrix"),
        (X[:, :0], 3, "`X` must be a finite matrix"),
    ],
)
def test_random_features_errors(X, count, message):
    with pytest.raises(ValueError, match=message):
        jc.problem.random_features(X, count, key=jr.key(0))
