"""The noise of dropout."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import fraction
from .._types import Key, RealScalarLike
from ._law import NormalMixture
from ._noise import AbstractNoise, mixture


class Mask(AbstractNoise):
    r"""$-1$ for what is dropped, $1/q - 1$ for what is kept.

    One plus it is the multiplier of inverted dropout; its variance is $(1 - q)/q$.

    **Arguments:**

    - `keep`: $q$, the probability to be kept, in (0, 1).
    """

    keep: Float[Array, ""] = eqx.field(converter=partial(fraction, "keep"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        kept = jr.bernoulli(key, self.keep, shape).astype(self.keep.dtype)
        return kept / self.keep - 1

    @property
    def variance(self) -> Float[Array, ""]:
        return (1 - self.keep) / self.keep

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        weights = jnp.stack([1 - self.keep, self.keep])
        means = jnp.stack([-jnp.ones_like(self.keep), 1 / self.keep - 1])
        return mixture(signal_variance, weights, means, jnp.zeros_like(means))
