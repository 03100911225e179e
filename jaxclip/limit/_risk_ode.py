"""The ODE of the risk: what clipped SGD does when the dimension is large."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._checks import is_traced
from .._curve import Curve
from .._schedule import PiecewiseLinear
from .._types import Array, Key, Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem, CompressedLeastSquares, LeastSquares, Modes
from ._base import AbstractLimit, infinite_after_failure, need_least_squares, precision
from ._exponential import Coefficients, ExponentialModes, ModeEquation
from ._moments import unchecked_moments
from ._tolerance import relative_controller

# Spectra with more eigenvalues than this are compressed, to so many nodes.
_MANY, _NODES = 512, 48


class RiskODE(AbstractLimit):
    r"""The deterministic limit of the risk of clipped SGD.

    With $v_j = \|z_j\|^2 / 2$ for the error in the eigenspace of $\lambda_j$, which has
    dimension $d_j$, and $R = \sum_j \lambda_j v_j$, in steps:

    $$\frac{dv_j}{dk} = -2 \gamma \mu(R) \lambda_j v_j
    + \tfrac12 \gamma^2\, \mathrm{second}(R)\, \lambda_j d_j.$$

    Section 3 of arXiv:2406.11733, for the hard clip; for other rules derived here. One
    run of SGD deviates from it by about one over the square root of the intrinsic
    dimension, the mean over runs by about one over it.

    The cost of a step grows with the number of different eigenvalues. A spectrum of
    more than 512 is compressed to 96 modes, with an error below 1e-6, where it is known
    before tracing. That takes longer than the solution: for many solutions compress
    once, with [`jaxclip.LeastSquares.compress`][].

    **Arguments:**

    - `solver`: a diffrax solver of ODEs. By default [`jaxclip.ExponentialModes`][] for
        a wide spectrum, on which it takes few steps: one whose eigenvalues differ by a
        factor of more than 100, or, where that is not known before tracing, one of more
        than 64. Tsitouras' 5/4 method, which costs less a step, for the others.
    - `rtol`: the relative tolerance of the adaptive steps, of the risk that is left,
        however far it has fallen. By default 1e-9 in float64,
        1e-8 with `ExponentialModes`, whose error is below it, and 1e-5 in float32.
    - `max_steps`: how many steps the solver may take.
    """

    solver: diffrax.AbstractSolver | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**4)

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
        del key
        if not isinstance(problem, CompressedLeastSquares):
            problem = need_least_squares(self, problem)
        modes = few_modes(problem)

        def coefficients(step, excess):
            m = unchecked_moments(clip, problem.noise, excess, modes.feature_norm, step)
            rate = lr(step)
            return rate * m.mu, rate**2 * m.second

        kinks = _kinks((clip, lr))
        return self.integrate(modes, coefficients, steps, adjoint, throw, kinks)

    def integrate(
        self,
        modes: Modes,
        coefficients: Coefficients,
        steps: Float[Array, " s"],
        adjoint: diffrax.AbstractAdjoint | None = None,
        throw: bool = True,
        kinks: Float[Array, " k"] | None = None,
    ) -> Curve:
        """The same ODE with coefficients that may be any function of step and risk,
        smooth in the step but at `kinks`."""
        rtol = precision(steps)
        solver = _solver(modes) if self.solver is None else self.solver
        if isinstance(solver, ExponentialModes):
            rtol = max(rtol, 1e-8)
        controller = relative_controller(
            modes.eigenvalues, rtol if self.rtol is None else self.rtol
        )
        if kinks is not None:
            controller = diffrax.ClipStepSizeController(controller, step_ts=kinks)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda step, u, equation: equation(step, u)),
            solver,
            t0=jnp.zeros_like(steps[0]),
            t1=jnp.maximum(steps[-1], jnp.finfo(steps.dtype).tiny),
            dt0=None,
            y0=modes.risk,
            args=ModeEquation(modes, coefficients),
            saveat=diffrax.SaveAt(ts=steps),
            stepsize_controller=controller,
            adjoint=diffrax.RecursiveCheckpointAdjoint()
            if adjoint is None
            else adjoint,
            max_steps=self.max_steps,
            throw=throw,
        )
        assert solution.ys is not None
        risk = infinite_after_failure(jnp.sum(solution.ys, axis=1))
        return Curve(steps, risk, solution.ys[-1] / modes.eigenvalues)


def _kinks(settings: Any) -> Float[Array, " k"] | None:
    """The knots of the schedules in a rule and a rate, if they are few: over a kink the
    solver would feel its way, and to stop at each of hundreds costs more than that."""
    leaves = jax.tree.leaves(settings, is_leaf=lambda x: isinstance(x, PiecewiseLinear))
    schedules = [leaf for leaf in leaves if isinstance(leaf, PiecewiseLinear)]
    count = sum(len(schedule.knots) for schedule in schedules)
    if not 1 < count <= 64:
        return None
    knots = jnp.concatenate([schedule.knots for schedule in schedules])
    return jax.lax.stop_gradient(jnp.sort(knots))


def _solver(modes: Modes) -> diffrax.AbstractSolver:
    eigenvalues = modes.eigenvalues
    if is_traced(eigenvalues):
        wide = len(eigenvalues) > 64
    else:
        known = np.asarray(eigenvalues)
        wide = bool(known.max() > 100 * known.min())
    return ExponentialModes() if wide else diffrax.Tsit5()


def few_modes(problem: LeastSquares | CompressedLeastSquares) -> Modes:
    """The modes of a problem, compressed where they are many and known."""
    modes = problem.modes
    many = len(modes.eigenvalues) > _MANY
    if not many or is_traced(modes.eigenvalues) or is_traced(modes.risk):
        return modes
    return modes.compress(_NODES)
