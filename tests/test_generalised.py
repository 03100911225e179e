"""The limits of losses beyond the squared one: one number, and two, for the state."""

from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad, solve_ivp
from scipy.special import expit
from scipy.stats import norm

import jaxclip as jc
from helpers import Skip, finite_difference
from jaxclip._schedule import as_schedule
from jaxclip.limit._crossing import crossing
from jaxclip.limit.linear._two_numbers import Clipped, Pair

float32 = pytest.mark.float32
ATOMS = np.array([-1.9, -0.7, -0.4, 0.1, 0.3, 1.1, 1.5])
NOISES: dict[str, jc.AbstractNoise] = {
    "Gaussian": jc.Gaussian(1.0),
    "Empirical": jc.Empirical(ATOMS),
    "Uniform": jc.Uniform(1.0),
    "Exponential": jc.Exponential(1.0),
    "StudentT": jc.StudentT(3.0, 1.0),
}
_F = 2.0  # the feature norm


class LogCosh(jc.problem.AbstractResidualLoss):
    """A loss as a user would write it, with a slope that is inverted nowhere."""

    def value(self, prediction, target):
        return jnp.logaddexp(prediction - target, target - prediction) - np.log(2)

    def slope(self, prediction, target):
        return jnp.tanh(prediction - target)

    def kinks(self):
        return ()


# Losses of the residual


@pytest.mark.parametrize("risk", [0.5, 1e-8])
@pytest.mark.parametrize("name", NOISES)
def test_the_huber_loss_is_a_hard_clip_of_the_residual(name, risk):
    noise = NOISES[name]
    expected = jc.moments(jc.HardClip(0.6 * _F), noise, risk, _F)
    for clip, loss in (
        (jc.Identity(), jc.HuberLoss(0.6)),
        (jc.HardClip(0.6 * _F), jc.HuberLoss(5.0)),
        (jc.HardClip(0.6 * _F), jc.HuberLoss(0.61)),
    ):
        m = jc.limit.loss_moments(clip, loss, noise, risk, _F)
        np.testing.assert_allclose(m.mu, expected.mu, rtol=1e-12)
        np.testing.assert_allclose(m.second, expected.second, rtol=1e-12)


def _below_0(name, signal):
    """The density of the residual at 0 and the probability that it is negative."""
    if name == "Exponential":
        # Minus the residual is an exponential number plus a normal one.
        law = scipy.stats.exponnorm(1 / signal, loc=-1.0, scale=signal)
        return law.pdf(0.0), law.sf(0.0)
    if name == "Empirical":
        law = norm(-ATOMS, signal)
        return law.pdf(0.0).mean(), law.cdf(0.0).mean()
    std = np.sqrt(1 + signal**2)
    return norm.pdf(0.0, 0.0, std), 0.5


@pytest.mark.parametrize("risk", [0.5, 1e-3])
@pytest.mark.parametrize("name", ["Gaussian", "Empirical", "Exponential"])
def test_the_pinball_loss_against_the_law_of_the_residual(name, risk):
    """The slope has two values, and jumps where the residual is 0."""
    level, threshold = 0.2, 0.6
    density, below = _below_0(name, np.sqrt(2 * risk))
    for clip, most in ((jc.Identity(), np.inf), (jc.HardClip(threshold), 0.3)):
        low, high = min(level, most), min(1 - level, most)
        loss = jc.PinballLoss(level)
        m = jc.limit.loss_moments(clip, loss, NOISES[name], risk, _F)
        second = below * low**2 + (1 - below) * high**2
        np.testing.assert_allclose(m.mu, density * (low + high), rtol=1e-9)
        np.testing.assert_allclose(m.second, second, rtol=1e-9)
        own = below * level**2 + (1 - below) * (1 - level) ** 2
        np.testing.assert_allclose(m.ccc, (low + high) ** 2 / second * own, rtol=1e-9)
        np.testing.assert_allclose(m.csc, (low + high) / second * own, rtol=1e-9)


