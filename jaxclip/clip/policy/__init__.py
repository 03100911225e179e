"""Policies: thresholds that adapt to the norms that have been seen, or are drawn.

| policy | threshold | source |
|---|---|---|
| `Percentile` | a percentile of the norms so far | AutoClip, arXiv:2007.14469 |
| `QuantileDescent` | descends to a quantile of the norms | arXiv:1905.03871 |
| `ZScore` | below any outlier among the norms | ZClip, arXiv:2504.02507 |
| `AdaGC` | a multiple of the norm's running mean | AdaGC, arXiv:2502.11034 |
| `SecondMoment` | a multiple of Adam's denominator | SPAM, arXiv:2501.06842 |
| `Criterion` | the best by the clipping-comparison criterion | arXiv:2406.11733 |
| `AGGC` | brings the norm into a band around its mean | AGGC, arXiv:2601.11864 |
| `GradientStabilizer` | the norm that a ratio of means says | arXiv:2502.17055 |
| `RandomThreshold` | there or not by chance, likelier for long ones | its docstring |
"""

from ._base import (
    AbstractDirectedPolicy as AbstractDirectedPolicy,
    AbstractMaskedPolicy as AbstractMaskedPolicy,
    AbstractPolicy as AbstractPolicy,
    Along as Along,
)
from ._criterion import Criterion as Criterion, CriterionState as CriterionState
from ._policies import (
    AdaGC as AdaGC,
    Percentile as Percentile,
    QuantileDescent as QuantileDescent,
    RingBuffer as RingBuffer,
    SecondMoment as SecondMoment,
)
from ._random_threshold import RandomThreshold as RandomThreshold
from ._set_norm import (
    AGGC as AGGC,
    GradientStabilizer as GradientStabilizer,
    NormMoments as NormMoments,
)
from ._z_score import ZScore as ZScore, ZScoreState as ZScoreState
