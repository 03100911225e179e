"""Tuning by gradient: any pytree of numbers, any loss. Knows no other module."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Float

T = TypeVar("T")


def tune(
    loss: Callable[[T], Any],
    init: T,
    *,
    steps: int = 100,
    optimiser: optx.AbstractMinimiser | optax.GradientTransformation | None = None,
) -> tuple[T, Float[Array, " n"]]:
    """Minimises a loss over the numbers of a pytree, by gradient.

    Every array of floats in `init` is moved; everything else stays. The search is
    unconstrained, so hand over what must stay positive in a form that is positive by
    construction, such as [`jaxclip.PiecewiseLinear`][], whose leaves are logarithms
    (with a single knot it is a positive constant).

    **Arguments:**

    - `loss`: a function of a pytree like `init` that returns a number. It is traced, so
        it must be made of JAX operations. Where it spans decades, return its logarithm.
    - `init`: where to start.
    - `steps`: iterations at most; fewer are taken once BFGS has converged.
    - `optimiser`: an optimistix minimiser, BFGS by default, or an optax optimiser.

    **Returns:**

    The pytree with the smallest loss seen, and the loss after each iteration, shape
    `(n,)`, the first being that of `init`.

    **Raises:**

    A `ValueError` where `init` holds no floats, or its loss is not a finite number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer. Got {steps!r}.")
    moved, fixed = eqx.partition(_as_arrays(init), eqx.is_inexact_array)
    if not jax.tree.leaves(moved):
        raise ValueError("`init` must hold a float or an array of floats to tune.")

    def objective(moved, args):
        del args
        return jnp.asarray(loss(eqx.combine(moved, fixed))), None

    first = eqx.filter_jit(objective)(moved, None)[0]
    if first.shape != () or not jnp.isfinite(first):
        raise ValueError(f"`loss(init)` must be one finite number. Got {first}.")
    if optimiser is None:
        optimiser = optx.BFGS(rtol=1e-8, atol=1e-10)
    if isinstance(optimiser, optx.AbstractMinimiser):
        search = _minimise(objective, optimiser, moved)
    else:
        search = _descend(objective, optimiser, moved)
    best, smallest, history = moved, first, [first]
    for _, (moved, value) in zip(range(steps), search, strict=False):
        history.append(value)
        # False for NaN too, so that a step too far is never taken for an answer.
        if value < smallest:
            best, smallest = moved, value
    return eqx.combine(best, fixed), jnp.stack(history)


def _minimise(objective, solver: optx.AbstractMinimiser, moved):
    """The accepted points of an optimistix minimiser and their losses, until it
    converges."""

    def with_loss(moved, args):
        # The solver hands on what comes beside the loss at the point that it accepts,
        # which spares another evaluation to learn the loss there.
        value, _ = objective(moved, args)
        return value, value

    out, aux = eqx.filter_eval_shape(with_loss, moved, None)
    tags = frozenset()
    state = solver.init(with_loss, moved, None, {}, out, aux, tags)

    @eqx.filter_jit
    def step(moved, state):
        moved, state, value = solver.step(with_loss, moved, None, {}, state, tags)
        done, _ = solver.terminate(with_loss, moved, None, {}, state, tags)
        return moved, state, value, done

    done = False
    while not done:
        moved, state, value, done = step(moved, state)
        yield moved, value


def _descend(objective, optimiser: optax.GradientTransformation, moved):
    """The points that an optax optimiser moves through and their losses."""

    @eqx.filter_jit
    def step(moved, state):
        gradient = jax.grad(lambda y: objective(y, None)[0])(moved)
        updates, state = optimiser.update(gradient, state, moved)
        moved = optax.apply_updates(moved, updates)
        return moved, state, objective(moved, None)[0]

    state = optimiser.init(moved)
    while True:
        moved, state, value = step(moved, state)
        yield moved, value


def _as_arrays(tree):
    """Python floats are numbers to tune too."""

    def strong(x):
        x = jnp.asarray(x) if isinstance(x, float) else x
        # A weak type, which a Python number leaves behind, is lost in the first update:
        # the second would be compiled again.
        return x.astype(x.dtype) if eqx.is_inexact_array(x) else x

    return jax.tree.map(strong, tree)
