"""Statistics of those norms of a batch that count."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def mean_of(values: Float[Array, " n"], counted: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean of those that count; 0 where none does."""
    size = jnp.maximum(jnp.sum(counted, dtype=values.dtype), 1)
    return jnp.sum(jnp.where(counted, values, 0.0)) / size


def ring_places(
    place: Int[Array, ""], counted: Bool[Array, " n"], window: int
) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Where in a ring of `window` places those that count are written, one behind the
    other from `place` on, and how many of them there are.

    What does not count is given a place behind the last, and so are those that others
    of the same batch would overwrite: write with `mode="drop"`.
    """
    number = jnp.sum(counted, dtype=jnp.int32)
    order = jnp.cumsum(counted, dtype=jnp.int32) - 1
    written = counted & (order >= number - window)
    return jnp.where(written, (place + order) % window, window), number
