"""Laws that are given by the logarithm of their density."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import PyTree, RealScalarLike
from ._density import (
    expect_of,
    expect_signed_of,
    information_of,
    log_folded,
    norms_of,
    slope_of,
    slope_signed_of,
)
from ._law import AbstractLaw, Function
from ._panels import NORMAL_EDGES, Panels, Points, between, kinks_at, lay, lay_around


class SmoothLaw(AbstractLaw):
    """A law given by the logarithm of its density and where the density varies.

    **Arguments:**

    - `log_density_of`: a function of a residual, a pytree that can be called.
    - `edges`: shape `(m,)`, the sizes of a residual between which the panels of the
        quadrature are laid, each with a Gauss rule of its own. The density must be
        smooth on the scale of the distance to the next edge, or of the norm itself,
        and negligible beyond the largest. They need no order.
    - `symmetric`: whether the density is even, which halves the work.
    - `unit`: what `log_density_of` and `edges` measure residuals in, in the unit of the
        label: 1 by default. One of the law's own size keeps the squares and inverses
        of small numbers representable.
    """

    log_density_of: Callable[[Any], Any]
    edges: Float[Array, " m"]
    symmetric: bool = eqx.field(static=True, default=False)
    unit: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)

    @property
    def size(self) -> Float[Array, ""]:
        return self.unit

    def panel_edges(self) -> Float[Array, " e"]:
        return self.unit * jnp.abs(self.edges)

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        # A density has the inverse unit of its argument.
        return self.log_density_of(residual / self.unit) - jnp.log(self.unit)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        return expect_of(self, self._panels(kinks), function)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        return slope_of(self, self._panels(kinks), function)

    def expect_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        return expect_signed_of(self, self._panels(norms_of(kinks)), function)

    def slope_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        return slope_signed_of(self, self._panels(norms_of(kinks)), function, 0.0)

    def information(self) -> Float[Array, ""]:
        return information_of(self, self._panels(()))

    def at(self, base: Float[Array, ""], offset: Float[Array, ""]) -> Float[Array, ""]:
        """The logarithm of the density at `base + offset`, all of it in `unit`s."""
        return self.log_density_of(base + offset)

    def _panels(self, kinks: Sequence[RealScalarLike]) -> Panels:
        edges = jnp.abs(self.edges)
        # Beyond the largest there is no mass: a kink there, an infinite one too, is
        # laid on the end, where it splits nothing.
        top, zero = jnp.max(edges), jnp.zeros((), edges.dtype)
        ends = kinks_at(kinks, zero, Points(top, top), self.unit)
        return lay(jnp.append(edges, between(edges)), ends, zero, zero, top)


class SteppedLaw(AbstractLaw):
    """A law whose density falls at one norm, over a width that may be far smaller.

    **Arguments:**

    - `log_density_of`: a function of two numbers whose sum is the residual. The first
        is 0 or plus or minus `centre`, so that the distance from it is known to all
        digits.
    - `centre`: the norm at which the density falls.
    - `beside`: shape `(k,)`, edges of panels as distances from there.
    - `edges`, `symmetric`, `unit`: as of a [`jaxclip.noise.SmoothLaw`][].
    """

    log_density_of: Callable[[Any, Any], Any]
    centre: Float[Array, ""]
    beside: Float[Array, " k"]
    edges: Float[Array, " m"]
    unit: Float[Array, ""]
    symmetric: bool = eqx.field(static=True)

    @property
    def size(self) -> Float[Array, ""]:
        return self.unit

    def panel_edges(self) -> Float[Array, " e"]:
        edges = jnp.concatenate([self.edges, self.centre + self.beside])
        return self.unit * jnp.abs(edges)

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        size = jnp.asarray(residual / self.unit)
        return self.at(jnp.zeros_like(size), size) - jnp.log(self.unit)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        return expect_of(self, self._panels(kinks), function)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        # Measured from psi at the step, over which it hardly changes: the slope of the
        # density is one over its width there. What is taken off, the level times the
        # integral of -p' over all norms, is the level times the norm's density at 0.
        level = function(self.unit * self.centre)
        slope = slope_of(self, self._panels(kinks), lambda norm: function(norm) - level)
        zero = jnp.zeros_like(self.centre)
        return slope + level / self.unit * jnp.exp(log_folded(self, zero, zero))

    def expect_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        return expect_signed_of(self, self._panels(norms_of(kinks)), function)

    def slope_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        # On each side measured from psi at the step.
        panels = self._panels(norms_of(kinks))
        return slope_signed_of(self, panels, function, self.centre)

    def information(self) -> Float[Array, ""]:
        return information_of(self, self._panels(()))

    def at(self, base: Float[Array, ""], offset: Float[Array, ""]) -> Float[Array, ""]:
        """The logarithm of the density at `base + offset`, all of it in `unit`s."""
        return self.log_density_of(base, offset)

    def _panels(self, kinks: Sequence[RealScalarLike]) -> Panels:
        edges, centre = self.edges, self.centre
        top = jnp.maximum(jnp.max(edges) - centre, jnp.max(self.beside))
        # Each point as a norm and as a distance from the step, since one of the two has
        # lost its digits where the step is far narrower than its norm.
        low = Points(jnp.zeros_like(centre), -centre)
        high = Points(centre + top, top)
        points = [
            Points(edges, edges - centre),
            Points(centre + self.beside, self.beside),
        ]
        ends = kinks_at(kinks, centre, high, self.unit)
        return lay_around(points, ends, centre, low, high)


def normal_edges(width: RealScalarLike) -> Float[Array, " m"]:
    """Edges of the panels that resolve a feature of this width beside a point."""
    return jnp.asarray(width) * NORMAL_EDGES