_HARD, _SKIP = jc.HardClip(0.8), Skip(jnp.array(0.8))


@pytest.mark.parametrize(
    ("name", "rule"),
    # Each law and each rule once: a pair is a program.
    [
        ("Uniform", _HARD),
        ("Exponential", _SKIP),
        pytest.param("Uniform", _SKIP, marks=pytest.mark.slow),
        pytest.param("Exponential", _HARD, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_loss_of_one_s_own_against_samples_of_the_law(name, rule):
    """By quadrature over the noise and the signal that knows neither law nor kinks."""
    noise, risk, signal = NOISES[name], 0.3, np.sqrt(0.6)
    end = np.arctanh(0.4)  # where the slope is at the kink of the rule
    quantile = scipy.stats.expon(-1) if name == "Exponential" else scipy.stats.uniform(
        -np.sqrt(3), 2 * np.sqrt(3)
    )  # fmt: skip
    # Over w: the density of s Z - eps as a mean over the noise.
    e = quantile.ppf((np.arange(40_000) + 0.5) / 40_000)

    def density(w):
        return norm.pdf(w, -e, signal).mean()

    def integral(function, *ends):
        return sum(quad(function, a, b)[0] for a, b in pairwise(ends))

    def psi(w):
        s = np.tanh(w)
        inside = np.clip(s, -0.4, 0.4) if isinstance(rule, jc.HardClip) else s
        return inside if isinstance(rule, jc.HardClip) or abs(s) <= 0.4 else 0.0

    mu = integral(lambda w: density(w) / np.cosh(w) ** 2, -end, end)
    if not isinstance(rule, jc.HardClip):
        mu -= 0.4 * (density(end) + density(-end))
    second = integral(lambda w: density(w) * psi(w) ** 2, -12, -end, 0, end, 12)
    m = jc.limit.loss_moments(rule, LogCosh(), noise, risk, _F)
    np.testing.assert_allclose(m.mu, mu, rtol=2e-4)
    np.testing.assert_allclose(m.second, second, rtol=2e-4)


def test_derivatives_of_the_moments_of_a_loss():
    # The values beside by the same program as the gradient.
    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def mu(x):
        clip, loss = jc.HardClip(x[0]), jc.HuberLoss(x[1])
        m = jc.limit.loss_moments(clip, loss, NOISES["Exponential"], x[2], x[3])
        return m.mu + m.second

    for x in ([0.9, 0.8, 0.3, 2.0], [1.9, 0.8, 0.3, 2.0]):
        at = np.tile(x, (4, 1))
        ours = finite_difference(lambda t, at=at: mu(at + t * np.eye(4))[0], 0.0, 1e-4)
        np.testing.assert_allclose(mu(at)[1][0], ours, rtol=1e-5, atol=1e-8)


def test_a_loss_without_a_second_moment_says_so():
    class Growing(LogCosh):
        def slope(self, prediction, target):
            return 2.0 * (prediction - target)

    m = jc.limit.loss_moments(jc.Identity(), Growing(), jc.Cauchy(1.0), 0.1, 1.0)
    assert jnp.isinf(m.second) and jnp.isfinite(m.mu)
    m = jc.limit.loss_moments(jc.HardClip(1.0), Growing(), jc.Cauchy(1.0), 0.1, 1.0)
    # Twice the slope: half the threshold.
    half = jc.moments(jc.HardClip(0.5), jc.Cauchy(1.0), 0.1, 1.0)
    np.testing.assert_allclose(m.second, 4 * half.second, rtol=1e-12)
    np.testing.assert_allclose(m.mu, 2 * half.mu, rtol=1e-12)


def test_the_efficiency_is_at_most_the_information():
    noise, risk = jc.Laplace(1.0), 1e-3
    bound = jc.criterion.fisher_information(noise, risk)
    pinball, huber, square = (
        jc.limit.loss_moments(jc.Identity(), loss, noise, risk, 1.0).efficiency
        for loss in (jc.PinballLoss(0.5), jc.HuberLoss(1.0), jc.SquaredLoss())
    )
    # Next to the optimum the median is the best estimator of this law's location.
    assert square < huber < pinball < bound


@float32
def test_a_point_where_a_slope_takes_a_value():
    def slope(x):
        return jnp.where(x < 1, jnp.tanh(x), 2 + x)

    size = jnp.ones(())
    cases = (0.5, np.arctanh(0.5)), (4.0, 2.0), (2.0, 1.0), (-2, -np.inf)
    for value, expected in cases:
        np.testing.assert_allclose(crossing(slope, value, size), expected, rtol=1e-6)
    assert crossing(jnp.tanh, jnp.inf, size) == jnp.inf
    derivative = jax.grad(lambda v: crossing(jnp.tanh, v, size))(0.5)
    np.testing.assert_allclose(derivative, 1 / (1 - 0.25), rtol=1e-5)


_DIM = 400
_SPECTRUM = jc.Spectrum.isotropic(_DIM)
_STEPS = np.arange(0, 1201, 400)


def _mean(problem, clip, lr, runs=128, **how):
    def run(key):
        return jc.simulate(
            problem, clip, lr, steps=1200, every=400, key=key, engine=jc.Lumped(), **how
        ).risk

    risks = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(0), runs)))
    return risks.mean(0), risks.std(0) / np.sqrt(runs)


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(jc.HuberLoss(0.15), id="huber", marks=pytest.mark.slow),
        pytest.param(jc.PinballLoss(0.3), id="pinball", marks=pytest.mark.slow),
    ],
)
def test_runs_follow_the_limit_of_their_loss(loss):
    problem = jc.LinearModel(_SPECTRUM, jc.Exponential(1.0), [1.0], loss)
    clip, lr = jc.HardClip(0.4 * _SPECTRUM.feature_norm), 0.8 / _DIM
    mean, error = _mean(problem, clip, lr)
    ode = jc.solve(problem, clip, lr, steps=_STEPS)
    # What the mean of runs is off by is of the order of one over the dimension.
    assert np.all(np.abs(mean - ode.risk) <= 4 * error + 3 / _DIM * ode.risk[0])
    wrong = jc.LinearModel(_SPECTRUM, jc.Exponential(1.0), [1.0])
    other = jc.solve(wrong, clip, lr, steps=_STEPS).risk
    assert np.abs(mean - other)[-1] > 10 * error[-1]


