"""What a noise that is injected into a model is."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...._types import Example, Key, Params, RealScalar, Step
from ....clip import AbstractClip, Identity
from ._derivatives import half_laplacian, mixed_derivative
from ._fit import Fit
from ._known_clips import need_no_clip


class AbstractInjection(eqx.Module):
    r"""A noise $\eta$ that is drawn afresh at every step, and where it enters a loss.

    A [`jaxclip.Interpolation`][] holds one. Each method is handed `fit`, a
    [`jaxclip.inject.Fit`][]: the model and the data without any noise. A new noise is
    one class, with the four abstract methods; for noise that enters the residuals take
    [`jaxclip.inject.AbstractResidualInjection`][], which asks for two, and knows what a
    clip does.

    **An author must guarantee**, and nothing of it is checked, that

    - all methods are pure and traceable. `draw` and `example` depend on their key and
        on `fit` alone, and `loss` may be differentiated three times in the parameters
        and twice in the noise;
    - the entries of the noise are independent, of mean 0 and of the variance
        `variance`;
    - `loss` without noise is not negative, and 0 exactly where `residuals` is. The
        limits are derived for $|r|^2 / 2n$;
    - `gradient`, where it is overridden, is the gradient of `loss` at the noise of
        `example` up to the residual clip, or an unbiased estimate of it. Then
        `diffusion` must have the covariance of its steps: $\sigma^2 G G^T$;
    - `power` is 2 only where the regularizer is constant on every zero-loss set, and
        the noise does not diffuse along it. `drift` must then be overridden;
    - `drift` is right for each clip that `check_clip` lets through.

    The limits follow from it: `power` 1 is a motion by [`jaxclip.ZeroLossFlow`][] at
    the pace of the learning rate where the regularizer has a slope along the set, and
    elsewhere one by [`jaxclip.ZeroLossSDE`][] at that of its square. `power` 2 is a
    motion by `ZeroLossFlow` at the pace of the square.
    """

    @abc.abstractmethod
    def shape(self, fit: Fit) -> tuple[int, ...]:
        r"""The shape of the noise $\eta$ of one step, which may depend on the model and
        the data of `fit`."""

    @abc.abstractmethod
    def variance(self, fit: Fit) -> Float[Array, ""]:
        r"""The variance $\sigma^2$ of each entry of the noise, in its squared unit; it
        may depend on the model and the data of `fit`."""

    @abc.abstractmethod
    def draw(self, fit: Fit, key: Key) -> Float[Array, "..."]:
        r"""The noise $\eta$ of one step, drawn with `key`, of the shape that `shape`
        gives for `fit`."""

    @abc.abstractmethod
    def loss(self, fit: Fit, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        r"""The loss $\hat L(w, \eta)$ that a step of this noise descends, of the model
        and the data of `fit` at the parameters `params` with the noise `noise`."""

    def check(self, fit: Fit) -> None:
        """Refuses, by a `ValueError`, a model and data that the noise does not fit. It
        is called when a problem is made; by default a `residual_clip` is refused, which
        the gradient of `loss` does not know."""
        if not isinstance(fit.residual_clip, Identity):
            raise ValueError(
                f"`residual_clip` must be Identity() for {type(self).__name__}, whose "
                f"gradient is not that of clipped residuals. Got {fit.residual_clip!r}."
            )

    def residuals(self, fit: Fit, params: Params) -> Float[Array, " m"]:
        """The residuals without noise: zero on the zero-loss set and nowhere else."""
        return fit.residuals(params)

    def example(self, fit: Fit, key: Key) -> Example:
        """What a step sees, the same for the same key: by default the noise alone."""
        return self.draw(fit, key)

    def gradient(self, fit: Fit, params: Params, example: Example) -> Params:
        """The gradient that a step descends, before its clip: by default that of
        `loss`."""
        return jax.grad(lambda w: self.loss(fit, w, example))(params)

    def diffusion(self, fit: Fit, params: Params) -> Float[Array, "d noise"]:
        r"""$G$, whose $\sigma^2 G G^T$ is the covariance of a step's gradient on the
        zero-loss set: by default $\partial_w \partial_\eta \hat L(w, 0)$."""
        return mixed_derivative(
            lambda w, noise: self.loss(fit, w, noise), params, self.shape(fit)
        )

    @property
    def power(self) -> int:
        r"""The power $p$ of the learning rate in $dW/dk = \gamma^p P\,
        \mathrm{drift}(W)$: 1 by default."""
        return 1

    def drift(self, fit: Fit, params: Params, clip: AbstractClip, step: Step) -> Params:
        r"""Which way the noise pushes at a point of the zero-loss set.

        By default it is $-\sigma^2 \nabla \mathrm{Reg}$, with the regularizer
        $\tfrac12 \sum_j \partial^2_{\eta_j} \hat L(w, 0)$ (Section 2 of
        arXiv:2404.12293).

        **Arguments:**

        - `fit`: the model and its data.
        - `params`: the point.
        - `clip`: the rule of the whole gradient, one that `check_clip` lets through.
        - `step`: where its thresholds are taken.

        **Returns:**

        A velocity, of the structure of `params`. Only its part along the set counts:
        the limits project it.
        """
        del clip, step

        def regularizer(w):
            return half_laplacian(lambda e: self.loss(fit, w, e), self.shape(fit))

        minus = -jnp.asarray(self.variance(fit))
        return jax.grad(lambda w: minus * regularizer(w))(params)

    def check_clip(self, fit: Fit, clip: AbstractClip) -> None:
        """Refuses, by a `ValueError`, a rule of the whole gradient with which `drift`
        is not known: by default any."""
        del fit
        need_no_clip(clip, type(self).__name__)
