r"""One step of the exponential integrator, as an equation for three numbers.

The modes of the risk ODE move in a way that is known in closed form once the two
coefficients `q` and `g` are known over the step, one pair for all modes or one for
each. They are functions of the risk alone, so that the unknowns of a step are the
values of the risk at its inner nodes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar, RealScalarLike
from ...problem import Modes
from .._reading import Reading
from ._interpolation import (
    LAGRANGE,
    NODES,
    OverStep,
    columns,
    path_over,
    propagate,
    weighted,
)

# At step k and excess risk R: the rate of descent, lr * mu, and the strength of the
# noise, lr^2 * second. Each a number for all modes, or shape (n,), one for each.
Pair: TypeAlias = tuple[Float[Array, "*n"], Float[Array, "*n"]]
Coefficients = Callable[[RealScalar, RealScalar], Pair]
# The coefficients at the end of the last step.
State: TypeAlias = Pair
# Corrections of the nodes' risk, each of which gains some digits. What the last moves
# is counted as an error: a step that needs more is taken again, shorter.
_CORRECTIONS = 3


class ModeEquation(eqx.Module):
    """The risk ODE of modes: a vector field, and the parts that it is made of.

    - `modes`: the [`jaxclip.problem.Modes`][], with the rates at which they decay and
        how much of the noise each receives.
    - `coefficients`: a function of a step and an excess risk that returns the rate of
        descent `q` and the squared noise `g`, both per step: two numbers, or two
        vectors with a number for each mode.
    - `reading`: at which times the coefficients' schedules are read.
    """

    modes: Modes
    coefficients: Coefficients
    reading: Reading

    def __call__(self, step: Any, u: Any) -> Any:
        q, g = self.at(step, jnp.sum(u))
        return self.modes.eigenvalues * (-2 * q * u + g * self.modes.forcing / 2)

    def at(self, step: Any, risk: Any) -> Pair:
        """The coefficients `q` and `g`, per step, at a step and an excess risk."""
        # A trial step may pass zero by its tolerance, where no law is defined; it is
        # judged by its error, and one that is accepted is not negative.
        return self.coefficients(self.reading.at(step), jnp.maximum(risk, 0.0))


class _Inner(NamedTuple):
    """The coefficients of the equation at the inner nodes of a step.

    - `q`, `g`: shape `(3,)` or `(3, n)`, the rate of descent and the strength of the
        noise.
    """

    q: Float[Array, "3 *n"]
    g: Float[Array, "3 *n"]


class Collocation(eqx.Module):
    r"""One step of the solver, as an equation for the risk at its three inner nodes.

    From the risk $R_i$ at the nodes follow the coefficients there (`coefficients`);
    from the coefficients the motion of every mode over the whole step (`over`), since
    between the nodes they are interpolated; and from the modes the risk at the nodes
    (`risks`). The step is the fixed point, $R = \mathrm{risks}(\mathrm{coefficients}
    (R))$. It is found in two rounds of Newton's method: a round evaluates the
    coefficients, which is what costs, and linearises them in the risk.

    - `equation`: what is solved.
    - `y0`: shape `(n,)`, the modes at the start of the step.
    - `t0`, `t1`: its start, and the end at which schedules are read.
    - `end`: its end on the clock of the modes, which may be a little later: `t1` is
        then just before a jump of a schedule.
    - `start`: the coefficients at the start.
    """

    equation: ModeEquation
    y0: Float[Array, " n"]
    t0: RealScalarLike
    t1: RealScalarLike
    end: RealScalarLike
    start: State

    def step(self) -> tuple[Array, Array, dict[str, Array], State, diffrax.RESULTS]:
        """What diffrax asks of a solver's step."""
        risk, moved = self.solve()
        inner = self.coefficients(risk)
        found = self.over(inner)
        path, y1 = found.path, found.path.state(1.0)
        error = _error(found, y1) + moved
        # The same relative error for every mode: that of the risk, which counts. Of the
        # risk that is left: over a step it may fall by orders of magnitude.
        size = jnp.abs(y1)
        total = jnp.sum(size)
        relative = error / jnp.where(total > 0, total, 1.0)
        dense = {
            "u0": self.y0,
            "eigenvalues": path.eigenvalues,
            "forcing": path.forcing,
            "descent": path.descent,
            "drive": path.drive,
        }
        last = (inner.q[-1], inner.g[-1])
        return y1, relative * size, dense, last, diffrax.RESULTS.successful

    def coefficients(self, risk: Float[Array, " 3"]) -> _Inner:
        """The coefficients at the inner nodes, if the risk there is this."""
        shares = NODES[1:].astype(self.y0.dtype)
        steps = self.t0 + (self.t1 - self.t0) * shares
        return _Inner(*jax.vmap(self.equation.at)(steps, risk))

    def over(self, inner: _Inner) -> OverStep:
        """The solution over the step with these coefficients at its inner nodes."""
        q, g = (
            jnp.concatenate([jnp.asarray(first)[None], rest])
            for first, rest in zip(self.start, inner, strict=True)
        )
        return path_over(self.equation.modes, self.y0, self.t0, self.end, q, g)

    def risks(self, inner: _Inner) -> Float[Array, " 3"]:
        """The risk at the inner nodes that follows from the coefficients there."""
        state = self.over(inner).path.state
        return jnp.sum(jax.vmap(state)(NODES[1:].astype(self.y0.dtype)), axis=1)

    def solve(self) -> tuple[Float[Array, " 3"], RealScalar]:
        """The risk at the inner nodes, and by how much it may still be off."""
        # Where the risk would go if the coefficients stayed as they are. What is found
        # from there is differentiated as the solution that it is, not as it was found.
        constant = _Inner(
            *(jnp.broadcast_to(value, (3, *jnp.shape(value))) for value in self.start)
        )
        return jax.lax.custom_root(
            lambda risk: self.risks(self.coefficients(risk)) - risk,
            jax.lax.stop_gradient(self.risks(constant)),
            lambda _, guess: self.newton(guess),
            _solve_linear,
            has_aux=True,
        )

    def newton(
        self, guess: Float[Array, " 3"]
    ) -> tuple[Float[Array, " 3"], RealScalar]:
        """Two rounds from a guess, and what more of them would move."""
        risk, (moved, left) = jax.lax.scan(
            lambda risk, _: self.newton_round(risk), guess, None, length=2
        )
        # What a third round would move, were the rounds to gain no faster: the second
        # moved `ratio` times as much as the first.
        some = moved[0] > 0
        ratio = jnp.where(some, moved[1] / jnp.where(some, moved[0], 1.0), 0.0)
        return risk, moved[1] * ratio + left[1]

    def newton_round(
        self, risk: Float[Array, " 3"]
    ) -> tuple[Float[Array, " 3"], tuple[RealScalar, RealScalar]]:
        """A better risk; by how much it moved, and what the last correction moved."""
        # The coefficients are what costs: each is linearised in the risk, and the
        # risk at the nodes that fits the lines is found, which costs little.
        ones = jnp.ones_like(risk)
        values, slopes = jax.jvp(self.coefficients, (risk,), (ones,))

        def on_the_lines(moved):
            return jax.tree.map(
                lambda value, slope: value + slope * _rows(moved - risk, slope),
                values,
                slopes,
            )

        better, left = _fit(lambda moved: self.risks(on_the_lines(moved)), risk)
        return better, (jnp.max(jnp.abs(better - risk)), jnp.max(left))


