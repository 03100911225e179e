"""The verb that solves a limit, and what a limit is."""

import abc
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_float, check
from .._curve import Curve
from .._schedule import check_rate
from .._types import Key, RealScalarLike, Schedule
from ..clip import AbstractClip, Adaptive
from ..clip._adaptive import need_rule
from ..problem import AbstractProblem, CompressedLeastSquares, LeastSquares


class AbstractLimit(eqx.Module):
    """A differential equation that SGD converges to."""

    @abc.abstractmethod
    def curve(
        self,
        problem: AbstractProblem | CompressedLeastSquares,
        clip: AbstractClip,
        lr: Schedule,
        *,
        steps: Float[Array, " s"],
        key: Key | None,
        adjoint: diffrax.AbstractAdjoint | None,
        throw: bool,
    ) -> Curve:
        """The curve; the arguments are those of [`jaxclip.solve`][], checked."""


def solve(
    limit: AbstractLimit,
    problem: AbstractProblem | CompressedLeastSquares,
    clip: AbstractClip | Adaptive,
    lr: RealScalarLike | Schedule,
    *,
    steps: Any,
    key: Key | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Curve:
    """Solves a limit of clipped SGD, in SGD steps.

    The learning rate and the thresholds are those that [`jaxclip.simulate`][] takes, so
    that the two curves can be laid over each other.

    **Arguments:**

    - `limit`: which one: `RiskODE()`, `HomogenizedSDE()`, `GradientFlow()`,
        `ZeroLossFlow()`, `ZeroLossSDE()`.
    - `problem`: what SGD runs on: a [`jaxclip.LeastSquares`][] for the first two, any
        problem for the third, a [`jaxclip.AbstractNoisyProblem`][] for the last two.
    - `clip`: the rule; not an `Adaptive` one, which depends on more than the norm.
    - `lr`: the learning rate, per step: a number or a function of the step, which is
        called with fractions of a step too.
    - `steps`: shape `(s,)`, the steps at which to report, not negative and increasing.
        The solution always starts at step 0.
    - `key`: for an SDE, determines its Brownian motion.
    - `adjoint`: for an ODE, how diffrax differentiates the solution.
    - `throw`: raise an error where the solver fails; otherwise the risk is infinite
        from there on.

    **Returns:**

    A [`jaxclip.Curve`][].

    **Raises:**

    A `ValueError` where an argument is misused, and an error when the program runs
    where a traced one is, or where the solver fails.
    """
    clip = need_rule(clip, "solve")
    if not isinstance(limit, AbstractLimit):
        raise ValueError(f"`limit` must be one such as `RiskODE()`. Got {limit!r}.")
    steps = as_float("steps", steps)
    if steps.ndim != 1 or steps.size == 0:
        raise ValueError(
            "`steps` must be a vector of the steps at which to report, such as "
            f"`jnp.linspace(0, 1000, 11)`. Got shape {steps.shape}."
        )
    steps = check(
        steps,
        lambda k: ~((k >= 0) & (k < np.inf)),
        "`steps` must be non-negative and finite.",
    )
    steps = check(
        steps, lambda k: ~(k[1:] >= k[:-1]), "`steps` must be in increasing order."
    )
    return limit.curve(
        problem,
        clip,
        check_rate(lr, steps),
        steps=steps,
        key=key,
        adjoint=adjoint,
        throw=throw,
    )


def need_least_squares(limit: AbstractLimit, problem: Any) -> LeastSquares:
    """The problem, if it is one that the limits of linear models know."""
    if isinstance(problem, LeastSquares):
        return problem
    name = type(limit).__name__
    raise ValueError(
        f"`{name}` needs a `LeastSquares` problem. Got a {type(problem).__name__}; for "
        "the rows of a table, estimate one with `LeastSquares.from_data(X, y)`."
    )


def precision(steps: Array) -> tuple[float, float]:
    """Relative tolerances of a solver, and of its smallest numbers, for a dtype."""
    return (1e-9, 1e-13) if steps.dtype == jnp.float64 else (1e-5, 1e-8)


def infinite_after_failure(risk: Float[Array, " s"]) -> Float[Array, " s"]:
    """diffrax leaves inf where it did not arrive; NaN means the same."""
    return jnp.where(jax.lax.cummax(jnp.isnan(risk).astype(int)) > 0, jnp.inf, risk)
