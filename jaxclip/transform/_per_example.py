r"""The clipped gradient of a batch: units, pieces, weights, one sum.

Each unit $i$ has a loss $l_i$, a gradient $g_i$ with a norm, and a weight $w_i$: the
rule's factor at that norm, times what one unit counts in the reduction. The gradient is
$\sum_i w_i g_i$. It is had in one of two ways, both a piece of the batch at a time:

- *together*: the gradients of a piece, their norms, weights and weighted sum;
- *apart*: all norms first, then all weights, then the weighted sum. Adaptive thresholds
    need this, since they see the norms of the whole batch; and two passes, in which no
    gradient of a unit is ever formed: the norms come from `_layer_norms`, and the sum
    is the gradient of $\sum_i w_i l_i$.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Params, PyTree, Step
from ._comparison import Comparison, along_by_derivatives, along_others
from ._direction import directed
from ._examples_spread import Axes, axes_of, check_spread, of_all, own_of
from ._layer_norms import layer_norms
from ._parts import PolicyStates, Rules, factors
from ._pieces import Outcome, Seen, add, visit_all, zeros_like
from ._scope import times
from ._scope_example import PerExample, axis_name_of
from ._units import Units, any_real, in_pieces, joined, only_real, zero_unless
from ._varying import vary, varying_axes


class Engine(eqx.Module):
    """How a batch of units is gone through; the fields are those of `clipped_grad`, and
    the metric in which a policy compares gradients."""

    loss: Callable[..., Any] = eqx.field(static=True)
    clip: Rules
    scope: PerExample
    microbatch: int | None = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    group: int = eqx.field(static=True)
    drop_nonfinite: bool = eqx.field(static=True)
    passes: int = eqx.field(static=True)
    metric: Params | None = None

    def run(
        self,
        params: Params,
        units: Units,
        share: Float[Array, ""],
        policies: PolicyStates,
        step: Step,
    ) -> Outcome:
        """Goes through a batch that is not empty.

        **Arguments:**

        - `share`: what a unit with factor 1 counts in the sum.
        - `policies`: the states of adaptive rules, empty where there are none.
        """
        size = units.real.shape[0]
        axes = varying_axes((params, units))
        # Or else JAX adds up the gradients of all devices before they are clipped.
        params = vary(params, axes)
        pieces = in_pieces(units, min(self.microbatch or size, size))
        start = vary(zeros_like(params), axes)
        whole = pieces.real.shape[0] == 1
        together = self.passes == 1 and (whole or not policies)
        way = self._together if together else self._apart
        return way(params, start, pieces, size, share, policies, step)

    def _together(
        self,
        params: Params,
        start: Params,
        pieces: Units,
        size: int,
        share: Array,
        policies: PolicyStates,
        step: Step,
    ) -> Outcome:
        compares = directed(self.clip, self.scope) is not None

        def visit(total: Params, piece: Units) -> tuple[Params, Any]:
            gradients, seen = self._gradients(params, piece)
            if compares:
                how = (
                    seen.norms,
                    seen.kept,
                    self.metric,
                    self.scope,
                    self._axes(params, piece),
                )
                seen = seen._replace(along=along_others(gradients, *how))
            axes = self._axes(params, piece)
            scales, after = self._factors(seen, policies, step, axes)
            weights = jax.tree.map(lambda leaf: times(leaf, share), scales)
            part = self.scope.within.total(gradients, weights)
            return jax.tree.map(add, total, part), (seen, scales, after)

        total, (seen, scales, after) = visit_all(visit, start, pieces)
        # There are states only where the one piece is the batch.
        after = jax.tree.map(lambda leaf: leaf[0], after)
        return Outcome(total, joined(seen, size), joined(scales, size), after)

    def _apart(
        self,
        params: Params,
        start: Params,
        pieces: Units,
        size: int,
        share: Array,
        policies: PolicyStates,
        step: Step,
    ) -> Outcome:
        seen = self._measured(params, start, pieces, size)
        axes = self._axes(params, pieces)
        scales, policies = self._factors(seen, policies, step, axes)
        weights = jax.tree.map(lambda leaf: times(leaf, share), scales)
        back = in_pieces(Units(weights, seen.kept), pieces.real.shape[1])

        def weigh(total: Params, both: tuple[Units, Units]) -> tuple[Params, None]:
            piece, (weights, kept) = both
            # The last unit may be there again, with its weight.
            weights = jax.tree.map(lambda leaf: zero_unless(kept, leaf), weights)
            if self.passes == 1:
                gradients, _ = self._gradients(params, piece)
                part = self.scope.within.total(gradients, weights)
            else:
                part = self._gradient_of_sum(params, piece, weights, kept)
            return jax.tree.map(add, total, part), None

        total, _ = visit_all(weigh, start, (pieces, back))
        return Outcome(total, seen, scales, policies)

    def _measured(
        self, params: Params, start: Params, pieces: Units, size: int
    ) -> Seen:
        """What is seen of all units, and how they lie to each other where a policy
        asks."""
        look = partial(self._look, params)
        if directed(self.clip, self.scope) is None:
            measure = lambda nothing, piece: (nothing, look(piece)[1])  # noqa: E731
            return joined(visit_all(measure, None, pieces)[1], size)
        loss = lambda params, unit: self._of_unit(params, unit)[0]  # noqa: E731
        comparison = Comparison(
            look=look,
            gradient_of_sum=partial(self._gradient_of_sum, params),
            along=partial(along_by_derivatives, loss, params),
            metric=self.metric,
            scope=self.scope,
            axes=self._axes(params, pieces),
        )
        return comparison.run(start, pieces, size, self.drop_nonfinite)

    def _look(self, params: Params, piece: Units) -> tuple[Params | None, Seen]:
        """What is seen of a piece; its gradients, where they are formed."""
        if self.passes == 1:
            return self._gradients(params, piece)
        norms, (values, losses, aux) = layer_norms(self._of_unit, params, piece)
        return None, Seen(values, losses, aux, norms, self._kept(norms, piece))

    def _axes(self, params: Params, units: Any) -> Axes:
        """The axes over which all examples are spread, inside of `shard_map`."""
        return axes_of((params, units), self.scope.axis_name)

    # What is done with one piece

    def of_example(self, params: Params, example: PyTree[Array]) -> tuple[Array, Any]:
        """The loss of one example, and what else is returned, or None."""
        out = self.loss(params, example)
        return out if self.has_aux else (out, None)

    def _of_unit(self, params: Params, unit: Units) -> tuple[Array, Any]:
        """The loss of one unit; it again, the losses of the examples, and the rest."""
        examples, real = unit
        if self.group == 1:
            loss, aux = self.of_example(params, examples)
            return loss, (loss, loss, aux)
        losses, aux = jax.vmap(self.of_example, (None, 0))(params, examples)
        weights = real.astype(losses.dtype)
        if self.scope.reduce == "mean":
            weights = weights / jnp.maximum(jnp.sum(weights), 1)
        value = jnp.sum(losses * weights)
        return value, (value, losses, aux)

    def _gradients(self, params: Params, piece: Units) -> tuple[Params, Seen]:
        gradient = jax.grad(self._of_unit, has_aux=True)
        gradients, (values, losses, aux) = jax.vmap(gradient, (None, 0))(params, piece)
        norms = self.scope.own_norms(gradients, params)
        kept = self._kept(norms, piece)
        if self.drop_nonfinite:
            # 0 times what is not finite is not 0.
            gradients = jax.tree.map(lambda leaf: zero_unless(kept, leaf), gradients)
        return gradients, Seen(values, losses, aux, norms, kept)

    def _kept(self, norms: Any, piece: Units) -> Bool[Array, " u"]:
        kept = any_real(piece.real)
        if not self.drop_nonfinite:
            return kept
        for leaf in jax.tree.leaves(norms):
            finite = jnp.isfinite(leaf.reshape(kept.shape[0], -1))
            kept = kept & jnp.all(finite, axis=1)
        return kept

    def _factors(
        self, seen: Seen, policies: PolicyStates, step: Step, axes: Axes
    ) -> tuple[PyTree[Float[Array, "u ..."]], PolicyStates]:
        # Without adaptive rules the examples of no other device are asked for.
        axes = axes if policies else ()
        norms, along, kept = of_all((seen.norms, seen.along, seen.kept), axes)
        if policies:
            parts = axis_name_of(self.scope.within)
            check_spread(norms, self.scope.axis_name, parts)
        how = step, True, along, kept if policies else None
        parts, policies = factors(self.clip, norms, policies, *how)
        own = own_of(parts.factors, axes)
        return jax.tree.map(lambda leaf: zero_unless(seen.kept, leaf), own), policies

    def _gradient_of_sum(
        self, params: Params, piece: Units, weights: Array, kept: Bool[Array, " u"]
    ) -> Params:
        if self.drop_nonfinite:
            # The same for what goes in: a copy of a unit that is kept.
            piece = Units(*only_real(tuple(piece), kept))

        def weighted(params: Params) -> Float[Array, ""]:
            losses, _ = jax.vmap(self._of_unit, (None, 0))(params, piece)
            with jax.numpy_dtype_promotion("standard"):
                # A loss in half precision rounds its weight to that precision.
                return jnp.sum(losses * jax.lax.stop_gradient(weights))

        total = jax.grad(weighted)(params)
        if self.drop_nonfinite:
            # There may be none to copy.
            some = jnp.any(kept)
            total = jax.tree.map(lambda x: jnp.where(some, x, jnp.zeros_like(x)), total)
        return total