def _rows(values: Float[Array, " 3"], like: Float[Array, "3 *n"]) -> Array:
    """One number a node, to be multiplied with what may be a row a node."""
    return values if like.ndim == 1 else values[:, None]


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


def _error(found: OverStep, y1: Float[Array, " n"]) -> RealScalar:
    """An estimate of the error of the risk at the end of a step: that of cubics through
    all four nodes minus that of quadratics, which leave out the second inner one.

    To first order it has two parts: the clock is off by what the cubic term of `q` adds
    to its integral (`lag`), and what drives the modes by its own cubic term.
    """
    path = found.path
    c1 = float(NODES[1])
    # What is left of t^3 without its quadratic through 0, c1 and 1 is the product
    # t (t - c1) (t - 1), whose integral is the number in brackets.
    cubic = weighted(jnp.asarray(LAGRANGE[:, 3], y1.dtype), path.descent)
    lag = (path.t1 - path.t0) * cubic * (1 / 4 - (1 + c1) / 3 + c1 / 2)
    # By how much each mode moves for a unit of the clock at the end of the step.
    decay = path.eigenvalues * (path.forcing * jnp.sum(path.drive, axis=0) - 2 * y1)
    # The same product in the clock, in powers: x (x - x1) (x - 1).
    x1 = found.node
    shape = jnp.stack([jnp.zeros_like(x1), x1, -(1 + x1), jnp.ones_like(x1)])
    _, driven = propagate(path.eigenvalues, path.clock(1.0))
    forced = path.forcing * jnp.sum(driven * columns(shape), axis=0)
    return jnp.sum(jnp.abs(lag * decay)) + jnp.abs(jnp.sum(found.cubic * forced))


def _inverse(matrix: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """By the adjugate: a library's call costs more than the rest of a step."""
    a, b, c = matrix
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return rows / jnp.sum(a * rows[:, 0])
