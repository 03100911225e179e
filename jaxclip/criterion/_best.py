"""Whether to clip, and at what threshold: the best one at one value of the risk."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import nonnegative, positive
from .._types import RealScalar, RealScalarLike
from ..clip import HardClip
from ..limit import clips_mean, hard_moments, need_moments
from ..noise import AbstractNoise, batch
from ..transform import AbstractScope, PerTree, algorithm

# The thresholds that are searched, in units of the residual's size, and how finely.
_SMALLEST, _LARGEST, _GRID = 1e-4, 1e3, 128
# A gain below this is within the quadrature's error, and none: no threshold is best.
_NO_GAIN = {"float64": 1e-10, "float32": 1e-4}
# The same of a batch, whose laws are right to fewer digits.
_NO_BATCH_GAIN = {"float64": 1e-5, "float32": 1e-3}


class BestClip(NamedTuple):
    """The best hard clip at one value of the risk.

    - `clip`: the rule, with its threshold on the gradient's norm; an infinite one,
        which never acts, where no threshold beats none.
    - `ccc`: the clipping-comparison criterion there: 1 where none beats none, infinite
        where the noise's variance is.
    """

    clip: HardClip
    ccc: Float[Array, "..."]


def best_clip(
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    *,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
) -> BestClip:
    r"""The hard clip with the largest clipping-comparison criterion.

    $$c^*(R) = \arg\max_c \mu^2 / \mathrm{second},$$

    on which the best threshold of any schedule runs, whatever the spectrum and the
    horizon: the risk enters the ODE of a run at descent rate $q = \gamma\mu$ only
    through $q^2 \mathrm{second} / \mu^2$ (derived here; section 4 of arXiv:2406.11733
    defines the criterion). By a logarithmic grid that is then refined.

    **Arguments:**

    - `noise`: the label noise.
    - `risk`: the excess risk $R$, in the label's squared unit, not negative.
    - `feature_norm`: the square root of the trace of the features' covariance, in their
        unit, positive, such as
        `problem.spectrum.feature_norm`. A residual's gradient has this norm times the
        residual's size.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][]. Examples that are clipped one
        by one have the best threshold of one sample; the clip of a batch's mean has
        another, and its criterion is that of [`jaxclip.moments`][], against the
        unclipped mean of as many samples.

    **Returns:**

    A [`jaxclip.criterion.BestClip`][].

    **Raises:**

    A `ValueError` where a number is out of its range, or the scope has no moments.
    """
    risk = nonnegative("risk", risk)
    update = algorithm.Update(batch_size, scope)
    need_moments("best_clip", update)
    return _best_clip(noise, risk, positive("feature_norm", feature_norm), update)


class _Best(NamedTuple):
    """The best threshold on the residual, its criterion, its efficiency, and the slope
    of the efficiency's logarithm in that of the risk."""

    threshold: RealScalar
    ccc: RealScalar
    efficiency: RealScalar
    slope: RealScalar


# Jitted behind the door: a Python number would be compiled in, and again for the next.
@eqx.filter_jit
def _best_clip(
    noise: AbstractNoise,
    risk: RealScalar,
    feature_norm: RealScalar,
    update: algorithm.Update,
) -> BestClip:
    if clips_mean(update):
        size = update.batch_size
        near = batch.batch_law(noise, size, risk)
        best = best_of_mean(noise.variance, risk, size, lambda _: near)
    else:
        best = best_at(noise, risk)
    return BestClip(HardClip(best.threshold * feature_norm), best.ccc)


