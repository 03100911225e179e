"""What is left of the covariance of normal noise after a clip of its length."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...._types import RealScalarLike, Step
from ....clip import AbstractClip
from ....noise import SmoothLaw, normal_edges

# Directions that the mean is taken over, less what is linear in `u^T B u`, whose mean
# is known. Its error is a part in 10^3 in up to three dimensions, one in 10^2 in many.
_DIRECTIONS = 2048


def clipped_covariance(
    gram: Float[Array, "m m"],
    clip: AbstractClip,
    step: Step,
    std: RealScalarLike,
    power: int,
) -> Float[Array, "m m"]:
    r"""$E\,\eta \eta^T f(\sqrt{\eta^T B \eta})^p$ for $\eta \sim N(0, \sigma^2 I)$.

    With $\eta = \sigma \rho u$, $u$ uniform on the sphere, it is
    $\sigma^2 m\, E_u[u u^T\, E f(\sigma \rho \sqrt{u^T B u})^p]$, the inner mean over
    $\rho \sim \chi_{m+2}$, by quadrature split at the rule's kinks.

    **Arguments:**

    - `gram`: $B$, symmetric and not negative.
    - `clip`, `step`: the rule and where its thresholds are evaluated.
    - `std`: $\sigma$.
    - `power`: $p$.
    """
    m = len(gram)
    u = _directions(m, gram.dtype)
    squares = jnp.sum((u @ gram) * u, axis=1)
    lengths = std * jnp.sqrt(squares)
    law = _radius(m + 2, gram.dtype)

    def kept(length):
        kinks = [kink / length for kink in clip.kinks(step)]
        return law.expect(lambda rho: clip.factor(rho * length, step) ** power, kinks)

    # A direction that noise does not act in is not clipped, and has no kinks.
    acts = lengths > 0
    factor = jnp.where(acts, jax.vmap(kept)(jnp.where(acts, lengths, 1.0)), 1.0)
    # Quasi Monte Carlo with a control variate: of a linear function of u^T B u the mean
    # is known, and only what the factor differs from it by is averaged. Any slope gives
    # the right mean, so that derivatives need not see it.
    slope = jax.lax.stop_gradient(_slope(squares, factor))
    level = jnp.mean(factor) - slope * jnp.mean(squares)
    control = level + slope * squares
    rest = (u * (factor - control)[:, None]).T @ u * (m / len(u))
    eye = jnp.eye(m, dtype=gram.dtype)
    known = level * eye + slope * (jnp.trace(gram) * eye + 2 * gram) / (m + 2)
    return jnp.square(std) * (rest + known)


def _directions(m: int, dtype: jnp.dtype) -> Float[Array, "n m"]:
    """Directions spread evenly over the sphere: a Kronecker sequence, whose generators
    are the square roots of primes, taken to normal numbers."""
    candidates = np.arange(2, 20 + 2 * m * max(1, int(np.log(m))))
    primes = [p for p in candidates if all(p % q for q in range(2, math.isqrt(p) + 1))]
    cube = np.outer(np.arange(1, _DIRECTIONS + 1), np.sqrt(primes[:m])) % 1
    normals = jax.scipy.special.ndtri(jnp.asarray(cube, dtype))
    return normals / jnp.linalg.norm(normals, axis=1, keepdims=True)


def _slope(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """The slope of `y` in `x`; 0 where all of `x` are the same, but for rounding."""
    apart = x - jnp.mean(x)
    spread = jnp.mean(apart**2)
    flat = spread <= jnp.finfo(x.dtype).eps * jnp.mean(x) ** 2
    return jnp.where(flat, 0.0, jnp.mean(apart * y) / jnp.where(flat, 1.0, spread))


def _radius(degrees: int, dtype: jnp.dtype) -> SmoothLaw:
    """The law of the length of a standard normal vector."""
    constant = (degrees / 2 - 1) * math.log(2) + math.lgamma(degrees / 2)
    mode = math.sqrt(degrees - 1)

    def log_density(rho):
        # `SmoothLaw` folds at 0: half of the density on either side.
        rho = jnp.abs(rho)
        return (degrees - 1) * jnp.log(rho) - rho**2 / 2 - constant - math.log(2)

    offsets = normal_edges(1.0).astype(dtype)
    edges = jnp.abs(mode + jnp.concatenate([-offsets, offsets]))
    return SmoothLaw(log_density, edges, symmetric=True)
