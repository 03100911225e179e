"""A window of training that one can differentiate through."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._checks import count, is_traced, leading_length
from .._optimiser import Optimiser, as_pytree, with_optimiser
from .._static import hashable
from .._types import PyTree
from ..transform import GuardState


def unroll(
    gradient: Callable[[Any, Any], Any],
    params: PyTree[Any],
    optimiser: optax.GradientTransformation,
    batches: PyTree[Array],
    *,
    state: Any = None,
    segment: int | None = None,
) -> tuple[PyTree[Any], Any]:
    r"""Trains a model for a window of steps, in a form made to be differentiated.

    ```python
    def validation_loss(clip):
        optimiser = optax.chain(jc.as_transform(clip, jc.PerExample()), optax.sgd(lr))
        trained, _ = jc.unroll(gradients, params, optimiser, batches)
        return mean_loss(trained, validation)

    clip, history = jc.tune(validation_loss, jc.HardClip(jc.PiecewiseLinear(0, 1.0)))
    ```

    The result is differentiable, forward and backward, in whatever numbers the
    optimiser holds (the hypergradient of Maclaurin et al. 2015, arXiv:1502.03492), in
    `params` and in `batches`. A step that a guard such as [`jaxclip.skip_nonfinite`][]
    skips has no part in the derivative. Backward, the parameters are kept at the start
    of each segment only, and within one segment while it is run again: with the default
    segment the memory grows with the square root of the window, at the cost of one more
    pass forward.

    **Arguments:**

    - `gradient`: `gradient(params, batch)`, what the optimiser is given: the mean
        gradient, or `jax.vmap(jax.grad(loss), (None, 0))` for one that begins with
        `as_transform(clip, PerExample())`.
    - `params`: the model, a pytree; what is no array of floats stays as it is.
    - `optimiser`: any optax optimiser. Its numbers may be traced: build it inside the
        function that is differentiated. New numbers compile nothing, as in
        [`jaxclip.train`][], where `gradient` is the same function again.
    - `batches`: a pytree of arrays whose leading axis is the step.
    - `state`: the optimiser's state at the start, by default a new one.
    - `segment`: steps in a segment, by default the square root of the window's.

    **Returns:**

    The parameters and the optimiser's state after the last batch.

    **Raises:**

    A `ValueError` where the leading axes of `batches` differ, or hold no step.
    """
    steps = _count_steps(batches)
    length = max(1, math.isqrt(steps)) if segment is None else count("segment", segment)
    length = min(length, steps)
    numbers = as_pytree(optimiser), params, batches, state
    if any(map(is_traced, jax.tree.leaves(numbers))):
        # It is part of a program, which is compiled as a whole: a call inside of it
        # would hold a copy of batches that are constants there.
        return _train(optimiser, gradient, params, batches, state, length)
    what = hashable(gradient), params, batches, state, length
    return with_optimiser(_train_jitted, optimiser, *what)


def _train(
    optimiser: optax.GradientTransformation | Optimiser,
    gradient: Callable[[Any, Any], Any],
    params: PyTree[Any],
    batches: PyTree[Array],
    state: Any,
    length: int,
) -> tuple[PyTree[Any], Any]:
    """`unroll` with its arguments checked, in segments of `length` steps."""
    moved, fixed = eqx.partition(params, eqx.is_inexact_array)

    def step(carry, batch):
        moved, state = carry
        seen = _without_skipped(gradient, moved, fixed, batch) if guarded else moved
        updates = gradient(eqx.combine(seen, fixed), batch)
        # A gradient may come as a model, with what is no array beside its numbers.
        updates = eqx.filter(updates, eqx.is_inexact_array)
        updates, state = optimiser.update(updates, state, moved)
        return (optax.apply_updates(moved, updates), state), None

    @jax.checkpoint
    def run(carry, batches):
        return jax.lax.scan(step, carry, batches)

    whole = _count_steps(batches) // length * length
    head = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), batches)
    tail = jax.tree.map(lambda x: x[whole:], batches)
    carry = moved, optimiser.init(moved) if state is None else state
    guarded = _has_guard(carry[1])
    carry, _ = jax.lax.scan(run, carry, head)
    (moved, state), _ = run(carry, tail)
    return eqx.combine(moved, fixed), state


def _has_guard(state: Any) -> bool:
    def is_guard(node):
        return isinstance(node, GuardState)

    return any(map(is_guard, jax.tree.leaves(state, is_leaf=is_guard)))


def _without_skipped(
    gradient: Callable[[Any, Any], Any], moved: Any, fixed: Any, batch: Any
) -> Any:
    """The parameters, of which the gradient is a constant where it is not finite.

    What a guard leaves out has no part in the derivative. Backward that would not come
    by itself: its zero is multiplied by the second derivative of a loss that is NaN.
    The gradient's values are asked for twice, which XLA computes once.
    """
    constant = jax.lax.stop_gradient(moved)
    values = eqx.filter(
        gradient(eqx.combine(constant, fixed), batch), eqx.is_inexact_array
    )
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(values)]
    usable = jnp.all(jnp.array(finite))
    return jax.tree.map(lambda x, y: jnp.where(usable, x, y), moved, constant)


_train_jitted = eqx.filter_jit(_train)


def _count_steps(batches: PyTree[Array]) -> int:
    return leading_length("`batches`", batches, "steps")
