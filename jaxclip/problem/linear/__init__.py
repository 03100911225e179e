"""Models that are linear in their parameters."""

from ._base import AbstractLinear as AbstractLinear
from ._basis import is_diagonal as is_diagonal
from ._compressed import CompressedLinearModel as CompressedLinearModel
from ._features import random_features as random_features
from ._gaussian import (
    AbstractGaussianLinear as AbstractGaussianLinear,
    AbstractNoisyLinear as AbstractNoisyLinear,
)
from ._generalised import AbstractGeneralisedLinear as AbstractGeneralisedLinear
from ._logistic import Logistic as Logistic
from ._loss import (
    AbstractLoss as AbstractLoss,
    AbstractResidualLoss as AbstractResidualLoss,
    HuberLoss as HuberLoss,
    LogisticLoss as LogisticLoss,
    PinballLoss as PinballLoss,
    SquaredLoss as SquaredLoss,
    check_squared as check_squared,
)
from ._model import LinearModel as LinearModel
from ._modes import Modes as Modes
from ._need import (
    need_residual_loss as need_residual_loss,
    need_squared_loss as need_squared_loss,
)
from ._poisson import Poisson as Poisson
from ._rows import Regression as Regression
from ._spectrum import PowerLawFeatures as PowerLawFeatures, Spectrum as Spectrum
