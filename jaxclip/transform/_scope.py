"""What a norm is taken over: the parts of an update that are clipped each by its own.

| scope | a part | its norm |
|---|---|---|
| `PerTree` | everything | Euclidean |
| `PerLeaf` | a leaf | Euclidean |
| `PerLeafRMS` | a leaf | root mean square: Shazeer & Stern, arXiv:1804.04235 |
| `PerLeafShare` | a leaf | Euclidean, over the leaf's share of the threshold |
| `PerUnit` | the weights into one unit | relative to the weights: arXiv:2102.06171 |
| `PerCoordinate` | a number | its modulus: value clipping |
| `PerExample` | an example's gradient, or a part of it | as within the example |
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import exact_dot
from .._types import PyTree, Step
from ._norm import safe_norm
from ._sums import AxisName


class AbstractScope(eqx.Module):
    """How an update falls into parts, each with one norm and one factor.

    **An author must guarantee**, and the library does not check, that

    - the methods are pure and traceable, and are for one update, without an axis of
        examples: the library maps them over a batch;
    - `norms` returns float32 or wider, finite and with derivative 0 at an update of
        zeros, and handles what half precision would overflow, as
        [`jaxclip.safe_norm`][] does; an update with a number that is not finite has a
        norm that is not finite;
    - the shapes of the norms depend on those of the parameters alone: `parts` asks for
        them before the first update, with the parameters in place of the updates;
    - `multiply` accepts factors of the structure and shapes of `norms`, scales a part's
        norm by its factor, and keeps the dtype of each leaf; factors of 1 change
        nothing;
    - `total`, where it is overridden for speed, is the sum of `multiply` over examples.
    """

    # Whether norms have a leading axis of examples, which share a threshold.
    examples: ClassVar[bool] = False

    @property
    def reads_step(self) -> bool:
        """Whether `perturb` does something that depends on the step, so that a
        transform has to count its updates."""
        return type(self).perturb is not AbstractScope.perturb

    @abc.abstractmethod
    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        """The norm of each part, in the unit that thresholds are in.

        **Arguments:**

        - `updates`: a pytree of arrays.
        - `params`: the parameters, of the same structure, for a scope that needs them.

        **Returns:**

        One array, or a pytree of them with a leaf for each of the updates'.
        """

    @abc.abstractmethod
    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        """The updates, each part multiplied by its factor.

        **Arguments:**

        - `updates`: a pytree of arrays.
        - `factors`: of the structure and shapes of `norms`.
        """

    def total(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        """The sum over examples of what `multiply` makes of each.

        **Arguments:**

        - `updates`, `factors`: as for `multiply`, with a leading axis of examples.
        """
        scaled = jax.vmap(self.multiply)(updates, factors)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), scaled)

    def parts(self, params: PyTree[Array]) -> PyTree[Any]:
        """The shapes of the norms, without an axis of examples.

        **Arguments:**

        - `params`: the parameters, of the structure and shapes of the updates.
        """
        return jax.eval_shape(self.norms, params, params)

    def perturb(self, updates: PyTree[Array], step: Step) -> PyTree[Array]:
        """What is added after multiplying; by default nothing is.

        **Arguments:**

        - `updates`: what `multiply` returned.
        - `step`: the index of the SGD step.
        """
        del step
        return updates


class PerTree(AbstractScope):
    """One norm over all leaves: clipping by the global norm.

    Gradients that are sharded over a mesh need nothing: the norm is that of all of
    their numbers. Inside of `jax.shard_map`, where a device sees its own part alone,
    name the axes that the parts lie on, or each is clipped by the norm of its part.

    **Arguments:**

    - `axis_name`: the name of a mesh axis, or a tuple of them, over which each device
        holds a part of the gradient; by default none.
    """

    axis_name: AxisName = eqx.field(static=True, default=None)

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> Float[Array, ""]:
        del params
        return safe_norm(updates, self.axis_name)

    def multiply(
        self, updates: PyTree[Array], factors: Float[Array, ""]
    ) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: times(leaf, factors), updates)

    def total(
        self, updates: PyTree[Array], factors: Float[Array, " n"]
    ) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: weighted_sum(leaf, factors), updates)


def times(leaf: Array, factor: Float[Array, "..."]) -> Array:
    """A leaf times a factor, in the wider precision of the two, in the leaf's own."""
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        scaled = leaf * factor
        # A leaf of integers becomes one of floats: no factor would leave it whole.
        whole = not jnp.issubdtype(leaf.dtype, jnp.inexact)
        return scaled if whole else scaled.astype(leaf.dtype)


def _is_split(leaf: Array) -> bool:
    """Whether the leading axis is known to be sharded: under explicit mesh axes."""
    spec = jax.typeof(leaf).sharding.spec
    return len(spec) > 0 and spec[0] is not None


def weighted_sum(leaf: Array, factors: Float[Array, " n"]) -> Array:
    """The sum over the leading axis, as one product of a vector and a matrix: ten times
    the speed of a product and a sum, and without a copy of the leaf."""
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        if _is_split(leaf):
            # Of a product over an axis that lies on several devices JAX asks where
            # the result is to be; of a sum it knows.
            spread = jnp.expand_dims(factors, tuple(range(1, leaf.ndim)))
            total = jnp.sum(spread * leaf, axis=0)
        else:
            total = exact_dot(factors, leaf)
        whole = not jnp.issubdtype(leaf.dtype, jnp.inexact)
        return total if whole else total.astype(leaf.dtype)
