"""Clipping rules as optax transforms."""

from ._as_transform import ClipState as ClipState, as_transform as as_transform
from ._norm import safe_norm as safe_norm
from ._scope import (
    AbstractScope as AbstractScope,
    PerExample as PerExample,
    PerTree as PerTree,
)
from ._spider import (
    AbstractSpiderVariant as AbstractSpiderVariant,
    AuthorsSpider as AuthorsSpider,
    PeriodicSpider as PeriodicSpider,
    SpiderState as SpiderState,
    spider as spider,
)
