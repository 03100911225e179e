"""The limits: reference values, other solvers, exact laws and derivatives."""

from typing import Any, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree

import jaxclip as jc
from helpers import NOISES, assert_within, finite_difference, mean_and_error

float32 = pytest.mark.float32

# Arguments that several solutions share.
Settings: TypeAlias = dict[str, Any]

KEY = jr.key(21)
TIMES = np.array([0.5, 1, 2, 5, 10, 20])

# One eigenvalue in 100 dimensions, and set B of section 1.3 of docs/theory.md,
# of intrinsic dimension N = 157.5. R = 1 at 0.
ISOTROPIC = (jc.Spectrum.isotropic(100), np.array([2**0.5]))
SET_B = (
    jc.Spectrum([1.0, 0.5, 0.25, 0.1], [50, 100, 150, 200]),
    np.sqrt(2 * np.array([50, 100, 150, 200]) / 157.5),
)


def _scaled(setting, noise, c, eta=0.5) -> tuple[jc.LinearModel, jc.AbstractClip, Any]:
    """The problem, the clip and the rate: lr = eta / N and C = c sqrt(Tr K)."""
    spectrum, start = setting
    clip = jc.Identity() if np.isinf(c) else jc.HardClip(c * spectrum.feature_norm)
    problem = jc.LinearModel(spectrum, NOISES[noise], start)
    return problem, clip, eta / spectrum.intrinsic_dimension


# Much is compiled here, and an operation at a time takes longer than all at once.
_solve = eqx.filter_jit(jc.solve)


@eqx.filter_jit
def _ode(problem, clip, lr, steps):
    """One compilation for each class of noise and rule and each number of steps."""
    return jc.solve(problem, clip, lr, steps=steps).risk


# The risk ODE

# Section 1.3 of docs/theory.md, at t = k / N of TIMES.
_CURVES: dict[str, tuple[Any, str, float, str]] = {
    "A1": (
        *(ISOTROPIC, "gaussian", np.inf),
        "0.739407732 0.560305461 0.352608467 0.186264788 0.167127570 0.166666922",
    ),
    "A2": (
        *(ISOTROPIC, "gaussian", 1.0),
        "0.838310661 0.700418087 0.487661436 0.193395888 0.114662914 0.109144086",
    ),
    "A6": (
        *(ISOTROPIC, "laplace", 0.7),
        "0.869436448 0.752420325 0.556438129 0.215918389 0.077019130 0.061880869",
    ),
    "A8": (
        *(ISOTROPIC, "cauchy", 1.0),
        "0.889584202 0.792065455 0.631461986 0.353506943 0.219796382 0.194185520",
    ),
    "B2": (
        *(SET_B, "gaussian", 1.0),
        "0.910225549 0.831138950 0.700225075 0.456687972 0.282915853 0.172172447",
    ),
    "B3": (
        *(SET_B, "student_t", 1.0),
        "0.920334505 0.849549952 0.730777807 0.501947416 0.328894446 0.211221823",
    ),
}


@float32
@pytest.mark.parametrize(
    "curve",
    # A program of its own for each class of noise, and each number of eigenvalues.
    [
        pytest.param(c, marks=pytest.mark.slow) if c in ("A1", "A6", "A8") else c
        for c in _CURVES
    ],
)
def test_reference_curve(curve):
    setting, noise, c, digits = _CURVES[curve]
    steps = jnp.asarray(TIMES * float(setting[0].intrinsic_dimension))
    risk = _ode(*_scaled(setting, noise, c), steps)
    assert risk.dtype == jnp.result_type(float)
    rtol = 1e-8 if risk.dtype == jnp.float64 else 2e-4
    np.testing.assert_allclose(risk, np.array(digits.split(), float), rtol=rtol)


