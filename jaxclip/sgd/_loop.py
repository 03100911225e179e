"""What every engine shares: how long a run is, and the loop over its records."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import count
from .._curve import Curve, finite_or_infinite
from .._types import Key, Params, PyTree
from ..problem import AbstractProblem
from ..transform import AbstractScope, algorithm

# Of the parameters; of a `SpiderRun` in `run_spider`.
Observe = Callable[[Any], PyTree[Array]]


class Run(eqx.Module):
    """How long a run is, on which data, and what is recorded of it.

    **Arguments:**

    - `steps`: how many steps; a multiple of `every`.
    - `every`: steps between two records.
    - `key`: determines the data, their order and the noise.
    - `observe`: a function of the parameters, recorded beside the risk, or None.
    - `update`: how a step is made of samples.
    """

    steps: int = eqx.field(static=True)
    every: int = eqx.field(static=True)
    key: Key
    # Not static: a method of a module holds arrays.
    observe: Observe | None
    update: algorithm.Update = algorithm.Update()

    @property
    def batch_size(self) -> int:
        """Samples a step."""
        return self.update.batch_size

    @property
    def scope(self) -> AbstractScope:
        """Which gradients have a norm."""
        return self.update.scope


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
    run: Run,
    advance: Callable[[Any, Int[Array, ""]], Any],
    state: Any,
    *,
    params_of: Callable[[Any], Params],
    observed_of: Callable[[Any], Any] | None = None,
) -> Curve:
    """Advances a state by `run.every` steps at a time and records what it sees between.

    **Arguments:**

    - `advance`: the state after `run.every` steps that start at the step given.
    - `state`: the state at step 0.
    - `params_of`: the parameters in a state.
    - `observed_of`: what `run.observe` is given of a state; its parameters by default.
    """

    def look(state):
        params = params_of(state)
        what = params if observed_of is None else observed_of(state)
        seen = None if run.observe is None else run.observe(what)
        return finite_or_infinite(problem.risk(params)), seen

    def body(state, first):
        state = advance(state, first)
        return state, look(state)

    starts = jnp.arange(0, run.steps, run.every)
    last, seen = jax.lax.scan(body, state, starts)
    risk, observed = jax.tree.map(
        lambda first, rest: jnp.concatenate([jnp.asarray(first)[None], rest]),
        look(state),
        seen,
    )
    step = jnp.arange(0, run.steps + 1, run.every)
    return Curve(step, risk, params_of(last), observed)
