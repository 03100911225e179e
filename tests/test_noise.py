"""Label noise: what is drawn, and the law that the limits are told it has."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import special, stats

import jaxclip as jc
from helpers import (
    NOISES,
    RESIDUALS,
    Skewed,
    all_noises,
    assert_within,
    mean_and_error,
)

# What each noise is, in other words: scipy's law and where its density is not smooth,
# or values with their probabilities.
SIZE = np.sqrt(18 / 5.25)  # of the triangular noise with standard deviation 1
CONTINUOUS = {
    "gaussian": (stats.norm(), []),
    "uniform": (stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)), [-np.sqrt(3), np.sqrt(3)]),
    "laplace": (stats.laplace(scale=np.sqrt(0.5)), [0]),
    "exponential": (stats.expon(loc=-1), [-1]),
    "student_t": (stats.t(3), []),
    "cauchy": (stats.cauchy(), []),
    "triangular": (
        stats.triang(0.2, loc=-SIZE, scale=2.5 * SIZE),
        [-SIZE, -0.5 * SIZE, 1.5 * SIZE],
    ),
}
SPARSE = 0.8 / np.sqrt(0.2)
DISCRETE = {
    "rademacher": ([-1, 1], [0.5, 0.5]),
    "sparse_sign": ([-SPARSE, 0, SPARSE], [0.1, 0.8, 0.1]),
    "empirical": (RESIDUALS, np.full(7, 1 / 7)),
}
MIXTURES = {
    "contaminated": ([0.9, 0.1], [0, 0], [1, 10]),
    "skewed": (Skewed.weights, Skewed.means, Skewed.stds),
}
VARIANCES = {
    "gaussian": 1,
    "rademacher": 1,
    "sparse_sign": 0.64,
    "contaminated": 0.9 + 0.1 * 100,
    "empirical": np.mean(RESIDUALS**2),
    "uniform": 1,
    "laplace": 1,
    "exponential": 1,
    "student_t": 3,
    "cauchy": np.inf,
    "triangular": 1,
    "skewed": 0.7 * (0.36 + 0.09) + 0.3 * (1.96 + 0.64),
}
names = pytest.mark.parametrize("name", NOISES)

DRAWS = 20_000


def draws(name):
    return np.asarray(NOISES[name].sample(jr.key(11), (DRAWS,)), np.float64)


def gauss(function, edges):
    """The integral of a vectorised function that is smooth between the edges, or the
    integrals of several in the rows of what it returns."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.unique(edges)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    values = function((middle[:, None] + half[:, None] * nodes).ravel())
    return np.sum(values * (half[:, None] * weights).ravel(), axis=-1)


def convolved(law, breaks, std, residual):
    """The density of `std * Z - noise` for a continuous law of the noise."""
    edges = [np.linspace(-12, 12, 97), (np.array(breaks) + residual) / std]
    edges = np.clip(np.concatenate(edges), -12, 12)
    # The noise is `std * z - residual` at a standard normal z.
    return gauss(lambda z: law.pdf(std * z - residual) * stats.norm.pdf(z), edges)


def density(name, std, residual):
    """The density of `std * Z - noise`, by a convolution of the test's own."""
    if name in CONTINUOUS:
        return convolved(*CONTINUOUS[name], std, residual)
    if name in DISCRETE:
        weights, means, stds = DISCRETE[name][1], DISCRETE[name][0], 0
    else:
        weights, means, stds = MIXTURES[name]
    total = np.sqrt(std**2 + np.square(stds))
    return np.sum(weights * stats.norm.pdf(residual, -np.asarray(means), total))


@eqx.filter_jit
def chunk(noise, signal_variance, residuals):
    law = noise.residual(signal_variance)
    densities = jnp.exp(jax.vmap(law.log_density)(residuals))
    return densities, law.expect(jnp.ones_like)


def describe(noise, signal_variance, residuals):
    """Densities of the law, and its total mass; one compilation for any residuals."""
    padded = np.pad(residuals, (0, -len(residuals) % 1000)).reshape(-1, 1000)
    signal_variance = jnp.asarray(signal_variance)
    parts = [chunk(noise, signal_variance, part) for part in padded]
    densities = np.concatenate([densities for densities, _ in parts])
    return densities[: len(residuals)], parts[0][1]


