"""What SGD needs of a problem."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike


class AbstractProblem(eqx.Module):
    """Something that stochastic gradient descent can be run on.

    Every method is for one example; the library vmaps. An example is a function of the
    stream, which is the run's key or what is derived from it once, and of the absolute
    index of the sample, so that runs that share a key share their data, whatever the
    engine, its block size and the other settings.

    **An author must guarantee**, and the library does not check, that

    - all methods are pure and traceable: JAX operations, no branch in Python on a
        value. Parameters, stream and index are traced;
    - `example` depends on the stream and the index alone, and examples of different
        indices are independent: `jax.random.fold_in(stream, index)` is such a key. It
        may be called for indices that no step then uses;
    - `gradient` has the structure, shapes and dtypes of `params`, whose leaves are all
        arrays of floats, and its mean over examples is the gradient of the expected
        loss. Engines use nothing else, so that it may also be biased on purpose;
    - `risk` is a number that does not depend on a random draw, and is differentiable:
        the gradient flow descends it. An infinite or NaN risk means that a run has
        diverged, and is recorded as infinite;
    - `init` returns the same parameters at every call;
    - numbers are array fields, so that they can be swept and differentiated.
    """

    @abc.abstractmethod
    def init(self) -> Params:
        """The parameters at step 0."""

    def origin(self) -> Params:
        """Where weight decay pulls to, of the structure of the parameters: by default
        zeros. A problem that measures its parameters from elsewhere says so here."""
        return jax.tree.map(jnp.zeros_like, self.init())

    def stream(self, key: Key) -> PyTree[Array]:
        """What is worked out once for a run, before the first step: the key itself, or
        something that is expensive to derive from it, such as a permutation.

        **Arguments:**

        - `key`: that of the run.
        """
        return key

    def in_batches(self, batch_size: int) -> "AbstractProblem":
        """The problem as a run sees it that takes so many samples a step: by default
        itself, since a sample does not depend on the batch that it is in."""
        del batch_size
        return self

    def check_length(self, samples: int) -> None:
        """Refuses a run of more `samples` than the problem has; by default none is."""
        del samples

    @abc.abstractmethod
    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        """The training example with this index.

        **Arguments:**

        - `stream`: what the method of this name returned for the run.
        - `index`: a non-negative integer, counted from the start of the run.
        """

    @abc.abstractmethod
    def gradient(self, params: Params, example: Example) -> Params:
        """The gradient of the loss on one example.

        **Arguments:**

        - `params`: the parameters, of the structure and shapes that `init` returns.
        - `example`: what the method of this name returned for one index.
        """

    @abc.abstractmethod
    def risk(self, params: Params) -> RealScalar:
        """What a curve records: the excess of the expected loss over its minimum.

        **Arguments:**

        - `params`: as of `gradient`.
        """