@pytest.mark.slow
def test_the_other_limits_and_problems_take_a_loss():
    loss, steps = jc.HuberLoss(0.7), jnp.array([0.0, 50.0, 300.0])
    spectrum = jc.Spectrum.power_law(60, 0.5)
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), jnp.full(60, 0.2), loss)
    clip, lr = jc.HardClip(0.5 * spectrum.feature_norm), 0.3 / spectrum.trace
    ode = jc.solve(problem, clip, lr, steps=steps).risk
    few = jc.solve(problem.compress(), clip, lr, steps=steps).risk
    np.testing.assert_allclose(few, ode, rtol=1e-6)
    batches: dict[str, Any] = dict(batch_size=4, scope=jc.PerExample())
    batch = jc.solve(problem, clip, 2 * lr, steps=steps, **batches).risk
    # Half the noise at twice the rate for a quarter of the second moment.
    assert batch[1] < ode[1]

    def path(key):
        how = dict(steps=steps, limit=jc.HomogenizedSDE(), key=key)
        return jc.solve(problem, clip, lr, **how).risk

    paths = jax.vmap(path)(jr.split(jr.key(1), 64))
    error = paths.std(0) / 8
    assert jnp.all(jnp.abs(paths.mean(0) - ode) <= 4 * error + 0.02 * ode[0])


