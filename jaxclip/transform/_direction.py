"""Where gradients point: their components along the mean of others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import exact_dot
from .._types import Params, PyTree
from ..clip import Adaptive, policy
from ._norm import norms, reals, safe_norm
from ._parts import Rules, is_rule
from ._scope import AbstractScope, PerTree
from ._scope_example import PerExample
from ._sums import AxisName, total
from ._trees import spread
from ._varying import vary, varying_axes


class Direction(NamedTuple):
    r"""A gradient $m$ that others are compared with, in the metric $M$, a diagonal one
    or 1.

    - `dual`: $M m / \|m\|_M$, a pytree like the parameters, whose product with another
        gradient is that one's component along $m$.
    - `size`: $\|m\|_M$.
    - `metric`: $M$, a pytree like the parameters, or None.
    """

    dual: Params
    size: Float[Array, ""]
    metric: Params | None


def directed(clip: Rules, scope: AbstractScope) -> policy.AbstractDirectedPolicy | None:
    """The policy that compares gradients with their running mean, if there is one.

    Raises where the scope has more norms than one.
    """
    rules = jax.tree.leaves(clip, is_leaf=is_rule)
    policies = [rule.policy for rule in rules if isinstance(rule, Adaptive)]
    found = [
        each for each in policies if isinstance(each, policy.AbstractDirectedPolicy)
    ]
    if not found:
        return None
    inner = scope.within if isinstance(scope, PerExample) else scope
    if not is_rule(clip) or not isinstance(inner, PerTree):
        raise ValueError(
            f"`{type(found[0]).__name__}` sets one threshold for the norm over all "
            "leaves: it must be the only rule, and the scope `PerTree()` or "
            f"`PerExample()`. Got {clip!r} with {scope!r}."
        )
    return found[0]


def no_mean(clip: Rules, scope: AbstractScope, params: Params) -> Params | tuple[()]:
    """The running mean before the first update; nothing where none is needed: examples
    are compared with each other."""
    if directed(clip, scope) is None or scope.examples:
        return ()

    # In float32 or better: a tenth of an update is rough in half precision.
    def zeros(x: Array) -> Array:
        none = spread(jnp.zeros(jnp.shape(x), _wide(x)), jax.typeof(x))
        return vary(none, varying_axes(x))

    return jax.tree.map(zeros, params)


def next_mean(decay: Array, mean: Params, updates: Params, finite: Array) -> Params:
    """The running mean after an update, with so much weight on the past; the one before
    where the update is not finite."""

    def moved(mean: Array, update: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            after = decay * mean + (1 - decay) * update
        return jnp.where(finite, after, mean).astype(mean.dtype)

    return jax.tree.map(moved, mean, updates)


def direction(
    gradient: Params, metric: Params | None, scope: AbstractScope
) -> Direction:
    """What others are compared with, from a gradient.

    **Arguments:**

    - `metric`: the diagonal of $M$, not negative, a pytree like the parameters.
    """
    _check_metric(metric, gradient)
    root = dual = gradient
    if metric is not None:
        with jax.numpy_dtype_promotion("standard"):
            root = jax.tree.map(lambda m, w: m * jnp.sqrt(w), gradient, metric)
            dual = jax.tree.map(jnp.multiply, gradient, metric)
    size = safe_norm(root, _axis_name(scope))
    safe = jnp.where(size > 0, size, 1.0)
    with jax.numpy_dtype_promotion("standard"):
        # Of length 1, so that no product of a large gradient overflows.
        dual = jax.tree.map(lambda m: m / safe, dual)
    return Direction(dual, size, metric)


def along(
    gradients: Params,
    own: Float[Array, "..."],
    to: Direction,
    scope: AbstractScope,
    others: Float[Array, ""] | int | None = None,
) -> policy.Along:
    """How one gradient lies to a direction, or each example's.

    **Arguments:**

    - `gradients`: with a leading axis of examples where the scope has one.
    - `own`: their norms, which are their lengths without a metric.
    - `others`: with how many more each gradient is in the sum that gave the direction;
        None where it is not in it.
    """
    kept, name, lengths = own.ndim, _axis_name(scope), own
    # Leaves of several precisions; the direction has no axis of examples.
    with jax.numpy_dtype_promotion("standard"):
        leaves = reals(*jax.tree.leaves(gradients))
        duals = reals(*jax.tree.leaves(to.dual))
        if not leaves:
            return against(own, jnp.zeros_like(own), to, others)
        pairs = zip(leaves, duals, strict=True)
        products = total([_product(g, dual) for g, dual in pairs], kept, name)
        if to.metric is not None:
            weights = [_behind(kept, w) for w in _real_weights(gradients, to.metric)]
            pairs = zip(leaves, weights, strict=True)
            roots = [g * jnp.sqrt(weight) for g, weight in pairs]
            lengths = norms(roots, kept, name)
        return against(lengths, products, to, others)


def _product(leaf: Array, dual: Array) -> Array:
    """What adds up to the product, with the examples' axis if the leaf has one."""
    examples = leaf.ndim > dual.ndim
    if examples and not any(jax.typeof(leaf).sharding.spec):
        # As a product with a vector, which reads the gradients once. Of one over axes
        # that lie on several devices JAX asks where the result is to be.
        return exact_dot(leaf, dual, dual.ndim)
    return leaf * _behind(leaf.ndim - dual.ndim, dual)


def _behind(kept: int, leaf: Array) -> Array:
    """A leaf with so many axes of length 1 before its own."""
    return jnp.expand_dims(leaf, tuple(range(kept)))


def against(
    lengths: Array, products: Array, to: Direction, others: Array | int | None
) -> policy.Along:
    """What a policy gets: without a gradient's product with itself, which says nothing
    about the mean."""
    size = to.size
    if others is not None:
        products = products - lengths * (lengths / jnp.where(size > 0, size, 1.0))
        # One that is alone has nothing to be compared with.
        products = jnp.where(jnp.asarray(others) > 0, products, 0.0)
        size = size / jnp.maximum(others, 1)
    sizes = jnp.broadcast_to(size, lengths.shape).astype(lengths.dtype)
    counted = jnp.ones(lengths.shape, bool)
    return policy.Along(lengths, products.astype(lengths.dtype), sizes, counted)


def _real_weights(gradients: Params, metric: Params) -> list[Array]:
    """The metric's number for each real one of the gradient."""
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(metric), strict=True)
    return [
        weight for g, weight in pairs for _ in range(2 if jnp.iscomplexobj(g) else 1)
    ]


def _axis_name(scope: AbstractScope) -> AxisName:
    inner = scope.within if isinstance(scope, PerExample) else scope
    return inner.axis_name if isinstance(inner, PerTree) else None


def _wide(x: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(jnp.result_type(x), jnp.float32)


def _check_metric(metric: PyTree[Any] | None, params: Params) -> None:
    if metric is None:
        return
    shapes = [
        [jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (metric, params)
    ]
    alike = jax.tree.structure(metric) == jax.tree.structure(params)
    if not alike or shapes[0] != shapes[1]:
        raise ValueError(
            "`metric` must be a pytree like the parameters, with a positive number "
            "for each of theirs, such as `1 / (sqrt(nu) + eps)` of Adam. Got the "
            f"structure {jax.tree.structure(metric)} for {jax.tree.structure(params)}."
        )
