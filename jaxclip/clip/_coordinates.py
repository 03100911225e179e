r"""What a rule does to one coordinate of a gradient, on the average over its feature.

Coordinate $i$ of a sample's gradient is $w a_i$ with the residual $w$ and a feature
$a_i \sim N(0, \lambda_i)$ that is independent of it when there are many. Given $w$, and
with $t = \sqrt{\lambda_i}$, Stein's identity in the feature leaves of the rule

$$E[a_i \psi(w a_i)] = \lambda_i\, w F(t |w|), \qquad F(q) = E[Z^2 f(q |Z|)],$$
$$E \psi(w a_i)^2 = \lambda_i\, w^2 F_2(t |w|), \qquad F_2(q) = E[Z^2 f(q |Z|)^2],$$

so that the coordinate sees a rule with the factor $F$: the factor $f$, smoothed over
an octave or so of norms. Neither depends on the noise, nor on the risk. They are
tabulated once, in $\log q$, in which they are analytic in a strip of half width
$\pi / 4$ whatever the kinks of $f$ are: the kernel $z^2 \phi(z)$ is, in $\log z$.

An expectation over the residual is then a sum of the table's nodes with weights that
the law of the residual gives, and for another $\lambda$, a whole number of nodes away,
it is the sum with the same weights of a shifted table: one evaluation of the law serves
all coordinates.
Derived here.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import RealScalarLike, Step
from ._base import AbstractClip
from ._moments import factor_at, factor_at_infinity

# How far the table reaches from its centre, in log q, and how many of its nodes there
# are on a unit.
BELOW, ABOVE, EACH = 36, 24, 16
CELLS = EACH * (BELOW + ABOVE)
# Panels of the integral over Z, each with a Gauss rule: narrower towards 0, where a
# rule with a small threshold varies; beyond the last there is nothing.
_EDGES = np.array([0.0, *0.25 ** np.arange(9, 0, -1), 0.6, 1.25, 2.5, 4.0, 6.0, 9.5])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
# On [0, 1], the quintic with these values, slopes and curvatures at both ends: a row
# for each power, a column for each of f, f', f'' at 0 and at 1.
_QUINTIC = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0],
        [-10, -6, -1.5, 10, -4, 0.5],
        [15, 8, 1.5, -15, 7, -1],
        [-6, -3, -0.5, 6, -3, 0.5],
    ]
)


class SmoothedFactors(eqx.Module):
    r"""The table of $F$ and of $F_2$ of a rule, at one step.

    Row $m$ is the table as a coordinate sees it whose $\sqrt\lambda$ is $m$ nodes above
    the first one's: a shift in $\log q$.

    - `low`: the $\log q$ at which it begins.
    - `first`: shape `(shifts, 3 * nodes)`, $F$ with two derivatives in its nodes.
    - `rest`: of the same shape, $F_2 - f(\infty)^2$.
    - `kept`: $f(\infty)$, what the rule keeps of the largest gradients.
    - `at_zero`: $f(0)$.
    """

    low: Float[Array, ""]
    first: Float[Array, "shifts values"]
    rest: Float[Array, "shifts values"]
    kept: Float[Array, ""]
    at_zero: Float[Array, ""]

    @classmethod
    def of(
        cls, clip: AbstractClip, step: Step, centre: RealScalarLike, shifts: int
    ) -> "SmoothedFactors":
        """The table of a rule.

        **Arguments:**

        - `clip`, `step`: the rule, and the step at which its thresholds are read.
        - `centre`: a typical $q$, positive: the table reaches 15 orders of magnitude
            below it and 10 above.
        - `shifts`: how many rows.
        """
        # A constant to derivatives: no factor depends on where its table is.
        centre = jax.lax.stop_gradient(jnp.log(jnp.asarray(centre)))
        low = centre - BELOW
        kept = factor_at_infinity(clip, step)
        at_zero = jnp.asarray(clip.factor(0.0, step))
        index = np.arange(CELLS + shifts)
        q = jnp.exp(low + jnp.asarray(index / EACH, low.dtype))
        kinks = tuple(jnp.asarray(kink, q.dtype) for kink in clip.kinks(step))

        def at_node(q):
            z, weights = _over_feature(tuple(kink / q for kink in kinks), q.dtype)
            f = factor_at(clip, q * z, step)
            # Of each, the value and two derivatives in log q, which are moved onto the
            # weights: f itself has kinks.
            return jnp.stack([weights @ f, weights @ ((f - kept) * (f + kept))])

        values = jax.vmap(at_node)(q)
        # By the length of a cell.
        scale = jnp.asarray(float(EACH) ** -np.arange(3), values.dtype)
        values = values * scale[None, None, :]
        shifted = np.arange(shifts)[:, None] + np.arange(CELLS + 1)[None, :]
        first, rest = (values[:, k][shifted].reshape(shifts, -1) for k in range(2))
        return cls(low, first, rest, kept, at_zero)


def _over_feature(
    kinks: tuple[Array, ...], dtype
) -> tuple[Float[Array, " z"], Float[Array, "3 z"]]:
    """Nodes for the modulus of a standard normal, with the weights of the value and of
    two derivatives in the logarithm of what it is multiplied with."""
    edges, top = jnp.asarray(_EDGES, dtype), float(_EDGES[-1])
    # Where it does not split anything, a kink is laid on the end.
    inside = [jnp.where(kink < top, kink, top)[None] for kink in kinks]
    ends = jnp.sort(jnp.concatenate([edges, *inside]))
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    z = middle[:, None] + half[:, None] * jnp.asarray(_NODES, dtype)[None, :]
    width = half[:, None] * jnp.asarray(_WEIGHTS, dtype)[None, :]
    z, width = z.ravel(), width.ravel()
    s = z**2
    mass = width * np.sqrt(2 / np.pi) * jnp.exp(-s / 2) * s
    # A derivative in log q takes the weight w to (z^2 - 1) w - z w'.
    return z, mass[None, :] * jnp.stack([jnp.ones_like(s), s - 3, s * (s - 8) + 9])


def interpolate(
    values: Float[Array, "nodes 3"], u: Float[Array, ""]
) -> Float[Array, ""]:
    """A table at a place that is counted in nodes: linear in its values.

    Below, it goes on as it begins. Above it is 0: what a law has there does not count.
    """
    inside = jnp.clip(u, 0.0, float(CELLS))
    cell = jax.lax.stop_gradient(jnp.minimum(inside.astype(int), CELLS - 1))
    share = inside - cell.astype(inside.dtype)
    ends = jax.lax.dynamic_slice_in_dim(values, cell, 2).ravel()
    powers = jnp.stack([share**k for k in range(6)])
    weights = powers @ jnp.asarray(_QUINTIC, powers.dtype)
    return jnp.where(u > CELLS, 0.0, jnp.sum(weights * ends))
