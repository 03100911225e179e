"""What a clip of a residual leaves of a noise, where there is no signal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...._types import Step
from ....clip import AbstractClip, Moments, unchecked_moments
from ....noise import AbstractNoise
from ._fit import Fit


def noise_moments(
    clip: AbstractClip, noise: AbstractNoise, norm: Array | float = 1.0, step: Step = 0
) -> Moments:
    r"""$E\,\psi'(\eta)$ as `mu` and $E\,\psi(\eta)^2$ as `second`, for
    $\psi(r) = r f(|r| \cdot$ `norm`$)$: on the zero-loss set a residual is its noise
    alone.

    **Arguments:**

    - `clip`: the rule, with the factor $f$.
    - `noise`: the law of $\eta$, in the unit of a label.
    - `norm`: the norm of the gradient of a residual 1; 1 for a clip of the residual.
    - `step`: where the thresholds are taken.
    """
    return unchecked_moments(clip, noise, 0.0, norm, step)


def per_residual(fit: Fit) -> AbstractClip:
    """The rule of the residuals with a leading axis of them, to be vmapped over."""
    shape = (fit.ys.size,)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), fit.residual_clip)
