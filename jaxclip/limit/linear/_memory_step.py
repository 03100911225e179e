"""One step of modes with momentum: collocation, with the risk at its nodes unknown."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._types import RealScalar, RealScalarLike
from ._memory import Forces, MemoryEquation
from ._memory_system import System
from ._radau import ESTIMATE, FILTER, INTEGRALS, LAGRANGE, NODES, inverse

# Of Newton's method: what the last moves is counted as an error, and a step that needs
# more is taken again, shorter.
_ROUNDS = 2


class Step(eqx.Module):
    r"""One step, as an equation for the risk at its nodes.

    The forces are functions of the step and of the risk alone, and the modes follow
    from the forces at the nodes by linear systems. The step is the fixed point,
    $R = \mathrm{risks}(\mathrm{forces}(R))$, found by Newton's method: a round
    evaluates the forces, which is what costs, and linearises them in the risk.

    - `equation`: what is solved.
    - `y0`: shape `(rows, n)`, what is followed, at the start of the step.
    - `t0`, `t1`: its start, and the end at which schedules are read.
    - `length`: of the step, on the clock of the modes.
    - `guess`: forces from which the search for the risk starts.
    """

    equation: MemoryEquation
    y0: Float[Array, "rows n"]
    t0: RealScalar
    t1: RealScalar
    length: RealScalar
    guess: Forces

    def __call__(self) -> tuple[Array, Array, Array, Forces]:
        """The end of the step, its error, what is followed at the nodes, and the
        forces at the end."""
        risk, moved = self.solve()
        # At the start, too, in one pass.
        known = jnp.concatenate([jnp.sum(self.y0[0])[None], risk])
        start, forces = _split(self.forces(known, np.append(0.0, NODES)))
        path = self.path(forces)
        last = jax.tree.map(lambda x: x[-1], forces)
        end = path[:, -1]
        total = _energy(end, last, self.equation)
        error = self.error(path, start, forces) + moved
        # The same relative error for all that is followed: that of the risk.
        relative = error / jnp.where(total > 0, total, 1.0)
        size = jnp.maximum(jnp.abs(self.y0), jnp.abs(end))
        return end, relative * size, path, last

    def forces(self, risk: Float[Array, " t"], shares: np.ndarray = NODES) -> Forces:
        """The forces at shares of the step, if the risk there is this."""
        times = self.t0 + (self.t1 - self.t0) * jnp.asarray(shares, self.y0.dtype)
        return jax.vmap(self.equation.at)(times, risk)

    def system(self, forces: Forces) -> System:
        """The linear system of the nodes with these forces at them."""
        integrals = self.length * INTEGRALS.astype(self.y0.dtype)
        return self.equation.system(forces, integrals)

    def path(self, forces: Forces) -> Float[Array, "rows t n"]:
        """What is followed at the nodes, with these forces there."""
        return self.equation.path(self.system(forces), self.y0)

    def risks(self, forces: Forces) -> Float[Array, " t"]:
        """The risk at the nodes that follows from the forces there."""
        return jnp.sum(self.path(forces)[0], axis=1)

    def solve(self) -> tuple[Float[Array, " t"], RealScalar]:
        """The risk at the nodes, and by how much it may still be off."""
        # Where the risk would go with the forces of the last step's end. What is found
        # from there is differentiated as the solution that it is, not as it was found.
        count = (len(NODES),)
        constant = jax.tree.map(lambda x: jnp.broadcast_to(x, count), self.guess)
        return jax.lax.custom_root(
            lambda risk: self.risks(self.forces(risk)) - risk,
            jax.lax.stop_gradient(self.risks(constant)),
            lambda _, guess: self.newton(guess),
            _solve_linear,
            has_aux=True,
        )

    def newton(
        self, guess: Float[Array, " t"]
    ) -> tuple[Float[Array, " t"], RealScalar]:
        """Two rounds from a guess, and what more of them would move."""
        risk, moved = jax.lax.scan(
            lambda risk, _: self.newton_round(risk), guess, None, length=_ROUNDS
        )
        # What one round more would move, were it to gain no more than the last.
        some = moved[-2] > 0
        ratio = jnp.where(some, moved[-1] / jnp.where(some, moved[-2], 1.0), 0.0)
        return risk, moved[-1] * ratio

    def newton_round(
        self, risk: Float[Array, " t"]
    ) -> tuple[Float[Array, " t"], RealScalar]:
        """A better risk, and by how much it moved."""
        # The risk at a node changes the forces there alone, and these what is added at
        # that node: one system serves for the modes and for all of their derivatives.
        values, slopes = jax.jvp(self.forces, (risk,), (jnp.ones_like(risk),))
        system = self.system(values)
        path = self.equation.path(system, self.y0)

        def added(y, force, slope):
            rates = self.equation.rates
            return jax.jvp(lambda f: rates(y, f), (force,), (slope,))[1]

        rates = jax.vmap(added, (1, 0, 0), out_axes=1)(path, values, slopes)

        def column(weights, rate):
            moved = system.respond(weights[None, :, None] * rate[:, None])
            return jnp.sum(moved[0], axis=1)

        columns = jax.vmap(column, 1, out_axes=1)(system.integral[:, :, 0], rates)
        image, eye = jnp.sum(path[0], axis=1), jnp.eye(len(risk), dtype=risk.dtype)
        back = inverse((eye - columns)[:, :, None])[:, :, 0]
        update = jnp.sum(back * (image - risk)[None, :], axis=1)
        return risk + update, jnp.max(jnp.abs(update))

    def error(
        self, path: Float[Array, "rows t n"], start: Forces, forces: Forces
    ) -> RealScalar:
        """An estimate of the risk's error at the end of the step: that of a quadrature
        of order 5 with the start among its nodes, damped where the modes are stiff."""
        rates = self.equation.rates
        inner = jax.vmap(rates, (1, 0), out_axes=1)(path, forces)
        weights = ESTIMATE.astype(self.y0.dtype)[None, :, None]
        difference = FILTER * rates(self.y0, start)
        difference = difference + jnp.sum(weights * inner, axis=1)
        start = jax.tree.map(lambda x: x[None], start)
        lag = jnp.full((1, 1), FILTER, self.y0.dtype) * self.length
        damped = self.equation.system(start, lag).respond(
            self.length * difference[:, None]
        )
        return jnp.sum(jnp.abs(damped[0, 0]))


class Inside(diffrax.AbstractLocalInterpolation):
    """The solution inside of a step: the polynomial through its start and its nodes.

    - `y0`: shape `(rows, n)`, and `path`: shape `(rows, t, n)`.
    """

    # Variables of the class in diffrax's types, and fields here.
    t0: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    y0: Float[Array, "rows n"]
    path: Float[Array, "rows t n"]

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        share = (t0 - self.t0) / (self.t1 - self.t0)
        powers = [jnp.ones_like(share)]
        for _ in range(len(NODES)):
            powers.append(powers[-1] * share)
        lagrange = LAGRANGE.astype(self.y0.dtype)
        weights = jnp.sum(jnp.stack(powers)[None, :] * lagrange, axis=1)
        inner = jnp.sum(weights[None, 1:, None] * self.path, axis=1)
        return weights[0] * self.y0 + inner


def _energy(
    y: Float[Array, "rows n"], forces: Forces, equation: MemoryEquation
) -> RealScalar:
    """The risk, and what the momentum may yet make of it: where modes oscillate the
    risk passes through zero, and is no measure of an error."""
    total = jnp.sum(y[0])
    if not equation.memory:
        return total
    f = equation.parts(*jax.tree.map(lambda x: x[None], forces))
    # In terms of the error: in an oscillation, and carried on without any force.
    stiff = _ratio(f.carry, f.slope)
    free = _ratio(f.carry**2, f.forget**2)
    moving = jnp.minimum(stiff, free)[0]
    return total + jnp.sum(jnp.where(jnp.isfinite(moving), moving, 0.0) * y[2])


def _split(forces: Forces) -> tuple[Forces, Forces]:
    """Those at the start, and those at the nodes."""
    first = jax.tree.map(lambda x: x[0], forces)
    return first, jax.tree.map(lambda x: x[1:], forces)


def _ratio(numerator, denominator):
    some = denominator > 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), jnp.inf)


def _solve_linear(function: Any, value: Float[Array, " t"]) -> Float[Array, " t"]:
    matrix = jax.jacfwd(function)(jnp.zeros_like(value))
    return jnp.sum(inverse(matrix[:, :, None])[:, :, 0] * value[None, :], axis=1)
