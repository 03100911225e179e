"""Noise that enters the residuals, and what a clip makes of its push."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...._types import Example, Key, Params, RealScalar, Step
from ....clip import AbstractClip, Identity
from ....noise import AbstractNoise, Gaussian
from ._base import AbstractInjection
from ._clipped_covariance import clipped_covariance
from ._fit import Fit
from ._known_clips import need_gaussian, need_one_clip
from ._noise_moments import noise_moments, per_residual


class AbstractResidualInjection(AbstractInjection):
    r"""Noise that enters the residuals, $r(w, \eta)$.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_{i=1}^{n} |r_i(w, \eta)|^2.$$

    An author writes `shape` and `noisy_residuals`, and has a field `noise`, the law of
    each entry of $\eta$.

    **An author must guarantee** what [`jaxclip.inject.AbstractInjection`][] says, and

    - that `noisy_residuals` returns the vector of all residuals, shape `(m,)`, in the
        unit of a label, and that its noise has the shape that `shape` gives;
    - that residuals are twice differentiable in the noise near 0: the drift is of
        second order in it. Noise that is not small moves SGD otherwise;
    - that without noise they are those of the model, or vanish on the same set.

    With a clip, of the residuals or of the gradient, the drift is known for Gaussian
    noise, to the same order.
    """

    noise: eqx.AbstractVar[AbstractNoise]

    @abc.abstractmethod
    def noisy_residuals(
        self, fit: Fit, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        r"""The residuals $r(w, \eta)$ of all outputs of all examples.

        **Arguments:**

        - `fit`: the model and its data, without the noise.
        - `params`: $w$, of the structure of the model's parameters.
        - `noise`: $\eta$, of the shape that `shape` gives for `fit`.

        **Returns:**

        Shape `(m,)`, in the unit of a label.
        """

    def variance(self, fit: Fit) -> Float[Array, ""]:
        del fit
        return jnp.asarray(self.noise.variance)

    def draw(self, fit: Fit, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.shape(fit))

    def loss(self, fit: Fit, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        return jnp.sum(self.noisy_residuals(fit, params, noise) ** 2) / (2 * fit.size)

    def check(self, fit: Fit) -> None:
        del fit

    def residuals(self, fit: Fit, params: Params) -> Float[Array, " m"]:
        return self.noisy_residuals(fit, params, jnp.zeros(self.shape(fit)))

    def gradient(self, fit: Fit, params: Params, example: Example) -> Params:
        return fit.gradient(lambda w: self.noisy_residuals(fit, w, example), params)

    def sensitivities(self, fit: Fit, params: Params) -> Float[Array, "m noise"]:
        r"""$c = \partial_\eta r(w, 0)$: what each entry of the noise does to each
        residual."""
        slopes = jax.jacobian(lambda noise: self.noisy_residuals(fit, params, noise))(
            jnp.zeros(self.shape(fit))
        )
        return slopes.reshape(len(slopes), -1)

    def drift(self, fit: Fit, params: Params, clip: AbstractClip, step: Step) -> Params:
        r"""$-\nabla \tfrac{1}{2n} \sum_{ijl} \rho_i M_{jl} c_{ij} c_{il}$ with the
        sensitivities $c$, where $\rho$ and $M$ stay as they are at the point.

        Unclipped, $\rho_i = 1$ and $M = \sigma^2 I$: it is $-\sigma^2 \nabla
        \mathrm{Reg}$ on the zero-loss set. A clip of the residuals, of standard
        deviation $\sigma |c_i|$, makes $\rho_i = E\,\psi'$, by Stein's lemma. A clip of
        the gradient, which on the set is $G \eta$ to first order, makes
        $M = E\,\eta \eta^T f(|G \eta|)$. Both are derived here.
        """
        c, pull = jax.vjp(lambda w: self.sensitivities(fit, w), params)
        variance = self.variance(fit)
        if not isinstance(clip, Identity):
            g = self.diffusion(fit, params)
            std = jnp.sqrt(variance)
            pushed = c @ clipped_covariance(g.T @ g, clip, step, std, power=1)
        elif not isinstance(fit.residual_clip, Identity):
            std = jnp.sqrt(variance * jnp.sum(c**2, axis=1))
            rho = jax.vmap(lambda clip, std: noise_moments(clip, Gaussian(std)).mu)(
                per_residual(fit), std
            )
            pushed = variance * rho[:, None] * c
        else:
            pushed = variance * c
        return pull(-pushed / fit.size)[0]

    def check_clip(self, fit: Fit, clip: AbstractClip) -> None:
        clips = need_one_clip(fit, clip)
        if clips is not None:
            need_gaussian(self.noise, clips)
