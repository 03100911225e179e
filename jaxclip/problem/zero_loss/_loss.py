"""Noise injected into a loss that can be zero: what it is, and the general one."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import count, returns_a_number
from ..._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike, Step
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise
from .._base import AbstractProblem
from .._parameters import as_parameters
from .inject._derivatives import half_laplacian, mixed_derivative
from .inject._known_clips import need_no_clip


class AbstractNoisyProblem(AbstractProblem):
    r"""A loss $\hat L(w, \eta)$ whose noise $\eta$ is drawn afresh at every step.

    Without noise, $L(w) = \hat L(w, 0) \ge 0$ vanishes on a manifold, the zero-loss
    set. Where there are more parameters than residuals, noise moves gradient descent
    along that set, slowly, towards solutions that it prefers (Section 1 of
    arXiv:2404.12293).

    For noise in a model that fits its data, write an injection instead:
    [`jaxclip.inject.AbstractInjection`][].

    **An author must guarantee**, and nothing of it is checked, that

    - `draw` depends on its key alone, and the entries of what it returns, of the shape
        `shape`, are independent, of mean 0 and of the variance `variance`;
    - `loss` and `residuals` are pure, traceable and three times differentiable in the
        parameters, and `loss` twice in the noise: the limits take such derivatives;
    - without noise the loss is not negative, and 0 exactly where `residuals`, a vector,
        is. The Jacobian of `residuals` has full rank there;
    - where `power` is 2, `drift` is overridden, and the regularizer is constant on the
        zero-loss set;
    - `drift` is right for every rule that `check_clip` lets through.
    """

    @abc.abstractmethod
    def draw(self, key: Key) -> Float[Array, "..."]:
        r"""The noise $\eta$ of one step."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        r"""The shape of the noise $\eta$."""

    @property
    @abc.abstractmethod
    def variance(self) -> Float[Array, ""]:
        r"""The variance $\sigma^2$ of each entry of the noise."""

    @abc.abstractmethod
    def residuals(self, params: Params) -> Float[Array, " m"]:
        """The residuals without noise: zero on the zero-loss set and nowhere else."""

    @abc.abstractmethod
    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        r"""The loss $\hat L(w, \eta)$ that a step of this noise descends."""

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        return self.draw(jr.fold_in(stream, index))

    def gradient(self, params: Params, example: Example) -> Params:
        return jax.grad(self.loss)(params, example)

    def risk(self, params: Params) -> RealScalar:
        return self.loss(params, jnp.zeros(self.shape))

    def regularizer(self, params: Params) -> RealScalar:
        r"""Half the Laplacian of the loss in the noise, at no noise.

        $$\mathrm{Reg}(w) = \tfrac12 \sum_j \partial^2_{\eta_j} \hat L(w, 0),$$

        so that noise of a small variance $\sigma^2$ adds $\sigma^2 \mathrm{Reg}$ to
        the loss on average.
        """
        return half_laplacian(lambda noise: self.loss(params, noise), self.shape)

    def diffusion(self, params: Params) -> Float[Array, "d noise"]:
        r"""$G = \partial_w \partial_\eta \hat L(w, 0)$, one column for each entry of
        the noise: on the zero-loss set a step's gradient has the covariance
        $\sigma^2 G G^T$."""
        return mixed_derivative(self.loss, params, self.shape)

    # What the limits on the zero-loss set ask

    @property
    def power(self) -> int:
        r"""The power $p$ of the learning rate in the motion that `drift` describes,
        $dW/dk = \gamma^p P\, \mathrm{drift}(W)$.

        With 1, the default, noise pushes by the slope of its regularizer; where that
        vanishes along the set, it diffuses on the slower scale $\gamma^2$, which
        `diffusion` describes. With 2 the regularizer is constant on the set, and on the
        slower scale noise pushes too, without any diffusion.
        """
        return 1

    @property
    def inner_clip(self) -> AbstractClip:
        """The rule by which the problem itself clips its residuals; none by default."""
        return Identity()

    def drift(self, params: Params, clip: AbstractClip, step: Step) -> Params:
        r"""Which way the noise pushes at a point of the zero-loss set: by default
        $-\sigma^2 \nabla \mathrm{Reg}$.

        **Arguments:**

        - `params`: the point.
        - `clip`: the rule of the whole gradient, one that `check_clip` lets through.
        - `step`: where its thresholds are taken.

        **Returns:**

        A velocity, of the structure of `params`. Only its part along the set counts.
        """
        del clip, step
        return jax.grad(lambda w: -self.variance * self.regularizer(w))(params)

    def check_clip(self, clip: AbstractClip) -> None:
        """Refuses, by a `ValueError`, a rule with which `drift` is not known: by
        default any."""
        need_no_clip(clip, type(self).__name__)


class NoisyLoss(AbstractNoisyProblem):
    r"""Any loss of the parameters and of a noise.

    **Arguments:**

    - `loss`: $\hat L$, a function of the parameters and of the noise that returns a
        number, 0 at the solutions without noise.
    - `residuals`: a function of the parameters that returns a vector, zero exactly
        where the loss without noise is. Its Jacobian must have full rank there.
    - `start`: the parameters at step 0, a pytree of arrays of floats.
    - `noise`: the law of each entry of the noise.
    - `shape`: the shape of the noise.

    The functions are held as structure, as in [`jaxclip.FiniteSum`][].

    **Raises:**

    A `ValueError` where `start` holds what is no array of floats, `loss` does not
    return a number or `residuals` no vector.
    """

    function: Callable[[Any, Any], Any] = eqx.field(static=True)
    constraint: Callable[[Any], Any] = eqx.field(static=True)
    start: Params
    noise: AbstractNoise
    dims: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[[Any, Any], Any],
        residuals: Callable[[Any], Any],
        start: Any,
        noise: AbstractNoise,
        *,
        shape: tuple[int, ...],
    ):
        self.function, self.constraint = loss, residuals
        self.start = as_parameters("start", start)
        self.noise = noise
        self.dims = tuple(count("shape", size) for size in shape)
        zero = jnp.zeros(self.dims)
        returns_a_number("loss(params, noise)", loss, self.start, zero)
        value = jax.eval_shape(residuals, self.start)
        if not isinstance(value, jax.ShapeDtypeStruct) or len(value.shape) != 1:
            raise ValueError(f"`residuals` must return a vector. Got {value}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    @property
    def variance(self) -> Float[Array, ""]:
        return self.noise.variance

    def init(self) -> Params:
        return self.start

    def draw(self, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.dims)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return self.constraint(params)

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        return self.function(params, noise)
