"""Whether to clip, and at what threshold: the criteria and the schedules they give."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import count, nonnegative, positive
from ._feedback import (
    follow,
    need_least_squares,
    risk_range,
    schedule_knots,
    tabulate,
)
from ._schedule import check_rate
from ._types import RealScalar, RealScalarLike, Schedule
from .clip import HardClip
from .limit._moments import moments_in_units
from .problem import AbstractNoise, LeastSquares

# The thresholds that are searched, in units of the residual's size, and how finely.
_SMALLEST, _LARGEST, _GRID = 1e-4, 1e3, 128
# A gain below this is within the quadrature's error, and none: no threshold is best.
_NO_GAIN = {"float64": 1e-10, "float32": 1e-4}


class BestClip(NamedTuple):
    """The best hard threshold at one value of the risk.

    - `threshold`: on the residual, in the unit of the label; infinite where no
        threshold beats none. Times `feature_norm` it is one on the gradient's norm.
    - `ccc`: the clipping-comparison criterion there: 1 where none beats none, infinite
        where the noise's variance is.
    """

    threshold: Float[Array, "..."]
    ccc: Float[Array, "..."]


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
    return _best_clip(noise, nonnegative("excess", excess))


# Jitted behind the door: a Python number would be compiled in, and again for the next.
@eqx.filter_jit
def _best_clip(noise: AbstractNoise, excess: RealScalar) -> BestClip:
    def efficiency(log_threshold):
        clip = HardClip(jnp.exp(log_threshold))
        # In the residual's own unit, in which the square of a small one is a number.
        _, m = moments_in_units(clip, noise, excess, 1.0, 0)
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
    # The efficiency without a clip is one over the variance: 1 in that unit.
    ccc = jnp.where(std < jnp.inf, value, jnp.inf)
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
    # What is misused should not take the seconds of the table to be found out.
    lr = check_rate(lr, schedule_knots(count("steps", steps)))
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
