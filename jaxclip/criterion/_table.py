"""Functions of the risk, tabulated."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import positive
from .._types import RealScalar, RealScalarLike
from ..problem import LinearModel

# A finite stand-in for "no threshold", so that it can be interpolated; so large that an
# interval with one finite end is without a clip almost throughout.
_NO_THRESHOLD = 1e30


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


def risk_range(problem: LinearModel) -> tuple[RealScalar, RealScalar]:
    """The values of the risk that a run may pass through, with room on both sides: it
    goes from its start to where the noise keeps it, up or down."""
    start = problem.risk(problem.init())
    size = problem.noise.variance
    # Where the variance is infinite the start stands for it; and where one of the two
    # is zero, the other does.
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, start)
    start = jnp.where(start > 0, start, size)
    low, high = jnp.minimum(start, size), jnp.maximum(start, size)
    return positive("problem.start", 1e-8 * low), positive("problem.start", 10 * high)


def _monotone_slopes(levels: Float[Array, " n"]) -> Float[Array, " n"]:
    """Slopes of a cubic interpolation that does not overshoot where a threshold jumps
    from none to a finite one: harmonic means of the secants, 0 at an extremum."""
    secants = jnp.diff(levels)
    left, right = secants[:-1], secants[1:]
    same = left * right > 0
    total = jnp.where(same, left + right, 1.0)
    inner = jnp.where(same, 2 * left * right / total, 0.0)
    return jnp.concatenate([secants[:1], inner, secants[-1:]])
