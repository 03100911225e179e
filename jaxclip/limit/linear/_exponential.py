r"""A diffrax solver for the modes of a linear model.

Every mode of the risk ODE decays at its own eigenvalue times one common rate,

$$\frac{du_j}{dk} = \lambda_j \left(-2 q\, u_j + \tfrac12 g f_j\right),
\qquad q = q(k, R), \quad g = g(k, R), \quad R = \sum_j u_j,$$

so that in the clock $d\tau = q\,dk$ the decay is exact and only the two coefficients,
functions of one number, have to be approximated over a step. However stiff the spectrum
and however many its modes, a step has three unknowns: the risk at its inner nodes.
Derived here.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar, RealScalarLike
from ...problem import Modes
from .._reading import Reading
from ._interpolation import LAGRANGE, NODES, Path, path_over, propagate

# At step k and excess risk R: the rate of descent, lr * mu, and the strength of the
# noise, lr^2 * second.
Coefficients = Callable[[RealScalar, RealScalar], tuple[RealScalar, RealScalar]]
# The coefficients at the end of the last step.
_State: TypeAlias = tuple[RealScalar, RealScalar]
# Corrections of the nodes' risk, each of which gains some digits. What the last moves
# is counted as an error: a step that needs more is taken again, shorter.
_CORRECTIONS = 3


class ModeEquation(eqx.Module):
    """The risk ODE of modes, as a vector field and as what its parts are.

    - `modes`: the decay rates and what the noise drives.
    - `coefficients`: a function of a step and an excess risk that returns the rate of
        descent `q` and the squared noise `g`, both per step.
    - `reading`: at which times the coefficients' schedules are read.
    """

    modes: Modes
    coefficients: Coefficients
    reading: Reading

    def __call__(self, step: Any, u: Any) -> Any:
        q, g = self.at(step, jnp.sum(u))
        return self.modes.eigenvalues * (-2 * q * u + g * self.modes.forcing / 2)

    def at(self, step: Any, risk: Any) -> tuple[RealScalar, RealScalar]:
        """The coefficients `q` and `g` at a step and an excess risk."""
        # A trial step may pass zero by its tolerance, where no law is defined; it is
        # judged by its error, and one that is accepted is not negative.
        return self.coefficients(self.reading.at(step), jnp.maximum(risk, 0.0))


class ExponentialModes(diffrax.AbstractAdaptiveSolver):
    """The exponential integrator of a [`ModeEquation`][], given as `args`.

    Order 6 in the step where the coefficients are smooth; the error estimate is of
    order 4. It may be differentiated any number of times, in both modes.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = Path

    def order(self, terms: Any) -> int:
        del terms
        return 6

    def error_order(self, terms: Any) -> int:
        del terms
        return 4

    def init(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
    ) -> _State:
        del terms, t1
        return args.at(t0, jnp.sum(y0))

    def func(
        self,
        terms: Any,
        t0: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
    ) -> Float[Array, " n"]:
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
        solver_state: _State,
        made_jump: Any,
    ) -> tuple[
        Float[Array, " n"],
        Float[Array, " n"],
        dict[str, Array],
        _State,
        diffrax.RESULTS,
    ]:
        del terms
        equation = args
        if made_jump is not False:
            # Those from before the jump are of another schedule.
            solver_state = jax.lax.cond(
                made_jump,
                lambda: equation.at(t0, jnp.sum(y0)),
                lambda: solver_state,
            )
        end = t0 + equation.reading.length(t0, t1)
        steps = t0 + (t1 - t0) * NODES[1:].astype(y0.dtype)
        at = jax.vmap(equation.at)
        start = [jnp.asarray(value)[None] for value in solver_state]

        def path(inner):
            q, g = (jnp.concatenate([a, b]) for a, b in zip(start, inner, strict=True))
            return path_over(equation.modes, y0, t0, end, q, g)

        def image(inner):
            """The risk at the nodes, from the coefficients there."""
            state = path(inner)[0].state
            return jnp.sum(jax.vmap(state)(NODES[1:].astype(y0.dtype)), axis=1)

        def improve(risk, _):
            # The coefficients are what costs: each is linearised in the risk, and the
            # risk at the nodes that fits the lines is found, which costs little.
            values, slopes = jax.jvp(coefficients, (risk,), (jnp.ones_like(risk),))

            def fits(moved):
                return [
                    value + slope * (moved - risk)
                    for value, slope in zip(values, slopes, strict=True)
                ]

            better, left = _fit(lambda moved: image(fits(moved)), risk)
            return better, (jnp.max(jnp.abs(better - risk)), jnp.max(left))

        def solve(function, guess):
            del function
            risk, (moved, left) = jax.lax.scan(improve, guess, None, length=2)
            # What a third round would move, were the rounds to gain no faster.
            some = moved[0] > 0
            ratio = jnp.where(some, moved[1] / jnp.where(some, moved[0], 1.0), 0.0)
            return risk, moved[1] * ratio + left[1]

        def coefficients(risk):
            return at(steps, risk)

        # Where the risk would go if the coefficients stayed as they are. What is found
        # from there is differentiated as the solution that it is, not as it was found.
        guess = image([jnp.broadcast_to(value, (3,)) for value in start])
        risk, moved = jax.lax.custom_root(
            lambda risk: image(coefficients(risk)) - risk,
            jax.lax.stop_gradient(guess),
            solve,
            _solve_linear,
            has_aux=True,
        )
        inner = coefficients(risk)
        solution, last, x1 = path(inner)
        y1 = solution.state(1.0)
        error = _error(solution, y1, last, x1) + moved
        # The same relative error for every mode: that of the risk, which counts. Of the
        # risk that is left: over a step it may fall by orders of magnitude.
        size = jnp.abs(y1)
        total = jnp.sum(size)
        relative = error / jnp.where(total > 0, total, 1.0)
        dense = {
            "u0": y0,
            "eigenvalues": solution.eigenvalues,
            "forcing": solution.forcing,
            "descent": solution.descent,
            "drive": solution.drive,
        }
        end = (inner[0][-1], inner[1][-1])
        return y1, relative * size, dense, end, diffrax.RESULTS.successful


