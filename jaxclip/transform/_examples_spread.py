"""Examples of a batch that lie on several devices, inside of `jax.shard_map`.

What each device has of its own examples, such as their norms, is made known to all, by
a sum: every device adds its rows at a place where the others add zeros. JAX knows of a
sum that it is the same on all devices, and so are thresholds and states that follow
from it. It is a few numbers for each example.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import PyTree
from ._sums import AxisName, spread_over
from ._varying import varying_axes

Axes = tuple[str, ...]


def of_all(tree: PyTree[Array], axes: Axes) -> PyTree[Array]:
    """Rows of the examples of all devices, from those of each device's own."""
    if not axes:
        return tree
    place, devices = jax.lax.axis_index(axes), _devices(axes)

    def joined(rows: Array) -> Array:
        wide = rows.astype(jnp.int32) if rows.dtype == bool else rows
        everyones = jnp.zeros((devices, *rows.shape), wide.dtype).at[place].set(wide)
        everyones = jax.lax.psum(everyones, axes)
        return everyones.reshape(-1, *rows.shape[1:]).astype(rows.dtype)

    return jax.tree.map(joined, tree)


def own_of(tree: PyTree[Array], axes: Axes) -> PyTree[Array]:
    """The inverse of `of_all`: the rows of this device's examples."""
    if not axes:
        return tree
    place, devices = jax.lax.axis_index(axes), _devices(axes)

    def own(rows: Array) -> Array:
        size = rows.shape[0] // devices
        return jax.lax.dynamic_slice_in_dim(rows, place * size, size)

    return jax.tree.map(own, tree)


def sum_of_all(tree: PyTree[Array], axes: Axes) -> PyTree[Array]:
    """The sum over all devices along the axes."""
    return jax.lax.psum(tree, axes) if axes else tree


def number_of_all(size: int, axes: Axes) -> int:
    """How many examples all devices have, where each has so many."""
    return size * (_devices(axes) if axes else 1)


def check_spread(
    rows: PyTree[Array], axis_name: AxisName, parts: AxisName = None
) -> None:
    """Raises where each device would have a threshold of its own, unasked.

    **Arguments:**

    - `rows`: norms of the examples that the policy is to see.
    - `axis_name`: what the scope says of the examples; None where nothing.
    - `parts`: the axes over which parts of one gradient are spread.
    """
    over = varying_axes(rows)
    if axis_name is None:
        over |= _untold(parts)
    if not over or axis_name == ():
        return
    raise ValueError(
        "An `Adaptive` rule over examples sees those of one device here, inside of "
        f"`jax.shard_map` over {sorted(map(str, over))}: each would have a threshold "
        "and a state of its own. Name the axes that the batch is spread over, as in "
        '`PerExample(axis_name="data")`, for one of all examples; or say by '
        f"`axis_name=()` that it is meant. Got axis_name={axis_name!r}."
    )


def _untold(parts: AxisName) -> frozenset[Any]:
    """The axes of a `shard_map` of which JAX does not keep account (`check_vma=False`):
    whether the examples are spread over them is not known."""
    names = jax.sharding.get_abstract_mesh().manual_axes
    known = (parts,) if isinstance(parts, str) else tuple(parts or ())
    return frozenset(
        name
        for name in names
        if name not in known and not varying_axes(jax.lax.axis_index(name))
    )


def axes_of(tree: PyTree[Array], axis_name: AxisName) -> Axes:
    """The axes of those named over which examples are spread: those along which
    something that is theirs may differ between devices."""
    return spread_over(tree, axis_name)


def _devices(axes: Axes) -> int:
    return jax.lax.axis_size(axes)
