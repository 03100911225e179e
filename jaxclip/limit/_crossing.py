"""Where a slope that never falls takes a value: a rule's kinks, mapped to residuals."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import RealScalar, RealScalarLike

# Points are searched up to e^60 sizes on either side of 0, evenly in the inverse
# hyperbolic sine; so many halvings exhaust float64.
_FAR, _HALVINGS = 60.0, 60


def crossing(
    slope: Callable[[RealScalar], RealScalar],
    value: RealScalarLike,
    size: RealScalarLike,
) -> Float[Array, ""]:
    """The point at which a slope takes a value, with its derivative in the numbers that
    both depend on; plus or minus infinity where it stays below or above.

    Found by halving, so that the slope may jump: where it jumps over the value, the
    point is that of the jump.

    **Arguments:**

    - `slope`: a function of a point that never falls.
    - `value`: of the slope; an infinite one is not taken.
    - `size`: a length of the order of the points that matter, positive.
    """
    value, size = jnp.asarray(value), jnp.asarray(size)
    fixed, unit = jax.lax.stop_gradient((value, size))

    def above(v):
        return jax.lax.stop_gradient(slope(unit * jnp.sinh(v))) >= fixed

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        over = above(middle)
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    far = jnp.full_like(size, _FAR)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (-far, far))
    point = unit * jnp.sinh((low + high) / 2)
    beyond = jnp.where(above(-far), -jnp.inf, jnp.where(above(far), 0.0, jnp.inf))
    point = jnp.where(beyond == 0, jax.lax.stop_gradient(point), 0.0)
    # Newton's method from the solution moves by rounding alone, and has its derivative,
    # after two steps the second one too.
    wanted = jnp.where(beyond == 0, value, 0.0)
    for _ in range(2):
        point = _newton(slope, wanted, point, 1e-6 * (unit + jnp.abs(point)))
    return jnp.where(beyond == 0, point, beyond)


def _newton(slope, value, point, most):
    """One step, unless it leads away: at a jump, or where the slope is flat."""
    at, rise = jax.jvp(slope, (point,), (jnp.ones_like(point),))
    rises = rise > 0
    move = (at - value) / jnp.where(rises, rise, 1.0)
    near = rises & (jnp.abs(jax.lax.stop_gradient(move)) <= most)
    return point - jnp.where(near, move, 0.0)
