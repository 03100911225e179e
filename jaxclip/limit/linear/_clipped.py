"""The coefficients of the risk ODE of SGD with a rule."""

import equinox as eqx

from ..._types import RealScalar, Schedule
from ...clip import AbstractClip
from ...noise import AbstractNoise
from ...problem import AbstractLoss
from ...transform import algorithm
from .._loss_moments import loss_update
from .._moments import Laws


class RiskCoefficients(eqx.Module):
    """The coefficients of SGD with a rule and a rate."""

    clip: AbstractClip
    loss: AbstractLoss
    noise: AbstractNoise
    feature_norm: RealScalar
    lr: Schedule
    update: algorithm.Update
    laws: Laws

    def __call__(self, step, risk):
        # Checked once at the door: here every trial step of the solver would be.
        of = self.clip, self.loss, self.noise, risk, self.feature_norm, step
        mu, second = loss_update(*of, self.update, self.laws)
        rate = self.lr(step)
        return rate * mu, rate**2 * second
