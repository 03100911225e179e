"""The update of a transform on a condition, of any pytree of updates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from .._checks import is_traced
from .._types import PyTree
from ._trees import spread


def step_if(
    good: Bool[Array, ""],
    transform: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    inner: PyTree[Array],
    params: optax.Params | None,
    extra: dict[str, Any],
) -> tuple[optax.Updates, PyTree[Array]]:
    """The update of a transform where all is well; no step and its old state else."""

    # What is no array, such as a function in a model, goes around the condition.
    arrays, rest = eqx.partition(updates, _is_array)
    others = []

    # Behind a condition, so that what is skipped is not computed either.
    def go(arrays):
        updates = eqx.combine(arrays, rest)
        stepped, state = transform.update(updates, inner, params, **extra)
        stepped, other = eqx.partition(stepped, _is_array)
        others.append(other)
        return stepped, state

    shapes, after = jax.eval_shape(go, arrays)

    def skip(arrays):
        leaves, structure = jax.tree.flatten(shapes)
        alike = structure == jax.tree.structure(arrays)
        before = jax.tree.leaves(arrays) if alike else [None] * len(leaves)
        none = structure.unflatten(map(_nothing, leaves, before))
        # A moment that began in the precision of the parameters takes the gradient's.
        return none, jax.tree.map(lambda x, new: x.astype(new.dtype), inner, after)

    if is_traced(good):
        stepped, state = jax.lax.cond(good, go, skip, arrays)
    else:
        # An update that is not jitted would compile the condition each time.
        stepped, state = go(arrays) if good else skip(arrays)
    return eqx.combine(stepped, others[0]), state


def _is_array(leaf: Any) -> bool:
    """Whether a condition can hand it on: neither a function, nor a flag of Python's,
    nor the place of a gradient that there is none of."""
    none = getattr(leaf, "dtype", None) == jax.dtypes.float0
    return eqx.is_array_like(leaf) and not isinstance(leaf, bool) and not none


def _nothing(shape: Any, before: Any) -> Any:
    """A gradient of 0; what is none, a flag or a key, as it was."""
    if before is not None and not jnp.issubdtype(shape.dtype, jnp.number):
        return before
    return spread(jnp.zeros(shape.shape, shape.dtype), shape)
