r"""The moments of a normal law's tail, accurate at every argument and to every order.

$$M_n(t) = \int_0^\infty u^n e^{-u^2/2 - ut}\,du, \qquad M_n' = -M_{n+1}.$$

$M_0(t) = \Phi(-t) / \phi(t)$ is Mills' ratio. Densities of noise that is convolved with
a normal law are sums of it in which nothing cancels, and neither does in their
derivatives: the ones that follow from $M_0' = t M_0 - 1$ lose $t^2$ of their digits.
"""

import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The map of [0, inf) to [-1, 1], and the terms kept there: the rest is below 1e-14.
_CENTRE, _TERMS = 4.0, 26


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def mills(t: Float[Array, "..."], order: int = 0) -> Float[Array, "..."]:
    """$M_n(t)$ for `t` not negative."""
    y = (t - _CENTRE) / (t + _CENTRE)
    # By Clenshaw's recurrence.
    last = before = jnp.zeros_like(t)
    first, *others = _coefficients(order)
    for coefficient in reversed(others):
        last, before = 2 * y * last - before + coefficient, last
    inverse = 1 / (t + _CENTRE)
    return (y * last - before + first) * inverse ** (order + 1)


@mills.defjvp
def _mills_jvp(order, primals, tangents):
    return mills(*primals, order), -tangents[0] * mills(*primals, order + 1)


@lru_cache
def _coefficients(order: int) -> tuple[float, ...]:
    """Of $(t + c)^{n+1} M_n(t)$ in Chebyshev polynomials of $y = (t - c) / (t + c)$.

    In $v = u (t + c)$ the integrand falls off like $e^{-v}$ or faster at every `t`.
    """
    count = 3 * _TERMS
    angle = (np.arange(count) + 0.5) * np.pi / count
    y = np.cos(angle)[:, None]
    t = _CENTRE * (1 + y) / (1 - y)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.array([0.0, 3.0, 8.0, 16.0, 28.0, 45.0, 80.0])
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    v, dv = (middle + half * nodes).ravel(), (half * weights).ravel()
    total = t + _CENTRE
    values = np.exp(-v * t / total - (v / total) ** 2 / 2) @ (dv * v**order)
    terms = [2 / count * np.sum(values * np.cos(j * angle)) for j in range(_TERMS)]
    return (terms[0] / 2, *terms[1:])


def phi(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """The standard normal density."""
    return jnp.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
