"""What SGD converges to."""

from ._exponential import ExponentialModes as ExponentialModes
from ._homogenized import HomogenizedSDE as HomogenizedSDE
from ._moments import Moments as Moments, moments as moments
from ._risk_ode import RiskODE as RiskODE
from ._solve import AbstractLimit as AbstractLimit, solve as solve
