"""Limits see all of a schedule: every jump, burst and pause, as SGD does."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.integrate

import jaxclip as jc
from helpers import finite_difference
from jaxclip.limit._reading import Reading, _stops_of

float32 = pytest.mark.float32

# Unclipped SGD on one eigenvalue: between two steps the risk is known exactly.
DIM, STD, RATE = 100, 1.0, 0.004
IDENTITY = jc.Identity()
PROBLEM = jc.LinearModel(jc.Spectrum.isotropic(DIM), jc.Gaussian(STD), np.ones(1))


def exact(rates: np.ndarray, risk: Any = 0.5) -> Any:
    """The risk after steps with these rates, each held for a unit of time: the ODE
    R' = -2 r R + r^2 d (2 R + s^2) / 2 is linear."""
    for rate in rates:
        a, b = 2 * rate - rate**2 * DIM, rate**2 * DIM * STD**2 / 2
        gone = -np.expm1(-a)
        risk = risk * (1 - gone) + (b / a * gone if a else 0.0)
    return risk


class Table(eqx.Module):
    """The rate of each step, as a user may have it in a table."""

    rates: Any = eqx.field(converter=jnp.asarray)

    def __call__(self, step):
        last = len(self.rates) - 1
        return self.rates[jnp.clip(jnp.floor(step), 0, last).astype(int)]


def _table(function, end, length=3000):
    """Tables of the same length share a compiled program."""
    rates = [function(k) for k in range(end)]
    return Table(np.array(rates + [40 * RATE] * (length - end))), end


