"""Functions to descend on, without data: what a large step does is seen on them."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import as_float, returns_a_number
from ..._types import Example, Params, PyTree, RealScalar, RealScalarLike
from ...noise import AbstractNoise
from .._base import AbstractProblem
from .._parameters import as_parameters


class AbstractLandscape(AbstractProblem):
    r"""A function $f$ of the parameters, whose gradient may be disturbed by noise.

    An example is the noise $\xi$ of one gradient, $\nabla f(x) + \xi$, with independent
    entries of one law; without noise SGD on a landscape is gradient descent.

    **An author must guarantee**, and the library does not check, that

    - `loss` and `slope` are pure and traceable, and are defined wherever a large step
        may lead: infinite or NaN means that a run has diverged;
    - `loss` returns one number in the precision of the parameters, which need not be
        that of `start`, and `slope` its gradient, of the structure of the parameters;
    - `risk`, which is left to the author too, is the loss less its smallest value, or
        less any other number;
    - `start` is a pytree of arrays of floats. `noise` is the law of each entry of the
        noise, in the unit of the gradient, or `None`.
    """

    start: eqx.AbstractVar[Params]
    noise: eqx.AbstractVar[AbstractNoise | None]

    @abc.abstractmethod
    def loss(self, params: Params) -> RealScalar:
        """The function $f$.

        **Arguments:**

        - `params`: the parameters, of the structure and shapes of `start`.
        """

    @abc.abstractmethod
    def slope(self, params: Params) -> Params:
        r"""The gradient $\nabla f$, without noise.

        **Arguments:**

        - `params`: as of `loss`.
        """

    def init(self) -> Params:
        return self.start

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        if self.noise is None:
            # Nothing is drawn; a batch still needs an array to be mapped over.
            return jnp.asarray(index)
        leaves, structure = jax.tree.flatten(self.start)
        keys = jr.split(jr.fold_in(stream, index), len(leaves))
        draws = [
            self.noise.sample(key, leaf.shape).astype(leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, draws)

    def gradient(self, params: Params, example: Example) -> Params:
        slope = self.slope(params)
        if self.noise is None:
            return slope
        # The parameters may have another precision than the start.
        return jax.tree.map(lambda g, xi: g + xi.astype(g.dtype), slope, example)


class Landscape(AbstractLandscape):
    r"""Any function of any parameters, to descend on.

    **Arguments:**

    - `function`: $f$, a function of the parameters that returns one number. It is held
        as structure: two landscapes compile once only where it is the same object.
    - `start`: the parameters at step 0, a pytree of arrays of floats. It may be traced,
        so that a `vmap` may run over starts.
    - `noise`: the law of each entry of the gradient's noise, in the gradient's unit, or
        `None`. `Uniform` and `Rademacher` are bounded.
    - `minimum`: what the risk is measured from: the smallest value of $f$ if it is
        known, zero by default.

    **Raises:**

    A `ValueError` where `start` holds what is no array of floats, or `function(start)`
    is not one number.
    """

    function: Callable[[Any], Float[Array, ""]] = eqx.field(static=True)
    start: Params
    noise: AbstractNoise | None
    minimum: Float[Array, ""]

    def __init__(
        self,
        function: Callable[[Any], Float[Array, ""]],
        start: Any,
        *,
        noise: AbstractNoise | None = None,
        minimum: RealScalarLike = 0.0,
    ):
        self.function = function
        self.start = as_parameters("start", start)
        self.noise = noise
        self.minimum = as_float("minimum", minimum)
        returns_a_number("function(start)", function, self.start)

    def loss(self, params: Params) -> RealScalar:
        return self.function(params)

    def slope(self, params: Params) -> Params:
        return jax.grad(self.function)(params)

    def risk(self, params: Params) -> RealScalar:
        value = self.function(params)
        return value - self.minimum.astype(value.dtype)
