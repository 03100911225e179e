"""The standard deviation of the risk of one run, against other solvers and runs."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import jaxclip as jc

matplotlib.use("agg")
float32 = pytest.mark.float32
TSIT5 = jc.RiskODE(solver=diffrax.Tsit5())


def _std(curve: jc.Curve) -> Any:
    assert curve.std is not None
    return curve.std


@float32
def test_reference_values():
    """Section 1.4 of docs/theory.md: at t = 0.5, 1, 2, 4."""
    dim = 100
    problem = jc.LinearModel(jc.Spectrum.isotropic(dim), jc.Gaussian(1.0), [2**0.5])
    clip, steps = jc.HardClip(dim**0.5), dim * np.array([0.0, 0.5, 1, 2, 4])
    curve = jc.solve(problem, clip, 0.5 / dim, steps=steps, std=True)
    assert _std(curve)[0] == 0 and _std(curve).dtype == jnp.result_type(float)
    expected = [0.09004, 0.13965, 0.16066, 0.09648]
    # In single precision the derivatives in the risk are right to three digits.
    rtol = 1e-4 if curve.risk.dtype == jnp.float64 else 2e-3
    np.testing.assert_allclose(dim * _std(curve)[1:] ** 2, expected, rtol=rtol)


def _hard_gaussian(risk, std, c):
    """In closed form: mu and second with their derivatives in the risk, and the third
    and the fourth moment of the hard clip of a normal residual."""
    variance = 2 * risk + std**2
    q = c / np.sqrt(variance)
    density = np.exp(-(q**2) / 2) / np.sqrt(2 * np.pi)
    inside, beyond = scipy.special.erf(q / 2**0.5), scipy.special.erfc(q / 2**0.5)
    square = variance * scipy.special.gammainc(1.5, q**2 / 2)
    fourth = 3 * variance**2 * scipy.special.gammainc(2.5, q**2 / 2) + c**4 * beyond
    # d/dR is 2 d/d(variance), and q falls with the root of it.
    slope = -2 * q * density / variance
    second = square + c**2 * beyond
    # By Stein's identity E (psi^2)'', to which the kinks at c contribute.
    curved = 2 * (inside - 2 * q * density)
    return inside, second, slope, curved, 3 * square, fourth


def _lyapunov(problem, c, lr, batch, steps):
    """The risk and its standard deviation, by scipy, with a matrix for all modes."""
    lam = np.asarray(problem.spectrum.eigenvalues)
    f = lam * np.asarray(problem.spectrum.multiplicity)
    n, std = len(lam), float(problem.noise.std)
    threshold = c / np.sqrt(f.sum())

    def field(k, y):
        u, S = y[:n], y[n:].reshape(n, n)
        rate = lr(k)
        m = _hard_gaussian(u.sum(), std, threshold)
        mu, second, mu1, second1, third, fourth = m
        J = np.diag(-2 * rate * mu * lam)
        J += (lam * (-2 * rate * mu1 * u + rate**2 / batch * second1 * f / 2))[:, None]
        # Of -lr psi <a, z>_j + lr^2 psi^2 f_j / (2 B), in the mean of B samples.
        x, y = lam * u, lam * f
        Q = 2 * second * np.diag(lam * x) + 4 * (second1 - mu**2) * np.outer(x, x)
        mixed = np.outer(x, y)
        Q = rate**2 * Q - rate**3 / batch * (third - mu * second) * (mixed + mixed.T)
        Q += rate**4 / batch**2 / 4 * (fourth - second**2) * np.outer(y, y)
        du = lam * (-2 * rate * mu * u + rate**2 / batch * second * f / 2)
        return np.concatenate([du, (J @ S + S @ J.T + Q / batch).ravel()])

    start = np.concatenate([np.asarray(problem.modes.risk), np.zeros(n * n)])
    how: Any = dict(t_eval=steps, rtol=1e-9, atol=1e-13, max_step=10.0)
    found = scipy.integrate.solve_ivp(field, (0, steps[-1]), start, **how).y
    return found[:n].sum(0), np.sqrt(np.maximum(found[n:].sum(0), 0))


@pytest.mark.slow
def test_against_scipy():
    """A wide spectrum, batches and a schedule; by the exponential integrator, and by
    diffrax's own."""
    spectrum = jc.Spectrum([1.0, 0.2, 0.004], [20, 60, 1000])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.8), [1.0, 1.0, 3.0])
    rate = jc.PiecewiseLinear(jnp.array([0.0, 90.0]), jnp.array([0.03, 0.012]))
    steps = np.array([0.0, 7.0, 40.0, 133.0, 400.0])
    how: Any = dict(steps=steps, batch_size=2, scope=jc.PerExample(), std=True)
    risk, std = _lyapunov(problem, 6.0, rate, 2, steps)
    for limit in (jc.RiskODE(), TSIT5):
        curve = jc.solve(problem, jc.HardClip(6.0), rate, limit=limit, **how)
        np.testing.assert_allclose(curve.risk, risk, rtol=1e-7)
        np.testing.assert_allclose(_std(curve), std, rtol=2e-5)