def test_volterra_form():
    """The risk is a fixed point of the integral equation of section 3."""
    problem, clip, lr = _scaled(SET_B, "gaussian", 1.0)
    lam, d = SET_B[0].eigenvalues, SET_B[0].multiplicity
    lam, d = np.asarray(lam), np.asarray(d)
    # Evenly in the square root: the risk varies fastest at the start.
    steps = 157.5 * 10 * np.linspace(0, 1, 2001) ** 2
    risk = _ode(problem, clip, lr, jnp.asarray(steps))
    norm = problem.spectrum.feature_norm
    mu, second = jax.jit(
        jax.vmap(lambda r: jc.moments(clip, problem.noise, r, norm)[:2])
    )(risk)
    rate = float(lr)
    descent = scipy.integrate.cumulative_simpson(rate * mu, x=steps, initial=0)
    for end in [200, 900, 2000]:
        gap = descent[end] - descent[: end + 1]
        kernel = np.sum(lam**2 * d * np.exp(-2 * lam * gap[:, None]), axis=1)
        memory = kernel * rate**2 * np.asarray(second[: end + 1])
        start = problem.start**2 / 2 * lam * np.exp(-2 * lam * descent[end])
        integral = scipy.integrate.simpson(memory, x=steps[: end + 1]) / 2
        np.testing.assert_allclose(risk[end], np.sum(start) + integral, rtol=1e-8)


def _hard_gaussian_moments(excess, std, c):
    """The closed form of section 2: mu = erf(q / sqrt 2), and second."""
    variance = 2 * excess + std**2
    q = c / np.sqrt(variance)
    mu = scipy.special.erf(q / 2**0.5)
    inside = variance * scipy.special.gammainc(1.5, q**2 / 2)
    return mu, inside + c**2 * scipy.special.erfc(q / 2**0.5)


def test_schedules_against_scipy():
    """Rate and threshold change with the step; the moments are a closed form."""
    lam, d, start = np.array([1.0, 0.2]), np.array([3, 7]), np.array([1.0, 2.0])
    problem = jc.LinearModel(jc.Spectrum(lam, d), jc.Gaussian(0.6), start)
    norm = np.sqrt(lam @ d)

    def field(k, v):
        mu, second = _hard_gaussian_moments(lam @ v, 0.6, (0.3 + 2 / (1 + k)) / norm)
        rate = 0.2 * np.exp(-k / 30)
        return -2 * rate * mu * lam * v + rate**2 * second * lam * d / 2

    steps = np.linspace(0, 40, 9)
    exact = scipy.integrate.solve_ivp(
        field, (0, 40), start**2 / 2, "DOP853", steps, rtol=1e-12, atol=1e-14
    )
    curve = _solve(
        problem,
        jc.HardClip(lambda k: 0.3 + 2 / (1 + k)),
        lambda k: 0.2 * jnp.exp(-k / 30),
        steps=steps,
    )
    np.testing.assert_array_equal(curve.step, steps)
    np.testing.assert_allclose(curve.risk, lam @ exact.y, rtol=1e-8)
    np.testing.assert_allclose(curve.reduced.risk, lam * exact.y[:, -1], rtol=1e-7)


def test_stationary_risk():
    """Unclipped, b sigma^2 / (2 (2 - b)) below b = lr Tr K = 2 and no bound above;
    clipped, the solution of R = (b / 4) second / mu at every rate."""
    long = jnp.array([0.0, 1, 10, 100, 4000, 8000])
    for b in [0.5, 1.5]:
        risk = _ode(*_scaled(ISOTROPIC, "gaussian", np.inf, eta=b), long)
        np.testing.assert_allclose(risk[-2:], b / (2 * (2 - b)), rtol=1e-8)
    unstable = _ode(*_scaled(ISOTROPIC, "gaussian", np.inf, eta=2.5), long)
    # The slope of log R is b (b - 2) / N a step.
    np.testing.assert_allclose(jnp.log(unstable[-1] / unstable[-2]), 50, rtol=1e-6)
    for b in [0.5, 2.5, 10.0]:

        def excess(log_risk, b=b):
            mu, second = _hard_gaussian_moments(np.exp(log_risk), 1.0, 1.0)
            return log_risk - np.log(b / 4 * second / mu)

        root = scipy.optimize.root_scalar(excess, bracket=(-10, 10), xtol=1e-14)
        expected = np.exp(root.root)
        risk = _ode(*_scaled(ISOTROPIC, "gaussian", 1.0, eta=b), long)
        np.testing.assert_allclose(risk[-2:], expected, rtol=1e-8)


# Homogenized SGD

_RUNS = 2000