def test_what_has_no_limit_is_refused():
    problem = jc.LinearModel(_SPECTRUM, jc.Gaussian(1.0), [1.0], jc.HuberLoss(1.0))
    how = dict(clip=jc.HardClip(1.0), lr=0.01, steps=_STEPS)
    private = jc.PerExample(noise_std=1.0, key=jr.key(0))
    for changes, match in (
        (dict(batch_size=4), "take `scope=PerExample"),
        (dict(scope=jc.PerCoordinate(), limit=jc.RiskODE()), "of whole gradients"),
        (dict(scope=private, limit=jc.RiskODE()), "noise_std"),
        (dict(limit=jc.limit.GeneralisedODE()), "a `LinearModel` has `RiskODE"),
    ):
        with pytest.raises(ValueError, match=match):
            jc.solve(problem, **how, **changes)
    logistic = jc.Logistic(_SPECTRUM, [1.0])
    with pytest.raises(ValueError, match="no equation for this `momentum`"):
        jc.solve(logistic, **how, momentum=0.9)
    wrong = jc.LinearModel(_SPECTRUM, jc.Gaussian(1.0), [1.0], jc.LogisticLoss())
    with pytest.raises(ValueError, match="AbstractResidualLoss"):
        jc.solve(wrong, **how)


# Two numbers


def _by_grid(threshold, predicted, both, signal):
    """The coefficients of the logistic loss on a grid of predictions and signals: a
    Gauss rule between the kinks, and given a prediction the trapezoid rule."""
    std, rise = np.sqrt(predicted), both / predicted
    left = np.sqrt(max(signal - both**2 / predicted, 0))
    kink = np.log(threshold / (1 - threshold)) if threshold < 1 else 0.0
    reach = 9.5 * std
    ends = [*np.linspace(-reach, reach, 65), *np.linspace(-40, 40, 33), kink, -kink]
    ends = np.unique(np.clip(ends, -reach, reach))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half, middle = np.diff(ends)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
    r, dr = (middle + half * nodes).ravel(), (half * weights).ravel()
    mass = dr * norm.pdf(r, 0, std)
    z = np.linspace(-9.5, 9.5, 2001)
    signals = rise * r[:, None] + left * z
    over = norm.pdf(z) * (z[1] - z[0])
    one, slope = expit(signals) @ over, (expit(signals) * expit(-signals)) @ over

    def psi(y):
        return np.clip(expit(r) - y, -threshold, threshold)

    inside = [abs(expit(r) - y) < threshold for y in (0, 1)]
    rises = expit(r) * expit(-r) * ((1 - one) * inside[0] + one * inside[1])
    along, pull = mass @ rises, mass @ (slope * (psi(1) - psi(0)))
    second = mass @ ((1 - one) * psi(0) ** 2 + one * psi(1) ** 2)
    return np.array([along, along + pull, second])


def _pair(predicted, both, signal) -> Pair:
    numbers = signal, both - signal, predicted - 2 * both + signal
    return Pair(*(jnp.asarray(float(x)) for x in numbers))


@eqx.filter_jit
def _coefficients(problem, clip, pair):
    return Clipped(problem, clip, as_schedule(1.0, "lr"), 1)(0, pair)


@jax.jit
def _logistic(threshold, pair):
    problem = jc.Logistic(jc.Spectrum.isotropic(100), [1.0])
    clip = jc.HardClip(threshold * 10.0)
    return jnp.stack(_coefficients(problem, clip, pair))


@pytest.mark.parametrize(
    "at",
    [
        (0.3, 1.0, 0.5, 4.0),
        (0.3, 4.0, 4.0, 4.0),  # at the optimum, where the covariance is singular
        (np.inf, 4.0, 4.0, 4.0),
        (0.5, 0.01, 0.1, 4.0),
        (0.1, 400.0, 0.0, 400.0),
        (0.3, 1e-2, 1.998, 400.0),  # along the optimum, |x*| = 20
        (0.01, 100.0, 0.1, 1e-3),
        (1e-6, 1.0, 0.5, 4.0),
    ],
)
def test_the_coefficients_by_quadrature_in_two_dimensions(at):
    threshold, *covariances = at
    ours = _logistic(threshold, _pair(*covariances))
    np.testing.assert_allclose(ours, _by_grid(*at), rtol=1e-9, atol=1e-12)


