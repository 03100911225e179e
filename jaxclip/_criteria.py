"""Whether to clip, and at what threshold: the criteria and the schedules they give."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import count, nonnegative, positive
from ._schedule import PiecewiseLinear, check_rate
from ._types import RealScalar, RealScalarLike, Schedule, Step
from .clip import HardClip
from .limit import RiskODE
from .limit._moments import unchecked_moments
from .problem import AbstractNoise, LeastSquares

# The thresholds that are searched, in units of the residual's size, and how finely.
_SMALLEST, _LARGEST, _GRID = 1e-4, 1e3, 128
# A gain below this is within the quadrature's error, and none: no threshold is best.
_NO_GAIN = {"float64": 1e-10, "float32": 1e-4}
# Stands for no threshold where one has to be interpolated.
_NO_THRESHOLD = 1e15


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
    problem = need_least_squares("max_ccc", problem)
    table = tabulate(
        lambda r: best_clip(problem.noise, r).threshold, *risk_range(problem)
    )
    return follow(problem, lr, table, steps=steps, compensate=True)


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
    problem = need_least_squares("heuristic_clip", problem)
    kappa = positive("kappa", kappa)
    variance = positive("problem.noise.variance", problem.noise.variance)

    def threshold(excess):
        return kappa * jnp.sqrt(2 * excess + variance)

    return follow(problem, lr, threshold, steps=steps, compensate=False)[0]


class Ratio(eqx.Module):
    """A schedule divided by another."""

    numerator: Schedule
    denominator: Schedule

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.numerator(step) / self.denominator(step)


def follow(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    *,
    steps: int,
    compensate: bool,
) -> tuple[HardClip, Schedule]:
    """The schedule that a threshold fed back from the risk runs through.

    **Arguments:**

    - `threshold`: on the residual, as a function of the excess risk.
    - `compensate`: whether `lr` is the rate of descent, rather than of learning.
    """
    steps = count("steps", steps)
    knots = schedule_knots(steps)
    lr = check_rate(lr, knots)

    def at(excess):
        clip = HardClip(threshold(excess))
        return unchecked_moments(clip, problem.noise, excess, 1.0, 0)

    def coefficients(step, excess):
        m = at(excess)
        rate = lr(step) / m.mu if compensate else lr(step)
        return rate * m.mu, rate**2 * m.second

    risk = RiskODE().integrate(problem, coefficients, knots).risk
    # Far below its start a risk is within the solver's tolerance of zero, either side.
    risk = jnp.maximum(risk, jnp.finfo(risk.dtype).eps * risk[0])
    thresholds = jax.vmap(threshold)(risk) * problem.spectrum.feature_norm
    clip = HardClip(PiecewiseLinear(knots, thresholds))
    if not compensate:
        return clip, lr
    return clip, Ratio(lr, PiecewiseLinear(knots, jax.vmap(lambda r: at(r).mu)(risk)))


def tabulate(
    function: Callable[[RealScalar], RealScalar],
    low: RealScalarLike,
    high: RealScalarLike,
    points: int = 72,
) -> Callable[[RealScalar], RealScalar]:
    """A positive function of the risk as an interpolation in the logarithm of both.

    Beyond the ends the value there is used. A rule is best at its own risk, so that the
    interpolation costs only the square of the threshold's small relative error.

    **Arguments:**

    - `low`, `high`: the range of the risk, positive.
    - `points`: at how many values of the risk the function is called.
    """
    low, high = positive("low", low), positive("high", high)
    grid = jnp.linspace(jnp.log(low), jnp.log(high), points)
    spacing = (grid[-1] - grid[0]) / (points - 1)
    values = jax.lax.map(function, jnp.exp(grid))
    # An infinite threshold cannot be interpolated; one this far out does not act.
    levels = jnp.log(jnp.minimum(values, _NO_THRESHOLD))
    slopes = _monotone_slopes(levels)

    def interpolate(risk):
        log_risk = jnp.log(jnp.maximum(risk, jnp.finfo(grid.dtype).tiny))
        x = jnp.clip((log_risk - grid[0]) / spacing, 0.0, points - 1.0)
        i = jnp.minimum(x.astype(int), points - 2)
        t = x - i
        # A cubic in Hermite's form.
        value = (1 + 2 * t) * (1 - t) ** 2 * levels[i]
        value = value + t**2 * (3 - 2 * t) * levels[i + 1]
        slope = t * (1 - t) ** 2 * slopes[i] - t**2 * (1 - t) * slopes[i + 1]
        return jnp.exp(value + slope)

    return interpolate


def risk_range(problem: LeastSquares) -> tuple[RealScalar, RealScalar]:
    """The values of the risk that a run may pass through, with room on both sides: it
    goes from its start to where the noise keeps it, up or down."""
    start = problem.risk(problem.init())
    size = problem.noise.variance
    # Where the variance is infinite the start stands for it; and where one of the two
    # is zero, the other does.
    size = jnp.where(jnp.isfinite(size) & (size > 0), size, start)
    start = jnp.where(start > 0, start, size)
    low, high = jnp.minimum(start, size), jnp.maximum(start, size)
    return 1e-8 * positive("problem.error0", low), 10 * high


def _monotone_slopes(levels: Float[Array, " n"]) -> Float[Array, " n"]:
    """Slopes of a cubic interpolation that does not overshoot where a threshold jumps
    from none to a finite one: harmonic means of the secants, 0 at an extremum."""
    secants = jnp.diff(levels)
    left, right = secants[:-1], secants[1:]
    same = left * right > 0
    total = jnp.where(same, left + right, 1.0)
    inner = jnp.where(same, 2 * left * right / total, 0.0)
    return jnp.concatenate([secants[:1], inner, secants[-1:]])


def schedule_knots(steps: int) -> Float[Array, " k"]:
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


def need_least_squares(verb: str, problem) -> LeastSquares:
    if isinstance(problem, LeastSquares):
        return problem
    raise ValueError(
        f"`{verb}` needs a `LeastSquares` problem. Got a {type(problem).__name__}; for "
        "the rows of a table, estimate one with `LeastSquares.from_data(X, y)`."
    )
