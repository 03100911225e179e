"""Models that are linear in their parameters."""

import abc

from ..._numerics import exact_dot
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
        # Exact, as the products of the blocked engine are, whose run is the same one.
        return self.slope(exact_dot(features, params), target) * features