def _fit(image, risk):
    """The fixed point of `image`, by Newton's method with one Jacobian, and what the
    last correction moved."""
    matrix = jnp.eye(3, dtype=risk.dtype) - jax.jacfwd(image)(risk)
    inverse = _inverse(matrix)

    def correct(risk, _):
        update = jnp.sum(inverse * (image(risk) - risk)[None, :], axis=1)
        return risk + update, jnp.abs(update)

    risk, updates = jax.lax.scan(correct, risk, None, length=_CORRECTIONS)
    return risk, updates[-1]


def _solve_linear(function, value):
    """What a linear function of three numbers takes to `value`."""
    matrix = jax.jacfwd(function)(jnp.zeros_like(value))
    return jnp.sum(_inverse(matrix) * value[None, :], axis=1)


def _error(solution: Path, y1, last, x1):
    """How far the risk is from that of the quadratics through the nodes but one."""
    c1 = float(NODES[1])
    cubic = jnp.sum(solution.descent * LAGRANGE[:, 3].astype(y1.dtype))
    lag = (solution.t1 - solution.t0) * cubic * (1 / 4 - (1 + c1) / 3 + c1 / 2)
    decay = solution.eigenvalues * (solution.forcing * jnp.sum(solution.drive) - 2 * y1)
    _, driven = propagate(solution.eigenvalues, solution.clock(1.0))
    shape = jnp.stack([jnp.zeros_like(x1), x1, -(1 + x1), jnp.ones_like(x1)])
    forced = jnp.sum(solution.forcing * jnp.sum(driven * shape[:, None], axis=0))
    return jnp.abs(lag) * jnp.sum(jnp.abs(decay)) + jnp.abs(last * forced)


def _inverse(matrix: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """By the adjugate: a library's call costs more than the rest of a step."""
    a, b, c = matrix
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return rows / jnp.sum(a * rows[:, 0])
