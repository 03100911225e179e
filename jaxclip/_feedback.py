"""Settings that are fed back from the risk, turned into functions of the step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import count, positive
from ._schedule import PiecewiseLinear, check_rate
from ._types import RealScalar, RealScalarLike, Schedule, Step
from .clip import HardClip
from .limit import RiskODE
from .limit._moments import unchecked_moments
from .limit._risk_ode import few_modes
from .problem import AbstractNoise, LeastSquares, Modes

# Stands for no threshold where one has to be interpolated: so large that of an interval
# at whose other end there is one, all but a small part is without.
_NO_THRESHOLD = 1e30
# Between two knots a threshold that changes by more than this factor has jumped.
_JUMP = 3.0


class Ratio(eqx.Module):
    """A schedule divided by another."""

    numerator: Schedule
    denominator: Schedule

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.numerator(step) / self.denominator(step)


def follow(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    *,
    steps: int,
    compensate: bool,
) -> tuple[HardClip, Schedule]:
    """The schedule that a threshold fed back from the risk runs through.

    **Arguments:**

    - `threshold`: on the residual, as a function of the excess risk.
    - `compensate`: whether `lr` is the rate of descent, rather than of learning.
    """
    steps = count("steps", steps)
    knots = schedule_knots(steps)
    lr = check_rate(lr, knots)

    modes = few_modes(problem)
    thresholds, mus = _follow(modes, problem.noise, lr, threshold, knots, compensate)
    knots, thresholds, mus = _keep_jumps(knots, thresholds, mus)
    clip = HardClip(PiecewiseLinear(knots, thresholds * problem.spectrum.feature_norm))
    if not compensate:
        return clip, lr
    return clip, Ratio(lr, PiecewiseLinear(knots, mus))


@eqx.filter_jit
def _follow(
    modes: Modes,
    noise: AbstractNoise,
    lr: Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    knots: Float[Array, " k"],
    compensate: bool,
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """The threshold and `mu` at the knots of a run that is fed back."""

    def at(excess):
        clip = HardClip(threshold(excess))
        return unchecked_moments(clip, noise, excess, 1.0, 0)

    def coefficients(step, excess):
        m = at(excess)
        rate = lr(step) / m.mu if compensate else lr(step)
        return rate * m.mu, rate**2 * m.second

    risk = RiskODE().integrate(modes, coefficients, knots).risk
    # A risk that has vanished has no threshold.
    risk = jnp.maximum(risk, jnp.finfo(risk.dtype).tiny)
    return jax.vmap(threshold)(risk), jax.vmap(lambda excess: at(excess).mu)(risk)


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


def tabulate(
    function: Callable[[RealScalar], RealScalar],
    low: RealScalarLike,
    high: RealScalarLike,
    points: int = 72,
) -> Tabulated:
    """A positive function of the risk as an interpolation.

    A rule is best at its own risk, so that interpolating a best threshold costs only
    the square of its small relative error.

    **Arguments:**

    - `low`, `high`: the range of the risk, positive.
    - `points`: at how many values of the risk the function is called.
    """
    low, high = positive("low", low), positive("high", high)
    grid = jnp.linspace(jnp.log(low), jnp.log(high), points)
    values = jax.lax.map(function, jnp.exp(grid))
    # An infinite threshold cannot be interpolated; one this far out does not act.
    levels = jnp.log(jnp.minimum(values, _NO_THRESHOLD))
    spacing = (grid[-1] - grid[0]) / (points - 1)
    return Tabulated(grid[0], spacing, levels, _monotone_slopes(levels))


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
    return 1e-8 * positive("problem.error0", low), 10 * high


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


def need_least_squares(verb: str, problem: Any) -> LeastSquares:
    if isinstance(problem, LeastSquares):
        return problem
    raise ValueError(
        f"`{verb}` needs a `LeastSquares` problem. Got a {type(problem).__name__}; for "
        "the rows of a table, estimate one with `LeastSquares.from_data(X, y)`."
    )
