"""Batches that are clipped as a whole, and what the criteria make of batches."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import integrate, special, stats

import jaxclip as jc
from jaxclip.limit import update_laws, update_moments
from jaxclip.noise import SparseSign

SPARSE = SparseSign(1.0, 0.3)
TABLE = [jc.Laplace(0.8), jc.StudentT(3.0, 0.6), jc.Contaminated(0.5, 4.0, 0.1)]


def normal_moments(size, variance, c):
    """Of a hard clip of the mean of normal residuals, in closed form."""
    q = (c * size) ** 2 / variance
    inside = special.gammainc(size / 2, q / 2)
    ratio = np.exp(special.gammaln((size - 1) / 2) - special.gammaln(size / 2))
    outside = ratio * special.gammaincc((size - 1) / 2, q / 2) / np.sqrt(2)
    mu = inside + (1 - 1 / size) * c * size / np.sqrt(variance) * outside
    kept = special.gammainc(size / 2 + 1, q / 2)
    return mu, variance / size * kept + c**2 * (1 - inside)


def by_definition(norm, size, c):
    """What is averaged over means of this norm: the descent and the square."""
    clipped = (1 - 1 / size) * c / norm
    return np.where(norm <= c, 1.0, clipped), np.minimum(norm, c) ** 2


def two_samples(noise, risk, c):
    """A hard clip of the mean of two samples, by a quadrature in polar coordinates."""
    law = noise.residual(2 * risk)
    nodes, weights = np.polynomial.legendre.leggauss(14)

    def panels(ends):
        middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
        return (
            (middle[:, None] + half[:, None] * nodes).ravel(),
            (half[:, None] * weights).ravel(),
        )

    density = jax.jit(jax.vmap(law.log_density))
    edges = np.unique(np.asarray(law.panel_edges()))
    extra = np.geomspace(1e-3, 0.5, 6) * float(law.size)
    radial = np.concatenate([[0.0, 2 * c], extra, edges, np.sqrt(2) * edges])
    radius, width = panels(np.unique(radial))
    ends = np.sort(np.arcsin(np.minimum(edges / radius[:, None], np.sqrt(0.5))), axis=1)
    ends = np.concatenate([0 * ends[:, :1], ends, 0 * ends[:, :1] + np.pi / 4], axis=1)
    angles, arcs = zip(*map(panels, ends), strict=True)
    first = radius[:, None] * np.sin(angles)
    second = radius[:, None] * np.cos(angles)
    product = density(first.ravel()) + density(second.ravel())
    # Both signs of each, and both halves of the quarter circle; the noise is symmetric.
    product = 8 * np.exp(np.asarray(product)).reshape(first.shape)
    mass = width * radius * np.sum(arcs * product, axis=1)
    assert mass.sum() == pytest.approx(1, abs=1e-8)
    return [mass @ value for value in by_definition(radius / 2, 2, c)]


@pytest.mark.parametrize("size", [2, 16, 500])
def test_normal_noise_has_a_closed_form(size):
    variance = 1.0 + 2 * 0.3
    c = 1.1 * np.sqrt(variance / size)
    m = jc.moments(jc.HardClip(3 * c), jc.Gaussian(1.0), 0.3, 3.0, batch_size=size)
    mu, second = normal_moments(size, variance, c)
    assert m.mu == pytest.approx(mu, rel=1e-10)
    assert m.second == pytest.approx(second, rel=1e-10)
    assert m.nu == pytest.approx(second * size / variance, rel=1e-10)


def test_a_jump_of_the_rule_counts():
    # mu = P(r < c) - c p(c) / B with p the density of the mean's norm.
    size, c = 3, 0.6
    m = jc.moments(jc.SkipClip(c), jc.Gaussian(1.0), 0.0, 1.0, batch_size=size)
    norm = stats.chi(size, scale=1 / size)
    assert m.mu == pytest.approx(norm.cdf(c) - c * norm.pdf(c) / size, rel=1e-10)
    second = integrate.quad(lambda r: r * r * norm.pdf(r), 0, c, epsabs=1e-12)[0]
    assert m.second == pytest.approx(second, rel=1e-10)


@pytest.mark.parametrize("noise", [SPARSE, *TABLE[:1]])
@pytest.mark.parametrize("risk", [1e-8, 0.3])
def test_two_samples_are_a_double_integral(noise, risk):
    c = 0.55
    m = jc.moments(jc.HardClip(c), noise, risk, 1.0, batch_size=2)
    if noise is SPARSE and risk < 1e-6:
        at = float(noise.size) * np.sqrt([1e-30, 1.0, 2.0]) / 2
        share = np.array([0.49, 0.42, 0.09])
        mu, second = (share @ value for value in by_definition(at, 2, c))
        assert m.mu == pytest.approx(mu, rel=1e-6)
        assert m.second == pytest.approx(second, rel=1e-6)
        return
    mu, second = two_samples(noise, risk, c)
    assert m.mu == pytest.approx(mu, rel=1e-6)
    assert m.second == pytest.approx(second, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [*TABLE[1:], jc.Cauchy(1.0), jc.Rademacher(1.0)])
@pytest.mark.parametrize("risk", [1e-8, 1e-3, 0.05, 0.6, 50.0])
def test_two_samples_of_other_noise(noise, risk):
    if isinstance(noise, jc.Rademacher) and risk < 0.01:
        return
    c = 0.55 * np.sqrt(1 + 2 * risk)
    m = jc.moments(jc.HardClip(c), noise, risk, 1.0, batch_size=2)
    mu, second = two_samples(noise, risk, c)
    # The slope of a density that falls like a power is a small difference where the
    # signal is narrow beside the norm.
    digits = 3e-6 if isinstance(noise, jc.Cauchy) and risk < 1e-6 else 1e-6
    assert m.mu == pytest.approx(mu, rel=digits)
    assert m.second == pytest.approx(second, rel=1e-6)


def within_errors(noise, risk, size, draws=2**17):
    """Draws of the definition, without Stein's identity or any density."""
    signal, label = jr.split(jr.key(1))
    w = np.sqrt(2 * risk) * jr.normal(signal, (draws, size))
    w = w - noise.sample(label, (draws, size))
    norm = np.sqrt(np.sum(np.square(w), axis=1)) / size
    # Where half of the batches are clipped.
    c = np.median(norm)
    m = jc.moments(jc.HardClip(c), noise, risk, 1.0, batch_size=size)
    for ours, seen in zip((m.mu, m.second), by_definition(norm, size, c), strict=True):
        error = seen.std() / np.sqrt(draws)
        assert abs(float(ours) - seen.mean()) < 4 * error
        # The check has the power to see one percent.
        assert error < 0.01 * float(ours)


