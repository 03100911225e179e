r"""The law of a residual $w = s Z - \epsilon$, as the limits read it.

Signal $sZ$, $Z \sim N(0, 1)$, minus the noise of a label. Everything that a limit needs
of a noise is one of a few numbers of this law: an expectation of a function of $|w|$,
the expected slope of an odd function, the same two for any function of $w$, the
logarithm of its density and its Fisher information.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import PyTree, RealScalarLike
from ._folded import Folded
from ._mills import phi
from ._panels import BOTH_SIDES, Points, lay

Function = Callable[[Float[Array, ""]], Any]


class AbstractLaw(eqx.Module):
    """The law of a residual: a real random variable with a smooth density.

    Most noises need no class of their own here: a [`jaxclip.noise.SmoothLaw`][] takes a
    function for the logarithm of the density.

    **An author must guarantee**, and the library does not check, that

    - all methods are pure and traceable, finite for finite arguments, and
        differentiable in the numbers of the law, which are array fields;
    - `expect` and `slope` are accurate to more digits than the limits are solved to,
        1e-9 in float64 and 1e-5 in float32: the limits treat them as exact. Between
        two kinks they may take the function to be smooth, and at a kink it may jump.
        `function` is finite, and is called with norms only;
    - they use the derivative of the density and not that of `function`, which jumps;
    - the same holds for `expect_signed` and `slope_signed`, whose function and kinks
        are of the residual itself;
    - `size` is a length of the order of a typical residual and positive, since it is
        divided by; no result may depend on it, so that it is a constant to derivatives;
    - `panel_edges` resolves the density: it is read by quadratures that have a function
        of their own to integrate, such as that of the score rule.
    """

    @property
    @abc.abstractmethod
    def size(self) -> Float[Array, ""]:
        """A length of the law's own order, in the unit of the label."""

    @abc.abstractmethod
    def panel_edges(self) -> Float[Array, " e"]:
        """Norms such that the density is smooth on the scale of the distance to the
        next of them, and negligible beyond the largest. In any order."""

    @abc.abstractmethod
    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        """The logarithm of the density at `residual` (in the unit of the label)."""

    @abc.abstractmethod
    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        r"""$E\,h(|w|)$ for a `function` $h$ that is smooth between the `kinks`."""

    @abc.abstractmethod
    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        r"""$E\,\psi'(w)$ for the odd function $\psi$ that is `function` at $w \ge 0$.

        Jumps of $\psi$ at the `kinks` count, as they do in Stein's identity
        $E[\psi(w) a] = E[\psi'(w)] K z$, which is what the number is for.
        """

    @abc.abstractmethod
    def expect_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        r"""$E\,h(w)$ for a `function` $h$ that is smooth between the `kinks`, which are
        residuals of either sign; an infinite one stands for none."""

    @abc.abstractmethod
    def slope_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        r"""$E\,\psi'(w)$ for any `function` $\psi$ of the residual, odd or not.

        Jumps of $\psi$ at the `kinks` count, one at 0 too.
        """

    @abc.abstractmethod
    def information(self) -> Float[Array, ""]:
        """The Fisher information of the location: the mean square of the score, one
        over the squared unit of the label."""


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
