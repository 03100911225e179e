"""The mean risk in finitely many dimensions, against exact expectations and runs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxclip as jc
from helpers import assert_within, finite_difference, mean_and_error

RECURSION = jc.limit.RiskRecursion()
PLAIN = jc.limit.RiskRecursion(corrected=False)


def _matrix_recursion(problem, rates, batch):
    """The mean risk of SGD without a clip, by the second moments of the whole error in
    a basis that is turned, by Isserlis' theorem for Gaussian features."""
    spectrum = problem.spectrum
    values = np.asarray(spectrum.expand(spectrum.eigenvalues))
    basis = scipy.stats.ortho_group.rvs(len(values), random_state=3)
    K = basis.T @ np.diag(values) @ basis
    z = basis.T @ np.asarray(problem.init())
    moments, risks = np.outer(z, z), []
    for rate in [*rates, 0.0]:
        signal, kept = K @ moments @ K, np.trace(K @ moments)
        risks.append(kept / 2)
        each = 2 * signal + (kept + float(problem.noise.variance)) * K
        square = each / batch + (1 - 1 / batch) * signal
        moments = moments - rate * (K @ moments + moments @ K) + rate**2 * square
    return np.array(risks)


@pytest.mark.parametrize("batch", [1, 3])
def test_without_a_clip_the_mean_is_exact(batch):
    spectrum = jc.Spectrum([1.0, 0.3, 0.05], [1, 2, 4])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), [1.0, 2.0, 0.5])
    rate = jc.PiecewiseLinear(jnp.array([0.0, 40.0]), jnp.array([0.3, 0.1]))
    steps = np.arange(0.0, 61.0)
    rates = [float(rate(k)) for k in range(60)]
    how: Any = dict(steps=steps, limit=RECURSION, batch_size=batch)
    risk = jc.solve(problem, jc.Identity(), rate, **how).risk
    expected = _matrix_recursion(problem, rates, batch)
    np.testing.assert_allclose(risk, expected, rtol=1e-11)
    # At a fraction of a step SGD has not moved since the last whole one.
    how["steps"] = [7.9, 60.0]
    part = jc.solve(problem, jc.Identity(), rate, **how).risk
    np.testing.assert_allclose(part, expected[[7, 60]], rtol=1e-11)


def _std(curve: jc.Curve) -> Any:
    assert curve.std is not None
    return curve.std


def _runs(problem, clip, lr, at, count, batch=1, scope=None):
    """The mean of many runs, and its standard error, at the evenly spaced `at`."""

    @jax.jit
    def run(keys):
        how: Any = dict(steps=int(at[-1]), every=int(at[1]), engine=jc.Lumped())
        how |= dict(batch_size=batch, scope=scope or jc.PerTree())
        return jax.vmap(lambda key: jc.simulate(problem, clip, lr, **how, key=key))(
            keys
        )

    return mean_and_error(run(jr.split(jr.key(5), count)).risk)


def test_in_three_dimensions_without_a_clip():
    """At an intrinsic dimension of 1.6 the ODE is far from the runs."""
    problem = jc.LinearModel(
        jc.Spectrum([1.0, 0.3], [1, 2]), jc.Gaussian(0.5), [1.0, 1.0]
    )
    at = np.array([0.0, 20.0, 40.0])
    mean, error = _runs(problem, jc.Identity(), 0.2, at, 10_000)
    how: Any = dict(problem=problem, clip=jc.Identity(), lr=0.2, steps=at)
    exact = jc.solve(**how, limit=RECURSION).risk
    ode = jc.solve(**how).risk
    assert_within(mean[1:], error[1:], np.asarray(exact[1:]), power=0.2)
    assert np.all(np.abs(mean - ode)[1:] > 0.1 * mean[1:])


@pytest.mark.slow
def test_in_eight_dimensions_with_a_clip():
    spectrum = jc.Spectrum.isotropic(8)
    problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), [2**0.5])
    clip, lr, at = (
        jc.HardClip(spectrum.feature_norm),
        0.0625,
        np.array([0.0, 16.0, 32.0]),
    )
    mean, error = _runs(problem, clip, lr, at, 10_000)
    how: Any = dict(problem=problem, clip=clip, lr=lr, steps=at)
    corrected = jc.solve(**how, limit=RECURSION).risk
    plain = jc.solve(**how, limit=PLAIN).risk
    assert_within(mean[1:], error[1:], np.asarray(corrected[1:]), power=0.05)
    assert abs(plain - mean)[2] > 4 * error[2]


