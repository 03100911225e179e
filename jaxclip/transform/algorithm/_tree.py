"""Sums of pytrees, in the precision of the first."""

from typing import Any

import jax
from jaxtyping import Array

from ..._types import PyTree


def plus(tree: PyTree[Array], other: PyTree[Array], weight: Any = 1.0) -> PyTree[Array]:
    """`tree + weight * other`, leaf by leaf."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(lambda a, b: (a + weight * b).astype(a.dtype), tree, other)


def mean_of(tree: PyTree[Array], other: PyTree[Array], weight: Any) -> PyTree[Array]:
    """`weight * tree + (1 - weight) * other`, leaf by leaf."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(
            lambda a, b: (weight * a + (1 - weight) * b).astype(a.dtype), tree, other
        )
