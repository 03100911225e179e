"""A clipping rule as an optax transform."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._types import PyTree
from ._comparison import along_others, need_others
from ._direction import along, directed, direction, next_mean, no_mean
from ._examples_spread import axes_of, check_spread, of_all, own_of
from ._parts import (
    Parts,
    PolicyStates,
    Rules,
    check_rules,
    factors,
    has_state,
    init_policies,
    reads_step,
)
from ._scope import AbstractScope, PerTree
from ._scope_example import PerExample, axis_name_of
from ._trees import all_finite, split


class ClipState(NamedTuple):
    """The state of a clipping transform that has something to remember.

    A rule whose factor depends on the norm alone has optax's `EmptyState` in its place.

    - `step`: the number of updates made so far.
    - `policies`: what the policies of adaptive thresholds remember.
    - `mean`: the running mean of the updates that were handed on, a pytree like the
        parameters, where a policy asks where gradients point; else empty.
    """

    step: Int[Array, ""]
    policies: PolicyStates = ()
    mean: PyTree[Array] = ()


class Clipping(eqx.Module):
    """What a clipping transform is made of, which can also tell what it saw and did.

    It is the attribute `clipping` of the `update` that [`jaxclip.as_transform`][]
    returns: by it [`jaxclip.monitor`][] knows a clip.

    **Arguments:**

    - `clip`, `scope`: as of [`jaxclip.as_transform`][].
    - `counts`: whether the state counts the updates.
    """

    clip: Rules
    scope: AbstractScope
    counts: bool = eqx.field(static=True)

    def init(self, params: optax.Params) -> ClipState | optax.EmptyState:
        """The state before the first update."""
        if not self.counts:
            return optax.EmptyState()
        params, _, _ = split(params)
        policies = init_policies(self.clip, self.scope, params)
        mean = no_mean(self.clip, self.scope, params)
        return ClipState(jnp.zeros((), jnp.int32), policies, mean)

    def examine(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        rules: Rules | None = None,
        metric: optax.Params | None = None,
    ) -> tuple[optax.Updates, Any, Parts]:
        """An update, and what was seen and done.

        **Arguments:**

        - `updates`, `state`, `params`: as of the `update` of an optax transform.
        - `rules`: takes the place of `clip` in this update; by default nothing does.

        **Returns:**

        The clipped updates, the state after them, and the
        [`jaxclip.transform.Parts`][] of this update.
        """
        if rules is not None:
            self.check_override(rules)
        known = state if isinstance(state, ClipState) else ClipState(_first_step())
        scope = self.scope
        gradients, params, join = split(updates, params)
        norms = scope.norms(gradients, params)
        policies = known.policies
        if rules is None:
            rules = self.clip
            if isinstance(scope, PerExample) and policies:
                check_spread(norms, scope.axis_name, axis_name_of(scope.within))
            seen = self._along(gradients, norms, known.mean, metric)
            parts, policies = factors(
                rules, norms, policies, known.step, scope.examples, seen
            )
        else:
            # Thresholds that adapt see nothing of an update that is not theirs.
            parts, _ = factors(rules, norms, (), known.step, scope.examples)
        if not scope.examples:
            gradients = scope.multiply(gradients, parts.prescales)
        scaled = scope.multiply(gradients, parts.factors)
        mean = known.mean
        policy = directed(self.clip, scope)
        if policy is not None and not scope.examples:
            mean = next_mean(policy.decay, mean, scaled, all_finite(norms))
        scaled = join(scope.perturb(scaled, known.step))
        if not isinstance(state, ClipState):
            # A state of its own kind, or none, as optax's stateless transforms take it.
            return scaled, state, parts
        step = jnp.asarray(optax.safe_increment(known.step))
        return scaled, ClipState(step, policies, mean), parts

    def _along(
        self, gradients: optax.Updates, norms: Any, mean: Any, metric: Any
    ) -> Any:
        """How the gradients lie to others, where a policy asks."""
        scope = self.scope
        if directed(self.clip, scope) is None:
            return None
        if not isinstance(scope, PerExample):
            return along(gradients, norms, direction(mean, metric, scope), scope)
        need_others(norms.size)
        axes = axes_of(gradients, scope.axis_name)
        own = own_of(norms, axes)
        counted = jnp.ones(own.shape, bool)
        how = own, counted, metric, scope, axes
        return of_all(along_others(gradients, *how), axes)

    def check_override(self, clip: Any) -> None:
        """Raises where a rule given to `update` is not one that it can follow."""
        check_rules(clip)
        if has_state(clip):
            raise ValueError(
                "`clip` given to `update` must not be adaptive: its state would be "
                "lost. Hand an `Adaptive` rule to `as_transform`."
            )
        if not self.counts and reads_step(clip):
            raise ValueError(
                "`clip` given to `update` has a threshold that depends on the step, "
                "which this transform does not count, since its own rule does not. "
                f"Hand the schedule to `as_transform`. Got {clip!r}."
            )


def _first_step() -> Int[Array, ""]:
    return jnp.zeros((), jnp.int32)


def as_transform(
    clip: Rules, scope: AbstractScope = PerTree()
) -> optax.GradientTransformationExtraArgs:
    """A clipping rule as an optax transform, to be chained with any optimiser.

    ```python
    optax.chain(jaxclip.as_transform(jaxclip.HardClip(1.0)), optax.adam(1e-3))
    ```

    Away from the corners it agrees with `optax.clip_by_global_norm`. At them: a zero
    gradient has derivative one and not NaN, an infinite threshold is the identity, a
    norm whose square overflows is still right, a half-precision leaf has its norm taken
    in float32, and a gradient with a number that is not finite stays so: wrap it in
    [`jaxclip.skip_nonfinite`][] or [`jaxclip.zero_nonfinite`][] where that may happen.

    Gradients may be sharded over a mesh in any way, and stay as they are: no numbers
    travel but sums of squares. What is no gradient in the pytree (a function in a
    model, a boolean, a key) passes as it is; integers are taken for floats, and become
    such. Of a sparse matrix the entries are clipped.

    A threshold among an optimiser's hyperparameters is one of the function that is
    injected, `optax.inject_hyperparams(lambda c: as_transform(HardClip(c)))(c=1.0)`: of
    `inject_hyperparams(as_transform)` it would not be.

    Thresholds that live among a user's own parameters, to be trained with them, are
    handed to `update` at each step, `update(g, state, params, clip=HardClip(c))`: optax
    passes the keyword down a chain.

    **Arguments:**

    - `clip`: the rule; a threshold that is a function is evaluated at the number of
        updates made before this one. Or an [`jaxclip.Adaptive`][] one; or a pytree with
        a rule for each leaf of the gradient, for a scope with a norm for each.
    - `scope`: what a norm is taken over.

    **Returns:**

    An `optax.GradientTransformationExtraArgs`. Its state is `optax.EmptyState`, as of
    `optax.clip_by_global_norm`, whose checkpoints it takes; or a
    [`jaxclip.transform.ClipState`][] where the rule depends on the step or on earlier
    gradients, or the scope adds noise.

    **Raises:**

    A `ValueError` where `clip` is no rule, and at an update where it does not match the
    gradient.
    """
    check_rules(clip)
    if not isinstance(scope, AbstractScope):
        raise ValueError(
            "`scope` must be what norms are taken over, such as `PerTree()` or "
            f"`PerLeaf()`. Got {scope!r}."
        )
    directed(clip, scope)
    return _transform(clip, scope, scope.reads_step or reads_step(clip))


def counting(
    clip: Rules, scope: AbstractScope = PerTree()
) -> optax.GradientTransformationExtraArgs:
    """The same, with a state that counts the updates in any case."""
    return _transform(clip, scope, True)


def _transform(
    clip: Rules, scope: AbstractScope, counts: bool
) -> optax.GradientTransformationExtraArgs:
    clipping = Clipping(clip, scope, counts)

    def init(params: optax.Params) -> ClipState | optax.EmptyState:
        return clipping.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        clip: Rules | None = None,
        metric: optax.Params | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, Any]:
        del others
        scaled, state, _ = clipping.examine(updates, state, params, clip, metric)
        return scaled, state

    # Beside the function and not in the transform, which stays a pair of functions: it
    # may be copied, be a leaf of a pytree, or an argument of `equinox.filter_jit`.
    update.clipping = clipping  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
