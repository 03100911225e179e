r"""How a limit reads schedules: as SGD does, at whole steps, and all of them.

SGD never calls a schedule between two steps, so that a function of the step may jump
from one to the next, and an adaptive solver, which looks at a few points, would not
notice. Here every whole step is looked at, and one interval of a step, a *cell*
$[k, k + 1)$, is one of three kinds:

- smooth: the schedule is read as it is, at fractions of a step too;
- smooth, and a jump at its end: the same, up to the jump, which the solver stops at;
- rough, where the jump is inside: the value at $k$, which is what SGD uses in step
  $k$, is held over the cell, and the solver stops at both of its ends.

The solver also stops where a schedule turns from rising to falling. Between two stops
every schedule is monotone, so that whatever it does shows at one of the ends, where
the solver looks. Derived here.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.internal import prevbefore
from jaxtyping import Array, Bool, Float

from .._schedule import Checked, Constant, PiecewiseLinear, Ratio
from .._types import RealScalar, RealScalarLike, Schedule, Step
from ..clip import AbstractClip
from ._cells import (
    first_sign,
    goes_on,
    kinds_of,
    look_inside,
    signs_in,
    value_at,
    values_in,
)
from ._lookout import Lookout

# Cells that are looked at together.
_CHUNK = 256
# And those that are looked at from afar first, and every how many of them from near.
_FAR, _EACH = 1024, 16
# Runs with more steps are looked at in so many cells, of more than one step each.
_CELLS = 2**20
# A schedule with at most so many knots is stopped at for each of them.
_KNOTS = 64


class Reading(eqx.Module):
    """The times at which a solver reads schedules, and at which it must stop.

    **Fields:**

    - `signals`: functions of the step that may do anything from one step to the next.
    - `knots`: shape `(n,)`, increasing: kinks of schedules that are known to have no
        others; infinite where there are fewer.
    - `end`: the last step of the run.
    """

    signals: tuple[Schedule, ...]
    knots: Float[Array, " n"]
    end: RealScalar

    @classmethod
    def of(cls, settings: Any, end: RealScalar) -> "Reading":
        """The reading of all schedules in a rule and a rate."""
        numbers, rest = eqx.partition(settings, eqx.is_inexact_array)
        settings = eqx.combine(jax.lax.stop_gradient(numbers), rest)
        signals: list[Schedule] = []
        lines: list[PiecewiseLinear] = []
        for node in jax.tree.leaves(settings, is_leaf=is_schedule):
            if isinstance(node, PiecewiseLinear):
                lines.append(node)
            elif isinstance(node, AbstractClip):
                signals.append(_OfRule(node))
            elif is_schedule(node) and not isinstance(node, Constant):
                signals.append(node)
        end = jax.lax.stop_gradient(end)
        return cls(tuple(signals), _stops_of(lines, end.dtype), end)

    @property
    def width(self) -> RealScalar:
        """The length of a cell: one step, or, where the clock's precision or the number
        of steps asks for more, a power of two of them."""
        dtype = self.end.dtype
        finest = jnp.maximum(self.end / _CELLS, 32 * jnp.finfo(dtype).eps * self.end)
        return jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(finest, 1.0)))).astype(dtype)

    def at(self, step: Step) -> RealScalar:
        """Where the schedules are read at a time of the clock."""
        step = jnp.asarray(step, self.end.dtype)
        if not self.signals:
            return step
        width = self.width
        # What SGD does in a step that it does not make does not count.
        tiny = width * 2.0**-10
        inside = jnp.minimum(step, self.end - jnp.minimum(tiny, self.end))
        cell = jnp.floor(inside / width) * width
        edges = jnp.stack([cell, cell + width])
        values = [values_in(signal, edges, width) for signal in self.signals]
        rough, jumps = (kind[0] for kind in kinds_of(values))
        before = jnp.maximum(tiny, 4 * jnp.finfo(step.dtype).eps * cell)
        smooth = jnp.where(jumps, jnp.minimum(step, cell + width - before), step)
        return jax.lax.stop_gradient(jnp.where(rough, cell, smooth))

    def length(self, start: RealScalarLike, end: RealScalarLike) -> RealScalar:
        """The length of a solver's step, which ends just before a stop: in float32 what
        is left out there is no small part of one step of SGD."""
        end = jnp.asarray(end, self.end.dtype)
        if not self.signals:
            return end - start
        width = self.width
        stop = jnp.round(end / width) * width
        return jnp.where(prevbefore(stop) == end, stop, end) - start

    def lookout(self, start: RealScalar) -> "Lookout":
        """The state of the look-out at the start, before anything has been looked
        at."""
        cell = jnp.floor(start / self.width) * self.width
        trends = [0 * value_at(signal, cell) for signal in self.signals]
        return Lookout(cell, jnp.full_like(cell, jnp.inf), tuple(trends))

    def next_stop(self, step: RealScalar, lookout: "Lookout") -> RealScalar:
        """The first time after a step at which the solver must stop, such as a jump of
        a schedule, as far as has been looked; infinite where there is none."""
        ahead = jnp.where(self.knots > step, self.knots, jnp.inf)
        return jnp.minimum(jnp.min(ahead, initial=jnp.inf), lookout.stop)

    def look(
        self, lookout: "Lookout", step: RealScalar, until: RealScalar
    ) -> "Lookout":
        """Looks for the next stop after a step, up to a time, if none is known."""
        if not self.signals:
            return lookout
        passed = lookout.stop <= step
        stop = jnp.where(passed, jnp.inf, lookout.stop)
        until = jnp.minimum(until, self.end)

        def unfinished(lookout):
            return jnp.isinf(lookout.stop) & (lookout.seen < until)

        def look_on(lookout):
            # A look from afar costs a fifth, and is mostly enough.
            quiet, after = self._glance(lookout)
            return jax.lax.cond(quiet, lambda: after, lambda: self._scan(lookout, step))

        start = Lookout(lookout.seen, stop, lookout.trends)
        return jax.lax.while_loop(unfinished, look_on, start)

    def _glance(self, lookout: "Lookout") -> tuple[Bool[Array, ""], "Lookout"]:
        """Whether nothing happens in a chunk, as far as whole steps and the inside of
        some cells tell: a jump changes a schedule by more than the steps beside it do,
        unless it jumps at each of them, which any cell tells."""
        width = self.width
        edges = lookout.seen + width * jnp.arange(_FAR + 1, dtype=width.dtype)
        quiet, trends, inside = jnp.ones((), bool), [], []
        for signal, old in zip(self.signals, lookout.trends, strict=True):
            values = jax.vmap(lambda step, of=signal: value_at(of, step))(edges)
            even, trend = goes_on(values, old)
            quiet, trends = quiet & even, [*trends, trend]
            # The cells looked into are not neighbours: each by itself.
            ends = values[:-1:_EACH], values[1::_EACH]
            inside.append(look_inside(signal, edges[:-1:_EACH], ends, width))
        rough, jumps = kinds_of(inside)
        quiet &= ~jnp.any(rough | jumps)
        return quiet, Lookout(edges[-1], lookout.stop, tuple(trends))

    def stops(self, most: int) -> Float[Array, " n"]:
        """The first so many stops, infinite where there are fewer."""

        def next_one(carry, _):
            step, lookout = carry
            lookout = self.look(lookout, step, self.end)
            stop = self.next_stop(step, lookout)
            return (stop, lookout), stop

        start = jnp.zeros_like(self.end)
        carry = start, self.lookout(start)
        return jax.lax.scan(next_one, carry, None, length=most)[1]

    def _scan(self, lookout: "Lookout", step: RealScalar) -> "Lookout":
        """Looks at one chunk of cells, or at those of it before the first stop."""
        index = jnp.arange(_CHUNK + 1, dtype=step.dtype)
        edges = lookout.seen + self.width * index
        values = [values_in(signal, edges, self.width) for signal in self.signals]
        rough, jumps = kinds_of(values)
        # At the start of a rough cell, and where one ends that is not smooth. What
        # happens at the start of the chunk was seen with the chunk before.
        no = jnp.zeros(1, bool)
        stops = jnp.append(rough, no) | jnp.concatenate([no, rough | jumps])
        signs = [signs_in(value, ~(rough | jumps)) for value in values]
        trends = [
            jnp.where(trend == 0, first_sign(sign), trend)
            for sign, trend in zip(signs, lookout.trends, strict=True)
        ]
        for sign, trend in zip(signs, trends, strict=True):
            stops |= jnp.append(jnp.any(sign * trend[None, :] < 0, axis=1), no)
        stops &= edges > step
        some = jnp.any(stops)
        last = jnp.where(some, jnp.argmax(stops), _CHUNK)
        # The direction that each schedule takes from there on, or had until there.
        trends = [
            jnp.where(next_sign == 0, trend, next_sign)
            for sign, trend in zip(signs, trends, strict=True)
            for next_sign in [jnp.append(sign, 0 * sign[:1], axis=0)[last]]
        ]
        stop = jnp.where(some, edges[last], jnp.inf)
        return Lookout(edges[last], stop, tuple(trends))


class _OfRule(eqx.Module):
    """What can be seen of a rule that the package does not know, over the steps."""

    clip: AbstractClip

    def __call__(self, step: Step) -> Float[Array, " n"]:
        norms = jnp.logspace(-6, 6, 13, dtype=jnp.result_type(float))
        seen = [self.clip.factor(norms, step), *self.clip.kinks(step)]
        return jnp.concatenate(
            [jnp.ravel(jnp.asarray(x, jnp.result_type(float))) for x in seen]
        )


def is_schedule(node: Any) -> bool:
    """Whether a node of a rule or a rate is a function of the step by itself: of a rule
    that is not the package's own, it is not known what it makes of the step."""
    if isinstance(node, AbstractClip):
        return type(node).__module__.partition(".")[0] != __name__.partition(".")[0]
    composite = isinstance(node, Ratio | Checked)
    return isinstance(node, eqx.Module) and callable(node) and not composite


def _stops_of(lines: list[PiecewiseLinear], dtype: Any) -> Float[Array, " n"]:
    """The knots to stop at: all where they are few; where they are many, those where a
    schedule turns, since to stop at each of hundreds costs more than to feel the way
    over their small kinks."""
    count = sum(len(line.knots) for line in lines)
    knots = [jnp.zeros(0, dtype)]
    for line in lines:
        stops = line.knots
        if len(stops) > 2 and count > _KNOTS:
            rises = jnp.sign(jnp.diff(line.log_values))
            turns = rises[1:] * rises[:-1] < 0
            stops = jnp.where(turns, stops[1:-1], jnp.inf)
        knots.append(stops.astype(dtype))
    return jax.lax.stop_gradient(jnp.sort(jnp.concatenate(knots)))
