"""The ODE of the risk with momentum, weight decay and the noise of DP-SGD."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import positive
from ..._curve import Curve
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip
from ...problem import CompressedLinearModel, LinearModel, Modes, need_squared_loss
from ...transform import PerTree, algorithm
from .._base import (
    AbstractLimit,
    AnyProblem,
    Request,
    infinite,
    infinite_after_failure,
    precision,
    raise_failure,
)
from .._moments import need_moments, update_laws
from .._reading import Reading
from .._watched import called, end_of, watched_solution
from .._watchful import Watchful
from ._clipped_forces import ClippedForces, without_noise
from ._memory import MemoryEquation
from ._memory_solver import RadauModes
from ._risk_ode import few_modes

_DIVERGED = (
    "The risk grows beyond all bounds: the learning rate is too large to be stable, "
    "which with momentum is `lr / (1 - coefficient)`. Take a smaller one, a rule that "
    "clips, or `throw=False`, with which the risk is infinite from there on."
)


class MomentumODE(AbstractLimit):
    r"""The limit of the risk under momentum, weight decay and the noise of DP-SGD.

    With the error $z_j$ and the momentum $m_j$ in the eigenspace of $\lambda_j$, of
    dimension $d_j$, let $a_j = E \|z_j\|^2$, $b_j = E \langle z_j, m_j \rangle$ and
    $q_j = E \|m_j\|^2$, so that $R = \sum_j \lambda_j a_j / 2$. For a heavy ball that
    keeps the share $\beta$ and forgets $\theta = 1 - \beta$, in steps,

    $$\dot a_j = -2 \gamma b_j, \qquad
    \dot b_j = -\gamma q_j - \theta b_j + \mu \lambda_j a_j, \qquad
    \dot q_j = -2 \theta q_j + 2 \mu \lambda_j b_j
    + \mathrm{second}\, \lambda_j d_j + \sigma^2 d_j,$$

    with the [`jaxclip.moments`][] $\mu$ and $\mathrm{second}$ of the rule at the risk
    $R$, and the variance $\sigma^2$ of the noise that `PerExample(noise_std=...)` adds
    to each coordinate. Derived here, as are the equations with Nesterov's variant, with
    decoupled decay and with a ridge (docs/theory.md, "Momentum, weight decay").

    It holds in both scalings of momentum. Where $\beta$ does not change with the
    intrinsic dimension $N$, the momentum is forgotten within a few steps, and the
    equation is that of SGD at the rate $\gamma / \theta$. Where $\theta$ is of order
    $1/N$ and $\gamma$ of order $1/N^2$ the risk may oscillate. In both one run deviates
    from it by about one over the square root of $N$, the mean over runs by about one
    over it, and so does the equation of SGD that it becomes. Nesterov's variant differs
    from the heavy ball by that order only; the difference between them is in the
    equation.

    The solver is an implicit one, whose steps are as long for a momentum that is
    forgotten at once as without any: for `rtol` of 1e-8 the solution is right to about
    1e-9 of the risk, at every $\beta$ (of the risk's own part of the energy, where it
    oscillates). Spectra of more than 512 eigenvalues are compressed as those of
    [`jaxclip.RiskODE`][], but not with a decay: the cost is then that of all of them.

    **Arguments:**

    - `rtol`: the relative tolerance of the adaptive steps, of the risk that is left. By
        default 1e-8 in float64 and 1e-5 in float32.
    - `max_steps`: how many steps the solver may take; a schedule that jumps at every
        step needs two for each or more.
    """

    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**5)

    def __check_init__(self) -> None:
        if self.rtol is not None:
            positive("rtol", self.rtol)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        name, update = type(self).__name__, request.update
        request.need_only(name, ("batch_size", "scope", "momentum", "weight_decay"))
        quiet, noise_std = without_noise(update)
        need_moments(name, quiet)
        problem = _known(name, problem, update)
        modes, p0, origin = _start(name, problem, update, noise_std is not None)
        laws = update_laws(problem.noise, quiet, jnp.sum(modes.risk))
        of = clip, problem.noise, modes.feature_norm, lr, quiet, noise_std
        forces = ClippedForces(*of, laws)
        start = [modes.risk]
        if update.momentum is not None:
            start += [jnp.zeros_like(modes.risk)] * 2
        if p0 is not None:
            start += [p0] if update.momentum is None else [p0, jnp.zeros_like(p0)]
        how = self.rtol, self.max_steps
        return _integrate(modes, jnp.stack(start), origin, forces, request, *how)


def _known(
    name: str, problem: AnyProblem, update: algorithm.Update
) -> LinearModel | CompressedLinearModel:
    """The problem, if it and the update's decay are such as the equation is for."""
    decay = update.weight_decay
    if not isinstance(problem, CompressedLinearModel):
        problem = need_squared_loss(name, problem)
    elif decay is not None:
        raise ValueError(
            f"`{name}` needs the problem itself for `weight_decay`: the optimum is not "
            "in the modes of a compressed one. Pass what was compressed."
        )
    whole = update.batch_size > 1 and isinstance(update.scope, PerTree)
    if decay is not None and decay.clipped and whole:
        raise ValueError(
            f"`{name}` has no equation for a clipped `weight_decay` in batches that "
            "are clipped as one: take `scope=PerExample()` or a decoupled decay. Got "
            f"`batch_size={update.batch_size}`."
        )
    return problem


