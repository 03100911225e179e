"""Whether to clip, and at what threshold: the criteria and the schedules they give."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import check, count, nonnegative, positive
from ._feedback import (
    Tabulated,
    follow,
    interpolation,
    need_least_squares,
    risk_range,
    schedule_knots,
)
from ._schedule import check_rate
from ._types import RealScalar, RealScalarLike, Schedule
from .clip import HardClip
from .limit import moments
from .problem import AbstractNoise, LeastSquares

# The thresholds that are searched, in units of the residual's size, and how finely.
_SMALLEST, _LARGEST, _GRID = 1e-4, 1e3, 128
# Below, the compensated rate takes in a thousand times the noise, the risk jumps within
# a step, and no limit describes the run.
_SMALLEST_CCC = 1e-3
# At how many values of the risk the best threshold is found.
_TABLE = 72
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


class _Best(NamedTuple):
    """The best threshold, its criterion, its efficiency, and the slope of the
    efficiency's logarithm in that of the risk."""

    threshold: RealScalar
    ccc: RealScalar
    efficiency: RealScalar
    slope: RealScalar


# Jitted behind the door: a Python number would be compiled in, and again for the next.
@eqx.filter_jit
def _best_clip(noise: AbstractNoise, excess: RealScalar) -> BestClip:
    best = _best(noise, excess)
    return BestClip(best.threshold, best.ccc)


def _best(noise: AbstractNoise, excess: RealScalar) -> _Best:
    law = noise.residual(2 * excess)
    # exp E log |w| is finite and a typical size whatever the tails are; the standard
    # deviation, where it is finite, may be far larger.
    tiny = jnp.finfo(jnp.result_type(float)).tiny
    size = jnp.exp(law.expect(lambda norm: jnp.log(jnp.maximum(norm, tiny))))
    variance = 2 * excess + noise.variance
    std = jnp.sqrt(variance)
    low = jnp.log(_SMALLEST * size)
    high = jnp.log(_LARGEST * jnp.where(jnp.isfinite(std), std, size))
    grid = jnp.linspace(low, high, _GRID)
    spacing = (high - low) / (_GRID - 1)
    # In the residual's own unit, in which the square of a small one is a number. The
    # efficiency without a clip is one over the variance: 1 in that unit.
    unit = jax.lax.stop_gradient(jnp.where(jnp.isfinite(std), std, size))

    def function(log_thresholds):
        return _efficiencies(noise, excess, jnp.exp(log_thresholds), unit)

    top = grid[jnp.argmax(function(grid))]
    best, efficiency = _refine(function, top, spacing)
    ccc = jnp.where(jnp.isfinite(std), efficiency, jnp.inf)
    gain = ccc > 1 + _NO_GAIN[str(grid.dtype)]

    def log_efficiency(log_excess):
        # At the maximum it does not matter that the threshold moves too.
        cut = jnp.exp(best)[None]
        return jnp.log(_efficiencies(noise, jnp.exp(log_excess), cut, unit)[0])

    log_excess = jnp.log(jnp.maximum(excess, tiny))
    slope = jax.jvp(log_efficiency, (log_excess,), (jnp.ones_like(log_excess),))[1]
    return _Best(
        jnp.where(gain, jnp.exp(best), jnp.inf),
        jnp.where(gain, ccc, jnp.ones_like(ccc)),
        jnp.where(gain, efficiency / unit**2, 1 / variance),
        jnp.where(gain, slope, -2 * excess / variance),
    )


def _efficiencies(
    noise: AbstractNoise,
    excess: RealScalar,
    thresholds: Float[Array, " n"],
    unit: RealScalar,
) -> Float[Array, " n"]:
    r"""$\mu^2 / \mathrm{second}$ of hard clips, times `unit` squared.

    With $\mu = P(|w| < c)$ and $\mathrm{second} = E \min(w^2, c^2)$: one quadrature for
    all thresholds, since what costs is the density.
    """

    def integrand(norm):
        kept = jnp.minimum(norm, thresholds) / unit
        return jnp.where(norm < thresholds, 1.0, 0.0), kept**2

    law = noise.residual(2 * excess)
    mu, second = law.expect(integrand, jnp.unstack(thresholds))
    # A threshold below every residual keeps the sign only, and is as good as none.
    return mu**2 / second


