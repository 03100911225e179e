"""What a schedule does inside of cells: the kinds of cells, and its direction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import RealScalar, RealScalarLike, Schedule

# Where inside of a cell a schedule is looked at, in shares of the cell.
_INSIDE = (1 / 16, 1 / 2, 15 / 16)
# A change by less than so many roundings is none.
_ROUNDINGS = 64


def value_at(signal: Schedule, step: RealScalarLike) -> Float[Array, " m"]:
    return jnp.ravel(jnp.asarray(jax.lax.stop_gradient(signal(step))))


def values_in(
    signal: Schedule, edges: Float[Array, " edges"], width: RealScalar
) -> Float[Array, "5 c m"]:
    """At the start of each cell, inside of it and at its end."""
    values = jax.vmap(lambda step: value_at(signal, step))(edges)
    return look_inside(signal, edges[:-1], (values[:-1], values[1:]), width)


def look_inside(
    signal: Schedule,
    cells: Float[Array, " c"],
    ends: tuple[Float[Array, "c m"], Float[Array, "c m"]],
    width: RealScalar,
) -> Float[Array, "5 c m"]:
    """At both ends of each cell, which are known, and inside of it."""
    times = jnp.stack([cells + width * share for share in _INSIDE])
    values = jax.vmap(jax.vmap(lambda step: value_at(signal, step)))(times)
    return jnp.concatenate([ends[0][None], values, ends[1][None]])


def kinds_of(
    values: list[Float[Array, "5 c m"]],
) -> tuple[Bool[Array, " c"], Bool[Array, " c"]]:
    """Which cells are rough, and which are smooth and end with a jump."""
    count = values[0].shape[1]
    rough, jumps = jnp.zeros(count, bool), jnp.zeros(count, bool)
    for value in values:
        first, left, right, last = jnp.abs(difference(value[:-1], value[1:]))
        larger = jnp.maximum(left, right)
        tolerance = rounding_of(value)
        # A change over a sixteenth of the cell that is half of one over seven, and one
        # over seven that is nearly all.
        begins = first > tolerance + larger / 2
        within = larger > tolerance + 0.9 * (first + left + right + last)
        rough |= jnp.any(begins | within, axis=1)
        jumps |= jnp.any(last > tolerance + larger / 2, axis=1)
    return rough, jumps & ~rough


def difference(before: Array, after: Array) -> Array:
    """The difference; 0 between two infinite thresholds."""
    return jnp.where(before == after, jnp.zeros_like(after), after - before)


def rounding_of(values: Float[Array, "n c m"]) -> Float[Array, "c m"]:
    """What is no change in each cell, by its values along the first axis."""
    sizes = jnp.where(jnp.isfinite(values), jnp.abs(values), 0.0)
    return _ROUNDINGS * jnp.finfo(values.dtype).eps * jnp.max(sizes, axis=0)


def signs_in(
    values: Float[Array, "5 c m"], smooth: Bool[Array, " c"]
) -> Float[Array, "c m"]:
    """The direction in which a schedule moves in each cell, or 0. A jump has none: it
    is a stop by itself."""
    change = difference(values[0], values[-1])
    moves = (jnp.abs(change) > rounding_of(values)) & smooth[:, None]
    return jnp.where(moves, jnp.sign(change), jnp.zeros_like(change))


def first_sign(signs: Float[Array, "c m"]) -> Float[Array, " m"]:
    """The first that is not 0, if there is one."""
    return jnp.take_along_axis(signs, jnp.argmax(signs != 0, axis=0)[None], axis=0)[0]


def goes_on(
    values: Float[Array, "edges m"], trend: Float[Array, " m"]
) -> tuple[Bool[Array, ""], Float[Array, " m"]]:
    """Whether a schedule neither turns nor leaps, by its values at whole steps: whether
    no change is larger than four times one beside it. And its direction."""
    change = difference(values[:-1], values[1:])
    tolerance = rounding_of(values[None])[:-1]
    moves = jnp.abs(change) > tolerance
    signs = jnp.where(moves, jnp.sign(change), jnp.zeros_like(change))
    size = jnp.where(moves, jnp.abs(change), jnp.zeros_like(change))
    trend = jnp.where(trend == 0, first_sign(signs), trend)
    turns = jnp.any(signs * trend[None, :] < 0)
    unknown = jnp.full_like(size[:1], jnp.inf)
    before = jnp.concatenate([unknown, size[:-1]])
    after = jnp.concatenate([size[1:], unknown])
    leaps = jnp.any(size > tolerance + 4 * jnp.minimum(before, after))
    return ~(turns | leaps), trend
