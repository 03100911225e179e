"""Settings that are fed back from the risk, turned into functions of the step."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import count
from .._schedule import PiecewiseLinear, Ratio, check_rate
from .._types import RealScalar, RealScalarLike, Schedule, Step
from ..clip import HardClip, Moments
from ..limit import Laws, Request, RiskODE, few_modes, update_moments
from ..noise import AbstractNoise
from ..problem import LinearModel
from ..transform import algorithm
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
    update: algorithm.Update,
    laws: Laws = None,
) -> Setting:
    """Turns a threshold given as a function of the risk into one of the step.

    The risk ODE is solved with the threshold that belongs to its own risk at each step;
    the threshold along the solution, tabulated, is the schedule.

    **Arguments:**

    - `problem`: whose risk ODE.
    - `lr`: the learning rate, per step: a number or a function of the step.
    - `threshold`: on the residual, in the label's unit, as a function of the excess
        risk; a module, for which all is compiled once.
    - `steps`: the length of the schedule.
    - `compensate`: if true, `lr` is divided by `mu`, so that the expected step is that
        of SGD without a clip.
    - `efficiency`: `mu^2 / second` with that threshold, as a function of the risk,
        where it is known without a quadrature: all that a compensated run depends on.

    - `update`, `laws`: how a step is made of samples, and the laws of a batch.

    **Returns:**

    The rule, with a threshold on the gradient's norm, and the learning rate.
    """
    steps = count("steps", steps)
    lr = check_rate(lr, schedule_knots(steps))

    modes = few_modes(problem)
    noise, norm = problem.noise, problem.spectrum.feature_norm
    feedback = _Feedback(noise, lr, threshold, efficiency, update, laws, compensate)
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
    update: algorithm.Update
    laws: Laws
    compensate: bool = eqx.field(static=True)

    def moments(self, risk: RealScalar) -> Moments:
        clip = HardClip(self.threshold(risk))
        of = clip, self.noise, risk, 1.0, 0
        return update_moments(*of, self.update, self.laws)

    def __call__(self, step: Step, risk: RealScalar) -> tuple[RealScalar, RealScalar]:
        rate = self.lr(step)
        # Compensated, gamma = q / mu: the noise is q^2 second / mu^2, the rate over the
        # efficiency, which may be known without any moment.
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
    jumps = _Jumps.of(thresholds)
    knots, held = jumps.knots(knots), jumps.hold(thresholds)
    clip = HardClip(PiecewiseLinear(knots, held * feature_norm))
    return clip, PiecewiseLinear(knots, jumps.hold(mus))


class _Jumps(eqx.Module):
    """Where a tabulated threshold jumps, and what a line between two knots makes of it.

    A table is read along straight lines, which would turn a jump into a ramp; while it
    climbs the rate would be compensated for a clip that does not act yet. So there is
    one more knot in each interval, and where the threshold jumps the larger of its two
    values is held up to there: after a step up the new knot lies at 1% of the interval,
    so that the larger value is reached at once; before a step down at 99%, so that it
    is kept until the end. What is left of the ramp is one hundredth of the interval.

    - `rises`: shape `(k - 1,)`, whether the threshold is larger at the end of each
        interval than at its start.
    - `jumps`: shape `(k - 1,)`, whether it changes by more than a factor of `_JUMP`.
    """

    rises: Bool[Array, " i"]
    jumps: Bool[Array, " i"]

    @classmethod
    def of(cls, thresholds: Float[Array, " k"]) -> "_Jumps":
        before, after = thresholds[:-1], thresholds[1:]
        ratio = jnp.maximum(after, before) / jnp.minimum(after, before)
        # NaN, of no threshold at either end, counts as a jump.
        return cls(after > before, ~(ratio < _JUMP))

    def knots(self, knots: Float[Array, " k"]) -> Float[Array, " n"]:
        """The knots, with one more in each interval: in the middle where nothing jumps.
        There it changes nothing."""
        share = jnp.where(self.jumps, jnp.where(self.rises, 0.01, 0.99), 0.5)
        return _between(knots, knots[:-1] + share * jnp.diff(knots))

    def hold(self, values: Float[Array, " k"]) -> Float[Array, " n"]:
        """Values at the knots, and at the new ones between them: those of the side with
        the larger threshold, or the geometric mean where nothing jumps."""
        # Two roots, since the product could overflow.
        mean = jnp.sqrt(values[:-1]) * jnp.sqrt(values[1:])
        larger = jnp.where(self.rises, values[1:], values[:-1])
        return _between(values, jnp.where(self.jumps, larger, mean))


def _between(
    values: Float[Array, " k"], more: Float[Array, " i"]
) -> Float[Array, " n"]:
    """One more number after each of the values but the last."""
    return jnp.insert(values, np.arange(1, len(values)), more)
