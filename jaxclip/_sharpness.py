"""How sharp a loss is at a point, and what lies between two points."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ._checks import count
from ._static import hashable
from ._types import Key, Params


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
    [`jaxclip.largest_curvature`][], and is the largest one, not that of the largest
    modulus. Made to be handed to `observe` of [`jaxclip.simulate`][].

    **Arguments:**

    - `loss`: a function of the parameters that returns a number. A call with the same
        function again, and other numbers, compiles nothing.
    - `params`: where, a pytree of arrays of one precision.
    - `key`: draws the first direction.
    - `iterations`: how many products; as many sets of parameters are held in memory. No
        more are made than there are parameters, with which the value is exact.
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
        # In the highest precision: an accelerator's default loses the orthogonality.
        along = jnp.dot(basis, vector, precision=jax.lax.Precision.HIGHEST)
        return vector - jnp.dot(along, basis, precision=jax.lax.Precision.HIGHEST)

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


def loss_barrier(
    loss: Callable[[Any], Float[Array, ""]],
    first: Params,
    second: Params,
    *,
    points: int = 25,
) -> Float[Array, ""]:
    r"""The height of the barrier on the straight line between two points.

    $$\max_{0 \le t \le 1} L((1-t) x + t y) - \big((1-t) L(x) + t L(y)\big),$$

    zero where the loss between two solutions is nowhere above the line between its
    ends: they then lie in one basin (Entezari et al. 2022, arXiv:2110.06296).

    **Arguments:**

    - `loss`: a function of the parameters that returns a number. A call with the same
        function again, and other numbers, compiles nothing.
    - `first`, `second`: the points $x$ and $y$, pytrees of arrays.
    - `points`: how many points of the line are tried, its ends included, at least 2.
    """
    number = count("points", points, least=2)
    first, second = jax.tree.map(jnp.asarray, (first, second))
    return _loss_barrier(hashable(loss), first, second, number)


@eqx.filter_jit
def _loss_barrier(
    loss: Callable[[Any], Float[Array, ""]],
    first: Params,
    second: Params,
    number: int,
) -> Float[Array, ""]:
    def at(t):
        def between(x, y):
            weight = t.astype(x.dtype)
            return (1 - weight) * x + weight * y

        return loss(jax.tree.map(between, first, second))

    t = jnp.linspace(0, 1, number)
    # One after the other: all points at once would be as many sets of parameters.
    losses = jax.lax.map(at, t)
    t = t.astype(losses.dtype)
    return jnp.max(losses - (1 - t) * losses[0] - t * losses[-1])
