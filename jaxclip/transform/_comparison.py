"""How the gradients of the examples of a batch lie to each other: each one to the mean
of the others."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Params
from ..clip import policy
from ._direction import Direction, against, along, direction
from ._examples_spread import Axes, sum_of_all
from ._pieces import Seen, add, visit_all
from ._scope_example import PerExample
from ._units import Units, any_real, joined
from ._varying import vary, varying_axes


class Comparison(NamedTuple):
    """The comparison of a batch that is gone through a piece at a time.

    - `look`: of a piece the gradients, or None where they are not formed, and what is
        seen.
    - `gradient_of_sum`: of a piece, weights, and what is kept, the gradient of the
        weighted sum of losses.
    - `along`: of a piece, its norms, a direction, and with how many others each unit
        is in it, how the gradients lie to it, without any of them.
    - `metric`: what is compared in, or None.
    - `axes`: over which the examples are spread, inside of `shard_map`.
    """

    look: Callable[[Units], tuple[Params | None, Seen]]
    gradient_of_sum: Callable[[Units, Array, Array], Params]
    along: Callable[[Units, Array, Direction, Array], policy.Along]
    metric: Params | None
    scope: PerExample
    axes: Axes

    def run(
        self, start: Params, pieces: Units, size: int, drop_nonfinite: bool
    ) -> Seen:
        """What is seen of all units, their comparison among it.

        **Arguments:**

        - `start`: zeros like the parameters, what sums over pieces begin with.
        - `size`: how many units there are, without those that fill the last piece.
        - `drop_nonfinite`: whether some are left out that look is needed to know.
        """
        kept = jax.vmap(any_real)(pieces.real)
        if drop_nonfinite:
            # They are in no sum, so they have to be known first.
            measure = lambda nothing, piece: (nothing, self.look(piece)[1])  # noqa: E731
            kept = visit_all(measure, None, pieces)[1].kept
        to = self._of_sum(start, pieces, kept)
        others = others_than(kept, self.axes)

        def compare(nothing: None, piece: Units) -> tuple[None, Seen]:
            gradients, seen = self.look(piece)
            if gradients is None:
                across = self.along(piece, seen.norms, to, others)
            else:
                across = along(gradients, seen.norms, to, self.scope, others)
            return nothing, seen._replace(along=across)

        return joined(visit_all(compare, None, pieces)[1], size)

    def _of_sum(
        self, start: Params, pieces: Units, kept: Bool[Array, "p u"]
    ) -> Direction:
        """The sum of all gradients that are kept, by a plain backward pass."""

        def visit(total: Params, both: tuple[Units, Array]) -> tuple[Params, None]:
            piece, kept = both
            part = self.gradient_of_sum(piece, kept.astype(float), kept)
            return jax.tree.map(add, total, part), None

        total = visit_all(visit, start, (pieces, kept))[0]
        to = direction(sum_of_all(total, self.axes), self.metric, self.scope)
        # The direction is that of all, and the parameters are each device's own.
        return to._replace(dual=vary(to.dual, varying_axes(start)))


def along_others(
    gradients: Params,
    own: Float[Array, " n"],
    counted: Bool[Array, " n"],
    metric: Params | None,
    scope: PerExample,
    axes: Axes,
) -> policy.Along:
    """How each example's gradient lies to the mean of the others' that count.

    **Arguments:**

    - `gradients`, `own`: of this device's examples.
    - `axes`: over which all examples are spread.
    """
    sum_ = scope.within.total(gradients, counted.astype(own.dtype))
    to = direction(sum_of_all(sum_, axes), metric, scope)
    return along(gradients, own, to, scope, others_than(counted, axes))


def others_than(counted: Bool[Array, "..."], axes: Axes) -> Float[Array, ""]:
    """With how many others each of the examples that count is in their sum."""
    return sum_of_all(jnp.sum(counted, dtype=jnp.result_type(float)), axes) - 1


def along_by_derivatives(
    loss: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    units: Any,
    own: Float[Array, " u"],
    to: Direction,
    others: Float[Array, ""],
) -> policy.Along:
    """The same without any gradient: the product of each with one direction is a
    forward-mode derivative of its loss."""
    # JAX's gradient in a complex number is the conjugate of the direction of ascent.
    tangent = jax.tree.map(lambda d, x: jnp.conj(d).astype(x.dtype), to.dual, params)

    def product(unit: Any) -> Array:
        return jax.jvp(lambda params: loss(params, unit), (params,), (tangent,))[1]

    products = jax.vmap(product)(units).astype(own.dtype)
    return against(own, products, to, others)


def need_others(examples: int) -> None:
    """Raises where an example has none to be compared with."""
    if examples == 1:
        raise ValueError(
            "`policy.Criterion` compares each example of a batch with the others, and "
            "there is one. Give it at least two; for one example a step take the scope "
            "`PerTree()`, which compares it with those before."
        )
