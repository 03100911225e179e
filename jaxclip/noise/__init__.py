"""Laws of a label's noise, and of the residual that it makes."""

from . import batch as batch
from ._base import AbstractNoise as AbstractNoise
from ._empirical import Empirical as Empirical
from ._law import AbstractLaw as AbstractLaw
from ._mixture import (
    Contaminated as Contaminated,
    Gaussian as Gaussian,
    Mask as Mask,
    Rademacher as Rademacher,
    SparseSign as SparseSign,
)
from ._normal_mixture import NormalMixture as NormalMixture
from ._smooth import Exponential as Exponential, Laplace as Laplace, Uniform as Uniform
from ._smooth_law import (
    SmoothLaw as SmoothLaw,
    SteppedLaw as SteppedLaw,
    normal_edges as normal_edges,
)
from ._student import Cauchy as Cauchy, StudentT as StudentT
from ._with_gaussian import WithGaussian as WithGaussian
