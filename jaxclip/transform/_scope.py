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
import numpy as np
from jaxtyping import Array, Float

from .._numerics import exact_dot
from .._types import PyTree, Step
from ._norm import safe_modulus, safe_norm


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
    """One norm over all leaves: clipping by the global norm."""

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> Float[Array, ""]:
        del params
        return safe_norm(updates)

    def multiply(
        self, updates: PyTree[Array], factors: Float[Array, ""]
    ) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: times(leaf, factors), updates)

    def total(
        self, updates: PyTree[Array], factors: Float[Array, " n"]
    ) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: _weighted_sum(leaf, factors), updates)


class AbstractPerLeaf(AbstractScope):
    """One norm per leaf, divided by `unit`, which depends on the leaf sizes.

    The author writes `unit` alone. **They must guarantee** that

    - `unit` returns a positive Python float, which is worked out while tracing: it is
        handed sizes and no arrays;
    - it depends on its arguments alone, so that a leaf has the same unit at each step.
    """

    @abc.abstractmethod
    def unit(self, size: int, sizes: list[int]) -> float:
        """What the Euclidean norm of a leaf is divided by.

        **Arguments:**

        - `size`: how many numbers the leaf has, at least 1.
        - `sizes`: the same of all leaves.
        """

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, ""]]:
        del params
        sizes = [max(jnp.size(leaf), 1) for leaf in jax.tree.leaves(updates)]

        def norm(leaf):
            return safe_norm(leaf) / self.unit(max(jnp.size(leaf), 1), sizes)

        return jax.tree.map(norm, updates)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, ""]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)

    def total(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, " n"]]
    ) -> PyTree[Array]:
        return jax.tree.map(_weighted_sum, updates, factors)


class PerLeaf(AbstractPerLeaf):
    """One norm for each leaf: layerwise clipping.

    A pytree of rules gives each leaf a threshold of its own,
    `as_transform(jax.tree.map(HardClip, thresholds), PerLeaf())`.
    """

    def unit(self, size: int, sizes: list[int]) -> float:
        del size, sizes
        return 1.0


class PerLeafRMS(AbstractPerLeaf):
    """The root mean square of each leaf, as `optax.clip_by_block_rms` takes it: a
    threshold means the same for a small and a large leaf."""

    def unit(self, size: int, sizes: list[int]) -> float:
        del sizes
        return float(np.sqrt(size))


class PerLeafShare(AbstractPerLeaf):
    r"""Each leaf by its share of one threshold, so that the tree stays within it.

    $c_l = c / \sqrt K$ for each of $K$ leaves, or $c \sqrt{D_l / D}$ for $D_l$ of $D$
    numbers (McMahan et al. 2018, arXiv:1710.06963). Within [`jaxclip.PerExample`][]
    these are the two forms of `optax.per_example_layer_norm_clip`.

    **Arguments:**

    - `by_size`: whether a leaf's share grows with its size.
    """

    by_size: bool = eqx.field(static=True, default=False)

    def unit(self, size: int, sizes: list[int]) -> float:
        share = size / sum(sizes) if self.by_size else 1 / len(sizes)
        return float(np.sqrt(share))


class PerCoordinate(AbstractScope):
    """Every number by its modulus: value clipping, as `optax.clip` does it."""

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        del params
        return jax.tree.map(safe_modulus, updates)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)


def times(leaf: Array, factor: Float[Array, "..."]) -> Array:
    """A leaf times a factor, in the wider precision of the two, in the leaf's own."""
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        scaled = leaf * factor
        # A leaf of integers becomes one of floats: no factor would leave it whole.
        whole = not jnp.issubdtype(leaf.dtype, jnp.inexact)
        return scaled if whole else scaled.astype(leaf.dtype)


def _weighted_sum(leaf: Array, factors: Float[Array, " n"]) -> Array:
    """The sum over the leading axis, as one product of a vector and a matrix: ten times
    the speed of a product and a sum, and without a copy of the leaf."""
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        total = exact_dot(factors, leaf)
        whole = not jnp.issubdtype(leaf.dtype, jnp.inexact)
        return total if whole else total.astype(leaf.dtype)
