"""From norms to factors: the rules of an update, whatever their scope and threshold."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._types import PyTree, Step
from ..clip import AbstractClip, Adaptive
from ._scope import AbstractScope

# One rule for all parts, or a pytree of rules with one for each leaf.
Rules: TypeAlias = PyTree[AbstractClip | Adaptive]
# The state of each adaptive rule; empty for the others.
PolicyStates: TypeAlias = tuple[PyTree[Array], ...]


class Parts(NamedTuple):
    """What a rule saw and did, for each part of an update.

    - `norms`: as the scope takes them.
    - `factors`: what the parts are multiplied by.
    - `regimes`: between which of the rule's kinks a norm lies: 0 up to the first.
    """

    norms: PyTree[Float[Array, "..."]]
    factors: PyTree[Float[Array, "..."]]
    regimes: PyTree[Int[Array, "..."]]


def check_rules(clip: Any) -> None:
    """Raises where something in the pytree is no rule."""
    rules = jax.tree.leaves(clip, is_leaf=is_rule)
    if not rules or not all(is_rule(rule) for rule in rules):
        raise ValueError(
            "`clip` must be a clipping rule, such as `jaxclip.HardClip(1.0)`, or a "
            "pytree of them, such as `jax.tree.map(jaxclip.HardClip, thresholds)`. "
            f"Got {clip!r}."
        )


def has_state(clip: Rules) -> bool:
    """Whether one of the rules is adaptive."""
    rules = jax.tree.leaves(clip, is_leaf=is_rule)
    return any(isinstance(rule, Adaptive) for rule in rules)


def is_rule(value: Any) -> bool:
    """Whether it is something that a transform can clip by."""
    return isinstance(value, AbstractClip | Adaptive)


def init_policies(
    clip: Rules, scope: AbstractScope, params: PyTree[Array]
) -> PolicyStates:
    """The states of the adaptive rules before the first update."""
    if not has_state(clip):
        return ()
    parts = scope.parts(params)
    states, index = [], 0
    for rule, part in zip(_matched(clip, parts), jax.tree.leaves(parts), strict=True):
        # Each threshold has a number of its own: a policy may draw by it.
        numbers = jnp.arange(index, index + part.size, dtype=jnp.int32)
        index += part.size
        states.append(_init(rule, part.dtype, numbers))
    return tuple(states)


def _init(rule: AbstractClip | Adaptive, dtype: Any, numbers: Int[Array, " p"]) -> Any:
    if isinstance(rule, AbstractClip):
        return ()
    return jax.vmap(lambda number: rule.policy.init(dtype, number))(numbers)


def factors(
    clip: Rules,
    norms: PyTree[Float[Array, "..."]],
    states: PolicyStates,
    step: Step,
    examples: bool,
) -> tuple[Parts, PolicyStates]:
    """The factor of each part, and the policies' states after it.

    **Arguments:**

    - `norms`: as the scope takes them, with a leading axis of examples if `examples`.
    """
    leaves, structure = jax.tree.flatten(norms)
    states_before = states or ((),) * len(leaves)
    multipliers, regimes, states_after = [], [], []
    rules = _matched(clip, norms)
    for rule, norm, state in zip(rules, leaves, states_before, strict=True):
        if isinstance(rule, Adaptive):
            factor, regime, state = _adapt(rule, norm, state, step, examples)
        else:
            factor, regime = _apply(rule, norm, step)
        multipliers.append(factor)
        regimes.append(regime)
        states_after.append(state)
    parts = Parts(
        norms,
        jax.tree.unflatten(structure, multipliers),
        jax.tree.unflatten(structure, regimes),
    )
    return parts, tuple(states_after) if states else ()


def _apply(
    rule: AbstractClip, norm: Float[Array, "..."], step: Step
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """The factor of each norm, and how many kinks it lies above."""
    # A threshold may be of another precision than the gradient.
    with jax.numpy_dtype_promotion("standard"):
        above = [(norm > kink).astype(jnp.int32) for kink in rule.kinks(step)]
    return rule.factor(norm, step), sum(above, jnp.zeros(norm.shape, jnp.int32))


def _adapt(
    rule: Adaptive,
    norm: Float[Array, "..."],
    state: PyTree[Array],
    step: Step,
    examples: bool,
) -> tuple[Float[Array, "..."], Int[Array, "..."], PyTree[Array]]:
    """The same under a policy, whose states have an axis of parts."""

    def of_one_threshold(norms, state):
        settled, state = rule.at(norms, state, step)
        return *_apply(settled, norms, step), state

    shared = norm.shape[0] if examples else 1
    rows = jnp.moveaxis(norm.reshape(shared, -1), 0, 1)
    factor, regime, state = jax.vmap(of_one_threshold)(rows, state)

    def back(numbers):
        return jnp.moveaxis(numbers, 0, 1).reshape(norm.shape)

    return back(factor), back(regime), state


def _matched(clip: Rules, parts: PyTree[Any]) -> list[AbstractClip | Adaptive]:
    """The rule of each leaf of the norms."""
    if is_rule(clip):
        return [clip] * len(jax.tree.leaves(parts))
    try:
        full = jax.tree.broadcast(clip, parts, is_leaf=is_rule)
    except ValueError as error:
        raise ValueError(
            "`clip` is a pytree of rules that does not match what there are norms of: "
            "it needs a rule for each leaf of the gradient, and a scope with a norm "
            "for each, such as `PerLeaf()`. Got rules "
            f"{jax.tree.structure(clip, is_leaf=is_rule)} and norms "
            f"{jax.tree.structure(parts)}."
        ) from error
    return jax.tree.leaves(full, is_leaf=is_rule)
