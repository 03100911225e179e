"""Clipping rules: scalar functions of a norm, and policies for their thresholds."""

from ._adaptive import (
    AbstractPolicy as AbstractPolicy,
    Adaptive as Adaptive,
    need_rule as need_rule,
)
from ._base import AbstractClip as AbstractClip
from ._moments import (
    Moments as Moments,
    moments as moments,
    unchecked_moments as unchecked_moments,
)
from ._normalize import PSAC as PSAC, AutoS as AutoS, Normalize as Normalize
from ._policies import (
    AdaGC as AdaGC,
    Percentile as Percentile,
    QuantileDescent as QuantileDescent,
    RandomThreshold as RandomThreshold,
    SecondMoment as SecondMoment,
)
from ._rules import (
    DeltaClip as DeltaClip,
    HardClip as HardClip,
    Identity as Identity,
    RootSoftClip as RootSoftClip,
    SkipClip as SkipClip,
    SoftClip as SoftClip,
)
from ._score import ScoreClip as ScoreClip
from ._spider import SpiderClip as SpiderClip
from ._z_score import ZScore as ZScore
