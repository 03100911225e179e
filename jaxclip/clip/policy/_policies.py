"""The policies that remember the norms: percentiles, quantiles and moments."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._checks import check, count, fraction, nonnegative, positive
from ..._numerics import safe_sqrt
from ..._types import Step
from ._base import AbstractMaskedPolicy
from ._counted import mean_of, ring_places


class RingBuffer(NamedTuple):
    """The last numbers that a policy has seen.

    - `values`: shape `(window,)`, the numbers, in the order of their places.
    - `place`: where the next one is written.
    - `filled`: how many there are.
    """

    values: Float[Array, " window"]
    place: Int[Array, ""]
    filled: Int[Array, ""]


class Percentile(AbstractMaskedPolicy):
    r"""The percentile of the last norms, the current one included: AutoClip.

    $$c_t = \operatorname{percentile}_p(n_{t-m+1}, \dots, n_t),$$

    interpolated linearly between norms. AutoClip takes it of all norms since the start
    (arXiv:2007.14469), as this does in the first $m$ updates.

    **Arguments:**

    - `percent`: $p$, from 0 to 100.
    - `window`: $m$, how many of the last norms are remembered: one set of so many
        numbers for each threshold, sorted at each update.
    """

    percent: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "percent", in_step=True), default=10.0
    )
    window: int = eqx.field(static=True, default=1000)

    def __check_init__(self) -> None:
        count("window", self.window)
        check(self.percent, lambda p: p > 100, "`percent` must be at most 100.")

    def init(self, dtype: Any, index: Int[Array, ""]) -> RingBuffer:
        del index
        zero = jnp.zeros((), jnp.int32)
        # Infinity is sorted behind what is there.
        return RingBuffer(jnp.full(self.window, jnp.inf, dtype), zero, zero)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: RingBuffer,
        step: Step,
    ) -> tuple[Float[Array, ""], RingBuffer]:
        del step
        places, size = ring_places(state.place, counted, self.window)
        values = state.values.at[places].set(norms, mode="drop")
        filled = jnp.minimum(state.filled + size, self.window)
        last = jnp.maximum(filled - 1, 0)
        rank = self.percent / 100 * last
        below = jnp.clip(jnp.floor(rank).astype(int), 0, last)
        ordered = jnp.sort(values)
        low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
        place = (state.place + size) % self.window
        return low + (rank - below) * (high - low), RingBuffer(values, place, filled)


class QuantileDescent(AbstractMaskedPolicy):
    r"""Moves the threshold, on a logarithmic scale, towards a quantile of the norms.

    $$c_{t+1} = c_t \exp\left(-\gamma_c
    \left(\tfrac1n \#\{i : n_i \le c_t\} - q\right)\right).$$

    Made for clipping per example, where the fraction of the $n$ norms below the
    threshold is taken over the examples of a batch.

    **Arguments:**

    - `quantile`: $q$, the fraction of norms that are to stay below, from 0 to 1.
    - `lr`: $\gamma_c > 0$, per update.
    - `initial`: $c_0 > 0$, in the unit of the gradient's norm.
    """

    quantile: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "quantile", in_step=True), default=0.5
    )
    lr: Float[Array, ""] = eqx.field(
        converter=partial(positive, "lr", in_step=True), default=0.2
    )
    initial: Float[Array, ""] = eqx.field(
        converter=partial(positive, "initial", in_step=True), default=0.1
    )

    def init(self, dtype: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        del index
        return self.initial.astype(dtype)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: Float[Array, ""],
        step: Step,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del step
        below = mean_of((norms <= state).astype(norms.dtype), counted)
        moved = state * jnp.exp(-self.lr * (below - self.quantile))
        # From 0 it would never rise again.
        return state, jnp.maximum(moved, jnp.finfo(state.dtype).tiny)


class AdaGC(AbstractMaskedPolicy):
    r"""A multiple of the running mean of the clipped norm.

    $$c_t = \lambda \gamma_t, \qquad
    \gamma_{t+1} = \beta \gamma_t + (1 - \beta) \min(n_t, c_t).$$

    with the norm $n_t$ of update $t$ (arXiv:2502.11034). In the first `warmup` updates
    there is no threshold, and $\gamma$ is the smallest norm so far that is not 0. (The
    paper counts a norm of 0 too, after which nothing of that part would ever pass.) The
    paper clips by the global norm meanwhile, so that its whole method is

    ```python
    warmup = jc.HardClip(lambda step: jnp.where(step < 100, 1.0, jnp.inf))
    adaptive = jc.Adaptive(jc.policy.AdaGC(warmup=100))
    optax.chain(jc.as_transform(warmup), jc.as_transform(adaptive, jc.PerLeaf()))
    ```

    **Arguments:**

    - `relative`: $\lambda > 0$, dimensionless.
    - `decay`: $\beta$, from 0 to 1.
    - `warmup`: how many updates it only watches, at least 1.
    """

    relative: Float[Array, ""] = eqx.field(
        converter=partial(positive, "relative", in_step=True), default=1.05
    )
    decay: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "decay", in_step=True), default=0.98
    )
    warmup: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        count("warmup", self.warmup)

    def init(self, dtype: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        del index
        return jnp.full((), jnp.inf, dtype)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: Float[Array, ""],
        step: Step,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        # Still infinite after the warm-up if every norm so far was 0.
        watching = (jnp.asarray(step) < self.warmup) | jnp.isinf(state)
        # A derivative of infinity times a number is no number, under a `where` too.
        mean_before = jnp.where(watching, 1.0, state)
        threshold = jnp.where(watching, jnp.inf, self.relative * mean_before)
        smallest = jnp.min(jnp.where(counted & (norms > 0), norms, jnp.inf))
        mean = mean_of(jnp.minimum(norms, threshold), counted)
        after = self.decay * mean_before + (1 - self.decay) * mean
        return threshold, jnp.where(watching, jnp.minimum(state, smallest), after)


class SecondMoment(AbstractMaskedPolicy):
    r"""A multiple of the root of a running mean square, as Adam's: SPAM's rule.

    $$c_t = \sqrt{\theta v_t}, \qquad
    v_{t+1} = \beta v_t + (1 - \beta) \min(n_t, c_t)^2.$$

    Over [`jaxclip.PerCoordinate`][] before Adam, $v$ is Adam's own second moment, since
    both see the clipped gradient. There is no threshold where $v$ is 0: at the start.
    $n_t$ is the norm of update $t$ (arXiv:2501.06842).

    **Arguments:**

    - `theta`: $\theta > 0$, dimensionless.
    - `decay`: $\beta$, from 0 to 1: Adam's `b2`.
    """

    theta: Float[Array, ""] = eqx.field(
        converter=partial(positive, "theta", in_step=True), default=5000.0
    )
    decay: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "decay", in_step=True), default=0.999
    )

    def init(self, dtype: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        del index
        return jnp.zeros((), dtype)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: Float[Array, ""],
        step: Step,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        del step
        # Before the first norm the average is 0, and there is nothing to go by.
        threshold = jnp.where(state > 0, safe_sqrt(self.theta * state), jnp.inf)
        square = mean_of(jnp.minimum(norms, threshold) ** 2, counted)
        return threshold, self.decay * state + (1 - self.decay) * square
