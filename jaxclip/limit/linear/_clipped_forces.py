"""What moves the modes of a linear model in a step of clipped SGD."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..._types import RealScalar, Schedule
from ...clip import AbstractClip, mean_factor
from ...noise import AbstractNoise
from ...transform import PerExample, algorithm
from .._moments import Laws, shares, update_moments
from ._memory import Forces


class ClippedForces(eqx.Module):
    """The forces of SGD with a rule, a rate, momentum and decay."""

    clip: AbstractClip
    noise: AbstractNoise
    feature_norm: RealScalar
    lr: Schedule
    update: algorithm.Update
    noise_std: RealScalar | None
    laws: Laws = None

    def __call__(self, step: RealScalar, risk: RealScalar) -> Forces:
        of = self.clip, self.noise, risk, self.feature_norm, step
        m = update_moments(*of, self.update, self.laws)
        rate = jnp.asarray(self.lr(step))
        no = jnp.zeros_like(rate)
        carry, kick, forget = self.motion(step, rate)
        pull, decay = no, no
        if self.update.weight_decay is not None:
            delta = self.update.weight_decay.rate
            if self.update.weight_decay.clipped:
                pull = shares(self.update)[0] * delta * mean_factor(*of)
            else:
                decay = rate * delta
        isotropic = no if self.noise_std is None else self.noise_std**2 + no
        return Forces(carry, kick, forget, m.mu, pull, decay, m.second, isotropic)

    def motion(
        self, step: RealScalar, rate: Array
    ) -> tuple[Array, Array | None, Array]:
        """What carries, kicks and forgets, at a step and its learning rate."""
        momentum = self.update.momentum
        if momentum is None:
            return jnp.zeros_like(rate), rate, jnp.ones_like(rate)
        kept = jnp.asarray(momentum.coefficient(step))
        if not momentum.nesterov:
            return rate, None, 1 - kept
        # x - rate * (g + kept * m_new), with m_new = m + (g - (1 - kept) * m).
        return rate * (1 - kept * (1 - kept)), rate * kept, 1 - kept


def without_noise(
    update: algorithm.Update,
) -> tuple[algorithm.Update, RealScalar | None]:
    """The update without the noise of its scope, and the noise's deviation."""
    scope = update.scope
    if not isinstance(scope, PerExample) or scope.noise_std is None:
        return update, None
    quiet = PerExample(scope.reduce, within=scope.within, denominator=scope.denominator)
    how = update.batch_size, quiet, update.momentum, update.weight_decay
    return algorithm.Update(*how), scope.noise_std
