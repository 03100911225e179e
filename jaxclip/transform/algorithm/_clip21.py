"""Clip21: several workers, each of which clips the change of its gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..._checks import count
from ...clip import AbstractClip
from .._as_transform import as_transform
from .._scope import AbstractScope, PerTree
from ._tree import plus


class Clip21State(NamedTuple):
    """The state of `clip21`.

    - `sent`: what each worker has sent so far, with a leading axis of workers.
    - `inner`: the state of the clip, which they share.
    """

    sent: optax.Updates
    inner: Any


def clip21(
    clip: AbstractClip, workers: int, scope: AbstractScope = PerTree()
) -> optax.GradientTransformation:
    r"""Each worker clips the difference between its gradient and what it sent so far.

    $$c_i = \text{clip}(g_i - v_i), \qquad v_i \leftarrow v_i + c_i, \qquad
    \text{out} = \tfrac1n \sum_i v_i$$

    (Khirirat et al. 2023, arXiv:2305.18929). The differences vanish as training
    settles, and the clip with them, so that it converges to the minimum of the mean
    loss, where the mean of clipped gradients stalls.

    **Arguments:**

    - `clip`: the rule.
    - `workers`: $n$: the updates carry a leading axis of so many workers on every leaf,
        and what comes out has lost it.
    - `scope`: what norms are taken over within one worker's gradient.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.Clip21State`][].
    """
    count("workers", workers)
    transform = as_transform(clip, scope)

    def init(params: optax.Params) -> Clip21State:
        sent = jax.tree.map(
            lambda x: jnp.zeros((workers, *jnp.shape(x)), jnp.result_type(x)), params
        )
        return Clip21State(sent, transform.init(params))

    def update(
        updates: optax.Updates,
        state: Clip21State,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, Clip21State]:
        check_workers(updates, workers)
        change = plus(updates, state.sent, -1.0)
        clipped, inner = jax.vmap(
            transform.update, in_axes=(0, None, None), out_axes=(0, None)
        )(change, state.inner, params)
        sent = plus(state.sent, clipped)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), sent)
        return mean, Clip21State(sent, inner)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def check_workers(updates: optax.Updates, workers: int) -> None:
    """Raises where a leaf has no leading axis of the workers."""
    for leaf in jax.tree.leaves(updates):
        if jnp.shape(leaf)[:1] != (workers,):
            raise ValueError(
                f"`updates` need a leading axis of the {workers} workers on every "
                f"leaf. Got a leaf of shape {jnp.shape(leaf)}."
            )
