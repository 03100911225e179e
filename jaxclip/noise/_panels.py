r"""The nodes of the integrals over a residual's norm: Gauss-Legendre rules on panels.

The panels are split at the kinks that a rule declares, are as narrow as the law's own
features, and shrink geometrically towards 0, where a rule with a small threshold
varies. A plain Gauss-Hermite rule would do none of this: at a kink it is wrong in the
second digit, and its derivative with respect to a hard threshold is exactly zero.

A feature may be narrower than the rounding of the norm that it is at: an atom of size 1
under a signal of 1e-12 is, and in float32 one under a signal of 1e-7. So every point is
held twice, as a norm and as its distance from a centre, which keeps the digits that
the norm has lost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import RealScalarLike

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
# Panel edges of a standard normal, in standard deviations: beyond the last, 2e-21 of
# the mass. Twelve nodes on each panel integrate the density to 1e-15, and a
# rational function of the norm over a factor of 4 to 1e-10.
NORMAL_EDGES = np.array([0.0, 1.25, 2.5, 4.0, 6.0, 9.5])
# The same on both sides of its mean.
BOTH_SIDES = np.concatenate([-NORMAL_EDGES[:0:-1], NORMAL_EDGES])
# Panels towards norm 0, each a quarter of the one before: the last ends at 6e-14 of the
# law's width, so that rules whose scale is 1e-12 of it are resolved.
RATIOS = 0.25 ** np.arange(1, 23)
# Edges that fill the gaps between features, and the ratio of two neighbours that is no
# gap yet: gaps of a factor 1e15 in all come down to a ratio of 4.
_FILL, _DENSE = 20, np.log(3.0)


class Points(NamedTuple):
    """Norms, and the same points as distances from a centre: shape `(p,)`, or one."""

    norm: Float[Array, "..."]
    offset: Float[Array, "..."]


class Panels(NamedTuple):
    """The nodes of a quadrature, shape `(q,)`.

    - `base`, `offset`: a node is at the norm `base + offset`, where `base` is either 0
        or the centre.
    - `norm`: that sum, on the side of each kink on which the node is: a sum of two
        numbers of very different sizes may come to lie on the kink itself.
    - `width`: the length that the node stands for.
    """

    base: Float[Array, " q"]
    offset: Float[Array, " q"]
    norm: Float[Array, " q"]
    width: Float[Array, " q"]


def lay(
    points: Float[Array, " p"],
    kinks: Points,
    centre: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> Panels:
    """Panels between points and kinks that are all measured from one centre.

    The points need no order, and empty panels do no harm. The kinks keep their
    derivative: a node that moves with a kink is what makes the derivative of an
    integral of a discontinuous function right.

    **Arguments:**

    - `points`, `low`, `high`: distances from the centre.
    """
    parts = [points, kinks.offset, low[None], high[None]]
    ends = jnp.clip(jnp.concatenate(parts), low, high)
    over = _over((ends,), len(points), len(kinks.norm))
    ends = jnp.sort(ends)
    return _nodes(ends[:-1], ends[1:], centre, kinks, over)


def lay_around(
    points: Sequence[Points],
    kinks: Points,
    centre: Float[Array, ""],
    low: Points,
    high: Points,
) -> Panels:
    """The same where points are close to 0 and to the centre: a panel is measured from
    the one that it is closer to."""
    norm, offset = (
        jnp.concatenate([jnp.atleast_1d(part) for part in parts])
        for parts in zip(*points, kinks, low, high, strict=True)
    )
    below, above = offset < low.offset, offset > high.offset
    norm = jnp.where(below, low.norm, jnp.where(above, high.norm, norm))
    offset = jnp.where(below, low.offset, jnp.where(above, high.offset, offset))
    count = len(kinks.norm)
    over = _over((norm, offset), len(norm) - count - 2, count)
    # What has the same norm is told apart by its distance from the centre.
    norm, offset = jax.lax.sort((norm, offset), num_keys=2)
    near = norm[:-1] >= centre / 2
    start = jnp.where(near, offset[:-1], norm[:-1])
    end = jnp.where(near, offset[1:], norm[1:])
    return _nodes(start, end, jnp.where(near, centre, 0.0), kinks, over)


def _over(keys: tuple[Array, ...], first: int, count: int) -> Bool[Array, "k n"]:
    """For each kink, which of the panels between the sorted keys are over it.

    By its place in the order, not by its value: between a kink and an edge at the same
    point there is a panel of width 0, but the width changes with the kink.

    **Arguments:**

    - `keys`: the numbers that are sorted by, the first one first.
    - `first`, `count`: where the kinks are among them.
    """
    # All kinks at once: the search for a threshold has a hundred of them, and a loop
    # over them would be compiled as often.
    places = np.arange(len(keys[0]))
    # As a stable sort does it.
    before = jnp.asarray(places < np.arange(first, first + count)[:, None])
    for key in reversed(keys):
        own = key[first : first + count, None]
        before = (key[None] < own) | ((key[None] == own) & before)
    return jnp.sum(before, axis=1)[:, None] <= places[None, :-1]


def _nodes(start, end, base, kinks: Points, over: Bool[Array, "k n"]) -> Panels:
    """The nodes of the panels between two rows of ends, measured from `base`, and
    whether each panel is over each kink."""
    middle, half = (end + start) / 2, (end - start) / 2
    at = middle[:, None] + half[:, None] * _NODES.astype(half.dtype)[None, :]
    width = half[:, None] * _WEIGHTS.astype(half.dtype)[None, :]
    base = jnp.broadcast_to(jnp.expand_dims(base, -1), at.shape)
    node = base + at
    if len(kinks.norm):
        below, above = _beside(jax.lax.stop_gradient(kinks.norm)[:, None], over)
        inside = jnp.clip(jax.lax.stop_gradient(node), below[:, None], above[:, None])
        node = node + (inside - jax.lax.stop_gradient(node))
    return Panels(base.ravel(), at.ravel(), node.ravel(), width.ravel())


def _beside(kinks: Float[Array, "k 1"], over: Bool[Array, "k n"]):
    """The last kink below each panel, and the first above it."""
    margin = 8 * jnp.finfo(kinks.dtype).eps
    side = kinks * jnp.where(over, 1 + margin, 1 - margin)
    reached = over & (kinks < jnp.inf)
    below = jnp.max(jnp.where(reached, side, 0.0), axis=0)
    return below, jnp.min(jnp.where(over, jnp.inf, side), axis=0)


def kinks_at(
    kinks: Sequence[RealScalarLike],
    centre: Float[Array, ""],
    high: Points,
    unit: RealScalarLike = 1.0,
) -> Points:
    """Kinks as points, in a unit. One that is beyond the bounds, perhaps infinite, ends
    the last panel, and all nodes are below it."""
    rows = [jnp.asarray(kink, centre.dtype) for kink in kinks]
    at = (jnp.stack(rows) if rows else jnp.zeros(0, centre.dtype)) / unit
    inside = at - centre < high.offset
    # Made safe before the difference: the derivative of a bound is not infinity less
    # infinity.
    safe = jnp.where(inside, at, 0.0)
    return Points(
        jnp.where(inside, safe, jnp.inf),
        jnp.where(inside, safe - centre, high.offset),
    )


def between(edges: Float[Array, " m"]) -> Float[Array, " n"]:
    """More edges: between those that are far apart, and down to 6e-14 of the smallest.
    There nothing happens to a density, but a rule may vary on the scale of the norm."""
    positive = jnp.where(edges > 0, edges, jnp.max(edges))
    logs = jnp.sort(jnp.log(jax.lax.stop_gradient(positive)))
    gaps = jnp.maximum(jnp.diff(logs) - _DENSE, 0.0)
    total = jnp.concatenate([jnp.zeros(1, gaps.dtype), jnp.cumsum(gaps)])
    share = jnp.asarray(np.arange(1, _FILL + 1) / (_FILL + 1), gaps.dtype)
    filled = jnp.interp(share * total[-1], total, logs)
    smaller = logs[0] + np.log(RATIOS).astype(edges.dtype)
    return jnp.exp(jnp.concatenate([filled, smaller]))
