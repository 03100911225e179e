"""Which parts of a pytree are gradients: the numbers in it that a clip scales."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from .._types import PyTree


def numbers_of(tree: PyTree[Any]) -> PyTree[Array]:
    """The tree with `None` in place of what is no gradient.

    Gradients are arrays of real or complex numbers, and integers, which are taken for
    floats. A function in a model, a random key, the `float0` of a parameter that has no
    gradient and a boolean are none. A sparse matrix becomes its entries.
    """
    return split(tree)[0]


def split(
    updates: PyTree[Any], params: PyTree[Any] = None
) -> tuple[PyTree[Array], PyTree[Array], Callable[[PyTree[Array]], PyTree[Any]]]:
    """The gradients in a tree, the parameters that they belong to, and a function that
    puts other numbers in the gradients' place.

    **Arguments:**

    - `updates`: a pytree of anything.
    - `params`: a pytree of the same structure, or `None`.
    """
    leaves, structure = jax.tree.flatten(updates, is_leaf=_is_place)
    if all(isinstance(leaf, jax.Array) and _is_number(leaf) for leaf in leaves):
        return updates, params, lambda scaled: scaled
    merged = [_merged(leaf) for leaf in leaves]
    numbers = [_numbers(leaf) for leaf in merged]
    if params is not None:
        owners = structure.flatten_up_to(params)
        params = structure.unflatten(
            [
                None if number is None else owner
                for owner, number in zip(owners, numbers, strict=True)
            ]
        )

    def join(scaled: PyTree[Array]) -> PyTree[Any]:
        new = structure.flatten_up_to(scaled)
        return structure.unflatten(
            [_put(leaf, number) for leaf, number in zip(merged, new, strict=True)]
        )

    return structure.unflatten(numbers), params, join


def _is_place(node: Any) -> bool:
    """Whether a node of a tree is one place: what the parameters have at it, too."""
    return node is None or _is_sparse(node)


def _is_sparse(node: Any) -> bool:
    # Nobody has a sparse matrix who has not imported them.
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(node, sparse.JAXSparse)


def _merged(leaf: Any) -> Any:
    """A sparse matrix whose entries are each the only one in their place."""
    if _is_sparse(leaf) and not getattr(leaf, "unique_indices", True):
        # Else two halves of one number would count as two numbers in the norm.
        return leaf.sum_duplicates(nse=leaf.nse)
    return leaf


def _numbers(leaf: Any) -> Array | None:
    if _is_sparse(leaf):
        return leaf.data
    return jnp.asarray(leaf) if _is_number(leaf) else None


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, bool):
        return False
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return jnp.issubdtype(leaf.dtype, jnp.number)
    return isinstance(leaf, int | float | complex)


def _put(leaf: Any, number: Any) -> Any:
    if number is None:
        return leaf
    if not _is_sparse(leaf):
        return number
    entries, structure = jax.tree.flatten(leaf)
    return structure.unflatten([number, *entries[1:]])


def spread(leaf: Array, part: Any) -> Array:
    """The array, sharded along its first axes as the part is, where that is known."""
    sharding = getattr(part, "sharding", None)
    spec = getattr(sharding, "spec", ())
    if not any(axis is not None for axis in spec):
        return leaf
    rest = (None,) * (leaf.ndim - len(spec))
    return jax.sharding.reshard(leaf, PartitionSpec(*spec, *rest))


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether all numbers of a tree are finite."""
    each = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(each))
