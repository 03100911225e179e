"""Functions of the step: where learning rates and thresholds get their values from."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ._checks import as_float, check, is_traced, nonnegative
from ._picture import around_knots, draw_knots, draw_level, need_one, vector
from ._repr import Shown, show
from ._static import hashable
from ._types import RealScalarLike, Schedule, Step


class Constant(Shown):
    """The same value at every step.

    A bare number that is given as a learning rate or a threshold becomes one of these.

    **Arguments:**

    - `value`: a non-negative number, or an array of them, in the unit of what it is the
        value of; infinity is allowed.
    """

    # An array leaf, not static: a threshold is there to be swept and tuned.
    value: Float[Array, "..."]

    def __init__(self, value: Real[Array, "..."] | RealScalarLike):
        self.value = as_float("value", value)

    def __call__(self, step: Step) -> Float[Array, "..."]:
        del step
        return self.value

    def plot(
        self,
        ax: Any = None,
        *,
        steps: Real[Any, " s"] | None = None,
        label: str | None = None,
    ) -> Any:
        """Draws the value against the step. Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `steps`: shape `(s,)`, the steps at which to draw; by default a line across
            all of the axes.
        - `label`: the name of the line in a legend.

        **Returns:**

        The axes. The vertical one is logarithmic, unless the value is 0.

        **Raises:**

        A `ValueError` of several values, of which one is to be taken.
        """
        need_one("schedule", self, {"`value`": self.value.shape})
        at = None if steps is None else vector("steps", steps)
        return draw_level(ax, float(self.value), at, label)

    def shown_within(self) -> str:
        return show(self.value)


class PiecewiseLinear(Shown):
    r"""A positive function of the step whose logarithm is piecewise linear.

    $$\log f(k) = \text{linear interpolation of } (k_i, \log f_i),$$

    constant before the first knot and after the last.

    The logarithms are the leaves, so that a gradient step keeps the values positive:
    this is the form to hand to [`jaxclip.tune`][]. One knot makes a tunable positive
    constant.

    **Arguments:**

    - `knots`: shape `(n,)`, in steps, increasing. Not differentiated: a tuner moves the
        values and leaves the knots where they are.
    - `values`: shape `(n,)`, positive and finite, in the unit of what is scheduled.

    **Raises:**

    A `ValueError` where the shapes differ, the knots do not increase or a value is not
    positive and finite.
    """

    knots: Float[Array, " n"]
    log_values: Float[Array, " n"]

    def __init__(
        self,
        knots: Real[Any, "..."] | RealScalarLike,
        values: Real[Any, "..."] | RealScalarLike,
    ):
        knots = jnp.atleast_1d(as_float("knots", knots))
        values = jnp.atleast_1d(as_float("values", values))
        if knots.ndim != 1 or knots.shape != values.shape:
            raise ValueError(
                "`knots` and `values` must be two vectors of the same length. "
                f"Got shapes {knots.shape} and {values.shape}."
            )
        knots = check(
            knots, lambda k: ~(k[1:] > k[:-1]), "`knots` must be strictly increasing."
        )
        values = check(
            values,
            lambda v: ~((v > 0) & (v < jnp.inf)),
            "`values` must be positive and finite: their logarithm is interpolated.",
        )
        self.knots = knots
        self.log_values = jnp.log(values)

    def __repr__(self) -> str:
        knots, values = show(self.knots), show(self.values)
        return f"PiecewiseLinear(knots={knots}, values={values})"

    @property
    def values(self) -> Float[Array, " n"]:
        """The values at the knots, shape `(n,)`."""
        return jnp.exp(self.log_values)

    def __call__(self, step: Step) -> Float[Array, ""]:
        # Without `stop_gradient` a tuner would slide the knots along the time axis.
        knots = jax.lax.stop_gradient(self.knots)
        step = jnp.asarray(step, knots.dtype)
        return jnp.exp(jnp.interp(step, knots, self.log_values))

    def plot(
        self,
        ax: Any = None,
        *,
        steps: Real[Any, " s"] | None = None,
        label: str | None = None,
    ) -> Any:
        """Draws the values against the step, with a mark at each knot. On the
        logarithmic axis the pieces are straight. Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `steps`: shape `(s,)`, the steps at which to draw; by default from 0, or from
            the first knot where it is negative, to a little beyond the last knot.
        - `label`: the name of the line in a legend.

        **Returns:**

        The axes.

        **Raises:**

        A `ValueError` of a batch, of which one is to be taken.
        """
        need_one("schedule", self, {"a row of `knots`": self.knots.shape[:-1]})
        knots = np.asarray(self.knots, np.float64)
        at = around_knots(knots) if steps is None else vector("steps", steps)
        return draw_knots(ax, (at, jax.vmap(self)(jnp.asarray(at))),
                          (knots, np.asarray(self.values)), label)  # fmt: skip


class FromFunction(Shown):
    """A plain function of the step, such as an optax schedule.

    It is held as structure: functions are no array leaves, and `jax.jit` and `jax.vmap`
    must be able to pass a rule that holds one.
    """

    function: Callable[[Any], Any] = eqx.field(static=True)
    name: str = eqx.field(static=True, default="value")

    def __call__(self, step: Step) -> Float[Array, "..."]:
        # A function may well return a Python number, or an integer.
        return as_float(self.name, self.function(step))

    def shown_within(self) -> str:
        return show(self.function)


class Ratio(Shown):
    """A schedule divided by another."""

    numerator: Schedule
    denominator: Schedule

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.numerator(step) / self.denominator(step)


def as_schedule(value: Any, name: str = "value") -> Schedule:
    """A function of the step out of a number, an array or a function of the step.

    **Arguments:**

    - `value`: a non-negative number, an array of them, or a function of the step.
    - `name`: what an error calls it.

    **Returns:**

    `value` itself if it is a pytree that can be called (its numbers stay leaves),
    otherwise a [`jaxclip.Constant`][] or a wrapper of the function.
    """
    if isinstance(value, eqx.Module) and callable(value):
        return value
    if callable(value):
        return FromFunction(hashable(value), name)
    return Constant(nonnegative(name, value, in_step=True))


def check_rate(lr: Any, steps: Real[Array, " s"]) -> Schedule:
    """A learning rate as a function of the step, checked at the steps given.

    What a function returns elsewhere is not checked.
    """
    schedule = as_schedule(lr, "lr")
    if isinstance(schedule, Constant):
        value = schedule.value
        if value.shape != ():
            raise ValueError(
                "`lr` must be one number or a function of the step; `jax.vmap` over "
                f"several. Got shape {value.shape}."
            )
        return Constant(nonnegative("lr", value))
    values = nonnegative("lr", jax.vmap(lambda k: jnp.asarray(schedule(k)))(steps))
    if not is_traced(values):
        return schedule
    return Checked(schedule, jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, 1.0))


class Checked(eqx.Module):
    """A schedule whose check must stay in the compiled program.

    The factor is 1 and hangs on the check, which would be removed as dead code if
    nothing did.
    """

    schedule: Schedule
    one: Float[Array, ""]

    def __call__(self, step: Step) -> Float[Array, ""]:
        return self.schedule(step) * self.one
