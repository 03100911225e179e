"""Whether to clip, and at what threshold: the criteria and the schedules they give."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import count, nonnegative, positive
from ._curve import Curve
from ._schedule import PiecewiseLinear, check_rate
from ._types import RealScalar, RealScalarLike, Schedule, Step
from .clip import HardClip
from .limit import RiskODE
from .limit._moments import unchecked_moments
from .problem import AbstractNoise, LeastSquares

# The thresholds that are searched, in units of the residual's size, and how finely.
_SMALLEST, _LARGEST, _GRID = 1e-4, 1e3, 160
# A gain below this is within the quadrature's error, and none: no threshold is best.
_NO_GAIN = {"float64": 1e-10, "float32": 1e-4}
# Values of the risk at which a feedback rule is tabulated, and the range below the
# largest. Rules are best at their own risk, so interpolating between the values costs
# only the square of the (small) relative error of the threshold.
_TABLE, _DECADES = 80, 9


class BestClip(NamedTuple):
    """The best hard threshold at one value of the risk.

    - `threshold`: on the residual, in the unit of the label; infinite where no
        threshold beats none. Times `feature_norm` it is one on the gradient's norm.
    - `ccc`: the clipping-comparison criterion there: 1 where none beats none, infinite
        where the noise's variance is.
    """

    threshold: Float[Array, "..."]
    ccc: Float[Array, "..."]


@eqx.filter_jit
def best_clip(noise: AbstractNoise, excess: RealScalarLike) -> BestClip:
    r"""The hard threshold with the largest clipping-comparison criterion.

    $$c^*(R) = \arg\max_c \mu^2 / \mathrm{second},$$

    on which the best threshold of any schedule runs, whatever the spectrum and the
    horizon: the risk enters the ODE of a run at descent rate $q = \gamma\mu$ only
    through $q^2 \mathrm{second} / \mu^2$ (derived here; section 4 of arXiv:2406.11733
    defines the criterion). By a logarithmic grid that is then refined.

    **Arguments:**

    - `noise`: the label noise.
    - `excess`: the excess risk $R$, in the label's squared unit.
    """
    excess = nonnegative("excess", excess)

    def efficiency(log_threshold):
        clip = HardClip(jnp.exp(log_threshold))
        m = unchecked_moments(clip, noise, excess, 1.0, 0)
        return m.mu**2 / m.second

    law = noise.residual(2 * excess)
    # exp E log |w| is finite and a typical size whatever the tails are; the standard
    # deviation, where it is finite, may be far larger.
    tiny = jnp.finfo(jnp.result_type(float)).tiny
    size = jnp.exp(law.expect(lambda norm: jnp.log(jnp.maximum(norm, tiny))))
    std = jnp.sqrt(2 * excess + noise.variance)
    low = jnp.log(_SMALLEST * size)
    high = jnp.log(_LARGEST * jnp.where(jnp.isfinite(std), std, size))
    grid = jnp.linspace(low, high, _GRID)
    spacing = (high - low) / (_GRID - 1)
    values = jax.lax.map(efficiency, grid, batch_size=16)
    best, value = _refine(efficiency, grid[jnp.argmax(values)], spacing)
    # mu^2 / second is the efficiency: without a clip, one over the variance.
    ccc = value * (2 * excess + noise.variance)
    gain = ccc > 1 + _NO_GAIN[str(grid.dtype)]
    return BestClip(jnp.where(gain, jnp.exp(best), jnp.inf), jnp.where(gain, ccc, 1.0))


@eqx.filter_jit
def fisher_information(noise: AbstractNoise, excess: RealScalarLike) -> RealScalar:
    r"""The Fisher information of the residual's location: the ceiling of all rules.

    For every rule, $\mu^2 / \mathrm{second} \le I = E\,s(w)^2$ with the score
    $s = -p' / p$ of the residual's density, by Cauchy-Schwarz applied to
    $\mu = E[\psi s]$; the bound is met by $\psi \propto s$ alone. The ceiling of the
    clipping-comparison criterion is $I$ times the residual's variance. Derived here.

    **Arguments:**

    - `noise`: the label noise.
    - `excess`: the excess risk $R$, positive, in the label's squared unit.
    """
    law = noise.residual(2 * positive("excess", excess))
    score = jax.grad(lambda w: -law.log_density(w))

    def mean_square(norm):
        # Both residuals of this norm, weighted by their densities.
        right, left = law.log_density(norm), law.log_density(-norm)
        share = jax.nn.sigmoid(right - left)
        return share * score(norm) ** 2 + (1 - share) * score(-norm) ** 2

    return law.expect(mean_square)


def max_ccc(
    problem: LeastSquares, lr: RealScalarLike | Schedule, *, steps: int
) -> tuple[HardClip, Schedule]:
    r"""The max-CCC schedule: the best threshold at every step, its rate compensated.

    The threshold is $c^*(R(k))$ times the feature norm, and the learning rate
    $\gamma_k / \mu$, so that the descent is that of unclipped SGD with $\gamma_k$ and
    only the noise is smaller. For every horizon and spectrum it does at least as well
    as unclipped SGD with $\gamma_k$ (derived here; the schedule is that of section 4 of
    arXiv:2406.11733). Where no threshold beats none, one is given that is too large to
    act.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `lr`: the learning rate of the unclipped run, per step.
    - `steps`: the length of the run.

    **Returns:**

    The rule and its learning rate, functions of the step for `simulate` and `solve`.
    """
    problem = _need_least_squares("max_ccc", problem)
    threshold, _ = _tabulate(problem, lambda excess: best_clip(problem.noise, excess))
    return _feedback(problem, lr, threshold, steps, compensate=True)


def heuristic_clip(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    kappa: RealScalarLike,
    *,
    steps: int,
) -> HardClip:
    r"""The heuristic schedule: a fixed multiple of the residual's standard deviation.

    $c = \kappa \sqrt{2R(k) + \sigma^2}$, section 4 of arXiv:2406.11733. It has no
    guarantee, and can do worse than no clipping.

    **Arguments:**

    - `problem`: what SGD runs on; the noise's variance must be finite.
    - `lr`: the learning rate of the clipped run, per step.
    - `kappa`: the multiple, positive.
    - `steps`: the length of the run.
    """
    problem = _need_least_squares("heuristic_clip", problem)
    kappa = positive("kappa", kappa)
    variance = positive("problem.noise.variance", problem.noise.variance)

    def threshold(excess):
        return kappa * jnp.sqrt(2 * excess + variance)

    return _feedback(problem, lr, threshold, steps, compensate=False)[0]


def ceiling(
    problem: LeastSquares, lr: RealScalarLike | Schedule, *, steps: Array
) -> Curve:
    r"""The risk of the best of all rules with the descent of unclipped SGD.

    The rule is the score of the residual's law at every step, its rate compensated; no
    rule with the descent rate $\gamma_k$ has a smaller error in any eigenspace at any
    time (derived here). On isotropic features with the best $\gamma_k$ it is the
    Cramér-Rao limit of one pass over the samples.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `lr`: the rate of descent, $\gamma_k \mu$, per step.
    - `steps`: shape `(s,)`, where to report.
    """
    problem = _need_least_squares("ceiling", problem)
    lr = check_rate(lr, steps)
    information, _ = _tabulate(
        problem, lambda excess: (fisher_information(problem.noise, excess), excess)
    )

    def coefficients(step, excess):
        return lr(step), lr(step) ** 2 / information(excess)

    return RiskODE().integrate(problem, coefficients, steps)


class _Ratio(eqx.Module):
    """A schedule divided by another."""

    numerator: Schedule
    denominator: Schedule

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.numerator(step) / self.denominator(step)


def _feedback(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    steps: int,
    *,
    compensate: bool,
) -> tuple[HardClip, Schedule]:
    """The schedule that a threshold fed back from the risk runs through.

    **Arguments:**

    - `threshold`: on the residual, as a function of the excess risk.
    - `compensate`: whether `lr` is the rate of descent, rather than of learning.
    """
    steps = count("steps", steps)
    knots = _knots(steps)
    lr = check_rate(lr, knots)

    def at(excess):
        clip = HardClip(threshold(excess))
        return unchecked_moments(clip, problem.noise, excess, 1.0, 0)

    def coefficients(step, excess):
        m = at(excess)
        rate = lr(step) / m.mu if compensate else lr(step)
        return rate * m.mu, rate**2 * m.second

    risk = RiskODE().integrate(problem, coefficients, knots).risk
    thresholds = jax.vmap(threshold)(risk) * problem.spectrum.feature_norm
    clip = HardClip(PiecewiseLinear(knots, thresholds))
    if not compensate:
        return clip, lr
    return clip, _Ratio(lr, PiecewiseLinear(knots, jax.vmap(lambda r: at(r).mu)(risk)))


def _tabulate(
    problem: LeastSquares, function: Callable[[RealScalar], tuple[RealScalar, ...]]
) -> tuple[Callable[[RealScalar], RealScalar], Float[Array, " n"]]:
    """A positive function of the risk as an interpolation in the logarithm of both."""
    start = jnp.dot(problem.spectrum.eigenvalues, problem.error0**2) / 2
    start = positive("problem.error0", start)
    # Beyond the ends the value there is used. A run that starts far below its
    # stationary risk climbs, hence the room above.
    excess = 10.0 * start * jnp.logspace(-_DECADES, 0, _TABLE)
    values, _ = jax.lax.map(lambda r: tuple(function(r)), excess)
    # An infinite threshold cannot be interpolated; one this far out does not act.
    std = jnp.sqrt(2 * excess + problem.noise.variance)
    values = jnp.where(jnp.isinf(values), 1e2 * _LARGEST * std, values)
    log_excess, log_values = jnp.log(excess), jnp.log(values)

    def interpolate(risk):
        log_risk = jnp.log(jnp.maximum(risk, jnp.finfo(excess.dtype).tiny))
        return jnp.exp(jnp.interp(log_risk, log_excess, log_values))

    return interpolate, values


def _knots(steps: int) -> Float[Array, " k"]:
    """Steps at which a schedule is tabulated: evenly, and denser towards the start."""
    even = np.linspace(0, steps, 65)
    early = steps * np.logspace(-5, 0, 64)
    return jnp.asarray(np.unique(np.concatenate([even, early])), jnp.result_type(float))


def _refine(function, best, spacing, rounds: int = 12):
    """The maximiser near the best point of a grid, and the maximum.

    Each round lays nine points over the two intervals beside the best one: a golden
    section needs fewer evaluations, but one at a time.
    """
    offsets = np.linspace(-1, 1, 9)

    def body(i, state):
        best, _ = state
        points = best + spacing * 0.25**i * offsets
        values = jax.vmap(function)(points)
        top = jnp.argmax(values)
        return points[top], values[top]

    return jax.lax.fori_loop(0, rounds, body, (best, jnp.zeros_like(best)))


def _need_least_squares(verb: str, problem) -> LeastSquares:
    if isinstance(problem, LeastSquares):
        return problem
    raise ValueError(
        f"`{verb}` needs a `LeastSquares` problem. Got a {type(problem).__name__}; for "
        "the rows of a table, estimate one with `LeastSquares.from_data(X, y)`."
    )
