r"""The law of a residual $w = s Z - \epsilon$, as the limits read it.

Signal $sZ$, $Z \sim N(0, 1)$, minus the noise of a label. Everything that a limit needs
of a noise is one of three numbers of this law: an expectation of a function of $|w|$,
the expected slope of an odd function, and the logarithm of its density.

The integrals are Gauss-Legendre rules on panels of the half line of norms $n = |w|$.
The panels are split at the kinks that a rule declares, are as narrow as the law's
own features, and shrink geometrically towards 0, where a rule with a small threshold
varies. A plain Gauss-Hermite rule would do none of this: at a kink it is wrong in the
second digit, and its derivative with respect to a hard threshold is exactly zero.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._types import RealScalarLike

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)

# Panel edges of a standard normal, in standard deviations: beyond the last, 2e-21 of
# the mass. Ten nodes on each panel integrate the density to 1e-15.
_NORMAL_EDGES = np.array([0.0, 1.25, 2.5, 4.0, 6.0, 9.5])

# Panels towards norm 0, each a quarter of the one before: the last ends at 2e-7 of the
# law's width, so that rules whose scale is that small are resolved.
_RATIOS = 0.25 ** np.arange(1, 12)

Function = Callable[[Float[Array, ""]], Any]


class AbstractLaw(eqx.Module):
    """The law of a residual. A scalar random variable with a smooth density."""

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
        """Those beside the four narrowest components, which is enough where many are
        as narrow, and the largest of all."""
        narrow = jnp.argsort(self.stds)[:4]
        offsets = np.concatenate([-_NORMAL_EDGES[:0:-1], _NORMAL_EDGES])
        beside = jnp.outer(self.stds[narrow], jnp.asarray(offsets))
        largest = jnp.max(jnp.abs(self.means) + _NORMAL_EDGES[-1] * self.stds)
        edges = jnp.abs(self.means[narrow])[:, None] + beside
        return jnp.append(jnp.abs(edges.ravel()), largest)

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        z = (residual - self.means) / self.stds
        log_terms = -(z**2) / 2 - jnp.log(self.stds * np.sqrt(2 * np.pi))
        return jax.nn.logsumexp(log_terms, b=self.weights)

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        def component(mean, std):
            norms, widths = _nodes(_normal_edges(mean, std, kinks))
            density = _normal(norms, mean, std) + _normal(norms, -mean, std)
            return jax.tree.map(
                lambda value: jnp.tensordot(widths * density, value, axes=1),
                jax.vmap(function)(norms),
            )

        means = jnp.abs(self.means)
        values = jax.vmap(component)(means, self.stds)
        return jax.tree.map(lambda v: jnp.tensordot(self.weights, v, axes=1), values)

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        def component(mean, std):
            norms, widths = _nodes(_normal_edges(mean, std, kinks))
            falling = (norms - mean) * _normal(norms, mean, std)
            rising = (norms + mean) * _normal(norms, -mean, std)
            # E psi' = -int psi g' with g the density of the norm. Measured from psi at
            # the mean, or a narrow law far from 0 would cancel all its digits.
            level = function(mean)
            change = jax.vmap(function)(norms) - level
            integral = jnp.sum(widths * change * (falling + rising)) / std**2
            return integral + 2 * level * _normal(jnp.zeros_like(mean), mean, std)

        means = jnp.abs(self.means)
        return jnp.dot(self.weights, jax.vmap(component)(means, self.stds))


class SmoothLaw(AbstractLaw):
    """A law given by the logarithm of its density and where the density varies.

    **Arguments:**

    - `log_density_of`: a function of a residual, a pytree that can be called.
    - `edges`: shape `(m,)`, the norms between which panels are laid. The density must
        be smooth on the scale of the distance to the next edge, and negligible beyond
        the largest. They need no order.
    - `symmetric`: whether the density is even, which halves the work.
    """

    log_density_of: Callable[[Any], Any]
    edges: Float[Array, " m"]
    symmetric: bool = eqx.field(static=True, default=False)

    def panel_edges(self) -> Float[Array, " e"]:
        return self.edges

    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        return self.log_density_of(residual)

    def _folded(self, norm: Float[Array, ""]) -> Float[Array, ""]:
        """The density of the norm."""
        if self.symmetric:
            return 2 * jnp.exp(self.log_density(norm))
        return jnp.exp(self.log_density(norm)) + jnp.exp(self.log_density(-norm))

    def _panels(self, kinks: Sequence[RealScalarLike]):
        edges = jnp.abs(self.edges)
        top = jnp.max(edges)
        small = jnp.min(jnp.where(edges > 0, edges, top)) * _RATIOS
        return _nodes(_split(jnp.concatenate([edges, small]), 0.0, top, kinks))

    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        norms, widths = self._panels(kinks)
        density = jax.vmap(self._folded)(norms)
        return jax.tree.map(
            lambda value: jnp.tensordot(widths * density, value, axes=1),
            jax.vmap(function)(norms),
        )

    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        norms, widths = self._panels(kinks)
        fall = jax.vmap(lambda norm: -_derivative(self._folded, norm))(norms)
        return jnp.sum(widths * fall * jax.vmap(function)(norms))


def normal_edges(width: RealScalarLike) -> Float[Array, " m"]:
    """Edges of the panels that resolve a feature of this width beside a point."""
    return jnp.asarray(width) * _NORMAL_EDGES


def _derivative(function: Function, at: Float[Array, ""]) -> Float[Array, ""]:
    return jax.jvp(function, (at,), (jnp.ones_like(at),))[1]


def _normal(x: Array, mean: Array, std: Array) -> Array:
    return jnp.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))


def _normal_edges(mean, std, kinks: Sequence[RealScalarLike]) -> Float[Array, " p"]:
    """Sorted panel edges for a normal law folded at 0; `mean` is not negative."""
    offsets = np.concatenate([-_NORMAL_EDGES[:0:-1], _NORMAL_EDGES])
    edges = jnp.concatenate([mean + std * offsets, std * _RATIOS])
    low = jnp.maximum(mean - std * _NORMAL_EDGES[-1], 0.0)
    return _split(edges, low, mean + std * _NORMAL_EDGES[-1], kinks)


def _split(edges, low, high, kinks: Sequence[RealScalarLike]) -> Float[Array, " p"]:
    """`edges` and `kinks` in order, within the bounds; empty panels do no harm."""
    # The kinks keep their derivative: a node that moves with a kink is what makes the
    # derivative of an integral of a discontinuous function right.
    points = [jnp.atleast_1d(edges), jnp.zeros(1, edges.dtype) + low]
    points += [jnp.atleast_1d(jnp.asarray(kink, edges.dtype)) for kink in kinks]
    return jnp.sort(jnp.clip(jnp.concatenate(points), low, high))


def _nodes(edges: Float[Array, " p"]) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
    """The nodes of all panels and the widths that they stand for."""
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    nodes = middle[:, None] + half[:, None] * _NODES.astype(edges.dtype)[None, :]
    return nodes.ravel(), (
        half[:, None] * _WEIGHTS.astype(edges.dtype)[None, :]
    ).ravel()