def best_at(noise: AbstractNoise, risk: RealScalar) -> _Best:
    law = noise.residual(2 * risk)
    # exp E log |w| is finite and a typical size whatever the tails are; the standard
    # deviation, where it is finite, may be far larger.
    tiny = jnp.finfo(jnp.result_type(float)).tiny
    size = jnp.exp(law.expect(lambda norm: jnp.log(jnp.maximum(norm, tiny))))
    variance = 2 * risk + noise.variance
    std = jnp.sqrt(variance)
    low = jnp.log(_SMALLEST * size)
    high = jnp.log(_LARGEST * jnp.where(jnp.isfinite(std), std, size))
    grid = jnp.linspace(low, high, _GRID)
    spacing = (high - low) / (_GRID - 1)
    # In the residual's own unit, in which the square of a small one is a number. The
    # efficiency without a clip is one over the variance: 1 in that unit.
    unit = jax.lax.stop_gradient(jnp.where(jnp.isfinite(std), std, size))

    def function(log_thresholds):
        return _efficiencies(noise, risk, jnp.exp(log_thresholds), unit)

    top = grid[jnp.argmax(function(grid))]
    best, efficiency = _refine(function, top, spacing)
    ccc = jnp.where(jnp.isfinite(std), efficiency, jnp.inf)
    gain = ccc > 1 + _NO_GAIN[str(grid.dtype)]

    def log_efficiency(log_risk):
        # At the maximum it does not matter that the threshold moves too.
        cut = jnp.exp(best)[None]
        return jnp.log(_efficiencies(noise, jnp.exp(log_risk), cut, unit)[0])

    log_risk = jnp.log(jnp.maximum(risk, tiny))
    slope = jax.jvp(log_efficiency, (log_risk,), (jnp.ones_like(log_risk),))[1]
    return _Best(
        jnp.where(gain, jnp.exp(best), jnp.inf),
        jnp.where(gain, ccc, jnp.ones_like(ccc)),
        jnp.where(gain, efficiency / unit**2, 1 / variance),
        jnp.where(gain, slope, -2 * risk / variance),
    )


def best_of_mean(
    noise_variance: RealScalar,
    risk: RealScalar,
    size: int,
    near: Callable[[RealScalar], batch.Near],
) -> _Best:
    """The same for the clip of the mean gradient of a batch of `size` samples.

    **Arguments:**

    - `near`: the laws beside a value of the risk.
    """
    here = near(risk)
    # The typical mean of each law, of which the middle one counts most.
    typical = jnp.dot(jnp.abs(here.weights), here.laws.unit)
    typical = typical / jnp.sum(jnp.abs(here.weights)) / size
    variance = (2 * risk + noise_variance) / size
    finite = jnp.isfinite(variance) & (variance > 0)
    unit = jax.lax.stop_gradient(jnp.where(finite, jnp.sqrt(variance), typical))
    low, high = jnp.log(1e-3 * typical), jnp.log(1e3 * unit)
    grid = jnp.linspace(low, high, _GRID // 2)

    def function(log_thresholds):
        return jax.vmap(lambda log: of(here, log))(log_thresholds)

    def of(beside, log_threshold):
        mu, second = hard_moments(jnp.exp(log_threshold), size, beside)
        return mu**2 / (second / unit**2)

    top = grid[jnp.argmax(function(grid))]
    best, efficiency = _refine(function, top, (high - low) / (len(grid) - 1), 8)
    ccc = jnp.where(finite, efficiency, jnp.inf)
    gain = ccc > 1 + _NO_BATCH_GAIN[str(grid.dtype)]
    tiny = jnp.finfo(grid.dtype).tiny
    log_risk = jnp.log(jnp.maximum(risk, tiny))
    slope = jax.jvp(
        lambda log: jnp.log(of(near(jnp.exp(log)), jax.lax.stop_gradient(best))),
        (log_risk,),
        (jnp.ones_like(log_risk),),
    )[1]
    return _Best(
        jnp.where(gain, jnp.exp(best), jnp.inf),
        jnp.where(gain, ccc, jnp.ones_like(ccc)),
        jnp.where(gain, efficiency / unit**2, 1 / variance),
        jnp.where(gain, slope, -2 * risk / (2 * risk + noise_variance)),
    )


def _efficiencies(
    noise: AbstractNoise,
    risk: RealScalar,
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

    law = noise.residual(2 * risk)
    mu, second = law.expect(integrand, jnp.unstack(thresholds))
    # A threshold below every residual keeps the sign only, and is as good as none.
    return mu**2 / second


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
