"""The law of the norm of a batch's residuals, at one value of the risk."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._types import RealScalarLike
from .._panels import BOTH_SIDES
from ._kernel import log_kernel
from ._prior import Atoms, Prior
from ._radial import Radial, flat_nodes, interpolated, nodes_between, panel_of

# A signal of a smaller share of the noise is taken to have this one: its distance from
# an atom has no digits left.
_LEAST = {"float64": 3e-5, "float32": 1e-2}
# The same as a share of a norm far out in a tail, which is smooth on that scale.
_LEAST_OF_TAIL, _TAIL = {"float64": 1e-4, "float32": 1e-2}, 8.0
# Panels towards 0, where a rule with a small threshold varies.
_TO_ZERO = 0.25 ** np.arange(1, 6)
# Up to so many atoms each has panels of its own.
_FEW = 17
# The window of the signal around a radius, in standard deviations.
_WINDOW = np.linspace(-9.5, 9.5, 9)


class _Read(NamedTuple):
    """The nodes of a quadrature: their radius, probability, and the slope there."""

    radius: Float[Array, " k"]
    mass: Float[Array, " k"]
    slope: Float[Array, " k"]


class BatchLaw(eqx.Module):
    r"""The law of $\rho = \|w\|$, the norm of the residuals of a batch.

    - `unit`: a typical one.
    - `edges`: of the panels, in $\mathrm{asinh}(\rho / \mathrm{unit})$.
    - `log_density`: at the nodes of each panel, per unit.
    - `slope`: of $\log (p / \rho^{B-1})$ there, times the unit.
    - `mass`: the probability of each node.
    """

    unit: Float[Array, ""]
    edges: Float[Array, " q"]
    log_density: Float[Array, "p n"]
    slope: Float[Array, "p n"]
    mass: Float[Array, "p n"]

    def scaled(self, factor: Float[Array, ""]) -> "BatchLaw":
        """The law of `factor` times the norm."""
        rest = self.edges, self.log_density, self.slope, self.mass
        return BatchLaw(self.unit * factor, *rest)

    def read(self, kinks: Sequence[RealScalarLike]) -> _Read:
        """The nodes, split at the kinks: norms, the infinite ones beyond all."""
        low, high = self.edges[:-1], self.edges[1:]
        nodes = nodes_between(low, high, jnp.ones_like(self.unit))
        fixed = nodes.radius.ravel(), self.mass, self.slope
        if not kinks:
            return self._in_units([_flat(*fixed)])
        at = jnp.stack([jnp.asarray(kink, self.unit.dtype) for kink in kinks])
        beyond = ~(at < jnp.sinh(self.edges[-1]) * self.unit)
        at = jnp.arcsinh(jnp.where(beyond, 0.0, at) / self.unit)
        at = jnp.sort(jnp.where(beyond, self.edges[-1], jnp.maximum(at, self.edges[0])))
        panel = panel_of(self.edges, at)
        index = jnp.arange(len(low), dtype=panel.dtype)
        whole = jnp.all(index[:, None] != panel[None, :], axis=1)
        fixed = fixed[0], jnp.where(whole[:, None], self.mass, 0.0), self.slope
        # From the end of the panel, or the kink before, and on to its other end where
        # no kink follows in it.
        low, high = low[panel], high[panel]
        before = jnp.concatenate([self.edges[:1], at[:-1]])
        after = jnp.concatenate([at[1:], self.edges[-1:]])
        ends = jnp.where(after >= high, high, at)
        left = self._part(panel, jnp.maximum(low, before), at)
        return self._in_units([_flat(*fixed), left, self._part(panel, at, ends)])

    def _part(self, panel: Array, starts: Array, ends: Array) -> _Read:
        """Nodes between points that are both in one panel."""
        low, high = self.edges[panel], self.edges[panel + 1]
        part = nodes_between(starts, ends, jnp.ones_like(self.unit))
        width = jnp.where(high > low, high - low, 1.0)
        y = (2 * part.at - (low + high)[:, None]) / width[:, None]
        logs, slopes = self.log_density[panel], self.slope[panel]
        # In a gap between two atoms no polynomial follows the logarithm, which is far
        # below anything that counts, and has to remain so.
        most = jnp.max(logs, axis=1, keepdims=True) + 1
        mass = jnp.exp(jnp.minimum(interpolated(logs, y), most)) * part.width
        return _flat(part.radius, mass, interpolated(slopes, y))

    def _in_units(self, parts: Sequence[_Read]) -> _Read:
        radius, mass, slope = (
            jnp.concatenate(part) for part in zip(*parts, strict=True)
        )
        return _Read(self.unit * radius, mass / jnp.sum(mass), slope / self.unit)


def _flat(radius: Array, mass: Array, slope: Array) -> _Read:
    return _Read(radius.ravel(), mass.ravel(), slope.ravel())


def law_at(prior: Prior, count: int, signal_variance: RealScalarLike) -> BatchLaw:
    """The law of a batch of `count` samples."""
    variance = jnp.asarray(signal_variance) + prior.variance
    if isinstance(prior.norm, Atoms):
        size = jnp.max(prior.norm.radius)
    else:
        size = prior.norm.unit
    size = jax.lax.stop_gradient(size) / np.sqrt(count)
    least = _LEAST[str(size.dtype)] * size
    # Without signal and noise any one is as good.
    least = jnp.where(size > 0, least, float(jnp.finfo(size.dtype).tiny) ** 0.25)
    std = jnp.sqrt(jnp.maximum(variance, least**2))
    fixed = jax.lax.stop_gradient((prior.norm, std))
    unit, edges = _panels(*fixed, count)
    nodes = nodes_between(edges[:-1], edges[1:], unit)
    # A panel of no width may lie on 0, where nothing is read.
    safe = jnp.maximum(nodes.radius, 1e-12 * unit)
    of = partial(_densities, prior.norm, count, std, unit)
    log, slope = jax.lax.map(jax.checkpoint(of), safe)
    mass = jnp.exp(log) * nodes.width / unit
    return BatchLaw(unit, edges, log, slope * unit, mass)


def _panels(norm: Radial | Atoms, std, count: int) -> tuple[Array, Array]:
    dtype = std.dtype
    spread = (count - 1) * std**2
    if isinstance(norm, Radial):
        centre = jnp.sqrt(norm.unit**2 + spread)
        points = [jnp.sqrt(norm.squares() + spread), centre + std * BOTH_SIDES]
    else:
        middles = jnp.sqrt(norm.radius**2 + spread)
        centre = jnp.sqrt(jnp.sum(norm.weight * norm.radius**2) + spread)
        if len(middles) == 1:
            points = [middles[0] + std * BOTH_SIDES]
        elif len(middles) <= _FEW:
            around = (std * BOTH_SIDES.astype(dtype))[None, :]
            points = [(middles[:, None] + around).ravel()]
        else:
            width = jnp.sqrt(jnp.sum(norm.weight * (middles - centre) ** 2)) + std
            points = [centre + width * np.linspace(-9.5, 9.5, 33)]
            tail = jnp.max(middles) / centre
            points.append(centre * jnp.maximum(tail, 1.0) ** np.linspace(0.2, 1, 8))
    points = jnp.concatenate([jnp.asarray(part, dtype) for part in points])
    low = jnp.maximum(jnp.min(points) - BOTH_SIDES[-1] * std, 0.0)
    high = jnp.max(points) + BOTH_SIDES[-1] * std
    zero = centre * _TO_ZERO.astype(dtype)
    edges = jnp.clip(jnp.concatenate([points, zero, high[None]]), low, high)
    edges = jnp.sort(jnp.append(edges, low))
    return centre, jnp.arcsinh(edges / centre)


def _densities(norm: Radial | Atoms, count: int, std, unit, radii):
    """The logarithm of the density at the norms of one panel, and the slopes."""
    if isinstance(norm, Atoms):
        log_weight, of = jnp.log(norm.weight), partial(_density, count, std, unit)
        return jax.vmap(lambda radius: of(radius, norm.radius, log_weight))(radii)
    panels = norm.nodes()
    edges = norm.unit * jnp.sinh(norm.edges)
    least = jnp.max(radii) * _LEAST_OF_TAIL[str(std.dtype)]
    std = jnp.where(jnp.max(radii) > _TAIL * unit, jnp.maximum(std, least), std)
    of = partial(_density, count, std, unit)
    widths = edges[1:] - edges[:-1]
    rising = edges[1:] <= norm.unit * (1 + 1e-6)
    # Where the signal is narrower than the panels around the peak, all is within its
    # reach; where it is wider, the panels up to there are summed, and beyond, in the
    # tail, where the panels are wider again, what is in the signal's reach.
    narrow = jnp.max(jnp.where(rising, widths, 0.0)) > 4 * std
    wide = ~rising & (widths > 4 * std)
    start = jnp.min(jnp.where(wide, edges[:-1], edges[-1]))
    kept = jnp.where(edges[:-1] < start, 1.0, 0.0)[:, None]
    own = _weighed(norm, panels.radius.ravel(), (kept * panels.width).ravel())

    def around(least, radius):
        return _weighed(norm, *_window(count, std, radius, least))

    def both(radius):
        beyond = around(start, radius)
        parts = zip(own, beyond, strict=True)
        return of(radius, *(jnp.concatenate(part) for part in parts))

    def close(radius):
        return of(radius, *around(jnp.zeros_like(start), radius))

    return jax.lax.cond(narrow, jax.vmap(close), jax.vmap(both), radii)


def _density(count: int, std, unit, radius, centre, log_weight):
    """The same at one norm, from the points that the signal is added to."""
    log, slope = log_kernel(count, std, jnp.full_like(centre, radius), centre, unit)
    log = log + log_weight
    top = jax.lax.stop_gradient(jnp.max(log))
    share = jnp.exp(log - top)
    total = jnp.sum(share)
    return top + jnp.log(total), jnp.sum(share * slope) / total


def _near(count: int, std, radius):
    """The norm of the noise that a norm of the residuals is likely to come from."""
    return jnp.sqrt(jnp.maximum(radius**2 - (count - 1) * std**2, 0.0))


def _window(count: int, std, radius, least) -> tuple[Array, Array]:
    """Nodes in the signal's reach of there, none below `least`, and their widths."""
    near = _near(count, std, radius)
    wide = jnp.minimum(radius / jnp.maximum(near, 1e-9 * radius), count**0.25)
    ends = jnp.maximum(near + wide * std * _WINDOW.astype(std.dtype), least)
    return flat_nodes(ends)


def _weighed(norm: Radial, centre, width) -> tuple[Array, Array]:
    tiny = jnp.finfo(width.dtype).tiny
    log = norm.log_density(centre) + jnp.log(jnp.maximum(width, tiny))
    # As low as nothing: minus infinity has no derivative.
    return centre, jnp.where(width > 0, jnp.maximum(log, -1e6), -1e6)
