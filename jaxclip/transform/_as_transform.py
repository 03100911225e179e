"""A clipping rule as an optax transform."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ..clip import AbstractClip
from ._scope import AbstractScope, PerTree


class ClipState(NamedTuple):
    """The state of a clipping transform: the number of updates made so far."""

    step: Int[Array, ""]


def as_transform(
    clip: AbstractClip, scope: AbstractScope = PerTree()
) -> optax.GradientTransformation:
    """A clipping rule as an optax transform, to be chained with any optimiser.

    ```python
    optax.chain(jaxclip.as_transform(jaxclip.HardClip(1.0)), optax.adam(1e-3))
    ```

    Away from the corners it agrees with `optax.clip_by_global_norm`. At them: a zero
    gradient has derivative one and not NaN, an infinite threshold is the identity, a
    norm whose square overflows is still right, a half-precision leaf has its norm taken
    in float32, and a gradient with a number that is not finite stays so.

    **Arguments:**

    - `clip`: the rule; a threshold that is a function is evaluated at the number of
        updates made before this one.
    - `scope`: what a norm is taken over.

    **Returns:**

    An `optax.GradientTransformation` whose state is a [`jaxclip.ClipState`][].
    """
    if not isinstance(clip, AbstractClip):
        raise ValueError(
            "`clip` must be a clipping rule, such as `jaxclip.HardClip(1.0)`. "
            f"Got {clip!r}."
        )

    def init(params: optax.Params) -> ClipState:
        del params
        return ClipState(step=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ClipState]:
        del params
        scaled = scope.scale(lambda norm: clip.factor(norm, state.step), updates)
        scaled = scope.perturb(scaled, state.step)
        return scaled, ClipState(jnp.asarray(optax.safe_increment(state.step)))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