@pytest.fixture(scope="module")
def scatter():
    """Risks at t = .5, 1, 2, 4 of curve A2's setting, shape (runs, 4): SGD's and the
    SDE's."""
    problem, clip, lr = _scaled(ISOTROPIC, "gaussian", 1.0)

    def sgd(key):
        return jc.simulate(problem, clip, lr, steps=400, every=50, key=key).risk

    def sde(key):
        limit = jc.HomogenizedSDE(dt=5.0)
        steps = [50, 100, 200, 400]
        return jc.solve(problem, clip, lr, steps=steps, key=key, limit=limit).risk

    keys = jr.split(KEY, _RUNS)
    sgd_risk = np.asarray(jax.jit(jax.vmap(sgd))(keys))[:, [1, 2, 4, 8]]
    return sgd_risk, np.asarray(jax.jit(jax.vmap(sde))(keys))


# The mean and N times the variance of a run; a law at N = 100 differs from its limit by
# a few times 1 / N, relatively.
_BIAS = 0.03


@pytest.mark.optimised
@pytest.mark.parametrize("which", ["sgd", "sde"])
def test_the_mean_over_runs_is_the_ode(scatter, which):
    problem, clip, lr = _scaled(ISOTROPIC, "gaussian", 1.0)
    expected = _ode(problem, clip, lr, jnp.array([50.0, 100, 200, 400]))
    mean, error = mean_and_error(scatter[which == "sde"])
    assert_within(mean, error + _BIAS / 4 * mean, expected, power=0.03)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("sgd", [0.09004, 0.13965, 0.16066, 0.09648]),
        ("sde", [0.13625, 0.20786, 0.23119, 0.12972]),
    ],
)
def test_scatter_of_runs(scatter, which, expected):
    """The variances of section 1.4 of docs/theory.md: the SDE's are not SGD's."""
    risk = scatter[which == "sde"]
    squares = 100 * (risk - risk.mean(axis=0)) ** 2
    variance, error = mean_and_error(squares)
    # Relatively: the two laws differ by 0.26 or more.
    variance, error = variance / expected, error / expected
    assert_within(variance, error + _BIAS / 4, np.ones(4), power=0.25)


def _mean_without_a_clip(problem, lr, steps, dt):
    """The mean risk of the SDE with coefficients frozen over `dt`: without a clip it
    is a linear recursion, exact at every dimension."""
    lam, d = np.asarray(problem.spectrum.eigenvalues), problem.spectrum.multiplicity
    v = np.asarray(problem.start) ** 2 / 2
    variance = float(problem.noise.variance)
    for _ in range(round(steps / dt)):
        force = lr**2 * lam * np.asarray(d) * (2 * lam @ v + variance) / 2
        decay = np.exp(-2 * lr * lam * dt)
        v = v * decay + force * (1 - decay) / (2 * lr * lam)
    return lam @ v


def test_the_frozen_scheme_has_its_own_mean_and_weak_order_one():
    spectrum = jc.Spectrum([1.0, 0.3], [2, 3])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), [2.0, 1.0])
    lr, steps = 0.25, 12
    dt = 4.0

    def final(key):
        limit = jc.HomogenizedSDE(dt=dt)
        curve = jc.solve(
            problem, jc.Identity(), lr, steps=[steps], key=key, limit=limit
        )
        return curve.risk[-1]

    risk = jax.jit(jax.vmap(final))(jr.split(KEY, 15_000))
    expected = _mean_without_a_clip(problem, lr, steps, dt)
    assert_within(*mean_and_error(risk), expected, power=0.05)
    # The recursion is an ODE's in the limit, which the dimension does not enter.
    limit = _solve(problem, jc.Identity(), lr, steps=[steps]).risk[-1]
    errors = [
        _mean_without_a_clip(problem, lr, steps, dt) - float(limit)
        for dt in (4.0, 1.0, 0.1, 0.05)
    ]
    assert abs(errors[0]) > 0.05
    np.testing.assert_allclose(errors[2] / errors[3], 2, rtol=0.05)


