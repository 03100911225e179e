"""The states of adaptive thresholds: where they lie, and how they are moved on.

What a policy remembers of one threshold is a small pytree. That of all thresholds of an
update is the same pytree with more axes:

- where each leaf of the gradient has one norm, an axis of leaves comes first, so that
  the state's structure does not depend on the model's;
- where it has many (a norm for each number, or each unit), each field holds a pytree
  like the parameters, as the moments of Adam do, and is sharded as they are.

Either way `optax.tree_map_params` tells rightly what belongs to a parameter.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from .._types import PyTree, Step
from ..clip import Adaptive, policy
from ._scope import AbstractScope
from ._trees import spread

PolicyState: TypeAlias = PyTree[Array]


def init_state(
    rule: Adaptive, scope: AbstractScope, parts: PyTree[Any], first: int
) -> PolicyState:
    """The state before the first update.

    **Arguments:**

    - `parts`: the shapes of the norms, without an axis of examples.
    - `first`: the number of the first of these thresholds, among all of a transform.
    """
    leaves, structure = jax.tree.flatten(parts)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))
    init = jax.vmap(lambda number: rule.policy.init(dtype, number))
    # optax asks with a pytree without leaves in place of the parameters.
    like = leaves or jax.tree.leaves(scope.parts([jnp.zeros((1, 1))]))
    if all(part.ndim == 0 for part in like):
        return init(first + jnp.arange(len(leaves), dtype=jnp.int32))
    if not leaves:
        return jax.tree.map(lambda _: parts, _one_state(rule, dtype))
    states = []
    for part in leaves:
        of = lambda number, part=part: rule.policy.init(part.dtype, number)  # noqa: E731
        for _ in range(part.ndim):
            of = jax.vmap(of)
        states.append(
            jax.tree.map(lambda x, p=part: spread(x, p), of(_numbers(part, first)))
        )
        first += part.size
    return _transposed(states, structure)


def adapt(
    rule: Adaptive,
    norms: PyTree[Float[Array, "..."]],
    state: PolicyState,
    step: Step,
    examples: bool,
    apply: Callable[..., tuple[Array, ...]],
    along: policy.Along | None = None,
    counted: Bool[Array, " n"] | None = None,
) -> tuple[list[PyTree[Array]], PolicyState]:
    """What `apply` makes of all norms under the policy, and the state after it.

    **Arguments:**

    - `along`: how the gradients lie to their running mean, for a policy that asks;
        there is one norm then.
    - `counted`: which examples count, for a policy that can leave some out.
    """
    leaves, structure = jax.tree.flatten(norms)
    if examples:
        # A policy sees them all, on whatever devices the examples lie.
        leaves = [_gathered(leaf) for leaf in leaves]
        along, counted = jax.tree.map(_gathered, (along, counted))
    elif along is not None:
        along = policy.Along(*(numbers[None] for numbers in along))

    def of_one(norms, state):
        """Of one threshold: its norm, or the vector of those of all examples."""
        rows = norms if examples else norms[None]
        settled, state = rule.at(rows, state, step, along, counted)
        columns = apply(settled, rows, step)
        return (columns if examples else [c[0] for c in columns]), state

    if all(leaf.ndim == examples for leaf in leaves):
        columns, state = _stacked(of_one, leaves, state)
        return [structure.unflatten(column) for column in columns], state
    outer = jax.tree.structure(_one_state(rule, leaves[0].dtype))
    inner = jax.tree.structure([0] * len(leaves))
    fields = [structure.flatten_up_to(field) for field in outer.flatten_up_to(state)]
    state = outer.unflatten(fields)
    states = (
        jax.tree.transpose(outer, inner, state) if fields else [state] * len(leaves)
    )
    rows, after = [], []
    for norm, before in zip(leaves, states, strict=True):
        of = of_one
        for _ in range(norm.ndim - examples):
            of = jax.vmap(of, (int(examples), 0), (int(examples), 0))
        part = jax.eval_shape(lambda n: n[0], norm) if examples else jax.typeof(norm)
        row, new = of(norm, jax.tree.map(lambda x, p=part: spread(x, p), before))
        rows.append(row)
        after.append(new)
    columns = [structure.unflatten(column) for column in zip(*rows, strict=True)]
    return columns, _transposed(after, structure)


def _gathered(numbers: Array) -> Array:
    """The numbers with their first axis on every device, under explicit mesh axes."""
    spec = jax.typeof(numbers).sharding.spec
    if not spec or spec[0] is None:
        return numbers
    return jax.sharding.reshard(numbers, PartitionSpec(None, *spec[1:]))


def _stacked(
    of_one: Callable[..., Any], leaves: list[Array], state: PolicyState
) -> tuple[list[list[Array]], PolicyState]:
    """For leaves with one norm each, all of them at once."""
    if not leaves:
        return [[], [], [], []], state
    with jax.numpy_dtype_promotion("standard"):
        rows = jnp.stack(leaves, axis=-1)
    columns, state = jax.vmap(of_one, (-1, 0), (-1, 0))(rows, state)
    kept = [leaf.dtype for leaf in leaves]

    def back(column):
        pieces = [column[..., i] for i in range(len(leaves))]
        if not jnp.issubdtype(column.dtype, jnp.floating):
            return pieces
        return [piece.astype(d) for piece, d in zip(pieces, kept, strict=True)]

    return [back(column) for column in columns], state


def _one_state(rule: Adaptive, dtype: Any) -> PyTree[Any]:
    """The shapes of what the policy remembers of one threshold."""
    number = jnp.zeros((), jnp.int32)
    return jax.eval_shape(lambda number: rule.policy.init(dtype, number), number)


def _transposed(states: list[PyTree[Array]], structure: Any) -> PolicyState:
    """A state of pytrees like the parameters, from one for each of their leaves."""
    return jax.tree.map(lambda *fields: structure.unflatten(fields), *states)


def _numbers(part: Any, first: int) -> Int[Array, "..."]:
    """Consecutive numbers from `first` in the shape of a part."""
    flat = jnp.zeros(part.shape, jnp.int32)
    for axis, size in enumerate(part.shape):
        flat = flat * size + jax.lax.broadcasted_iota(jnp.int32, part.shape, axis)
    return spread(flat + first, part)
