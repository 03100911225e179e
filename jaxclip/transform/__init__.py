"""Clipping rules as optax transforms."""

from ._as_transform import (
    ClipState as ClipState,
    ClipTransformation as ClipTransformation,
    as_transform as as_transform,
)
from ._clipped_grad import clipped_grad as clipped_grad
from ._guard import (
    GuardState as GuardState,
    skip_nonfinite as skip_nonfinite,
    zero_nonfinite as zero_nonfinite,
)
from ._monitor import MonitorState as MonitorState, monitor as monitor
from ._norm import safe_norm as safe_norm
from ._scope import (
    AbstractPerLeaf as AbstractPerLeaf,
    AbstractScope as AbstractScope,
    PerCoordinate as PerCoordinate,
    PerLeaf as PerLeaf,
    PerLeafRMS as PerLeafRMS,
    PerLeafShare as PerLeafShare,
    PerTree as PerTree,
)
from ._scope_example import PerExample as PerExample
from ._scope_unit import PerUnit as PerUnit
from .algorithm import (
    AbstractSpiderVariant as AbstractSpiderVariant,
    AuthorsSpider as AuthorsSpider,
    CenteredClipState as CenteredClipState,
    Clip21State as Clip21State,
    ClippedSSTMState as ClippedSSTMState,
    ErrorFeedbackState as ErrorFeedbackState,
    MixedMomentumState as MixedMomentumState,
    PeriodicSpider as PeriodicSpider,
    SpiderState as SpiderState,
    centered_clip as centered_clip,
    clip21 as clip21,
    clipped_sstm as clipped_sstm,
    error_feedback as error_feedback,
    geometric_median as geometric_median,
    mixed_momentum as mixed_momentum,
    spider as spider,
)
