"""The largest eigenvalue of a loss's Hessian."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import count
from .._numerics import exact_dot
from .._static import hashable
from .._types import Key, Params


def sharpness(
    loss: Callable[[Any], Float[Array, ""]],
    params: Params,
    *,
    key: Key,
    iterations: int = 20,
) -> Float[Array, ""]:
    r"""The largest eigenvalue of a loss's Hessian at one point.

    Gradient descent with a learning rate above two over it moves away from a minimum.
    By Lanczos' iteration with Hessian-vector products, every direction kept orthogonal
    to all before (Golub and Van Loan 2013, Matrix Computations, section 10.1): the
    value comes from below, far faster than by the power iteration of
    [`jaxclip.curvature.largest_curvature`][], and is the largest one, not that of the
    largest modulus. Made to be handed to `observe` of [`jaxclip.simulate`][].

    **Arguments:**

    - `loss`: a function of the parameters that returns a number. A call with the same
        function again, and other numbers, compiles nothing.
    - `params`: where, a pytree of arrays of one precision.
    - `key`: draws the first direction.
    - `iterations`: how many products; as many sets of parameters are held in memory. No
        more are made than there are parameters, with which the value is exact.

    **Returns:**

    A number, in the unit of the loss over the squared one of the parameters.
    """
    size = count("iterations", iterations)
    params = jax.tree.map(jnp.asarray, params)
    return _sharpness(hashable(loss), params, key, size)


@eqx.filter_jit
def _sharpness(
    loss: Callable[[Any], Float[Array, ""]], params: Params, key: Key, iterations: int
) -> Float[Array, ""]:
    flat, restore = ravel_pytree(params)
    slope = jax.grad(lambda x: loss(restore(x)))
    size = min(iterations, flat.size)

    def orthogonal(vector, basis):
        # Rounding in the products would itself be what is left along the basis.
        return vector - exact_dot(exact_dot(basis, vector), basis)

    def unit(vector):
        length = jnp.linalg.norm(vector)
        return vector / jnp.where(length > 0, length, 1), length

    def body(state, i):
        basis, vector = state
        basis = basis.at[i].set(vector)
        product = jax.jvp(slope, (flat,), (vector,))[1]
        # Twice, and once more at length 1: the first leaves its own rounding errors.
        rest, beside = unit(orthogonal(orthogonal(product, basis), basis))
        following, _ = unit(orthogonal(rest, basis))
        return (basis, following), (jnp.vdot(vector, product), beside)

    first, _ = unit(jr.normal(key, flat.shape, flat.dtype))
    empty = jnp.zeros((size, flat.size), flat.dtype)
    _, (diagonal, beside) = jax.lax.scan(body, (empty, first), jnp.arange(size))
    # Where a direction was zero, all that can be reached has been seen: the entries
    # after it must not add an eigenvalue 0 that is larger than the right one.
    reached = jnp.append(True, jnp.cumsum(beside[:-1] == 0) == 0)
    diagonal = jnp.where(reached, diagonal, diagonal[0])
    off = jnp.diag(beside[:-1], 1)
    return jnp.linalg.eigvalsh(jnp.diag(diagonal) + off + off.T)[-1]


def largest_curvature(
    loss: Callable[[Any], Float[Array, ""]],
    params: Params,
    *,
    key: Key,
    iterations: int = 100,
) -> Float[Array, ""]:
    """The eigenvalue of a loss's Hessian that is largest in modulus, at one point.

    By power iteration with Hessian-vector products, whose error falls with the ratio of
    the second eigenvalue to it. Gradient descent with a learning rate of one over its
    modulus overshoots in no direction, where the loss is a quadratic.

    **Arguments:**

    - `loss`: a function of the parameters that returns a number. A call with the same
        function again, and other numbers, compiles nothing.
    - `params`: where, a pytree of arrays.
    - `key`: draws the first direction.
    - `iterations`: how many products.

    **Returns:**

    The eigenvalue with its sign, in the unit of the loss over the squared one of the
    parameters.
    """
    length = count("iterations", iterations)
    params = jax.tree.map(jnp.asarray, params)
    return _largest_curvature(hashable(loss), params, key, length)


@eqx.filter_jit
def _largest_curvature(
    loss: Callable[[Any], Float[Array, ""]], params: Params, key: Key, length: int
) -> Float[Array, ""]:
    leaves, structure = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    start = [jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

    def body(v, _):
        size = optax.tree.norm(v)
        v = jax.tree.map(lambda x: x / size, v)
        product = jax.jvp(jax.grad(loss), (params,), (v,))[1]
        return product, jnp.asarray(optax.tree.vdot(v, product))

    first = jax.tree.unflatten(structure, start)
    return jax.lax.scan(body, first, length=length)[1][-1]