@eqx.filter_jit
def _best_tables(
    noise: AbstractNoise, low: RealScalar, high: RealScalar
) -> tuple[Tabulated, Tabulated]:
    """The best threshold and its efficiency, as functions of the risk."""
    log_risk = jnp.linspace(jnp.log(low), jnp.log(high), _TABLE)
    best = jax.lax.map(lambda r: _best(noise, r), jnp.exp(log_risk))
    return (
        interpolation(log_risk, best.threshold),
        interpolation(log_risk, best.efficiency, best.slope),
    )


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
    thresholds, efficiencies = _best_tables(problem.noise, *risk_range(problem))
    return follow(
        problem, lr, thresholds, steps=steps, compensate=True, efficiency=efficiencies
    )


def heuristic_clip(
    problem: LeastSquares,
    lr: RealScalarLike | Schedule,
    kappa: RealScalarLike,
    *,
    steps: int,
) -> tuple[HardClip, Schedule]:
    r"""The heuristic schedule: a fixed multiple of the residual's standard deviation.

    The threshold on the residual is $c(k) = \kappa \sqrt{2R(k) + \sigma^2}$, that on
    the gradient is $c$ times the feature norm, and the learning rate is compensated as
    that of [`jaxclip.max_ccc`][] is: $\gamma_k / \mu$, so that the descent is that of
    unclipped SGD with $\gamma_k$ and only the noise differs. It is the schedule with
    which arXiv:2406.11733 compares the max-CCC one, at the rate at which its authors'
    code runs it.

    Near its best multiple it costs little: a few percent of the final risk of the
    max-CCC schedule in the paper's experiment. It has no guarantee: where
    $\mu^2 / \nu < 1$ at the threshold it does worse than no clipping, which a multiple
    that is good later on can do at the start.

    **Arguments:**

    - `problem`: what SGD runs on; the noise's variance must be positive and finite.
    - `lr`: the learning rate of the unclipped run, per step.
    - `kappa`: the multiple, positive and without a unit.
    - `steps`: the length of the run.

    **Returns:**

    The rule and its learning rate, functions of the step for `simulate` and `solve`.

    **Raises:**

    A `ValueError` where an argument is not what is said above, and where the multiple
    is so small beside noise that is never near zero, as of a random sign, that hardly a
    gradient is left to point downhill: the rate that makes up for it has no bound.
    """
    problem = need_least_squares("heuristic_clip", problem)
    # What is misused should not take the seconds of the moments to be found out.
    lr = check_rate(lr, schedule_knots(count("steps", steps)))
    kappa = positive("kappa", kappa)
    variance = positive("problem.noise.variance", problem.noise.variance)
    excess = problem.risk(problem.init())
    threshold = _Multiple(kappa, variance)
    ccc = check(
        moments(HardClip(threshold(excess)), problem.noise, excess, 1.0).ccc,
        lambda ccc: ~(ccc >= _SMALLEST_CCC),
        "`kappa` must give a clipping-comparison criterion of at least "
        f"{_SMALLEST_CCC:g} at the start of the run: below, the rate that makes up "
        "for the clip multiplies the noise without bounds. Take a larger `kappa`.",
    )
    # Times one, so that under `jit` the check is part of the result.
    threshold = _Multiple(kappa * (ccc / ccc), variance)
    return follow(problem, lr, threshold, steps=steps, compensate=True)


class _Multiple(eqx.Module):
    """The heuristic threshold, a function of the risk."""

    kappa: RealScalar
    variance: RealScalar

    def __call__(self, excess: RealScalar) -> RealScalar:
        return self.kappa * jnp.sqrt(2 * excess + self.variance)


def _refine(function, best, spacing, rounds: int = 12):
    """The maximiser near the best point of a grid, and the maximum.

    Each round lays nine points over the two intervals beside the best one: a golden
    section needs fewer evaluations, but one at a time.
    """
    offsets = np.linspace(-1, 1, 9)

    def body(i, state):
        best, _ = state
        points = best + spacing * 0.25**i * offsets
        values = function(points)
        top = jnp.argmax(values)
        return points[top], values[top]

    return jax.lax.fori_loop(0, rounds, body, (best, jnp.zeros_like(best)))
