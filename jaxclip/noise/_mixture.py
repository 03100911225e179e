"""Label noise whose law is a mixture of normal laws and atoms."""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import as_float, check, nonnegative, positive
from .._types import Key, RealScalarLike
from ._base import AbstractNoise, relative_variance, unit_of
from ._normal_mixture import NormalMixture


def _probability(name: str, value: Any) -> Array:
    return check(
        as_float(name, value),
        lambda x: ~((x > 0) & (x <= 1)),
        f"`{name}` must be a probability, in (0, 1].",
    )


class Mask(AbstractNoise):
    r"""The noise of dropout: $-1$ for what is dropped, $1/q - 1$ for what is kept.

    One plus it is the multiplier of inverted dropout. It is dimensionless and has the
    variance $(1 - q)/q$.

    **Arguments:**

    - `keep`: $q$, the probability to be kept, in (0, 1].
    """

    keep: Float[Array, ""] = eqx.field(converter=partial(_probability, "keep"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        kept = jr.bernoulli(key, self.keep, shape).astype(self.keep.dtype)
        return kept / self.keep - 1

    @property
    def variance(self) -> Float[Array, ""]:
        # The mean is 0: q (1/q - 1) - (1 - q).
        return (1 - self.keep) / self.keep

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        weights = jnp.stack([1 - self.keep, self.keep])
        means = jnp.stack([-jnp.ones_like(self.keep), 1 / self.keep - 1])
        return mixture(signal_variance, weights, means, jnp.zeros_like(means))


def mixture(signal_variance, weights, means, stds) -> NormalMixture:
    """The residual's law for a noise that is a mixture of normal laws.

    **Arguments:**

    - `weights`, `means`, `stds`: shape `(m,)`, of the noise's components.
    """
    # The signal is normal and independent: it shifts no component and adds its variance
    # to each. In units of the largest, or squares of small numbers would be lost.
    unit = unit_of(signal_variance, jnp.max(jnp.abs(means) + stds))
    total = relative_variance(signal_variance, unit) + (stds / unit) ** 2
    # The label's noise enters a residual with a minus sign.
    return NormalMixture(weights, -means, unit * jnp.sqrt(total))


class Gaussian(AbstractNoise):
    """Normal noise.

    **Arguments:**

    - `std`: its standard deviation, in the unit of the label; 0 gives labels without
        noise.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(nonnegative, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * jr.normal(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        # A mixture of one.
        one = jnp.ones(1)
        return mixture(signal_variance, one, 0 * one, self.std * one)


class Rademacher(AbstractNoise):
    """Noise of one size and either sign, with equal probability.

    **Arguments:**

    - `std`: the size, which is the standard deviation, in the unit of the label.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * jr.rademacher(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        # The one that is never 0; its middle component has no weight.
        return SparseSign(self.std, 1.0).residual(signal_variance)


class SparseSign(AbstractNoise):
    r"""Noise that is mostly 0: $\pm L$ with probability `prob / 2` each, else 0.

    The "Rademacher-like" noise of arXiv:2406.11733, with $L = $ `std / sqrt(prob)`.

    **Arguments:**

    - `std`: the standard deviation, in the unit of the label.
    - `prob`: the probability of a value other than 0, in (0, 1].
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))
    prob: Float[Array, ""] = eqx.field(converter=partial(_probability, "prob"))

    @property
    def size(self) -> Float[Array, ""]:
        """The size of a value other than 0."""
        return self.std / jnp.sqrt(self.prob)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        sign_key, occurs_key = jr.split(key)
        values = self.size * jr.rademacher(sign_key, shape, self.std.dtype)
        return jnp.where(jr.bernoulli(occurs_key, self.prob, shape), values, 0.0)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        # Atoms: a residual has a density by the signal alone.
        weights = jnp.stack([self.prob / 2, 1 - self.prob, self.prob / 2])
        means = self.size * jnp.array([-1.0, 0.0, 1.0])
        return mixture(signal_variance, weights, means, jnp.zeros_like(means))


class Contaminated(AbstractNoise):
    """Normal noise with outliers: a mixture of two centred normal laws.

    **Arguments:**

    - `std`: the standard deviation of the bulk, in the unit of the label.
    - `outlier_std`: the standard deviation of the outliers, in the same unit.
    - `prob`: the probability of an outlier, in (0, 1].
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))
    outlier_std: Float[Array, ""] = eqx.field(
        converter=partial(positive, "outlier_std")
    )
    prob: Float[Array, ""] = eqx.field(converter=partial(_probability, "prob"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        value_key, outlier_key = jr.split(key)
        outlier = jr.bernoulli(outlier_key, self.prob, shape)
        stds = jnp.where(outlier, self.outlier_std, self.std)
        return stds * jr.normal(value_key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return (1 - self.prob) * self.std**2 + self.prob * self.outlier_std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        weights = jnp.stack([1 - self.prob, self.prob])
        stds = jnp.stack([self.std, self.outlier_std])
        return mixture(signal_variance, weights, jnp.zeros_like(weights), stds)
