"""Generalised linear models on Gaussian features, whose labels depend on one signal."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Key, RealScalar
from ._gaussian import AbstractGaussianLinear, spread
from ._spectrum import Spectrum


class AbstractGeneralisedLinear(AbstractGaussianLinear):
    r"""A linear predictor of labels whose law depends on the signal
    $r^* = \langle a, x^* \rangle$ alone.

    With the prediction $r = \langle a, x \rangle$ of the same features, the pair
    $(r, r^*)$ is normal, and the expected loss and all that the limits need are
    functions of its three covariances. The excess risk is the expected loss less that
    at $x^*$.

    Parameters are held in the eigenbasis of $K$. The optimum, and a start along it, are
    spread evenly over the dimensions of each eigenspace.

    The author writes three fields, `spectrum`, `optimum` and `start`, and the methods
    below, each for one label. **They must guarantee** what
    [`jaxclip.problem.AbstractLinear`][] says, and that

    - `optimum` has the norm of $x^*$ in each eigenspace, shape `(m,)`, and minimises
        the expected loss;
    - `start` has the component of $x_0$ along $x^*$ in each eigenspace, shape `(m,)`,
        of either sign;
    - `slope` never falls in the prediction, and is smooth in it and finite for every
        finite one, as is its derivative;
    - `labels` and `probability` describe what `draw` draws;
    - numbers are array fields.
    """

    optimum: eqx.AbstractVar[Float[Array, " m"]]
    start: eqx.AbstractVar[Float[Array, " m"]]

    @abc.abstractmethod
    def draw(self, key: Key, signal: RealScalar) -> RealScalar:
        """A label, of the signal's dtype.

        **Arguments:**

        - `key`: determines it.
        - `signal`: $r^*$.
        """

    @abc.abstractmethod
    def labels(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Labels, and the weights with which a sum over them is one over all labels.

        Weights other than 1, and labels that are no whole numbers, where the labels are
        too many to be summed one by one.
        """

    @abc.abstractmethod
    def probability(
        self, label: RealScalar, mean: RealScalar, variance: RealScalar
    ) -> RealScalar:
        """The probability of a label, averaged over a normal law of the signal.

        It must be differentiable in the mean and the variance, to nine digits of 1.

        **Arguments:**

        - `label`: one of `labels`.
        - `mean`, `variance`: of the signal; the variance is positive, and may be next
            to nothing.
        """

    @abc.abstractmethod
    def edges(self, label: RealScalar) -> Float[Array, " k"]:
        """Predictions, and signals, such that between two of them the slope of this
        label and its probability at a signal are smooth on the scale of their distance.
        In any order, as many for each label.

        **Arguments:**

        - `label`: one of `labels`.
        """

    @abc.abstractmethod
    def excess_risk(
        self, signal: RealScalar, cross: RealScalar, error: RealScalar
    ) -> RealScalar:
        r"""The expected loss at $x$ less that at $x^*$.

        **Arguments:**

        - `signal`, `cross`, `error`: $\mathrm{Var}\, r^*$, $\mathrm{Cov}(r^*, r - r^*)$
            and $\mathrm{Var}(r - r^*)$.
        """

    def init(self) -> Float[Array, " d"]:
        """The start, in the eigenbasis."""
        return spread(self.spectrum, self.start)

    def label(self, key: Key, features: Float[Array, " d"]) -> RealScalar:
        signal = jnp.sum(features * spread(self.spectrum, self.optimum))
        return self.draw(key, signal)

    def lumped(self) -> "AbstractGeneralisedLinear":
        """Two axes an eigenspace: along $x^*$, and the rest of the parameters."""
        eigenvalues = self.spectrum.eigenvalues
        axes = Spectrum(jnp.concatenate([eigenvalues, eigenvalues]))
        rest = jnp.zeros_like(self.optimum)
        parts = (
            axes,
            jnp.concatenate([self.optimum, rest]),
            jnp.concatenate([self.start, rest]),
        )
        return eqx.tree_at(lambda p: (p.spectrum, p.optimum, p.start), self, parts)

    def risk(self, params: Float[Array, " d"]) -> RealScalar:
        eigenvalues = self.spectrum.expand(self.spectrum.eigenvalues)
        optimum = spread(self.spectrum, self.optimum)
        error = params - optimum
        return self.excess_risk(
            jnp.sum(eigenvalues * optimum**2),
            jnp.sum(eigenvalues * optimum * error),
            jnp.sum(eigenvalues * error**2),
        )
