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
    AbstractNoisyProblem,
    CompressedLinearModel,
    LinearModel,
)
from ._base import AbstractLimit, AnyProblem, Request
from .linear._risk_ode import RiskODE
from .zero_loss._time_scale import time_scale


def solve(
    problem: AnyProblem,
    clip: AbstractClip | Adaptive,
    lr: RealScalarLike | Schedule,
    *,
    steps: Any,
    limit: AbstractLimit | None = None,
    key: Key | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Curve:
    """Solves a limit of clipped SGD, in SGD steps.

    The learning rate and the thresholds are those that [`jaxclip.simulate`][] takes, so
    that the two curves can be laid over each other.

    **Arguments:**

    - `problem`: what SGD runs on: a [`jaxclip.LinearModel`][] for `RiskODE` and
        `HomogenizedSDE`, any problem for `GradientFlow`, a
        [`jaxclip.problem.AbstractNoisyProblem`][] for `ZeroLossFlow` and `ZeroLossSDE`.
    - `clip`: the rule; not an `Adaptive` one, which depends on more than the norm.
    - `lr`: the learning rate, per step: a number or a function of the step, which is
        called with fractions of a step too. Where it jumps from one whole step to the
        next, as of thresholds too, the value at a step holds until the next, which is
        what SGD makes of it. In a run of more than 2^20 steps (2^18 in float32) jumps
        are placed to within a millionth of the run (4 millionths).
    - `steps`: shape `(s,)`, the steps at which to report, not negative and increasing.
        The solution always starts at step 0.
    - `limit`: which one: `RiskODE()`, `HomogenizedSDE()`, `GradientFlow()`,
        `ZeroLossFlow()`, `ZeroLossSDE()`; by default the one that the problem has.
    - `key`: for an SDE, determines its Brownian motion.
    - `adjoint`: for an ODE, how diffrax differentiates the solution; by default in
        reverse mode.
    - `throw`: raise an error where the solver fails, or the risk of an ODE grows beyond
        all bounds; otherwise the risk is infinite from there on.

    **Returns:**

    A [`jaxclip.Curve`][].

    **Raises:**

    A `ValueError` where an argument is misused, and an error when the program runs
    where a traced one is, or where the solver fails.
    """
    clip = need_rule(clip, "solve")
    if limit is None:
        limit = own_limit(problem)
    if not isinstance(limit, AbstractLimit):
        raise ValueError(f"`limit` must be one such as `RiskODE()`. Got {limit!r}.")
    steps = reporting_steps(steps)
    lr = check_rate(lr, steps)
    request = Request(steps, key, adjoint, throw)
    with _forward_mode_named(adjoint):
        return limit.curve(problem, clip, lr, request)


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


def own_limit(problem: Any) -> AbstractLimit:
    """The limit that a problem has."""
    if isinstance(problem, LinearModel | CompressedLinearModel):
        return RiskODE()
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
