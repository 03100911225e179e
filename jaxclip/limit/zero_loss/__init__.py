"""The limits on the zero-loss set."""

from ._adam import AdamZeroLossFlow as AdamZeroLossFlow
from ._flow import ZeroLossFlow as ZeroLossFlow
from ._limit_map import limit_map as limit_map
from ._sde import ZeroLossSDE as ZeroLossSDE
from ._time_scale import TimeScale as TimeScale, time_scale as time_scale
