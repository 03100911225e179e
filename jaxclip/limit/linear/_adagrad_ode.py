"""The limit of AdaGrad and of AdaGrad-Norm, on a linear model."""

from functools import partial

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import nonnegative
from ..._curve import Curve
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip
from ...noise import AbstractNoise
from ...problem import CompressedLinearModel, Modes, need_squared_loss
from ...transform import algorithm
from .._base import AbstractLimit, AnyProblem, Request
from .._moments import Laws, need_moments, update_laws, update_moments
from ._accumulated import (
    AccumulatedEquation,
    How,
    Motion,
    integrate_accumulated,
    need_coordinates,
)
from ._risk_ode import few_modes


class AdagradODE(AbstractLimit):
    r"""The deterministic limit of the risk under AdaGrad, on clipped gradients.

    AdaGrad (Duchi, Hazan and Singer 2011) divides a coordinate's gradient by the root
    of the sum of its squares so far. In high dimension that of a coordinate of variance
    $\lambda_j$ is $\lambda_j s$, with one number $s$ for all of them. With
    $v_j = \|z_j\|^2 / 2$ for the error in the eigenspace of $\lambda_j$, of dimension
    $d_j$, in steps:

    $$\frac{dv_j}{dk} = -2 \gamma \mu P_j \lambda_j v_j
    + \tfrac12 \gamma^2 P_j^2\, \mathrm{second}\, \lambda_j d_j, \qquad
    \frac{ds}{dk} = \mathrm{second}, \qquad P_j = (s_0 + \lambda_j s)^{-1/2},$$

    with the [`jaxclip.moments`][] $\mu$ and $\mathrm{second}$ at $R = \sum_j \lambda_j
    v_j$. AdaGrad-Norm (arXiv:1806.01811) divides all of the gradient by one number, the
    root of the sum of its squared norms: $\lambda_j$ under the root is then the trace
    of the covariance. Derived here.

    AdaGrad depends on the basis, and the covariance is diagonal in the problem's. What
    runs is `jc.train(problem, optax.chain(jc.as_transform(clip), optax.adagrad(lr)))`.

    **Arguments:**

    - `initial_accumulator_value`: $s_0$, where the sums start, in the gradient's
        squared unit, not negative: optax's argument of that name plus its `eps`.
    - `norm`: whether it is AdaGrad-Norm.
    - `solver`, `rtol`, `max_steps`: as of a [`jaxclip.RiskODE`][]; Tsitouras' 5/4
        method and a tolerance of 1e-8 by default.

    **Raises:**

    A `ValueError` where the start is negative, or the problem, the scope or a momentum
    has no place in the equation.
    """

    initial_accumulator_value: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "initial_accumulator_value"), default=0.1
    )
    norm: bool = eqx.field(static=True, default=False)
    solver: diffrax.AbstractSolver | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, CompressedLinearModel):
            problem = need_squared_loss("AdagradODE", problem)
        request.need_only("AdagradODE", ("batch_size", "scope"))
        need_moments("AdagradODE", request.update)
        if not self.norm:
            need_coordinates("AdagradODE", problem)
        modes = few_modes(problem)
        dtype = modes.risk.dtype
        of = clip, problem.noise, lr, self.initial_accumulator_value.astype(dtype)
        laws = update_laws(problem.noise, request.update, jnp.sum(modes.risk))
        sums = _Sums(*of, modes, request.update, laws, self.norm)
        how = How(self.solver, self.rtol, self.max_steps)
        zero, scale = jnp.zeros((), dtype), problem.noise.variance
        settings = clip, lr
        return integrate_accumulated(sums, zero, request, settings, scale, how)


class _Sums(eqx.Module):
    """The motion of the modes and of the sum; and their equation, from a reading."""

    clip: AbstractClip
    noise: AbstractNoise
    lr: Schedule
    start: RealScalar
    modes: Modes
    update: algorithm.Update
    laws: Laws
    norm: bool = eqx.field(static=True)

    def __call__(self, reading):
        return AccumulatedEquation(self.modes, self.motion, reading)

    def motion(self, step, risk, total):
        trace = jnp.sum(self.modes.forcing)
        of = self.clip, self.noise, risk, jnp.sqrt(trace), step
        m, lr = update_moments(*of, self.update, self.laws), self.lr(step)
        # The first step already divides by its own square.
        total = total + m.second
        squares = self.start + (trace if self.norm else self.modes.eigenvalues) * total
        descent = lr * m.mu / jnp.sqrt(squares)
        return Motion(descent, lr**2 * m.second / squares, m.second)