def test_the_fixed_step_scheme_and_diffrax_agree_in_law():
    spectrum = jc.Spectrum([1.0, 0.3], [2, 1])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), [2.0, 1.0])
    clip, lr = jc.HardClip(0.8), 0.1

    def risks(limit, keys):
        def final(key):
            return jc.solve(
                problem, clip, lr, steps=[8.0, 16.0], key=key, limit=limit
            ).risk

        return np.asarray(jax.jit(jax.vmap(final))(keys))

    key, other = jr.split(KEY)
    frozen = risks(jc.HomogenizedSDE(dt=0.5), jr.split(key, 1500))
    solver = jc.HomogenizedSDE(dt=0.5, solver=diffrax.Euler())
    general = risks(solver, jr.split(other, 1500))
    for i in range(2):
        assert _same_law(frozen[:, i], general[:, i]) > 1e-3
    # The test has power: it would see this much more of risk.
    assert _same_law(frozen[:, 0], 1.15 * general[:, 0]) < 1e-3


def _same_law(first: np.ndarray, second: np.ndarray) -> float:
    """The probability of a Kolmogorov-Smirnov distance as large as theirs."""
    result: Any = scipy.stats.ks_2samp(first, second)
    return result.pvalue


@pytest.mark.optimised  # to the last bit the same, as users have it
def test_reporting_more_often_leaves_the_path_alone():
    problem, clip, lr = _scaled(ISOTROPIC, "gaussian", 1.0)
    limit = jc.HomogenizedSDE(dt=5.0)
    sparse = _solve(problem, clip, lr, steps=[0, 40], key=KEY, limit=limit)
    dense = _solve(problem, clip, lr, steps=[5, 10, 30, 30, 40], key=KEY, limit=limit)
    np.testing.assert_array_equal(dense.risk[-1], sparse.risk[-1])
    np.testing.assert_array_equal(dense.params, sparse.params)
    np.testing.assert_array_equal(sparse.risk[0], problem.risk(problem.init()))
    assert dense.risk[2] == dense.risk[3]
    np.testing.assert_allclose(problem.risk(dense.params), dense.risk[-1], rtol=1e-14)


# The verb


def test_steps_may_be_fractions_and_start_anywhere():
    setting = _scaled(SET_B, "gaussian", 1.0)
    steps = jnp.array([0.0, 0.25, 10.5, 10.5, 700, 1234.5])
    risk = np.asarray(_ode(*setting, steps))
    np.testing.assert_allclose(risk[0], 1.0, rtol=1e-14)
    assert risk[2] == risk[3]
    assert np.all(np.diff(risk)[[0, 1, 3, 4]] < 0)
    # The first step that is reported is no start.
    later = np.asarray(_ode(*setting, jnp.array([10.5, 20, 30, 40, 700, 1234.5])))
    np.testing.assert_allclose(later[[0, 4, 5]], risk[3:], rtol=1e-8)
    # One quarter of a step, to first order: dR/dk at 0 from the moments.
    problem, clip, lr = setting
    m = jc.moments(clip, problem.noise, 1.0, problem.spectrum.feature_norm)
    lam, d = problem.spectrum.eigenvalues, problem.spectrum.multiplicity.astype(float)
    slope = jnp.sum(lam**2 * (-lr * m.mu * problem.start**2 + lr**2 * m.second * d / 2))
    np.testing.assert_allclose((risk[1] - 1) / 0.25, slope, rtol=2e-3)


def test_a_run_that_is_over_at_once():
    setting = _scaled(SET_B, "gaussian", 1.0)
    risk = _ode(*setting, jnp.zeros(6))
    np.testing.assert_allclose(risk, np.ones(6), rtol=1e-14)


def test_vmap_is_a_loop():
    problem, clip, lr = _scaled(SET_B, "gaussian", 1.0)
    steps = jnp.asarray(TIMES * 157.5)
    lrs = lr * jnp.array([0.3, 1.0, 4.0])
    together = jax.vmap(lambda lr: _ode(problem, clip, lr, steps))(lrs)
    for i in range(3):
        # Not to rounding: under a vmap the adaptive steps are the same, their sums not.
        alone = _ode(problem, clip, lrs[i], steps)
        np.testing.assert_allclose(together[i], alone, rtol=1e-9)


# Derivatives


def _final(settings, adjoint=None):
    """The logarithm of a final risk, of everything that is a number."""
    eigenvalues = jnp.exp(settings["log_eigenvalues"])
    problem = jc.LinearModel(
        jc.Spectrum(eigenvalues, np.array([3, 5])),
        jc.Contaminated(*settings["noise"]),
        settings["start"],
    )
    knots = jnp.array([0.0, 10.0, 25.0])
    clip = jc.HardClip(jc.PiecewiseLinear(knots, settings["threshold"]))
    lr = jc.PiecewiseLinear(knots, settings["lr"])
    # A finite difference loses digits to the tolerance of the adaptive steps.
    limit = jc.RiskODE(rtol=1e-12)
    steps = jnp.array([0.0, 30.0])
    curve = jc.solve(problem, clip, lr, steps=steps, adjoint=adjoint, limit=limit)
    return jnp.log(curve.risk[-1])


