"""The limits of linear models in high dimension."""

from ._collocation import ModeEquation as ModeEquation
from ._coordinate_ode import CoordinateODE as CoordinateODE
from ._exponential import ExponentialModes as ExponentialModes
from ._homogenized import HomogenizedSDE as HomogenizedSDE
from ._momentum_ode import MomentumODE as MomentumODE
from ._risk_ode import RiskODE as RiskODE, few_modes as few_modes
