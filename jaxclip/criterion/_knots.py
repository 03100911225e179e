"""The steps at which a schedule is tabulated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Schedule
from ..limit import Reading, varies

# Steps that are looked at for the sum of a rate, and knots that it and its jumps add.
_MADE, _BETWEEN = 2**17, 256


def schedule_knots(steps: int) -> Float[Array, " k"]:
    """Steps at which a schedule is tabulated: evenly, and denser towards the start."""
    even = np.linspace(0, steps, 65)
    early = steps * np.logspace(-5, 0, 64)
    return jnp.asarray(np.unique(np.concatenate([even, early])), jnp.result_type(float))


@eqx.filter_jit
def risk_knots(lr: Schedule, steps: int) -> Float[Array, " k"]:
    """The knots of a schedule that follows the risk: those that any has, and where the
    rate is not constant others, evenly in what it sums up to, and where it jumps: a
    risk goes as far in a burst of some steps as in all the others."""
    knots = schedule_knots(steps)
    if not varies(lr):
        return knots
    end = jnp.asarray(steps, knots.dtype)
    made = jnp.asarray(np.linspace(0, steps, min(steps, _MADE) + 1), knots.dtype)
    # The clock of the ODE: how far the risk has gone is a function of the rates' sum.
    spent = jnp.cumsum(jax.vmap(lambda k: jnp.asarray(lr(k)))(made[:-1]))
    spent = jnp.concatenate([jnp.zeros(1, spent.dtype), spent])
    shares = jnp.linspace(0, spent[-1], _BETWEEN + 2)[1:-1]
    more = jnp.interp(shares, spent, made)
    stops = Reading.of(lr, end).stops(_BETWEEN)
    knots = jnp.concatenate([knots, more, jnp.minimum(stops, end)])
    # Increasing strictly, where some of them agree: what is left of a knot less its
    # place times a tiny gap may not fall, and the gaps are then added again.
    apart = 16 * jnp.finfo(knots.dtype).eps * end
    index = jnp.arange(len(knots), dtype=knots.dtype)
    knots = jax.lax.cummax(jnp.sort(knots) - apart * index) + apart * index
    return jax.lax.stop_gradient(knots)
