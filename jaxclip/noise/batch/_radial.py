r"""The density of a radius: of the norm of a vector of independent numbers.

It is held by polynomials on panels, which follow it from 0 over its peak, however
narrow, to the end of a heavy tail. The variable is $u = \mathrm{asinh}(r / r_0)$ with
$r_0$ at the peak: the radius where it is small, and its logarithm in the tail. A factor
of $r^{m-1}$, the area of the spheres in $m$ dimensions, is taken out, so that what is
left is smooth at 0.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import chebyshev

# Nodes of a panel.
NODES = 10
_AT, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)
# From the values at the nodes to the coefficients of Chebyshev's polynomials.
_FIT = np.linalg.inv(chebyshev.chebvander(_AT, NODES - 1))


class Nodes(NamedTuple):
    """The nodes of a quadrature over radii.

    - `radius`, `width`: of each node, in the unit of the radius.
    - `at`: the radius in the panels' own variable.
    """

    radius: Float[Array, "..."]
    width: Float[Array, "..."]
    at: Float[Array, "..."]


def nodes_between(
    low: Float[Array, " p"], high: Float[Array, " p"], unit: Float[Array, ""]
) -> Nodes:
    """Those of the panels between two rows of ends, shape `(p, NODES)`."""
    middle, half = (high + low) / 2, (high - low) / 2
    at = middle[:, None] + half[:, None] * _AT.astype(half.dtype)[None, :]
    width = half[:, None] * _WEIGHTS.astype(half.dtype)[None, :]
    return Nodes(unit * jnp.sinh(at), width * unit * jnp.cosh(at), at)


def flat_nodes(ends: Float[Array, " q"]) -> tuple[Float[Array, " k"], Array]:
    """Those of the panels between sorted ends, in the variable of the ends itself, and
    their widths."""
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    at = half[:, None] * _AT.astype(half.dtype)[None, :]
    width = half[:, None] * _WEIGHTS.astype(half.dtype)[None, :]
    return (middle[:, None] + at).ravel(), width.ravel()


def fit(values: Float[Array, "p n"]) -> Float[Array, "p n"]:
    """Chebyshev coefficients of the functions that have these values at the nodes."""
    return jnp.sum(values[:, None, :] * _FIT.astype(values.dtype)[None], axis=2)


def evaluate(
    edges: Float[Array, " q"], coefficients: Float[Array, "p n"], at: Float[Array, " k"]
) -> Float[Array, " k"]:
    """The piecewise polynomial at points between the first and the last edge."""
    panel = panel_of(edges, at)
    low, high = edges[panel], edges[panel + 1]
    width = jnp.where(high > low, high - low, 1.0)
    y = jnp.clip((2 * at - low - high) / width, -1.0, 1.0)
    return _clenshaw(coefficients[panel].T, y)


def interpolated(
    values: Float[Array, "k n"], at: Float[Array, "k q"]
) -> Float[Array, "k q"]:
    """Polynomials with these values at a panel's nodes, at points of [-1, 1]."""
    return _clenshaw(fit(values).T[:, :, None], at)


def _clenshaw(coefficients: Array, y: Array) -> Array:
    last = before = jnp.zeros_like(y)
    for coefficient in coefficients[:0:-1]:
        last, before = 2 * y * last - before + coefficient, last
    return y * last - before + coefficients[0]


def panel_of(edges: Float[Array, " q"], at: Float[Array, " k"]) -> Array:
    """The index of the panel that each point is in."""
    found = jnp.searchsorted(edges, at, side="right", method="compare_all") - 1
    return jnp.clip(found, 0, len(edges) - 2)


class Radial(eqx.Module):
    """The density of the norm of `count` independent numbers.

    - `count`: how many, as a float.
    - `unit`: the radius at the peak.
    - `edges`: shape `(p + 1,)`, of the panels, in the variable of the file.
    - `coefficients`: shape `(p, NODES)`, of the logarithm of the density in one over
        the unit, without the power of the radius.
    """

    count: Float[Array, ""]
    unit: Float[Array, ""]
    edges: Float[Array, " q"]
    coefficients: Float[Array, "p n"]

    @classmethod
    def of(cls, count, unit, edges, log_density) -> "Radial":
        """From a function: the logarithm of the density at an array of radii."""
        nodes = nodes_between(edges[:-1], edges[1:], unit)
        # A panel of no width may lie on 0, where nothing is read.
        tiny = float(jnp.finfo(nodes.radius.dtype).tiny) ** 0.5
        radius = jnp.maximum(nodes.radius, tiny * unit)
        values = log_density(radius.ravel()).reshape(radius.shape)
        # What the polynomials have lost of the mass.
        values = values - jnp.log(jnp.sum(jnp.exp(values) * nodes.width))
        power = (count - 1) * jnp.log(radius / unit)
        return cls(count, unit, edges, fit(values + jnp.log(unit) - power))

    def nodes(self) -> Nodes:
        return nodes_between(self.edges[:-1], self.edges[1:], self.unit)

    def log_density(self, radius: Float[Array, " k"]) -> Float[Array, " k"]:
        """The logarithm of the density, minus infinity beyond the panels."""
        tiny = jnp.finfo(radius.dtype).tiny
        ratio = jnp.maximum(radius / self.unit, tiny)
        at = jnp.arcsinh(ratio)
        log = evaluate(self.edges, self.coefficients, at)
        log = log + (self.count - 1) * jnp.log(ratio) - jnp.log(self.unit)
        inside = (at >= self.edges[0]) & (at <= self.edges[-1]) & (radius > 0)
        return jnp.where(inside, log, -jnp.inf)

    def squares(self) -> Float[Array, " q"]:
        """The squared radii of the edges."""
        return (self.unit * jnp.sinh(self.edges)) ** 2