@pytest.mark.slow
def test_a_compressed_spectrum():
    """The nodes of the two measures stand for modes in the scatter, too."""
    spectrum = jc.Spectrum.power_law(110, 1.0)
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), jnp.full(110, 0.3))
    steps, lr = np.array([0.0, 10.0, 100.0, 400.0]), 0.03
    risk, std = _lyapunov(problem, 2.0, lambda k: lr, 1, steps)
    curve = jc.solve(problem, jc.HardClip(2.0), lr, steps=steps, std=True)
    assert len(curve.reduced.eigenvalues) == 64
    np.testing.assert_allclose(curve.risk, risk, rtol=1e-7)
    np.testing.assert_allclose(_std(curve), std, rtol=1e-5)


@pytest.mark.slow
def test_the_scatter_of_runs():
    """Of many runs in 200 dimensions, to one over the dimension and four errors."""
    spectrum, count = jc.Spectrum([1.0, 0.3], [50, 150]), 4000
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.7), [1.0, 1.0])
    clip, lr = jc.HardClip(spectrum.feature_norm), 0.01

    @jax.jit
    def run(keys):
        how: Any = dict(steps=160, every=80, engine=jc.Lumped())
        return jax.vmap(lambda k: jc.simulate(problem, clip, lr, key=k, **how))(keys)

    risks = run(jr.split(jr.key(3), count)).risk
    steps = [0.0, 80.0, 160.0]
    curve = jc.solve(problem, clip, lr, steps=steps, std=True)
    # A standard deviation is known to one over the root of twice the number of runs.
    slack = 4 / (2 * count) ** 0.5 + 1 / 95
    np.testing.assert_allclose(risks.std(axis=0)[1:], _std(curve)[1:], rtol=slack)
    recursion = jc.limit.RiskRecursion()
    other = jc.solve(problem, clip, lr, steps=steps, std=True, limit=recursion)
    np.testing.assert_allclose(_std(other), _std(curve), rtol=0.02)


@pytest.mark.parametrize(
    "limit",
    [pytest.param(jc.RiskODE(), marks=pytest.mark.slow), jc.limit.RiskRecursion()],
)
def test_without_a_fourth_moment_it_is_infinite(limit):
    problem = jc.LinearModel(jc.Spectrum([1.0], [30]), jc.StudentT(3.0, 1.0), [1.0])
    how: Any = dict(steps=[0.0, 5.0], std=True, limit=limit)
    curve = jc.solve(problem, jc.Identity(), 0.01, **how)
    assert _std(curve)[0] == 0 and jnp.isinf(_std(curve)[1])
    assert jnp.all(jnp.isfinite(curve.risk))


def test_limits_without_one_refuse_it():
    problem = jc.LinearModel(jc.Spectrum.isotropic(4), jc.Gaussian(1.0), [1.0])
    how: Any = dict(steps=[0.0, 5.0], key=jr.key(0), std=True)
    for limit in (jc.HomogenizedSDE(), jc.GradientFlow()):
        with pytest.raises(ValueError, match=f"{type(limit).__name__}.*std=True"):
            jc.solve(problem, jc.Identity(), 0.1, limit=limit, **how)
    modes = problem.modes
    request = jc.limit.Request(jnp.array([0.0, 5.0]), std=True)
    with pytest.raises(ValueError, match=r"integrate.*std=True"):
        jc.RiskODE().integrate(modes, lambda k, r: (0.1 * r, r), request)


# The curve


def test_a_band_is_drawn_and_exported():
    import matplotlib.pyplot as plt

    steps, risk = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 0.5, 0.4])
    curve = jc.Curve(steps, risk, std=jnp.array([0.0, 0.1, jnp.inf]))
    _, ax = plt.subplots()
    curve.plot(ax, band=0.8)
    (band,) = ax.collections
    points = np.concatenate([path.vertices for path in band.get_paths()])
    assert np.all(np.isfinite(points))
    # 80% of a normal law are within 1.2816 standard deviations.
    at_1 = points[points[:, 0] == 1.0, 1]
    np.testing.assert_allclose([at_1.min(), at_1.max()], [0.37184, 0.62816], atol=1e-4)
    assert points[:, 0].max() == 1.0
    plt.close("all")
    table = curve.to_xarray()
    np.testing.assert_array_equal(table["std"], _std(curve))
    assert "std" not in jc.Curve(steps, risk).to_xarray()


@pytest.mark.slow
def test_derivative_of_the_deviation():
    """By the exponential integrator and by diffrax's own solver."""
    spectrum = jc.Spectrum([1.0, 0.2], [30, 60])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.8), [1.0, 1.0])

    def end(lr, limit):
        how: Any = dict(steps=[0.0, 50.0], std=True, limit=limit)
        return _std(jc.solve(problem, jc.HardClip(4.0), lr, **how))[-1]

    for limit in (jc.RiskODE(), TSIT5):
        found = jax.jit(jax.grad(lambda lr, of=limit: end(lr, of)))(0.02)
        expected = (end(0.02001, limit) - end(0.01999, limit)) / 2e-5
        np.testing.assert_allclose(found, expected, rtol=1e-4)
