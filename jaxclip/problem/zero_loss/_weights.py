"""Noise in a model's weights and units."""

from functools import partial

import equinox as eqx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._checks import as_float, count
from ..._types import Params
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise
from .._parameters import as_parameters
from ._model import AbstractNoisyModel, Model, check_data, dimension, misfit


class AntiCorrelated(AbstractNoisyModel):
    r"""Noise that each step takes back what the last one added.

    $$\hat L(w, \eta) = L(w + \eta), \qquad \mathrm{Reg} = \tfrac12 \mathrm{tr} H.$$

    Gradient descent on it is, in $z_k = w_k + \eta_k$, the perturbed descent
    $z_{k+1} = z_k - \gamma \nabla L(z_k) + \eta_{k+1} - \eta_k$ of
    Orvieto et al. 2022 (arXiv:2202.02831). The arguments are those of
    [`jaxclip.AbstractNoisyModel`][].
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    noise: AbstractNoise
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self):
        check_data(self.xs, self.ys)

    @property
    def shape(self) -> tuple[int, ...]:
        return (dimension(self.params0),)

    def noisy_residuals(
        self, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        flat, unravel = ravel_pytree(params)
        return misfit(self.model, unravel(flat + noise), self.xs, self.ys)


class DropConnect(AbstractNoisyModel):
    r"""Every parameter multiplied with $1 + \eta_j$.

    $$\hat L(w, \eta) = L(w (1 + \eta)), \qquad
    \mathrm{Reg} = \tfrac12 \sum_j w_j^2 H_{jj}.$$

    The arguments are those of [`jaxclip.AbstractNoisyModel`][].
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    noise: AbstractNoise
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self):
        check_data(self.xs, self.ys)

    @property
    def shape(self) -> tuple[int, ...]:
        return (dimension(self.params0),)

    def noisy_residuals(
        self, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        flat, unravel = ravel_pytree(params)
        return misfit(self.model, unravel(flat * (1 + noise)), self.xs, self.ys)


class Dropout(AbstractNoisyModel):
    r"""Every hidden unit multiplied with $1 + \eta_j$, the same for all examples.

    With $c_{ij}$ the derivative of output $i$ in the multiplier of unit $j$,

    $$\mathrm{Reg} = \frac{1}{2n} \sum_{ij} c_{ij}^2.$$

    Units that are kept with probability $q$ have noise of the variance $(1-q)/q$:
    [`jaxclip.Mask`][].

    **Arguments:**

    - `model`: a function of the parameters, of one input and of the multipliers, shape
        `(units,)`, which are 1 without noise.
    - `units`: how many multipliers.

    The others are those of [`jaxclip.AbstractNoisyModel`][].
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    noise: AbstractNoise
    units: int = eqx.field(static=True, kw_only=True)
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self):
        count("units", self.units)
        check_data(self.xs, self.ys)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.units,)

    def noisy_residuals(
        self, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        def model(params, x):
            return self.model(params, x, 1 + noise)

        return misfit(model, params, self.xs, self.ys)
