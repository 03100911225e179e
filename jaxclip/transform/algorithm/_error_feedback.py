"""Error feedback: what a clip cut off is added to the next gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..._types import PyTree
from ._tree import plus


class ErrorFeedbackState(NamedTuple):
    """The state of `error_feedback`.

    - `error`: what was cut off so far, of the structure of the gradient.
    - `inner`: the state of the clip.
    """

    error: optax.Updates
    inner: PyTree[Array]


def error_feedback(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
    r"""Adds what was cut off to the next gradient.

    $$u_t = g_t + e_t, \qquad \text{out}_t = \text{clip}(u_t), \qquad
    e_{t+1} = u_t - \text{out}_t$$

    (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847). A clip with a
    constant threshold is no contraction, so that the error is not bounded while
    gradients stay above it: a baseline, to which [`jaxclip.algorithm.clip21`][] is the
    answer.

    **Arguments:**

    - `transform`: the clip, such as `as_transform(HardClip(1.0))`.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.ErrorFeedbackState`][].
    """

    def init(params: optax.Params) -> ErrorFeedbackState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ErrorFeedbackState(zeros, transform.init(params))

    def update(
        updates: optax.Updates,
        state: ErrorFeedbackState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ErrorFeedbackState]:
        wanted = plus(updates, state.error)
        out, inner = transform.update(wanted, state.inner, params)
        return out, ErrorFeedbackState(plus(wanted, out, -1.0), inner)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
