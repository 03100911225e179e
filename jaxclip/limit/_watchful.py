"""Adaptive steps that stop where schedules jump or turn, and give up in time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
from equinox.internal import nextafter, prevbefore
from jaxtyping import Array, Bool

from .._types import RealScalar, RealScalarLike
from ._lookout import Lookout
from ._reading import Reading

# That of the controller inside; how far schedules have been looked at; and the step
# that the controller wanted when it was last cut short.
_State: TypeAlias = tuple[Any, Lookout, RealScalar]
# The result of a solution that has grown beyond all bounds, or whose steps have shrunk
# to nothing: diffrax's own for the latter, which the controller inside never gives.
DIVERGED = diffrax.RESULTS.dt_min_reached


class Watchful(diffrax.AbstractAdaptiveStepSizeController[_State, Any]):
    """A controller that cuts its steps short at the stops of a [`Reading`][].

    It ends the solution where it diverges: diffrax's own would shrink its steps as
    often as `max_steps` allows, and no further once an error is no number.

    **Fields:**

    - `controller`: the one that chooses steps by their error.
    - `reading`: where to stop.
    - `bound`: a sum of the entries of the solution above this counts as infinite.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController
    reading: Reading
    bound: RealScalarLike

    def __init__(
        self,
        controller: diffrax.AbstractAdaptiveStepSizeController,
        reading: Reading,
        bound: RealScalarLike = jnp.inf,
    ):
        self.controller, self.reading, self.bound = controller, reading, bound

    # Variables in diffrax's types, and here those of the controller inside.
    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction: Any) -> "Watchful":
        # Time only goes forwards here.
        controller: Any = self.controller.wrap(direction)
        return Watchful(controller, self.reading, self.bound)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        end, inner = self.controller.init(
            terms, t0, t1, y0, dt0, args, func, error_order
        )
        # The first guess divides by what may be 0: at a rate of 0, or on a solution.
        end = jnp.where(end > t0, end, t1)
        start = self.reading.lookout(jnp.asarray(t0))
        end, lookout, wish = self._cut(jnp.asarray(t0), end, start)
        return end, (inner, lookout, wish)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        inner, lookout, wish = controller_state
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        kept, next_t0, next_t1, _, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        kept = kept & _all_finite(y1_candidate)
        # An error that is no number is a step that was far too long.
        dt = jnp.where(next_t1 > next_t0, next_t1 - next_t0, (t1 - t0) / 5)
        # A step that was cut short says little about how long the next may be.
        dt = jnp.where(kept, jnp.maximum(dt, wish), dt)
        stop = self.reading.next_stop(t0, lookout)
        at_stop = kept & (t1 >= prevbefore(stop))
        next_t0 = jnp.where(kept, jnp.where(at_stop, stop, t1), t0)
        next_t1, lookout, wish = self._cut(next_t0, next_t0 + dt, lookout)

        least = jnp.finfo(t1.dtype).eps * jnp.maximum(t1, 1e-6 * self.reading.end)
        stuck = ~kept & ~(t1 - t0 > 4 * least)
        large = kept & (_total(y1_candidate) > self.bound)
        failed = (stuck | large) & (result == diffrax.RESULTS.successful)
        result = diffrax.RESULTS.where(failed, DIVERGED, result)
        return kept, next_t0, next_t1, at_stop, (inner, lookout, wish), result

    def _cut(self, t0: RealScalar, t1: RealScalar, lookout: Lookout):
        """The end of the next step, no later than just before a stop."""
        t0, t1, lookout = jax.lax.stop_gradient((t0, t1, lookout))
        lookout = self.reading.look(lookout, t0, t1)
        last = prevbefore(self.reading.next_stop(t0, lookout))
        cut = t1 > last
        # Two stops may be neighbouring numbers of the clock.
        end = jnp.where(cut, jnp.maximum(last, nextafter(t0)), t1)
        return end, lookout, jnp.where(cut, t1 - t0, jnp.zeros_like(t0))


class WatchedTerm(diffrax.AbstractTerm[Any, RealScalar]):
    """A vector field, whose steps are as long as the [`Reading`][] says.

    **Fields:**

    - `field`: a function of the step, the solution and the solver's `args`.
    - `reading`: where the steps end.
    """

    field: Callable[[RealScalarLike, Any, Any], Any]
    reading: Reading

    def vf(self, t, y, args):
        return self.field(t, y, args)

    def contr(self, t0, t1, **kwargs):
        del kwargs
        return self.reading.length(t0, t1)

    def prod(self, vf, control):
        return jax.tree.map(lambda v: control.astype(v.dtype) * v, vf)


def _all_finite(y: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(y)]).all()


def _total(y: Any) -> RealScalar:
    return jnp.stack([jnp.sum(leaf) for leaf in jax.tree.leaves(y)]).sum()
