"""Robust and quantile regression on the data of `LeastSquares`."""

from typing import Any

from jaxtyping import Array, Float

from ..._types import RealScalar, RealScalarLike
from ...noise import AbstractNoise
from ._gaussian import AbstractNoisyLinear, as_norms
from ._loss import HuberLoss, PinballLoss
from ._spectrum import Spectrum


class Huber(AbstractNoisyLinear):
    r"""Streaming robust regression: [`jaxclip.LeastSquares`][] with the Huber loss.

    The same key gives the same features and labels. What is recorded is not the excess
    of the Huber loss but the same quadratic excess risk
    $R(x) = (x - x^*)^T K (x - x^*) / 2$, so that losses can be compared: by Stein's
    lemma they have the same minimiser $x^*$ ([`jaxclip.AbstractNoisyLinear`][]).

    **Arguments:**

    - `spectrum`, `noise`, `error0`: as in `LeastSquares`.
    - `threshold`: the size from which a residual counts linearly, positive, in the
        label's unit.
    """

    spectrum: Spectrum
    noise: AbstractNoise
    error0: Float[Array, " m"]
    loss: HuberLoss

    def __init__(
        self,
        spectrum: Spectrum,
        noise: AbstractNoise,
        error0: Any,
        threshold: RealScalarLike,
    ):
        self.spectrum = spectrum
        self.noise = noise
        self.error0 = as_norms("error0", error0, spectrum)
        self.loss = HuberLoss(threshold)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return self.loss.slope(prediction, target)


class Pinball(AbstractNoisyLinear):
    r"""Streaming quantile regression: [`jaxclip.LeastSquares`][] with the pinball loss.

    The same key gives the same features and labels, and what is recorded is the same
    quadratic excess risk $R(x) = (x - x^*)^T K (x - x^*) / 2$: for every level the
    coefficients that SGD tends to are $x^*$, since the noise does not depend on the
    features and only the intercept, which the model leaves out, would tell quantiles
    apart ([`jaxclip.AbstractNoisyLinear`][]).

    **Arguments:**

    - `spectrum`, `noise`, `error0`: as in `LeastSquares`.
    - `level`: of the quantile, in (0, 1); one half for the median.
    """

    spectrum: Spectrum
    noise: AbstractNoise
    error0: Float[Array, " m"]
    loss: PinballLoss

    def __init__(
        self,
        spectrum: Spectrum,
        noise: AbstractNoise,
        error0: Any,
        level: RealScalarLike,
    ):
        self.spectrum = spectrum
        self.noise = noise
        self.error0 = as_norms("error0", error0, spectrum)
        self.loss = PinballLoss(level)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return self.loss.slope(prediction, target)
