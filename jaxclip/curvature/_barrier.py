"""What lies between two solutions."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import count
from .._static import hashable
from .._types import Params


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

    **Returns:**

    A number that is not negative, in the unit of the loss.
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
