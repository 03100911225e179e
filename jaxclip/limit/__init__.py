"""What SGD converges to."""

from ._base import AbstractLimit as AbstractLimit, Request as Request
from ._coordinate_moments import coordinate_moments as coordinate_moments
from ._edge_flow import EdgeFlow as EdgeFlow, Oscillation as Oscillation
from ._gradient_flow import GradientFlow as GradientFlow
from ._intervals import varies as varies
from ._loss_moments import LossMoments as LossMoments, loss_moments as loss_moments
from ._moments import (
    Laws as Laws,
    clips_mean as clips_mean,
    hard_moments as hard_moments,
    moments as moments,
    need_moments as need_moments,
    update_laws as update_laws,
    update_moments as update_moments,
)
from ._reading import Reading as Reading
from ._solve import solve as solve
from .linear import (
    AdagradODE as AdagradODE,
    AdamODE as AdamODE,
    CoordinateODE as CoordinateODE,
    ExponentialModes as ExponentialModes,
    GeneralisedODE as GeneralisedODE,
    HomogenizedSDE as HomogenizedSDE,
    ModeEquation as ModeEquation,
    MomentumODE as MomentumODE,
    RiskODE as RiskODE,
    RiskRecursion as RiskRecursion,
    UpdateMoments as UpdateMoments,
    few_modes as few_modes,
)
from .zero_loss import (
    AdamZeroLossFlow as AdamZeroLossFlow,
    TimeScale as TimeScale,
    ZeroLossFlow as ZeroLossFlow,
    ZeroLossSDE as ZeroLossSDE,
    limit_map as limit_map,
    time_scale as time_scale,
)