def test_draws_of_batches():
    within_errors(SPARSE, 0.05, 6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 20, 300])
@pytest.mark.parametrize(
    "noise",
    [
        *TABLE,
        jc.Cauchy(0.5),
        jc.Uniform(1.0),
        jc.Exponential(1.0),
        jc.noise.Mask(0.8),
        jc.Empirical(np.linspace(-1.0, 1.5, 40) ** 3),
    ],
)
def test_draws_of_batches_of_other_noise(noise, size):
    within_errors(noise, 0.02, size, draws=2**20 // size)


def test_one_sample_is_as_before():
    how = jc.HardClip(0.7), jc.Laplace(1.0), 0.1, 2.0
    one, batch = jc.moments(*how), jc.moments(*how, batch_size=1)
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, one, batch))


def test_examples_are_one_sample_over_the_batch():
    how = jc.HardClip(0.7), jc.Laplace(1.0), 0.1, 2.0
    one = jc.moments(*how)
    many = jc.moments(*how, batch_size=5, scope=jc.PerExample())
    assert many.mu == pytest.approx(float(one.mu), rel=1e-13)
    assert many.ccc == pytest.approx(float(one.ccc), rel=1e-13)
    assert many.second == pytest.approx(float(one.second) / 5, rel=1e-13)


def test_the_clip_of_a_large_batch_is_a_rescaled_rate():
    size = 4000
    for kappa in (0.6, 1.5):
        c = kappa * float(SPARSE.std) / np.sqrt(size)
        m = jc.moments(jc.HardClip(c), SPARSE, 1e-3, 1.0, batch_size=size)
        assert m.mu == pytest.approx(min(1.0, kappa), abs=4 / np.sqrt(size))
        assert m.ccc == pytest.approx(1, abs=0.01)


