"""StableAdamW: Adam, clipped by how far its second moment lags behind the gradient."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ..._checks import fraction, positive
from ..._types import RealScalarLike
from .._as_transform import Clipping
from .._parts import Rules, check_rules, reads_step
from .._scope import AbstractScope
from .._scope_leaf import PerLeafRMS
from ._tree import mean_of


class StableAdamState(NamedTuple):
    """The state of `stable_adam`.

    - `step`: the number of updates made so far.
    - `mu`, `nu`: Adam's moments, of the structure of the gradient.
    - `clip`: the state of the clip.
    """

    step: Int[Array, ""]
    mu: optax.Updates
    nu: optax.Updates
    clip: Any


def stable_adam(
    clip: Rules,
    *,
    b1: RealScalarLike = 0.9,
    b2: RealScalarLike = 0.99,
    eps: RealScalarLike = 1e-8,
    scope: AbstractScope = PerLeafRMS(),
) -> optax.GradientTransformation:
    r"""Adam with StableAdamW's clip of the update.

    With Adam's moments $\hat m$ and $\hat v$, corrected for their start at 0, each leaf
    moves by

    $$u = f(\text{RMS}) \frac{\hat m}{\sqrt{\hat v} + \varepsilon}, \qquad
    \text{RMS} = \sqrt{\operatorname{mean} \frac{g^2}{\max(\hat v, \varepsilon^2)}}$$

    with the rule's factor $f$, which is $1 / \max(1, \text{RMS})$ for `HardClip(1.0)`
    (Wortsman et al. 2023, arXiv:2304.13013). A gradient that has just become larger
    than $\hat v$ knows makes a long step in Adam. It has an RMS above 1, whatever its
    unit, and a steady one of about 1. Adafactor clips the update itself: `PerLeafRMS`
    behind `scale_by_adam`.

    The whole of StableAdamW, with the decay of weights and the rate behind the clip as
    in the authors' code, is

    ```python
    optax.chain(
        jc.algorithm.stable_adam(jc.HardClip(1.0)),
        optax.add_decayed_weights(0.2),
        optax.scale_by_learning_rate(2e-3),
    )
    ```

    **Arguments:**

    - `clip`: the rule, whose threshold is a multiple of Adam's denominator; adaptive
        ones are taken, too.
    - `b1`, `b2`: the decay of the two moments, from 0 to 1.
    - `eps`: $\varepsilon > 0$, in the unit of the gradient.
    - `scope`: what the mean square is taken over; by default each leaf.
    """
    check_rules(clip)
    clipping = Clipping(clip, scope, scope.reads_step or reads_step(clip))
    beta1, beta2 = (fraction(n, b, in_step=True) for n, b in (("b1", b1), ("b2", b2)))
    adam = _StableAdam(clipping, beta1, beta2, positive("eps", eps, in_step=True))

    def init(params: optax.Params) -> StableAdamState:
        return adam.init(params)

    def update(
        updates: optax.Updates,
        state: StableAdamState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, StableAdamState]:
        # The numbers of Adam may be of another precision than a gradient.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


class _StableAdam(eqx.Module):
    clipping: Clipping
    b1: Array
    b2: Array
    eps: Array

    def init(self, params: optax.Params) -> StableAdamState:
        mu = jax.tree.map(jnp.zeros_like, params)
        nu = jax.tree.map(lambda x: jnp.real(jnp.zeros_like(x)), params)
        step = jnp.zeros((), jnp.int32)
        return StableAdamState(step, mu, nu, self.clipping.init(params))

    def update(
        self, updates: optax.Updates, state: StableAdamState, params: Any
    ) -> tuple[optax.Updates, StableAdamState]:
        step = jnp.asarray(optax.safe_increment(state.step))
        mu = mean_of(state.mu, updates, self.b1)
        squares = jax.tree.map(lambda g: jnp.real(g * jnp.conj(g)), updates)
        nu = mean_of(state.nu, squares, self.b2)
        start, square_start = 1 - self.b1**step, 1 - self.b2**step
        roots = jax.tree.map(lambda v: _root(v, square_start), nu)
        relative = jax.tree.map(
            lambda g, root: g / jnp.maximum(root, self.eps.astype(root.dtype)),
            *(updates, roots),
        )
        _, clip_state, parts = self.clipping.examine(relative, state.clip, params)
        moves = jax.tree.map(
            lambda m, root: m / ((root + self.eps) * start).astype(root.dtype),
            *(mu, roots),
        )
        for factors in (parts.prescales, parts.factors):
            moves = self.clipping.scope.multiply(moves, factors)
        moves = jax.tree.map(lambda move, g: move.astype(g.dtype), moves, updates)
        return moves, StableAdamState(step, mu, nu, clip_state)


def _root(square: Array, start: Array) -> Array:
    """The root of a second moment that began at 0, in float32 or better."""
    wide = square.astype(jnp.promote_types(square.dtype, jnp.float32))
    return jnp.sqrt(wide / start.astype(wide.dtype))
