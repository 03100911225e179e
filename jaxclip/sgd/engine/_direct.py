"""SGD one step at a time, on any problem and with any optimiser."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..._curve import Curve
from ..._optimiser import Optimiser
from ..._types import Params, PyTree, Schedule
from ...clip import AbstractClip
from ...problem import AbstractProblem
from ...transform import PerExample
from .._loop import Run, record
from ._base import AbstractEngine


def run_optimiser(
    problem: AbstractProblem,
    optimiser: optax.GradientTransformation | Optimiser,
    reduce: Callable[[PyTree[Array]], Params],
    run: Run,
) -> Curve:
    """An optimiser on a problem's gradients.

    **Arguments:**

    - `reduce`: what the optimiser is given of the gradients of one batch, which carry
        a leading axis of examples.
    """
    stream = problem.stream(run.key)

    def step(state, k):
        params, optimiser_state = state
        # Example i is the same for all settings with this key, and for `Blocked`: their
        # trajectories can be compared step by step.
        index = k * run.batch_size + jnp.arange(run.batch_size)
        examples = jax.vmap(problem.example, (None, 0))(stream, index)
        # Of each example, though a mean may be all that is needed of them: the norm of
        # a mean and those of its terms are both taken from these.
        gradients = jax.vmap(problem.gradient, (None, 0))(params, examples)
        updates, optimiser_state = optimiser.update(
            reduce(gradients), optimiser_state, params
        )
        return (optax.apply_updates(params, updates), optimiser_state), None

    # A scan within the scan over records: only what is recorded takes memory.
    def advance(state, first):
        return jax.lax.scan(step, state, first + jnp.arange(run.every))[0]

    params = problem.init()
    return record(
        problem,
        run,
        advance,
        (params, optimiser.init(params)),
        params_of=lambda state: state[0],
    )


class Direct(AbstractEngine):
    """One step at a time, for any problem and any rule.

    The step is that of the optax optimiser that
    [`jaxclip.algorithm.Update`][]'s `optimiser` makes, without momentum and decay
    `chain(as_transform(clip, scope), scale_by_learning_rate(lr))`.
    """

    def compute(
        self, problem: AbstractProblem, clip: AbstractClip, lr: Schedule, run: Run
    ) -> Curve:
        origin = None if run.update.weight_decay is None else problem.origin()
        optimiser = run.update.optimiser(clip, lr, origin)
        # A scope over examples reduces the batch itself, after clipping.
        reduce = (lambda g: g) if isinstance(run.scope, PerExample) else mean
        return run_optimiser(problem, optimiser, reduce, run)


def mean(gradients: PyTree[Array]) -> PyTree[Array]:
    """The mean over the leading axis of each leaf."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
