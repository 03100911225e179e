"""The tangent kernel of a model."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._numerics import exact_dot
from .._static import hashable
from .._types import Params, PyTree


def tangent_kernel(
    model: Callable[[Any, Any], Float[Array, ""]], params: Params, xs: PyTree[ArrayLike]
) -> Float[Array, "n n"]:
    r"""The tangent kernel of a model at its parameters.

    $$K_{ij} = \langle \nabla_w F(w, x_i), \nabla_w F(w, x_j) \rangle.$$

    For the loss $L = \|F - y\|^2/2$ with residuals $r$ the gradient has
    $\|\nabla L\|^2 = r^T K r$, so that $L$ satisfies the Polyak-Lojasiewicz inequality
    with its smallest eigenvalue, `jnp.linalg.eigvalsh(K)[0]` (Liu, Zhu and Belkin 2020,
    arXiv:2003.00307).

    **Arguments:**

    - `model`: $F$, a function of the parameters and one input that returns a number. A
        call with the same function again, and other numbers, compiles nothing.
    - `params`: $w$, a pytree of arrays.
    - `xs`: the inputs, a pytree of arrays with a leading axis of length `n`.

    **Returns:**

    Shape `(n, n)`, in the squared unit of $F$ over that of the parameters. The memory
    is that of `n` sets of parameters.
    """
    params, xs = jax.tree.map(jnp.asarray, (params, xs))
    return _tangent_kernel(hashable(model), params, xs)


# Operation by operation these would be compiled one after the other.
@eqx.filter_jit
def _tangent_kernel(
    model: Callable[[Any, Any], Float[Array, ""]], params: Params, xs: PyTree[Array]
) -> Float[Array, "n n"]:
    rows = jax.vmap(jax.grad(model), (None, 0))(params, xs)

    def gram(leaf):
        flat = leaf.reshape(len(leaf), -1)
        # Rounding must stay below the smallest eigenvalue.
        return exact_dot(flat, flat.T)

    first, *rest = [gram(leaf) for leaf in jax.tree.leaves(rows)]
    return sum(rest, first)
