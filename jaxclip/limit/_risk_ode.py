"""The ODE of the risk: what clipped SGD does when the dimension is large."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._curve import Curve
from .._types import Key, RealScalar, Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem, LeastSquares, Spectrum
from ._moments import unchecked_moments
from ._solve import (
    AbstractLimit,
    infinite_after_failure,
    need_least_squares,
    precision,
)

# At step k and excess risk R: the rate of descent, lr * mu, and the strength of the
# noise, lr^2 * second.
Coefficients = Callable[[RealScalar, RealScalar], tuple[RealScalar, RealScalar]]


class RiskODE(AbstractLimit):
    r"""The deterministic limit of the risk of clipped SGD.

    With $v_j = \|z_j\|^2 / 2$ for the error in the eigenspace of $\lambda_j$, which has
    dimension $d_j$, and $R = \sum_j \lambda_j v_j$, in steps:

    $$\frac{dv_j}{dk} = -2 \gamma \mu(R) \lambda_j v_j
    + \tfrac12 \gamma^2\, \mathrm{second}(R)\, \lambda_j d_j.$$

    Section 3 of arXiv:2406.11733, for the hard clip; for other rules derived here. One
    run of SGD deviates from it by about one over the square root of the intrinsic
    dimension, the mean over runs by about one over it.

    **Arguments:**

    - `solver`: a diffrax solver of ODEs; Tsitouras' 5/4 method by default.
    - `rtol`: the relative tolerance of the adaptive steps; 1e-9 in float64 and 1e-5 in
        float32 by default.
    - `max_steps`: how many steps the solver may take.
    """

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**4)

    def curve(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        *,
        steps: Float[Array, " s"],
        key: Key | None,
        adjoint: diffrax.AbstractAdjoint | None,
        throw: bool,
    ) -> Curve:
        del key
        problem = need_least_squares(self, problem)
        feature_norm = problem.spectrum.feature_norm

        def coefficients(step, excess):
            m = unchecked_moments(clip, problem.noise, excess, feature_norm, step)
            rate = lr(step)
            return rate * m.mu, rate**2 * m.second

        return self.integrate(problem, coefficients, steps, adjoint, throw)

    def integrate(
        self,
        problem: LeastSquares,
        coefficients: Coefficients,
        steps: Float[Array, " s"],
        adjoint: diffrax.AbstractAdjoint | None = None,
        throw: bool = True,
    ) -> Curve:
        """The same ODE with coefficients that may be any function of step and risk."""
        spectrum = problem.spectrum
        v0 = problem.error0**2 / 2
        rtol, floor = precision(steps)

        def field(step, v, args):
            del args
            return risk_drift(
                spectrum, v, *coefficients(step, excess_risk(spectrum, v))
            )

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            self.solver,
            t0=jnp.zeros_like(steps[0]),
            t1=jnp.maximum(steps[-1], jnp.finfo(steps.dtype).tiny),
            dt0=None,
            y0=v0,
            saveat=diffrax.SaveAt(ts=steps),
            stepsize_controller=diffrax.PIDController(
                rtol=rtol if self.rtol is None else self.rtol,
                # Modes that have decayed below this part of the start do not matter.
                atol=floor * (jnp.max(v0) + floor),
            ),
            adjoint=diffrax.RecursiveCheckpointAdjoint()
            if adjoint is None
            else adjoint,
            max_steps=self.max_steps,
            throw=throw,
        )
        assert solution.ys is not None
        risk = solution.ys @ spectrum.eigenvalues
        return Curve(steps, infinite_after_failure(risk), solution.ys[-1])


def excess_risk(spectrum: Spectrum, v: Float[Array, " m"]) -> Float[Array, ""]:
    """R, from half the squared error in each eigenspace."""
    # A solver's trial step may pass zero by its tolerance, where no law is defined; the
    # step is judged by its error, and an accepted one is not negative.
    return jnp.maximum(jnp.dot(spectrum.eigenvalues, v), 0.0)


def risk_drift(
    spectrum: Spectrum,
    v: Float[Array, " m"],
    descent: RealScalar,
    diffusion: RealScalar,
) -> Float[Array, " m"]:
    """dv/dk at the rate of descent `lr * mu` and the noise `lr^2 * second`."""
    eigenvalues = spectrum.eigenvalues
    multiplicity = spectrum.multiplicity.astype(v.dtype)
    return eigenvalues * (-2 * descent * v + diffusion * multiplicity / 2)
