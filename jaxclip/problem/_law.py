r"""The law of a residual $w = s Z - \epsilon$, as the limits read it.

Signal $sZ$, $Z \sim N(0, 1)$, minus the noise of a label. Everything that a limit needs
of a noise is one of four numbers of this law: an expectation of a function of $|w|$,
the expected slope of an odd function, the logarithm of its density and its Fisher
information.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._types import RealScalarLike
from ._mills import phi
from ._panels import (
    BOTH_SIDES,
    NORMAL_EDGES,
    RATIOS,
    Panels,
    Points,
    between,
    kink_at,
    lay,
    lay_around,
)

Function = Callable[[Float[Array, ""]], Any]

# From this many standard deviations off 0 a normal law is integrated around its mean.
_FAR = 30.0


class AbstractLaw(eqx.Module):
    """The law of a residual. A scalar random variable with a smooth density."""

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
        r"""$E\,h(|w|)$ for a function `h` that is smooth between the `kinks`."""

    @abc.abstractmethod
    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        r"""$E\,\psi'(w)$ for the odd function $\psi$ that is `function` at $w \ge 0$.

        Jumps of $\psi$ at the kinks count, as they do in Stein's identity
        $E[\psi(w) a] = E[\psi'(w)] K z$, which is what the number is for.
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
        """Those beside every component."""
        sides = jnp.asarray(BOTH_SIDES, self.stds.dtype)
        edges = jnp.abs(self.means)[:, None] + self.stds[:, None] * sides[None, :]
        return jnp.abs(edges).ravel()

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        z = (residual - self.means) / self.stds
        log_terms = -(z**2) / 2 - jnp.log(self.stds * np.sqrt(2 * np.pi))
        return jax.nn.logsumexp(log_terms, b=self.weights)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        unit = self.size
        ends = [kink / unit for kink in kinks]

        def component(mean, std):
            part = _Folded.of(mean, std, ends)
            return jax.tree.map(
                lambda value: jnp.tensordot(part.mass, value, axes=1),
                jax.vmap(lambda norm: function(unit * norm))(part.norm),
            )

        values = jax.vmap(component)(jnp.abs(self.means) / unit, self.stds / unit)
        return jax.tree.map(lambda v: jnp.tensordot(self.weights, v, axes=1), values)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        unit = self.size
        ends = [kink / unit for kink in kinks]

        def psi(norm):
            return function(unit * norm) / unit

        def component(mean, std):
            part = _Folded.of(mean, std, ends)
            near, far = part.slope_near(psi), part.slope_far(psi, ends)
            return jnp.where(part.far, far, near)

        slopes = jax.vmap(component)(jnp.abs(self.means) / unit, self.stds / unit)
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
        # The wide components know nothing of the narrow ones, so that their panels end
        # where those of the narrow ones do.
        narrow = jnp.argsort(stds)[:4]
        edges = means[narrow][:, None] + jnp.outer(stds[narrow], sides)

        def score(gaps):
            """At a point whose distances from the means are given."""
            z = gaps / stds
            logs = jnp.log(self.weights / stds) - z**2 / 2
            return jnp.sum(jax.nn.softmax(logs) * z / stds)

        def component(mean, std):
            z = jnp.concatenate([sides, (edges.ravel() - mean) / std])
            z = jnp.clip(z, sides[0], sides[-1])
            panels = lay(z, [], jnp.zeros_like(std), sides[0], sides[-1])
            gaps = (mean - means)[None, :] + std * panels.offset[:, None]
            squares = jax.vmap(score)(gaps) ** 2
            return jnp.dot(panels.width * phi(panels.offset), squares)

        parts = jax.vmap(component)(means, stds)
        return jnp.dot(self.weights, parts) / unit / unit


class SmoothLaw(AbstractLaw):
    """A law given by the logarithm of its density and where the density varies.

    **Arguments:**

    - `log_density_of`: a function of a residual, a pytree that can be called.
    - `edges`: shape `(m,)`, the norms between which panels are laid. The density must
        be smooth on the scale of the distance to the next edge, or of the norm itself,
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
        return self.log_density_of(residual / self.unit) - jnp.log(self.unit)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        return _expect(self, self._panels(kinks), function)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        return _slope(self, self._panels(kinks), function)

    def information(self) -> Float[Array, ""]:
        return _information(self, self._panels(()))

    def at(self, base: Float[Array, ""], offset: Float[Array, ""]):
        """The logarithm of the density in `unit`s, at a sum."""
        return self.log_density_of(base + offset)

    def _panels(self, kinks: Sequence[RealScalarLike]) -> Panels:
        edges = jnp.abs(self.edges)
        top, zero = jnp.max(edges), jnp.zeros((), edges.dtype)
        ends = [kink_at(kink / self.unit, zero, Points(top, top)) for kink in kinks]
        return lay(jnp.append(edges, between(edges)), ends, zero, zero, top)


class SteppedLaw(AbstractLaw):
    """A law whose density falls at one norm, over a width that may be far smaller.

    **Arguments:**

    - `log_density_of`: a function of two numbers whose sum is the residual. The first
        is 0 or plus or minus `centre`, so that the distance from it is known to all
        digits.
    - `centre`: the norm at which the density falls.
    - `beside`: shape `(k,)`, edges of panels as distances from there.
    - `edges`, `symmetric`, `unit`: as of a [`jaxclip.SmoothLaw`][].
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
        return _expect(self, self._panels(kinks), function)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        # Measured from psi at the step, over which it hardly changes: the slope of the
        # density is one over its width there.
        level = function(self.unit * self.centre)
        slope = _slope(self, self._panels(kinks), lambda norm: function(norm) - level)
        zero = jnp.zeros_like(self.centre)
        return slope + level / self.unit * jnp.exp(_log_folded(self, zero, zero))

    def information(self) -> Float[Array, ""]:
        return _information(self, self._panels(()))

    def at(self, base: Float[Array, ""], offset: Float[Array, ""]):
        """The logarithm of the density in `unit`s, at a sum."""
        return self.log_density_of(base, offset)

    def _panels(self, kinks: Sequence[RealScalarLike]) -> Panels:
        edges, centre = self.edges, self.centre
        top = jnp.maximum(jnp.max(edges) - centre, jnp.max(self.beside))
        low = Points(jnp.zeros_like(centre), -centre)
        high = Points(centre + top, top)
        points = [
            Points(edges, edges - centre),
            Points(centre + self.beside, self.beside),
        ]
        ends = [kink_at(kink / self.unit, centre, high) for kink in kinks]
        return lay_around(points, ends, centre, low, high)


def normal_edges(width: RealScalarLike) -> Float[Array, " m"]:
    """Edges of the panels that resolve a feature of this width beside a point."""
    return jnp.asarray(width) * NORMAL_EDGES


def _expect(law: SmoothLaw | SteppedLaw, panels: Panels, function: Function):
    log_density = jax.vmap(partial(_log_folded, law))(panels.base, panels.offset)
    density = jnp.exp(log_density)
    values = jax.vmap(function)(law.unit * panels.norm)
    mass = panels.width * density
    return jax.tree.map(lambda value: jnp.tensordot(mass, value, axes=1), values)


def _slope(law: SmoothLaw | SteppedLaw, panels: Panels, function: Function):
    # E psi' = -int psi p', with no boundary term at 0, where psi is 0.
    log_density, slope = _with_slope(law, panels)
    psi = jax.vmap(function)(law.unit * panels.norm)
    return -jnp.sum(panels.width * jnp.exp(log_density) * slope * psi) / law.unit


def _information(law: SmoothLaw | SteppedLaw, panels: Panels):
    def part(sign):
        def log_density(base, offset):
            return law.at(sign * base, sign * offset)

        def both(base, offset):
            return jax.value_and_grad(log_density, argnums=1)(base, offset)

        log, slope = jax.vmap(both)(panels.base, panels.offset)
        return jnp.sum(panels.width * jnp.exp(log) * slope**2)

    total = 2 * part(1.0) if law.symmetric else part(1.0) + part(-1.0)
    return total / law.unit / law.unit


def _log_folded(law: SmoothLaw | SteppedLaw, base, offset) -> Float[Array, ""]:
    """The logarithm of the density of the norm, at a sum."""
    if law.symmetric:
        return law.at(base, offset) + np.log(2)
    return jnp.logaddexp(law.at(base, offset), law.at(-base, -offset))


def _with_slope(law: SmoothLaw | SteppedLaw, panels: Panels) -> tuple[Array, Array]:
    """The same, and its derivative."""

    def along(offset):
        return jax.vmap(partial(_log_folded, law))(panels.base, offset)

    return jax.jvp(along, (panels.offset,), (jnp.ones_like(panels.offset),))


class _Folded(eqx.Module):
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
    def of(cls, mean, std, kinks: Sequence[RealScalarLike]) -> "_Folded":
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
        ends = [kink_at(kink, centre, high) for kink in kinks]
        ends = [Points(end.norm / std, end.offset / std) for end in ends]
        panels = lay(points, ends, place, bottom, top)
        norm = centre + std * panels.offset
        norm = norm + jax.lax.stop_gradient(std * panels.norm - norm)
        # The mirror image of a law that is far away is not seen.
        distance = jnp.where(far, _FAR + reach, panels.offset + ahead)
        return cls(mean, std, far, norm, panels.width, panels.offset - ahead, distance)

    @property
    def mass(self) -> Float[Array, " q"]:
        """The probability of each node."""
        return self.width * (phi(self.z) + phi(self.mirrored))

    def slope_near(self, function: Function) -> Float[Array, ""]:
        # E psi' = -int psi g' with g the density of the norm, measured from psi at the
        # mean, or a law that is not at 0 would cancel its digits.
        mean = jnp.where(self.far, 0.0, self.mean)
        level = function(mean)
        change = jax.vmap(function)(self.norm) - level
        fall = self.z * phi(self.z) + self.mirrored * phi(self.mirrored)
        total = jnp.sum(self.width * fall * change) + 2 * level * phi(mean / self.std)
        return total / self.std

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
