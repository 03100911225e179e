"""Guards: what leaves out a whole step, or a part of one.

Clipping by itself hands on what is not finite, and shortens a spike, which then moves
the momentum of the optimiser that follows all the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from .._types import PyTree
from ..clip import AbstractClip, Adaptive
from ._as_transform import Clipping
from ._parts import check_rules
from ._scope import AbstractScope, PerTree
from ._step_if import step_if
from ._trees import all_finite, numbers_of, split


class GuardState(NamedTuple):
    """The state of a guard.

    - `inner`: the state of the wrapped transform.
    - `nonfinite`: how many updates held a NaN or an infinity so far.
    """

    inner: PyTree[Array]
    nonfinite: Int[Array, ""]


class SpikeState(NamedTuple):
    """The state of [`jaxclip.skip_spikes`][].

    - `inner`: the state of the wrapped transform.
    - `watched`: the state of the rule whose threshold tells a spike.
    - `skipped`: how many steps were left out so far.
    """

    inner: PyTree[Array]
    watched: Any
    skipped: Int[Array, ""]


def skip_nonfinite(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Skips an update whose gradient holds a number that is not finite, and counts it.

    What comes out is zero and the state is left as it was, as if the step had not been;
    unlike `optax.apply_if_finite` it never gives up.

    **Arguments:**

    - `transform`: what is guarded: best the whole optimiser, so that no momentum moves.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a
    [`jaxclip.transform.GuardState`][].
    """
    guarded = optax.with_extra_args_support(transform)

    def update(
        updates: optax.Updates,
        state: GuardState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, GuardState]:
        finite = all_finite(numbers_of(updates))
        step = step_if(finite, guarded, updates, state.inner, params, extra)
        return step[0], GuardState(step[1], _count(state.nonfinite, finite))

    return _guard(guarded, update)


def skip_spikes(
    transform: optax.GradientTransformation,
    clip: AbstractClip | Adaptive,
    scope: AbstractScope = PerTree(),
) -> optax.GradientTransformationExtraArgs:
    """Leaves out a whole step where the gradient's norm is a spike, and counts it.

    ```python
    spike = jaxclip.Adaptive(jaxclip.policy.AdaGC(3.0))
    optimiser = jaxclip.skip_spikes(optax.adam(1e-3), spike)
    ```

    A spike is a norm above the rule's threshold, or one that is not finite. What comes
    out is then zero and the state of `transform` is left as it was, its moments
    included: `optax.chain(as_transform(SkipClip(c)), optax.adam(lr))` would hand Adam a
    gradient of zero, which moves the parameters and both moments. The threshold itself
    sees every norm. Whether gradients that have become larger for good pass again is
    therefore its policy's to say: after a few steps with [`jaxclip.policy.AdaGC`][] or
    [`jaxclip.policy.Percentile`][]; never with a fixed threshold, nor with
    [`jaxclip.policy.ZScore`][], in whose averages an outlier counts as no more than
    what it is clipped to. Watch `skipped`.

    **Arguments:**

    - `transform`: the whole optimiser, clipping included where a gradient that is no
        spike is to be clipped.
    - `clip`: the rule whose threshold parts spikes from the rest, such as
        `Adaptive(AdaGC(3.0))` or `HardClip(100.0)`; its factor is not used.
    - `scope`: what norms are taken over; with several, one of them is enough.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a
    [`jaxclip.transform.SpikeState`][].

    **Raises:**

    A `ValueError` where `clip` is no rule, or has no threshold.
    """
    guarded = optax.with_extra_args_support(transform)
    watch = _watch(clip, scope)

    def init(params: optax.Params) -> SpikeState:
        skipped = jnp.zeros((), jnp.int32)
        return SpikeState(guarded.init(params), watch.init(params), skipped)

    def update(
        updates: optax.Updates,
        state: SpikeState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SpikeState]:
        _, watched, parts = watch.examine(updates, state.watched, params)
        norms, thresholds = map(jax.tree.leaves, (parts.norms, parts.thresholds))
        below = [n <= t for n, t in zip(norms, thresholds, strict=True)]
        usual = all_finite(norms) & jnp.all(jnp.array([jnp.all(b) for b in below]))
        step = step_if(usual, guarded, updates, state.inner, params, extra)
        return step[0], SpikeState(step[1], watched, _count(state.skipped, usual))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def _watch(clip: AbstractClip | Adaptive, scope: AbstractScope) -> Clipping:
    """What tells a spike, by a rule with a threshold."""
    check_rules(clip)
    adapts = isinstance(clip, Adaptive)
    if not (adapts or clip.kinks(0) or callable(getattr(clip, "threshold", None))):
        raise ValueError(
            "`clip` must have a threshold, which parts spikes from the rest, such as "
            f"`HardClip(100.0)` or `Adaptive(AdaGC(3.0))`. Got {clip!r}."
        )
    return Clipping(clip, scope, counts=True)


def zero_nonfinite(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Replaces the numbers of a gradient that are not finite by 0, and counts the
    updates that held one.

    The rest of the gradient is clipped and goes on.

    **Arguments:**

    - `transform`: what is guarded.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a
    [`jaxclip.transform.GuardState`][].
    """
    guarded = optax.with_extra_args_support(transform)

    def update(
        updates: optax.Updates,
        state: GuardState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, GuardState]:
        gradients, _, join = split(updates)
        count = _count(state.nonfinite, all_finite(gradients))
        gradients = jax.tree.map(
            lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)),
            gradients,
        )
        updates = join(gradients)
        updates, inner = guarded.update(updates, state.inner, params, **extra)
        return updates, GuardState(inner, count)

    return _guard(guarded, update)


def _count(before: Int[Array, ""], good: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where(good, before, optax.safe_increment(before))


def _guard(
    guarded: optax.GradientTransformationExtraArgs, update: Any
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> GuardState:
        return GuardState(guarded.init(params), jnp.zeros((), jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
