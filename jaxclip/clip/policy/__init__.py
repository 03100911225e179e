"""Policies: thresholds that adapt to the norms that have been seen, or are drawn."""

from ._base import AbstractPolicy as AbstractPolicy
from ._policies import (
    AdaGC as AdaGC,
    Percentile as Percentile,
    QuantileDescent as QuantileDescent,
    RandomThreshold as RandomThreshold,
    RingBuffer as RingBuffer,
    SecondMoment as SecondMoment,
)
from ._z_score import ZScore as ZScore, ZScoreState as ZScoreState
