r"""A diffrax solver for the modes of a linear model.

Every mode of the risk ODE decays at its own eigenvalue times one common rate,

$$\frac{du_j}{dk} = \lambda_j \left(-2 q\, u_j + \tfrac12 g f_j\right),
\qquad q = q(k, R), \quad g = g(k, R), \quad R = \sum_j u_j,$$

so that in the clock $d\tau = q\,dk$ the decay is exact and only the two coefficients,
functions of one number, have to be approximated over a step. However stiff the spectrum
and however many its modes, a step has three unknowns: the risk at its inner nodes.
Derived here.
"""

from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalarLike
from ._collocation import Collocation, ModeEquation, State
from ._interpolation import Path


class ExponentialModes(diffrax.AbstractAdaptiveSolver):
    """The exponential integrator of a [`jaxclip.limit.ModeEquation`][].

    It is a solver for diffrax, which is given the equation as `args`.

    Order 6 in the step where the coefficients are smooth; the error estimate is of
    order 4. It may be differentiated any number of times, in both modes.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = Path

    def order(self, terms: Any) -> int:
        del terms
        # Collocation at the four Lobatto nodes, both ends of a step among them.
        return 6

    def error_order(self, terms: Any) -> int:
        del terms
        # Of the difference from the quadratics that leave one of the nodes out.
        return 4

    def init(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
    ) -> State:
        del terms, t1
        # The end of a step is the first node of the next: its coefficients are handed
        # on, and each step evaluates them at three nodes and not at four.
        return args.at(t0, jnp.sum(y0))

    def func(
        self,
        terms: Any,
        t0: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
    ) -> Float[Array, " n"]:
        # Asked for only where the first step is chosen.
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Float[Array, " n"],
        args: ModeEquation,
        solver_state: State,
        made_jump: Any,
    ) -> tuple[
        Float[Array, " n"],
        Float[Array, " n"],
        dict[str, Array],
        State,
        diffrax.RESULTS,
    ]:
        del terms
        # A Python `False` where no jump is possible, and a traced boolean elsewhere.
        if made_jump is not False:
            # Those from before the jump are of another schedule.
            solver_state = jax.lax.cond(
                made_jump, lambda: args.at(t0, jnp.sum(y0)), lambda: solver_state
            )
        # Before a jump `t1` is the last number below it, at which schedules are read;
        # the modes decay up to the jump itself.
        end = t0 + args.reading.length(t0, t1)
        return Collocation(args, y0, t0, t1, end, solver_state).step()
