"""Norms of gradients that neither overflow, underflow nor lose their derivative.

From the outside to the inside there are three layers. `_norm` has a derivative of its
own, which is right at 0 too. `_norms_behind(axes)` is what a `vmap` sees: mapped over,
it becomes `_norms_behind(axes + 1)` in place of being traced again. Inside of it a
condition takes the plain norm where the squares can be represented, which is almost
always, and the scaled one elsewhere.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from .._types import PyTree

_Leaves: TypeAlias = list[Float[Array, "..."]]
# Leaves of at most so many numbers are copied into one before their squares are summed.
_SMALL = 2**14


def safe_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    r"""The Euclidean norm of all the numbers in a pytree.

    It is taken in float32 or better, is right for numbers whose squares over- or
    underflow, has derivative 0 at 0, and uses the modulus of complex numbers. Numbers
    that are not finite give a norm that is not finite. Under `jax.vmap` it costs what
    the plain norm does, too.

    **Arguments:**

    - `tree`: a pytree of arrays; `None` and empty trees count as zero.
    """
    # Mixed precision is intended here, so a user's strict promotion setting, which is
    # meant for their own code, is overridden.
    with jax.numpy_dtype_promotion("standard"):
        leaves = [_reals(leaf) for leaf in jax.tree.leaves(tree)]
        return _norm(leaves) if leaves else jnp.zeros(())


def safe_modulus(leaf: Array) -> Float[Array, "..."]:
    """The modulus of each number, in float32 or better, with derivative 0 at 0."""
    leaf = jnp.asarray(leaf)
    if not jnp.iscomplexobj(leaf):
        with jax.numpy_dtype_promotion("standard"):
            return jnp.abs(_reals(leaf))
    norm = safe_norm
    for _ in range(leaf.ndim):
        norm = jax.vmap(norm)
    return norm(leaf)


@jax.custom_jvp
def _norm(leaves: _Leaves) -> Float[Array, ""]:
    return _norms_behind(0)(leaves)


@_norm.defjvp
def _norm_jvp(primals, tangents):
    (leaves,), (moved,) = primals, tangents
    with jax.numpy_dtype_promotion("standard"):
        norm = _norm(leaves)
        # The derivative is <g / n, dg>, divided first: the unit vector g / n can be
        # represented whatever the size of g. At 0 it is taken to be 0.
        length = jnp.where(norm > 0, norm, 1.0)
        along = [jnp.sum(g / length * dg) for g, dg in zip(leaves, moved, strict=True)]
        return norm, sum(along, jnp.zeros((), norm.dtype)).astype(norm.dtype)


@cache
def _norms_behind(axes: int) -> Callable[[_Leaves], Float[Array, "..."]]:
    """A function that takes one norm for each index of the leaves' first `axes` axes.

    A `vmap` over a norm adds such an axis. Left to JAX, it would turn the condition
    below into a selection, of which both sides are always computed: three passes over
    the numbers in place of one. So the rule for `vmap` asks for the same function with
    one axis more, whose condition is one for all of the norms together.
    """

    @custom_vmap
    def norms(leaves: _Leaves) -> Float[Array, "..."]:
        dtype = jnp.result_type(*leaves)
        info = jnp.finfo(dtype)
        leaves = _packed(leaves, axes, dtype)
        plain = _sum_of_squares(leaves, axes, dtype)
        # Below it, squares that were flushed to zero could matter at this precision.
        least = float(info.tiny) / float(info.eps) ** 2
        exact = jnp.all((plain > least) & (plain < info.max))
        # The rescaling reads every number twice more: only where it is needed.
        return jax.lax.cond(
            exact,
            lambda leaves: jnp.sqrt(plain),
            lambda leaves: _scaled_norms(leaves, axes, dtype),
            leaves,
        )

    @norms.def_vmap
    def batch(size: int, batched: Any, leaves: _Leaves) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            leaves = [
                leaf if has_axis else jnp.broadcast_to(leaf, (size, *leaf.shape))
                for leaf, has_axis in zip(leaves, batched[0], strict=True)
            ]
            return _norms_behind(axes + 1)(leaves), True

    # Or else an update that is not jitted would compile the condition each time.
    return jax.jit(norms, inline=True)


def _packed(leaves: _Leaves, axes: int, dtype) -> _Leaves:
    """The same numbers in fewer leaves: the small ones in one.

    What an operation costs to start is more than what it does to a small leaf; those of
    the branch that is not taken cost it too.
    """
    flat = [
        leaf.astype(dtype).reshape(*leaf.shape[:axes], math.prod(leaf.shape[axes:]))
        for leaf in leaves
    ]
    small = [leaf for leaf in flat if leaf.size <= _SMALL]
    large = [leaf for leaf in flat if leaf.size > _SMALL]
    packed = [jnp.concatenate(small, axis=-1)] if len(small) > 1 else small
    return packed + large


def _scaled_norms(leaves: _Leaves, axes: int, dtype) -> Float[Array, "..."]:
    largest = jnp.zeros((), dtype)
    for leaf in leaves:
        over = tuple(range(axes, leaf.ndim))
        size = jnp.max(jnp.abs(leaf), axis=over, initial=0.0).astype(dtype)
        largest = jnp.maximum(largest, size)
    # By the largest number, after which no square overflows, and those that underflow
    # are too small to count. A norm that is not finite stays so.
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    unit = [leaf / _with_axes(scale, leaf.ndim) for leaf in leaves]
    return scale * jnp.sqrt(_sum_of_squares(unit, axes, dtype))


def _sum_of_squares(leaves: _Leaves, axes: int, dtype) -> Float[Array, "..."]:
    sums = [
        jnp.sum(leaf.astype(dtype) ** 2, axis=tuple(range(axes, leaf.ndim)))
        for leaf in leaves
    ]
    return sum(sums[1:], sums[0])


def _with_axes(numbers: Array, ndim: int) -> Array:
    """The numbers, with axes of length 1 behind those that they have."""
    return numbers.reshape(numbers.shape + (1,) * (ndim - numbers.ndim))


def _reals(leaf: Array) -> Float[Array, "..."]:
    """The real numbers in a leaf, in float32 or better."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        # The two parts, not the modulus, whose derivative at 0 is NaN.
        return jnp.stack([leaf.real, leaf.imag])
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
