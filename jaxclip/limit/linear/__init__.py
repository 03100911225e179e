"""The limits of linear models in high dimension."""

from ._adagrad_ode import AdagradODE as AdagradODE
from ._adam_moments import UpdateMoments as UpdateMoments
from ._adam_ode import AdamODE as AdamODE
from ._collocation import ModeEquation as ModeEquation
from ._coordinate_ode import CoordinateODE as CoordinateODE
from ._exponential import ExponentialModes as ExponentialModes
from ._generalised import GeneralisedODE as GeneralisedODE
from ._homogenized import HomogenizedSDE as HomogenizedSDE
from ._momentum_ode import MomentumODE as MomentumODE
from ._recursion import RiskRecursion as RiskRecursion
from ._risk_ode import RiskODE as RiskODE, few_modes as few_modes
