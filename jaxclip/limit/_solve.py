"""The verb that solves a limit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffrax
import jax

from .._checks import is_traced, reporting_steps
from .._curve import Curve
from .._schedule import check_rate
from .._types import Key, RealScalarLike, Schedule
from ..clip import AbstractClip, Adaptive, need_rule
from ..problem import (
    AbstractGeneralisedLinear,
    AbstractNoisyProblem,
    CompressedLinearModel,
    LinearModel,
)
from ..transform import (
    AbstractScope,
    PerCoordinate,
    PerExample,
    PerTree,
    algorithm,
    within_example,
)
from ._base import AbstractLimit, AnyProblem, Request
from .linear._coordinate_ode import CoordinateODE
from .linear._generalised import GeneralisedODE
from .linear._momentum_ode import MomentumODE
from .linear._risk_ode import RiskODE
from .zero_loss._time_scale import time_scale

# One sample a step, clipped over the tree, with no momentum and no decay.
PLAIN = algorithm.Update()


def solve(
    problem: AnyProblem,
    clip: AbstractClip | Adaptive,
    lr: RealScalarLike | Schedule,
    *,
    steps: Any,
    limit: AbstractLimit | None = None,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
    momentum: Any = None,
    weight_decay: Any = None,
    std: bool = False,
    key: Key | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Curve:
    """Solves a limit of clipped SGD, in SGD steps.

    The arguments are those of [`jaxclip.simulate`][], so that the curves can be laid
    over each other. What a limit has no equation for it refuses by name.

    **Arguments:**

    - `problem`: what SGD runs on: a [`jaxclip.LinearModel`][] for `RiskODE` and
        `HomogenizedSDE`, an [`jaxclip.problem.AbstractGeneralisedLinear`][] for
        `GeneralisedODE`, any for `GradientFlow`, one without samples for `EdgeFlow`, a
        [`jaxclip.problem.AbstractNoisyProblem`][] on the zero-loss set.
    - `clip`: the rule; not an `Adaptive` one, which depends on more than the norm.
    - `lr`: the learning rate, per step: a number or a function of the step, called with
        fractions of one too. Where it jumps between whole steps, as of thresholds too,
        the value at a step holds until the next. In a run of more than 2^20 steps (2^18
        in float32) jumps are placed to within a millionth of the run (4 millionths).
    - `steps`: shape `(s,)`, where to report, not negative, increasing; it starts at 0.
    - `limit`: which one: `RiskODE()`, `MomentumODE()`, `HomogenizedSDE()`,
        `GradientFlow()`, `ZeroLossFlow()` ...; by default that of problem and update.
    - `batch_size`, `scope`, `momentum`, `weight_decay`: as in `simulate`.
    - `std`: whether the standard deviation of a run's risk is computed too.
    - `key`: for an SDE, determines its Brownian motion.
    - `adjoint`: how diffrax differentiates an ODE's solution; by default in reverse.
    - `throw`: raise an error where the solver fails, or the risk of an ODE grows beyond
        all bounds; otherwise the risk is infinite from there on.

    **Returns:**

    A [`jaxclip.Curve`][].

    **Raises:**

    A `ValueError` where an argument is misused; an error in the run for a traced one.
    """
    clip = need_rule(clip, "solve")
    update = algorithm.Update(batch_size, scope, momentum, weight_decay)
    if limit is None:
        limit = own_limit(problem, update)
    if not isinstance(limit, AbstractLimit):
        raise ValueError(f"`limit` must be one such as `RiskODE()`. Got {limit!r}.")
    steps = reporting_steps(steps)
    request = Request(steps, key, adjoint, throw, update, std)
    with _forward_mode_named(adjoint):
        return limit.curve(problem, clip, check_rate(lr, steps), request)


@contextmanager
def _forward_mode_named(adjoint: diffrax.AbstractAdjoint | None) -> Iterator[None]:
    """Names the argument where a solution is differentiated in a mode that it has not:
    diffrax's default adjoint has a reverse mode only, and JAX's error names neither."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            "`adjoint` must be one that has a forward mode, where `solve` is "
            "differentiated forwards, as by `jax.jvp`, `jax.jacfwd` and `jax.hessian`. "
            f"Got {adjoint!r}; pass `adjoint=diffrax.DirectAdjoint()` for a Hessian, "
            "with a small `max_steps`, or `adjoint=diffrax.ForwardMode()` for forward "
            "mode alone."
        ) from error


def own_limit(problem: Any, update: algorithm.Update = PLAIN) -> AbstractLimit:
    """The limit that a problem has, and an update on it."""
    if isinstance(problem, LinearModel | CompressedLinearModel):
        scope = update.scope
        if isinstance(within_example(scope), PerCoordinate):
            return CoordinateODE()
        noisy = isinstance(scope, PerExample) and scope.noise_std is not None
        moved = update.momentum is not None or update.weight_decay is not None
        return MomentumODE() if moved or noisy else RiskODE()
    if isinstance(problem, AbstractGeneralisedLinear):
        return GeneralisedODE()
    if not isinstance(problem, AbstractNoisyProblem):
        raise ValueError(
            "`limit` must be named for this problem, such as `GradientFlow()`. Only a "
            "`LinearModel` and noise injections have one of their own. Got a "
            f"{type(problem).__name__}."
        )
    if any(is_traced(leaf) for leaf in jax.tree.leaves(problem)):
        raise ValueError(
            "`limit` must be named where the problem is traced: the choice between "
            "limits is made before the program runs. Take `time_scale(problem).limit` "
            "outside of it."
        )
    with jax.ensure_compile_time_eval():
        return time_scale(problem).limit
