r"""The law of the norm of the noise of a batch, by repeated doubling.

The norms $r_1$ and $r_2$ of two independent vectors make one of norm
$r = \sqrt{r_1^2 + r_2^2}$, so that in polar coordinates

$$p(r) = \int_0^{\pi / 2} p_1(r \sin\theta)\, p_2(r \cos\theta)\, r\, d\theta :$$

an integral of positive numbers, which keeps the digits of the far tails.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._law import AbstractLaw
from .._panels import BOTH_SIDES
from .._smooth_law import SteppedLaw
from ._radial import NODES, Radial, flat_nodes, nodes_between

# Panels of the tail, and how they are spaced in its logarithm: denser at its start.
_TAIL = np.linspace(0.0, 1.0, 19)[1:] ** 1.5


class _Samples(NamedTuple):
    """One sample's absolute noise: nodes and their probabilities."""

    norm: Float[Array, " n"]
    mass: Float[Array, " n"]
    top: Float[Array, ""]
    steps: Float[Array, " s"]


def norm_of_noise(law: AbstractLaw, count: int) -> Radial:
    """The law of the norm of `count` independent draws from a law with a density."""
    samples = _samples(law)

    def log_density(norm):
        each = jax.vmap(law.log_density)
        return jnp.logaddexp(each(norm), each(-norm))

    one = jnp.ones_like(samples.top)
    first = Radial.of(one, *_panels(samples, one), log_density)
    bits = np.array([bit == "1" for bit in f"{count:b}"[1:]])
    if len(bits) == 0:
        return first

    def double(state, bit):
        twice = _sum(samples, state, state)
        more = jax.lax.cond(bit, lambda: _sum(samples, twice, first), lambda: twice)
        return more, None

    return jax.lax.scan(double, first, bits)[0]


def _samples(law: AbstractLaw) -> _Samples:
    edges = jax.lax.stop_gradient(jnp.sort(jnp.abs(law.panel_edges())))
    unit = jax.lax.stop_gradient(law.size)
    ends = jnp.arcsinh(jnp.concatenate([0 * edges[:1], edges]) / unit)
    nodes = nodes_between(ends[:-1], ends[1:], unit)
    norm = nodes.radius.ravel()
    each = jax.vmap(law.log_density)
    log = jnp.logaddexp(each(norm), each(-norm))
    mass = jnp.exp(log) * nodes.width.ravel()
    steps = jnp.zeros(0, norm.dtype)
    if isinstance(law, SteppedLaw):
        steps = jax.lax.stop_gradient(law.unit * law.centre)[None]
    return _Samples(norm, jax.lax.stop_gradient(mass), edges[-1], steps)


def _panels(samples: _Samples, count) -> tuple[Array, Array]:
    """The unit and the edges of the panels of a sum."""
    centre, width = _centre(samples, count)
    reach = width * BOTH_SIDES[-1]
    end = samples.top * jnp.sqrt(count)
    start = jnp.minimum(reach, end / 2)
    tail = centre + start * (jnp.maximum(end - centre, start) / start) ** _TAIL
    near = centre + width * BOTH_SIDES.astype(width.dtype)
    points = [near, tail]
    if samples.steps.size:
        # Where as many samples as the root says are at the step: there a density that
        # jumps leaves a root, and then a kink.
        roots = np.sqrt(np.arange(1.0, 7.0))
        finer = 1 + np.concatenate([s * 0.25 ** np.arange(1, 7) for s in (-1, 1)])
        centres = samples.steps[0] * np.concatenate([roots, roots[0] * finer])
        points.append(centres.astype(width.dtype))
    low = jnp.maximum(near[0], 0.0)
    edges = jnp.clip(jnp.concatenate([*points, end[None]]), low, end)
    return centre, jnp.arcsinh(jnp.sort(edges) / centre)


def _centre(samples: _Samples, count) -> tuple[Array, Array]:
    r"""Where the norm of a sum is, and how far it strays.

    By the law that is tilted with $e^{-\lambda Q}$, $Q$ the square, at which
    $E e^{-\lambda Q} = 1/e$: it has moments whatever the tail is.
    """
    norm, mass = samples.norm, samples.mass
    mass = mass / jnp.sum(mass)
    tiny = jnp.finfo(norm.dtype).tiny
    unit = jnp.exp(jnp.sum(mass * jnp.log(jnp.maximum(norm, tiny))))
    square = (norm / unit) ** 2

    def exponent(log_rate):
        lost = -jnp.expm1(-jnp.exp(log_rate) * square)
        return -count * jnp.log1p(-jnp.minimum(jnp.sum(mass * lost), 1 - 1e-6))

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        above = exponent(middle) > 1
        return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

    ends = jnp.full_like(unit, -40.0), jnp.full_like(unit, 40.0)
    log_rate = jax.lax.fori_loop(0, 50, halve, ends)[0]
    weight = mass * jnp.exp(-jnp.exp(log_rate) * square)
    weight = weight / jnp.sum(weight)
    mean = jnp.sum(weight * square)
    variance = jnp.sum(weight * square**2) - mean**2
    centre = jnp.exp(-log_rate / 2)
    width = jnp.sqrt(count * variance) / (2 * centre)
    return unit * centre, unit * width


def _sum(samples: _Samples, first: Radial, second: Radial) -> Radial:
    count = first.count + second.count
    unit, edges = jax.lax.stop_gradient(_panels(samples, count))

    def log_density(radius):
        return jax.lax.map(lambda r: _at(first, second, r), radius, batch_size=NODES)

    return Radial.of(count, unit, edges, log_density)


def _at(first: Radial, second: Radial, radius: Float[Array, ""]) -> Float[Array, ""]:
    """The integral of the file over the angle, split where either density is."""
    ends = []
    for law, angle in ((first, jnp.arcsin), (second, jnp.arccos)):
        edges = law.unit * jnp.sinh(law.edges)
        ends.append(angle(jnp.clip(edges / radius, 0.0, 1.0)))
    right = jnp.asarray(np.pi / 2, radius.dtype)
    ends = jnp.sort(jnp.concatenate([*ends, 0 * right[None], right[None]]))
    angle, width = flat_nodes(ends)
    log = first.log_density(radius * jnp.sin(angle))
    log = log + second.log_density(radius * jnp.cos(angle))
    top = jax.lax.stop_gradient(jnp.max(log))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(log - top) * width)
    tiny = jnp.finfo(total.dtype).tiny
    return top + jnp.log(jnp.maximum(radius * total, tiny))
