"""Clipping rules as optax transforms."""

from ._as_transform import (
    ClipState as ClipState,
    ClipTransformation as ClipTransformation,
    as_transform as as_transform,
)
from ._centered_clip import (
    CenteredClipState as CenteredClipState,
    centered_clip as centered_clip,
    geometric_median as geometric_median,
)
from ._clip21 import Clip21State as Clip21State, clip21 as clip21
from ._clipped_grad import clipped_grad as clipped_grad
from ._clipped_sstm import (
    ClippedSSTMState as ClippedSSTMState,
    clipped_sstm as clipped_sstm,
)
from ._error_feedback import (
    ErrorFeedbackState as ErrorFeedbackState,
    error_feedback as error_feedback,
)
from ._guard import (
    GuardState as GuardState,
    skip_nonfinite as skip_nonfinite,
    zero_nonfinite as zero_nonfinite,
)
from ._mixed_momentum import (
    MixedMomentumState as MixedMomentumState,
    mixed_momentum as mixed_momentum,
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
from ._spider import (
    AbstractSpiderVariant as AbstractSpiderVariant,
    AuthorsSpider as AuthorsSpider,
    PeriodicSpider as PeriodicSpider,
    SpiderState as SpiderState,
    spider as spider,
)