# One step from a known state, by quadrature over everything that is random in it


def _normal(n):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def _chi_squared(df, n):
    nodes, weights = scipy.special.roots_genlaguerre(n, df / 2 - 1)
    return 2 * nodes, weights / weights.sum()


def _one_step(problem, threshold, lr):
    """The exact mean risk after one step with the rule 1 / sqrt(1 + (norm / C)^2)."""
    lam = np.asarray(problem.spectrum.eigenvalues)
    dims = np.asarray(problem.spectrum.multiplicity)
    r, std = np.asarray(problem.start), float(problem.noise.std)
    axes = [_normal(18), _normal(18), _normal(18)]
    axes += [_chi_squared(d - 1, 10) for d in dims]
    nodes = np.meshgrid(*(a[0] for a in axes), indexing="ij", sparse=True)
    u1, u2, eps, q1, q2 = nodes
    u, q = (u1, u2), (q1, q2)
    w = sum(np.sqrt(lam[j]) * r[j] * u[j] for j in range(2)) - std * eps
    s = sum(lam[j] * (u[j] ** 2 + q[j]) for j in range(2))
    step = lr * w / np.sqrt(1 + w**2 * s / threshold**2)
    risk: Any = 0.0
    for j in range(2):
        along = r[j] - step * np.sqrt(lam[j]) * u[j]
        risk = risk + lam[j] / 2 * (along**2 + step**2 * lam[j] * q[j])
    for _, weights in axes:
        risk = np.tensordot(weights, risk, axes=(0, 0))
    return float(risk)


def test_one_step_is_right_to_second_order():
    """Of a smooth rule, for which quadratures converge fast: in twice the dimensions
    the correction leaves a quarter of the error, and the limit half of it."""
    errors = []
    for size in (8, 16, 32):
        spectrum = jc.Spectrum([1.0, 0.4], [size, 2 * size])
        trace = float(spectrum.trace)
        problem = jc.LinearModel(spectrum, jc.Gaussian(0.7), [0.9, 1.1])
        threshold, lr = 1.5 * trace**0.5, 1.0 / trace
        exact = _one_step(problem, threshold, lr)
        how: Any = dict(steps=[0.0, 1.0])
        found = [
            jc.solve(problem, jc.RootSoftClip(threshold), lr, limit=limit, **how).risk
            for limit in (RECURSION, PLAIN)
        ]
        moved = float(found[0][0]) - exact
        errors.append([abs(float(risk[1]) - exact) / moved for risk in found])
    corrected, plain = np.array(errors).T
    slopes = np.log2(corrected[:-1] / corrected[1:])
    assert np.all((slopes > 1.7) & (slopes < 2.4)), (slopes, corrected)
    slopes = np.log2(plain[:-1] / plain[1:])
    assert np.all((slopes > 0.8) & (slopes < 1.2)), (slopes, plain)
    assert np.all(corrected < 0.2 * plain)


@pytest.mark.slow
def test_a_batch_as_large_as_the_dimension():
    """At a rate of order one, where there is no differential equation."""
    spectrum = jc.Spectrum([1.0, 0.4], [20, 40])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), [1.0, 1.0])
    clip, lr, at = jc.HardClip(0.8 * spectrum.feature_norm), 0.7, np.array([0.0, 3, 6])
    batch: Any = dict(batch_size=30, scope=jc.PerExample())
    mean, error = _runs(problem, clip, lr, at, 2000, 30, jc.PerExample())
    how: Any = dict(problem=problem, clip=clip, lr=lr, steps=at, **batch)
    corrected = jc.solve(**how, limit=RECURSION, std=True)
    ode = jc.solve(**how).risk
    assert_within(mean[1:], error[1:], np.asarray(corrected.risk[1:]), power=0.05)
    assert np.all(np.abs(mean - ode)[1:] > 10 * error[1:])
    deviation = np.asarray(_std(corrected)[1:]) / 2000**0.5
    np.testing.assert_allclose(deviation, error[1:], rtol=0.12)