def test_the_coefficients_where_x_is_zero():
    """There the prediction is 0, and the slope one half; what is left of the pull is
    half the slope of the mean label."""
    ours = _logistic(0.3, _pair(0.0, 0.0, 4.0))
    slope = quad(lambda u: expit(u) * expit(-u) * norm.pdf(u, 0, 2), -40, 40)[0]
    np.testing.assert_allclose(ours, [0, -0.6 * slope, 0.09], atol=1e-12)
    derivative = jax.jacfwd(lambda pair: _logistic(0.6, pair))(_pair(0.0, 0.0, 4.0))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(derivative))


@pytest.mark.parametrize("rule", [Skip(jnp.array(4.0)), jc.SoftClip(3.0)], ids=repr)
def test_the_coefficients_of_other_rules_by_samples(rule):
    """E[psi (r, r*)] is the covariance times (A, D), whatever the rule."""
    problem = jc.Logistic(jc.Spectrum.isotropic(100), [1.0])
    signal, both, predicted, n = 2.0, 0.7, 1.5, 2_000_000
    rng = np.random.default_rng(0)
    s = np.sqrt(signal) * rng.normal(size=n)
    left = np.sqrt(predicted - both**2 / signal)
    r = both / signal * s + left * rng.normal(size=n)
    g = expit(r) - (rng.uniform(size=n) < expit(s))
    psi = g * np.asarray(rule.factor(jnp.asarray(np.abs(g) * 10.0), 0))
    ours = _coefficients(problem, rule, _pair(predicted, both, signal))
    along, pull = float(ours.along), float(ours.drift - ours.along)
    for samples, expected in (
        (psi * r, predicted * along + both * pull),
        (psi * s, both * along + signal * pull),
        (psi**2, float(ours.second)),
    ):
        error = samples.std() / np.sqrt(n)
        assert abs(samples.mean() - expected) < 4 * error
        assert error < 0.02 * abs(expected) + 1e-3  # and the check has power


@pytest.mark.slow
@pytest.mark.parametrize("predicted, both, signal", [(1.0, 0.2, 0.5), (0.3, 0.4, 1.0)])
def test_the_coefficients_of_counts_in_closed_form(predicted, both, signal):
    """Without a clip they are moments of the lognormal law."""
    problem = jc.problem.Poisson(jc.Spectrum.isotropic(100), [1.0])
    pair = _pair(predicted, both, signal)
    ours = _coefficients(problem, jc.Identity(), pair)
    along, pull = np.exp(predicted / 2), -np.exp(signal / 2)
    second = np.exp(2 * predicted) - 2 * np.exp((predicted + signal) / 2 + both)
    second += np.exp(2 * signal) + np.exp(signal / 2)
    np.testing.assert_allclose(ours, [along, along + pull, second], rtol=1e-7)