_SETTINGS = {
    "log_eigenvalues": jnp.log(jnp.array([1.0, 0.2])),
    "noise": [jnp.asarray(0.7), jnp.asarray(5.0), jnp.asarray(0.15)],
    "start": jnp.array([1.0, 2.0]),
    "threshold": jnp.array([4.0, 2.0, 1.0]),
    "lr": jnp.array([0.15, 0.1, 0.05]),
}


def test_gradients_in_everything_that_is_a_number():
    """The gradient and finite differences."""
    at, unravel = ravel_pytree(_SETTINGS)
    values = jax.jit(jax.vmap(lambda x: _final(unravel(x))))
    directions = jnp.eye(at.size)
    expected = finite_difference(
        lambda h: values(at[None, :] + h[:, None] * directions),
        jnp.zeros(at.size),
        jnp.full(at.size, 2e-3),
    )
    gradient = ravel_pytree(jax.jit(jax.grad(_final))(_SETTINGS))[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)
    assert np.all(np.abs(expected) > 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [diffrax.ForwardMode(), diffrax.DirectAdjoint()])
def test_forward_mode_is_reverse_mode(adjoint):
    forward = jax.jit(jax.jacfwd(lambda settings: _final(settings, adjoint)))
    reverse = ravel_pytree(jax.jit(jax.grad(_final))(_SETTINGS))[0]
    np.testing.assert_allclose(ravel_pytree(forward(_SETTINGS))[0], reverse, rtol=1e-7)


@pytest.mark.slow
def test_gradient_of_the_sde_is_that_of_its_path():
    problem = jc.LinearModel(jc.Spectrum([1.0, 0.2]), jc.Gaussian(0.5), [1.0, 2.0])

    def final(x):
        clip, limit = jc.HardClip(x[0]), jc.HomogenizedSDE(dt=2.0)
        return jc.solve(problem, clip, x[1], steps=[20], key=KEY, limit=limit).risk[-1]

    at, directions = jnp.array([0.6, 0.15]), jnp.eye(2)
    values = jax.jit(jax.vmap(final))
    expected = finite_difference(
        lambda h: values(at[None, :] + h[:, None] * directions),
        jnp.zeros(2),
        jnp.full(2, 1e-3),
    )
    np.testing.assert_allclose(jax.jit(jax.grad(final))(at), expected, rtol=1e-7)
    assert np.all(np.abs(expected) > 1e-3)


# Failure and misuse


def test_a_solver_that_fails():
    problem, clip, lr = _scaled(ISOTROPIC, "gaussian", 1.0)
    limit = jc.RiskODE(max_steps=4)
    steps = jnp.array([0.0, 1.0, 5000.0])
    curve = _solve(problem, clip, lr, steps=steps, throw=False, limit=limit)
    np.testing.assert_array_equal(np.isinf(curve.risk), [False, False, True])
    assert not np.any(np.isnan(curve.risk))
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        _solve(problem, clip, lr, steps=steps, limit=limit)


def test_divergence_is_infinite_risk():
    problem, clip, lr = _scaled(ISOTROPIC, "gaussian", np.inf, eta=100.0)
    for limit in [jc.RiskODE(max_steps=4096), jc.HomogenizedSDE(dt=10.0)]:
        how: Settings = dict(steps=[0.0, 0.5, 1e4], key=KEY, throw=False)
        curve = _solve(problem, clip, lr, **how, limit=limit)
        np.testing.assert_array_equal(np.isinf(curve.risk), [False, False, True])


_PROBLEM = jc.LinearModel(jc.Spectrum([1.0, 0.2]), jc.Gaussian(0.5), [1.0, 2.0])
_ROWS = jc.Regression(np.eye(3)[:, :2], np.ones(3))


