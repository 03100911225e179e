"""Noise injected into a loss that can be zero: what it is, and the general one."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._checks import count
from ..._types import Example, Key, Params, RealScalar, RealScalarLike
from ...noise import AbstractNoise
from .._base import AbstractProblem
from .._parameters import as_parameters


class AbstractNoisyProblem(AbstractProblem):
    r"""A loss $\hat L(w, \eta)$ whose noise $\eta$ is drawn afresh at every step.

    Without noise, $L(w) = \hat L(w, 0) \ge 0$ vanishes on a manifold, the zero-loss
    set. Where there are more parameters than residuals, noise moves gradient descent
    along that set, slowly, towards solutions that it prefers (Section 1 of
    arXiv:2404.12293).

    **An author must guarantee** that the entries of the noise are independent, of mean
    0 and of the variance `variance`, and that `residuals` vanishes exactly where the
    loss without noise does. Neither is checked.
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
        zero = jnp.zeros(self.shape)

        def curvature(direction):
            slope = jax.grad(lambda noise: self.loss(params, noise))
            product = jax.jvp(slope, (zero,), (direction,))[1]
            return jnp.sum(product * direction)

        directions = jnp.eye(zero.size).reshape(zero.size, *self.shape)
        return jnp.sum(jax.lax.map(curvature, directions)) / 2

    def diffusion(self, params: Params) -> Float[Array, "d noise"]:
        r"""$G = \partial_w \partial_\eta \hat L(w, 0)$, one column for each entry of
        the noise: on the zero-loss set a step's gradient has the covariance
        $\sigma^2 G G^T$."""

        def gradient(noise):
            return ravel_pytree(jax.grad(self.loss)(params, noise))[0]

        columns = jax.jacobian(gradient)(jnp.zeros(self.shape))
        return columns.reshape(len(columns), -1)


class NoisyLoss(AbstractNoisyProblem):
    r"""Any loss of the parameters and of a noise.

    **Arguments:**

    - `loss`: $\hat L$, a function of the parameters and of the noise that returns a
        number, 0 at the solutions without noise.
    - `residuals`: a function of the parameters that returns a vector, zero exactly
        where the loss without noise is. Its Jacobian must have full rank there.
    - `params0`: the parameters at step 0, a pytree of arrays of floats.
    - `noise`: the law of each entry of the noise.
    - `shape`: the shape of the noise.

    The functions are held as structure, as in [`jaxclip.FiniteSum`][].

    **Raises:**

    A `ValueError` where `params0` holds what is no array of floats, `loss` does not
    return a number or `residuals` no vector.
    """

    function: Callable[[Any, Any], Any] = eqx.field(static=True)
    constraint: Callable[[Any], Any] = eqx.field(static=True)
    params0: Params
    noise: AbstractNoise
    dims: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[[Any, Any], Any],
        residuals: Callable[[Any], Any],
        params0: Any,
        noise: AbstractNoise,
        *,
        shape: tuple[int, ...],
    ):
        self.function, self.constraint = loss, residuals
        self.params0 = as_parameters("params0", params0)
        self.noise = noise
        self.dims = tuple(count("shape", size) for size in shape)
        _check_shape("loss", jax.eval_shape(self.loss, self.params0, self._zero), 0)
        _check_shape("residuals", jax.eval_shape(residuals, self.params0), 1)

    @property
    def _zero(self) -> Float[Array, "..."]:
        return jnp.zeros(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dims

    @property
    def variance(self) -> Float[Array, ""]:
        return self.noise.variance

    def init(self) -> Params:
        return self.params0

    def draw(self, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.dims)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return self.constraint(params)

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        return self.function(params, noise)


def _check_shape(name: str, value: Any, rank: int) -> None:
    wanted = "one number" if rank == 0 else "a vector"
    if not isinstance(value, jax.ShapeDtypeStruct) or len(value.shape) != rank:
        raise ValueError(f"`{name}` must return {wanted}. Got {value}.")
