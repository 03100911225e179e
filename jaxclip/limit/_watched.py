"""The call of diffrax that all equations share."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import RealScalar
from ._base import Request
from ._watchful import WatchedTerm, Watchful


def end_of(steps: Float[Array, " s"]) -> RealScalar:
    """The last step, or next to nothing where it is 0: a solution without a length has
    no first step to choose."""
    return jnp.maximum(steps[-1], jnp.finfo(steps.dtype).tiny)


def watched_solution(
    field: Callable[[Any, Any, Any], Any],
    y0: Any,
    args: Any,
    request: Request,
    controller: Watchful,
    solver: diffrax.AbstractSolver,
    max_steps: int,
    *,
    first: RealScalar | None = None,
    seen: Callable[[Any], Any] | None = None,
) -> tuple[Any, diffrax.Solution]:
    """The solution from step 0 at the steps of a request, which stops where schedules
    do.

    Returned are what it is there, and diffrax's own result, which says how it failed
    where it did: what that means each equation says itself.

    **Arguments:**

    - `field`, `y0`: the vector field, a function of the step, the solution and `args`,
        and where it starts.
    - `controller`: with the reading of the schedules.
    - `solver`, `max_steps`: as of `diffrax.diffeqsolve`.
    - `first`: the length of the first step, by default one that diffrax chooses.
    - `seen`: what of a solution is kept; by default all.
    """
    end, adjoint, reading = end_of(request.steps), request.adjoint, controller.reading
    if seen is None:
        saveat = diffrax.SaveAt(ts=request.steps)
    else:
        saveat = diffrax.SaveAt(ts=request.steps, fn=lambda step, y, args: seen(y))
    solution = diffrax.diffeqsolve(
        WatchedTerm(field, reading),
        solver,
        t0=jnp.zeros_like(end),
        t1=end,
        dt0=first,
        y0=y0,
        args=args,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None
    return solution.ys, solution


def called(step: Any, y: Any, equation: Any) -> Any:
    """The field of an equation that is given as `args`, and not in a closure: solvers
    that take it apart find it there."""
    return equation(step, y)