def _call(limit: Any = None, **changes: Any):
    settings: Settings = dict(
        problem=_PROBLEM, clip=jc.HardClip(1.0), lr=0.1, steps=[0.0, 1.0]
    )
    limit = jc.RiskODE() if limit is None else limit
    return jc.solve(**{**settings, **changes}, limit=limit)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [1.0, 0.5]}, "`steps` must be in increasing order. Got"),
        ({"steps": [-1.0, 0.5]}, "`steps` must be non-negative and finite. Got"),
        ({"steps": [0.0, np.nan]}, "`steps` must be non-negative and finite"),
        ({"steps": [0.0, np.inf]}, "`steps` must be non-negative and finite"),
        ({"steps": 10}, r"`steps` must be a vector.*Got shape \(\)"),
        ({"steps": []}, r"`steps` must be a vector.*Got shape \(0,\)"),
        ({"steps": [[1.0]]}, r"`steps` must be a vector.*Got shape \(1, 1\)"),
        ({"steps": "all"}, "`steps` must be a number or an array of numbers"),
        ({"lr": -0.1}, r"`lr` must be non-negative and not NaN\. Got -0\.1"),
        ({"lr": np.nan}, "`lr` must be non-negative and not NaN"),
        ({"lr": lambda k: 0.5 - k}, "`lr` must be non-negative and not NaN"),
        ({"lr": np.ones(2)}, r"`lr` must be one number.*Got shape \(2,\)"),
        ({"clip": 1.0}, r"`clip` must be a clipping rule.*Got 1\.0"),
        ({"limit": 1.0}, r"`limit` must be one such as `RiskODE\(\)`. Got 1.0"),
        ({"limit": jc.RiskODE}, r"`limit` must be one such as `RiskODE\(\)`"),
        (
            {"problem": _ROWS},
            "`RiskODE` needs a `LinearModel`.*Got a Regression.*from",
        ),
        (
            {"problem": _ROWS, "limit": jc.HomogenizedSDE(), "key": KEY},
            "`HomogenizedSDE` needs a `LinearModel`",
        ),
        (
            {"limit": jc.HomogenizedSDE()},
            "`HomogenizedSDE` is random and needs a `key`",
        ),
    ],
)
def test_misuse(changes, message):
    with pytest.raises(ValueError, match=message):
        _call(**changes)


@pytest.mark.parametrize("dt", [0.0, -1.0, np.nan, np.inf])
def test_the_interval_of_the_sde_is_positive(dt):
    with pytest.raises(ValueError, match="`dt` must be positive and finite"):
        jc.HomogenizedSDE(dt=dt)


def test_traced_steps():
    """The ODE takes them, and sees bad ones when it runs; the SDE does not."""
    steps = jnp.array([0.0, 2.0, 1.0])

    @eqx.filter_jit
    def solve(limit, steps):
        return _call(limit, steps=steps, key=KEY).risk

    with pytest.raises(RuntimeError, match="`steps` must be in increasing order"):
        solve(jc.RiskODE(), steps)
    with pytest.raises(
        ValueError, match="`steps` must be concrete for `HomogenizedSDE"
    ):
        solve(jc.HomogenizedSDE(), jnp.sort(steps))


def test_known_steps_stay_known_under_jit():
    """A list under `jit` is no traced array."""
    limit = jc.HomogenizedSDE()
    alone = _call(limit, steps=[0.0, 2.0, 3.5], key=KEY).risk
    jitted = jax.jit(lambda key: _call(limit, steps=[0.0, 2.0, 3.5], key=key).risk)
    np.testing.assert_allclose(jitted(KEY), alone, rtol=1e-13)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (500, r"`steps` must be a vector .* Got shape \(\)"),
        ([], r"`steps` must be a vector .* Got shape \(0,\)"),
        ([-5.0, 5.0], "`steps` must be non-negative and finite"),
        ([0.0, np.inf], "`steps` must be non-negative and finite"),
        ([10.0, 5.0], "`steps` must be in increasing order"),
    ],
)
def test_reporting_steps_have_one_door(steps, message, without_type_checks):
    for use in (
        lambda: jc.solve(_PROBLEM, jc.Identity(), 0.1, steps=steps),
        lambda: jc.ceiling(_PROBLEM, 0.1, steps=steps),
        lambda: jc.curvature.hard_clip_floor(1.0, 1.0, 0.1, steps, largest=1.0),
    ):
        with pytest.raises(ValueError, match=message):
            use()
