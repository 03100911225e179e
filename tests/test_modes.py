"""Compressed spectra and the solver of modes, against full ones and other solvers."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

import jaxclip as jc
from helpers import finite_difference
from jaxclip.limit.linear._collocation import _error
from jaxclip.limit.linear._interpolation import NODES, path_over, propagate
from jaxclip.problem.linear._modes import Modes, gauss

_solve = eqx.filter_jit(jc.solve)


def _scaled(lam, noise, start=None) -> jc.LinearModel:
    """Eigenvalues of mean 1, and R = 1/2 at the start."""
    lam = np.asarray(lam, float) / np.mean(lam)
    start = np.full(len(lam), len(lam) ** -0.5) if start is None else start
    return jc.LinearModel(jc.Spectrum(lam), noise, jnp.asarray(start))


def _lognormal(dim) -> np.ndarray:
    # As many as in the others, which share a program with it.
    draws = np.exp(2 * np.random.default_rng(3).standard_normal(dim - 3))
    return np.concatenate([draws, [1e3, 2e3, 5e3]])


SPECTRA = {
    "root": lambda dim: np.arange(1, dim + 1) ** -0.5,
    "inverse": lambda dim: np.arange(1, dim + 1) ** -1.0,
    "steep": lambda dim: np.arange(1, dim + 1) ** -1.5,
    "marchenko_pastur": lambda dim: jc.Spectrum.marchenko_pastur(dim, 0.5).eigenvalues,
    "lognormal": _lognormal,
}


# Section 2.3 of docs/theory.md: 10^5 eigenvalues, at t = .01, 1, 10, 100, 1000.
@pytest.mark.optimised
@pytest.mark.parametrize(
    "exponent, digits",
    [
        (0.5, "0.4939797493 0.3252919880 0.2095064344 0.2090367076 0.2090367076"),
        pytest.param(
            1.5,
            "0.2422343147 0.2155555024 0.2115771537 0.2097513017 0.2090809391",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_reference_values_of_many_eigenvalues(exponent, digits):
    dim = 10**5
    problem = _scaled(np.arange(1, dim + 1) ** -exponent, jc.Gaussian(1.0))
    # The problem is closed over, so that it is known and compressed.
    risk = jax.jit(
        lambda lr: (
            jc.solve(
                problem,
                jc.HardClip(1.5 * dim**0.5),
                lr,
                steps=dim * np.array([0.01, 1, 10, 100, 1000]),
            ).risk
        )
    )(jnp.asarray(0.7 / dim))
    np.testing.assert_allclose(risk, np.array(digits.split(), float), rtol=2e-8)


@pytest.mark.optimised
@pytest.mark.parametrize("noise", [1.0, 1e-3])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_compressed_is_full(spectrum, noise):
    lam = SPECTRA[spectrum](600)
    problem = _scaled(lam, jc.Gaussian(noise))
    dim = len(lam)
    few = problem.compress()
    assert few.modes.eigenvalues.shape == (96,)
    full = jc.problem.CompressedLinearModel(problem.modes, problem.noise, jnp.zeros(()))
    steps = jnp.asarray(dim * np.concatenate([[0.0], np.geomspace(1e-5, 1e3, 25)]))
    # Half of what is stable: the largest eigenvalue may be far above the mean.
    settings = (jc.HardClip(0.7 * dim**0.5), jnp.asarray(0.5 / dim))
    limit = jc.RiskODE(jc.limit.ExponentialModes())
    risk, exact = (
        _solve(p, *settings, steps=steps, limit=limit).risk for p in (few, full)
    )
    np.testing.assert_allclose(risk[0], exact[0], rtol=1e-13)
    np.testing.assert_allclose(risk, exact, rtol=1e-6)


def test_error_of_a_compression():
    problem = _scaled(SPECTRA["steep"](600), jc.Gaussian(1.0))
    errors = [problem.compress(nodes).error for nodes in (4, 8, 16, 32)]
    assert all(b < a / 5 for a, b in itertools.pairwise(errors))

    # By another grid of times, and with nothing gathered.
    few, tau = problem.compress(8), np.geomspace(1e-3, 1e5, 3000)

    def functions(modes):
        decay = np.exp(-2 * tau[:, None] * np.asarray(modes.eigenvalues))
        return decay @ np.asarray(modes.risk), decay @ np.asarray(modes.forcing)

    worst = max(
        np.abs(a - b).max() / b[0]
        for a, b in zip(functions(few.modes), functions(problem.modes), strict=True)
    )
    assert worst / 2 < few.error < 1.001 * worst


def test_quadrature_is_gauss():
    rng = np.random.default_rng(8)
    x, weights = rng.uniform(-9, 2, 200), rng.exponential(size=200)
    at, mass = gauss(x, weights, 6)
    for degree in range(12):
        expected = weights @ x**degree
        np.testing.assert_allclose(mass @ at**degree, expected, rtol=1e-11)
    assert abs(mass @ at**12 / (weights @ x**12) - 1) > 1e-6


def test_quadrature_of_few_points_is_themselves():
    at, mass = gauss(np.array([0.0, 1.0, 5.0]), np.array([1.0, 0.0, 2.0]), 6)
    np.testing.assert_allclose(at, [0.0, 5.0], atol=1e-12)
    np.testing.assert_allclose(mass, [1.0, 2.0])


def test_gathered_points_keep_the_moments():
    rng = np.random.default_rng(9)
    x, weights = rng.standard_normal(50_000), rng.exponential(size=50_000)
    at, mass = gauss(x, weights, 8)
    for degree in range(16):
        expected = weights @ np.abs(x) ** degree
        ours = mass @ at**degree
        # Of a bin, which is 4e-4 wide, four moments are kept.
        assert abs(ours - weights @ x**degree) < 1e-9 * expected


def test_a_spectrum_may_repeat_an_eigenvalue():
    spectrum = jc.Spectrum([2.0, 1.0], [3, 5])
    problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), jnp.array([1.0, 0.0]))
    modes = problem.compress(4).modes
    np.testing.assert_allclose(modes.eigenvalues, [2.0, 1.0, 2.0], rtol=1e-12)
    np.testing.assert_allclose(modes.risk, [1.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(modes.forcing, [0.0, 5.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(modes.feature_norm**2, spectrum.trace)


def test_compression_needs_numbers(without_type_checks):
    problem = _scaled([1.0, 2.0], jc.Gaussian(1.0))
    with pytest.raises(ValueError, match="`nodes` must be at least 1"):
        problem.compress(0)
    with pytest.raises(ValueError, match="outside of `jit`"):
        jax.jit(lambda p: p.compress(2))(problem)


# The exponential integrator


_SMALL = _scaled([30.0, 10.0, 1.0, 0.3, 1e-3], jc.Gaussian(0.5))


def _warmed_up(step):
    """A rate that starts at 0, rises and falls."""
    t = step / 50.0
    return 0.1 * t * jnp.exp(1 - t)


def test_schedules_against_scipy():
    problem, clip = _SMALL, jc.HardClip(lambda step: 1.5 + jnp.sin(step / 30.0))
    steps = np.array([0.0, 3.0, 20.0, 100.0, 400.0])
    ode = jc.RiskODE(jc.limit.ExponentialModes(), rtol=1e-9)
    ours = _solve(problem, clip, _warmed_up, steps=jnp.asarray(steps), limit=ode)
    lam = np.asarray(problem.spectrum.eigenvalues)
    norm = float(problem.spectrum.feature_norm)

    def field(k, v):
        tau = np.sqrt(2 * lam @ v + 0.25)
        # In closed form, section 2 of docs/theory.md.
        c = (1.5 + np.sin(k / 30.0)) / norm
        mu = scipy.special.erf(c / tau / 2**0.5)
        second = tau**2 * scipy.special.gammainc(1.5, (c / tau) ** 2 / 2)
        second += c**2 * scipy.special.erfc(c / tau / 2**0.5)
        rate = 0.1 * k / 50 * np.exp(1 - k / 50)
        return lam * (-2 * rate * mu * v + rate**2 * second / 2)

    theirs = scipy.integrate.solve_ivp(
        field, (0, 400), np.asarray(problem.start) ** 2 / 2, method="DOP853",
        rtol=1e-10, atol=1e-14, t_eval=steps,
    )  # fmt: skip
    np.testing.assert_allclose(ours.risk, lam @ theirs.y, rtol=1e-8)
    np.testing.assert_allclose(ours.reduced.risk, lam * theirs.y[:, -1], rtol=1e-7)


@pytest.mark.slow
def test_sixth_order():
    problem, clip = _SMALL, jc.HardClip(2.0)
    modes = problem.modes

    def end(count):
        equation = jc.limit._exponential.ModeEquation(
            modes, lambda k, r: _coefficients(problem, clip, k, r)
        )
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda k, u, e: e(k, u)),
            jc.limit.ExponentialModes(),
            0.0,
            60.0,
            60.0 / count,
            modes.risk,
            args=equation,
            max_steps=512,
        ).ys.sum()

    counts = np.array([6.0, 12.0, 24.0, 384.0])
    *coarse, exact = jax.jit(lambda counts: jax.lax.map(end, counts))(counts)
    errors = np.abs(np.array(coarse) - exact)
    order = np.log2(errors[:-1] / errors[1:])
    assert np.all(order > 5), order


def _coefficients(problem, clip, step, risk):
    rate = 0.02 * (1 + 0.5 * jnp.cos(step / 15.0))
    norm = problem.spectrum.feature_norm
    m = jc.clip.unchecked_moments(clip, problem.noise, risk, norm, step)
    return rate * m.mu, rate**2 * m.second


_KNOTS = np.linspace(0.0, 200.0, 3)
_AT = np.array([3.0, 2.0, 1.0, 0.5, 0.02])


def _log_final(values, adjoint=None):
    """The end of a run from three knots of a threshold, a noise and a rate."""
    clip = jc.HardClip(jc.PiecewiseLinear(_KNOTS, values[:3]))
    noisy = eqx.tree_at(lambda p: p.noise.std, _SMALL, values[3])
    ode = jc.RiskODE(jc.limit.ExponentialModes(), rtol=1e-10)
    steps = np.array([0.0, 200.0])
    curve = jc.solve(noisy, clip, values[4], steps=steps, adjoint=adjoint, limit=ode)
    return jnp.log(curve.risk[-1])


@pytest.mark.slow
def test_gradients():
    """Reverse mode against finite differences."""
    value, gradient = jax.jit(jax.value_and_grad(_log_final))(jnp.asarray(_AT))

    def along(direction):
        def moved(s):
            return jax.lax.map(_log_final, jnp.asarray(_AT)[None, :] + s * direction)

        return jax.jit(moved)

    ends = along(np.diag(_AT))
    numeric = finite_difference(ends, 0.0, 1e-3)
    np.testing.assert_allclose(gradient * _AT, numeric, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(ends(0.0), value, rtol=1e-10)


@pytest.mark.slow
def test_forward_mode_is_reverse_mode():
    at, along = jnp.asarray(_AT), jnp.array([0.3, -0.5, 0.2, 0.1, 0.003])

    @jax.jit
    def forward(at):
        adjoint = diffrax.ForwardMode()
        return jax.jvp(lambda v: _log_final(v, adjoint), (at,), (along,))[1]

    gradient = jax.jit(jax.grad(_log_final))(at)
    np.testing.assert_allclose(gradient @ along, forward(at), rtol=1e-7)


def test_propagation_against_quadrature():
    eigenvalues = jnp.array([1e-9, 0.1, 0.499, 0.501, 3.0, 400.0])
    decay, driven = propagate(eigenvalues, jnp.asarray(1.0))
    np.testing.assert_allclose(decay, np.exp(-2 * np.asarray(eigenvalues)))
    for lam, column in zip(np.asarray(eigenvalues), np.asarray(driven).T, strict=True):
        for p in range(4):
            integral, _ = scipy.integrate.quad(
                lambda s, p=p, lam=lam: lam * np.exp(-2 * lam * (1 - s)) * s**p,
                0, 1, epsabs=0, epsrel=1e-12, limit=200,
                points=[1 - min(0.9, 10 / lam)] if lam > 1 else None,
            )  # fmt: skip
            np.testing.assert_allclose(column[p], integral, rtol=1e-11)


@pytest.mark.float32
def _through(nodes, values, degree):
    """The polynomial through values at nodes; a quadratic leaves out the third."""
    kept = np.arange(4) if degree == 3 else [0, 1, 3]
    return np.poly1d(np.polyfit(nodes[kept], np.asarray(values)[kept], degree))


@pytest.mark.parametrize("varies", ["q", "g"])
def test_the_error_of_a_step_is_what_quadratics_would_miss(varies):
    """Without the second inner node, to first order: against integrals by scipy."""
    modes = Modes(*map(jnp.array, ([1.0, 0.3], [0.6, 0.4], [0.5, 0.8])))
    lam, forcing = np.array([1.0, 0.3]), np.array([0.5, 0.8])
    end, some = 0.7, np.array([0.9, 0.5, 0.8, 0.6])
    flat = np.full(4, 0.5)
    q, g = (some, 0 * flat) if varies == "q" else (flat, some)
    found = path_over(modes, modes.risk, 0.0, end, jnp.array(q), jnp.array(g))
    y1 = found.path.state(1.0)
    missed = _through(NODES, some, 3) - _through(NODES, some, 2)
    if varies == "q":
        # The clock is late by this, and a mode falls by 2 lam u in a unit of it.
        lag = end * scipy.integrate.quad(missed, 0, 1)[0]
        expected = abs(lag) * np.sum(2 * lam * np.asarray(y1))
    else:
        # With q constant the clock's share is the step's; g / 2q drives the modes.
        whole = end * 0.5
        driven = [
            f * m * whole * scipy.integrate.quad(
                lambda x, m=m: np.exp(-2 * m * whole * (1 - x)) * missed(x), 0, 1
            )[0]
            for f, m in zip(forcing, lam, strict=True)
        ]  # fmt: skip
        expected = abs(np.sum(driven))
    np.testing.assert_allclose(_error(found, y1), expected, rtol=1e-9)


def test_single_precision_and_nothing_to_do():
    problem, lr = _SMALL, jnp.asarray(0.02)
    ode, steps = jc.RiskODE(jc.limit.ExponentialModes()), jnp.array([0.0, 100.0])
    risk = _solve(problem, jc.HardClip(2.0), lr, steps=steps, limit=ode).risk
    assert risk.dtype == jnp.result_type(float)
    np.testing.assert_allclose(
        risk,
        _solve(problem, jc.HardClip(2.0), lr, steps=steps).risk,
        rtol=1e-4 if risk.dtype == jnp.float32 else 1e-7,
    )
    still = jc.LinearModel(problem.spectrum, jc.Gaussian(0.0), jnp.zeros(5))
    np.testing.assert_allclose(
        _solve(still, jc.HardClip(2.0), lr, steps=steps, limit=ode).risk,
        0.0,
        atol=1e-9,
    )
    np.testing.assert_allclose(
        _solve(problem, jc.HardClip(2.0), 0 * lr, steps=steps, limit=ode).risk,
        0.5,
        rtol=1e-5,
    )
