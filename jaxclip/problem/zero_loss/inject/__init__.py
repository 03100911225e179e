"""Noises that are injected into a model which can fit all of its data."""

from ._base import AbstractInjection as AbstractInjection
from ._fit import Fit as Fit
from ._label import Label as Label
from ._langevin import Langevin as Langevin
from ._minibatch import Minibatch as Minibatch
from ._residual import AbstractResidualInjection as AbstractResidualInjection
from ._weights import (
    AntiCorrelated as AntiCorrelated,
    DropConnect as DropConnect,
    Dropout as Dropout,
)
