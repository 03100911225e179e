"""Mixed momentum clipping: the momentum and the gradient, clipped each and averaged."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..._checks import fraction
from ..._types import PyTree, RealScalarLike
from .._as_transform import as_transform
from .._parts import Rules
from .._scope import AbstractScope, PerTree
from ._tree import mean_of


class MixedMomentumState(NamedTuple):
    """The state of `mixed_momentum`.

    - `momentum`: the mean of the gradients, of their structure.
    - `clips`: the states of the two clips, of the momentum and of the gradient.
    """

    momentum: optax.Updates
    clips: tuple[PyTree[Array], ...]


def mixed_momentum(
    clip: Rules,
    *,
    decay: RealScalarLike = 0.9,
    mix: RealScalarLike = 0.7,
    scope: AbstractScope = PerTree(),
) -> optax.GradientTransformation:
    r"""Clips the momentum and the gradient, each by its own norm, and mixes them.

    $$m_{t+1} = \beta m_t + (1 - \beta) g_t, \qquad
    u_t = \nu f(\|m_{t+1}\|) m_{t+1} + (1 - \nu) f(\|g_t\|) g_t$$

    with the rule's factor $f$ (Zhang et al. 2020, arXiv:2010.02519), to be followed by
    `optax.scale_by_learning_rate(lr)`. The paper's
    $\min(\eta, \gamma / \|\cdot\|)$ is `lr` $= \eta$ with `HardClip(gamma / eta)`.
    $\nu = 0$ is the clipped gradient, $\nu = 1$ the clipped momentum.

    **Arguments:**

    - `clip`: the rule, for both.
    - `decay`: $\beta$, from 0 to 1.
    - `mix`: $\nu$, from 0 to 1.
    - `scope`: what norms are taken over.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.MixedMomentumState`][].
    """
    beta, nu = fraction("decay", decay), fraction("mix", mix)
    transform = as_transform(clip, scope)

    def init(params: optax.Params) -> MixedMomentumState:
        momentum = jax.tree.map(jnp.zeros_like, params)
        # Each its own, not one twice: a buffer can be donated once.
        return MixedMomentumState(
            momentum, (transform.init(params), transform.init(params))
        )

    def update(
        updates: optax.Updates,
        state: MixedMomentumState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, MixedMomentumState]:
        momentum = mean_of(state.momentum, updates, beta)
        slow, of_slow = transform.update(momentum, state.clips[0], params)
        fast, of_fast = transform.update(updates, state.clips[1], params)
        step = mean_of(slow, fast, nu)
        return step, MixedMomentumState(momentum, (of_slow, of_fast))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
