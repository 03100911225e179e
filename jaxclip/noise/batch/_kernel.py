r"""The norm of a normal vector around a point: the kernel of the signal.

The norm $r$ of $e + s Z$, $Z$ standard normal in $B$ dimensions and $e$ a point at the
distance $e$ from 0, has the noncentral chi density. With $n = B/2 - 1$,

$$p(r) = \frac{r}{s^2} \Big(\frac{r}{e}\Big)^n
\exp\Big(-\frac{r^2 + e^2}{2 s^2}\Big) I_n\Big(\frac{r e}{s^2}\Big), \qquad
\frac{d}{dr} \log \frac{p}{r^{B-1}} = -\frac{r - e\, I_{n+1} / I_n}{s^2} .$$
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._bessel import LEAST, debye_sum, log_bessel, root


def log_kernel(
    count: int, std: Float[Array, ""], radius: Array, centre: Array, unit: Array
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The logarithm of the density of the norm, in one over `unit`, and the slope of
    what is left of it without the power of the radius.

    **Arguments:**

    - `count`: $B$, 2 or more.
    - `std`: $s$, positive.
    - `radius`, `centre`: $r > 0$ and $e >= 0$, of one shape.
    - `unit`: a radius, near which no two large terms cancel.
    """
    order = count / 2 - 1
    away = (radius - centre) / std
    x = (radius / std) * (centre / std)
    log_ratio, log_unit = jnp.log(radius / unit), 2 * jnp.log(unit / std)
    bessel, above = log_bessel(order, x)
    log = (count - 1) * log_ratio + log_unit - away**2 / 2
    if order < LEAST:
        log += order * (log_unit - math.log(2)) - math.lgamma(order + 1) + bessel
    else:
        # The same, with the powers of what is large taken together.
        hypotenuse = root(order, x)
        log += order * (log_unit - jnp.log(order + hypotenuse))
        log += order**2 / (x + hypotenuse) + debye_sum(order, x)
        log -= jnp.log(2 * math.pi * hypotenuse) / 2
    return log, -(away + (1 - above) * (centre / std)) / std
