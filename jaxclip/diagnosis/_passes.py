"""The passes over a batch that `diagnose` makes, few gradients in memory at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import leading_length
from .._numerics import exact_dot
from .._types import PyTree


class Gradients(NamedTuple):
    """The gradients of a batch, each made when it is asked for.

    - `of`: the gradient of one unit, an example or a group of them: its real leaves.
    - `units`: what `of` is given, a pytree of arrays with a leading axis.
    - `at_once`: how many are held in memory.
    """

    of: Callable[[PyTree[Array]], list[Float[Array, "..."]]]
    units: PyTree[Array]
    at_once: int

    @property
    def number(self) -> int:
        return leading_length("`batch`", self.units, "units")

    def each(self, function: Callable[[list[Array]], Any]) -> Any:
        """A function of every gradient."""
        return jax.lax.map(
            lambda unit: function(self.of(unit)), self.units, batch_size=self.at_once
        )

    def measured_in(self, unit: Float[Array, ""]) -> "Gradients":
        """The same gradients, divided by what is their largest norm: squares of norms
        of 1e-20 would be zero in float32, and those of 1e20 infinite."""
        return self._replace(of=lambda one: [leaf / unit for leaf in self.of(one)])

    def weighted_sums(
        self, weights: Float[Array, "t b"]
    ) -> list[Float[Array, "t ..."]]:
        """The sum of the gradients for each row of weights: leaves of shape
        `(t, ...)`."""
        rows, units = weights.shape
        chunks = -(-units // self.at_once)
        # The last chunk is filled up with units of weight zero.
        padding = chunks * self.at_once - units
        index = jnp.arange(chunks * self.at_once) % units
        weights = jnp.pad(weights, ((0, 0), (0, padding)))
        weights = weights.reshape(rows, chunks, self.at_once)

        def add(sums, chunk):
            index, weights = chunk
            gradients = jax.vmap(self.of)(jax.tree.map(lambda x: x[index], self.units))
            return [
                s + exact_dot(weights, g) for s, g in zip(sums, gradients, strict=True)
            ], None

        shapes = self.shapes()
        zeros = [jnp.zeros((rows, *leaf.shape), leaf.dtype) for leaf in shapes]
        chunked = index.reshape(chunks, self.at_once), jnp.moveaxis(weights, 1, 0)
        return jax.lax.scan(add, zeros, chunked)[0]

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """What one gradient looks like."""
        return jax.eval_shape(self.of, jax.tree.map(lambda x: x[0], self.units))


def gradients(
    loss: Callable[[Any, Any], Any],
    params: PyTree[Any],
    batch: PyTree[Array],
    group: int,
    microbatch: int,
) -> Gradients:
    """The mean gradients of consecutive groups of examples; those that fill no group
    are left out."""
    moved, fixed = eqx.partition(params, eqx.is_inexact_array)
    units = leading_length("`batch`", batch, "examples") // group

    def total(moved, examples):
        if group == 1:
            return loss(eqx.combine(moved, fixed), examples)
        # A sum, and the quotient of its gradient: a weight of 1 / group would be
        # rounded where the loss is bfloat16.
        return jnp.sum(jax.vmap(loss, (None, 0))(eqx.combine(moved, fixed), examples))

    def of(examples):
        leaves = _real_leaves(jax.grad(total)(moved, examples))
        return leaves if group == 1 else [leaf / group for leaf in leaves]

    if group > 1:
        batch = jax.tree.map(
            lambda x: x[: units * group].reshape(units, group, *x.shape[1:]), batch
        )
    return Gradients(of, batch, min(max(1, microbatch // group), units))


def products(gradient: list[Array], sums: list[Array]) -> Float[Array, " t"]:
    """The inner product of one gradient with each sum."""
    each = [
        exact_dot(s.reshape(len(s), -1), g.reshape(-1))
        for s, g in zip(sums, gradient, strict=True)
    ]
    return jnp.sum(jnp.stack(each), axis=0)


def _real_leaves(tree: PyTree[Array]) -> list[Float[Array, "..."]]:
    """The real numbers of a gradient, all in its widest precision or in float32."""
    leaves = [
        jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    # Leaves of several precisions are mixed on purpose.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *leaves)
    return [leaf.astype(dtype) for leaf in leaves]
