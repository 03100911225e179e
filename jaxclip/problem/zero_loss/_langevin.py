"""Noise added to the gradient itself."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._checks import as_float
from ..._types import Key, Params, RealScalar
from ...noise import AbstractNoise
from .._parameters import as_parameters
from ._loss import AbstractNoisyProblem
from ._model import Model, check_data, dimension, misfit


class Langevin(AbstractNoisyProblem):
    r"""Noise added to the gradient.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i |f(w, x_i) - y_i|^2
    - \langle \eta, w \rangle, \qquad \mathrm{Reg} = 0, \quad \Sigma = I.$$

    On the slower scale it diffuses along the zero-loss set:
    $dW = P \circ dB - \tfrac14 P \nabla \log\det\nolimits_+ H\, dt$.

    The arguments are those of [`jaxclip.AbstractNoisyModel`][], without
    `residual_clip`.
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    noise: AbstractNoise

    def __check_init__(self):
        check_data(self.xs, self.ys)

    @property
    def shape(self) -> tuple[int, ...]:
        return (dimension(self.params0),)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.noise.variance

    def init(self) -> Params:
        return self.params0

    def draw(self, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.shape)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return misfit(self.model, params, self.xs, self.ys)

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        mean = jnp.sum(self.residuals(params) ** 2) / (2 * len(self.ys))
        return mean - jnp.sum(noise * ravel_pytree(params)[0])
