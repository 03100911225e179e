"""A differentiable simulator of stochastic gradient descent with clipping."""

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
from ._tangent import (
    PLViolations as PLViolations,
    hard_clip_floor as hard_clip_floor,
    largest_curvature as largest_curvature,
    pl_violations as pl_violations,
    tangent_kernel as tangent_kernel,
)
from ._tune import tune as tune
from ._unroll import unroll as unroll
from .advise import Advice as Advice, advise as advise
from .clip import (
    AbstractClip as AbstractClip,
    DeltaClip as DeltaClip,
    HardClip as HardClip,
    Identity as Identity,
    Normalize as Normalize,
    RootSoftClip as RootSoftClip,
    SoftClip as SoftClip,
    SpiderClip as SpiderClip,
)
from .diagnose import (
    Diagnosis as Diagnosis,
    Estimate as Estimate,
    diagnose as diagnose,
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
    FiniteSum as FiniteSum,
    Gaussian as Gaussian,
    Huber as Huber,
    HuberLoss as HuberLoss,
    Laplace as Laplace,
    LeastSquares as LeastSquares,
    Logistic as Logistic,
    LogisticLoss as LogisticLoss,
    Modes as Modes,
    NormalMixture as NormalMixture,
    Online as Online,
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
    WideNetwork as WideNetwork,
    random_features as random_features,
)
from .simulate import (
    AbstractEngine as AbstractEngine,
    Blocked as Blocked,
    Direct as Direct,
    Lumped as Lumped,
    Spider as Spider,
    SpiderRun as SpiderRun,
    default_engine as default_engine,
    run_spider as run_spider,
    simulate as simulate,
    train as train,
)
from .sweep import Sweep as Sweep, sweep as sweep
from .transform import (
    AbstractScope as AbstractScope,
    AbstractSpiderVariant as AbstractSpiderVariant,
    AuthorsSpider as AuthorsSpider,
    ClipState as ClipState,
    PerExample as PerExample,
    PeriodicSpider as PeriodicSpider,
    PerTree as PerTree,
    SpiderState as SpiderState,
    as_transform as as_transform,
    safe_norm as safe_norm,
    spider as spider,
)
