r"""signSGD on features whose covariance is not diagonal in the optimiser's coordinates.

With $D = \mathrm{diag}(K)$ and $y = D^{1/4} z$, the limit of arXiv:2411.12135 is

$$dy = -q\, S y\, dk + \sqrt g\, D^{1/4} \sqrt{K_\sigma}\, dB,
\qquad S = D^{-1/4} K D^{-1/4},$$

with numbers $q$ and $g$, and the risk is $y^T S y / 2$. In the eigenvectors $u_i$ of
the symmetric $S$, with eigenvalues $s_i$, the energies $e_i = s_i \langle u_i, y
\rangle^2 / 2$ are a closed system whose sum is the risk,

$$\frac{de_i}{dk} = s_i \left(-2 q\, e_i + \tfrac12 g\, n_i\right), \qquad
n_i = u_i^T D^{1/4} K_\sigma D^{1/4} u_i,$$

the equation of the modes of a linear model. Derived here.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..._checks import is_traced
from ..._numerics import exact_dot
from ..._schedule import Constant
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip, Normalize, Rescale
from ...noise import AbstractNoise
from ...problem import LinearModel, Modes


class Batch(eqx.Module):
    """What a batch whose examples are clipped one by one makes of the step.

    - `gain`: 1 for their mean, and their number for their sum.
    - `share`: how much of the second moment it leaves.
    - `added`: the variance that the scope adds to each coordinate of the mean.
    """

    gain: float = eqx.field(static=True)
    share: float = eqx.field(static=True)
    added: RealScalar


class _OfSigns(eqx.Module):
    """The coefficients of signSGD.

    - `length`: what the sign is multiplied with, a function of the step.
    """

    length: Schedule
    noise: AbstractNoise
    lr: Schedule
    batch: Batch

    def __call__(self, step, risk):
        variance = 2 * jnp.asarray(risk)
        # Without signal and noise nothing moves: the law is one of which nothing is
        # used.
        some = variance + self.noise.variance > 0
        law = self.noise.residual(jnp.where(some, variance, 1.0))
        density = jnp.exp(law.log_density(jnp.zeros_like(variance)))
        density = jnp.where(some, density, 0.0)
        rate = self.batch.gain * self.lr(step) * self.length(step)
        q = rate * 2 * np.sqrt(2 / np.pi) * density
        return q, rate**2 * self.batch.share


def of_signs(
    clip: AbstractClip, noise: AbstractNoise, lr: Schedule, batch: Batch
) -> _OfSigns:
    """The coefficients, if the rule leaves nothing but the sign."""
    if isinstance(clip, Rescale):
        length = clip.threshold
    elif isinstance(clip, Normalize) and _is_small(clip.eps):
        length = Constant(jnp.ones(()))
    else:
        raise ValueError(
            "`CoordinateODE` solves `Normalize()` and `Rescale(c)`, which leave the "
            "sign alone, where the covariance is not diagonal in the optimiser's "
            f"coordinates. Got {clip!r}; for other rules leave out the problem's "
            "`basis`, or take `simulate`."
        )
    if is_traced(batch.added) or np.any(np.asarray(batch.added) > 0):
        raise ValueError(
            "`CoordinateODE` has no equation for the scope's `noise_std` where the "
            "covariance is not diagonal in the optimiser's coordinates: leave it out."
        )
    return _OfSigns(length, noise, lr, batch)


def _is_small(eps: Schedule) -> bool:
    """Whether the constant under a sign is known to be no larger than its default."""
    if not isinstance(eps, Constant) or is_traced(eps.value):
        return False
    return bool(np.all(np.asarray(eps.value) <= 1e-6))


@eqx.filter_jit
def sign_modes(problem: LinearModel) -> Modes:
    """The modes of signSGD, from one eigendecomposition of $S$."""
    K = problem.covariance
    diagonal = jnp.diagonal(K)
    # A coordinate that never varies never moves.
    some = diagonal > 0
    root = jnp.where(some, diagonal, 1.0) ** 0.25
    S = K / jnp.outer(root, root)
    correlation = jnp.clip(K / jnp.outer(root**2, root**2), -1.0, 1.0)
    signs = jnp.where(jnp.outer(some, some), jnp.arcsin(correlation), 0.0) * 2 / np.pi
    eigenvalues, vectors = jnp.linalg.eigh(S)
    # Rounding must not make one that is 0 negative.
    eigenvalues = jnp.maximum(eigenvalues, 0.0)
    turned = root[:, None] * vectors
    forcing = jnp.sum(turned * exact_dot(signs, turned), axis=0)
    along = exact_dot(problem.init(), turned)
    return Modes(eigenvalues, eigenvalues * along**2 / 2, forcing)
