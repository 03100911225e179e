"""Derivatives of a loss in the noise that is injected into it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...._types import Params, RealScalar


def half_laplacian(
    loss: Callable[[Float[Array, "..."]], RealScalar], shape: tuple[int, ...]
) -> RealScalar:
    r"""$\tfrac12 \sum_j \partial^2_{\eta_j} \hat L(\eta)$ at $\eta = 0$, of a function
    of a noise of this shape."""
    zero = jnp.zeros(shape)

    def curvature(direction):
        product = jax.jvp(jax.grad(loss), (zero,), (direction,))[1]
        return jnp.sum(product * direction)

    directions = jnp.eye(zero.size).reshape(zero.size, *shape)
    # One direction after the other: all at once would hold as many copies of the model.
    return jnp.sum(jax.lax.map(curvature, directions)) / 2


def mixed_derivative(
    loss: Callable[[Params, Float[Array, "..."]], RealScalar],
    params: Params,
    shape: tuple[int, ...],
) -> Float[Array, "d noise"]:
    r"""$\partial_w \partial_\eta \hat L(w, \eta)$ at $\eta = 0$, in flat parameters and
    with a column for each entry of a noise of this shape."""

    def gradient(noise):
        return ravel_pytree(jax.grad(loss)(params, noise))[0]

    columns = jax.jacobian(gradient)(jnp.zeros(shape))
    return columns.reshape(len(columns), -1)
