"""The clipping rules with a threshold.

| rule | factor of a gradient of norm n | source |
|---|---|---|
| `Identity` | 1 | |
| `HardClip` | min(1, c / n) | Pascanu et al. 2013, arXiv:1211.5063 |
| `SoftClip` | c / (c + n) | Zhang et al. 2020, arXiv:1905.11881 |
| `RootSoftClip` | c / sqrt(c^2 + n^2) | |
| `DeltaClip` | min(1, max(delta, c / n)) | Tucat et al. 2024, arXiv:2404.08624 |
| `SkipClip` | 1 if n <= c, else 0 | |

Those without one are in `_normalize.py`; thresholds that adapt or are drawn at random
are policies, in `policy/`.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._schedule import as_schedule
from .._types import RealScalarLike, Schedule, Step
from ._base import AbstractClip, at, ratio


class Identity(AbstractClip):
    """No clipping: the factor is 1."""

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        del step
        return jnp.ones_like(jnp.asarray(norm, dtype=jnp.result_type(norm, 0.0)))

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class HardClip(AbstractClip):
    r"""The gradient, shortened to length $c$ where it is longer.

    $$f(n) = \min(1, c / n).$$

    At the tie $n = c$ the derivative is that of the inactive side. With $c = \infty$ it
    is the identity, and a zero gradient stays zero whatever $c$.

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm: a number, an array or
        a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, c = at(self.threshold, norm, step)
        # The operand is made safe before the division, and the result selected after
        # it: 0 / 0 and inf / inf would poison the derivative of the other branch.
        # Written so that a threshold that is no number leaves nothing unclipped.
        active = ~(norm <= c)
        clipped = ratio(jnp.where(active, c, 1.0), jnp.where(active, norm, 1.0))
        return jnp.where(active, clipped, 1.0)

    def kinks(self, step: Step) -> tuple[Float[Array, "..."]]:
        return (self.threshold(step),)


class SoftClip(AbstractClip):
    r"""A smooth clip: the gradient's length $n$ becomes $c n / (c + n) < c$.

    $$f(n) = \frac{c}{c + n}.$$

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm: a number, an array or
        a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, c = at(self.threshold, norm, step)
        # c / (c + n), which is 0 / 0 at the origin and inf / inf without a threshold.
        regular = ~(jnp.isinf(c) | (c + norm <= 0))
        c, norm = jnp.where(regular, c, 1.0), jnp.where(regular, norm, 0.0)
        return ratio(c, c + norm)

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class RootSoftClip(AbstractClip):
    r"""A smooth clip that agrees with the identity to second order at small gradients.

    $$f(n) = \frac{c}{\sqrt{c^2 + n^2}}.$$

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm: a number, an array or
        a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, c = at(self.threshold, norm, step)
        regular = ~(jnp.isinf(c) | (c + norm <= 0))
        c, norm = jnp.where(regular, c, 1.0), jnp.where(regular, norm, 0.0)
        # Scaled, since the squares alone overflow float32 at 2e19. The scale cancels,
        # so its derivative is left out.
        scale = jax.lax.stop_gradient(jnp.maximum(c, norm))
        return (c / scale) / jnp.sqrt((c / scale) ** 2 + (norm / scale) ** 2)

    def kinks(self, step: Step) -> tuple[()]:
        del step
        return ()


class DeltaClip(AbstractClip):
    r"""Regularized clipping: a hard clip whose factor never falls below $\delta$.

    $$f(n) = \min\{1, \max\{\delta, c / n\}\}.$$

    A gradient up to $c$ is left alone, one up to $c / \delta$ is shortened to $c$, and
    a longer one is multiplied by $\delta$. $\delta = 0$ is `HardClip`, $\delta \ge 1$
    the identity.

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm.
    - `delta`: $\delta \ge 0$, dimensionless.

    Each is a number, an array or a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))
    delta: Schedule = eqx.field(converter=partial(as_schedule, name="delta"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        hard = HardClip(self.threshold).factor(norm, step)
        _, delta = at(self.delta, norm, step)
        # A tie goes to the hard clip and to the identity: the inactive sides.
        floored = jnp.where((delta > hard) | jnp.isnan(delta), delta, hard)
        return jnp.where(floored >= 1, jnp.ones_like(floored), floored)

    def kinks(self, step: Step) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        c = jnp.asarray(self.threshold(step))
        delta = jnp.asarray(self.delta(step))
        floored = delta > 0
        end = c / jnp.where(floored, delta, 1.0)
        return c, jnp.where(floored, end, jnp.inf)


class SkipClip(AbstractClip):
    r"""The gradient, or nothing where it is too long.

    $$f(n) = \begin{cases} 1 & n \le c \\ 0 & n > c. \end{cases}$$

    A step that a spike would have made is not made at all. In a chain the optimiser
    that follows is given a zero gradient, so that its momentum goes on.

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm: a number, an array or
        a function of the step.
    """

    threshold: Schedule = eqx.field(converter=partial(as_schedule, name="threshold"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        norm, c = at(self.threshold, norm, step)
        kept = jnp.where(norm <= c, jnp.ones_like(norm), jnp.nan)
        return jnp.where(norm > c, jnp.zeros_like(norm), kept)

    def kinks(self, step: Step) -> tuple[Float[Array, "..."]]:
        return (self.threshold(step),)
