"""The policy of ZClip: what is an outlier among the norms is clipped."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..._checks import count, fraction, nonnegative, positive
from ..._numerics import safe_sqrt
from ..._types import Step
from ._base import AbstractMaskedPolicy
from ._counted import mean_of


class ZScoreState(NamedTuple):
    """What a [`jaxclip.policy.ZScore`][] has seen of the norms.

    - `mean`, `variance`: their exponential averages.
    - `seen`: how many norms of the warm-up they hold.
    """

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    seen: Float[Array, ""]


class ZScore(AbstractMaskedPolicy):
    r"""Clips what is an outlier among the norms: ZClip.

    With the running mean $\mu$ and standard deviation $\sigma$ of the norms, and
    $z = (n - \mu) / (\sigma + 10^{-6})$,

    $$c = \begin{cases} \mu + z_*^2 \sigma / z & z > z_* \\ \infty & \text{else,}
    \end{cases}$$

    at most `max_norm`. Both statistics are exponential averages of the norm, or of $c$
    where it is an outlier; the first `warmup` updates have `max_norm` alone, and their
    mean and variance start the averages.

    **Arguments:**

    - `z`: $z_* > 0$.
    - `decay`: the weight of the past in the averages, from 0 to 1.
    - `max_norm`: an upper bound of the threshold, infinite by default: none. (The
        authors' code has 1.0, with which a rule such as [`jaxclip.SkipClip`][] drops
        every gradient above 1.)
    - `warmup`: in updates, at least 1.
    """

    z: Float[Array, ""] = eqx.field(
        converter=partial(positive, "z", in_step=True), default=2.5
    )
    decay: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "decay", in_step=True), default=0.97
    )
    max_norm: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "max_norm", in_step=True), default=np.inf
    )
    warmup: int = eqx.field(static=True, default=25)

    def __check_init__(self) -> None:
        count("warmup", self.warmup)

    def init(self, dtype: Any, index: Int[Array, ""]) -> ZScoreState:
        del index
        zero = jnp.zeros((), dtype)
        return ZScoreState(zero, zero, zero)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: ZScoreState,
        step: Step,
    ) -> tuple[Float[Array, " n"], ZScoreState]:
        del step
        # Of a padded batch as many norms as so many whole ones have: it stays so then.
        warm = state.seen >= self.warmup * norms.size
        std = safe_sqrt(state.variance)
        z = (norms - state.mean) / (std + 1e-6)
        outlier = warm & (z > self.z)
        c = state.mean + self.z**2 * std / jnp.where(outlier, z, 1.0)
        averaged = self._average(jnp.where(outlier, c, norms), counted, state)
        collected = _collect(norms, counted, state)
        after = jax.tree.map(partial(jnp.where, warm), averaged, collected)
        return jnp.minimum(jnp.where(outlier, c, jnp.inf), self.max_norm), after

    def _average(
        self, values: Float[Array, " n"], counted: Bool[Array, " n"], state: ZScoreState
    ) -> ZScoreState:
        mean = self.decay * state.mean + (1 - self.decay) * mean_of(values, counted)
        square = mean_of((values - mean) ** 2, counted)
        variance = self.decay * state.variance + (1 - self.decay) * square
        return ZScoreState(mean, variance, state.seen)


def _collect(
    norms: Float[Array, " n"], counted: Bool[Array, " n"], state: ZScoreState
) -> ZScoreState:
    """The mean and variance of all norms so far, these included."""
    size = jnp.sum(counted, dtype=norms.dtype)
    total = state.seen + size
    weight = size / jnp.maximum(total, 1)
    mean = mean_of(norms, counted)
    away = mean - state.mean
    variance = mean_of((norms - mean) ** 2, counted)
    inside = (1 - weight) * state.variance + weight * variance
    return ZScoreState(
        state.mean + weight * away,
        inside + weight * (1 - weight) * away**2,
        total,
    )
