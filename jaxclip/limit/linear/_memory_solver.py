"""The collocation of modes with momentum as a solver for diffrax."""

from typing import Any, ClassVar, TypeAlias

import diffrax
import jax
import jax.numpy as jnp

from ._memory import Forces, MemoryEquation
from ._memory_step import Inside, Step

# The forces at the end of the last step, from which the next is guessed.
_State: TypeAlias = Forces


class RadauModes(diffrax.AbstractAdaptiveSolver):
    """Radau's method with five nodes for a [`MemoryEquation`][], given as `args`.

    Order 9 in the step, with an estimate of order 5, and stable however fast the
    momentum is forgotten. It may be differentiated in both modes.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = Inside

    def order(self, terms: Any) -> int:
        del terms
        return 9

    def error_order(self, terms: Any) -> int:
        del terms
        # Of the local error, as diffrax's controllers count it.
        return 6

    def init(self, terms, t0, t1, y0, args: MemoryEquation) -> _State:
        del terms, t1
        # A guess is all that it is for: without any force nothing moves.
        shapes = jax.eval_shape(args.at, t0, jnp.sum(y0[0]))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del terms, made_jump
        # Before a jump `t1` is the last number below it, where schedules are read; the
        # modes move up to the jump itself.
        length = args.reading.length(t0, t1)
        step = Step(args, y0, jnp.asarray(t0), jnp.asarray(t1), length, solver_state)
        y1, error, path, last = step()
        dense = {"y0": y0, "path": path}
        return y1, error, dense, last, diffrax.RESULTS.successful
