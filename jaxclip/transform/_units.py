"""A batch as the units whose gradients are clipped, and as pieces of a few units.

A unit is an example, or a group of consecutive ones. Not every one is real: a batch may
be padded to a fixed length, with a mask, and is padded here to whole pieces.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._types import PyTree


class Units(NamedTuple):
    """Units of a batch.

    - `examples`: a pytree of arrays with leading axes of units and, where units are
        groups, of the examples within one.
    - `real`: which examples are, of the same leading axes.
    """

    examples: PyTree[Array]
    real: Bool[Array, "..."]


def only_real(examples: PyTree[Array], real: Bool[Array, " n"]) -> PyTree[Array]:
    """Examples of which those that are not real are copies of one that is.

    What they would give is multiplied by 0, and 0 times what is not finite is NaN.
    """
    some = jnp.argmax(real)

    def fill(leaf: Array) -> Array:
        return jnp.where(
            _over(real, leaf), leaf, jnp.broadcast_to(leaf[some], leaf.shape)
        )

    return jax.tree.map(fill, examples)


def any_real(real: Bool[Array, "u ..."]) -> Bool[Array, " u"]:
    """Which units have a real example."""
    return jnp.any(real.reshape(real.shape[0], -1), axis=1)


def zero_unless(kept: Bool[Array, " u"], leaf: Array) -> Array:
    """The leaf, with zeros for the units that are not kept."""
    return jnp.where(_over(kept, leaf), leaf, jnp.zeros_like(leaf))


def grouped(tree: PyTree[Array], group: int) -> PyTree[Array]:
    """Arrays with a leading axis of examples, as groups of so many."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), tree)


def in_pieces(units: Units, piece: int) -> Units:
    """The units, with a further leading axis of pieces of so many units each.

    Where they are not enough for the last piece, the last unit is there again, and is
    not real.
    """
    size = units.real.shape[0]
    pieces = math.ceil(size / piece)

    def split(leaf: Array) -> Array:
        if pieces * piece > size:
            leaf = leaf[jnp.minimum(jnp.arange(pieces * piece), size - 1)]
        return leaf.reshape(pieces, piece, *leaf.shape[1:])

    there = (jnp.arange(pieces * piece) < size).reshape(pieces, piece)
    real = split(units.real)
    there = there.reshape(there.shape + (1,) * (real.ndim - 2))
    return Units(jax.tree.map(split, units.examples), real & there)


def joined(tree: PyTree[Any], size: int) -> PyTree[Any]:
    """The inverse of `in_pieces`, without what was added: the first `size` units."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size],
        tree,
    )


def ungrouped(tree: PyTree[Any], group: int) -> PyTree[Any]:
    """The inverse of `grouped`."""
    if group == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _over(kept: Bool[Array, " u"], leaf: Array) -> Array:
    return kept.reshape(-1, *(1,) * (leaf.ndim - 1))
