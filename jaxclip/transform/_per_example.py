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
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Params, PyTree, Step
from ._layer_norms import layer_norms
from ._parts import PolicyStates, Rules, factors
from ._scope import times
from ._scope_example import PerExample
from ._units import Units, any_real, in_pieces, joined, only_real, zero_unless
from ._varying import vary, varying_axes


class Seen(NamedTuple):
    """What was seen of the units of a piece, or of a batch.

    - `values`: shape `(u,)`, the loss of each unit.
    - `losses`, `aux`: of each example, with leading axes like those of the units.
    - `norms`: as the scope takes them, with a leading axis of units.
    - `kept`: shape `(u,)`, which units count.
    """

    values: Float[Array, " u"]
    losses: Float[Array, "u ..."]
    aux: Any
    norms: PyTree[Float[Array, "u ..."]]
    kept: Bool[Array, " u"]


class Outcome(NamedTuple):
    """What became of a batch.

    - `total`: the clipped gradient before its noise, a pytree like the parameters.
    - `seen`: of all units.
    - `factors`: in the form of the norms; 0 for units that do not count.
    - `policies`: the states of adaptive rules.
    """

    total: Params
    seen: Seen
    factors: PyTree[Float[Array, "u ..."]]
    policies: PolicyStates


class Engine(eqx.Module):
    """How a batch of units is gone through; the fields are those of `clipped_grad`."""

    loss: Callable[..., Any] = eqx.field(static=True)
    clip: Rules
    scope: PerExample
    microbatch: int | None = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    group: int = eqx.field(static=True)
    drop_nonfinite: bool = eqx.field(static=True)
    passes: int = eqx.field(static=True)

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
        start = vary(_zeros(params), axes)
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
        def visit(total: Params, piece: Units) -> tuple[Params, Any]:
            gradients, seen = self._gradients(params, piece)
            scales, after = self._factors(seen, policies, step)
            weights = jax.tree.map(lambda leaf: times(leaf, share), scales)
            part = self._weighed(gradients, weights, seen.kept)
            return jax.tree.map(_add, total, part), (seen, scales, after)

        total, (seen, scales, after) = _visit(visit, start, pieces)
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
        def measure(nothing: None, piece: Units) -> tuple[None, Seen]:
            if self.passes == 1:
                return nothing, self._gradients(params, piece)[1]
            norms, found = layer_norms(self._of_unit, params, piece)
            values, losses, aux = found
            kept = self._kept(norms, piece)
            return nothing, Seen(values, losses, aux, norms, kept)

        seen = joined(_visit(measure, None, pieces)[1], size)
        scales, policies = self._factors(seen, policies, step)
        weights = jax.tree.map(lambda leaf: times(leaf, share), scales)
        back = in_pieces(Units(weights, seen.kept), pieces.real.shape[1])

        def weigh(total: Params, both: tuple[Units, Units]) -> tuple[Params, None]:
            piece, (weights, kept) = both
            # The last unit may be there again, with its weight.
            weights = jax.tree.map(lambda leaf: zero_unless(kept, leaf), weights)
            if self.passes == 1:
                gradients, _ = self._gradients(params, piece)
                part = self._weighed(gradients, weights, kept)
            else:
                part = self._gradient_of_sum(params, piece, weights, kept)
            return jax.tree.map(_add, total, part), None

        total, _ = _visit(weigh, start, (pieces, back))
        return Outcome(total, seen, scales, policies)

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
        norms = self.scope.norms(gradients, params)
        kept = self._kept(norms, piece)
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
        self, seen: Seen, policies: PolicyStates, step: Step
    ) -> tuple[PyTree[Float[Array, "u ..."]], PolicyStates]:
        parts, policies = factors(self.clip, seen.norms, policies, step, True)
        scales = jax.tree.map(lambda leaf: zero_unless(seen.kept, leaf), parts.factors)
        return scales, policies

    def _weighed(
        self, gradients: Params, weights: Any, kept: Bool[Array, " u"]
    ) -> Params:
        if self.drop_nonfinite:
            # 0 times what is not finite is not 0.
            gradients = jax.tree.map(lambda leaf: zero_unless(kept, leaf), gradients)
        return self.scope.within.total(gradients, weights)

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


def _visit(visit: Callable[..., Any], carry: Any, pieces: Any) -> tuple[Any, Any]:
    """A scan over the pieces; without a loop where there is one."""
    if jax.tree.leaves(pieces)[0].shape[0] > 1:
        return jax.lax.scan(visit, carry, pieces)
    carry, out = visit(carry, jax.tree.map(lambda leaf: leaf[0], pieces))
    return carry, jax.tree.map(lambda leaf: leaf[None], out)


def _zeros(params: Params) -> Params:
    # In float32 or better: a sum of many pieces in half precision stops growing.
    def zeros(leaf: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(zeros, params)


def _add(total: Array, leaf: Array) -> Array:
    return total + leaf.astype(total.dtype)
