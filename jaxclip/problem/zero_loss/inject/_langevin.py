"""Noise added to the gradient itself."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ...._types import Key, Params, RealScalar
from ....noise import AbstractNoise
from ._base import AbstractInjection
from ._fit import Fit


class Langevin(AbstractInjection):
    r"""Noise added to the gradient.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i |f(w, x_i) - y_i|^2
    - \langle \eta, w \rangle, \qquad \mathrm{Reg} = 0, \quad \Sigma = I.$$

    On the slower scale, of the squared learning rate, it diffuses along the set:
    $dW = P \circ dB - \tfrac14 P \nabla \log\det\nolimits_+ H\, dt$, with the Hessian
    $H$ of the loss, the product $\det_+$ of its eigenvalues that are not 0, and the
    projection $P$ on the set's tangent space (Section 2 of arXiv:2404.12293). It does
    not go together with a `residual_clip`.

    **Arguments:**

    - `noise`: the law of each entry of $\eta$, one for each parameter, in the unit of
        its gradient.
    """

    noise: AbstractNoise

    def shape(self, fit: Fit) -> tuple[int, ...]:
        return (fit.dimension,)

    def variance(self, fit: Fit) -> Float[Array, ""]:
        del fit
        return jnp.asarray(self.noise.variance)

    def draw(self, fit: Fit, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.shape(fit))

    def loss(self, fit: Fit, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        mean = jnp.sum(fit.residuals(params) ** 2) / (2 * fit.size)
        return mean - jnp.sum(noise * ravel_pytree(params)[0])
