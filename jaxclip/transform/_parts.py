"""From norms to factors: the rules of an update, whatever their scope and threshold."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._types import PyTree, Step
from ..clip import AbstractClip, Adaptive, policy
from ._policy_state import PolicyState, adapt, init_state
from ._scope import AbstractScope

# One rule for all parts, or a pytree of rules with one for each leaf.
Rules: TypeAlias = PyTree[AbstractClip | Adaptive]
# The state of each adaptive rule in the pytree of rules; empty where none is adaptive.
PolicyStates: TypeAlias = tuple[PolicyState, ...]


class Parts(NamedTuple):
    """What a rule saw and did, for each part of an update.

    - `norms`: as the scope takes them.
    - `factors`: what the parts are multiplied by.
    - `prescales`: what they are multiplied by before that: 1, but where no float can
        hold a factor so small, which is then the product of this and of `factors`.
    - `regimes`: between which of the rule's kinks a norm lies: 0 up to the first.
    - `thresholds`: the norm at which the rule sets in: its first kink, or for a smooth
        rule its threshold; infinite for a rule that has neither.
    """

    norms: PyTree[Float[Array, "..."]]
    factors: PyTree[Float[Array, "..."]]
    prescales: PyTree[Float[Array, "..."]]
    regimes: PyTree[Int[Array, "..."]]
    thresholds: PyTree[Float[Array, "..."]]


def check_rules(clip: Any) -> None:
    """Raises where something in the pytree is no rule."""
    rules = jax.tree.leaves(clip, is_leaf=lambda v: is_rule(v) or _is_policy(v))
    if any(map(_is_policy, rules)):
        raise ValueError(
            "`clip` must be a clipping rule, and a policy is where one gets its "
            f"threshold from: `jaxclip.Adaptive(policy)`. Got {clip!r}."
        )
    if not rules or not all(is_rule(rule) for rule in rules):
        raise ValueError(
            "`clip` must be a clipping rule, such as `jaxclip.HardClip(1.0)`, or a "
            "pytree of them, such as `jax.tree.map(jaxclip.HardClip, thresholds)`. "
            f"Got {clip!r}."
        )


def _is_policy(value: Any) -> bool:
    return isinstance(value, policy.AbstractPolicy)


def has_state(clip: Rules) -> bool:
    """Whether one of the rules is adaptive."""
    rules = jax.tree.leaves(clip, is_leaf=is_rule)
    return any(isinstance(rule, Adaptive) for rule in rules)


def is_rule(value: Any) -> bool:
    """Whether it is something that a transform can clip by."""
    return isinstance(value, AbstractClip | Adaptive)


def reads_step(clip: Rules) -> bool:
    """Whether one of the rules depends on the step."""
    rules = jax.tree.leaves(clip, is_leaf=is_rule)
    return any(isinstance(rule, Adaptive) or _reads_step(rule) for rule in rules)


def _reads_step(rule: AbstractClip) -> bool:
    def of(step):
        return rule.factor(jnp.ones(()), step), rule.kinks(step)

    try:
        jaxpr = jax.make_jaxpr(of)(jnp.zeros((), jnp.int32)).jaxpr
    except jax.errors.ConcretizationTypeError:
        # A schedule in Python, which branches on the step's value.
        return True
    (step,) = jaxpr.invars
    used = [v for eqn in jaxpr.eqns for v in eqn.invars]
    return any(variable is step for variable in (*used, *jaxpr.outvars))


def init_policies(
    clip: Rules, scope: AbstractScope, params: PyTree[Array]
) -> PolicyStates:
    """The states of the adaptive rules before the first update."""
    if not has_state(clip):
        return ()
    parts = scope.parts(params)
    states, index = [], 0
    for rule, group in _groups(clip, parts):
        state = ()
        if isinstance(rule, Adaptive):
            # Each threshold has a number of its own: a policy may draw by it.
            state = init_state(rule, scope, group, index)
        index += sum(part.size for part in jax.tree.leaves(group))
        states.append(state)
    return tuple(states)


def factors(
    clip: Rules,
    norms: PyTree[Float[Array, "..."]],
    states: PolicyStates,
    step: Step,
    examples: bool,
    along: policy.Along | None = None,
    counted: Bool[Array, " n"] | None = None,
) -> tuple[Parts, PolicyStates]:
    """The factor of each part, and the policies' states after it.

    **Arguments:**

    - `norms`: as the scope takes them, with a leading axis of examples if `examples`.
    - `along`: how the gradients lie to their running mean, where the one rule asks.
    - `counted`: which examples thresholds may adapt to; all by default.
    """
    groups = _groups(clip, norms)
    seen, after = [], []
    for (rule, group), state in zip(groups, states or ((),) * len(groups), strict=True):
        if isinstance(rule, Adaptive):
            how = step, examples, apply, along, counted
            columns, state = adapt(rule, group, state, *how)
        else:
            leaves, structure = jax.tree.flatten(group)
            rows = [apply(rule, norm, step) for norm in leaves]
            columns = [
                structure.unflatten([row[i] for row in rows])
                for i in range(len(Parts._fields) - 1)
            ]
        seen.append(columns)
        after.append(state)
    columns = [_joined(clip, list(column)) for column in zip(*seen, strict=True)]
    parts = Parts(norms, *columns)
    if examples:
        # The sum over examples has one weight for each: a product that no float holds
        # leaves the example out.
        whole = jax.tree.map(jnp.multiply, parts.factors, parts.prescales)
        ones = jax.tree.map(jnp.ones_like, parts.prescales)
        parts = parts._replace(factors=whole, prescales=ones)
    return parts, tuple(after) if states else ()


def apply(
    rule: AbstractClip, norm: Float[Array, "..."], step: Step
) -> tuple[Array, ...]:
    """Of each norm what `Parts` has, in its order."""
    kinks = rule.kinks(step)
    smooth = getattr(rule, "threshold", None)
    # A threshold may be of another precision than the gradient.
    with jax.numpy_dtype_promotion("standard"):
        above = [(norm > kink).astype(jnp.int32) for kink in kinks]
        regime = sum(above, jnp.zeros_like(norm, jnp.int32))
        first = kinks[0] if kinks else smooth(step) if callable(smooth) else jnp.inf
        threshold = jnp.zeros_like(norm) + jnp.asarray(first).astype(norm.dtype)
    factor = rule.factor(norm, step)
    factor, prescale = _representable(rule, norm, step, factor)
    return factor, prescale, regime, threshold


def _representable(
    rule: AbstractClip, norm: Float[Array, "..."], step: Step, factor: Array
) -> tuple[Array, Array]:
    """The factor as a product of two, where it alone is below the smallest float.

    A gradient of norm 1e38 that is clipped to 1 has a factor that is flushed to zero,
    and would be dropped. There the rule is asked at a smaller norm, to which the
    gradient is shortened first. A rule that keeps a fraction of the longest gradients
    has no such factor, and one that drops them is asked in vain.
    """
    most = jnp.asarray(float(jnp.finfo(norm.dtype).max) ** 0.5, norm.dtype)
    lost = (factor == 0) & (norm > most)
    safe = jnp.where(lost, norm, most)
    prescale = jnp.where(lost, most / safe, jnp.ones_like(norm))
    shorter = rule.factor(jnp.minimum(norm, most), step)
    return jnp.where(lost, shorter, factor), prescale


def _groups(clip: Rules, tree: PyTree[Any]) -> list[tuple[Any, PyTree[Any]]]:
    """Each rule, with the norms that it is for."""
    if is_rule(clip):
        return [(clip, tree)]
    rules, structure = jax.tree.flatten(clip, is_leaf=is_rule)
    if not jax.tree.leaves(tree):
        return [(rule, tree) for rule in rules]
    try:
        return list(zip(rules, structure.flatten_up_to(tree), strict=True))
    except ValueError as error:
        raise ValueError(
            "`clip` is a pytree of rules that does not match what there are norms of: "
            "it needs a rule for each leaf of the gradient, and a scope with a norm "
            "for each, such as `PerLeaf()`. Got rules "
            f"{structure} and norms {jax.tree.structure(tree)}."
        ) from error


def _joined(clip: Rules, columns: list[PyTree[Array]]) -> PyTree[Array]:
    """The trees of all groups as one."""
    if is_rule(clip):
        return columns[0]
    return jax.tree.structure(clip, is_leaf=is_rule).unflatten(columns)
