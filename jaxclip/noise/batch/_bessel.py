r"""Bessel functions $I_n$ of any order from 0 on, in the form that a law needs.

By Debye's uniform expansion (Olver et al., NIST handbook, eq. 10.41.3) at an order of
16 or more, and from there down by the recurrence $I_{n-1} = I_{n+1} + (2n/x) I_n$, all
of whose terms are positive.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial

# From this order on the expansion is right to 1e-10 with so many terms.
LEAST, _TERMS = 16.0, 8


def _debye() -> list[np.ndarray]:
    """Coefficients of the polynomials $U_k$ of the expansion, in the power of p."""
    p, one = Polynomial([0.0, 1.0]), Polynomial([1.0])
    polynomials = [one]
    for _ in range(_TERMS):
        last = polynomials[-1]
        weighed = (one - 5 * p**2) * last
        polynomials.append(p**2 * (one - p**2) * last.deriv() / 2 + weighed.integ() / 8)
    return [polynomial.coef for polynomial in polynomials]


_U = _debye()


def log_bessel(
    order: float, x: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""The logarithm of $\Gamma(n+1) (x/2)^{-n} e^{-x} I_n(x)$, 0 at 0, and the ratio
    $I_{n+1}(x) / I_n(x)$.

    **Arguments:**

    - `order`: $n$, not negative: a Python number.
    - `x`: not negative, any shape.
    """
    steps = max(0, math.ceil(LEAST - order))
    top = order + steps
    log, above = _expansion(top, x), _expansion(top + 1, x)
    ratio = x * jnp.exp(above - log) / (2 * (top + 1))
    product = jnp.ones_like(x)
    for step in range(steps):
        half = x / (2 * (top - step))
        grown = 1 + half * ratio
        ratio, product = half / grown, product * grown
        # Not all of them at once, or the product would overflow.
        if step % 2 or step == steps - 1:
            log, product = log + jnp.log(product), jnp.ones_like(x)
    return log, ratio


def debye_sum(order: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm of the sum of the expansion, 1 and what falls with the order."""
    p = order / root(order, x)
    total = jnp.zeros_like(x)
    square = p * p
    for k, coefficients in reversed(list(enumerate(_U))):
        # p^k times a polynomial in the square.
        value = jnp.zeros_like(x)
        for coefficient in coefficients[k::2][::-1]:
            value = value * square + float(coefficient)
        total = total * (p / order) + value
    return jnp.log(total)


def root(order: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The root of order^2 + x^2, also where a square is not representable."""
    large, small = jnp.maximum(x, order), jnp.minimum(x, order)
    return large * jnp.sqrt(1 + (small / large) ** 2)


def _expansion(order: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    hypotenuse = root(order, x)
    log = order * jnp.log(2 * order / (order + hypotenuse))
    log += order**2 / (x + hypotenuse) - order
    log += math.log(order) / 2 - jnp.log(hypotenuse) / 2 + debye_sum(order, x)
    # What Stirling's formula leaves out of the gamma function.
    stirling = order * math.log(order) - order + math.log(2 * math.pi * order) / 2
    return log + (math.lgamma(order + 1) - stirling)
