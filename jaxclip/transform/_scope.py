"""What the norm is taken over."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._norm import safe_norm


class AbstractScope(eqx.Module):
    """The part of an update that one norm is taken over and one factor multiplies."""

    @abc.abstractmethod
    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        """The updates, each part multiplied by the factor of its own norm.

        **Arguments:**

        - `factor`: the multiplier of a part, as a function of the part's norm.
        - `updates`: a pytree of arrays.
        """


class PerTree(AbstractScope):
    """One norm over all leaves: clipping by the global norm."""

    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        multiplier = factor(safe_norm(updates))
        return jax.tree.map(lambda leaf: _multiply(leaf, multiplier), updates)


class PerExample(AbstractScope):
    """One norm for each example, then the mean over the examples (or their sum).

    The updates carry a leading axis of examples on every leaf; what comes out has lost
    it.

    **Arguments:**

    - `reduce`: `jnp.mean` or `jnp.sum`, called with `axis=0`.
    """

    reduce: Callable[..., Any] = eqx.field(static=True, default=jnp.mean)

    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(updates)}
        if len(sizes) > 1 or () in sizes:
            raise ValueError(
                "`PerExample` needs the same leading axis of examples on every leaf. "
                f"Got leading axes {sorted(sizes)}."
            )
        scaled = jax.vmap(lambda example: PerTree().scale(factor, example))(updates)
        return jax.tree.map(lambda leaf: self.reduce(leaf, axis=0), scaled)


def _multiply(leaf: Array, factor: Float[Array, ""]) -> Array:
    # In the wider of the two precisions, then back: a bfloat16 leaf stays bfloat16.
    with jax.numpy_dtype_promotion("standard"):
        return (leaf * factor).astype(leaf.dtype)