@pytest.mark.slow
def test_the_limit_against_another_solver():
    """The equations for x itself, solved by scipy, with coefficients on the grid."""
    spectrum = jc.Spectrum([1.0, 0.3], [30, 100])
    optimum, start = np.array([1.2, 0.9]), np.array([0.3, -0.2])
    lam, dims = np.array([1.0, 0.3]), np.array([30, 100])
    lr, threshold, trace = 0.02, 0.3, 60.0

    def rate(_, y):
        cross, square = y[:2], y[2:]
        both, predicted = lam @ cross, lam @ square
        a, pulled, second = _by_grid(threshold, predicted, both, lam @ optimum**2)
        d = pulled - a
        return np.concatenate([
            -lr * lam * (a * cross + d * optimum**2),
            -2 * lr * lam * (a * square + d * cross) + lr**2 * lam * dims * second,
        ])  # fmt: skip

    y0 = np.concatenate([start * optimum, start**2])
    found = solve_ivp(rate, (0, 60), y0, rtol=1e-7, atol=1e-9)
    cross, square = found.y[:2, -1], found.y[2:, -1]
    problem = jc.Logistic(spectrum, optimum, start)
    clip = jc.HardClip(threshold * np.sqrt(trace))
    curve = jc.solve(problem, clip, lr, steps=jnp.array([0.0, 60.0]))
    along = cross / optimum
    beside = np.sqrt(square - along**2)
    ours = np.asarray(curve.reduced)
    np.testing.assert_allclose(ours, [*along, *beside], rtol=1e-6)
    params = jnp.asarray(ours) / jnp.array([1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(problem.lumped().risk(params), curve.risk[-1], rtol=1e-9)


_TWO = jc.Spectrum([1.0, 0.25], [100, 400])


def test_logistic_runs_follow_their_limit():
    problem = jc.Logistic(_TWO, [1.5, 2.0], [0.4, -0.5])
    clip, lr = jc.HardClip(0.3 * _TWO.feature_norm), 3.0 / 200
    mean, error = _mean(problem, clip, lr, runs=64)
    ode = jc.solve(problem, clip, lr, steps=_STEPS)
    assert np.all(np.abs(mean - ode.risk) <= 4 * error + 0.004)
    free = jc.solve(problem, jc.HardClip(1e9), lr, steps=_STEPS)
    assert np.all(np.abs(mean - free.risk)[1:] > 10 * error[1:])


@pytest.mark.slow
def test_logistic_batches_follow_their_limit():
    problem = jc.Logistic(_TWO, [1.5, 2.0], [0.4, -0.5])
    clip, lr = jc.HardClip(0.3 * _TWO.feature_norm), 3.0 / 200
    batches: dict[str, Any] = dict(batch_size=4, scope=jc.PerExample())
    mean, error = _mean(problem, clip, lr, **batches)
    ode = jc.solve(problem, clip, lr, steps=_STEPS, **batches)
    assert np.all(np.abs(mean - ode.risk) <= 4 * error + 0.002)


@pytest.mark.slow
def test_counted_runs_follow_their_limit():
    spectrum = jc.Spectrum.isotropic(_DIM)
    problem = jc.problem.Poisson(spectrum, [0.8], [-0.2])
    clip, lr = jc.HardClip(1.5 * spectrum.feature_norm), 0.4 / _DIM
    mean, error = _mean(problem, clip, lr)
    limit = jc.limit.GeneralisedODE(rtol=1e-5)
    ode = jc.solve(problem, clip, lr, steps=_STEPS, limit=limit)
    assert np.all(np.abs(mean - ode.risk) <= 4 * error + 0.004)
    assert ode.risk[-1] < 0.5 * ode.risk[0]


def test_labels_of_counts_have_the_mean_of_their_signal():
    problem = jc.problem.Poisson(jc.Spectrum([2.0, 0.5], [2, 3]), [0.6, 0.3])
    stream = problem.stream(jr.key(3))
    examples = jax.jit(jax.vmap(lambda i: problem.example(stream, i)))
    A, y = examples(jnp.arange(40_000))
    direction = np.array([0.6, 0.6, 0, 0, 0]) / np.sqrt(2)
    direction[2:] = 0.3 / np.sqrt(3)
    excess = np.asarray(y) - np.exp(np.asarray(A) @ direction)
    for along in (np.ones(len(y)), np.asarray(A) @ direction):
        terms = excess * along
        assert abs(terms.mean()) < 4 * terms.std() / np.sqrt(len(terms))
    # And the risk is the expected loss: Monte Carlo with the labels' own mean.
    point = jnp.array([0.2, -0.1, 0.3, 0.0, 0.1])
    r, best = np.asarray(A @ point), np.asarray(A) @ direction
    loss = np.exp(r) - np.exp(best) * r - np.exp(best) + np.exp(best) * best
    error = loss.std() / np.sqrt(len(loss))
    assert abs(loss.mean() - problem.risk(point)) < 4 * error
    np.testing.assert_allclose(problem.risk(jnp.asarray(direction)), 0, atol=1e-15)


def _end(x):
    problem = jc.Logistic(jc.Spectrum.isotropic(50), x[2:3], x[3:])
    clip = jc.HardClip(x[0] * np.sqrt(50))
    return jc.solve(problem, clip, x[1] / 50, steps=jnp.array([0.0, 60.0])).risk[-1]


@pytest.mark.slow
def test_derivatives_of_the_limit():
    """In the threshold, the rate, the optimum and the start; at a start of 0, where the
    covariance of prediction and signal is singular, too."""
    gradient, end = jax.jit(jax.grad(_end)), jax.jit(_end)
    for x in ([0.3, 2.0, 1.5, 0.4], [0.3, 2.0, 1.5, 0.0]):
        x = jnp.array(x)
        found = gradient(x)
        for i in range(4):
            ours = finite_difference(
                lambda t, i=i, x=x: end(x.at[i].set(t)), x[i], 1e-3
            )
            np.testing.assert_allclose(found[i], ours, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_limit_under_vmap():
    settings = jnp.array([[0.3, 2.0, 1.5, 0.4], [0.5, 1.0, 1.5, 0.0]])
    together = jax.vmap(_end)(settings)
    one = _end(settings[1])
    np.testing.assert_allclose(together[1], one, rtol=1e-8)


# At k = .5, 1, 2, 5, 10 and 20 intrinsic dimensions: by a program that has nothing of
# this package, with Gauss-Hermite nodes for the signal, the covariance's inverse, and
# scipy's Runge-Kutta method of order 8.
_TIMES = np.array([0.5, 1, 2, 5, 10, 20])
_REFERENCE = {
    "isotropic": "0.204710403 0.184870478 0.155754327 0.113005055 0.097621269"
    " 0.107184215",
    "blocks": "0.115750547 0.120912863 0.130020598 0.146042747 0.157580540 0.168035434",
}


@float32
@pytest.mark.parametrize("name", _REFERENCE)
def test_the_reference_curves_of_logistic_regression(name):
    spectrum = _SPECTRUM
    if name == "blocks":
        spectrum = jc.Spectrum([1.0, 0.5, 0.25, 0.1], [50, 100, 150, 200])
    dimension = float(spectrum.intrinsic_dimension)
    problem = jc.Logistic(spectrum, 2 * jnp.sqrt(spectrum.multiplicity / spectrum.dim))
    clip = jc.HardClip(0.3 * spectrum.feature_norm)
    curve = jc.solve(problem, clip, 3.0 / dimension, steps=dimension * _TIMES)
    expected = np.array(_REFERENCE[name].split(), float)
    exact = curve.risk.dtype == jnp.float64
    tolerance = 2e-8 if exact else 2e-4
    np.testing.assert_allclose(curve.risk, expected, rtol=tolerance)


@float32
def test_the_limit_at_extremes():
    spectrum = _SPECTRUM
    for setting in ((2.0, 1e-4, 3.0), (20.0, np.inf, 3.0), (1e-4, 0.3, 1.0)):
        optimum, threshold, rate = setting
        problem = jc.Logistic(spectrum, [optimum])
        clip = jc.HardClip(threshold * spectrum.feature_norm)
        risk = jc.solve(problem, clip, rate / _DIM, steps=jnp.array([0.0, 400.0])).risk
        assert jnp.all(jnp.isfinite(risk)) and jnp.all(risk >= 0)


def test_a_bounded_slope_diverges_at_no_rate():
    problem = jc.Logistic(_SPECTRUM, [1.0])
    steps = jnp.array([0.0, 100.0])
    # The parameters grow by a bounded step.
    risk = jc.solve(problem, jc.Identity(), 1.0, steps=steps).risk
    assert jnp.all(jnp.isfinite(risk)) and risk[1] > 10
