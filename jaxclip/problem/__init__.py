"""What SGD runs on."""

from ._base import AbstractLinear as AbstractLinear, AbstractProblem as AbstractProblem
from ._empirical import Empirical as Empirical
from ._finite_sum import FiniteSum as FiniteSum, Online as Online
from ._gaussian import (
    AbstractGaussianLinear as AbstractGaussianLinear,
    AbstractNoisyLinear as AbstractNoisyLinear,
)
from ._label_noise import (
    LabelNoise as LabelNoise,
    Langevin as Langevin,
    Minibatch as Minibatch,
)
from ._landscape import AbstractLandscape as AbstractLandscape, Landscape as Landscape
from ._law import (
    AbstractLaw as AbstractLaw,
    NormalMixture as NormalMixture,
)
from ._least_squares import (
    CompressedLeastSquares as CompressedLeastSquares,
    LeastSquares as LeastSquares,
)
from ._logistic import Logistic as Logistic
from ._loss import (
    AbstractLoss as AbstractLoss,
    HuberLoss as HuberLoss,
    LogisticLoss as LogisticLoss,
    PinballLoss as PinballLoss,
    SquaredLoss as SquaredLoss,
)
from ._mask import Mask as Mask
from ._modes import Modes as Modes
from ._network import WideNetwork as WideNetwork
from ._noise import (
    AbstractNoise as AbstractNoise,
    Contaminated as Contaminated,
    Gaussian as Gaussian,
    Rademacher as Rademacher,
    SparseSign as SparseSign,
)
from ._noise_smooth import (
    Cauchy as Cauchy,
    Exponential as Exponential,
    Laplace as Laplace,
    StudentT as StudentT,
    Uniform as Uniform,
)
from ._noisy_model import (
    AbstractNoisyModel as AbstractNoisyModel,
    AntiCorrelated as AntiCorrelated,
    DropConnect as DropConnect,
    Dropout as Dropout,
)
from ._noisy_problem import (
    AbstractNoisyProblem as AbstractNoisyProblem,
    NoisyLoss as NoisyLoss,
)
from ._regression import Regression as Regression, random_features as random_features
from ._repeated import Repeated as Repeated
from ._robust import Huber as Huber, Pinball as Pinball
from ._smooth_law import SmoothLaw as SmoothLaw
from ._spectrum import Spectrum as Spectrum
from ._two_wells import TwoWells as TwoWells
