"""Operations of JAX with defaults that this library cannot use, and interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# By default an accelerator multiplies matrices in its fast units, which round each
# factor to ten bits, three decimal digits, even where it is float32. That is more than
# the differences that are taken here: between two orthogonal directions, between sums
# over pairs of examples, between two nearly equal risks. The highest precision is that
# of the arrays themselves, and on a CPU costs nothing.
_HIGHEST = jax.lax.Precision.HIGHEST


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\sqrt x$, with all derivatives 0 at 0, where those of `jnp.sqrt` are infinite.

    **Arguments:**

    - `x`: of any shape. What is not positive, a NaN included, has the root 0.
    """
    some = x > 0
    # The operand is selected first and the result second. One selection of the result
    # is not enough: its derivative multiplies the infinite one of the root at 0 by the
    # zero of the branch that is not taken, which is NaN.
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1.0)), 0.0)


def lagrange(place: Float[Array, ""], count: int) -> Float[Array, " count"]:
    """The weights of values at 0, 1, ..., `count` - 1 in the polynomial through them,
    taken at a place. Their sum is 1."""
    nodes, own = np.arange(count), np.eye(count, dtype=bool)
    apart = np.where(own, 1, nodes[:, None] - nodes[None, :]).astype(place.dtype)
    factors = (place - nodes.astype(place.dtype))[None, :] / apart
    return jnp.prod(jnp.where(own, 1.0, factors), axis=1)


def exact_dot(left: Array, right: Array, axes: int = 1) -> Array:
    """The product over the last axis of `left` and the first one of `right`, or so many
    of them, rounded in their own precision and no coarser one."""
    return jnp.tensordot(left, right, axes=axes, precision=_HIGHEST)


def exact_einsum(subscripts: str, left: Array, right: Array) -> Array:
    """`jnp.einsum` of two arrays, rounded in their own precision and no coarser one."""
    return jnp.einsum(subscripts, left, right, precision=_HIGHEST)
