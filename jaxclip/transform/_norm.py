"""Norms of gradients that neither overflow, underflow nor lose their derivative.

How the squares are summed is in `_sums.py`.

Leaves that may be sharded are summed as they lie, never reshaped or joined, so that
each stays where it is: what travels between devices are sums. Those of one device are
packed, since an operation costs more to compile and to start than what it does to a
small leaf.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from .._types import PyTree
from ._sums import AxisName, Leaves, branching, branchless, packed, total, with_axes
from ._trees import numbers_of


def safe_norm(tree: PyTree[Array], axis_name: AxisName = None) -> Float[Array, ""]:
    r"""The Euclidean norm of all the numbers in a pytree.

    It is taken in float32 or better, is right for numbers whose squares over- or
    underflow, has derivative 0 at 0, and uses the modulus of complex numbers. Numbers
    that are not finite give a norm that is not finite, and so does a norm that is
    itself beyond the largest float. Under `jax.vmap` it costs what the plain norm does,
    too. The arrays may be sharded over a mesh in any way.

    ```python
    jaxclip.safe_norm({"w": jnp.array([3e30, 4e30])})  # 5e30
    ```

    **Arguments:**

    - `tree`: a pytree of arrays; `None` and empty trees count as zero, and so does what
        is no gradient, such as a function, a boolean or a key. Of a sparse matrix
        (`jax.experimental.sparse.BCOO`) the entries count, repeated ones as their sum.
    - `axis_name`: inside of `jax.shard_map`, the mesh axes over which each device holds
        a part of the numbers: the norm is then that of all parts. A leaf that JAX knows
        to be the same along an axis (its type does not vary over it) counts once.
    """
    # Mixed precision is intended here, so a user's strict promotion setting, which is
    # meant for their own code, is overridden.
    with jax.numpy_dtype_promotion("standard"):
        leaves = reals(*jax.tree.leaves(numbers_of(tree)))
        return norms(leaves, 0, axis_name) if leaves else jnp.zeros(())


def safe_modulus(leaf: Array) -> Float[Array, "..."]:
    """The modulus of each number, in float32 or better, with derivative 0 at 0."""
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        parts = reals(leaf)
        if len(parts) == 1:
            return jnp.abs(parts[0])
        return norms(parts, leaf.ndim, None)


def reals(*leaves: Array) -> Leaves:
    """The real numbers in some leaves, in float32 or better."""
    parts: Leaves = []
    for leaf in map(jnp.asarray, leaves):
        # The two parts, not the modulus, whose derivative at 0 is NaN.
        pair = [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
        wide = jnp.promote_types(pair[0].dtype, jnp.float32)
        parts += [part.astype(wide) for part in pair]
    return parts


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def norms(leaves: Leaves, kept: int, axis_name: AxisName) -> Float[Array, "..."]:
    """The norm over all leaves and all of their axes but the first `kept`, which they
    share. Real leaves of float32 or better, at least one of them."""
    return _norms_behind(kept, axis_name)(leaves)


@norms.defjvp
def _norms_jvp(kept, axis_name, primals, tangents):
    (leaves,), (moved,) = primals, tangents
    with jax.numpy_dtype_promotion("standard"):
        norm = norms(leaves, kept, axis_name)
        # The derivative is <g / n, dg>, divided first: the unit vector g / n can be
        # represented whatever the size of g. At 0 it is taken to be 0.
        length = jnp.where(norm > 0, norm, 1.0)
        along = [
            leaf / with_axes(length, leaf.ndim) * change
            for leaf, change in zip(leaves, moved, strict=True)
        ]
        return norm, total(along, kept, axis_name).astype(norm.dtype)


@cache
def _norms_behind(kept: int, axis_name: AxisName) -> Callable[[Leaves], Any]:
    """A function that takes one norm for each index of the leaves' first `kept` axes.

    A `vmap` over a norm adds such an axis. Left to JAX, it would turn the branch on a
    CPU into a selection, of which both sides are always computed. So the rule for
    `vmap` asks for the same function with one axis more, whose branch is one for all of
    the norms together.
    """

    @custom_vmap
    def of(leaves: Leaves) -> Float[Array, "..."]:
        dtype = jnp.result_type(*leaves)
        leaves = [leaf.astype(dtype) for leaf in leaves]
        if all(jax.typeof(leaf).sharding.mesh.empty for leaf in leaves):
            leaves = packed(leaves, kept)
        return jax.lax.platform_dependent(
            leaves,
            cpu=lambda leaves: branching(leaves, kept, axis_name),
            default=lambda leaves: branchless(leaves, kept, axis_name),
        )

    @of.def_vmap
    def batch(size: int, batched: Any, leaves: Leaves) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            leaves = [
                leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))
                for leaf, has_axis in zip(leaves, batched[0], strict=True)
            ]
            return _norms_behind(kept + 1, axis_name)(leaves), True

    # Or else an update that is not jitted would compile the branch each time.
    return jax.jit(of, inline=True)
