"""Mixtures of normal laws: expectations by panels, about the mean of each."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import PyTree, RealScalarLike
from ._folded import Folded
from ._law import AbstractLaw, Function
from ._mills import phi
from ._panels import BOTH_SIDES, Points, lay


class NormalMixture(AbstractLaw):
    r"""A mixture of normal laws.

    **Arguments:**

    - `weights`: shape `(m,)`, positive, sum 1.
    - `means`: shape `(m,)`, in the unit of the label.
    - `stds`: shape `(m,)`, positive, in the unit of the label.
    """

    weights: Float[Array, " m"]
    means: Float[Array, " m"]
    stds: Float[Array, " m"]

    def panel_edges(self) -> Float[Array, " e"]:
        """Edges on both sides of every component's mean, from 0 to 9.5 standard
        deviations off it."""
        sides = jnp.asarray(BOTH_SIDES, self.stds.dtype)
        edges = jnp.abs(self.means)[:, None] + self.stds[:, None] * sides[None, :]
        return jnp.abs(edges).ravel()

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        # As logarithms: far out every component underflows, and the largest counts.
        z = (residual - self.means) / self.stds
        log_terms = -(z**2) / 2 - jnp.log(self.stds * np.sqrt(2 * np.pi))
        return jax.nn.logsumexp(log_terms, b=self.weights)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        unit = self.size
        ends = [kink / unit for kink in kinks]

        def component(mean, std):
            part = Folded.of(mean, std, ends)
            return jax.tree.map(
                lambda value: jnp.tensordot(part.mass, value, axes=1),
                jax.vmap(lambda norm: function(unit * norm))(part.norm),
            )

        # A norm has the same law for a mean and its opposite.
        values = jax.vmap(component)(jnp.abs(self.means) / unit, self.stds / unit)
        return jax.tree.map(lambda v: jnp.tensordot(self.weights, v, axes=1), values)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        unit = self.size
        ends = [kink / unit for kink in kinks]

        # Of the same slope as the function, in units.
        def psi(norm):
            return function(unit * norm) / unit

        def component(mean, std):
            part = Folded.of(mean, std, ends)
            # Both are finite everywhere, or the one that is not taken would make the
            # derivative NaN.
            near, far = part.slope_near(psi), part.slope_far(psi, ends)
            return jnp.where(part.far, far, near)

        slopes = jax.vmap(component)(jnp.abs(self.means) / unit, self.stds / unit)
        return jnp.dot(self.weights, slopes)

    def expect_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        unit = self.size
        ends = [jnp.abs(kink) / unit for kink in kinks]

        def component(mean, std):
            part = Folded.of(jnp.abs(mean), std, ends)
            own = jnp.where(mean < 0, -1.0, 1.0) * unit * part.norm
            sides = [(part.own, own), (part.other, -own)]
            values = [
                jax.tree.map(lambda v, m=mass: jnp.tensordot(m, v, axes=1), values)
                for mass, at in sides
                for values in [jax.vmap(function)(at)]
            ]
            return jax.tree.map(jnp.add, *values)

        values = jax.vmap(component)(self.means / unit, self.stds / unit)
        return jax.tree.map(lambda v: jnp.tensordot(self.weights, v, axes=1), values)

    def slope_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        unit = self.size
        ends = [jnp.abs(kink) / unit for kink in kinks]

        def component(mean, std):
            part = Folded.of(jnp.abs(mean), std, ends)
            side = jnp.where(mean < 0, -1.0, 1.0)

            # On the side of the mean, and on the other; of the same slope as the
            # function, in units.
            def own(norm):
                return side * function(side * unit * norm) / unit

            def other(norm):
                return -side * function(-side * unit * norm) / unit

            near, far = part.slope_sides(own, other), part.slope_far(own, ends)
            return jnp.where(part.far, far, near)

        slopes = jax.vmap(component)(self.means / unit, self.stds / unit)
        return jnp.dot(self.weights, slopes)

    @property
    def size(self) -> Float[Array, ""]:
        # A constant to derivatives, since no result depends on it.
        return jax.lax.stop_gradient(jnp.max(jnp.abs(self.means) + self.stds))

    def information(self) -> Float[Array, ""]:
        # In the unit of the narrowest component, whose own information is 1.
        unit = jax.lax.stop_gradient(jnp.min(self.stds))
        means, stds = self.means / unit, self.stds / unit
        sides = jnp.asarray(BOTH_SIDES, stds.dtype)
        # The panels of a wide component do not resolve a narrow one, so that they end
        # where those of the narrow ones do.
        narrow = jnp.argsort(stds)[:4]
        edges = means[narrow][:, None] + jnp.outer(stds[narrow], sides)
        no_kinks = Points(jnp.zeros(0, stds.dtype), jnp.zeros(0, stds.dtype))

        def score(gaps):
            """At a point whose distances from the means are given."""
            # -p'/p of a mixture: the scores z / std of the components, each weighed by
            # the probability that the point is its own.
            z = gaps / stds
            logs = jnp.log(self.weights / stds) - z**2 / 2
            return jnp.sum(jax.nn.softmax(logs) * z / stds)

        def component(mean, std):
            z = jnp.concatenate([sides, (edges.ravel() - mean) / std])
            z = jnp.clip(z, sides[0], sides[-1])
            panels = lay(z, no_kinks, jnp.zeros_like(std), sides[0], sides[-1])
            gaps = (mean - means)[None, :] + std * panels.offset[:, None]
            squares = jax.vmap(score)(gaps) ** 2
            return jnp.dot(panels.width * phi(panels.offset), squares)

        parts = jax.vmap(component)(means, stds)
        return jnp.dot(self.weights, parts) / unit / unit
