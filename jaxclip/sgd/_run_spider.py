"""A run of SPIDER, recorded."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .._curve import Curve
from .._static import hashable
from .._types import Key
from ..problem import AbstractProblem
from ..transform import algorithm
from ._loop import Run, check_lengths, record
from ._spider import Spider, SpiderRun


def run_spider(
    problem: AbstractProblem,
    optimiser: Spider,
    *,
    steps: int,
    every: int = 1,
    key: Key,
    observe: Callable[[SpiderRun], Any] | None = None,
) -> Curve:
    """Runs [`jaxclip.Spider`][], SGD with variance reduction and a clip, on a problem.

    **Arguments:**

    - `problem`: what to run on.
    - `optimiser`: SPIDER with its settings.
    - `steps`: how many steps, renewals among them.
    - `every`: record every so many steps; it must divide `steps`.
    - `key`: determines the data and their order.
    - `observe`: a function of the [`jaxclip.sgd.SpiderRun`][], recorded beside the
        risk: `lambda run: run.state.evaluations` counts the sample gradients.

    **Returns:**

    A [`jaxclip.Curve`][] that starts at step 0.

    **Raises:**

    A `ValueError` where an argument is misused, or the problem repeats batches, as
    [`jaxclip.Repeated`][] does.
    """
    steps, every = check_lengths(problem, steps, every)
    if problem.in_batches(optimiser.batch_size) is not problem:
        raise ValueError(
            "`problem` must not depend on the size of a batch, since those of SPIDER "
            f"have two sizes. Got a {type(problem).__name__}; give its inner `problem`."
        )
    # An upper bound: which steps renew is known only once they are made.
    largest = max(optimiser.anchor_size or 0, optimiser.batch_size)
    problem.check_length(steps * largest)
    update = algorithm.Update(optimiser.batch_size)
    run = Run(steps, every, key, hashable(observe), update)
    return _run(problem, optimiser, run)


@eqx.filter_jit
def _run(problem: AbstractProblem, optimiser: Spider, run: Run) -> Curve:
    def advance(state, first):
        del first

        def body(state, _):
            return optimiser.step(problem, state), None

        return jax.lax.scan(body, state, length=run.every)[0]

    return record(
        problem,
        run,
        advance,
        optimiser.init(problem, run.key),
        params_of=lambda state: state.params,
        observed_of=lambda state: state,
    )
