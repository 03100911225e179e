"""What SGD runs on."""

from ._base import AbstractProblem as AbstractProblem
from ._finite_sum import FiniteSum as FiniteSum, Online as Online
from ._repeated import Repeated as Repeated
from .landscape import (
    AbstractLandscape as AbstractLandscape,
    Landscape as Landscape,
    TwoWells as TwoWells,
)
from .linear import (
    AbstractGaussianLinear as AbstractGaussianLinear,
    AbstractGeneralisedLinear as AbstractGeneralisedLinear,
    AbstractLinear as AbstractLinear,
    AbstractLoss as AbstractLoss,
    AbstractNoisyLinear as AbstractNoisyLinear,
    AbstractResidualLoss as AbstractResidualLoss,
    CompressedLinearModel as CompressedLinearModel,
    HuberLoss as HuberLoss,
    LinearModel as LinearModel,
    Logistic as Logistic,
    LogisticLoss as LogisticLoss,
    Modes as Modes,
    PinballLoss as PinballLoss,
    Poisson as Poisson,
    PowerLawFeatures as PowerLawFeatures,
    Regression as Regression,
    Spectrum as Spectrum,
    SquaredLoss as SquaredLoss,
    check_squared as check_squared,
    is_diagonal as is_diagonal,
    need_residual_loss as need_residual_loss,
    need_squared_loss as need_squared_loss,
    random_features as random_features,
)
from .zero_loss import (
    AbstractNoisyProblem as AbstractNoisyProblem,
    Interpolation as Interpolation,
    NoisyLoss as NoisyLoss,
    inject as inject,
)
