"""Models that fit all of their data, under noise."""

from ._labels import LabelNoise as LabelNoise, Minibatch as Minibatch
from ._langevin import Langevin as Langevin
from ._loss import AbstractNoisyProblem as AbstractNoisyProblem, NoisyLoss as NoisyLoss
from ._model import AbstractNoisyModel as AbstractNoisyModel
from ._weights import (
    AntiCorrelated as AntiCorrelated,
    DropConnect as DropConnect,
    Dropout as Dropout,
)
