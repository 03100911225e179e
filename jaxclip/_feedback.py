"""Settings that are fed back from the risk, turned into functions of the step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import count, positive
from ._schedule import PiecewiseLinear, Ratio, check_rate
from ._types import RealScalar, RealScalarLike, Schedule, Step
from .clip import HardClip
from .limit import RiskODE
from .limit._intervals import varies
from .limit._moments import Moments, unchecked_moments
from .limit._reading import Reading
from .limit._risk_ode import few_modes
from .problem import AbstractNoise, LeastSquares

# Stands for no threshold where one has to be interpolated: so large that of an interval
# at whose other end there is one, all but a small part is without.
_NO_THRESHOLD = 1e30
# Between two knots a threshold that changes by more than this factor has jumped.
_JUMP = 3.0
# Steps that are looked at for the sum of a rate, and knots that it and its jumps add.
_MADE, _BETWEEN = 2**17, 256


def follow(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    *,
    steps: int,
    compensate: bool,
    efficiency: Callable[[RealScalar], RealScalar] | None = None,
) -> tuple[HardClip, Schedule]:
    """The schedule that a threshold fed back from the risk runs through.

    **Arguments:**

    - `threshold`: on the residual, as a function of the excess risk; a module, for
        which all is compiled once.
    - `compensate`: whether `lr` is the rate of descent, rather than of learning.
    - `efficiency`: `mu^2 / second` with that threshold, where it is known: all that a
        compensated run depends on.
    """
    steps = count("steps", steps)
    lr = check_rate(lr, schedule_knots(steps))

    modes = few_modes(problem)
    noise, norm = problem.noise, problem.spectrum.feature_norm
    feedback = _Feedback(noise, lr, threshold, efficiency, compensate)
    knots = _knots(lr, steps)
    risk = RiskODE().integrate(
        modes, feedback, knots, settings=lr, scale=noise.variance
    ).risk  # fmt: skip
    clip, mus = _tabulated(feedback, knots, risk, norm)
    return (clip, Ratio(lr, mus)) if compensate else (clip, lr)


class _Feedback(eqx.Module):
    """The coefficients of a run whose threshold is fed back from the risk."""

    noise: AbstractNoise
    lr: Schedule
    threshold: Callable[[RealScalar], RealScalar]
    efficiency: Callable[[RealScalar], RealScalar] | None
    compensate: bool = eqx.field(static=True)

    def moments(self, excess: RealScalar) -> Moments:
        clip = HardClip(self.threshold(excess))
        return unchecked_moments(clip, self.noise, excess, 1.0, 0)

    def __call__(self, step: Step, excess: RealScalar) -> tuple[RealScalar, RealScalar]:
        rate = self.lr(step)
        if self.compensate and self.efficiency is not None:
            return rate, rate**2 / self.efficiency(excess)
        m = self.moments(excess)
        rate = rate / m.mu if self.compensate else rate
        return rate * m.mu, rate**2 * m.second


@eqx.filter_jit
def _tabulated(
    feedback: _Feedback,
    knots: Float[Array, " k"],
    risk: Float[Array, " k"],
    feature_norm: RealScalar,
) -> tuple[HardClip, PiecewiseLinear]:
    """The threshold on the gradient's norm, and `mu`, as functions of the step."""
    # A risk that has vanished has no threshold.
    risk = jnp.maximum(risk, jnp.finfo(risk.dtype).tiny)
    thresholds = jax.vmap(feedback.threshold)(risk)
    mus = jax.lax.map(lambda r: feedback.moments(r).mu, risk, batch_size=16)
    knots, thresholds, mus = _keep_jumps(knots, thresholds, mus)
    clip = HardClip(PiecewiseLinear(knots, thresholds * feature_norm))
    return clip, PiecewiseLinear(knots, mus)


