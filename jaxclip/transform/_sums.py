"""Norms by sums of squares, in the ways that fit a CPU and an accelerator.

A number's square leaves the range of float32 below 1e-19 and above 1e19. On an
accelerator squares are therefore summed in three ranges, each with a scale of its own
(Blue 1978, doi:10.1145/355769.355771), in one pass and without a branch, which would
cost a round trip to the host. On a CPU that is three passes, and a branch is cheap: the
plain sum is taken, and only where it is out of range the numbers are scaled and summed
again.
"""

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._varying import varying_axes

Leaves: TypeAlias = list[Float[Array, "..."]]
# The axes of a mesh that shards of the user's own lie on.
AxisName: TypeAlias = str | tuple[str, ...] | None
# Leaves of at most so many numbers are copied into one before their squares are summed.
_SMALL = 2**14
# The middle range is from 2^-k to 2^k, and the others are scaled by 2^(2k), where the
# sum of 2^30 squares of each range neither overflows nor underflows.
_RANGE = {jnp.dtype("float32"): 45, jnp.dtype("float64"): 400}


def packed(leaves: Leaves, kept: int) -> Leaves:
    """The same numbers in fewer leaves: the small ones in one."""
    flat = [
        leaf.reshape(*leaf.shape[:kept], math.prod(leaf.shape[kept:]))
        for leaf in leaves
    ]
    small = [leaf for leaf in flat if leaf.size <= _SMALL]
    large = [leaf for leaf in flat if leaf.size > _SMALL]
    packed = [jnp.concatenate(small, axis=-1)] if len(small) > 1 else small
    return packed + large


def branchless(leaves: Leaves, kept: int, axis_name: AxisName) -> Float[Array, "..."]:
    """The norms, by sums of squares in three ranges."""
    power = _RANGE[leaves[0].dtype]
    edge, down = (jnp.asarray(2.0**p, leaves[0].dtype) for p in (power, -2 * power))
    up = 1 / down
    sizes = [jnp.abs(leaf) for leaf in leaves]
    large = [jnp.where(x > edge, x * down, 0.0) for x in sizes]
    small = [jnp.where(x < 1 / edge, x * up, 0.0) for x in sizes]
    # A NaN is in neither of the two, and so in the third.
    rest = [jnp.where((x > edge) | (x < 1 / edge), 0.0, x) for x in sizes]
    squares = ([x * x for x in values] for values in (large, rest, small))
    high, middle, low = (total(values, kept, axis_name) for values in squares)
    # What is lost to a scale here is beyond the digits of what it is added to.
    return jnp.where(
        high > 0,
        jnp.sqrt(high + _scaled_square(middle, down)) * up,
        jnp.where(
            middle == 0,
            jnp.sqrt(low) * down,
            jnp.sqrt(middle + _scaled_square(low, down)),
        ),
    )


def _scaled_square(square: Array, scale: Array) -> Array:
    """A square, of numbers scaled. Without the barrier XLA would join the two scales to
    one, which is flushed to zero."""
    root = jax.lax.optimization_barrier(jnp.sqrt(square) * scale)
    return root * root


def branching(leaves: Leaves, kept: int, axis_name: AxisName) -> Float[Array, "..."]:
    """The norms, by plain sums of squares, or scaled ones where those are out of
    range."""
    info = jnp.finfo(leaves[0].dtype)
    plain = total([leaf**2 for leaf in leaves], kept, axis_name)
    # Below it, squares that were flushed to zero could matter at this precision.
    least = float(info.tiny) / float(info.eps) ** 2
    exact = jnp.all((plain > least) & (plain < info.max))
    # Scaling reads every number twice more: only where it is needed.
    return jax.lax.cond(
        exact,
        lambda leaves: jnp.sqrt(plain),
        lambda leaves: _scaled(leaves, kept, axis_name),
        leaves,
    )


def _scaled(leaves: Leaves, kept: int, axis_name: AxisName) -> Float[Array, "..."]:
    """The norms, by the squares of numbers of at most 1."""
    sizes = [_over(jnp.max, jnp.abs(leaf), kept, initial=0.0) for leaf in leaves]
    largest = _across(sizes, axis_name, jax.lax.pmax, jnp.max)
    usable = (largest > 0) & jnp.isfinite(largest)
    # In two halves: one over the largest number itself may be flushed to zero.
    half = root_power(jnp.where(usable, largest, 1.0))
    unit = [leaf * (1 / with_axes(half, leaf.ndim)) for leaf in leaves]
    unit = [leaf * (1 / with_axes(half, leaf.ndim)) for leaf in unit]
    root = jnp.sqrt(total([leaf**2 for leaf in unit], kept, axis_name))
    return root * half * half


def root_power(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A power of two, by which nothing is rounded, within a factor 2 of the root of a
    positive normal number: the one with half of its exponent."""
    info = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, f"uint{info.bits}")
    bias = 2 ** (info.nexp - 2)
    bits = ((bits >> (info.nmant + 1)) + bits.dtype.type(bias)) << info.nmant
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def total(values: Leaves, kept: int, axis_name: AxisName) -> Float[Array, "..."]:
    """The sum over all leaves and all of their axes but the first `kept`."""
    sums = [_over(jnp.sum, leaf, kept) for leaf in values]
    return _across(sums, axis_name, jax.lax.psum, jnp.sum)


def _over(reduce: Any, leaf: Array, kept: int, **how: Any) -> Array:
    return reduce(leaf, axis=tuple(range(kept, leaf.ndim)), **how)


def _across(numbers: list[Array], axis_name: AxisName, reduce: Any, join: Any) -> Array:
    """All numbers joined, with those of the devices along the axes.

    What is the same on all devices of an axis is not added up over it.
    """
    groups: dict[tuple[str, ...], list[Array]] = {}
    for number in numbers:
        groups.setdefault(spread_over(number, axis_name), []).append(number)
    joined = [
        reduce(_joined(join, group), over) if over else _joined(join, group)
        for over, group in groups.items()
    ]
    return _joined(join, joined)


def _joined(join: Any, numbers: list[Array]) -> Array:
    # As one operation: a chain of as many as there are leaves would be compiled again
    # into every one of those that use its end.
    return join(jnp.stack(numbers), axis=0) if len(numbers) > 1 else numbers[0]


def spread_over(number: Any, axis_name: AxisName) -> tuple[str, ...]:
    """The axes of those named along which a number, or one of a tree of them, may
    differ between devices."""
    if not axis_name:
        return ()
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    # Where JAX does not keep account of it, not even an index is said to vary.
    known = [name for name in names if varying_axes(jax.lax.axis_index(name))]
    over = varying_axes(number)
    return tuple(name for name in names if name in over or name not in known)


def device_count(leaf: Array, axis_name: AxisName) -> int:
    """Over how many devices the parts of a leaf are spread."""
    over = spread_over(jnp.asarray(leaf), axis_name)
    return math.prod(jax.lax.axis_size(name) for name in over)


def with_axes(numbers: Array, ndim: int) -> Array:
    """The numbers, with axes of length 1 behind those that they have."""
    return jnp.expand_dims(numbers, tuple(range(numbers.ndim, ndim)))
