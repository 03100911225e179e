"""The clip of SPIDER's step, which is tighter than a hard clip at steep places."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics import safe_sqrt
from .._schedule import as_schedule
from .._types import RealScalarLike, Schedule, Step
from ._base import AbstractClip
from ._rules import HardClip


class SpiderClip(AbstractClip):
    r"""The step of variance-reduced SGD on an $(L_0, L_1)$-smooth loss.

    $$f(n) = \min\{1, c_0 / n, c_1 / n^2\}, \qquad
    c_0 = 2\varepsilon, \quad c_1 = 2 \varepsilon L_0 / L_1.$$

    With the learning rate $1 / (2 L_0)$ the step is
    $\min\{1/(2 L_0), \varepsilon/(L_0 n), \varepsilon/(L_1 n^2)\}$ times the estimated
    gradient: a step of full length, one of length $\varepsilon / L_0$, and at a norm
    above $L_0 / L_1$, where the loss bends more than $L_0$ says, a shorter one still.
    The rule of "Reisizadeh et al., Variance-reduced clipping for non-convex
    optimization" (arXiv:2303.00883).

    **Arguments:**

    - `l0`: $L_0 \ge 0$, the largest curvature at a stationary point, in the unit of the
        gradient over that of the parameters.
    - `l1`: $L_1 \ge 0$, by how much the curvature grows with the gradient's norm, in
        one over the unit of the parameters. Zero makes the rule `HardClip(2 eps)`.
    - `eps`: $\varepsilon \ge 0$, the gradient's norm to be reached, in its unit.

    Each is a number, an array or a function of the step.
    """

    l0: Schedule = eqx.field(converter=partial(as_schedule, name="l0"))
    l1: Schedule = eqx.field(converter=partial(as_schedule, name="l1"))
    eps: Schedule = eqx.field(converter=partial(as_schedule, name="eps"))

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        linear = HardClip(self._linear).factor(norm, step)
        # c1 / n^2 as a square: neither n^2 nor its derivative overflows.
        square = HardClip(self._root).factor(norm, step) ** 2
        factor = jnp.where(square < linear, square, linear)
        # A number that is none would be taken for a kink that is not there.
        numbers = [jnp.asarray(f(step)) for f in (self.l0, self.l1, self.eps)]
        lost = jnp.isnan(numbers[0]) | jnp.isnan(numbers[1]) | jnp.isnan(numbers[2])
        return jnp.where(lost, jnp.nan, factor)

    def kinks(self, step: Step) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        c0, root = self._linear(step), self._root(step)
        # Beyond eps = L0 / (2 L1) the middle piece is empty, and the only kink is where
        # the square takes over.
        apart = root > c0
        end = root * (root / jnp.where(c0 > 0, c0, 1.0))
        return jnp.minimum(c0, root), jnp.where(apart & (c0 > 0), end, jnp.inf)

    def _linear(self, step: Step) -> Float[Array, "..."]:
        """The threshold $c_0$."""
        return 2 * jnp.asarray(self.eps(step))

    def _root(self, step: Step) -> Float[Array, "..."]:
        r"""The threshold $\sqrt{c_1}$ of the square."""
        l0, l1 = jnp.asarray(self.l0(step)), jnp.asarray(self.l1(step))
        bent = l1 > 0
        # Two roots, since the product could overflow.
        root = safe_sqrt(self._linear(step)) * safe_sqrt(l0 / jnp.where(bent, l1, 1.0))
        return jnp.where(bent, root, jnp.inf)
