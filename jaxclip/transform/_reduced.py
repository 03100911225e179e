"""From what each unit of a batch had to the mean or the sum, with its noise."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int

from .._checks import returns_a_number
from .._types import Key, Params, PyTree
from ._as_transform import ClipState
from ._examples_spread import axes_of, sum_of_all
from ._per_example import Engine
from ._pieces import Outcome
from ._scope import times
from ._units import Units, any_real, grouped, only_real, ungrouped, zero_unless
from ._varying import without_explicit_axes


class Examples(NamedTuple):
    """What the examples of a batch had, and what was done to them.

    - `losses`: shape `(n,)`, the loss of each example, 0 where it is masked.
    - `norms`: as the scope takes them, each with a leading axis of examples (of groups
        with `group`), 0 where it is masked. In the gradient's unit.
    - `factors`: what each was multiplied by, in the same form; 0 where it was left out.
    - `dropped`: how many were left out since their gradient was not finite.
    - `aux`: what else the loss returned, with a leading axis of examples; None without
        `has_aux`.
    """

    losses: Float[Array, " n"]
    norms: PyTree[Float[Array, "..."]]
    factors: PyTree[Float[Array, "..."]]
    dropped: Int[Array, ""]
    aux: Any


# A call that is not jitted would compile the loop over microbatches each time.
@eqx.filter_jit
def reduced(
    engine: Engine,
    params: Params,
    batch: PyTree[Array],
    mask: Bool[Array, " n"] | None,
    key: Key | None,
    clock: ClipState,
    metric: Params | None,
) -> tuple[Float[Array, ""], Examples, Params, ClipState]:
    """The value, what each example had, the gradient with its noise, and the state
    after the step.

    **Arguments:**

    - `mask`: which examples are real; None for all.
    - `key`: in place of the scope's own; None for that.
    - `clock`: the state; of its numbers only `step` is needed without adaptive rules.
    - `metric`: what a policy compares gradients in; None for the plain one.
    """
    numbers, rest = eqx.partition(engine, eqx.is_array)

    def run(numbers: Engine, params: Params, *others: Any) -> Any:
        return _reduced(eqx.combine(numbers, rest), params, *others)

    arguments = (numbers, params, batch, mask, key, clock, metric)
    (value, examples, after), gradient = without_explicit_axes(run, params, *arguments)
    return value, examples, gradient, after


def _reduced(
    engine: Engine,
    params: Params,
    batch: PyTree[Array],
    mask: Bool[Array, " n"] | None,
    key: Key | None,
    clock: ClipState,
    metric: Params | None,
) -> tuple[tuple[Float[Array, ""], Examples, ClipState], Params]:
    engine = replace(engine, metric=metric)
    size = jnp.shape(jax.tree.leaves(batch)[0])[0]
    _check_loss(engine, params, batch)
    if not size:
        # One unit that counts in nothing: its shapes are those of a batch's.
        batch = jax.tree.map(partial(_zeros, engine.group), batch)
        mask = jnp.zeros(engine.group, bool)
    units = _units(engine, batch, mask)
    dtype = jnp.result_type(float)
    axes = axes_of((params, units), engine.scope.axis_name)
    count = sum_of_all(jnp.sum(any_real(units.real), dtype=dtype), axes)
    share = engine.scope.share(jnp.maximum(count, 1))
    outcome = engine.run(params, units, jnp.asarray(share), clock.policies, clock.step)
    kept = sum_of_all(jnp.sum(outcome.seen.kept, dtype=dtype), axes)
    certain = mask is None and not engine.drop_nonfinite
    if engine.drop_nonfinite:
        # The mean over those that are left, unless its denominator is given.
        share = engine.scope.share(jnp.maximum(kept, 1))
    scale = share / engine.scope.share(jnp.maximum(count, 1))

    def finish(total: Array, x: Array) -> Array:
        total = times(total, jnp.asarray(scale))
        # Of nobody the sum is 0, whatever was computed for the padding.
        total = total if certain else jnp.where(kept > 0, total, jnp.zeros_like(total))
        return total.astype(x.dtype)

    total = jax.tree.map(finish, sum_of_all(outcome.total, axes), params)
    scope = engine.scope if key is None else replace(engine.scope, key=key)
    gradient = scope.perturb(total, clock.step)
    values = zero_unless(outcome.seen.kept, outcome.seen.values)
    value = times(sum_of_all(jnp.sum(values), axes), jnp.asarray(share))
    dropped = (count - kept).astype(jnp.int32)
    examples = _examples(engine, units, outcome, dropped, size, certain)
    policies = outcome.policies if size else clock.policies
    return (value, examples, ClipState(_next(clock.step), policies)), gradient


def _check_loss(engine: Engine, params: Params, batch: PyTree[Array]) -> None:
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)

    def loss(params: Params, example: PyTree[Array]) -> Array:
        return engine.of_example(params, example)[0]

    returns_a_number("loss(params, example)", loss, params, example)


def _zeros(length: int, leaf: Array) -> Array:
    """An example so many times; of random keys, too."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros((length, *leaf.shape[1:]), leaf.dtype)
    zeros = _zeros(length, jr.key_data(leaf))
    return jr.wrap_key_data(zeros, impl=jr.key_impl(leaf))


def _units(engine: Engine, batch: PyTree[Array], mask: Array | None) -> Units:
    size = jnp.shape(jax.tree.leaves(batch)[0])[0]
    real = jnp.ones(size, bool) if mask is None else mask
    if mask is not None:
        batch = only_real(batch, mask)
    if engine.group == 1:
        return Units(batch, real)
    return Units(*grouped((batch, real), engine.group))


def _examples(
    engine: Engine,
    units: Units,
    outcome: Outcome,
    dropped: Int[Array, ""],
    size: int,
    certain: bool,
) -> Examples:
    """What is handed out, without what was put in the place of masked examples."""
    each = ungrouped((units.real, outcome.seen.losses, outcome.seen.aux), engine.group)
    real, losses, aux = jax.tree.map(lambda leaf: leaf[:size], each)
    norms, factors, there = jax.tree.map(
        lambda leaf: leaf[: size // engine.group],
        (outcome.seen.norms, outcome.factors, any_real(units.real)),
    )
    if not certain:
        losses, aux = (
            jax.tree.map(lambda leaf: zero_unless(real, leaf), tree)
            for tree in (losses, aux)
        )
        norms = jax.tree.map(lambda leaf: zero_unless(there, leaf), norms)
    return Examples(losses, norms, factors, dropped, aux)


def _next(step: Any) -> Int[Array, ""]:
    return jnp.asarray(optax.safe_increment(step))
