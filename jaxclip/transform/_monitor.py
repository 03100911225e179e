"""What a clipping transform does, read from its state while training runs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._checks import count
from .._schedule import Constant
from ..clip import AbstractClip, Adaptive
from ._as_transform import Clipping
from ._parts import Parts, Rules, is_rule
from ._trees import split

_LARGEST = jnp.iinfo(jnp.int32).max


class MonitorState(NamedTuple):
    """What [`jaxclip.monitor`][] has seen; a pytree of arrays of fixed types.

    A quantity of the last update is one number where there is one norm, and a vector of
    one number for each leaf of what the scope takes norms of, in the order of
    `jax.tree.leaves`, where those are a pytree. Where a leaf has many parts (units,
    coordinates, examples), it is their mean. [`jaxclip.clip_metrics`][] gives all of it
    names.

    - `inner`: the state of the transform that is watched.
    - `updates`: how many updates there were.
    - `norm`: the norm before clipping at the last update.
    - `factor`: the factor at the last update.
    - `threshold`: the norm at which the rule set in at the last update.
    - `removed`: the share of the gradient's length that the last update took away,
        1 - sum(factor * norm) / sum(norm) over all parts.
    - `clipped`: the fraction of the parts whose factor was below 1, averaged over all
        updates so far.
    - `recent`: the same over about the last `window` updates.
    - `regimes`: shape `(kinks + 1,)`, how many parts had a norm up to the rule's first
        kink, between the first and the second, and so on: for a hard clip those that
        were left alone and those that were shortened, for `DeltaClip` its three
        regimes. They stop counting at 2^31 - 1.
    - `nonfinite`: how many updates held a number that was not finite. They count in
        nothing else but `updates`, `norm`, `factor` and `threshold`.
    """

    inner: Any
    updates: Int[Array, ""]
    norm: Float[Array, "..."]
    factor: Float[Array, "..."]
    threshold: Float[Array, "..."]
    removed: Float[Array, ""]
    clipped: Float[Array, ""]
    recent: Float[Array, ""]
    regimes: Int[Array, " r"]
    nonfinite: Int[Array, ""]


def monitor(
    transform: optax.GradientTransformation, *, window: int = 100
) -> optax.GradientTransformationExtraArgs:
    """The same transform, with what it saw and did in its state.

    ```python
    clip = jaxclip.monitor(jaxclip.as_transform(jaxclip.HardClip(1.0)))
    optimiser = optax.chain(clip, optax.adam(1e-3))
    ...
    jaxclip.clip_metrics(state)["clipped"]  # the fraction of updates clipped so far
    ```

    The state is one of arrays, under `jit` and in the carry of a `scan`.

    **Arguments:**

    - `transform`: what [`jaxclip.as_transform`][] returned. In a chain wrap this link
        and not the chain; guards such as [`jaxclip.skip_nonfinite`][] go around.
    - `window`: over how many updates `recent` is averaged: evenly over the first ones,
        then with weights that fall by a factor of e in so many.

    **Returns:**

    An `optax.GradientTransformationExtraArgs` whose state is a
    [`jaxclip.transform.MonitorState`][].

    **Raises:**

    A `ValueError` where `transform` is another transform, of which only the outside is
    known.
    """
    watched = _need_clip(transform)
    count("window", window)

    def init(params: optax.Params) -> MonitorState:
        return _start(watched, params)

    def update(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        *,
        clip: Rules | None = None,
        metric: optax.Params | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        del others
        updates, inner, parts = watched.examine(
            updates, state.inner, params, clip, metric
        )
        # Statistics of leaves of several precisions.
        with jax.numpy_dtype_promotion("standard"):
            return updates, _record(state, inner, parts, window)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def _start(watched: Clipping, params: optax.Params) -> MonitorState:
    parts = watched.scope.parts(split(params)[0])
    leaves = jax.tree.leaves(parts)
    # A tree of norms becomes a vector, so that no field looks like the parameters.
    shape = () if parts is (leaves or [None])[0] else (len(leaves),)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))
    # Each its own array, not one in several places: a buffer can be donated once.
    return MonitorState(
        inner=watched.init(params),
        updates=jnp.zeros((), jnp.int32),
        norm=jnp.zeros(shape, dtype),
        factor=jnp.zeros(shape, dtype),
        threshold=jnp.zeros(shape, dtype),
        removed=jnp.zeros((), dtype),
        clipped=jnp.zeros((), dtype),
        recent=jnp.zeros((), dtype),
        regimes=jnp.zeros(_regimes(watched.clip), jnp.int32),
        nonfinite=jnp.zeros((), jnp.int32),
    )


def _need_clip(transform: Any) -> Clipping:
    clipping = getattr(getattr(transform, "update", None), "clipping", None)
    if not isinstance(clipping, Clipping):
        raise ValueError(
            "`monitor` watches what `as_transform` returns, such as "
            "`monitor(as_transform(HardClip(1.0)))`; wrap that link of a chain and not "
            f"the chain. Got {transform!r}."
        )
    return clipping


def _record(state: MonitorState, inner: Any, parts: Parts, window: int) -> MonitorState:
    norms, factors, regimes, thresholds = (
        jax.tree.leaves(tree)
        for tree in (parts.norms, parts.factors, parts.regimes, parts.thresholds)
    )
    shrunk = jax.tree.map(jnp.multiply, parts.factors, parts.prescales)
    # Sums over leaves as they lie: they may be sharded.
    size = max(sum(leaf.size for leaf in norms), 1)
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(n)) for n in norms]))
    below = _sum(jnp.sum(f < 1) for f in factors) / size
    before = _sum(map(jnp.sum, norms))
    after = _sum(map(jnp.sum, map(jnp.multiply, jax.tree.leaves(shrunk), norms)))
    removed = 1 - after / jnp.where(before > 0, before, 1.0)
    number = state.updates + 1 - state.nonfinite
    counts = jnp.array(
        [_sum(jnp.sum(r == k) for r in regimes) for k in range(state.regimes.size)]
    ).astype(jnp.int32)

    def average(mean, weight):
        return (mean + (below - mean) / weight).astype(mean.dtype)

    def if_finite(new, old):
        return jnp.where(finite, new, old).astype(old.dtype)

    return MonitorState(
        inner=inner,
        updates=jnp.asarray(optax.safe_increment(state.updates)),
        norm=_means(norms, state.norm),
        factor=_means(jax.tree.leaves(shrunk), state.factor),
        threshold=_means(thresholds, state.threshold),
        removed=if_finite(jnp.where(before > 0, removed, 0.0), state.removed),
        # The mean over the finite updates so far; a count of parts would overflow.
        clipped=if_finite(average(state.clipped, number), state.clipped),
        recent=if_finite(
            average(state.recent, jnp.minimum(number, window)), state.recent
        ),
        regimes=if_finite(
            state.regimes + jnp.minimum(counts, _LARGEST - state.regimes), state.regimes
        ),
        nonfinite=state.nonfinite + jnp.where(finite, 0, 1).astype(jnp.int32),
    )


def _sum(numbers: Any) -> Array:
    return jnp.sum(jnp.array([jnp.asarray(n) for n in numbers] or [0.0]))


def _means(leaves: list[Array], before: Float[Array, "..."]) -> Float[Array, "..."]:
    """The mean of each leaf, in the form of what was there before."""
    means = [jnp.mean(leaf) if leaf.size else jnp.zeros(()) for leaf in leaves]
    return jnp.array(means).reshape(before.shape).astype(before.dtype)


def _regimes(clip: Rules) -> int:
    """How many regimes the rule has; the most that one of several rules has."""
    return 1 + max(
        len(_settled(rule).kinks(0)) for rule in jax.tree.leaves(clip, is_leaf=is_rule)
    )


def _settled(rule: AbstractClip | Adaptive) -> AbstractClip:
    # Whatever its threshold: the number of kinks is asked for, not where they are.
    return rule.rule(Constant(1.0)) if isinstance(rule, Adaptive) else rule
