"""Adam and AdaGrad: their limits against chains of single coordinates, other solvers
and runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.integrate

import jaxclip as jc
from helpers import (
    CLIPS,
    NOISES,
    Skip,
    assert_within,
    finite_difference,
    mean_and_error,
)

float32 = pytest.mark.float32

ROOT = np.sqrt(2 / np.pi)
# Three eigenvalues, two of them repeated.
SPECTRUM = jc.Spectrum([1.0, 0.3, 0.05], [30, 60, 90])
START = np.array([1.0, 0.8, 1.5])

_solve = eqx.filter_jit(jc.solve)


def _moments(clip, noise, *numbers):
    # Traced, so that other numbers are no other program.
    return _compiled(clip, noise, *map(jnp.asarray, numbers))


@eqx.filter_jit
def _compiled(clip, noise, risk, feature_norm, b1, b2):
    limit = jc.limit.AdamODE(b1, b2)
    return limit.moments(clip, noise, risk, feature_norm)


def _chain(psi, slope, w, r, b1, b2):
    """The updates of single coordinates, and their derivatives in a signal.

    Chains along the second axis. In the error of a coordinate of variance 1 the
    gradient psi(w) r has the derivative psi'(w) r^2.
    """
    m = v = dm = dv = np.zeros(w.shape[1])
    updates, derivatives = [], []
    for g, dg in zip(psi(w) * r, slope(w) * r**2, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        dm, dv = b1 * dm + (1 - b1) * dg, b2 * dv + 2 * (1 - b2) * g * dg
        updates.append(m / np.sqrt(v))
        derivatives.append(dm / np.sqrt(v) - m * dv / (2 * v**1.5))
    return np.array(updates), np.array(derivatives)


@pytest.mark.parametrize(
    ("noise", "threshold", "b1", "b2"),
    [
        ("exponential", 0.5, 0.6, 0.7),
        ("laplace", np.inf, 0.8, 0.9),
        ("cauchy", 1.5, 0.0, 0.8),
    ],
)
def test_the_moments_are_those_of_a_chain(noise, threshold, b1, b2):
    risk, noise = 0.4, NOISES[noise]
    burn, length, chains = 100, 1000, 800
    rng = np.random.default_rng(3)
    shape = burn + length, chains
    signal = np.sqrt(2 * risk) * rng.standard_normal(shape)
    w = signal - np.asarray(noise.sample(jr.key(0), shape))
    updates, derivatives = _chain(
        lambda w: np.clip(w, -threshold, threshold),
        lambda w: np.abs(w) < threshold,
        *(w, rng.standard_normal(shape), b1, b2),
    )
    clip = jc.HardClip(2.0 * threshold) if threshold < np.inf else jc.Identity()
    m = _moments(clip, noise, risk, 2.0, b1, b2)
    mean, error = mean_and_error(derivatives[burn:].mean(axis=0))
    assert_within(mean, error, m.drift, power=0.05 * float(m.drift))
    # Beyond so many lags what is left is below b1 to their power.
    lags, u = (int(np.log(1e-3) / np.log(b1)) if b1 else 0), updates[burn:]
    after = np.cumsum(u, axis=0)
    later = after[lags : len(u) - 1] - after[: len(u) - 1 - lags] if lags else 0.0
    now = u[: len(u) - 1 - lags] if lags else u
    mean, error = mean_and_error((now**2 + 2 * now * later).mean(axis=0))
    assert_within(mean, error, m.diffusion, power=0.12 * float(m.diffusion))


@pytest.mark.parametrize("noise", ["gaussian", "exponential", "student_t"])
def test_without_memory_it_is_the_descent_by_signs(noise):
    law = NOISES[noise].residual(1.0)
    density = np.exp(law.log_density(0.0))
    m = _moments(jc.Identity(), NOISES[noise], 0.5, 1.0, 0.0, 0.0)
    np.testing.assert_allclose(m.drift, 2 * density * ROOT, rtol=1e-8)
    np.testing.assert_allclose(m.diffusion, 1.0, rtol=1e-8)


@pytest.mark.parametrize("clip", ["identity", "hard", "skip", "normalize"])
def test_with_a_long_memory_it_is_momentum_with_a_preconditioner(clip):
    clip, noise = CLIPS[clip], NOISES["skewed"]
    m = _moments(clip, noise, 0.5, 1.0, 0.9, 1 - 1e-5)
    plain = jc.moments(clip, noise, 0.5, 1.0)
    np.testing.assert_allclose(m.drift, plain.mu / np.sqrt(plain.second), rtol=2e-4)
    np.testing.assert_allclose(m.diffusion, 1.0, rtol=2e-4)


def test_the_scale_of_gradients_does_not_matter():
    # A clip far below all gradients keeps their signs, as `Normalize` does.
    given = NOISES["laplace"], 0.5, 3.0, 0.5, 0.9
    small, signs = (_moments(c, *given) for c in (jc.HardClip(1e-9), jc.Normalize()))
    np.testing.assert_allclose(small, signs, rtol=1e-5)
    # And residuals in another unit have drifts in one over that unit.
    clip, unit = jc.HardClip(0.7), 1e6
    one = _moments(clip, jc.Laplace(1.0), 0.5, 1.0, 0.5, 0.9)
    other = _moments(clip, jc.Laplace(unit), 0.5 * unit**2, 1 / unit, 0.5, 0.9)
    np.testing.assert_allclose(other.drift * unit, one.drift, rtol=1e-9)
    np.testing.assert_allclose(other.diffusion, one.diffusion, rtol=1e-9)


def _problem(noise):
    return jc.LinearModel(SPECTRUM, NOISES[noise], START, optimum=jnp.zeros(len(START)))


@pytest.mark.parametrize("slow", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_curve_solves_its_equation(slow):
    """By scipy, from the moments themselves in place of the table."""
    clip, noise, b1, b2, end = jc.HardClip(4.0), NOISES["laplace"], 0.8, 0.97, 300.0
    norm, lam = float(SPECTRUM.feature_norm), np.asarray(SPECTRUM.eigenvalues)
    dims = np.asarray(SPECTRUM.multiplicity)

    def lr(step):
        return 0.01 / (1 + step / 200)

    seen = jax.jit(
        lambda risk: (
            *_moments(clip, noise, risk, norm, b1, b2),
            jc.moments(clip, noise, risk, norm).second,
        )
    )

    def field(step, y):
        v, average = y[:-1], y[-1]
        alpha, beta, second = (float(x) for x in seen(np.sum(lam * v)))
        ratio = second / average if slow else 1.0
        pull = -2 * lr(step) * alpha * np.sqrt(ratio * lam) * v
        noise = lr(step) ** 2 * beta * ratio * dims / 2
        growth = (1 - b2) / (1 - b2 ** (step + 1)) * (second - average)
        return np.append(pull + noise, growth)

    start = START**2 / 2
    first = float(seen(np.sum(lam * start))[2])
    how = {"rtol": 1e-7, "t_eval": [0, 100, end]}
    path = scipy.integrate.solve_ivp(field, (0, end), np.append(start, first), **how)
    limit = jc.limit.AdamODE(b1, b2, slow=slow)
    steps = jnp.array([0.0, 100.0, end])
    curve = _solve(_problem("laplace"), clip, lr, steps=steps, limit=limit)
    np.testing.assert_allclose(curve.risk, lam @ path.y[:-1], rtol=1e-6)


def test_a_rule_that_changes_with_the_step_needs_no_table():
    def held(step):
        return 4.0 + 0.0 * step

    steps, limit = jnp.array([0.0, 20.0]), jc.limit.AdamODE(0.5, 0.9)
    curves = [
        _solve(_problem("gaussian"), jc.HardClip(c), 0.02, steps=steps, limit=limit)
        for c in (4.0, held)
    ]
    np.testing.assert_allclose(curves[0].risk, curves[1].risk, rtol=1e-6)


def _mean_run(problem, optimiser, steps, every, runs=64):
    @jax.jit
    def run(key):
        return jc.train(problem, optimiser, steps=steps, every=every, key=key).risk

    # Optax's own powers of its decays are promoted.
    with jax.numpy_dtype_promotion("standard"):
        risks = jax.lax.map(run, jr.split(jr.key(5), runs), batch_size=32)
    return mean_and_error(risks)


@pytest.mark.optimised
@pytest.mark.parametrize(
    "kind",
    [
        *("adam", "norm"),
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("rmsprop", "adamw")),
        pytest.param("adagrad", marks=pytest.mark.slow),
    ],
)
def test_runs_follow_the_limit(kind):
    # A memory of the squares of 50 steps, in 180 dimensions.
    problem, clip, lr = _problem("laplace"), jc.HardClip(6.0), 0.008
    decay = 4.0 if kind == "adamw" else None
    optimiser, limit, lr = {
        "adam": (optax.adam(lr, 0.7, 0.98), jc.limit.AdamODE(0.7, 0.98), lr),
        "rmsprop": (optax.adam(lr, 0.0, 0.9), jc.limit.AdamODE(0.0, 0.9), lr),
        "adamw": (
            optax.adamw(lr, 0.7, 0.98, weight_decay=4.0),
            *(jc.limit.AdamODE(0.7, 0.98), lr),
        ),
        "adagrad": (optax.adagrad(0.1, 0.5), jc.limit.AdagradODE(0.5), 0.1),
        "norm": (_adagrad_norm(1.0, 9.0), jc.limit.AdagradODE(9.0, norm=True), 1.0),
    }[kind]
    chain = optax.chain(jc.as_transform(clip), optimiser)
    mean, error = _mean_run(problem, chain, 400, 100)
    steps = jnp.arange(0.0, 401.0, 100.0)
    given = {"steps": steps, "limit": limit, "weight_decay": decay}
    # Not as an argument of what is compiled: weights decay to a known optimum only.
    curve = jc.solve(problem, clip, lr, **given)
    # A mean deviates by about one over the intrinsic dimension, 53.
    slack = error + 0.008 * np.asarray(curve.risk)
    assert_within(mean, slack, curve.risk, power=0.08)
    assert curve.risk[-1] < 0.7 * curve.risk[0]


def _adagrad_norm(lr, start):
    def update(updates, state, params=None):
        del params
        total = state + sum(jnp.sum(g**2) for g in jax.tree.leaves(updates))
        scaled = jax.tree.map(lambda g: -lr * g / jnp.sqrt(total), updates)
        return scaled, total

    return optax.GradientTransformation(lambda params: jnp.asarray(start), update)


@pytest.mark.optimised
@pytest.mark.parametrize(
    "limit", [pytest.param(k, marks=pytest.mark.slow) for k in ("adam", "adagrad")]
)
def test_derivatives_are_those_of_differences(limit):
    problem, steps = _problem("exponential"), jnp.array([150.0])

    def last(x):
        threshold, lr, b1, b2 = x * jnp.array([3.0, 0.01, 0.6, 0.9])
        of = (
            (jc.limit.AdamODE(b1, b2), lr)
            if limit == "adam"
            else (jc.limit.AdagradODE(b1), 10 * lr)
        )
        clip = jc.HardClip(threshold)
        return jc.solve(problem, clip, of[1], steps=steps, limit=of[0]).risk[0]

    one = jnp.ones(4)
    gradient = jax.jit(jax.grad(last))(one)
    value = jax.jit(last)
    for i in range(4 if limit == "adam" else 3):
        other = finite_difference(
            lambda x, i=i: value(one.at[i].set(x)), np.asarray(1.0), 0.003
        )
        np.testing.assert_allclose(gradient[i], other, rtol=1e-3)


@float32
def test_in_float32():
    clip, noise = jc.HardClip(0.7), jc.Laplace(1.0)
    m = _moments(clip, noise, 0.5, 1.0, 0.9, 0.95)
    assert m.drift.dtype == jnp.result_type(float)
    # The values in float64, which the chains above hold to less.
    np.testing.assert_allclose(m.drift, 0.659177876, rtol=2e-5)
    np.testing.assert_allclose(m.diffusion, 0.971373799, rtol=2e-5)


@float32
def test_a_curve_in_float32():
    steps = jnp.array([0.0, 100.0])
    spectrum = jc.Spectrum([1.0, 0.3], [30, 60])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), jnp.ones(2))
    clip, limit = jc.HardClip(5.0), jc.limit.AdamODE(0.9, 0.99)
    curve = _solve(problem, clip, 0.01, steps=steps, limit=limit)
    assert curve.risk.dtype == jnp.result_type(float)
    # The value in float64, whose equation another test solves in another way.
    np.testing.assert_allclose(curve.risk, [0.65, 0.265011402], rtol=2e-5)


@pytest.mark.slow
def test_a_wide_spectrum_by_few_modes():
    spectrum = jc.Spectrum.power_law(300, 1.0)
    problem = jc.LinearModel(spectrum, jc.Laplace(0.5), jnp.full(300, 0.1))
    steps, lr = jnp.array([0.0, 100.0, 1000.0]), 0.002
    limit = jc.limit.AdamODE(0.9, 0.9, slow=False)
    few = problem.compress()
    one, other = (
        _solve(p, jc.HardClip(2.0), lr, steps=steps, limit=limit).risk
        for p in (problem, few)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_is_misused_is_refused():
    problem, steps = _problem("gaussian"), jnp.array([1.0])

    def solve(limit, **given):
        jc.solve(problem, jc.Identity(), 0.1, steps=steps, limit=limit, **given)

    adam, adagrad = jc.limit.AdamODE(), jc.limit.AdagradODE()
    with pytest.raises(ValueError, match="`b2` must"):
        jc.limit.AdamODE(0.9, 1.0)
    with pytest.raises(ValueError, match="`b1` must be 0 or positive and below"):
        jc.limit.AdamODE(0.9, 0.8)
    with pytest.raises(ValueError, match="initial_accumulator_value"):
        jc.limit.AdagradODE(-1.0)
    with pytest.raises(ValueError, match=r"`AdamODE` has no equation.*`batch_size`"):
        solve(adam, batch_size=4)
    with pytest.raises(ValueError, match=r"`AdamODE` has no equation.*`momentum`"):
        solve(adam, momentum=0.9)
    with pytest.raises(ValueError, match="no equation for this `weight_decay`"):
        solve(jc.limit.AdamODE(slow=False), weight_decay=0.1)
    with pytest.raises(ValueError, match="decoupled"):
        solve(adam, weight_decay=jc.algorithm.WeightDecay(0.1, clipped=True))
    with pytest.raises(ValueError, match="`AdagradODE` has no equation"):
        solve(adagrad, weight_decay=0.1)
    rows = jc.Regression(np.eye(4)[:, :3], np.ones(4))
    with pytest.raises(ValueError, match="needs a `LinearModel`"):
        jc.solve(rows, jc.Identity(), 0.1, steps=steps, limit=adam)


def test_a_rule_that_jumps_keeps_its_jump():
    # Its psi is the residual up to 0.8 and nothing beyond, so that by Stein's lemma
    # the drift of a long memory has a negative part, which the slope alone has not.
    clip = Skip(jnp.asarray(0.8))
    m = _moments(clip, NOISES["gaussian"], 0.5, 1.0, 0.0, 0.99)
    assert (
        m.drift
        < 0.7
        * _moments(jc.HardClip(0.8), NOISES["gaussian"], 0.5, 1.0, 0.0, 0.99).drift
    )


def test_the_coordinates_and_the_origin_are_asked_for():
    problem = _problem("gaussian")
    turn = jnp.linalg.qr(jr.normal(jr.key(0), (problem.spectrum.dim,) * 2))[0]
    turned = eqx.tree_at(lambda p: p.basis, problem, turn, is_leaf=lambda x: x is None)
    for limit in (jc.limit.AdamODE(0.5, 0.9), jc.limit.AdagradODE()):
        with pytest.raises(ValueError, match="diagonal"):
            jc.solve(turned, jc.Identity(), 0.1, steps=[1.0], limit=limit)
    away = eqx.tree_at(lambda p: p.optimum, problem, -problem.start)
    how = {"steps": [1.0], "limit": jc.limit.AdamODE(0.5, 0.9), "weight_decay": 0.1}
    with pytest.raises(ValueError, match="optimum"):
        jc.solve(away, jc.Identity(), 0.1, **how)