def _start(
    name: str,
    problem: LinearModel | CompressedLinearModel,
    update: algorithm.Update,
    noisy: bool,
) -> tuple[Modes, Float[Array, " n"] | None, Float[Array, " n"] | None]:
    """The modes, and with a decay the product of the error and the optimum in each of
    them, and the risk of the origin."""
    if isinstance(problem, LinearModel) and update.weight_decay is not None:
        lam, optimum = problem.spectrum.eigenvalues, problem.optimum
        return problem.modes, lam * problem.start * optimum / 2, lam * optimum**2 / 2
    modes = few_modes(problem, isotropic=noisy)
    if noisy and modes.dims is None:
        raise ValueError(
            f"`{name}` needs the dimensions of a compressed problem's modes for the "
            "`noise_std` of the scope: make it with `problem.compress(isotropic=True)`."
        )
    return modes, None, None


@eqx.filter_jit
def _integrate(
    modes: Modes,
    start: Float[Array, "rows n"],
    origin: Float[Array, " n"] | None,
    forces: ClippedForces,
    request: Request,
    own_rtol: float | None,
    max_steps: int,
) -> Curve:
    steps = request.steps
    # The estimate is that of a method of order 5 and what is kept is of order 9.
    rtol = max(precision(steps), 1e-8) if own_rtol is None else own_rtol
    end = end_of(steps)
    settings = forces.clip, forces.lr, forces.update
    reading = Reading.of(settings, end)
    memory = forces.update.momentum is not None
    equation = MemoryEquation(modes, origin, forces, reading, memory)
    least = float(jnp.finfo(start.dtype).tiny) / rtol
    controller = diffrax.PIDController(rtol=rtol, atol=least, norm=_largest)
    bound = infinite(jnp.maximum(jnp.sum(start[0]), forces.noise.variance))
    ys, solution = watched_solution(
        called,
        start,
        equation,
        request,
        Watchful(controller, reading, bound),
        RadauModes(),
        max_steps,
        first=_first(equation, forces, end),
    )
    risk = infinite_after_failure(jnp.sum(ys[:, 0], axis=1))
    risk = raise_failure(risk, solution, _DIVERGED, request.throw)
    last = eqx.tree_at(lambda modes: modes.risk, modes, ys[-1, 0])
    return Curve(steps, risk, reduced=last)


def _first(
    equation: MemoryEquation, forces: ClippedForces, end: RealScalar
) -> RealScalar:
    """A first step that is short beside all that is likely to happen; one that is too
    long is tried again shorter."""
    zero = jnp.zeros_like(end)
    carry, kick, forget = forces.motion(zero, jnp.asarray(forces.lr(zero)))
    largest = jnp.max(equation.modes.eigenvalues)
    kick = 0.0 if kick is None else kick * largest
    fastest = forget + kick + jnp.sqrt(carry * largest)
    first = 0.1 / jnp.maximum(fastest, jnp.finfo(end.dtype).tiny)
    return jax.lax.stop_gradient(jnp.minimum(first, end).astype(end.dtype))


def _largest(errors: Any) -> RealScalar:
    return jnp.max(jnp.abs(errors))
