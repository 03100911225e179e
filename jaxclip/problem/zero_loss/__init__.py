"""Models that fit all of their data, under noise."""

from . import inject as inject
from ._interpolation import Interpolation as Interpolation
from ._loss import AbstractNoisyProblem as AbstractNoisyProblem, NoisyLoss as NoisyLoss
