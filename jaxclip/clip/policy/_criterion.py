"""The policy that asks the clipping-comparison criterion for the threshold."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._checks import count, fraction, nonnegative
from ..._numerics import safe_sqrt
from ..._types import Step
from ._base import AbstractDirectedPolicy, Along
from ._counted import ring_places

# Thresholds that are compared: so many, evenly spaced in the logarithm, from one that
# leaves a fiftieth of the gradients alone to one that acts on ten of them. Of one that
# acts on fewer the error is not known, and to let the longest pass costs far more under
# heavy tails than to shorten ten of thousands costs under light ones.
_GRID, _ALONE, _CLIPPED = 16, 0.02, 10
# With fewer gradients nothing is said, and nothing is clipped.
_LEAST = 64


class CriterionState(NamedTuple):
    """What is known of the last gradients.

    - `norms`, `lengths`, `products`, `sizes`: shape `(window,)` each, of every gradient
        its norm, and what [`jaxclip.policy.Along`][] has of it.
    - `place`: where the next one is written.
    - `filled`: how many there are.
    """

    norms: Float[Array, " window"]
    lengths: Float[Array, " window"]
    products: Float[Array, " window"]
    sizes: Float[Array, " window"]
    place: Int[Array, ""]
    filled: Int[Array, ""]


class Criterion(AbstractDirectedPolicy):
    r"""The threshold that chooses itself, by the clipping-comparison criterion.

    Clipping at $c$ multiplies a gradient $g$ by $f_c = \min(1, c / \|g\|)$. At the best
    learning rate of each, a step lowers the loss in proportion to $q_c^2$,

    $$q_c = \frac{E f_c \langle g, u \rangle}{\sqrt{E f_c^2 \|g\|^2}}, \qquad
    \frac{q_c^2}{q_\infty^2} = \mathrm{CCC}_c,$$

    where $u$ is the direction of the mean gradient: the criterion of arXiv:2406.11733
    (CCC). Both expectations are means over the last `window` gradients. Each example of
    a batch is multiplied with the mean of the others; a gradient that comes alone, with
    a running mean of those handed on before. For examples, microbatches and batches it
    is the same formula, and the best threshold does not depend on how many clipped
    gradients a step averages (docs/theory.md, derived here).

    It takes the largest threshold whose $q_c$ is within `errors` standard errors of the
    best one's, of the error of that *difference*, which is much smaller than that of
    either. Where the gradients cannot tell, that is the largest that is compared, which
    acts on the ten longest gradients of the window: nearly no clip. How the threshold
    is chosen is derived here and not in a paper; `scripts/reproduce_adaptive.py`
    measures what comes of it. It judges by the loss that is trained on: it does not
    know which labels are wrong, or that a threshold leads to another minimum.

    ```python
    clip = jaxclip.Adaptive(jaxclip.policy.Criterion())
    gradient = jaxclip.clipped_grad(loss, clip)  # an example at a time
    optimiser = optax.chain(jaxclip.as_transform(clip), optax.sgd(0.1))  # or a batch
    ```

    It needs one norm over all leaves, `PerTree()` or `PerExample()`. The running mean
    is as large as the parameters. Until 64 gradients were seen nothing is clipped; the
    ten longest are then one in six, and one in 400 once the window is full. The
    criterion is that of a hard clip; with another rule the threshold is the hard
    clip's.

    For an optimiser that divides the gradient by something it knows, $u \mapsto M u$
    with a diagonal $M$, the products and lengths are those of the metric $M$: hand it
    to `update(gradient, state, params, metric=M)`, of Adam $1 / (\sqrt{v} +
    \epsilon)$. Momentum changes nothing while the learning rate is small: it is SGD at
    another rate.

    **Arguments:**

    - `window`: how many of the last gradients are remembered, four numbers of each; at
        least 64.
    - `errors`: how many standard errors a larger threshold may be worse; 0 takes the
        best one.
    - `decay`: of the running mean, for each update, from 0 to 1. A longer memory is
        less noisy, and points where training went some time ago.
    """

    window: int = eqx.field(static=True, default=4096)
    errors: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "errors", in_step=True), default=1.0
    )
    decay: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "decay", in_step=True), default=0.9
    )

    def __check_init__(self) -> None:
        if count("window", self.window) < _LEAST:
            raise ValueError(
                f"`window` must be at least {_LEAST}: fewer gradients do not tell one "
                f"threshold from another. Got {self.window}."
            )

    def init(self, dtype: Any, index: Int[Array, ""]) -> CriterionState:
        del index
        # Each its own array: a buffer can be donated once.
        rows = [jnp.zeros(self.window, dtype) for _ in range(4)]
        place, filled = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return CriterionState(*rows, place=place, filled=filled)

    def threshold_along(
        self,
        norms: Float[Array, " n"],
        along: Along,
        state: CriterionState,
        step: Step,
    ) -> tuple[Float[Array, ""], CriterionState]:
        del step
        state = self._recorded(norms, along, state)
        return self._chosen(state).astype(norms.dtype), state

    def _recorded(
        self, norms: Float[Array, " n"], along: Along, state: CriterionState
    ) -> CriterionState:
        # Before the first update there is no mean to point along.
        pointed = jnp.any(along.counted & (along.products != 0))
        counted = along.counted & pointed
        places, size = ring_places(state.place, counted, self.window)
        rows = [
            old.at[places].set(numbers.astype(old.dtype), mode="drop")
            for old, numbers in zip(state[:4], (norms, *along[:3]), strict=True)
        ]
        return CriterionState(
            *rows,
            place=(state.place + size) % self.window,
            filled=jnp.minimum(state.filled + size, self.window),
        )

    def _chosen(self, state: CriterionState) -> Float[Array, ""]:
        live = jnp.arange(self.window) < state.filled
        number = jnp.maximum(state.filled, 1).astype(state.norms.dtype)
        grid = _grid(state.norms, live, state.filled)

        def mean(values: Array) -> Array:
            there = jnp.broadcast_to(live, values.shape)
            return jnp.sum(jnp.where(there, values, 0.0), axis=-1) / number

        # The largest is 1 from here on: no square or product overflows.
        unit, weight = (
            jnp.max(jnp.where(live, n, 0.0)) for n in (state.lengths, state.sizes)
        )
        unit, weight = (jnp.where(n > 0, n, 1.0) for n in (unit, weight))
        some = jnp.where(state.norms > 0, state.norms, 1.0)
        factors = jnp.minimum(1.0, grid[:, None] / some[None])
        products = (state.products / unit) * (state.sizes / weight)
        moved = factors * products[None]
        square = (factors * (state.lengths / unit)[None]) ** 2
        root = safe_sqrt(mean(square))
        root = jnp.where(root > 0, root, 1.0)
        quality = mean(moved) / root
        best = jnp.argmax(quality)
        # What one gradient adds to the estimate of q_c, to first order.
        share = moved / root[:, None]
        share -= 0.5 * quality[:, None] * square / root[:, None] ** 2
        apart = share[best][None] - share
        spread = mean((apart - mean(apart)[:, None]) ** 2)
        error = safe_sqrt(spread / number)
        as_good = quality[best] - quality <= self.errors * error
        chosen = jnp.max(jnp.where(as_good, grid, 0.0))
        # With no more than noise in the products even the best step would climb.
        chosen = jnp.where(quality[best] > 0, chosen, grid[-1])
        return jnp.where(state.filled < _LEAST, jnp.inf, chosen)


def _grid(
    norms: Float[Array, " window"], live: Array, filled: Int[Array, ""]
) -> Float[Array, " t"]:
    """The thresholds that are compared, in order."""
    ordered = jnp.sort(jnp.where(live, norms, jnp.inf))
    last = jnp.maximum(filled - 1, 0)
    high = ordered[jnp.clip(filled - _CLIPPED, filled // 2, last)]
    low = ordered[jnp.minimum((_ALONE * filled).astype(filled.dtype), last)]
    # Gradients of examples that are solved have a norm of almost nothing.
    low, high = (jnp.maximum(n, jnp.finfo(norms.dtype).tiny) for n in (low, high))
    grid = jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), _GRID))
    return grid.astype(norms.dtype)
