"""Settings that are fed back from the risk, turned into functions of the step."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import count
from .._schedule import PiecewiseLinear, Ratio, check_rate
from .._types import RealScalar, RealScalarLike, Schedule, Step
from ..clip import HardClip, Moments, unchecked_moments
from ..limit import Request, RiskODE, few_modes
from ..noise import AbstractNoise
from ..problem import LinearModel
from ._knots import risk_knots, schedule_knots
from ._setting import Setting

# Between two knots a threshold that changes by more than this factor has jumped.
_JUMP = 3.0


def follow(
    problem: LinearModel,
    lr: RealScalarLike | Schedule,
    threshold: Callable[[RealScalar], RealScalar],
    *,
    steps: int,
    compensate: bool,
    efficiency: Callable[[RealScalar], RealScalar] | None = None,
) -> Setting:
    """The schedule that a threshold fed back from the risk runs through.

    **Arguments:**

    - `threshold`: on the residual, as a function of the excess risk; a module, for
        which all is compiled once.
    - `compensate`: whether `lr` is the rate of descent, rather than of learning.
    - `efficiency`: `mu^2 / second` with that threshold, where it is known: all that a
        compensated run depends on.
    """
    steps = count("steps", steps)
    lr = check_rate(lr, schedule_knots(steps))

    modes = few_modes(problem)
    noise, norm = problem.noise, problem.spectrum.feature_norm
    feedback = _Feedback(noise, lr, threshold, efficiency, compensate)
    knots = risk_knots(lr, steps)
    risk = RiskODE().integrate(
        modes, feedback, Request(knots), settings=lr, scale=noise.variance
    ).risk  # fmt: skip
    clip, mus = _tabulated(feedback, knots, risk, norm)
    return Setting(clip, Ratio(lr, mus) if compensate else lr)


class _Feedback(eqx.Module):
    """The coefficients of a run whose threshold is fed back from the risk."""

    noise: AbstractNoise
    lr: Schedule
    threshold: Callable[[RealScalar], RealScalar]
    efficiency: Callable[[RealScalar], RealScalar] | None
    compensate: bool = eqx.field(static=True)

    def moments(self, risk: RealScalar) -> Moments:
        clip = HardClip(self.threshold(risk))
        return unchecked_moments(clip, self.noise, risk, 1.0, 0)

    def __call__(self, step: Step, risk: RealScalar) -> tuple[RealScalar, RealScalar]:
        rate = self.lr(step)
        if self.compensate and self.efficiency is not None:
            return rate, rate**2 / self.efficiency(risk)
        m = self.moments(risk)
        rate = rate / m.mu if self.compensate else rate
        return rate * m.mu, rate**2 * m.second


@eqx.filter_jit
def _tabulated(
    feedback: _Feedback,
    knots: Float[Array, " k"],
    risk: Float[Array, " k"],
    feature_norm: RealScalar,
) -> tuple[HardClip, PiecewiseLinear]:
    """The threshold on the gradient's norm, and `mu`, as functions of the step."""
    # A risk that has vanished has no threshold.
    risk = jnp.maximum(risk, jnp.finfo(risk.dtype).tiny)
    thresholds = jax.vmap(feedback.threshold)(risk)
    mus = jax.lax.map(lambda r: feedback.moments(r).mu, risk, batch_size=16)
    knots, thresholds, mus = _keep_jumps(knots, thresholds, mus)
    clip = HardClip(PiecewiseLinear(knots, thresholds * feature_norm))
    return clip, PiecewiseLinear(knots, mus)


def _keep_jumps(knots, thresholds, mus):
    """The knots, and between any two of them another, at which nothing changes but
    where the threshold jumps: there the larger one is held all the way. Interpolated,
    the rate would be compensated for a clip that does not act yet."""
    rises = thresholds[1:] > thresholds[:-1]
    ratio = jnp.maximum(thresholds[1:], thresholds[:-1])
    ratio = ratio / jnp.minimum(thresholds[1:], thresholds[:-1])
    share = jnp.where(ratio < _JUMP, 0.5, jnp.where(rises, 0.01, 0.99))
    between = knots[:-1] + share * jnp.diff(knots)

    def insert(values):
        middle = jnp.sqrt(values[:-1]) * jnp.sqrt(values[1:])
        larger = jnp.where(rises, values[1:], values[:-1])
        middle = jnp.where(ratio < _JUMP, middle, larger)
        return jnp.insert(values, np.arange(1, len(values)), middle)

    knots = jnp.insert(knots, np.arange(1, len(knots)), between)
    return knots, insert(thresholds), insert(mus)
