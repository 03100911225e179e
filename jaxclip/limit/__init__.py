"""What SGD converges to."""

from ._base import AbstractLimit as AbstractLimit
from ._exponential import ExponentialModes as ExponentialModes
from ._gradient_flow import GradientFlow as GradientFlow, limit_map as limit_map
from ._homogenized import HomogenizedSDE as HomogenizedSDE
from ._moments import Moments as Moments, moments as moments
from ._risk_ode import RiskODE as RiskODE
from ._solve import solve as solve
from ._time_scale import TimeScale as TimeScale, time_scale as time_scale
from ._zero_loss_flow import ZeroLossFlow as ZeroLossFlow
from ._zero_loss_sde import ZeroLossSDE as ZeroLossSDE
