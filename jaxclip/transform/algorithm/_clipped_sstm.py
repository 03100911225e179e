"""Clipped-SSTM: accelerated SGD with clipping, for heavy-tailed noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..._checks import positive
from ..._types import RealScalarLike
from ...clip import AbstractClip
from .._as_transform import counting
from .._scope import times
from ._tree import mean_of, plus


class ClippedSSTMState(NamedTuple):
    """The two sequences beside the parameters, and the sum of the step sizes.

    - `average`: $y_k$, what to evaluate and to keep: the method's result.
    - `far`: $z_k$, which the clipped gradients move.
    - `total`: $A_k$.
    - `clip`: the state of the clip, a [`jaxclip.transform.ClipState`][].
    """

    average: optax.Params
    far: optax.Params
    total: Float[Array, ""]
    clip: Any


def clipped_sstm(
    lr: RealScalarLike, clip: AbstractClip
) -> optax.GradientTransformation:
    r"""The stochastic similar triangles method with clipping: a whole optimiser.

    With $\alpha_{k+1} = (k + 2)\,\text{lr} / 2$ and $A_{k+1} = A_k + \alpha_{k+1}$,

    $$x_{k+1} = \frac{A_k y_k + \alpha_{k+1} z_k}{A_{k+1}}, \quad
    z_{k+1} = z_k - \text{clip}(\alpha_{k+1} g(x_{k+1})), \quad
    y_{k+1} = \frac{A_k y_k + \alpha_{k+1} z_{k+1}}{A_{k+1}}$$

    (Gorbunov et al. 2020, arXiv:2005.10785, algorithm 1). The paper's `lr` is
    $1 / (a L)$ and its threshold $B / \alpha_{k+1}$ for the gradient, which is
    `HardClip(B)` for the step $\alpha_{k+1} g$ that is clipped here.

    The parameters are $x$, where gradients are taken. The result is $y$, the state's
    `average`.

    **Arguments:**

    - `lr`: positive, per step.
    - `clip`: the rule for a step, in the parameters' unit.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.ClippedSSTMState`][]; its
    `update` needs the parameters.
    """
    rate, transform = positive("lr", lr), counting(clip)

    def init(params: optax.Params) -> ClippedSSTMState:
        return ClippedSSTMState(
            params, params, jnp.zeros_like(rate), transform.init(params)
        )

    def update(
        updates: optax.Updates,
        state: ClippedSSTMState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ClippedSSTMState]:
        if params is None:
            raise ValueError(
                "`clipped_sstm` moves the parameters between two sequences of its own "
                "and was given none. Call `update(updates, state, params)`."
            )
        k = state.clip.step.astype(rate.dtype)
        alpha, following = (k + 2) * rate / 2, (k + 3) * rate / 2
        scaled = jax.tree.map(lambda g: times(g, alpha), updates)
        step, clip_state = transform.update(scaled, state.clip)
        far = plus(state.far, step, -1.0)
        total = state.total + alpha
        average = mean_of(state.average, far, state.total / total)
        at = mean_of(average, far, total / (total + following))
        move = plus(at, params, -1.0)
        return move, ClippedSSTMState(average, far, total, clip_state)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
