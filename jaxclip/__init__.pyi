from . import (
    advice as advice,
    clip as clip,
    criterion as criterion,
    curvature as curvature,
    diagnosis as diagnosis,
    grid as grid,
    limit as limit,
    noise as noise,
    privacy as privacy,
    problem as problem,
    sgd as sgd,
    transform as transform,
    tuning as tuning,
)
from ._curve import Curve as Curve
from ._schedule import Constant as Constant, PiecewiseLinear as PiecewiseLinear
from ._version import __version__ as __version__
from .advice import Advice as Advice, advise as advise
from .clip import (
    PSAC as PSAC,
    AbstractClip as AbstractClip,
    Adaptive as Adaptive,
    AutoS as AutoS,
    DeltaClip as DeltaClip,
    HardClip as HardClip,
    Identity as Identity,
    Normalize as Normalize,
    RootSoftClip as RootSoftClip,
    ScoreClip as ScoreClip,
    SkipClip as SkipClip,
    SoftClip as SoftClip,
    SpiderClip as SpiderClip,
    policy as policy,
)
from .criterion import (
    best_clip as best_clip,
    ceiling as ceiling,
    heuristic as heuristic,
    max_ccc as max_ccc,
    score as score,
    stable_lr as stable_lr,
)
from .diagnosis import (
    Diagnosis as Diagnosis,
    diagnose as diagnose,
)
from .grid import Sweep as Sweep, sweep as sweep
from .limit import (
    EdgeFlow as EdgeFlow,
    GradientFlow as GradientFlow,
    HomogenizedSDE as HomogenizedSDE,
    RiskODE as RiskODE,
    ZeroLossFlow as ZeroLossFlow,
    ZeroLossSDE as ZeroLossSDE,
    moments as moments,
    solve as solve,
)
from .noise import (
    AbstractNoise as AbstractNoise,
    Cauchy as Cauchy,
    Contaminated as Contaminated,
    Empirical as Empirical,
    Exponential as Exponential,
    Gaussian as Gaussian,
    Laplace as Laplace,
    Rademacher as Rademacher,
    StudentT as StudentT,
    Uniform as Uniform,
)
from .problem import (
    AbstractProblem as AbstractProblem,
    FiniteSum as FiniteSum,
    HuberLoss as HuberLoss,
    Interpolation as Interpolation,
    Landscape as Landscape,
    LinearModel as LinearModel,
    Logistic as Logistic,
    LogisticLoss as LogisticLoss,
    Online as Online,
    PinballLoss as PinballLoss,
    Regression as Regression,
    Repeated as Repeated,
    Spectrum as Spectrum,
    SquaredLoss as SquaredLoss,
    TwoWells as TwoWells,
    inject as inject,
)
from .sgd import (
    Blocked as Blocked,
    Direct as Direct,
    Lumped as Lumped,
    Spider as Spider,
    basins as basins,
    run_spider as run_spider,
    simulate as simulate,
    train as train,
)
from .transform import (
    PerCoordinate as PerCoordinate,
    PerExample as PerExample,
    PerLeaf as PerLeaf,
    PerTree as PerTree,
    PerUnit as PerUnit,
    algorithm as algorithm,
    as_transform as as_transform,
    clip_metrics as clip_metrics,
    clipped_grad as clipped_grad,
    clipped_value_and_grad as clipped_value_and_grad,
    monitor as monitor,
    safe_norm as safe_norm,
    skip_nonfinite as skip_nonfinite,
    skip_spikes as skip_spikes,
    zero_nonfinite as zero_nonfinite,
)
from .tuning import tune as tune, unroll as unroll
