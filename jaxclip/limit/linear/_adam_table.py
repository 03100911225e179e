"""What Adam's limit reads at each risk: from a table, or for a rule that changes with
the step afresh."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar, Step
from ...clip import AbstractClip, unchecked_moments
from ...noise import AbstractNoise
from .._intervals import varies
from ._adam_moments import PerLag, over_the_past, per_lag
from ._log_grid import interpolate

# The table's risks: how many, and how far beyond the noise and the start.
_ROWS, _BELOW, _ABOVE = 96, 1e-10, 1e4


class Seen(NamedTuple):
    """What is read at a risk.

    - `drift`, `diffusion`: those of [`jaxclip.limit.UpdateMoments`][].
    - `second`: the mean square of a clipped residual; 1 where that is infinite.
    """

    drift: RealScalar
    diffusion: RealScalar
    second: RealScalar


class AbstractSeen(eqx.Module):
    """A function of the step and the risk."""

    @abc.abstractmethod
    def __call__(self, step: Step, risk: RealScalar) -> Seen:
        """What is read there."""


class Afresh(AbstractSeen):
    """By the quadratures themselves."""

    clip: AbstractClip
    noise: AbstractNoise
    feature_norm: RealScalar
    decays: tuple[RealScalar, RealScalar]

    def __call__(self, step: Step, risk: RealScalar) -> Seen:
        tiny = float(jnp.finfo(risk.dtype).tiny) ** 0.5
        one_lag, second = self.one_lag(jnp.maximum(risk, tiny), step)
        update = over_the_past(one_lag, self.decays)
        return Seen(update.drift, update.diffusion, second)

    def one_lag(self, risk: RealScalar, step: Step = 0) -> tuple[PerLag, RealScalar]:
        """The expectations over one gradient, and its mean square."""
        of = self.clip, self.noise, risk, self.feature_norm, step
        second = unchecked_moments(*of).second
        return per_lag(*of), jnp.where(second < jnp.inf, second, 1.0)


class Table(AbstractSeen):
    r"""By interpolation in the logarithm of the risk.

    With the size $\sigma$ of the noise, $\sqrt{2R + \sigma^2}$ times the drift tends to
    a constant at both ends, and so does the second moment over $2R + \sigma^2$ below;
    beyond the ends of the table they are taken to be there.

    - `rows`: shape `(n, 3)`, what is seen, so scaled.
    - `first`, `apart`: the first logarithm of a risk, and the distance between two.
    - `squared_noise`: $\sigma^2$.
    """

    rows: Float[Array, "n 3"]
    first: RealScalar
    apart: RealScalar
    squared_noise: RealScalar

    @classmethod
    def of(cls, afresh: Afresh, start: RealScalar) -> "Table":
        """The table for a run from a risk."""
        start = jax.lax.stop_gradient(start)
        noise = jnp.asarray(afresh.noise.residual(0.0).size, start.dtype) ** 2
        tiny = float(jnp.finfo(start.dtype).tiny) ** 0.25
        # Without noise there is nothing that sets a scale, and all are alike.
        low = jnp.maximum(jnp.maximum(noise, 1e-8 * start), tiny)
        low, high = jnp.log(_BELOW * low), jnp.log(_ABOVE * jnp.maximum(noise, start))
        high = jnp.maximum(high, low + 1.0)
        apart = (high - low) / (_ROWS - 1)
        risks = jnp.exp(low + apart * jnp.arange(_ROWS, dtype=apart.dtype))

        # One after the other, and computed again for a derivative: what is between the
        # numbers that are kept would take gigabytes.
        @jax.checkpoint
        def one_lag_at(risk):
            return afresh.one_lag(risk)

        one_lag, second = jax.lax.map(one_lag_at, risks)
        update = jax.vmap(over_the_past, (0, None))(one_lag, afresh.decays)
        scale = 2 * risks + noise
        scaled = update.drift * jnp.sqrt(scale), update.diffusion, second / scale
        return cls(jnp.stack(scaled, axis=1), low, apart, noise)

    def __call__(self, step: Step, risk: RealScalar) -> Seen:
        del step
        scale = 2 * risk + self.squared_noise
        tiny = float(jnp.finfo(scale.dtype).tiny) ** 0.5
        scale = jnp.maximum(scale, tiny)
        place = (jnp.log(jnp.maximum(risk, tiny)) - self.first) / self.apart
        drift, diffusion, second = interpolate(self.rows, place)
        return Seen(drift / jnp.sqrt(scale), diffusion, second * scale)


@eqx.filter_jit
def seen_by_adam(
    clip: AbstractClip,
    noise: AbstractNoise,
    feature_norm: RealScalar,
    decays: tuple[RealScalar, RealScalar],
    start: RealScalar,
) -> AbstractSeen:
    """The table for a run from the risk `start`, where the rule does not depend on the
    step, which is known before tracing."""
    afresh = Afresh(clip, noise, feature_norm, decays)
    return afresh if varies(clip) else Table.of(afresh, start)
