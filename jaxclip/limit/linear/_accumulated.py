r"""The risk ODE of an optimiser that accumulates squared gradients.

Beside the modes one number is followed, the accumulator $s$, on which the rate of
descent and the noise of every mode depend: the mean square of a gradient over the past
of Adam, their sum of AdaGrad.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import is_traced
from ..._curve import Curve
from ..._types import RealScalar, RealScalarLike
from ...problem import CompressedLinearModel, LinearModel, Modes, is_diagonal
from .._base import (
    AnyProblem,
    Request,
    infinite,
    infinite_after_failure,
    precision,
    raise_failure,
)
from .._reading import Reading
from .._watched import called, end_of, watched_solution
from .._watchful import Watchful
from ._tolerance import RelativeToSlower, relative_controller

_DIVERGED = (
    "The risk grows beyond all bounds: the learning rate is too large to be stable. "
    "Take a smaller one, or `throw=False`, with which the risk is infinite from there "
    "on."
)


class Motion(NamedTuple):
    """How fast the modes and the accumulator move, per step.

    - `descent`, `noise`: scalars or one number a mode, $q_j$ and $g_j$ of
        [`AccumulatedEquation`][].
    - `growth`: of the accumulator.
    """

    descent: Float[Array, "*n"]
    noise: Float[Array, "*n"]
    growth: Float[Array, ""]


class AccumulatedEquation(eqx.Module):
    r"""The vector field of the modes and the accumulator, as one vector.

    $$\frac{du_j}{dk} = e_j (-2 q_j u_j + \tfrac12 g_j f_j), \qquad \frac{ds}{dk} = h.$$

    - `modes`: the rates $e_j$, the risk $u_j$ at the start and the forcing $f_j$.
    - `motion`: a function of the step, the risk and the accumulator.
    - `reading`: at which times the motion's schedules are read.
    """

    modes: Modes
    motion: Callable[[RealScalar, RealScalar, RealScalar], Motion]
    reading: Reading

    def __call__(self, step: Any, y: Float[Array, " n_plus_1"]) -> Array:
        u, total = y[:-1], y[-1]
        # A trial step may pass zero by its tolerance, and is judged by its error.
        risk = jnp.maximum(jnp.sum(u), 0.0)
        motion = self.motion(self.reading.at(step), risk, jnp.maximum(total, 0.0))
        pull = -2 * motion.descent * u + motion.noise * self.modes.forcing / 2
        return jnp.append(self.modes.eigenvalues * pull, motion.growth)


class _RelativeParts(RelativeToSlower):
    """The error of the modes as of [`RelativeToSlower`][], that of the accumulator
    relative to itself."""

    def slower(self, sizes: Float[Array, " n_plus_1"]) -> Array:
        order = jnp.argsort(self.eigenvalues)
        below = jnp.cumsum(sizes[:-1][order])
        return sizes.at[:-1].set(jnp.zeros_like(below).at[order].set(below))


class How(NamedTuple):
    """How a solution is found; see [`jaxclip.RiskODE`][]."""

    solver: diffrax.AbstractSolver | None
    rtol: float | None
    max_steps: int


@eqx.filter_jit
def integrate_accumulated(
    equation: Callable[[Reading], AccumulatedEquation],
    start: RealScalar,
    request: Request,
    settings: Any,
    scale: RealScalarLike,
    how: How,
) -> Curve:
    """The curve of the risk, from a `start` of the accumulator.

    **Arguments:**

    - `equation`: makes the equation from the times at which schedules are read.
    - `request`, `settings`, `scale`: as of [`jaxclip.RiskODE`][]'s `integrate`.
    """
    steps = request.steps
    reading = Reading.of(settings, end_of(steps))
    field = equation(reading)
    modes = field.modes
    # Tsitouras' method is of too low an order to pay for the digits of `RiskODE`.
    rtol = max(precision(steps), 1e-8) if how.rtol is None else how.rtol
    plain = relative_controller(modes.eigenvalues, rtol)
    controller = _RelativeParts(
        plain.rtol, plain.atol, plain.norm, plain.controller, plain.eigenvalues
    )
    typical = jnp.maximum(jnp.sum(modes.risk), jnp.asarray(scale, steps.dtype))
    ys, solution = watched_solution(
        called,
        jnp.append(modes.risk, start),
        field,
        request,
        Watchful(controller, reading, infinite(typical)),
        diffrax.Tsit5() if how.solver is None else how.solver,
        how.max_steps,
    )
    modes_risk = ys[:, :-1]
    risk = infinite_after_failure(jnp.sum(modes_risk, axis=1))
    risk = raise_failure(risk, solution, _DIVERGED, request.throw)
    last = Modes(modes.eigenvalues, modes_risk[-1], modes.forcing)
    return Curve(steps, risk, reduced=last)


def need_coordinates(who: str, problem: AnyProblem, decays: bool = False) -> None:
    """Refuses a problem whose covariance is not diagonal in the coordinates that an
    optimiser scales, and, where weights decay, one whose origin is not the optimum."""
    if isinstance(problem, CompressedLinearModel):
        return
    assert isinstance(problem, LinearModel)
    if not is_diagonal(problem.basis):
        raise ValueError(
            f"`{who}` needs a covariance that is diagonal in the optimiser's "
            "coordinates. Got a problem with another `basis`; leave it out."
        )
    optimum = problem.optimum
    if decays and (is_traced(optimum) or np.any(np.asarray(optimum) != 0)):
        raise ValueError(
            f"`{who}` has the equation of weights that decay towards $x^*$: give the "
            "problem an `optimum` of zeros, known before tracing."
        )
