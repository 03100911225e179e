"""What SGD needs of a problem."""

import abc

import equinox as eqx
import jax
from jaxtyping import Array

from .._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike


class AbstractProblem(eqx.Module):
    """Something that stochastic gradient descent can be run on.

    Every method is for one example; the library vmaps. An example is a function of the
    stream and of the absolute index of the sample, so that runs that share a key share
    their data, whatever the engine, its block size and the other settings.
    """

    @abc.abstractmethod
    def init(self) -> Params:
        """The parameters at step 0."""

    def stream(self, key: Key) -> PyTree[Array]:
        """What is worked out once for a run, before the first step: the key itself, or
        something that is expensive to derive from it, such as a permutation."""
        return key

    def check_length(self, samples: int) -> None:
        """Refuses a run of more samples than the problem has; by default it has any."""
        del samples

    @abc.abstractmethod
    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        """The training example with this index, a non-negative integer."""

    @abc.abstractmethod
    def gradient(self, params: Params, example: Example) -> Params:
        """The gradient of the loss on one example."""

    @abc.abstractmethod
    def risk(self, params: Params) -> RealScalar:
        """What a curve records: the excess of the expected loss over its minimum."""


class AbstractLinear(AbstractProblem):
    r"""A loss $\ell(\langle a, x \rangle, y)$ of a linear prediction.

    An example is the pair of the features `a`, shape `(d,)`, and the target `y`. The
    gradient on one sample is a number times `a`, which is what lets the blocked engine
    replace steps by matrix products.
    """

    @abc.abstractmethod
    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        """The derivative of the loss in the prediction."""

    def gradient(self, params: Params, example: Example) -> Params:
        features, target = example
        # In the highest precision, as the blocked engine's products are: by default an
        # accelerator would round the features to ten bits.
        precision = jax.lax.Precision.HIGHEST
        prediction = jax.numpy.dot(features, params, precision=precision)
        return self.slope(prediction, target) * features
