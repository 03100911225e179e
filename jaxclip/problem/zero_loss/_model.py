"""A model fitted to all of its data, with noise in its residuals."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..._types import Example, Key, Params, RealScalar
from ...clip import AbstractClip
from ...noise import AbstractNoise
from ._loss import AbstractNoisyProblem

# Of the parameters and one input: a number, or a vector.
Model = Callable[..., Any]


class AbstractNoisyModel(AbstractNoisyProblem):
    r"""Least squares of a model on all of its data, with noise in the residuals.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_{i=1}^{n} |r_i(w, \eta)|^2.$$

    Every one has these arguments, and `noise`, the law of each entry of $\eta$:

    - `model`: a function of the parameters and of one input, which returns a number or
        an array. It is held as structure. Split an equinox network by
        `equinox.partition` and put it together in the function.
    - `params0`: the parameters at step 0, a pytree of arrays of floats.
    - `xs`: the inputs, a pytree of arrays with a leading axis of length `n`.
    - `ys`: the labels, shape `(n, ...)`, that of the model's outputs.
    - `residual_clip`: a rule for each residual, before it is multiplied with the
        model's gradient: $\psi(r_i) = r_i f(|r_i|)$ takes the place of $r_i$. Its
        thresholds are numbers or arrays of the shape of all residuals, `(m,)`, in the
        unit of a label; a function of the step is taken at step 0.

    The clip that [`jaxclip.simulate`][] takes acts after it, on the whole gradient.
    """

    model: eqx.AbstractVar[Model]
    params0: eqx.AbstractVar[Params]
    xs: eqx.AbstractVar[PyTree[Array]]
    ys: eqx.AbstractVar[Float[Array, "n ..."]]
    noise: eqx.AbstractVar[AbstractNoise]
    residual_clip: eqx.AbstractVar[AbstractClip]

    @abc.abstractmethod
    def noisy_residuals(
        self, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        r"""The residuals $r(w, \eta)$ of all outputs of all examples."""

    @property
    def size(self) -> int:
        """The number $n$ of examples."""
        return len(self.ys)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.noise.variance

    def init(self) -> Params:
        return self.params0

    def draw(self, key: Key) -> Float[Array, "..."]:
        return self.noise.sample(key, self.shape)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return self.noisy_residuals(params, jnp.zeros(self.shape))

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        return jnp.sum(self.noisy_residuals(params, noise) ** 2) / (2 * self.size)

    def gradient(self, params: Params, example: Example) -> Params:
        residuals, pull = jax.vjp(lambda w: self.noisy_residuals(w, example), params)
        return pull(clipped(residuals, self.residual_clip) / self.size)[0]

    def sensitivities(self, params: Params) -> Float[Array, "m noise"]:
        r"""$c = \partial_\eta r(w, 0)$: what each entry of the noise does to each
        residual."""
        zero = jnp.zeros(self.shape)
        slopes = jax.jacobian(lambda noise: self.noisy_residuals(params, noise))(zero)
        return slopes.reshape(len(slopes), -1)


def misfit(
    model: Model, params: Params, xs: PyTree[Array], ys: Float[Array, "n ..."]
) -> Float[Array, " m"]:
    """What the outputs exceed the labels by, as one vector."""
    outputs = jax.vmap(model, (None, 0))(params, xs)
    if outputs.shape != ys.shape:
        raise ValueError(
            "`model` must return for each input what the shape of its label is. Got "
            f"outputs of shape {outputs.shape} and `ys` of shape {ys.shape}."
        )
    return (outputs - ys).reshape(-1)


def clipped(residuals: Float[Array, " m"], clip: AbstractClip) -> Float[Array, " m"]:
    r"""$\psi(r) = r f(|r|)$, each residual by itself."""
    return residuals * clip.factor(jnp.abs(residuals), 0)


def dimension(params: Params) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def check_data(xs: PyTree[Array], ys: Array) -> None:
    """Refuses inputs and labels whose leading axes differ."""
    lengths = {jnp.shape(leaf)[:1] for leaf in [*jax.tree.leaves(xs), ys]}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            "`xs` and `ys` must share a leading axis of examples, at least one long. "
            f"Got leading axes {sorted(lengths)}."
        )