# The interface


def _small():
    return jc.LinearModel(jc.Spectrum([1.0, 0.3], [4, 8]), jc.Gaussian(0.5), [1.0, 2.0])


@pytest.mark.slow
def test_derivative_in_rate_and_threshold():
    def end(numbers):
        clip, steps = jc.HardClip(numbers[1]), [0.0, 70.0]
        return jc.solve(_small(), clip, numbers[0], steps=steps, limit=RECURSION).risk[
            1
        ]

    at = jnp.array([0.05, 2.0])
    gradient = jax.jit(jax.grad(end))(at)
    expected = [
        finite_difference(
            eqx.filter_jit(lambda x, i=i: end(at.at[i].set(x))), at[i], 1e-3
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(gradient, np.array(expected), rtol=1e-4)


def test_a_risk_without_bounds_is_named():
    steps = [0.0, 4000.0]
    with pytest.raises(RuntimeError, match="grows beyond all bounds"):
        jc.solve(_small(), jc.Identity(), 3.0, steps=steps, limit=RECURSION)
    how: Any = dict(steps=steps, limit=RECURSION, throw=False, std=True)
    curve = jc.solve(_small(), jc.Identity(), 3.0, **how)
    np.testing.assert_allclose(curve.risk[0], 1.1, rtol=1e-12)
    assert jnp.isinf(curve.risk[1]) and jnp.isinf(_std(curve)[1])


def test_what_it_has_no_equation_for_is_named():
    how: Any = dict(steps=[0.0, 5.0], limit=RECURSION)
    clip = jc.HardClip(1.0)
    with pytest.raises(ValueError, match="scope=PerExample"):
        jc.solve(_small(), clip, 0.1, batch_size=4, **how)
    with pytest.raises(ValueError, match="noise_std"):
        jc.solve(
            _small(),
            clip,
            0.1,
            scope=jc.PerExample(noise_std=0.3, key=jr.key(0)),
            **how,
        )
    with pytest.raises(ValueError, match="momentum"):
        jc.solve(_small(), clip, 0.1, momentum=0.9, **how)
    robust = eqx.tree_at(lambda p: p.loss, _small(), jc.HuberLoss(1.0))
    with pytest.raises(ValueError, match="squared loss"):
        jc.solve(robust, clip, 0.1, **how)

    def at(steps):
        return jc.solve(_small(), clip, 0.1, steps=steps, limit=RECURSION).risk

    with pytest.raises(ValueError, match="must be concrete"):
        jax.jit(at)(jnp.array([0.0, 5.0]))


def test_it_is_the_same_vmapped_and_compressed():
    rates = jnp.array([0.03, 0.06])
    how: Any = dict(steps=[0.0, 20.0], limit=RECURSION)
    clip = jc.HardClip(2.0)

    def end(lr):
        return jc.solve(_small(), clip, lr, **how).risk[-1]

    together = jax.vmap(end)(rates)
    np.testing.assert_allclose(together, [end(rate) for rate in rates], rtol=1e-10)
    few = jc.solve(_small().compress(8), clip, rates[0], **how).risk[-1]
    np.testing.assert_allclose(few, together[0], rtol=1e-9)


@pytest.mark.slow
def test_at_no_risk_it_starts_to_move():
    """From the optimum, where the derivatives in the risk are not asked for."""
    problem = jc.LinearModel(jc.Spectrum.isotropic(20), jc.Gaussian(1.0), [0.0])
    how: Any = dict(steps=[0.0, 1.0, 400.0], limit=RECURSION, std=True)
    curve = jc.solve(problem, jc.HardClip(4.0), 0.02, **how)
    ode = jc.solve(problem, jc.HardClip(4.0), 0.02, steps=how["steps"])
    np.testing.assert_allclose(curve.risk, ode.risk, rtol=0.1, atol=1e-12)
    assert _std(curve)[0] == 0 and jnp.all(_std(curve)[1:] > 0)