def _keep_jumps(knots, thresholds, mus):
    """The knots, and between any two of them another, at which nothing changes but
    where the threshold jumps: there the larger one is held all the way. Interpolated,
    the rate would be compensated for a clip that does not act yet."""
    rises = thresholds[1:] > thresholds[:-1]
    ratio = jnp.maximum(thresholds[1:], thresholds[:-1])
    ratio = ratio / jnp.minimum(thresholds[1:], thresholds[:-1])
    share = jnp.where(ratio < _JUMP, 0.5, jnp.where(rises, 0.01, 0.99))
    between = knots[:-1] + share * jnp.diff(knots)

    def insert(values):
        middle = jnp.sqrt(values[:-1]) * jnp.sqrt(values[1:])
        larger = jnp.where(rises, values[1:], values[:-1])
        middle = jnp.where(ratio < _JUMP, middle, larger)
        return jnp.insert(values, np.arange(1, len(values)), middle)

    knots = jnp.insert(knots, np.arange(1, len(knots)), between)
    return knots, insert(thresholds), insert(mus)


class Tabulated(eqx.Module):
    """A positive function of the risk, interpolated in the logarithm of both.

    By cubics in Hermite's form. Beyond the high end the value there is used, beyond the
    low end, where laws tend to power laws, the power there.
    """

    low: Float[Array, ""]
    spacing: Float[Array, ""]
    levels: Float[Array, " n"]
    slopes: Float[Array, " n"]

    def __call__(self, risk: RealScalarLike) -> RealScalar:
        tiny = jnp.finfo(self.levels.dtype).tiny
        log_risk = jnp.log(jnp.maximum(risk, tiny))
        last = len(self.levels) - 1
        position = (log_risk - self.low) / self.spacing
        x = jnp.clip(position, 0.0, float(last))
        i = jnp.minimum(x.astype(int), last - 1)
        t = x - i.astype(x.dtype)
        value = (1 + 2 * t) * (1 - t) ** 2 * self.levels[i]
        value = value + t**2 * (3 - 2 * t) * self.levels[i + 1]
        slope = t * (1 - t) ** 2 * self.slopes[i] - t**2 * (1 - t) * self.slopes[i + 1]
        # No power of the risk is above 1; a jump is no power.
        power = jnp.clip(self.slopes[0], -self.spacing, self.spacing)
        return jnp.exp(value + slope + power * jnp.minimum(position, 0.0))


def interpolation(
    log_risk: Float[Array, " n"],
    values: Float[Array, " n"],
    slopes: Float[Array, " n"] | None = None,
) -> Tabulated:
    """The interpolation of a positive function of the risk.

    **Arguments:**

    - `log_risk`: evenly spaced logarithms of the risk.
    - `values`: of the function there; those too large to be interpolated are cut.
    - `slopes`: of its logarithm in that of the risk; without them some that do not
        overshoot where the values jump.
    """
    # An infinite threshold cannot be interpolated; one this far out does not act.
    levels = jnp.log(jnp.minimum(values, _NO_THRESHOLD))
    spacing = (log_risk[-1] - log_risk[0]) / (len(log_risk) - 1)
    rises = _monotone_slopes(levels) if slopes is None else slopes * spacing
    return Tabulated(log_risk[0], spacing, levels, rises)


def tabulate(
    function: Callable[[RealScalar], RealScalar],
    low: RealScalarLike,
    high: RealScalarLike,
    points: int = 72,
) -> Tabulated:
    """A positive function of the risk, which may jump, as an interpolation.

    A rule is best at its own risk, so that interpolating a best threshold costs only
    the square of its small relative error.

    **Arguments:**

    - `low`, `high`: the range of the risk, positive.
    - `points`: at how many values of the risk the function is called.
    """
    low, high = positive("low", low), positive("high", high)
    log_risk = jnp.linspace(jnp.log(low), jnp.log(high), points)
    return interpolation(log_risk, jax.lax.map(function, jnp.exp(log_risk)))


