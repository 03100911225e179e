"""The ODE of rules that act on each coordinate of a gradient."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._curve import Curve
from ..._types import RealScalar, Schedule
from ...clip import (
    AbstractClip,
    Identity,
    Scales,
    SmoothedFactors,
    unchecked_coordinate_moments,
)
from ...noise import AbstractNoise
from ...problem import (
    CompressedLinearModel,
    Modes,
    is_diagonal,
    need_squared_loss,
)
from ...transform import (
    PerCoordinate,
    PerExample,
    PerTree,
    algorithm,
    within_example,
)
from .._base import AbstractLimit, AnyProblem, Request
from .._coordinate_moments import centre_of, nodes_of, scale_free
from .._intervals import varies
from ._risk_ode import RiskODE, few_modes
from ._sign import Batch, of_signs, sign_modes


class CoordinateODE(AbstractLimit):
    r"""The deterministic limit of rules that act on each coordinate: value clipping,
    signSGD, any rule with `scope=PerCoordinate()`.

    Coordinate $i$ of a gradient is $w a_i$. With $K$ diagonal in the optimiser's
    coordinates, $v_i = z_i^2 / 2$ and $R = \sum_i \lambda_i v_i$, in steps:

    $$\frac{dv_i}{dk} = -2 \gamma D_i(R) v_i + \tfrac12 \gamma^2 S_i(R), \qquad
    D_i = E[a_i^2 \psi'(w a_i)], \quad S_i = E \psi(w a_i)^2,$$

    where $a_i \sim N(0, \lambda_i)$ is independent of the residual $w$. For
    [`jaxclip.Normalize`][] these are $2 f_w(0) \sqrt{2 \lambda_i / \pi}$ and 1, with
    the density $f_w$ of the residual. Derived here.

    Where $K$ is not diagonal there ([`jaxclip.LinearModel`][] has a `basis`), only
    signSGD is solved: `Normalize()` or `clip.Rescale(c)`. With $D = \mathrm{diag}(K)$,

    $$dz = -\gamma\, 2 f_w(0) \sqrt{2 / \pi}\, D^{-1/2} K z\, dk
    + \gamma \sqrt{K_\sigma}\, dB, \qquad
    K_\sigma = \tfrac2\pi \arcsin(D^{-1/2} K D^{-1/2}),$$

    arXiv:2411.12135, there for Gaussian noise. In $y = D^{1/4} z$ the drift is the
    symmetric matrix $D^{-1/4} K D^{-1/4}$, of which the risk is the quadratic form, so
    that in its eigenvectors one number a dimension is a closed system: one
    eigendecomposition, and then the cost of [`jaxclip.RiskODE`][]. Derived here.

    A batch is solved where each example is clipped,
    `PerExample(within=PerCoordinate())`.

    **Arguments:**

    - `solver`, `rtol`, `max_steps`: as of [`jaxclip.RiskODE`][].
    """

    solver: diffrax.AbstractSolver | None = None
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=16**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, CompressedLinearModel):
            problem = need_squared_loss("CoordinateODE", problem)
        request.need_only("CoordinateODE", ("batch_size", "scope"))
        batch, noise = _batch(clip, request.update), problem.noise
        if isinstance(problem, CompressedLinearModel) or is_diagonal(problem.basis):
            modes = few_modes(problem)
            nodes = nodes_of(modes.eigenvalues)
            unit = scale_free(clip)
            coefficients = _of_coordinates(unit, noise, lr, modes, batch, nodes)
        else:
            modes = sign_modes(problem)
            coefficients = of_signs(clip, noise, lr, batch)
        how = RiskODE(self.solver, self.rtol, self.max_steps)
        scale = problem.noise.variance
        return how.integrate(modes, coefficients, request, (clip, lr), scale)


class _OfCoordinates(eqx.Module):
    """The coefficients of SGD with a rule for each coordinate, one pair for each mode.

    - `clip`: the rule, in units of `threshold`, a function of the step.
    - `eigenvalues`: shape `(m,)`, of the modes; `scales`: where moments are worked out.
    - `table`: the smoothed factors; None where they change with the step, and are then
        tabulated about `centre` at each.
    """

    clip: AbstractClip
    threshold: Schedule
    noise: AbstractNoise
    lr: Schedule
    eigenvalues: Float[Array, " m"]
    scales: Scales
    centre: RealScalar
    table: SmoothedFactors | None
    batch: Batch

    def __call__(self, step, risk):
        table = self.table
        if table is None:
            nodes = self.scales.weights.shape[1]
            table = SmoothedFactors.of(self.clip, step, self.centre, nodes)
        of = table, self.noise, risk, self.scales, self.threshold(step)
        m = unchecked_coordinate_moments(*of)
        rate, batch = self.batch.gain * self.lr(step), self.batch
        # As a part of lambda, as the equation of the modes has it.
        added = batch.added / self.eigenvalues
        return rate * m.mu, rate**2 * (batch.share * m.second + added)


@eqx.filter_jit
def _of_coordinates(
    unit: tuple[AbstractClip, Schedule],
    noise: AbstractNoise,
    lr: Schedule,
    modes: Modes,
    batch: Batch,
    nodes: int,
) -> _OfCoordinates:
    (clip, threshold), eigenvalues = unit, modes.eigenvalues
    centre = centre_of(clip, noise, jnp.sum(modes.risk), eigenvalues)
    table = None
    if not varies(clip):
        table = SmoothedFactors.of(clip, 0, centre, nodes)
    scales = Scales.of(eigenvalues, nodes)
    return _OfCoordinates(
        clip, threshold, noise, lr, eigenvalues, scales, centre, table, batch
    )


def _batch(clip: AbstractClip, update: algorithm.Update) -> Batch:
    scope, size = update.scope, update.batch_size
    if isinstance(clip, Identity) and isinstance(scope, PerTree | PerCoordinate):
        # The mean of what is not clipped, whatever it is taken over.
        return Batch(1.0, 1 / size, jnp.zeros(()))
    if not isinstance(within_example(scope), PerCoordinate):
        raise ValueError(
            "`CoordinateODE` is the limit of a rule for each coordinate: "
            "`scope=PerCoordinate()`, or `PerExample(within=PerCoordinate())`. Got "
            f"{scope!r}; for whole gradients take `RiskODE()`."
        )
    if not isinstance(scope, PerExample):
        if size > 1:
            raise ValueError(
                "`CoordinateODE` has no equation for a batch whose mean gradient is "
                "clipped by coordinate. Take "
                "`scope=PerExample(within=PerCoordinate())`, which clips each "
                f"example's, or `batch_size=1`. Got {size}."
            )
        return Batch(1.0, 1.0, jnp.zeros(()))
    gain = float(size) if scope.reduce == "sum" else 1.0
    std = jnp.zeros(()) if scope.noise_std is None else scope.noise_std
    return Batch(gain, 1 / size, (std / gain) ** 2)
