"""Noise in a model's weights and units."""

import equinox as eqx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...._checks import count
from ...._types import Params
from ....noise import AbstractNoise
from ._fit import Fit
from ._residual import AbstractResidualInjection


class AntiCorrelated(AbstractResidualInjection):
    r"""Noise that each step takes back what the last one added.

    $$\hat L(w, \eta) = L(w + \eta), \qquad \mathrm{Reg} = \tfrac12 \mathrm{tr} H.$$

    with the Hessian $H$ of the loss $L$ without noise. Gradient descent on it is, in
    $z_k = w_k + \eta_k$, the perturbed descent
    $z_{k+1} = z_k - \gamma \nabla L(z_k) + \eta_{k+1} - \eta_k$ of
    Orvieto et al. 2022 (arXiv:2202.02831).

    **Arguments:**

    - `noise`: the law of each entry of $\eta$, one for each parameter, in its unit.
    """

    noise: AbstractNoise

    def shape(self, fit: Fit) -> tuple[int, ...]:
        return (fit.dimension,)

    def noisy_residuals(
        self, fit: Fit, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        flat, unravel = ravel_pytree(params)
        return fit.residuals(unravel(flat + noise))


class DropConnect(AbstractResidualInjection):
    r"""Every parameter is multiplied by its own $1 + \eta_j$.

    $$\hat L(w, \eta) = L(w (1 + \eta)), \qquad
    \mathrm{Reg} = \tfrac12 \sum_j w_j^2 H_{jj},$$

    with the Hessian $H$ of the loss $L$ without noise.

    **Arguments:**

    - `noise`: the law of each entry of $\eta$, one for each parameter, dimensionless.
        Parameters that are kept with probability $q$ have a [`jaxclip.noise.Mask`][].
    """

    noise: AbstractNoise

    def shape(self, fit: Fit) -> tuple[int, ...]:
        return (fit.dimension,)

    def noisy_residuals(
        self, fit: Fit, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        flat, unravel = ravel_pytree(params)
        return fit.residuals(unravel(flat * (1 + noise)))


class Dropout(AbstractResidualInjection):
    r"""Every hidden unit is multiplied by $1 + \eta_j$, the same for all examples.

    With $c_{ij}$ the derivative of output $i$ in the multiplier of unit $j$,

    $$\mathrm{Reg} = \frac{1}{2n} \sum_{ij} c_{ij}^2.$$

    The problem's `model` is then a function of the parameters, of one input and of the
    multipliers, shape `(units,)`, which are 1 without noise.

    **Arguments:**

    - `noise`: the law of each $\eta_j$, dimensionless. Units that are kept with
        probability $q$ have noise of the variance $(1-q)/q$: [`jaxclip.noise.Mask`][].
    - `units`: how many multipliers.

    **Raises:**

    A `ValueError` where `units` is no positive Python integer.
    """

    noise: AbstractNoise
    units: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        count("units", self.units)

    def shape(self, fit: Fit) -> tuple[int, ...]:
        del fit
        return (self.units,)

    def noisy_residuals(
        self, fit: Fit, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        return fit.residuals(params, 1 + noise)
