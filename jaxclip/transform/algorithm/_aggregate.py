"""Aggregation of workers' gradients that a few wild ones cannot carry away."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..._checks import count, positive
from ..._types import RealScalarLike
from ...clip import AbstractClip
from .._as_transform import ClipState, counting
from .._norm import safe_norm
from .._scope_example import PerExample
from ._tree import plus


class CenteredClipState(NamedTuple):
    """The state of `centered_clip`.

    - `center`: the last aggregate.
    - `inner`: the state of the clip, a [`jaxclip.transform.ClipState`][].
    """

    center: optax.Updates
    inner: Any


def centered_clip(
    clip: AbstractClip, *, iterations: int = 3
) -> optax.GradientTransformation:
    r"""Clips each worker's gradient around the aggregate, and moves the aggregate.

    $$z \leftarrow z + \tfrac1n \sum_i \text{clip}(g_i - z),$$

    from the last step's aggregate, `iterations` times (Karimireddy et al. 2021,
    arXiv:2012.10333). With a rule that shortens to a threshold a worker moves it by no
    more than that over $n$ in each iteration, however wrong its gradient is. The
    updates carry a leading axis of $n$ workers on every leaf, and what comes out has
    lost it.

    **Arguments:**

    - `clip`: the rule.
    - `iterations`: how often, at each update.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.CenteredClipState`][].
    """
    count("iterations", iterations)
    transform = counting(clip, PerExample())

    def init(params: optax.Params) -> CenteredClipState:
        center = jax.tree.map(jnp.zeros_like, params)
        return CenteredClipState(center, transform.init(params))

    def update(
        updates: optax.Updates,
        state: CenteredClipState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, CenteredClipState]:
        center = _centered(clip, iterations, updates, state, params)
        step = jnp.asarray(optax.safe_increment(state.inner.step))
        return center, CenteredClipState(center, ClipState(step))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def geometric_median(
    *, iterations: int = 20, eps: RealScalarLike = 1e-6
) -> optax.GradientTransformation:
    r"""The point with the least sum of distances to the workers' gradients.

    $$z \leftarrow \frac{\sum_i w_i g_i}{\sum_i w_i}, \qquad
    w_i = \frac{1}{\max(\|g_i - z\|, \varepsilon)},$$

    from their mean: Weiszfeld's algorithm, smoothed as in Pillutla et al. 2022,
    arXiv:1912.13445. It stays near the bulk while fewer than half of the gradients are
    wild. The updates carry a leading axis of workers on every leaf, and what comes out
    has lost it.

    **Arguments:**

    - `iterations`: how often, at each update; it converges linearly.
    - `eps`: $\varepsilon > 0$, in the gradient's unit.

    **Returns:**

    An optax transform without a state.
    """
    count("iterations", iterations)
    least = positive("eps", eps)

    def aggregate(
        updates: optax.Updates, params: optax.Params | None = None
    ) -> optax.Updates:
        del params
        return _median(least, iterations, updates)

    return optax.stateless(aggregate)


# Loops of updates that are not jitted would be compiled each time.
@eqx.filter_jit
def _centered(
    clip: AbstractClip,
    iterations: int,
    updates: optax.Updates,
    state: CenteredClipState,
    params: optax.Params | None,
) -> optax.Updates:
    """The aggregate after so many moves from the last one."""
    transform = counting(clip, PerExample())

    def move(_, center):
        around = _around(updates, center)
        mean, _ = transform.update(around, state.inner, params)
        return plus(center, mean)

    return jax.lax.fori_loop(0, iterations, move, state.center)


@eqx.filter_jit
def _median(
    least: Float[Array, ""], iterations: int, updates: optax.Updates
) -> optax.Updates:
    """The weighted mean after so many iterations."""

    def move(_, center):
        distance = jax.vmap(safe_norm)(_around(updates, center))
        weight = 1 / jnp.maximum(distance, least.astype(distance.dtype))
        return _average(updates, weight / jnp.sum(weight))

    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), updates)
    return jax.lax.fori_loop(0, iterations, move, mean)


def _around(updates: optax.Updates, center: optax.Updates) -> optax.Updates:
    """The workers' gradients, seen from the center."""
    return jax.vmap(plus, (0, None, None))(updates, center, -1.0)


def _average(updates: optax.Updates, weight: Float[Array, " n"]) -> optax.Updates:
    def average(leaf):
        with jax.numpy_dtype_promotion("standard"):
            total = jnp.tensordot(weight, leaf, axes=1)
            return total.astype(leaf.dtype)

    return jax.tree.map(average, updates)
