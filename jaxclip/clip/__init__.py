"""Clipping rules: scalar functions of a norm, and policies for their thresholds."""

from . import policy as policy
from ._adaptive import (
    Adaptive as Adaptive,
    need_rule as need_rule,
)
from ._base import AbstractClip as AbstractClip
from ._coordinate_moments import (
    Scales as Scales,
    enough_nodes as enough_nodes,
    unchecked_coordinate_moments as unchecked_coordinate_moments,
)
from ._coordinates import SmoothedFactors as SmoothedFactors
from ._moments import (
    Moments as Moments,
    criteria as criteria,
    factor_at as factor_at,
    factor_at_infinity as factor_at_infinity,
    mean_factor as mean_factor,
    unchecked_moments as unchecked_moments,
)
from ._normalize import (
    PSAC as PSAC,
    AutoS as AutoS,
    Normalize as Normalize,
    Rescale as Rescale,
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
