"""The loop over records that every engine shares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._checks import count
from .._curve import Curve, finite_or_infinite
from .._types import Params
from ..problem import AbstractProblem

Observe = Callable[[Params], PyTree[Array]]


def check_lengths(problem: AbstractProblem, steps: int, every: int) -> tuple[int, int]:
    """The lengths of a run as Python integers, after refusing those that do not fit."""
    if not isinstance(problem, AbstractProblem):
        raise ValueError(f"`problem` must be a jaxclip problem. Got {problem!r}.")
    steps, every = count("steps", steps), count("every", every)
    if steps % every:
        nearest = max(steps // every, 1) * every
        raise ValueError(
            "`every` must divide `steps`, so that the last step is recorded. Got "
            f"steps={steps} and every={every}; take steps={nearest}, for example."
        )
    return steps, every


def record(
    problem: AbstractProblem,
    advance: Callable[[Any, Int[Array, ""]], Any],
    state: Any,
    *,
    params_of: Callable[[Any], Params],
    steps: int,
    every: int,
    observe: Callable[[Any], PyTree[Array]] | None,
) -> Curve:
    """Advances a state by `every` steps at a time and records what it sees between.

    **Arguments:**

    - `advance`: the state after `every` steps that start at the step given.
    - `state`: the state at step 0.
    - `params_of`: the parameters in a state.
    - `observe`: a function of the state.
    """

    def look(state):
        seen = None if observe is None else observe(state)
        return finite_or_infinite(problem.risk(params_of(state))), seen

    def body(state, first):
        state = advance(state, first)
        return state, look(state)

    starts = jnp.arange(0, steps, every)
    last, seen = jax.lax.scan(body, state, starts)
    risk, observed = jax.tree.map(
        lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]),
        look(state),
        seen,
    )
    return Curve(jnp.arange(0, steps + 1, every), risk, params_of(last), observed)
