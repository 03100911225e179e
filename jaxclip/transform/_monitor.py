"""What a clipping transform does, read from its state while training runs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._schedule import Constant
from .._types import PyTree
from ..clip import AbstractClip, Adaptive
from ._as_transform import ClipState, ClipTransformation
from ._parts import Parts, Rules, is_rule

_LARGEST = jnp.iinfo(jnp.int32).max


class MonitorState(NamedTuple):
    """What [`jaxclip.monitor`][] has seen; a pytree of arrays of fixed types.

    - `inner`: the state of the transform that is watched, a [`jaxclip.ClipState`][].
    - `norm`: the norm before clipping at the last update, one number for each leaf of
        what the scope takes norms of: one for `PerTree`, a tree of them for `PerLeaf`.
        Where a leaf has many parts (units, coordinates, examples), their mean.
    - `factor`: the factor at the last update, in the same form.
    - `clipped`: the fraction of the parts whose factor was below 1, averaged over all
        updates so far.
    - `regimes`: shape `(kinks + 1,)`, how many parts had a norm up to the rule's first
        kink, between the first and the second, and so on: for a hard clip those that
        were left alone and those that were shortened, for `DeltaClip` its three
        regimes. They stop counting at 2^31 - 1.
    - `nonfinite`: how many updates held a number that was not finite. They count in
        nothing else but `norm` and `factor`.
    """

    inner: Any
    norm: PyTree[Float[Array, ""]]
    factor: PyTree[Float[Array, ""]]
    clipped: Float[Array, ""]
    regimes: Int[Array, " r"]
    nonfinite: Int[Array, ""]


def monitor(transform: ClipTransformation) -> optax.GradientTransformationExtraArgs:
    """The same transform, with what it saw and did in its state.

    ```python
    clip = jaxclip.monitor(jaxclip.as_transform(jaxclip.HardClip(1.0)))
    optimiser = optax.chain(clip, optax.adam(1e-3))
    ...
    state[0].clipped  # the fraction of updates clipped so far
    ```

    The state is one of arrays, under `jit` and in the carry of a `scan`.

    **Arguments:**

    - `transform`: what [`jaxclip.as_transform`][] returned. In a chain wrap this link
        and not the chain; guards such as [`jaxclip.skip_nonfinite`][] go around.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a
    [`jaxclip.transform.MonitorState`][].

    **Raises:**

    A `ValueError` where `transform` is another transform, of which only the outside is
    known.
    """
    _need_clip(transform)

    def init(params: optax.Params) -> MonitorState:
        parts = transform.scope.parts(params)
        zeros = jax.tree.map(lambda part: jnp.zeros((), part.dtype), parts)
        count = jnp.zeros((), jnp.int32)
        return MonitorState(
            inner=transform.init(params),
            norm=zeros,
            factor=zeros,
            clipped=jnp.zeros(()),
            regimes=jnp.zeros(_regimes(transform.clip), jnp.int32),
            nonfinite=count,
        )

    def update(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        *,
        clip: Rules | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        del others
        updates, inner, parts = transform.examine(updates, state.inner, params, clip)
        # Statistics of leaves of several precisions.
        with jax.numpy_dtype_promotion("standard"):
            return updates, _record(state, inner, parts)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def _need_clip(transform: Any) -> None:
    if not isinstance(transform, ClipTransformation):
        raise ValueError(
            "`monitor` watches what `as_transform` returns, such as "
            "`monitor(as_transform(HardClip(1.0)))`; wrap that link of a chain and not "
            f"the chain. Got {transform!r}."
        )


def _record(state: MonitorState, inner: ClipState, parts: Parts) -> MonitorState:
    norms, factors, regimes = (_flat(tree) for tree in parts)
    finite = jnp.all(jnp.isfinite(norms))
    below = jnp.mean(factors < 1) if factors.size else jnp.zeros(())
    # The mean over the finite updates so far; a count of parts would overflow.
    updates = jnp.maximum(inner.step - state.nonfinite, 1)
    clipped = state.clipped + (below - state.clipped) / updates
    size = state.regimes.size
    counts = jnp.bincount(regimes, length=size).astype(jnp.int32)
    total = state.regimes + jnp.minimum(counts, _LARGEST - state.regimes)
    return MonitorState(
        inner=inner,
        norm=jax.tree.map(_mean, parts.norms, state.norm),
        factor=jax.tree.map(_mean, parts.factors, state.factor),
        clipped=jnp.where(finite, clipped, state.clipped).astype(state.clipped.dtype),
        regimes=jnp.where(finite, total, state.regimes),
        nonfinite=state.nonfinite + jnp.where(finite, 0, 1).astype(jnp.int32),
    )


def _flat(tree: PyTree[Array]) -> Array:
    """All numbers of a tree in one vector."""
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, jnp.int32)


def _mean(numbers: Array, before: Float[Array, ""]) -> Float[Array, ""]:
    mean = jnp.mean(numbers) if numbers.size else jnp.zeros(())
    return mean.astype(before.dtype)


def _regimes(clip: Rules) -> int:
    """How many regimes the rule has; the most that one of several rules has."""
    return 1 + max(
        len(_settled(rule).kinks(0)) for rule in jax.tree.leaves(clip, is_leaf=is_rule)
    )


def _settled(rule: AbstractClip | Adaptive) -> AbstractClip:
    # Whatever its threshold: the number of kinks is asked for, not where they are.
    return rule.rule(Constant(1.0)) if isinstance(rule, Adaptive) else rule
