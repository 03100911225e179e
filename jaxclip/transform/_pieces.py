"""What is seen of a batch that is gone through a piece at a time, and the loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Params, PyTree
from ..clip import policy
from ._parts import PolicyStates


class Seen(NamedTuple):
    """What was seen of the units of a piece, or of a batch.

    - `values`: shape `(u,)`, the loss of each unit.
    - `losses`, `aux`: of each example, with leading axes like those of the units.
    - `norms`: as the scope takes them, with a leading axis of units.
    - `kept`: shape `(u,)`, which units count.
    - `along`: how their gradients lie to the running mean, where a policy asks.
    """

    values: Float[Array, " u"]
    losses: Float[Array, "u ..."]
    aux: Any
    norms: PyTree[Float[Array, "u ..."]]
    kept: Bool[Array, " u"]
    along: policy.Along | None = None


class Outcome(NamedTuple):
    """What became of a batch.

    - `total`: the clipped gradient before its noise, a pytree like the parameters.
    - `seen`: of all units.
    - `factors`: in the form of the norms; 0 for units that do not count.
    - `policies`: the states of adaptive rules.
    """

    total: Params
    seen: Seen
    factors: PyTree[Float[Array, "u ..."]]
    policies: PolicyStates


def visit_all(visit: Callable[..., Any], carry: Any, pieces: Any) -> tuple[Any, Any]:
    """A scan over the pieces; without a loop where there is one."""
    if jax.tree.leaves(pieces)[0].shape[0] > 1:
        return jax.lax.scan(visit, carry, pieces)
    carry, out = visit(carry, jax.tree.map(lambda leaf: leaf[0], pieces))
    return carry, jax.tree.map(lambda leaf: leaf[None], out)


def zeros_like(params: Params) -> Params:
    # In float32 or better: a sum of many pieces in half precision stops growing.
    def zeros(leaf: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(zeros, params)


def add(total: Array, leaf: Array) -> Array:
    return total + leaf.astype(total.dtype)
