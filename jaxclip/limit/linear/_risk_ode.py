"""The ODE of the risk: what clipped SGD does when the dimension is large."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..._checks import is_traced
from ..._curve import Curve
from ..._types import RealScalar, RealScalarLike, Schedule
from ...clip import AbstractClip
from ...problem import (
    CompressedLinearModel,
    LinearModel,
    Modes,
    check_squared,
    need_residual_loss,
)
from .._base import (
    AbstractLimit,
    AnyProblem,
    Request,
    infinite,
    infinite_after_failure,
    precision,
    raise_failure,
)
from .._intervals import varies
from .._loss_moments import need_loss_moments
from .._moments import fixed_moments, update_laws
from .._reading import Reading
from .._watched import called, end_of, watched_solution
from .._watchful import Watchful
from ._band import OfModes, Scattered, ScatterEquation, deviation, summary
from ._band_step import ScatteredModes
from ._clipped import RiskCoefficients
from ._collocation import Coefficients, ModeEquation
from ._exponential import ExponentialModes
from ._scatter import ResponseOfSamples, need_each_sample, scatter_modes
from ._tolerance import relative_controller

# Spectra with more eigenvalues than this are compressed, to so many nodes for each of
# two measures: where the start has its risk, and where the noise drives.
_MANY, _NODES = 512, 48
DIVERGED = (
    "The risk grows beyond all bounds: the learning rate is too large to be stable. "
    "Take a smaller one, a rule that clips, or `throw=False`, with which the risk is "
    "infinite from there on."
)


class RiskODE(AbstractLimit):
    r"""The deterministic limit of the risk of clipped SGD.

    With $v_j = \|z_j\|^2 / 2$ for the error in the eigenspace of $\lambda_j$, which has
    dimension $d_j$, and $R = \sum_j \lambda_j v_j$, in steps:

    $$\frac{dv_j}{dk} = -2 \gamma \mu(R) \lambda_j v_j
    + \tfrac12 \gamma^2\, \mathrm{second}(R)\, \lambda_j d_j.$$

    Section 3 of arXiv:2406.11733, for the hard clip; for other rules, and for other
    losses of the residual ([`jaxclip.limit.loss_moments`][]), derived here. One
    run of SGD deviates from it by about one over the square root of the intrinsic
    dimension, the mean over runs by about one over it.

    The cost of a step grows with the number of different eigenvalues. A spectrum of
    more than 512 is compressed to 96 modes, with an error below 1e-6, where it is known
    before tracing. That takes longer than the solution: for many solutions compress
    once, with [`jaxclip.LinearModel.compress`][].

    **Arguments:**

    - `solver`: a diffrax solver of ODEs. By default
        [`jaxclip.limit.ExponentialModes`][] for a wide spectrum, on which it takes few
        steps: one whose eigenvalues differ by a factor of more than 100, or, where that
        is not known before tracing, one of more than 64. Tsitouras' 5/4 method, which
        costs less a step, for the others.
    - `rtol`: the relative tolerance of the adaptive steps, of the risk that is left,
        however far it has fallen. By default 1e-9 in float64,
        1e-8 with `ExponentialModes`, whose error is below it, and 1e-5 in float32.
    - `max_steps`: how many steps the solver may take; a schedule that jumps at every
        step needs two for each or more.
    """

    solver: diffrax.AbstractSolver | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, CompressedLinearModel):
            problem = need_residual_loss(type(self).__name__, problem)
        instead = "take `limit=MomentumODE()`, or leave it out"
        request.need_only("RiskODE", ("batch_size", "scope", "std"), instead)
        need_loss_moments("RiskODE", problem.loss, request.update)
        if request.std:
            check_squared("RiskODE with `std=True`", problem.loss)
            need_each_sample("RiskODE with `std=True`", clip, request.update)
        modes = scatter_modes(problem) if request.std else few_modes(problem)
        norm, update = modes.feature_norm, request.update
        laws = update_laws(problem.noise, update, jnp.sum(modes.risk))
        if not varies(clip):
            laws = fixed_moments(clip, norm, update.batch_size, laws)
        how = lr, update, laws
        coefficients = RiskCoefficients(clip, problem.loss, problem.noise, norm, *how)
        settings, scale = (clip, lr), problem.noise.variance
        response = None
        if request.std:
            noise, batch = problem.noise, update.batch_size
            response = ResponseOfSamples(clip, noise, norm**2, lr, batch)
        return self._solve(modes, coefficients, request, settings, scale, response)

    def integrate(
        self,
        modes: Modes,
        coefficients: Coefficients,
        request: Request,
        settings: Any = None,
        scale: RealScalarLike = jnp.inf,
    ) -> Curve:
        """The same ODE with other coefficients, functions of step and risk.

        **Arguments:**

        - `modes`, `coefficients`: as in a [`jaxclip.limit.ModeEquation`][]. Compiled
            once for each structure of the coefficients, which a module keeps and a
            closure does not.
        - `request`: the steps to report at, and how the solution is found.
        - `settings`: the schedules that the coefficients read; smooth in the step but
            where those are not.
        - `scale`: the noise's variance, or infinity: the risk counts as infinite where
            it is larger than that and its start by many orders of magnitude.
        """
        if request.std:
            raise ValueError(
                "`RiskODE().integrate` has no equation for the standard deviation of "
                "the risk, `std=True`: it knows only these coefficients. Leave it out."
            )
        return self._solve(modes, coefficients, request, settings, scale, None)

    def _solve(self, modes, coefficients, request, settings, scale, response):
        # What is known before tracing decides how the modes are solved.
        solver = _solver(modes) if self.solver is None else self.solver
        if response is not None and (
            self.solver is None or isinstance(solver, ExponentialModes)
        ):
            solver = ScatteredModes()
        scale = jnp.asarray(scale, request.steps.dtype)
        how = solver, self.rtol, self.max_steps
        return _integrate(modes, coefficients, request, settings, scale, response, *how)


@eqx.filter_jit
def _integrate(
    modes: Modes,
    coefficients: Coefficients,
    request: Request,
    settings: Any,
    scale: RealScalar,
    response: ResponseOfSamples | None,
    solver: diffrax.AbstractSolver,
    own_rtol: float | None,
    max_steps: int,
) -> Curve:
    steps = request.steps
    rtol = precision(steps)
    if isinstance(solver, ExponentialModes | ScatteredModes):
        # Its estimate is that of a method of order 4 and what is kept is of order 6, so
        # that the error is below the tolerance.
        rtol = max(rtol, 1e-8)
    reading = Reading.of(settings, end_of(steps))
    start = jnp.sum(modes.risk)
    controller = relative_controller(
        modes.eigenvalues, rtol if own_rtol is None else own_rtol
    )
    equation, y0 = ModeEquation(modes, coefficients, reading), modes.risk
    if response is not None:
        equation, controller = ScatterEquation(equation, response), OfModes(controller)
        y0 = Scattered(y0, jnp.zeros((len(y0), len(y0)), y0.dtype))
    bound = infinite(jnp.maximum(start, scale))
    # What is followed is u_j = lambda_j v_j, whose sum is the risk.
    (modes_at, variance), solution = watched_solution(
        called,
        y0,
        equation,
        request,
        Watchful(controller, reading, bound),
        solver,
        max_steps,
        seen=summary,
    )
    risk = infinite_after_failure(jnp.sum(modes_at, axis=1))
    risk = raise_failure(risk, solution, DIVERGED, request.throw)
    last = Modes(modes.eigenvalues, modes_at[-1], modes.forcing)
    std = None
    if response is not None:
        std = deviation(response, steps, risk, variance)
    return Curve(steps, risk, reduced=last, std=std)


def _solver(modes: Modes) -> diffrax.AbstractSolver:
    eigenvalues = modes.eigenvalues
    # An explicit method stays below a step of order 1 / (q * the largest eigenvalue)
    # until the smallest has decayed: how many that are goes by their ratio. Where that
    # is not known, many eigenvalues are taken for a wide spectrum.
    if is_traced(eigenvalues):
        wide = len(eigenvalues) > 64
    else:
        known = np.asarray(eigenvalues)
        wide = bool(known.max() > 100 * known.min())
    return ExponentialModes() if wide else diffrax.Tsit5()


def few_modes(
    problem: LinearModel | CompressedLinearModel, isotropic: bool = False
) -> Modes:
    """The modes of a problem, compressed where they are many and known; `isotropic`
    where they are to receive a noise that is the same in all directions."""
    modes = problem.modes
    # Lanczos' method runs in numpy, to which traced numbers are closed.
    many = len(modes.eigenvalues) > _MANY
    if not many or is_traced(modes.eigenvalues) or is_traced(modes.risk):
        return modes
    return modes.compress(_NODES, isotropic)
