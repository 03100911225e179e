"""Batches that are spread over devices.

Inside of `jax.shard_map` the gradient in a parameter that all devices share is the sum
over the devices: it is no example's gradient any more. It is that of the examples at
hand once each device has a parameter of its own, which is what JAX calls varying.

Under a mesh with explicit axes every product over the examples would have to say how
its result is spread. `without_explicit_axes` leaves that to the compiler.
"""

from collections.abc import Callable
from typing import Any

import jax

from .._types import PyTree


def varying_axes(tree: PyTree[Any]) -> frozenset[Any]:
    """The axes of the mesh along which something in the tree varies; none outside of
    `jax.shard_map`."""
    axes = [_axes(leaf) for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*axes)


def vary(tree: PyTree[Any], axes: frozenset[Any]) -> PyTree[Any]:
    """The same numbers, each device's own along these axes of the mesh."""

    def one(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)


def without_explicit_axes(
    function: Callable[..., Any], like: PyTree[Any], *arguments: PyTree[Any]
) -> Any:
    """What a function returns of some pytrees of arrays.

    **Arguments:**

    - `function`: returns a pair: arrays that are the same on all devices, and a pytree
        that is spread like `like`.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments)]
    explicit = [mesh for mesh in meshes if mesh.explicit_axes]
    if not explicit:
        return function(*arguments)
    specs = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, like)
    out = (jax.sharding.PartitionSpec(), specs)
    run = jax.sharding.auto_axes(
        function, axes=explicit[0].explicit_axes, out_sharding=out
    )
    with jax.sharding.use_abstract_mesh(explicit[0]):
        return run(*arguments)


def _axes(leaf: Any) -> frozenset[Any]:
    kind = jax.typeof(leaf)
    # The field `vma` until JAX 0.9; then a part of a larger one.
    manual = getattr(kind, "manual_axis_type", None)
    return kind.vma if manual is None else manual.varying
