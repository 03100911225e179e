"""A differentiable simulator of stochastic gradient descent with clipping."""

from ._advise import Advice as Advice, advise as advise
from ._criteria import (
    BestClip as BestClip,
    best_clip as best_clip,
    heuristic_clip as heuristic_clip,
    max_ccc as max_ccc,
)
from ._curve import Curve as Curve
from ._schedule import Constant as Constant, PiecewiseLinear as PiecewiseLinear
from ._score import (
    ScoreClip as ScoreClip,
    ceiling as ceiling,
    fisher_information as fisher_information,
    score_clip as score_clip,
)
from ._stability import stable_lr as stable_lr
from ._tune import tune as tune
from .clip import (
    PSAC as PSAC,
    AbstractClip as AbstractClip,
    AbstractPolicy as AbstractPolicy,
    AdaGC as AdaGC,
    Adaptive as Adaptive,
    AutoS as AutoS,
    DeltaClip as DeltaClip,
    HardClip as HardClip,
    Identity as Identity,
    Normalize as Normalize,
    Percentile as Percentile,
    QuantileDescent as QuantileDescent,
    RandomThreshold as RandomThreshold,
    RootSoftClip as RootSoftClip,
    SecondMoment as SecondMoment,
    SkipClip as SkipClip,
    SoftClip as SoftClip,
    ZScore as ZScore,
)
from .limit import (
    AbstractLimit as AbstractLimit,
    ExponentialModes as ExponentialModes,
    HomogenizedSDE as HomogenizedSDE,
    Moments as Moments,
    RiskODE as RiskODE,
    moments as moments,
    solve as solve,
)
from .problem import (
    AbstractGaussianLinear as AbstractGaussianLinear,
    AbstractLaw as AbstractLaw,
    AbstractLinear as AbstractLinear,
    AbstractLoss as AbstractLoss,
    AbstractNoise as AbstractNoise,
    AbstractNoisyLinear as AbstractNoisyLinear,
    AbstractProblem as AbstractProblem,
    Cauchy as Cauchy,
    CompressedLeastSquares as CompressedLeastSquares,
    Contaminated as Contaminated,
    Empirical as Empirical,
    Exponential as Exponential,
    Gaussian as Gaussian,
    Huber as Huber,
    HuberLoss as HuberLoss,
    Laplace as Laplace,
    LeastSquares as LeastSquares,
    Logistic as Logistic,
    LogisticLoss as LogisticLoss,
    Modes as Modes,
    NormalMixture as NormalMixture,
    Pinball as Pinball,
    PinballLoss as PinballLoss,
    Rademacher as Rademacher,
    Regression as Regression,
    SmoothLaw as SmoothLaw,
    SparseSign as SparseSign,
    Spectrum as Spectrum,
    SquaredLoss as SquaredLoss,
    StudentT as StudentT,
    Uniform as Uniform,
    random_features as random_features,
)
from .simulate import (
    AbstractEngine as AbstractEngine,
    Blocked as Blocked,
    Direct as Direct,
    Lumped as Lumped,
    default_engine as default_engine,
    simulate as simulate,
    train as train,
)
from .sweep import Sweep as Sweep, sweep as sweep
from .transform import (
    AbstractPerLeaf as AbstractPerLeaf,
    AbstractScope as AbstractScope,
    ClipState as ClipState,
    ClipTransformation as ClipTransformation,
    GuardState as GuardState,
    MonitorState as MonitorState,
    PerCoordinate as PerCoordinate,
    PerExample as PerExample,
    PerLeaf as PerLeaf,
    PerLeafRMS as PerLeafRMS,
    PerLeafShare as PerLeafShare,
    PerTree as PerTree,
    PerUnit as PerUnit,
    as_transform as as_transform,
    clipped_grad as clipped_grad,
    monitor as monitor,
    safe_norm as safe_norm,
    skip_nonfinite as skip_nonfinite,
    zero_nonfinite as zero_nonfinite,
)
