"""Guards against gradients that are not finite. Clipping by itself hands them on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from .._checks import is_traced
from .._types import PyTree


class GuardState(NamedTuple):
    """The state of a guard.

    - `inner`: the state of the wrapped transform.
    - `nonfinite`: how many updates held a NaN or an infinity so far.
    """

    inner: PyTree[Array]
    nonfinite: Int[Array, ""]


def skip_nonfinite(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Skips an update whose gradient holds a number that is not finite, and counts it.

    What comes out is zero and the state is left as it was, as if the step had not been;
    unlike `optax.apply_if_finite` it never gives up, and looks at the gradient and not
    at what the transform makes of it.

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
        finite = all_finite(updates)

        # Behind a condition, so that what is skipped is not computed either.
        def go(updates):
            return guarded.update(updates, state.inner, params, **extra)

        shapes, _ = jax.eval_shape(go, updates)

        def skip(updates):
            del updates
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return zeros, state.inner

        if is_traced(finite):
            updates, inner = jax.lax.cond(finite, go, skip, updates)
        else:
            # An update that is not jitted would compile the condition each time.
            updates, inner = go(updates) if finite else skip(updates)
        return updates, GuardState(inner, _count(state, finite))

    return _guard(guarded, update)


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
        count = _count(state, all_finite(updates))
        updates = jax.tree.map(
            lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)),
            updates,
        )
        updates, inner = guarded.update(updates, state.inner, params, **extra)
        return updates, GuardState(inner, count)

    return _guard(guarded, update)


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether all numbers of a tree are finite."""
    each = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(each))


def _count(state: GuardState, finite: Bool[Array, ""]) -> Int[Array, ""]:
    more = optax.safe_increment(state.nonfinite)
    return jnp.where(finite, state.nonfinite, more)


def _guard(
    guarded: optax.GradientTransformationExtraArgs, update: Any
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> GuardState:
        return GuardState(guarded.init(params), jnp.zeros((), jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree
