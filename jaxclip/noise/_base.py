r"""What label noise is, and the unit that its residuals are measured in.

A residual is $w = s Z - \epsilon$ with the noise $\epsilon$, the signal's standard
deviation $s = \sqrt{2R}$ at excess risk $R$, and $Z \sim N(0, 1)$.
"""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._repr import Shown
from .._types import Key, RealScalarLike
from ._law import AbstractLaw

# The least standard deviation of a signal, in units of the noise's width.
_LEAST = 1e-17


class AbstractNoise(Shown):
    """The noise of a label: a real random variable of mean 0.

    **An author must guarantee** that `sample` draws what `residual` describes. For a
    mixture of normal laws return a `NormalMixture`, for anything else a `SmoothLaw`.
    """

    @abc.abstractmethod
    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws, in the unit of the label.

        **Arguments:**

        - `key`: determines them.
        - `shape`: of the array of draws.
        """

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
