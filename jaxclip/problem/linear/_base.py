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

    **An author must guarantee** what [`jaxclip.AbstractProblem`][] says, and that

    - parameters are one vector, shape `(d,)`, and an example is a pair of a vector of
        that shape and dtype and a number;
    - `slope` is the derivative of the loss in the prediction, of the prediction's
        dtype; where the loss has a corner, any value between the slopes beside it;
    - `gradient` is not overridden: the engines for linear models do not call it, but
        take `slope` times the features.
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
