"""A clipping rule as an optax transform."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ._parts import (
    Parts,
    PolicyStates,
    Rules,
    check_rules,
    factors,
    has_state,
    init_policies,
)
from ._scope import AbstractScope, PerTree


class ClipState(NamedTuple):
    """The state of a clipping transform.

    - `step`: the number of updates made so far.
    - `policies`: what the policies of adaptive thresholds remember.
    """

    step: Int[Array, ""]
    policies: PolicyStates = ()


class ClipTransformation(optax.GradientTransformationExtraArgs):
    """An optax transform that can also tell what it saw and did.

    What [`jaxclip.as_transform`][] returns: `init` and `update` are those of any
    transform, `clip` and `scope` what it was made of, and `examine` is for
    [`jaxclip.monitor`][].
    """

    clip: Rules
    scope: AbstractScope
    examine: Callable[..., tuple[optax.Updates, ClipState, Parts]]

    def __new__(
        cls, init: Any, update: Any, clip: Rules, scope: Any, examine: Any
    ) -> "ClipTransformation":
        self = super().__new__(cls, init, update)
        self.clip, self.scope, self.examine = clip, scope, examine
        return self


def as_transform(clip: Rules, scope: AbstractScope = PerTree()) -> ClipTransformation:
    """A clipping rule as an optax transform, to be chained with any optimiser.

    ```python
    optax.chain(jaxclip.as_transform(jaxclip.HardClip(1.0)), optax.adam(1e-3))
    ```

    Away from the corners it agrees with `optax.clip_by_global_norm`. At them: a zero
    gradient has derivative one and not NaN, an infinite threshold is the identity, a
    norm whose square overflows is still right, a half-precision leaf has its norm taken
    in float32, and a gradient with a number that is not finite stays so: wrap it in
    [`jaxclip.skip_nonfinite`][] or [`jaxclip.zero_nonfinite`][] where that may happen.

    Thresholds that live among a user's own parameters, to be trained with them, are
    handed to `update` at each step, `update(g, state, params, clip=HardClip(c))`: optax
    passes the keyword down a chain.

    **Arguments:**

    - `clip`: the rule; a threshold that is a function is evaluated at the number of
        updates made before this one. Or an [`jaxclip.Adaptive`][] one; or a pytree with
        a rule for each leaf of the gradient, for a scope with a norm for each.
    - `scope`: what a norm is taken over.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a [`jaxclip.ClipState`][].

    **Raises:**

    A `ValueError` where `clip` is no rule, and at an update where it does not match the
    gradient.
    """
    check_rules(clip)
    examine = _examiner(clip, scope)

    def init(params: optax.Params) -> ClipState:
        return ClipState(jnp.zeros((), jnp.int32), init_policies(clip, scope, params))

    def update(
        updates: optax.Updates,
        state: ClipState,
        params: optax.Params | None = None,
        *,
        clip: Rules | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, ClipState]:
        del others
        if clip is not None:
            _check_override(clip)
        scaled, state, _ = examine(updates, state, params, clip)
        return scaled, state

    return ClipTransformation(init, update, clip, scope, examine)


def _examiner(
    clip: Rules, scope: AbstractScope
) -> Callable[..., tuple[optax.Updates, ClipState, Parts]]:
    """An update that tells what it saw and did, as well."""

    def examine(
        updates: optax.Updates,
        state: ClipState,
        params: optax.Params | None = None,
        rules: Rules | None = None,
    ) -> tuple[optax.Updates, ClipState, Parts]:
        norms = scope.norms(updates, params)
        rules = clip if rules is None else rules
        parts, policies = factors(
            rules, norms, state.policies, state.step, scope.examples
        )
        scaled = scope.multiply(updates, parts.factors)
        scaled = scope.perturb(scaled, state.step)
        step = jnp.asarray(optax.safe_increment(state.step))
        return scaled, ClipState(step, policies), parts

    return examine


def _check_override(clip: Any) -> None:
    check_rules(clip)
    if has_state(clip):
        raise ValueError(
            "`clip` given to `update` must not be adaptive: its state would be lost. "
            "Hand an `Adaptive` rule to `as_transform`."
        )