@eqx.filter_jit
def tabulate_smooth(
    function: Callable[[RealScalar], RealScalar],
    low: RealScalar,
    high: RealScalar,
    points: int = 128,
) -> Tabulated:
    """A positive and smooth function of the risk as an interpolation by its slopes.

    **Arguments:**

    - `function`: a module, for which all is compiled once.
    - `low`, `high`: the range of the risk, positive.
    - `points`: at how many values of the risk the function is called.
    """
    log_risk = jnp.linspace(jnp.log(low), jnp.log(high), points)

    def at(log_risk):
        def log_value(log_risk):
            return jnp.log(function(jnp.exp(log_risk)))

        return jax.jvp(log_value, (log_risk,), (jnp.ones_like(log_risk),))

    levels, slopes = jax.lax.map(at, log_risk)
    return interpolation(log_risk, jnp.exp(levels), slopes)


def risk_range(problem: LeastSquares) -> tuple[RealScalar, RealScalar]:
    """The values of the risk that a run may pass through, with room on both sides: it
    goes from its start to where the noise keeps it, up or down."""
    start = problem.risk(problem.init())
    size = problem.noise.variance
    # Where the variance is infinite the start stands for it; and where one of the two
    # is zero, the other does.
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, start)
    start = jnp.where(start > 0, start, size)
    low, high = jnp.minimum(start, size), jnp.maximum(start, size)
    return positive("problem.error0", 1e-8 * low), positive("problem.error0", 10 * high)


def _monotone_slopes(levels: Float[Array, " n"]) -> Float[Array, " n"]:
    """Slopes of a cubic interpolation that does not overshoot where a threshold jumps
    from none to a finite one: harmonic means of the secants, 0 at an extremum."""
    secants = jnp.diff(levels)
    left, right = secants[:-1], secants[1:]
    same = left * right > 0
    total = jnp.where(same, left + right, 1.0)
    inner = jnp.where(same, 2 * left * right / total, 0.0)
    return jnp.concatenate([secants[:1], inner, secants[-1:]])


def schedule_knots(steps: int) -> Float[Array, " k"]:
    """Steps at which a schedule is tabulated: evenly, and denser towards the start."""
    even = np.linspace(0, steps, 65)
    early = steps * np.logspace(-5, 0, 64)
    return jnp.asarray(np.unique(np.concatenate([even, early])), jnp.result_type(float))


@eqx.filter_jit
def _knots(lr: Schedule, steps: int) -> Float[Array, " k"]:
    """The knots of a schedule that follows the risk: those that any has, and where the
    rate is not constant others, evenly in what it sums up to, and where it jumps: a
    risk goes as far in a burst of some steps as in all the others."""
    knots = schedule_knots(steps)
    if not varies(lr):
        return knots
    end = jnp.asarray(steps, knots.dtype)
    made = jnp.asarray(np.linspace(0, steps, min(steps, _MADE) + 1), knots.dtype)
    spent = jnp.cumsum(jax.vmap(lambda k: jnp.asarray(lr(k)))(made[:-1]))
    spent = jnp.concatenate([jnp.zeros(1, spent.dtype), spent])
    shares = jnp.linspace(0, spent[-1], _BETWEEN + 2)[1:-1]
    more = jnp.interp(shares, spent, made)
    stops = Reading.of(lr, end).stops(_BETWEEN)
    knots = jnp.concatenate([knots, more, jnp.minimum(stops, end)])
    # Increasing strictly, where some of them agree.
    apart = 16 * jnp.finfo(knots.dtype).eps * end
    index = jnp.arange(len(knots), dtype=knots.dtype)
    knots = jax.lax.cummax(jnp.sort(knots) - apart * index) + apart * index
    return jax.lax.stop_gradient(knots)


def need_least_squares(verb: str, problem: Any) -> LeastSquares:
    if isinstance(problem, LeastSquares):
        return problem
    raise ValueError(
        f"`{verb}` needs a `LeastSquares` problem. Got a {type(problem).__name__}; for "
        "the rows of a table, estimate one with `LeastSquares.from_data(X, y)`."
    )
