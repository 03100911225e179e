"""Tuning by gradient: any pytree of numbers, any loss. Knows no model."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Float

from .._checks import is_traced
from .._optimiser import Optimiser, adopt
from .._static import hashable

T = TypeVar("T")
# Solvers that never ask for a gradient, whatever it is.
_WITHOUT_GRADIENT = (optx.GoldenSearch, optx.NelderMead)


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
        Another call with the same function, and other numbers, compiles nothing.
    - `init`: where to start.
    - `steps`: iterations at most; fewer are taken once BFGS has converged.
    - `optimiser`: an optimistix minimiser, BFGS by default, or an optax optimiser.

    **Returns:**

    The pytree with the smallest loss seen, and the loss after each iteration, shape
    `(n,)`, the first being that of `init`.

    **Raises:**

    A `ValueError` where `init` holds no floats or a complex number, its loss is not a
    finite number, or a gradient that the search goes by is not finite where the loss
    is: the leaf is named. It runs its steps from Python, so `init` cannot be traced.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer. Got {steps!r}.")
    _check_leaves(init)
    moved, fixed = eqx.partition(_as_arrays(init), eqx.is_inexact_array)
    if not jax.tree.leaves(moved):
        raise ValueError("`init` must hold a float or an array of floats to tune.")
    objective = _Objective(hashable(loss), fixed)
    if optimiser is None:
        optimiser = optx.BFGS(rtol=1e-8, atol=1e-10)
    first = _first(objective, moved, optimiser)
    best, smallest, history = moved, first, [first]
    if isinstance(optimiser, optx.AbstractMinimiser):
        points = _minimise(objective, optimiser, moved)
    else:
        points = _descend(objective, optimiser, moved, first)
    for _, (moved, value) in zip(range(steps), points, strict=False):
        history.append(value)
        # False for NaN too, so that a step too far is never taken for an answer.
        if value < smallest:
            best, smallest = moved, value
    if not history[-1] < history[-2]:
        # It ended where it stands still, which a gradient that is not finite does, too.
        _check_gradient(_look(objective, best, optimiser)[1])
    return eqx.combine(best, fixed), jnp.stack(history)


class _Objective(eqx.Module):
    """The loss as a function of the numbers that move, in the form of optimistix.

    A pytree: the numbers that stay are arguments of what is compiled.
    """

    loss: Callable[[Any], Any]
    fixed: Any

    def __call__(self, moved, args):
        del args
        value = jnp.asarray(self.loss(eqx.combine(moved, self.fixed)))
        # An optimistix solver hands on what comes beside the loss at the point that it
        # accepts, which spares another evaluation to learn the loss there.
        return value, value


def _first(objective: _Objective, moved: Any, optimiser: Any) -> Float[Array, ""]:
    """The loss where the search starts, refused if it is no place to start from."""
    kind, _ = eqx.filter_eval_shape(objective, moved, None)
    if kind.shape != () or not jnp.issubdtype(kind.dtype, jnp.floating):
        raise ValueError(
            f"`loss(init)` must be one finite number, and real. Got {kind}."
        )
    first, finite = _look(objective, moved, optimiser)
    if not jnp.isfinite(first):
        raise ValueError(f"`loss(init)` must be one finite number. Got {first}.")
    _check_gradient(finite)
    return first


def _look(objective: _Objective, moved, optimiser):
    """The loss, and whether its gradient is finite, leaf by leaf."""
    by_gradient = _goes_by_gradient(optimiser)
    if isinstance(optimiser, optx.AbstractMinimiser):
        state = _start(objective, optimiser, moved)
        # The first step evaluates where it starts: by a program that the search needs
        # anyway, in place of another that is compiled for as long.
        if len(_seen(state)) == 1:
            _, state, *_ = _solver_step(optimiser, objective, moved, state, by_gradient)
            (at,) = _seen(state)
            return at.f, _are_finite(at.grad)
    return _evaluate(objective, moved, by_gradient)


def _seen(state: Any) -> list[Any]:
    """The loss and the gradient at the last point accepted, of solvers whose state has
    them; but not of those that then solve a linear system, and fail at a NaN."""
    kinds = optx.FunctionInfo.EvalGrad, optx.FunctionInfo.EvalGradHessianInv

    def is_seen(node):
        return isinstance(node, kinds)

    return [node for node in jax.tree.leaves(state, is_leaf=is_seen) if is_seen(node)]


@eqx.filter_jit
def _evaluate(objective: _Objective, moved, by_gradient: bool):
    if not by_gradient:
        return objective(moved, None)[0], True
    (value, _), gradient = jax.value_and_grad(objective, has_aux=True)(moved, None)
    return value, _are_finite(gradient)


_TAGS = frozenset()


def _start(objective, solver: optx.AbstractMinimiser, moved):
    out, aux = eqx.filter_eval_shape(objective, moved, None)
    return solver.init(objective, moved, None, {}, out, aux, _TAGS)


def _minimise(objective, solver: optx.AbstractMinimiser, moved):
    """The accepted points of an optimistix minimiser and their losses, until it
    converges."""
    state, by_gradient = _start(objective, solver, moved), _goes_by_gradient(solver)
    done = False
    while not done:
        step = _solver_step(solver, objective, moved, state, by_gradient)
        moved, state, value, done = step
        yield moved, value


@eqx.filter_jit
def _solver_step(
    solver: optx.AbstractMinimiser, objective, moved, state, by_gradient: bool
):
    moved, state, value = solver.step(objective, moved, None, {}, state, _TAGS)
    if not by_gradient:
        # What these hand on is of another point: of a corner of their simplex.
        value, _ = objective(moved, None)
    done, _ = solver.terminate(objective, moved, None, {}, state, _TAGS)
    return moved, state, value, done


def _descend(objective, optimiser: optax.GradientTransformation, moved, first):
    """The points that an optax optimiser moves through and their losses."""
    state, value = optimiser.init(moved), first
    tree = None
    while True:
        if tree is None:
            tree, after = adopt(_optax_step, optimiser, objective, moved, state)
        else:
            after = _optax_step(tree, objective, moved, state)
        gradient_is_finite = after[-1]
        if jnp.isfinite(value):
            _check_gradient(gradient_is_finite)
        moved, state, value, _ = after
        yield moved, value


@eqx.filter_jit
def _optax_step(optimiser: Optimiser, objective, moved, state):
    gradient = jax.grad(lambda y: objective(y, None)[0])(moved)
    updates, state = optimiser.update(gradient, state, moved)
    moved = optax.apply_updates(moved, updates)
    return moved, state, objective(moved, None)[0], _are_finite(gradient)


def _check_leaves(init: Any) -> None:
    """Refuses what cannot be tuned, by name."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(init):
        if is_traced(leaf):
            raise ValueError(
                f"{_name(path)} is traced, and `tune` runs its steps from Python: call "
                "it outside of `jit`, `vmap` and `grad`."
            )
        if isinstance(leaf, complex) or jnp.iscomplexobj(leaf):
            raise ValueError(
                f"{_name(path)} is complex: along its gradient a loss may rise. Tune "
                f"its real and its imaginary part. Got {leaf!r}."
            )


def _goes_by_gradient(optimiser: Any) -> bool:
    while isinstance(optimiser, optx.BestSoFarMinimiser):
        optimiser = optimiser.solver
    return not isinstance(optimiser, _WITHOUT_GRADIENT)


def _check_gradient(finite: Any) -> None:
    for path, is_finite in jax.tree_util.tree_leaves_with_path(finite):
        if not is_finite:
            raise ValueError(
                f"The gradient of the loss in {_name(path)} is not finite, where the "
                "loss itself is. A square root, a norm or a power at 0, or a `where` "
                "with a NaN on the side that is not taken, are the usual reasons: "
                "`jax_debug_nans` finds it."
            )


def _are_finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), tree)


def _name(path: Any) -> str:
    return f"`init{jax.tree_util.keystr(path)}`"


def _as_arrays(tree):
    """Python floats are numbers to tune too."""

    def strong(x):
        x = jnp.asarray(x) if isinstance(x, float) else x
        # A weak type, which a Python number leaves behind, is lost in the first update:
        # the second would be compiled again.
        return x.astype(x.dtype) if eqx.is_inexact_array(x) else x

    return jax.tree.map(strong, tree)
