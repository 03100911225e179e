"""SGD one step at a time, on any problem and with any optimiser."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._curve import Curve
from .._types import Key, Params
from ..problem import AbstractProblem
from ._loop import Observe, record


def run_optimiser(
    problem: AbstractProblem,
    optimiser: optax.GradientTransformation,
    reduce: Callable[[PyTree[Array]], Params],
    *,
    steps: int,
    every: int,
    key: Key,
    batch_size: int,
    observe: Observe | None,
) -> Curve:
    """An optimiser on a problem's gradients.

    **Arguments:**

    - `reduce`: what the optimiser is given of the gradients of one batch, which carry
        a leading axis of examples.
    """
    stream = problem.stream(key)

    def step(state, k):
        params, optimiser_state = state
        index = k * batch_size + jnp.arange(batch_size)
        examples = jax.vmap(problem.example, (None, 0))(stream, index)
        gradients = jax.vmap(problem.gradient, (None, 0))(params, examples)
        updates, optimiser_state = optimiser.update(
            reduce(gradients), optimiser_state, params
        )
        return (optax.apply_updates(params, updates), optimiser_state), None

    def advance(state, first):
        return jax.lax.scan(step, state, first + jnp.arange(every))[0]

    params = problem.init()
    return record(
        problem,
        advance,
        (params, optimiser.init(params)),
        params_of=lambda state: state[0],
        steps=steps,
        every=every,
        observe=None if observe is None else lambda state: observe(state[0]),
    )