def test_moments_are_differentiable():
    def of(numbers):
        c, risk, std = numbers
        m = jc.moments(jc.HardClip(c), SparseSign(std, 0.3), risk, 1.0, batch_size=4)
        return jnp.stack([m.mu, m.second])

    at, h = jnp.array([0.4, 0.05, 1.1]), 1e-5
    slopes = jax.jacfwd(of)(at)
    for i in range(3):
        step = h * jnp.eye(3)[i]
        numeric = (of(at + step) - of(at - step)) / (2 * h)
        assert slopes[:, i] == pytest.approx(np.asarray(numeric), rel=1e-5)


@pytest.mark.parametrize("risk", [1e-8, 2e-3, 0.4, 7.0])
def test_a_table_holds_the_moments(risk):
    update = jc.algorithm.Update(4)
    clip = jc.HardClip(0.4)
    laws = update_laws(SPARSE, update, 1.0)
    ours = update_moments(clip, SPARSE, risk, 1.0, 0, update, laws)
    direct = jc.moments(clip, SPARSE, risk, 1.0, batch_size=4)
    assert ours.mu == pytest.approx(float(direct.mu), rel=1e-6)
    assert ours.second == pytest.approx(float(direct.second), rel=1e-6)


@pytest.mark.parametrize("scope", [jc.PerTree(), jc.PerExample()])
def test_the_ode_of_a_batch(scope):
    # Isotropic features: du/dk = -2 rate mu u + d rate^2 second / 2 for one eigenvalue.
    d, size, rate = 200, 8, 1.5 / 200
    c = 0.3 if isinstance(scope, jc.PerTree) else 1.0

    def field(_, u):
        variance = 2 * u[0] + 1
        if isinstance(scope, jc.PerTree):
            mu, second = normal_moments(size, variance, c)
        else:
            q = c / np.sqrt(variance)
            mu = special.erf(q / np.sqrt(2))
            second = variance * special.gammainc(1.5, q * q / 2)
            second = (second + c * c * special.erfc(q / np.sqrt(2))) / size
        return -2 * rate * mu * u + rate**2 * second * d / 2

    at = np.array([100.0, 400.0, 2000.0])
    how = {"rtol": 1e-11, "atol": 1e-13, "t_eval": at, "method": "DOP853"}
    truth = integrate.solve_ivp(field, (0, at[-1]), [1.0], **how).y[0]
    spectrum = jc.Spectrum.isotropic(d)
    problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), jnp.ones(1) * np.sqrt(2))
    clip = jc.HardClip(c * spectrum.feature_norm)
    ours = jc.solve(problem, clip, rate, steps=at, batch_size=size, scope=scope)
    assert ours.risk == pytest.approx(truth, rel=1e-7)


def test_a_threshold_that_moves():
    # The same numbers from the laws as from their table.
    spectrum = jc.Spectrum.isotropic(50)
    problem = jc.LinearModel(spectrum, SPARSE, jnp.ones(1))
    curves = [
        jc.solve(problem, jc.HardClip(c), 0.01, steps=jnp.array([300.0]), batch_size=4)
        for c in (2.0, lambda step: 2.0 + 0 * step)
    ]
    assert curves[0].risk == pytest.approx(np.asarray(curves[1].risk), rel=1e-7)


def test_the_best_clip_of_a_batch():
    risk = 0.02
    best = jc.best_clip(SPARSE, risk, 1.0, batch_size=4)

    @jax.jit
    def ccc(c):
        return jc.moments(jc.HardClip(c), SPARSE, risk, 1.0, batch_size=4).ccc

    at = float(best.clip.threshold(0))
    others = [float(ccc(at * ratio)) for ratio in np.geomspace(0.05, 20, 41)]
    assert best.ccc == pytest.approx(max(others), rel=1e-4)
    assert best.ccc == pytest.approx(float(ccc(at)), rel=1e-6)
    assert best.ccc > 1.05