@names
def test_the_law_is_the_convolution(name):
    residuals = np.array([-7, -2.6, -1.8, -1.1, -0.4, 0, 0.3, 0.9, 1.7, 2.5, 6])
    for signal_variance in (1.0, 0.01):
        ours, mass = describe(NOISES[name], signal_variance, residuals)
        std = np.sqrt(signal_variance)
        expected = np.array([density(name, std, w) for w in residuals])
        assert np.all(expected[2:-2] > 0)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-13)
        assert mass == pytest.approx(1, abs=1e-12)


# Points that resolve every law, and reach as far as a Cauchy variable does.
GRID = np.sinh(np.linspace(-20, 20, 11 * DRAWS // 20 + 1))


@names
def test_draws_have_the_law(name):
    # The residual, signal and all, by the Kolmogorov-Smirnov distance: beyond
    # 1.95 / sqrt(n) the probability is 1 in 1000, and the seed is fixed.
    signal = 0.3 * np.random.default_rng(3).standard_normal(DRAWS)
    residuals = np.sort(signal - draws(name))
    densities, _ = describe(NOISES[name], 0.09, GRID)
    steps = np.diff(GRID) * (densities[1:] + densities[:-1]) / 2
    cumulative = np.concatenate([[0], np.cumsum(steps)])
    assert cumulative[-1] == pytest.approx(1, abs=1e-4)
    model = np.interp(residuals, GRID, cumulative)
    empirical = (np.arange(DRAWS) + 0.5) / DRAWS
    assert np.max(np.abs(model - empirical)) < 1.95 / np.sqrt(DRAWS)


@names
def test_draws_against_scipy(name):
    sample = draws(name)
    if name in CONTINUOUS:
        assert stats.kstest(sample, CONTINUOUS[name][0].cdf).statistic < 1.95 / np.sqrt(
            DRAWS
        )
    elif name in DISCRETE:
        for value, probability in zip(*DISCRETE[name], strict=True):
            share, error = mean_and_error(np.isclose(sample, value))
            assert_within(share, error, probability, power=0.02)
    else:
        weights, means, stds = MIXTURES[name]
        for point in (-1.5, -0.5, 0.2, 1.0, 4.0):
            share, error = mean_and_error(sample < point)
            expected = np.sum(weights * stats.norm.cdf(point, means, stds))
            assert_within(share, error, expected, power=0.02)


@names
def test_mean_and_variance(name):
    variance = float(NOISES[name].variance)
    assert variance == pytest.approx(VARIANCES[name], rel=1e-12)
    sample = draws(name)
    if np.isfinite(variance):
        # `Empirical` takes the residuals as they are, not centred.
        expected = np.mean(RESIDUALS) if name == "empirical" else 0
        assert_within(*mean_and_error(sample), expected, power=0.15)
    if name not in ("student_t", "cauchy"):  # whose fourth moment is infinite
        assert_within(*mean_and_error(sample**2), variance, power=0.15 * variance)


@pytest.mark.parametrize(
    ("df", "variance"), [(0.5, np.inf), (2, np.inf), (2.5, 5), (10, 1.25)]
)
def test_variance_of_student_t(df, variance):
    noise = jc.StudentT(df, 2.0)
    assert noise.variance == pytest.approx(4 * variance)
    slope = jax.grad(lambda df: jc.StudentT(df, 2.0).variance)(float(df))
    assert slope == pytest.approx(0 if df <= 2 else -8 / (df - 2) ** 2)


@jax.jit
def student_t(df, residuals):
    return chunk(jc.StudentT(df, 1.5), 0.01, residuals)[0]


@pytest.mark.parametrize("df", [0.4, 1.0, 2.5, 14.0, 100.0, 1e4])
def test_student_t_at_any_degrees(df):
    residuals = np.array([0, 0.7, 3, 5, 20])
    law = stats.t(df, 0, 1.5)
    exact = [convolved(law, [], 0.1, w) for w in residuals]
    concrete, mass = describe(jc.StudentT(df, 1.5), 0.01, residuals)
    np.testing.assert_allclose(concrete, exact, rtol=1e-9, atol=1e-20)
    assert mass == pytest.approx(1, abs=1e-10 if df >= 1 else 1e-6)
    # Traced, the number of nodes is one that serves from one degree of freedom on.
    traced = student_t(df, residuals)
    np.testing.assert_allclose(
        traced, exact, rtol=1e-9 if df >= 1 else 1e-5, atol=1e-20
    )


# What the limits read from a law, against integrals of its density


FUNCTIONS = {
    "clipped": lambda n: np.minimum(n, 0.7) ** 2,
    "outside": lambda n: np.where(n > 0.7, 1.0, 0.0),
    "smooth": lambda n: np.exp(-n / 2) * np.cos(n),
    "logarithm": lambda n: np.log(n + 0.1),
    "slope of arctan": lambda n: 3 / (1 + 9 * n**2),
}


@eqx.filter_jit
def read(noise, signal_variance):
    law = noise.residual(signal_variance)
    kinks = (jnp.asarray(0.7),)
    expectations = law.expect(
        lambda n: {
            "clipped": jnp.minimum(n, 0.7) ** 2,
            "outside": jnp.where(n > 0.7, 1.0, 0.0),
            "smooth": jnp.exp(-n / 2) * jnp.cos(n),
            "logarithm": jnp.log(n + 0.1),
        },
        kinks,
    )
    return (
        expectations,
        law.slope(lambda n: jnp.where(n > 0.7, 0.0, n), kinks),
        law.slope(lambda n: jnp.arctan(3 * n)),
    )


@pytest.mark.parametrize(
    "name", ["skewed", "uniform", "exponential", "triangular", "student_t", "cauchy"]
)
@pytest.mark.parametrize("signal_variance", [1.0, 1e-4])
def test_expectations_and_slopes(name, signal_variance):
    expectations, jump, smooth = read(NOISES[name], jnp.asarray(signal_variance))
    std = np.sqrt(signal_variance)
    # Panels of a third of the signal's width, up to where the noise is smooth.
    inner = np.arange(0, 4, std / 3) if std < 0.1 else np.arange(0, 12, 0.1)
    edges = np.concatenate([inner, inner[-1] * 1.3 ** np.arange(1, 160), [0.7]])

    def weighted(w):
        # The densities take the time: once for all the functions.
        at = np.concatenate([w, -w])
        ours, _ = describe(NOISES[name], signal_variance, at)
        both = ours.reshape(2, -1).sum(axis=0)
        return np.stack([function(w) * both for function in FUNCTIONS.values()])

    integrals = dict(zip(FUNCTIONS, gauss(weighted, edges), strict=True))
    for key, expectation in expectations.items():
        assert expectation == pytest.approx(integrals[key], rel=1e-9), key
    assert len(expectations) == 4

    # The slope is 1 inside, and at the jump minus its size times the density there.
    inside = 1 - integrals["outside"]
    at_jump = density(name, std, 0.7) + density(name, std, -0.7)
    assert jump == pytest.approx(inside - 0.7 * at_jump, rel=1e-8)
    assert smooth == pytest.approx(integrals["slope of arctan"], rel=1e-8)


# The residuals of a data set


def test_few_residuals_are_kept_as_they_are():
    noise = jc.Empirical(RESIDUALS)
    law = noise.residual(0.25)
    np.testing.assert_allclose(law.means, -RESIDUALS)
    np.testing.assert_allclose(law.weights, 1 / 7)
    np.testing.assert_allclose(law.stds, 0.5)
    assert jc.Empirical(RESIDUALS, atoms=7).means.shape == (7,)


def many_residuals():
    residuals = np.random.default_rng(4).standard_t(3, 4001) + 0.2
    residuals[:500] = 0.3  # ties, as rounded targets leave them
    return residuals


def test_many_residuals_are_binned():
    residuals = many_residuals()
    noise = jc.Empirical(residuals, atoms=64)
    assert noise.means.shape == (64,)
    assert np.sum(noise.weights) == pytest.approx(1, rel=1e-14)
    assert np.dot(noise.weights, noise.means) == pytest.approx(np.mean(residuals))
    squares = np.dot(noise.weights, noise.means**2 + noise.variances)
    assert squares == pytest.approx(np.mean(residuals**2), rel=1e-12)
    assert noise.variance == pytest.approx(np.mean(residuals**2), rel=1e-12)
    # The extremes are kept one by one.
    ordered = np.sort(residuals)
    np.testing.assert_array_equal(noise.means[:8], ordered[:8])
    np.testing.assert_array_equal(noise.means[-8:], ordered[-8:])
    np.testing.assert_array_equal(noise.variances[:8], 0)
    # What is drawn are the residuals themselves.
    sample = np.asarray(noise.sample(jr.key(0), (100,)))
    assert np.isin(sample, residuals).all()


def test_binning_hardly_moves_the_moments():
    residuals = many_residuals()
    noise = jc.Empirical(residuals)

    @eqx.filter_jit
    def ours(excess, c):
        return jc.moments(jc.HardClip(c), noise, excess, 1.0)

    # Relative, and the largest for a threshold among the sparse large residuals, where
    # bins are wider than the signal.
    for excess, tolerance in [(1.0, 5e-6), (0.05, 1e-4), (1e-3, 2e-3)]:
        for c in (0.3, 1.0, 4.0):
            m = ours(jnp.asarray(excess), jnp.asarray(c))
            mu, second = conditional(residuals, np.sqrt(2 * excess), c)
            assert m.mu == pytest.approx(np.mean(mu), rel=tolerance)
            assert m.second == pytest.approx(np.mean(second), rel=tolerance)


def conditional(noise, s, c):
    """`mu` and `second` of the hard clip, given the noise of the label."""
    beta, alpha = (c + noise) / s, (noise - c) / s
    # In the tail where the difference keeps its digits.
    flip = np.where(alpha > 0, -1.0, 1.0)
    m = flip * (special.ndtr(flip * beta) - special.ndtr(flip * alpha))
    phi_alpha, phi_beta = stats.norm.pdf(alpha), stats.norm.pdf(beta)
    second = s**2 * (m - (beta * phi_beta - alpha * phi_alpha))
    second -= 2 * s * noise * (phi_alpha - phi_beta)
    return m, second + noise**2 * m + c**2 * (1 - m)


def test_the_order_of_residuals_does_not_matter():
    # Whether a law is even is asked of its panel edges: of all, not of the first few.
    values = np.array([-2.0, -1.0, 1.0, 2.0, 5.0, -4.0])
    for order in ([0, 1, 2, 3, 4, 5], [4, 5, 3, 2, 1, 0]):
        law = jc.Empirical(values[order]).residual(0.0)
        edges = law.panel_edges()
        assert np.isclose(edges[:, None], np.abs(values)[None]).any(axis=0).all()
        right, left = (jax.vmap(law.log_density)(sign * edges) for sign in (1, -1))
        assert not np.allclose(right, left)


# Protocol


@pytest.mark.float32
@all_noises
def test_draws_are_arrays_of_the_asked_shape(noise):
    key = jr.key(1)
    for shape in ((), (2, 3)):
        sample = noise.sample(key, shape)
        assert sample.shape == shape
        assert sample.dtype == jnp.result_type(float)
        assert jnp.all(jnp.isfinite(sample))
    np.testing.assert_array_equal(noise.sample(key, (2, 3)), sample)
    assert not jnp.array_equal(noise.sample(jr.key(2), (2, 3)), sample)
    for leaf in jax.tree.leaves(noise):
        assert isinstance(leaf, (jax.Array, np.ndarray))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: jc.Gaussian(x), "std"),
        (lambda x: jc.Rademacher(x), "std"),
        (lambda x: jc.noise.SparseSign(x, 0.5), "std"),
        (lambda x: jc.noise.SparseSign(1.0, x), "prob"),
        (lambda x: jc.Contaminated(x, 2.0, 0.5), "std"),
        (lambda x: jc.Contaminated(1.0, x, 0.5), "outlier_std"),
        (lambda x: jc.Contaminated(1.0, 2.0, x), "prob"),
        (lambda x: jc.Laplace(x), "std"),
        (lambda x: jc.Uniform(x), "std"),
        (lambda x: jc.Exponential(x), "std"),
        (lambda x: jc.StudentT(x, 1.0), "df"),
        (lambda x: jc.StudentT(3.0, x), "scale"),
        (lambda x: jc.Cauchy(x), "scale"),
    ],
)
def test_bad_parameters_are_refused_by_name(make, name, without_type_checks):
    bad = [-1.0, np.nan, -np.inf, "wide", None, 1j]
    # No noise at all is a case that is wanted, of the normal law only.
    bad += [] if isinstance(make(1.0), jc.Gaussian) else [0.0, np.inf]
    bad += [1.5] if name == "prob" else []
    for value in bad:
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            make(value)
    traced = eqx.filter_jit(lambda x: make(x).residual(1.0).log_density(0.5))
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"`{name}` must be"):
        traced(jnp.asarray(-1.0))


