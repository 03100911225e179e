"""The clipping rules without a threshold: each gradient comes out about as long.

| rule | factor of a gradient of norm n | source |
|---|---|---|
| `Normalize` | 1 / (n + eps) | Hazan et al. 2015, arXiv:1507.02030 |
| `AutoS` | 1 / (n + r) | Bu et al. 2022, arXiv:2206.07136 |
| `PSAC` | 1 / (n + r / (n + r)) | Xia et al. 2023, arXiv:2212.00328 |
| `Rescale` | c / n | |
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._schedule import as_schedule
from .._types import RealScalarLike, Schedule, Step
from ._base import AbstractClip, at, ratio


class Normalize(AbstractClip):
    r"""The gradient's direction: its length becomes $n / (n + \varepsilon)$.

    $$f(n) = \frac{1}{n + \varepsilon}.$$

    **Arguments:**

    - `eps`: $\varepsilon \ge 0$, in the unit of the gradient's norm: a number, an array
        or a function of the step. At $\varepsilon = 0$ a zero gradient has no
        direction and is left at zero.
    """

    eps: Schedule = eqx.field(converter=partial(as_schedule, name="eps"), default=1e-6)

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, eps = at(self.eps, norm, step)
        total = norm + eps
        none = total <= 0
        return jnp.where(none, 0.0, 1 / jnp.where(none, 1.0, total))

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class AutoS(AbstractClip):
    r"""AUTO-S: `Normalize` with a stability constant large enough to matter.

    $$f(n) = \frac{1}{n + r}.$$

    Made for clipping per example: a short gradient keeps a length below 1, which a
    plain normalisation takes from it, and there is no threshold to choose.

    **Arguments:**

    - `stability`: $r \ge 0$, in the unit of the gradient's norm: a number, an array
        or a function of the step.
    """

    stability: Schedule = eqx.field(
        converter=partial(as_schedule, name="stability"), default=0.01
    )

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        return Normalize(self.stability).factor(norm, step)

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class PSAC(AbstractClip):
    r"""Per-sample adaptive clipping: long gradients get length 1, short ones shrink.

    $$f(n) = \frac{1}{n + r / (n + r)}.$$

    At norm 0 the factor is 1, where that of `AutoS` is $1/r$: gradients close to zero
    do not count for more than the others.

    **Arguments:**

    - `stability`: $r \ge 0$, in the unit of the gradient's norm: a number, an array
        or a function of the step. At $r = 0$ it is a plain normalisation.
    """

    stability: Schedule = eqx.field(
        converter=partial(as_schedule, name="stability"), default=0.1
    )

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, r = at(self.stability, norm, step)
        # At 0 / 0, without a constant, a zero gradient has no direction.
        regular = ~(norm + r <= 0)
        n, r = jnp.where(regular, norm, 1.0), jnp.where(regular, r, 0.0)
        factor = ratio(jnp.ones_like(n), n + ratio(r, n + r))
        return jnp.where(regular, factor, 0.0)

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class Rescale(AbstractClip):
    r"""The gradient at length $c$, whether it was longer or shorter.

    $$f(n) = c / n.$$

    For policies that say how long a gradient shall be, such as
    [`jaxclip.policy.AGGC`][], and not only how long it may be. A zero gradient has no
    direction and stays zero.

    **Arguments:**

    - `threshold`: $c \ge 0$, finite, in the unit of the gradient's norm: a number, an
        array or a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, c = at(self.threshold, norm, step)
        # Written so that a norm that is no number has a factor that is none.
        some = ~(norm <= 0)
        factor = ratio(jnp.where(some, c, 1.0), jnp.where(some, norm, 1.0))
        # Of a norm that is nearly zero the factor itself may be beyond all floats.
        largest = jnp.finfo(norm.dtype).max
        return jnp.where(some, jnp.minimum(factor, largest), 0.0)

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()
