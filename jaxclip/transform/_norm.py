"""Norms of gradients that neither overflow, underflow nor lose their derivative."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def safe_norm(tree: PyTree[Array]) -> Float[Array, ""]:
    r"""The Euclidean norm of all the numbers in a pytree.

    It is taken in float32 or better, is right for numbers whose squares over- or
    underflow, has derivative 0 at 0, and uses the modulus of complex numbers. Numbers
    that are not finite give a norm that is not finite.

    **Arguments:**

    - `tree`: a pytree of arrays; `None` and empty trees count as zero.
    """
    # Leaves of several precisions are mixed on purpose, which a user who forbids it in
    # the code of their own did not mean.
    with jax.numpy_dtype_promotion("standard"):
        return _norm([_reals(leaf) for leaf in jax.tree.leaves(tree)])


def _norm(leaves: list[Float[Array, "..."]]) -> Float[Array, ""]:
    if not leaves:
        return jnp.zeros(())
    dtype = jnp.result_type(*leaves)
    info = jnp.finfo(dtype)
    plain = _sum_of_squares(leaves, dtype)
    # Below the bound, squares that were flushed to zero could matter at this precision.
    exact = (plain > info.tiny / info.eps**2) & (plain < info.max)
    # The rescaling reads every number once more, so it is taken only where it is needed
    # (and costs nothing but the comparison elsewhere).
    return jax.lax.cond(
        exact,
        lambda leaves: jnp.sqrt(jnp.where(exact, _sum_of_squares(leaves, dtype), 1.0)),
        _scaled_norm,
        leaves,
    )


def _scaled_norm(leaves: list[Float[Array, "..."]]) -> Float[Array, ""]:
    dtype = jnp.result_type(*leaves)
    largest = jnp.zeros((), dtype)
    for leaf in leaves:
        largest = jnp.maximum(
            largest, jnp.max(jnp.abs(leaf), initial=0.0).astype(dtype)
        )
    largest = jax.lax.stop_gradient(largest)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    total = _sum_of_squares([leaf / scale for leaf in leaves], dtype)
    # sqrt has an infinite derivative at 0: select the operand, then the result.
    return jnp.where(
        total == 0, 0.0, scale * jnp.sqrt(jnp.where(total == 0, 1.0, total))
    )


def _sum_of_squares(leaves: list[Float[Array, "..."]], dtype) -> Float[Array, ""]:
    return sum(
        (jnp.sum(leaf.astype(dtype) ** 2) for leaf in leaves), jnp.zeros((), dtype)
    )


def _reals(leaf: Array) -> Float[Array, "..."]:
    """The real numbers in a leaf, in float32 or better."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        # The two parts, not the modulus, whose derivative at 0 is NaN.
        return jnp.stack([leaf.real, leaf.imag])
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