def test_the_best_clip_of_examples_is_that_of_one():
    one = jc.best_clip(SPARSE, 0.02, 1.0)
    many = jc.best_clip(SPARSE, 0.02, 1.0, batch_size=9, scope=jc.PerExample())
    assert one.clip.threshold(0) == many.clip.threshold(0) and one.ccc == many.ccc


def test_normal_batches_gain_nothing():
    best = jc.best_clip(jc.Gaussian(1.0), 0.1, 1.0, batch_size=5)
    assert best.clip.threshold(0) == jnp.inf and best.ccc == 1


@pytest.mark.slow
@pytest.mark.parametrize("scope", [jc.PerTree(), jc.PerExample()])
def test_the_best_schedule_of_a_batch(scope):
    spectrum = jc.Spectrum(jnp.array([1.0, 0.3]), [40, 60])
    problem = jc.LinearModel(spectrum, SPARSE, jnp.ones(2))
    how = {"batch_size": 4, "scope": scope}
    setting = jc.max_ccc(problem, 0.02, steps=400, **how)
    at = jnp.array([50.0, 400.0])
    clipped = jc.solve(problem, *setting, steps=at, **how).risk
    plain = jc.solve(problem, jc.Identity(), 0.02, steps=at, **how).risk
    bound = jc.ceiling(problem, 0.02, steps=at, batch_size=4).risk
    assert jnp.all(clipped < (1 + 1e-6) * plain) and clipped[-1] < 0.7 * plain[-1]
    assert jnp.all(clipped > bound)


def test_no_score_of_a_batch():
    problem = jc.LinearModel(jc.Spectrum.isotropic(9), SPARSE, jnp.ones(1))
    with pytest.raises(ValueError, match="PerExample"):
        jc.score(problem, 0.01, steps=10, batch_size=3)


@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_the_stable_rate_of_a_batch(size, momentum):
    lam, d = np.array([1.0, 0.5, 0.2]), np.array([2, 3, 6])
    problem = jc.LinearModel(
        jc.Spectrum(jnp.array(lam), d), jc.Gaussian(1.0), jnp.ones(3)
    )
    beta = momentum or 0.0

    def radius(rate):
        """Of the exact recursion of the second moments, noise left out."""
        a, b, c = np.split(np.eye(9), 3)
        square = (1 + 1 / size) * (lam**2)[:, None] * a
        square = square + lam[:, None] * ((lam * d) @ a) / size
        crossed = beta * b + lam[:, None] * a
        momentum_square = beta**2 * c + 2 * beta * lam[:, None] * b + square
        after = a - 2 * rate * crossed + rate**2 * momentum_square
        rows = [after, crossed - rate * momentum_square, momentum_square]
        return np.abs(np.linalg.eigvals(np.concatenate(rows))).max()

    rate = float(jc.stable_lr(problem, batch_size=size, momentum=momentum))
    assert radius(rate * (1 - 1e-6)) < 1 < radius(rate * (1 + 1e-6))


def test_the_stable_rate_of_batches_of_rows():
    X = np.random.default_rng(0).standard_t(4, size=(40, 3))
    problem = jc.Regression(X, np.zeros(40))
    K, one, size = X.T @ X / 40, np.eye(3), 5
    fourth = np.mean([np.kron(np.outer(a, a), np.outer(a, a)) for a in X], axis=0)
    squared = fourth / size + (1 - 1 / size) * np.kron(K, K)
    rate = float(jc.stable_lr(problem, batch_size=size))
    step = np.eye(9) - rate * (np.kron(K, one) + np.kron(one, K)) + rate**2 * squared
    assert np.abs(np.linalg.eigvals(step)).max() == pytest.approx(1, abs=1e-7)


def test_what_has_no_stable_rate():
    problem = jc.LinearModel(jc.Spectrum.isotropic(9), SPARSE, jnp.ones(1))
    with pytest.raises(ValueError, match="Nesterov"):
        jc.stable_lr(problem, momentum=jc.algorithm.Momentum(0.9, nesterov=True))
    with pytest.raises(ValueError, match="PerTree"):
        jc.best_clip(SPARSE, 0.1, 1.0, batch_size=2, scope=jc.PerCoordinate())
