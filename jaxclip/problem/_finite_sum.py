"""Any loss of any parameters: a mean over a data set, or over fresh draws."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Num

from .._checks import as_float, leading_length, returns_a_number
from .._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike
from ._base import AbstractProblem
from ._parameters import as_parameters

Loss = Callable[[Any, Any], Float[Array, ""]]


class FiniteSum(AbstractProblem):
    r"""The mean of a loss over a data set.

    $$F(x) = \frac{1}{n} \sum_{i=1}^{n} \ell(x, \xi_i),$$

    of which a step sees samples drawn with replacement. Everything that runs on a
    problem runs on it, with any pytree of parameters; [`jaxclip.Spider`][] uses the
    gradient of the whole sum too.

    **Arguments:**

    - `loss`: $\ell$, a function of the parameters and of one example that returns a
        number. It is held as structure: numbers to be swept or differentiated belong
        in `start` or in `data`.
    - `start`: the parameters at step 0, a pytree of arrays of floats.
    - `data`: the examples, a pytree of arrays with a leading axis of length `n`.
    - `minimum`: what the risk is measured from: the smallest value of $F$ if it is
        known, zero by default.

    **Raises:**

    A `ValueError` where `start` holds what is no array of floats, the leading axes of
    `data` differ, or the loss of the first example is not one number.
    """

    loss: Loss = eqx.field(static=True)
    start: Params
    data: PyTree[Num[Array, "n ..."]]
    minimum: Float[Array, ""]

    def __init__(
        self, loss: Loss, start: Any, data: Any, *, minimum: RealScalarLike = 0.0
    ):
        self.loss = loss
        self.start = as_parameters("start", start)
        self.data = jax.tree.map(jnp.asarray, data)
        self.minimum = as_float("minimum", minimum)
        leading_length("`data`", self.data, "examples")
        example = jax.tree.map(lambda x: x[0], self.data)
        returns_a_number("loss(params, example)", loss, self.start, example)

    @property
    def size(self) -> int:
        """The number $n$ of examples."""
        return jax.tree.leaves(self.data)[0].shape[0]

    def init(self) -> Params:
        return self.start

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        row = jr.randint(jr.fold_in(stream, index), (), 0, self.size)
        return jax.tree.map(lambda x: x[row], self.data)

    def gradient(self, params: Params, example: Example) -> Params:
        return jax.grad(self.loss)(params, example)

    def mean_loss(self, params: Params) -> Float[Array, ""]:
        """$F$, the mean of the loss over all examples."""
        return jnp.mean(jax.vmap(self.loss, (None, 0))(params, self.data))

    def full_gradient(self, params: Params) -> Params:
        """The gradient of $F$, which costs `size` sample gradients."""
        return jax.grad(self.mean_loss)(params)

    def whole(self) -> "FiniteSum":
        """The same function as a sum of one term, whose example is the whole data set.

        SGD on it is gradient descent: each step sees the gradient of $F$.
        """
        data = jax.tree.map(lambda x: x[None], self.data)
        return FiniteSum(_MeanLoss(self.loss), self.start, data, minimum=self.minimum)

    def risk(self, params: Params) -> RealScalar:
        return self.mean_loss(params) - self.minimum


class Online(AbstractProblem):
    r"""The expectation of a loss over examples that are drawn afresh.

    $$f(x) = E_\xi\, \ell(x, \xi).$$

    **Arguments:**

    - `loss`: $\ell$, a function of the parameters and of one example that returns a
        number.
    - `start`: the parameters at step 0, a pytree of arrays of floats.
    - `draw`: a function of a key that returns one example.
    - `risk`: a function of the parameters, what a curve records as the risk: $f$ less
        its minimum where that is known, or the mean loss on examples held out.

    The functions are held as structure, as in [`jaxclip.FiniteSum`][].

    **Raises:**

    A `ValueError` where `start` holds what is no array of floats, or the loss of an
    example is not one number.
    """

    loss: Loss = eqx.field(static=True)
    start: Params
    draw: Callable[[Key], Example] = eqx.field(static=True)
    risk_function: Callable[[Params], Float[Array, ""]] = eqx.field(static=True)

    def __init__(
        self,
        loss: Loss,
        start: Any,
        draw: Callable[[Key], Example],
        risk: Callable[[Params], Float[Array, ""]],
    ):
        self.loss = loss
        self.start = as_parameters("start", start)
        self.draw = draw
        self.risk_function = risk
        example = jax.eval_shape(draw, jr.key(0))
        returns_a_number("loss(params, example)", loss, self.start, example)

    def init(self) -> Params:
        return self.start

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        return self.draw(jr.fold_in(stream, index))

    def gradient(self, params: Params, example: Example) -> Params:
        return jax.grad(self.loss)(params, example)

    def risk(self, params: Params) -> RealScalar:
        return self.risk_function(params)


class _MeanLoss(eqx.Module):
    """The mean of a loss over the rows of one large example."""

    # A module and no closure: two of the same loss are equal, and compile once.
    loss: Loss = eqx.field(static=True)

    def __call__(self, params: Params, rows: Example) -> Float[Array, ""]:
        return jnp.mean(jax.vmap(self.loss, (None, 0))(params, rows))
