"""What a clipping rule is: a multiplier of a gradient, as a function of its norm."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._repr import Shown
from .._types import RealScalarLike, Schedule, Step
from ._figure import draw_rule


class NoTransform(Shown):
    """What belongs into `as_transform` and not into a chain: an optax chain asks for
    `init` and `update`, and is told so."""

    @property
    def init(self) -> Any:
        """No optax transform: asking for this says what to do."""
        raise no_transform(self, "rule")

    @property
    def update(self) -> Any:
        """No optax transform: asking for this says what to do."""
        raise no_transform(self, "rule")


class AbstractClip(NoTransform):
    r"""A clipping rule. A gradient $g$ of norm $n = \|g\|$ becomes $f(n)\,g$.

    Everything else is derived from the two methods below: the optax transform, SGD,
    and the coefficients of the limits, which see the rule through
    $\psi(r) = r f(|r|)$.

    **An author must guarantee**, and the library does not check, that

    - both methods are pure and traceable: JAX operations, no branch in Python on a
        value. A norm, a step and a threshold may all be traced;
    - `factor` works elementwise on an array of norms of any shape, and returns their
        dtype: a float64 threshold must not lift a float32 gradient;
    - it is finite and not negative at every norm, 0 and very large ones included, and
        so is its derivative: at norm 0 no 0/0 on a side of a `where` that is not taken;
    - it is smooth in the norm except at the points that `kinks` lists. A kink that is
        not listed makes the moments inaccurate, and where $\psi$ jumps there, wrong;
    - it tends to a constant as the norm grows: to 0, or to the fraction of the largest
        gradients that the rule keeps;
    - `kinks` returns the same number of norms at every step. An infinite one stands for
        no kink;
    - numbers are array fields, so that they can be swept and differentiated.
    """

    @abc.abstractmethod
    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        """The multiplier $f(n)$ of a gradient.

        **Arguments:**

        - `norm`: shape `(...)`, non-negative, in the unit of the gradient.
        - `step`: the index of the SGD step; fractional in the limits.

        **Returns:**

        Shape `(...)`, dimensionless, finite at norm 0.
        """

    @abc.abstractmethod
    def kinks(self, step: Step) -> tuple[Float[Array, ""] | RealScalarLike, ...]:
        """The norms at which the factor is not smooth in the norm; `()` if none.

        **Arguments:**

        - `step`: as of `factor`.
        """

    def plot(
        self,
        ax: Any = None,
        *,
        step: Step = 0,
        norms: Real[Any, " n"] | None = None,
        label: str | None = None,
    ) -> Any:
        """Draws the factor and, on an axis to the right, the norm after clipping
        against the norm before, with a mark at each threshold and kink. Needs the extra
        `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default. Several rules
            may be drawn on one.
        - `step`: the SGD step at which thresholds are read.
        - `norms`: shape `(n,)`, the norms at which to draw, in the gradient's unit; by
            default around those at which something happens.
        - `label`: the name of the rule in the legend.

        **Returns:**

        The axes of the factor.

        **Raises:**

        A `ValueError` of a batch of rules, of which one is to be taken, and of a rule
        whose numbers are traced or no numbers.
        """
        return draw_rule(self, ax, step, norms, label)


def no_transform(value: Any, kind: str) -> AttributeError:
    """The error of a rule, or of a policy, that was put into an optax chain."""
    how = f"Adaptive({value!r})" if kind == "policy" else repr(value)
    return AttributeError(
        f"`{type(value).__name__}` is a {kind} and no optax transform. In a chain wrap "
        f"it, as in `optax.chain(jaxclip.as_transform({how}), ...)`."
    )


def at(
    schedule: Schedule, norm: Any, step: Step
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The norm as an array, and the schedule's value in the norm's precision.

    A float64 threshold must not lift a float32 gradient, nor refuse a bfloat16 one.
    """
    norm = jnp.asarray(norm)
    if not jnp.issubdtype(norm.dtype, jnp.floating):
        norm = norm.astype(jnp.result_type(float))
    return norm, jnp.asarray(schedule(step)).astype(norm.dtype)


@jax.custom_jvp
def ratio(numerator: Array, denominator: Array) -> Float[Array, "..."]:
    """The ratio, whose derivative is right wherever it can be represented.

    The usual one holds the square of the denominator, which underflows float32 at 1e-19
    already. Scaling both does not help: under `jit` XLA cancels the scale again.
    """
    return numerator / denominator


@ratio.defjvp
def _ratio_jvp(primals, tangents):
    value = ratio(*primals)
    inverse = ratio(jnp.ones_like(primals[0]), primals[1])
    # Without the barrier XLA may make one division by the square of the two.
    slope = -jax.lax.optimization_barrier(value) * inverse
    return value, tangents[0] * inverse + tangents[1] * slope