_RANDOM = np.random.default_rng(0).uniform(0.5, 1.5, 3000)
# Each with a number of steps. What SGD does is the value at whole steps.
SCHEDULES: dict[str, tuple[Any, int]] = {
    "one_step": _table(lambda k: 50 * RATE * (k == 1777), 3000),
    "period_2": _table(lambda k: RATE * (k % 2), 300),
    "period_25": _table(lambda k: RATE / (1 + 8 * (k // 25 % 2)), 900),
    "every_step": _table(lambda k: RATE * _RANDOM[k], 300),
    "late": (
        lambda k: jnp.where((k > 9e4) & (jnp.floor(k) % 2 == 0), RATE, 0.0),
        90_300,
    ),
    "at_the_end": _table(lambda k: RATE, 300),
    "tiny_jumps": _table(lambda k: RATE * (1 + 1e-4 * (k // 3)), 300),
    "two_pauses": (
        optax.join_schedules(
            [optax.constant_schedule(x) for x in (0.0, RATE, 0.0)], [500, 600]
        ),
        2000,
    ),
    "at_a_half": (lambda k: jnp.where(k < 99.5, RATE, RATE / 5), 300),
    "from_the_right": (lambda k: jnp.where(k > 100, RATE / 5, RATE), 300),
}


@eqx.filter_jit
def _solve(lr, end, clip: jc.AbstractClip = IDENTITY):
    steps = jnp.stack([jnp.zeros_like(end), end])
    return jc.solve(PROBLEM, clip, lr, steps=steps).risk[-1]


@float32
@pytest.mark.parametrize(
    "name",
    # A program of their own, for what the tables and the other two have as well.
    [
        pytest.param(n, marks=pytest.mark.slow)
        if n in ("two_pauses", "from_the_right", "tiny_jumps")
        else n
        for n in SCHEDULES
    ],
)
def test_every_jump_is_seen(name):
    schedule, end = SCHEDULES[name]
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(end, dtype=float)), np.float64)
    risk = _solve(schedule, jnp.asarray(float(end)))
    rtol = 1e-6 if risk.dtype == jnp.float64 else 2e-4
    np.testing.assert_allclose(risk, exact(rates), rtol=rtol)
    if name in ("two_pauses", "one_step", "at_a_half"):
        # A constant rate of the same mean is something else: the test has power.
        assert abs(exact(np.full(end, rates.mean())) / risk - 1) > 0.003


def test_smooth_pieces_are_read_between_the_steps():
    """A cosine with a jump in it, against the continuous solution of each piece."""

    def schedule(k):
        return RATE * (1.2 + jnp.cos(k / 40)) * jnp.where(k < 120, 1.0, 0.2)

    # The linear ODE by a fine rule on either side of the jump.
    risk = 0.5
    for start, end, factor in ((0, 120, 1.0), (120, 200, 0.2)):
        parts = 200 * (end - start)
        middle = start + (np.arange(parts) + 0.5) / 200
        for rate in RATE * factor * (1.2 + np.cos(middle / 40)):
            a, b = 2 * rate - rate**2 * DIM, rate**2 * DIM * STD**2 / 2
            gone = -np.expm1(-a / 200)
            risk = risk * (1 - gone) + b / a * gone
    np.testing.assert_allclose(_solve(schedule, jnp.asarray(200.0)), risk, rtol=1e-8)


class Burst(eqx.Module):
    """A schedule as a user would write it, whose numbers are leaves."""

    base: Any
    peak: Any
    start: Any = eqx.field(converter=jnp.asarray)

    def __call__(self, step):
        inside = (step >= self.start) & (step < self.start + 7)
        return jnp.where(inside, self.peak, self.base)


def _burst_risk(x):
    lr = Burst(x[0], x[1], x[2])
    return jc.solve(PROBLEM, jc.Identity(), lr, steps=[0.0, 500.0]).risk[-1]


@pytest.mark.slow
def test_a_module_under_jit_vmap_and_grad():
    at = jnp.array([[RATE / 10, RATE, 200.0], [0.0, 2 * RATE, 311.0]])
    rates = [
        np.where((np.arange(500) >= s) & (np.arange(500) < s + 7), p, b)
        for b, p, s in np.asarray(at)
    ]
    expected = [exact(rate) for rate in rates]
    alone = [_burst_risk(x) for x in at]
    together = jax.jit(jax.vmap(_burst_risk))(at)
    np.testing.assert_allclose(alone, expected, rtol=1e-8)
    np.testing.assert_allclose(together, expected, rtol=1e-8)
    gradient = jax.jit(jax.grad(_burst_risk))(at[0])
    for i, step in ((0, 1e-6), (1, 1e-5)):
        slope = finite_difference(
            lambda h, i=i: np.array(
                [
                    exact(np.where(rates[0] == float(at[0, i]), rates[0] + x, rates[0]))
                    for x in np.atleast_1d(h)
                ]
            ),
            np.zeros(1),
            np.full(1, step),
        )
        np.testing.assert_allclose(gradient[i], slope[0], rtol=1e-6)


class Jump(eqx.Module):
    """One number before a step, and another from there on."""

    before: Any = eqx.field(converter=jnp.asarray)
    after: Any = eqx.field(converter=jnp.asarray)
    step: Any = eqx.field(converter=jnp.asarray)

    def __call__(self, k):
        return jnp.where(k < self.step, self.before, self.after)


@pytest.mark.parametrize("wide", [False, True])
def test_a_threshold_that_jumps_is_the_solution_in_pieces(wide):
    """By either solver: two runs, the second from where the first ends."""
    lam = np.array([1.0, 0.2]) if not wide else np.array([1.0, 1e-3])
    start = np.array([1.0, 2.0])
    noise, lr, long = jc.Gaussian(0.5), 0.05, jnp.array([0.0, 40.0])

    def run(start, threshold, steps=long):
        problem = jc.LinearModel(jc.Spectrum(lam, [3, 5]), noise, start)
        clip = jc.HardClip(threshold)
        return jc.solve(problem, clip, lr, steps=steps)

    # All three by the same compiled program.
    first = run(start, Jump(0.4, 0.4, 40.0))
    second = run(jnp.sqrt(2 * first.reduced.risk / lam), Jump(2.0, 2.0, 40.0))
    together = run(start, Jump(0.4, 2.0, 40.0), jnp.array([0.0, 80.0]))
    np.testing.assert_allclose(together.risk[-1], second.risk[-1], rtol=1e-7)


class Stepped(jc.AbstractClip):
    """A rule as a user would write it, that reads the step by itself."""

    def factor(self, norm, step):
        threshold = jnp.where((step >= 150) & (step < 160), 1e-3, 1e3)
        return jnp.minimum(1.0, threshold / jnp.maximum(norm, threshold))

    def kinks(self, step):
        return (jnp.where((step >= 150) & (step < 160), 1e-3, 1e3),)


def test_a_rule_that_reads_the_step_itself():
    lr = 20 * RATE / 30
    risk = _solve(jc.Constant(lr), jnp.asarray(300.0), Stepped())
    rates = np.full(300, lr)
    # Clipped to a thousandth there is no motion to speak of.
    rates[150:160] = 0.0
    np.testing.assert_allclose(risk, exact(rates), rtol=1e-3)
    assert abs(exact(np.full(300, lr)) / exact(rates) - 1) > 0.01


@float32
def test_a_run_of_more_steps_than_float32_has_whole_numbers():
    end = 3e7
    lr = RATE / 1e5
    half = jc.solve(
        PROBLEM,
        jc.Identity(),
        lambda k: jnp.where(k < end / 2, lr, 0.0),
        steps=[0.0, end],
    ).risk[-1]
    known = jc.solve(PROBLEM, jc.Identity(), lr, steps=[0.0, end / 2]).risk[-1]
    np.testing.assert_allclose(half, known, rtol=2e-4)


def test_smooth_schedules_have_no_stops():
    """But where they turn: a stop costs some steps of the solver."""

    def stops(lr):
        reading = Reading.of(lr, jnp.asarray(5000.0))
        found = np.asarray(reading.stops(8))
        return found[np.isfinite(found)]

    cosine = optax.warmup_cosine_decay_schedule(0.0, 1.0, 1000, 5000, 0.1)
    assert set(stops(_schedule(cosine))) <= {999.0, 1000.0, 1001.0}
    assert len(stops(_schedule(lambda k: 2 / (1 + k)))) == 0
    assert len(stops(_schedule(lambda k: jnp.exp(-k / 30)))) == 0
    assert len(stops(_schedule(optax.exponential_decay(1.0, 100, 0.5)))) == 0
    assert len(stops(jc.Constant(1.0))) == 0
    burst = Table(1.0 * (np.arange(3000) == 1777))
    np.testing.assert_array_equal(stops(burst), [1777, 1778])


def _schedule(function):
    return jc.HardClip(function).threshold


# The other limits


def _mean(rates: np.ndarray, dt: float) -> Any:
    """The mean risk of the SDE with the risk frozen over intervals of `dt` steps."""
    v = 0.5
    for start in range(0, len(rates), int(dt)):
        frozen = 2 * v + STD**2
        for rate in rates[start : start + int(dt)]:
            gone = -np.expm1(-2 * rate)
            v = v * (1 - gone) + rate**2 * DIM * frozen / 2 * (
                gone / (2 * rate) if rate else 0.0
            )
    return v


@pytest.mark.parametrize("dt", [1.0, 10.0])
def test_the_sde_reads_every_step(dt):
    """A burst inside of an interval: the mean over runs is that of the scheme."""
    schedule = Burst(0.0, 8 * RATE, 33.0)
    rates = np.where((np.arange(60) >= 33) & (np.arange(60) < 40), 8 * RATE, 0.0)

    def final(key):
        limit = jc.HomogenizedSDE(dt=dt)
        curve = jc.solve(
            PROBLEM, jc.Identity(), schedule, steps=[30.0, 60.0], key=key, limit=limit
        )
        return curve.risk

    risk = np.asarray(jax.jit(jax.vmap(final))(jr.split(jr.key(3), 400)))
    np.testing.assert_array_equal(risk[:, 0], risk[0, 0])  # nothing moves before
    mean, error = risk[:, 1].mean(), risk[:, 1].std() / 20
    assert abs(mean - _mean(rates, dt)) < 4 * error
    assert error < 0.02 * abs(mean - 0.5)


# An unstable rate


@pytest.mark.optimised
@float32
@pytest.mark.parametrize(
    "noise",
    # Over the panels of the second each step takes many times as long.
    [jc.Gaussian(1.0), pytest.param(jc.StudentT(3.0, 1.0), marks=pytest.mark.slow)],
)
def test_an_unstable_rate_ends_in_infinite_risk_at_once(noise):
    problem = jc.LinearModel(jc.Spectrum.isotropic(DIM), noise, np.ones(1))
    # A sixtieth of the steps that were spent on it.
    limit = jc.RiskODE(max_steps=1000, rtol=1e-5)
    how: dict[str, Any] = dict(steps=[0.0, 1.0, 1e7])
    run = eqx.filter_jit(jc.solve)
    risk = run(problem, jc.Identity(), 1.0, **how, throw=False, limit=limit).risk
    np.testing.assert_array_equal(np.isinf(risk)[[0, 2]], [False, True])
    assert not np.any(np.isnan(risk))
    with pytest.raises(RuntimeError, match="grows beyond all bounds"):
        run(problem, jc.Identity(), 1.0, **how, limit=limit)


def _final(lr, adjoint=None):
    problem = jc.LinearModel(jc.Spectrum([1.0]), jc.Gaussian(0.5), [1.0])
    limit = jc.RiskODE(max_steps=256)
    curve = jc.solve(
        problem, IDENTITY, lr, steps=[0.0, 9.0], adjoint=adjoint, limit=limit
    )
    return curve.risk[-1]


def test_forward_mode_says_what_to_pass():
    with pytest.raises(ValueError, match=r"pass `adjoint=diffrax\.DirectAdjoint"):
        jax.hessian(_final)(jnp.asarray(0.1))


@pytest.mark.slow
def test_second_derivatives():
    def of(lr):
        a, b = 2 * lr - lr**2, lr**2 * 0.25 / 2
        return 0.5 * np.exp(-9 * a) + b / a * (1 - np.exp(-9 * a))

    h = 1e-3
    near, far = of(0.1 + h) + of(0.1 - h), of(0.1 + 2 * h) + of(0.1 - 2 * h)
    expected = (16 * near - far - 30 * of(0.1)) / (12 * h**2)
    second = jax.hessian(lambda lr: _final(lr, diffrax.DirectAdjoint()))
    np.testing.assert_allclose(second(jnp.asarray(0.1)), expected, rtol=1e-5)


# The criteria


_WAVE = SCHEDULES["period_25"]


def test_the_ceiling_of_gaussian_noise_is_unclipped_sgd():
    """Whose Fisher information is one over the residual's variance."""
    schedule, end = _WAVE
    rates = np.asarray(schedule.rates[:end])
    risk = jc.ceiling(PROBLEM, schedule, steps=[0.0, end]).risk[-1]
    np.testing.assert_allclose(risk, exact(rates), rtol=1e-6)


@pytest.mark.slow
def test_max_ccc_sees_every_jump():
    """The run on its schedule, against scipy on the rule fed back from the risk."""
    schedule, end = _WAVE
    noise = jc.Contaminated(1.0, 10.0, 0.1)
    problem = jc.LinearModel(PROBLEM.spectrum, noise, np.ones(1))
    clip, lr = jc.max_ccc(problem, schedule, steps=end)
    risk = jc.solve(problem, clip, lr, steps=[0.0, end]).risk[-1]

    def spread(excess):
        variance = 2 * excess + float(noise.variance)
        return variance / float(jc.best_clip(noise, excess, 1.0).ccc)

    expected = np.array([0.5])
    for start in range(0, end, 25):
        rate = float(schedule.rates[start])
        expected = scipy.integrate.solve_ivp(
            lambda k, r, q=rate: -2 * q * r + q**2 * DIM / 2 * spread(r[0]),
            (0, 25),
            expected,
            rtol=1e-9,
            atol=1e-14,
        ).y[:, -1]
    np.testing.assert_allclose(risk, expected[0], rtol=1e-6)


@pytest.mark.parametrize("knots", [30, 100])
def test_where_a_solver_stops_of_a_ramp_and_a_table(knots):
    """A ramp is stopped at where it begins and ends, whatever is beside it; a table at
    all of its knots where they are few, and else where it turns."""
    ramp = jc.PiecewiseLinear(np.array([10.0, 20.0]), np.array([1.0, 2.0]))
    at = np.linspace(0.0, 300.0, knots)
    table = jc.PiecewiseLinear(at, np.exp(-np.abs(at - at[knots // 3]) / 50))
    turn = at[knots // 3]
    stops = np.asarray(_stops_of([ramp, table], jnp.result_type(float)))
    expected = [10.0, 20.0, *(at if knots < 50 else [turn])]
    np.testing.assert_allclose(stops[np.isfinite(stops)], np.sort(expected))
