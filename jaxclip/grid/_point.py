"""The function of a sweep at one point: what it is given, and what it may return."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import PyTree
from ._axes import Axis
from ._result import SweepTable


def at_point(
    fn: Callable[..., Any], nested: tuple[Axis, ...]
) -> Callable[..., PyTree[Any]]:
    """`fn` as a function of the leaves of one entry of each axis, in nested order."""

    def point(*leaves: tuple[Any, ...]) -> PyTree[Any]:
        pairs = zip(nested, leaves, strict=True)
        result = fn(**{axis.name: axis.point(own) for axis, own in pairs})
        if not jax.tree.leaves(result):
            raise ValueError(f"`fn` must return an array or more. Got {result!r}.")
        return jax.tree.map(_as_number, result)

    return point


def trace(
    point: Callable[..., PyTree[Any]],
    axes: tuple[Axis, ...],
    nested: tuple[Axis, ...],
    units: Mapping[str, str],
) -> tuple[SweepTable, Any]:
    """The table that `point` fills, and its closed jaxpr.

    **Arguments:**

    - `axes`, `nested`: the same axes in the user's order and in that of nesting.
    - `units`: of axes and of leaves, by name.

    **Raises:**

    A `ValueError` where `fn` returns what no table can hold, or a unit is that of none
    of its columns.
    """
    first = [axis.take(0) for axis in nested]
    jaxpr, shapes = jax.make_jaxpr(point, return_shape=True)(*first)
    found, tree = jax.tree_util.tree_flatten_with_path(shapes)
    taken = {name for axis in axes for name in axis.coordinates()}
    names = _names([path for path, _ in found], taken)
    unknown = set(units) - taken - set(names)
    if unknown:
        raise ValueError(
            f"`units` must name axes or results, of {', '.join([*taken, *names])}. "
            f"Got {', '.join(sorted(unknown))}."
        )
    table = SweepTable(
        axes=axes,
        nested=nested,
        names=names,
        shapes=tuple(leaf.shape for _, leaf in found),
        dtypes=tuple(np.dtype(leaf.dtype) for _, leaf in found),
        tree=tree,
        units=units,
    )
    return table, jaxpr


def _as_number(leaf: Any) -> Any:
    if not isinstance(
        leaf, jax.Array | np.ndarray | np.generic | int | float | complex
    ):
        raise ValueError(
            "`fn` must return arrays of numbers, in any pytree. Got a "
            f"{type(leaf).__name__}, {leaf!r}."
        )
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            "`fn` must return arrays of numbers. Got random keys; return "
            "`jax.random.key_data(key)`."
        )
    # Numpy's files and tables have no bfloat16; no digit is lost.
    small = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
    return leaf.astype(jnp.float32) if small else leaf


def _names(paths: list[Any], taken: set[str]) -> tuple[str, ...]:
    """What each leaf is called in the table: its place in the pytree."""
    names = []
    for path in paths:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        # A slash would be a folder in a store.
        name = name.replace("/", "_")
        names.append(f"result.{name}" if name in taken else name)
    if len(set(names)) < len(names):
        raise ValueError(
            f"`fn` must return a pytree whose leaves have different names. Got {names}."
        )
    return tuple(names)
