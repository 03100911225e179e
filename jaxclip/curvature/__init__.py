"""How a loss bends: eigenvalues, barriers, tangent kernels."""

from ._barrier import loss_barrier as loss_barrier
from ._descent import (
    PLViolations as PLViolations,
    hard_clip_floor as hard_clip_floor,
    pl_violations as pl_violations,
)
from ._hessian import largest_curvature as largest_curvature, sharpness as sharpness
from ._network import WideNetwork as WideNetwork
from ._tangent import tangent_kernel as tangent_kernel
