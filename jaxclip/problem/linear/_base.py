"""Models that are linear in their parameters."""

import abc

import jax

from ..._types import Example, Params, RealScalar
from .._base import AbstractProblem


class AbstractLinear(AbstractProblem):
    r"""A loss $\ell(\langle a, x \rangle, y)$ of a linear prediction.

    An example is the pair of the features `a`, shape `(d,)`, and the target `y`. The
    gradient on one sample is a number times `a`, which is what lets the blocked engine
    replace steps by matrix products.
    """

    @abc.abstractmethod
    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        """The derivative of the loss in the prediction.

        **Arguments:**

        - `prediction`: the product of the features and the parameters.
        - `target`: the second part of an example.
        """

    def gradient(self, params: Params, example: Example) -> Params:
        features, target = example
        # In the highest precision, as the blocked engine's products are: by default an
        # accelerator would round the features to ten bits.
        precision = jax.lax.Precision.HIGHEST
        prediction = jax.numpy.dot(features, params, precision=precision)
        return self.slope(prediction, target) * features
