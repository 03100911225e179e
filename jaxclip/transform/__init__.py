"""Clipping rules as optax transforms."""

from . import algorithm as algorithm
from ._as_transform import (
    Clipping as Clipping,
    ClipState as ClipState,
    as_transform as as_transform,
)
from ._clipped_grad import (
    clipped_grad as clipped_grad,
    clipped_value_and_grad as clipped_value_and_grad,
)
from ._clipped_gradient import ClippedGradient as ClippedGradient
from ._guard import (
    GuardState as GuardState,
    SpikeState as SpikeState,
    skip_nonfinite as skip_nonfinite,
    skip_spikes as skip_spikes,
    zero_nonfinite as zero_nonfinite,
)
from ._live_plot import LivePlot as LivePlot
from ._metrics import clip_metrics as clip_metrics
from ._monitor import MonitorState as MonitorState, monitor as monitor
from ._norm import safe_norm as safe_norm
from ._parts import Parts as Parts
from ._reduced import Examples as Examples
from ._scope import AbstractScope as AbstractScope, PerTree as PerTree
from ._scope_example import (
    PerExample as PerExample,
    within_example as within_example,
)
from ._scope_leaf import (
    AbstractPerLeaf as AbstractPerLeaf,
    PerCoordinate as PerCoordinate,
    PerLeaf as PerLeaf,
    PerLeafRMS as PerLeafRMS,
    PerLeafShare as PerLeafShare,
)
from ._scope_unit import PerUnit as PerUnit
