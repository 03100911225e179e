"""How slowly a noise moves gradient descent along the zero-loss set."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ...problem import AbstractNoisyProblem
from .._base import AbstractLimit
from ._flow import ZeroLossFlow
from ._limit_map import end_of_flow
from ._sde import ZeroLossSDE
from ._set import ZeroLossSet, need_noisy, zero_loss_set

# A regularizer that pushes along the set by less, relative to its own slope and size,
# does not.
_NOT_AT_ALL = 1e-8
_RETRACTIONS = 8


class TimeScale(NamedTuple):
    r"""The scale of time on which a noise acts; see [`jaxclip.limit.time_scale`][].

    - `power`: $p$: the motion takes of the order of $1 / (\gamma^p \sigma^2)$ steps.
    - `push`: the length of $P \nabla \mathrm{Reg}$, the larger one of two points.
    - `limit`: the limit to be handed to [`jaxclip.solve`][].
    """

    power: int
    push: Float[Array, ""]
    limit: AbstractLimit


def time_scale(problem: AbstractNoisyProblem) -> TimeScale:
    r"""Which scale of time a noise lives on.

    Noise whose regularizer has a slope along the zero-loss set,
    $P \nabla \mathrm{Reg} \ne 0$, moves gradient descent within $1/(\gamma \sigma^2)$
    steps. Otherwise it takes $1/(\gamma^2 \sigma^2)$ (Section 2 of arXiv:2404.12293).
    The slope is computed, at $\Phi(w_0)$ and at a point beside it. A noise that has the
    `power` 2 then has a drift on that scale, any other one a diffusion.
    [`jaxclip.inject.Minibatch`][], which vanishes with the loss, stays where it is on
    both scales.

    **Arguments:**

    - `problem`: the problem with its noise; not traced.

    **Returns:**

    A [`jaxclip.limit.TimeScale`][].

    **Raises:**

    What [`jaxclip.limit.limit_map`][] raises.
    """
    problem = need_noisy("time_scale", problem)
    manifold, w = zero_loss_set(problem)
    w = end_of_flow(manifold, w)

    push, scale = _push(manifold, w)
    if problem.power == 2:
        return TimeScale(2, push, ZeroLossFlow())
    if push > _NOT_AT_ALL * scale:
        return TimeScale(1, push, ZeroLossFlow())
    return TimeScale(2, push, ZeroLossSDE())


@eqx.filter_jit
def _push(
    manifold: ZeroLossSet, w: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The slope of the regularizer along the set, and what it is small against: the
    larger ones of two points, since it may be stationary at one."""

    def regularizer(w):
        return manifold.problem.regularizer(manifold.unravel(w))

    def at(point):
        value, slope = jax.value_and_grad(regularizer)(point)
        length = jnp.linalg.norm(slope)
        # A constant regularizer has a slope of rounding, which must count as no push:
        # so it is compared with the regularizer's size over that of the point, too.
        scale = length + jnp.abs(value) / jnp.linalg.norm(point)
        return jnp.linalg.norm(manifold.project(point, slope)), scale

    # The second point: a fixed random direction along the set, 5% of the parameters'
    # norm away, brought back to the set.
    aside = manifold.project(w, jr.normal(jr.key(0), w.shape, w.dtype))
    size = jnp.linalg.norm(w) / jnp.linalg.norm(aside)
    beside = manifold.retract(w + 0.05 * size * aside, _RETRACTIONS)
    pushes, scales = jax.lax.map(at, jnp.stack([w, beside]))
    return jnp.max(pushes), jnp.max(scales)
