r"""Label noise: how it is drawn, and the law that it gives a residual.

A residual is $w = s Z - \epsilon$ with the noise $\epsilon$, the signal's standard
deviation $s = \sqrt{2R}$ at excess risk $R$, and $Z \sim N(0, 1)$.
"""

import abc
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import as_float, check, nonnegative, positive
from .._types import Key, RealScalarLike
from ._law import AbstractLaw, NormalMixture

# The least standard deviation of a signal, in units of the noise's width.
_LEAST = 1e-17


def _probability(name: str, value: Any) -> Array:
    return check(
        as_float(name, value),
        lambda x: ~((x > 0) & (x <= 1)),
        f"`{name}` must be a probability, in (0, 1].",
    )


class AbstractNoise(eqx.Module):
    """The noise of a label: a real random variable of mean 0.

    **An author must guarantee** that `sample` draws what `residual` describes. For a
    mixture of normal laws return a `NormalMixture`, for anything else a `SmoothLaw`.
    """

    @abc.abstractmethod
    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws, in the unit of the label."""

    @property
    @abc.abstractmethod
    def variance(self) -> Float[Array, ""]:
        """The variance, in the squared unit of the label; infinite where it is."""

    @abc.abstractmethod
    def residual(self, signal_variance: RealScalarLike) -> AbstractLaw:
        """The law of a residual.

        **Arguments:**

        - `signal_variance`: twice the excess risk, in the squared unit of the label.
        """


def unit_of(signal_variance: RealScalarLike, width: RealScalarLike) -> Float[Array, ""]:
    """What residuals are measured in: the larger of the signal's standard deviation and
    the noise's width, so that squares and inverses stay representable. A constant to
    derivatives, since no result depends on it."""
    unit = jnp.maximum(jnp.sqrt(jnp.asarray(signal_variance)), width)
    # Without signal and noise one so small that the residual is as good as 0.
    least = float(jnp.finfo(unit.dtype).tiny) ** 0.25
    return jax.lax.stop_gradient(jnp.where(unit > 0, unit, least))


def relative_variance(
    signal_variance: RealScalarLike, unit: Float[Array, ""]
) -> Float[Array, ""]:
    """The signal's variance in squared `unit`s, and a little more.

    At R = 0 an atom has no density; with 1e-34 of the squared unit it gives the limit,
    and its derivative is finite. At 1e-12 of the noise's width it moves no digit.
    """
    return jnp.asarray(signal_variance) / unit / unit + _LEAST**2


def mixture(signal_variance, weights, means, stds) -> NormalMixture:
    """The residual's law for a noise that is a mixture of normal laws.

    **Arguments:**

    - `weights`, `means`, `stds`: shape `(m,)`, of the noise's components.
    """
    unit = unit_of(signal_variance, jnp.max(jnp.abs(means) + stds))
    total = relative_variance(signal_variance, unit) + (stds / unit) ** 2
    # The label's noise enters a residual with a minus sign.
    return NormalMixture(weights, -means, unit * jnp.sqrt(total))


class Gaussian(AbstractNoise):
    """Normal noise.

    **Arguments:**

    - `std`: its standard deviation; 0 gives labels without noise.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(nonnegative, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * jr.normal(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        one = jnp.ones(1)
        return mixture(signal_variance, one, 0 * one, self.std * one)


class Rademacher(AbstractNoise):
    """Noise of one size and either sign, with equal probability.

    **Arguments:**

    - `std`: the size, which is the standard deviation.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * jr.rademacher(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> NormalMixture:
        return SparseSign(self.std, 1.0).residual(signal_variance)


class SparseSign(AbstractNoise):
    r"""Noise that is mostly 0: $\pm L$ with probability `prob / 2` each, else 0.

    The "Rademacher-like" noise of arXiv:2406.11733, with $L = $ `std / sqrt(prob)`.

    **Arguments:**

    - `std`: the standard deviation.
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
        weights = jnp.stack([self.prob / 2, 1 - self.prob, self.prob / 2])
        means = self.size * jnp.array([-1.0, 0.0, 1.0])
        return mixture(signal_variance, weights, means, jnp.zeros_like(means))


class Contaminated(AbstractNoise):
    """Normal noise with outliers: a mixture of two centred normal laws.

    **Arguments:**

    - `std`: standard deviation of the bulk.
    - `outlier_std`: standard deviation of the outliers.
    - `prob`: probability of an outlier, in (0, 1].
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
