"""The limit of generalised linear models: two numbers for each eigenvalue."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._curve import Curve
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip
from ...problem import AbstractGeneralisedLinear
from .._base import (
    AbstractLimit,
    AnyProblem,
    Request,
    infinite,
    infinite_after_failure,
    precision,
    raise_failure,
)
from .._loss_moments import need_samples
from .._reading import Reading
from .._watched import called, end_of, watched_solution
from .._watchful import Watchful
from ._tolerance import RelativeToSlower, relative_controller
from ._two_numbers import Clipped, Pair, reduced, start_of

_DIVERGED = (
    "The parameters grow beyond all bounds: the learning rate is too large to be "
    "stable. Take a smaller one, a rule that clips, or `throw=False`, with which the "
    "risk is infinite from there on."
)


class GeneralisedODE(AbstractLimit):
    r"""The deterministic limit of clipped SGD on a generalised linear model.

    Of the error $z = x - x^*$ two numbers count in the eigenspace of $\lambda_j$, of
    dimension $d_j$: its component along $x^*$, and its square. With the three
    coefficients of the clipped slope $\psi$, $E[\psi a] = K(A x + D x^*)$ and
    $I = E\,\psi^2$, in steps:

    $$\frac{d\langle z, x^* \rangle_j}{dk} = -\gamma \lambda_j \big(A
    \langle z, x^* \rangle_j + (A + D) \|x^*\|_j^2\big),$$

    $$\frac{d\|z\|_j^2}{dk} = -2 \gamma \lambda_j \big(A \|z\|_j^2
    + (A + D) \langle z, x^* \rangle_j\big) + \gamma^2 \lambda_j d_j I.$$

    $A$, $D$ and $I$ are functions of the covariances of the prediction and the signal,
    $\sum_j \lambda_j \|x^*\|_j^2$, $\sum_j \lambda_j \langle z, x^* \rangle_j$ and
    $\sum_j \lambda_j \|z\|_j^2$. Without a clip $A + D = 0$ at the optimum; a clip
    pulls along $x^*$ there, so that it settles at another multiple of $x^*$. Derived
    here.

    A batch whose samples are clipped one by one (`scope=PerExample()`) has $I / B$ in
    the place of $I$. The cost of a step grows with the number of different eigenvalues,
    and where they differ by a factor of thousands the steps are short.

    ```python
    spectrum = jc.Spectrum.isotropic(400)
    problem = jc.Logistic(spectrum, [2.0])
    clip, lr = jc.HardClip(0.3 * spectrum.feature_norm), 3.0 / spectrum.trace
    curve = jc.solve(problem, clip, lr, steps=jnp.array([0.0, 400.0, 4000.0]))
    ```

    **Arguments:**

    - `solver`: a diffrax solver of ODEs, Tsitouras' 5/4 method by default.
    - `rtol`: the relative tolerance of the adaptive steps, of the error that is left.
        By default 1e-9 in float64 and 1e-5 in float32.
    - `max_steps`: how many steps the solver may take.
    """

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, AbstractGeneralisedLinear):
            raise ValueError(
                "`GeneralisedODE` needs a generalised linear model, such as "
                f"`Logistic`. Got a {type(problem).__name__}; a `LinearModel` has "
                "`RiskODE()`."
            )
        request.need_only("GeneralisedODE", ("batch_size", "scope"))
        need_samples("GeneralisedODE", request.update)
        clipped = Clipped(problem, clip, lr, request.update.batch_size)
        how = self.solver, self.rtol, self.max_steps
        return _integrate(clipped, request, (clip, lr), *how)


class _Equation(eqx.Module):
    """The vector field of the two numbers of each eigenspace, times its eigenvalue.

    - `clipped`: the coefficients.
    - `signal`: shape `(m,)`, the parts of the signal's variance.
    - `reading`: at which times the schedules are read.
    """

    clipped: Clipped
    signal: Float[Array, " m"]
    reading: Reading

    def pair(self, y: Float[Array, " n"]) -> Pair:
        """The covariances of a state."""
        cross, error = jnp.split(y, 2)
        # A trial step may pass zero by its tolerance; it is judged by its error.
        error = jnp.maximum(jnp.sum(error), 0.0)
        return Pair(jnp.sum(self.signal), jnp.sum(cross), error)

    def __call__(self, step: Any, y: Float[Array, " n"]) -> Float[Array, " n"]:
        spectrum = self.clipped.problem.spectrum
        lam = spectrum.eigenvalues
        forcing = lam * spectrum.multiplicity.astype(lam.dtype)
        c = self.clipped(self.reading.at(step), self.pair(y))
        cross, error = jnp.split(y, 2)
        cross_rate = -lam * (c.along * cross + c.drift * self.signal)
        error_rate = -2 * lam * (c.along * error + c.drift * cross)
        return jnp.concatenate([cross_rate, error_rate + lam * forcing * c.second])

    def risk(self, y: Float[Array, " n"]) -> RealScalar:
        """The problem's own excess risk of a state."""
        pair = self.pair(y)
        return self.clipped.problem.excess_risk(pair.signal, pair.cross, pair.error)


class _RelativeToError(diffrax.AbstractAdaptiveStepSizeController):
    """A step size controller with the error of both numbers in parts of what is left.

    The squared errors are measured as in [`RelativeToSlower`][], and the components
    along the optimum, which change their sign, by the root of that times the signal's
    part: what they are at most.
    """

    rtol: float  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: float  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: Any
    inner: RelativeToSlower
    signal: Float[Array, " m"]

    def wrap(self, direction):
        return eqx.tree_at(lambda s: s.inner, self, self.inner.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        assert y_error is not None  # every solver here estimates its error
        error = jnp.abs(jnp.split(y1_candidate, 2)[1])
        left = self.inner.slower(error)
        across = jnp.sqrt(left * self.inner.slower(self.signal))
        scale = jnp.concatenate([across, left])
        least = 1e3 * float(jnp.finfo(scale.dtype).tiny) / self.rtol
        relative = y_error / (scale + least)
        one = jnp.ones_like(y0)
        return self.inner.controller.adapt_step_size(
            t0, t1, one, one, args, relative, error_order, controller_state
        )


@eqx.filter_jit
def _integrate(
    clipped: Clipped,
    request: Request,
    settings: Any,
    solver: diffrax.AbstractSolver,
    own_rtol: float | None,
    max_steps: int,
) -> Curve:
    steps = request.steps
    rtol = precision(steps) if own_rtol is None else own_rtol
    reading = Reading.of(settings, end_of(steps))
    problem = clipped.problem
    signal, cross, error = start_of(problem)
    equation = _Equation(clipped, signal, reading)
    inner = relative_controller(problem.spectrum.eigenvalues, rtol)
    controller = _RelativeToError(
        rtol, 0.0, inner.norm, inner, jax.lax.stop_gradient(signal)
    )
    scale = jnp.asarray(1 + jnp.sum(signal) + jnp.sum(error), steps.dtype)
    ys, solution = watched_solution(
        called,
        jnp.concatenate([cross, error]),
        equation,
        request,
        Watchful(controller, reading, infinite(scale)),
        solver,
        max_steps,
    )
    risk = infinite_after_failure(jax.vmap(equation.risk)(ys))
    risk = raise_failure(risk, solution, _DIVERGED, request.throw)
    last = reduced(problem, *jnp.split(ys[-1], 2))
    return Curve(steps, risk, reduced=last)
