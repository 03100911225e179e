"""The verbs that run SGD: `simulate` with a rule, `train` with an optax optimiser."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax

from .._curve import Curve
from .._optimiser import Optimiser, with_optimiser
from .._schedule import check_rate
from .._static import hashable
from .._types import Key, RealScalarLike, Schedule
from ..clip import AbstractClip, Adaptive, need_rule
from ..problem import AbstractProblem
from ..transform import (
    AbstractScope,
    PerCoordinate,
    PerExample,
    PerTree,
    algorithm,
    within_example,
)
from ._loop import Observe, Run, check_lengths
from .engine._base import AbstractEngine
from .engine._default import default_engine
from .engine._direct import mean, run_optimiser


def simulate(
    problem: AbstractProblem,
    clip: AbstractClip | Adaptive,
    lr: RealScalarLike | Schedule,
    *,
    steps: int,
    every: int = 1,
    key: Key,
    engine: AbstractEngine | None = None,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
    momentum: Any = None,
    weight_decay: Any = None,
    observe: Observe | None = None,
) -> Curve:
    r"""Runs stochastic gradient descent with clipping.

    $$x_{k+1} = x_k - \gamma_k\, f(\|g_k\|)\, g_k,$$

    with the rule's factor $f$ and the gradient $g_k$ of the loss on a fresh batch. It
    may be jitted, vmapped and differentiated in all numbers. Settings under a `vmap` of
    one `key` see the same data, made once, so that their differences are paired.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `clip`: the rule; `Identity()` for none. For an `Adaptive` one use `train`.
    - `lr`: $\gamma_k$, per step: a number or a function of the step. New numbers, those
        of an `eqx.Module` that is called included, compile nothing; a plain function is
        compiled in, so that the same one should be handed over again.
    - `steps`: how many; `every`: steps from one record to the next, a divisor of it.
    - `key`: determines the data, their order and the noise.
    - `engine`: [`jaxclip.Direct`][], [`jaxclip.Blocked`][] or [`jaxclip.Lumped`][]; by
        default that of [`jaxclip.sgd.default_engine`][], which compares them.
    - `batch_size`: samples a step.
    - `scope`: `PerTree()` clips the gradient of a batch, `PerExample()` each sample's;
        `PerExample(noise_std=...)` adds noise to their mean, as DP-SGD does.
        `PerCoordinate()`, by itself or `within` the latter, clips each coordinate:
        `Normalize()` is then signSGD.
    - `momentum`: a [`jaxclip.algorithm.Momentum`][] or the coefficient of a heavy ball.
    - `weight_decay`: a [`jaxclip.algorithm.WeightDecay`][] or a decoupled one's rate.
    - `observe`: a function of the parameters, compiled in, recorded beside the risk.

    **Returns:**

    A [`jaxclip.Curve`][] from step 0 on. Once a run has diverged its risk is infinite.

    **Raises:**

    A `ValueError` where an argument is misused; an error when the program runs where
    a traced learning rate is negative or NaN.
    """
    clip = need_rule(clip, "simulate")
    scope = _with_noise(scope, key)
    update = algorithm.Update(batch_size, scope, momentum, weight_decay)
    problem, run = _run(problem, steps, every, key, update, observe)
    lr = check_rate(lr, jnp.arange(0, run.steps, run.every))
    engine = default_engine(problem, update) if engine is None else engine
    return _simulate(engine, problem, clip, lr, run)


# Behind the checks, which then see numbers: what is misused fails at once. All numbers
# are arguments, so that a program is compiled once for all of them.
@eqx.filter_jit
def _simulate(
    engine: AbstractEngine,
    problem: AbstractProblem,
    clip: AbstractClip,
    lr: Schedule,
    run: Run,
) -> Curve:
    return engine.compute(problem, clip, lr, run)


def train(
    problem: AbstractProblem,
    optimiser: optax.GradientTransformation,
    *,
    steps: int,
    every: int = 1,
    key: Key,
    batch_size: int = 1,
    observe: Observe | None = None,
) -> Curve:
    """Runs any optax optimiser on a problem.

    On the same key it sees the same data as [`jaxclip.simulate`][].

    **Arguments:**

    - `problem`: what to train on.
    - `optimiser`: an optax optimiser; it is given the mean gradient of each batch. Of
        one that is made of optax's and this package's transforms new numbers compile
        nothing; any other is told by its functions, which should then be made once.
    - `steps`, `every`, `key`, `batch_size`, `observe`: as in [`jaxclip.simulate`][].

    **Returns:**

    A [`jaxclip.Curve`][] from step 0 on. Once a run has diverged its risk is infinite.

    **Raises:**

    A `ValueError` where an argument is misused.
    """
    update = algorithm.Update(batch_size)
    problem, run = _run(problem, steps, every, key, update, observe)
    return with_optimiser(_train, optimiser, problem, run)


@eqx.filter_jit
def _train(optimiser: Optimiser, problem: AbstractProblem, run: Run) -> Curve:
    return run_optimiser(problem, optimiser, mean, run)


def _run(
    problem: AbstractProblem,
    steps: int,
    every: int,
    key: Key,
    update: algorithm.Update,
    observe: Observe | None,
) -> tuple[AbstractProblem, Run]:
    """The problem as this run sees it; its length and records, checked."""
    steps, every = check_lengths(problem, steps, every)
    problem = problem.in_batches(update.batch_size)
    problem.check_length(steps * update.batch_size)
    return problem, Run(steps, every, key, hashable(observe), update)


def _with_noise(scope: AbstractScope, key: Key) -> AbstractScope:
    """The scope, its noise drawn from the run's key."""
    if not isinstance(within_example(scope), PerTree | PerCoordinate):
        raise ValueError(
            "`scope` must be PerTree() or PerCoordinate(), or PerExample() of one of "
            f"the two. Got {scope!r}; `train` runs any optax optimiser."
        )
    if not isinstance(scope, PerExample) or scope.noise_std is None:
        return scope
    if scope.key is not None:
        raise ValueError(
            "`scope` must have no `key` of its own here: its noise is drawn from the "
            "run's `key`, so that runs with several keys have noise of their own. "
            "Leave it out."
        )
    # Samples fold in their index; the last index there is, is nobody's.
    own = jr.fold_in(key, 2**32 - 1)
    return PerExample(scope.reduce, scope.noise_std, own, scope.within)
