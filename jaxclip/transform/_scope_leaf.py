"""Scopes with a norm for each leaf, and for each number."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import PyTree
from ._norm import safe_modulus, safe_norm
from ._scope import AbstractScope, times, weighted_sum
from ._sums import AxisName, device_count


class AbstractPerLeaf(AbstractScope):
    """One norm for each leaf, divided by `unit`, which depends on the sizes of leaves.

    The author writes `unit` alone. **They must guarantee** that

    - `unit` returns a positive Python float, which is worked out while tracing: it is
        handed sizes and no arrays;
    - it depends on its arguments alone, so that a leaf has the same unit at each step.

    **Arguments:**

    - `axis_name`: by keyword, as of [`jaxclip.PerTree`][]: the mesh axes over which
        each device holds a part of the leaves, inside of `jax.shard_map`.
    """

    axis_name: AxisName = eqx.field(static=True, default=None, kw_only=True)

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
        sizes = [self._size(leaf) for leaf in jax.tree.leaves(updates)]

        def norm(leaf):
            unit = self.unit(self._size(leaf), sizes)
            return safe_norm(leaf, self.axis_name) / unit

        return jax.tree.map(norm, updates)

    def _size(self, leaf: Array) -> int:
        """How many numbers the leaf has on all devices together."""
        return max(jnp.size(leaf), 1) * device_count(leaf, self.axis_name)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, ""]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)

    def total(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, " n"]]
    ) -> PyTree[Array]:
        return jax.tree.map(weighted_sum, updates, factors)


class PerLeaf(AbstractPerLeaf):
    """One norm for each leaf: layerwise clipping.

    A pytree of rules gives each leaf a threshold of its own,
    `as_transform(jax.tree.map(HardClip, thresholds), PerLeaf())`.
    """

    def unit(self, size: int, sizes: list[int]) -> float:
        del size, sizes
        return 1.0


class PerLeafRMS(AbstractPerLeaf):
    """The root mean square of each leaf as its norm, as in `optax.clip_by_block_rms`.

    A threshold means the same for a small and a large leaf.
    """

    def unit(self, size: int, sizes: list[int]) -> float:
        del sizes
        return float(np.sqrt(size))


class PerLeafShare(AbstractPerLeaf):
    r"""Each leaf by its share of one threshold, so that the tree stays within it.

    With the threshold $c$ of the rule, leaf $l$ has the threshold $c_l = c / \sqrt K$,
    where $K$ is the number of leaves, or $c \sqrt{D_l / D}$, where $D_l$ of $D$ numbers
    are its own (McMahan et al. 2018, arXiv:1710.06963). Within [`jaxclip.PerExample`][]
    these are the two forms of `optax.per_example_layer_norm_clip`.

    **Arguments:**

    - `by_size`: whether a leaf's share is the second one, which grows with its size.
    """

    by_size: bool = eqx.field(static=True, default=False)

    def unit(self, size: int, sizes: list[int]) -> float:
        share = size / sum(sizes) if self.by_size else 1 / len(sizes)
        return float(np.sqrt(share))


class PerCoordinate(AbstractScope):
    """The modulus of each number as a norm of its own: value clipping, as `optax.clip`
    does it."""

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        del params
        return jax.tree.map(safe_modulus, updates)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)
