"""The quadrature of one normal law, however narrow it is beside its mean."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import RealScalarLike
from ._mills import phi
from ._panels import BOTH_SIDES, NORMAL_EDGES, RATIOS, Points, kinks_at, lay

Function = Callable[[Float[Array, ""]], Any]
# From this many standard deviations off 0 a normal law is integrated around its mean.
_FAR = 30.0


class Folded(eqx.Module):
    """The quadrature of one normal law folded at 0, its mean not negative.

    In standard deviations, and around the mean where that is far from 0: a law that is
    narrower than the rounding of its mean keeps its shape.

    - `far`: whether the mean is far from 0.
    - `norm`, `width`: of each node, `width` in standard deviations.
    - `z`, `mirrored`: the node's distance from the mean and from its mirror image, in
        standard deviations.
    """

    mean: Float[Array, ""]
    std: Float[Array, ""]
    far: Bool[Array, ""]
    norm: Float[Array, " q"]
    width: Float[Array, " q"]
    z: Float[Array, " q"]
    mirrored: Float[Array, " q"]

    @classmethod
    def of(cls, mean, std, kinks: Sequence[RealScalarLike]) -> "Folded":
        far, reach = mean > _FAR * std, NORMAL_EDGES[-1]
        sides, ratios = BOTH_SIDES.astype(std.dtype), RATIOS.astype(std.dtype)
        # What the norms are measured from, and the mean from there; each in standard
        # deviations, the first of them for the order of the points only.
        centre = jnp.where(far, mean, 0.0)
        place = jax.lax.stop_gradient(centre / std)
        ahead = jnp.where(far, 0.0, mean) / std
        bottom = jnp.where(far, -reach, jnp.maximum(ahead - reach, 0.0))
        top = ahead + reach
        points = jnp.concatenate([ahead + sides, ratios - place])
        high = Points(centre + std * top, std * top)
        ends = kinks_at(kinks, centre, high)
        ends = Points(ends.norm / std, ends.offset / std)
        panels = lay(points, ends, place, bottom, top)
        norm = centre + std * panels.offset
        norm = norm + jax.lax.stop_gradient(std * panels.norm - norm)
        # The mirror image of a law that is far away is not seen.
        distance = jnp.where(far, _FAR + reach, panels.offset + ahead)
        return cls(mean, std, far, norm, panels.width, panels.offset - ahead, distance)

    @property
    def mass(self) -> Float[Array, " q"]:
        """The probability of each node."""
        return self.own + self.other

    @property
    def own(self) -> Float[Array, " q"]:
        """The part of it that is on the side of the mean."""
        return self.width * phi(self.z)

    @property
    def other(self) -> Float[Array, " q"]:
        """The part of it that is on the other side of 0."""
        return self.width * phi(self.mirrored)

    def slope_near(self, function: Function) -> Float[Array, ""]:
        # E psi' = -int psi g' with g the density of the norm, measured from psi at the
        # mean, or a law that is not at 0 would cancel its digits.
        mean = jnp.where(self.far, 0.0, self.mean)
        level = function(mean)
        change = jax.vmap(function)(self.norm) - level
        fall = self.z * phi(self.z) + self.mirrored * phi(self.mirrored)
        total = jnp.sum(self.width * fall * change) + 2 * level * phi(mean / self.std)
        return total / self.std

    def slope_sides(self, own: Function, other: Function) -> Float[Array, ""]:
        r"""The same for a function $\psi$ of the variable itself: `own` is $\psi(n)$,
        with the mean on the positive side, and `other` is $-\psi(-n)$."""
        # E psi' = E[psi(w) (w - mean)] / std^2, in which a constant cancels.
        mean = jnp.where(self.far, 0.0, self.mean)
        level = own(mean)
        here = self.own * self.z * (jax.vmap(own)(self.norm) - level)
        there = self.other * self.mirrored * (jax.vmap(other)(self.norm) + level)
        return jnp.sum(here + there) / self.std

    def slope_far(
        self, function: Function, kinks: Sequence[RealScalarLike]
    ) -> Float[Array, ""]:
        """The same where the law is narrow beside its mean, so that psi hardly changes
        over it: by the slope of psi, and its jumps."""
        slope = jax.vmap(lambda norm: _derivative(function, norm))(self.norm)
        total = jnp.sum(self.width * phi(self.z) * slope)
        if not kinks:
            return total
        # Both sides of each kink that the law reaches.
        at = jnp.stack([jnp.asarray(kink, self.norm.dtype) for kink in kinks])
        inside = self.far & (jnp.abs(at - self.mean) < NORMAL_EDGES[-1] * self.std)
        at = jnp.where(inside, at, self.mean)
        eps = jnp.finfo(self.norm.dtype).eps
        sides = jnp.concatenate([at * (1 - 8 * eps), at * (1 + 8 * eps)])
        left, right = jnp.split(jax.vmap(function)(sides), 2)
        # Less than this is the rounding of a rule that is continuous.
        some = jnp.abs(right - left) > 100 * eps * (jnp.abs(right) + jnp.abs(left))
        jumps = jnp.where(inside & some, right - left, 0.0)
        return total + jnp.sum(jumps * phi((at - self.mean) / self.std)) / self.std


def _derivative(function: Function, at: Float[Array, ""]) -> Float[Array, ""]:
    return jax.jvp(function, (at,), (jnp.ones_like(at),))[1]
