"""Clipping rules: scalar functions of a norm."""

from ._base import AbstractClip as AbstractClip
from ._rules import (
    DeltaClip as DeltaClip,
    HardClip as HardClip,
    Identity as Identity,
    Normalize as Normalize,
    RootSoftClip as RootSoftClip,
    SoftClip as SoftClip,
)
from ._spider import SpiderClip as SpiderClip
