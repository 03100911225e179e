r"""What label noise is, and the unit that its residuals are measured in.

A residual is $w = s Z - \epsilon$ with the noise $\epsilon$, the signal's standard
deviation $s = \sqrt{2R}$ at excess risk $R$, and $Z \sim N(0, 1)$.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._repr import Shown
from .._types import Key, RealScalarLike
from ._figure import draw_noise
from ._law import AbstractLaw

# The least standard deviation of a signal, in the unit of the residuals.
_LEAST = 1e-17


class AbstractNoise(Shown):
    """The noise of a label: a real random variable of mean 0.

    **An author must guarantee**, and the library does not check, that

    - the mean is 0: a linear model without an intercept cannot learn another one;
    - `sample` draws what `residual` describes: from its key alone, so that the same key
        gives the same draws, in the precision of the noise's own numbers;
    - `variance` is that of the draws, and infinite where they have none, never NaN;
    - `residual` describes the signal minus the noise. It is pure and traceable, and
        its law is finite and differentiable where the signal's variance is 0: a noise
        with atoms keeps a little of it, as `relative_variance` does;
    - numbers are array fields, so that they can be swept and differentiated.

    For a mixture of normal laws `residual` returns a [`jaxclip.noise.NormalMixture`][],
    for anything else a [`jaxclip.noise.SmoothLaw`][].
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

    def plot(self, ax: Any = None, *, label: str | None = None) -> Any:
        """Draws the density on a logarithmic scale, beside the normal one of the same
        variance where there is one, and on an axis to the right the probability of what
        lies farther out than each place. Of a noise that takes single values it draws
        their probabilities. Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default. Several
            noises may be drawn on one.
        - `label`: the name of the noise in the legend.

        **Returns:**

        The axes of the density.

        **Raises:**

        A `ValueError` of a batch of noises, of which one is to be taken, and of a noise
        whose numbers are traced.
        """
        return draw_noise(self, ax, label)


def unit_of(signal_variance: RealScalarLike, width: RealScalarLike) -> Float[Array, ""]:
    """The unit that residuals are measured in: the larger one of the signal's standard
    deviation and the noise's width, so that squares and inverses stay representable. To
    derivatives it is a constant, since no result depends on it."""
    unit = jnp.maximum(jnp.sqrt(jnp.asarray(signal_variance)), width)
    # Without signal and noise one so small that the residual is as good as 0.
    least = float(jnp.finfo(unit.dtype).tiny) ** 0.25
    return jax.lax.stop_gradient(jnp.where(unit > 0, unit, least))


def relative_variance(
    signal_variance: RealScalarLike, unit: Float[Array, ""]
) -> Float[Array, ""]:
    """The signal's variance in squared `unit`s, with a floor under it.

    Without a signal (R = 0) an atom of the noise has no density. A floor of 1e-34 of
    the squared unit, a standard deviation of 1e-17 units, leaves it one, which gives
    the limit with a finite derivative, and changes no digit of any other signal.
    """
    return jnp.asarray(signal_variance) / unit / unit + _LEAST**2