@pytest.mark.parametrize(
    ("residuals", "message"),
    [
        (np.zeros(0), "at least one"),
        (np.zeros((2, 2)), "vector"),
        (np.float64(1), "vector"),
        (np.array([1, np.nan]), "finite"),
        (np.array([1, np.inf]), "finite"),
        ("many", "`residuals` must be a number"),
        (np.array([1j]), "must be real"),
    ],
)
def test_bad_residuals_are_refused(residuals, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        jc.Empirical(residuals)


def test_gaussian_noise_may_be_zero():
    noise = jc.Gaussian(0.0)
    assert noise.variance == 0
    np.testing.assert_array_equal(noise.sample(jr.key(0), (4,)), 0)
    densities, mass = describe(noise, 1.0, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(densities, stats.norm.pdf([0, 1]), rtol=1e-14)
    assert mass == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("atoms", [1, 2, 7, 8, 9, 20])
def test_few_atoms_have_the_mean_and_the_variance_of_all(atoms):
    values = np.random.default_rng(3).standard_t(3, size=50)
    noise = jc.Empirical(values, atoms=atoms)
    assert noise.weights.size == atoms
    np.testing.assert_allclose(jnp.sum(noise.weights), 1, rtol=1e-12)
    np.testing.assert_allclose(noise.weights @ noise.means, values.mean(), rtol=1e-10)
    square = noise.weights @ (noise.variances + noise.means**2)
    np.testing.assert_allclose(square, np.mean(values**2), rtol=1e-12)


@pytest.mark.parametrize("atoms", [0, -3, 2.5])
def test_a_number_of_atoms_that_is_none(atoms, without_type_checks):
    with pytest.raises(ValueError, match="`atoms` must be"):
        jc.Empirical(np.arange(20.0), atoms=atoms)


def test_a_mask_that_keeps_nothing_or_all(without_type_checks):
    with pytest.raises(ValueError, match="`keep` must be a probability"):
        jc.noise.Mask(0.0)
    everything = jc.noise.Mask(1.0)
    # What is kept is multiplied by 1, so that the residual is the signal alone.
    densities, _ = describe(everything, 1.0, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(densities, stats.norm.pdf([0, 1]), rtol=1e-14)


@pytest.mark.float32
@pytest.mark.parametrize("noise", [jc.Gaussian(0.0), jc.Empirical(np.zeros(3))])
def test_without_signal_and_noise_the_residual_is_nothing(noise):
    @eqx.filter_jit
    def expected(noise):
        law = noise.residual(jnp.zeros(()))
        small = law.expect(lambda norm: jnp.where(norm < 1e-6, 1.0, 0.0), (1e-6,))
        return small, law.expect(lambda norm: norm, ())

    small, norm = expected(noise)
    np.testing.assert_allclose(small, 1.0, rtol=1e-6)
    np.testing.assert_allclose(norm, 0.0, atol=1e-6)


class _Bare(jc.noise.AbstractLaw):
    """A law of which its author wrote what must be written, and no more."""

    law: jc.noise.AbstractLaw

    @property
    def size(self):
        return self.law.size

    def panel_edges(self):
        return self.law.panel_edges()

    def log_density(self, residual):
        return self.law.log_density(residual)

    def expect(self, function, kinks=()):
        return self.law.expect(function, kinks)

    def slope(self, function, kinks=()):
        return self.law.slope(function, kinks)

    def information(self):
        return self.law.information()


@pytest.mark.parametrize("name", ["exponential", "skewed"])
def test_functions_of_the_residual_follow_from_those_of_its_norm(name):
    # By a trapezoid rule on the density, which is analytic: of the signal's width.
    @jax.jit
    def both(variance, kink):
        law = NOISES[name].residual(variance)

        def psi(w):
            return jnp.where(w > kink, jnp.tanh(w - 0.2), 2 + jnp.cos(w))

        found = [
            (one.expect_signed(psi, [kink]), one.slope_signed(psi, [kink]))
            for one in (_Bare(law), law)
        ]
        w = kink + jnp.linspace(-30.0, 30.0, 60_001)
        p = jnp.exp(jax.vmap(law.log_density)(w))
        rise = jax.vmap(jax.grad(psi))(w).at[30_000].set(0.0)
        values = jax.vmap(psi)(w)
        # On the kink the mean of both sides, and the jump itself.
        sides = jnp.tanh(kink - 0.2), 2 + jnp.cos(kink)
        values = values.at[30_000].set(sum(sides) / 2)
        slopes = jnp.cosh(kink - 0.2) ** -2, -jnp.sin(kink)
        rise = rise.at[30_000].set(sum(slopes) / 2)
        jump = (sides[0] - sides[1]) * p[30_000]
        return found, (p @ values / 1e3, p @ rise / 1e3 + jump)

    for kink in (-0.7, 0.4, 0.0):
        (bare, own), expected = both(1.3, kink)
        np.testing.assert_allclose(bare, own, rtol=1e-9)
        np.testing.assert_allclose(bare, expected, rtol=2e-6)
