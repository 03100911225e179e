"""Optimisers that are built on a rule, and means of several workers' gradients."""

from ._aggregate import (
    CenteredClipState as CenteredClipState,
    centered_clip as centered_clip,
    geometric_median as geometric_median,
)
from ._clip21 import Clip21State as Clip21State, clip21 as clip21
from ._clipped_sstm import (
    ClippedSSTMState as ClippedSSTMState,
    clipped_sstm as clipped_sstm,
)
from ._error_feedback import (
    ErrorFeedbackState as ErrorFeedbackState,
    error_feedback as error_feedback,
)
from ._mixed_momentum import (
    MixedMomentumState as MixedMomentumState,
    mixed_momentum as mixed_momentum,
)
from ._spider import (
    AbstractSpiderVariant as AbstractSpiderVariant,
    AuthorsSpider as AuthorsSpider,
    PeriodicSpider as PeriodicSpider,
    SpiderState as SpiderState,
    spider as spider,
)
from ._stable_adam import (
    StableAdamState as StableAdamState,
    stable_adam as stable_adam,
)
from ._update import (
    Momentum as Momentum,
    MomentumState as MomentumState,
    Update as Update,
    WeightDecay as WeightDecay,
)
