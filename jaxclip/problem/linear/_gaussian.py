"""Linear models on Gaussian features that are drawn afresh for every sample."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from ..._checks import as_float, check
from ..._random import normal
from ..._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike
from ...noise import AbstractNoise
from ._base import AbstractLinear
from ._spectrum import Spectrum


class AbstractGaussianLinear(AbstractLinear):
    r"""A linear model whose features are $a_k \sim N(0, K)$, one draw a sample.

    Parameters are held in the eigenbasis of $K$.

    **An author must guarantee** what [`jaxclip.problem.AbstractLinear`][] says, and

    - that `label` depends on the features through one fixed direction in each
        eigenspace at most, since [`jaxclip.Lumped`][] draws only those, and on its key;
    - that `lumped` is this problem in one or two dimensions for each eigenvalue, in the
        order that it says: a run on it must have the law of the risk of this one;
    - that `init` returns components in the eigenbasis, the dimensions of one eigenspace
        side by side, in the order of `spectrum`.
    """

    spectrum: eqx.AbstractVar[Spectrum]

    @abc.abstractmethod
    def label(self, key: Key, features: Float[Array, " d"]) -> RealScalar:
        """The target of a sample.

        **Arguments:**

        - `key`: draws what of it is random.
        - `features`: shape `(d,)`, those of the sample.
        """

    @abc.abstractmethod
    def lumped(self) -> "AbstractGaussianLinear":
        """The problem on the few axes of each eigenspace that a run depends on.

        First the direction that labels depend on, if there is one, then the direction
        of the rest of the error; each in the order of the eigenvalues.
        """

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        return draw(self, stream, index)


def draw(
    problem: AbstractGaussianLinear, stream: PyTree[Array], index: RealScalarLike
) -> Example:
    """Features in the eigenbasis, and their label."""
    features_key, label_key = jr.split(jr.fold_in(stream, index))
    spectrum = problem.spectrum
    scale = jnp.sqrt(spectrum.expand(spectrum.eigenvalues))
    features = scale * normal(features_key, spectrum.dim)
    return features, problem.label(label_key, features)


class AbstractNoisyLinear(AbstractGaussianLinear):
    r"""Labels $y_k = \langle a_k, x^* \rangle + \epsilon_k$ with independent noise.

    For every convex loss of the residual $\langle a, x \rangle - y$ the expected loss
    has its minimum at $x^*$ (up to an intercept, which $E a = 0$ takes no part in): its
    gradient there is $E[\ell'(-\epsilon)]\, E[a] = 0$, and by Stein's lemma
    $E[\ell''] K (x - x^*)$ elsewhere. Derived here. So one measure of the error serves
    all losses, the excess risk of least squares,
    $R(x) = (x - x^*)^T K (x - x^*) / 2$, in the label's squared unit.

    Only the spectrum of $K$ and the size of the error in each eigenspace matter to the
    law of a run, so parameters are measured from the optimum ($x^* = 0$); the error of
    an eigenspace is spread evenly over its dimensions.

    The author writes `slope` and three fields: `spectrum`, `noise` and `start`. **They
    must guarantee** what [`jaxclip.problem.AbstractLinear`][] says, and that

    - the loss is a function of the residual alone, with the slope's argument
        `prediction - target`, and convex: only then is $x^*$ its minimum;
    - `start` holds the norm of the error in each eigenspace, shape `(m,)`, not
        negative.
    """

    noise: eqx.AbstractVar[AbstractNoise]
    start: eqx.AbstractVar[Float[Array, " m"]]

    def init(self) -> Float[Array, " d"]:
        """The error $x_0 - x^*$ in the eigenbasis."""
        return spread(self.spectrum, self.start)

    def origin(self) -> Float[Array, " d"]:
        """The weights that are zero: those of the start, since nothing says where they
        are."""
        return self.init()

    def label(self, key: Key, features: Float[Array, " d"]) -> RealScalar:
        del features
        return self.noise.sample(key)

    def lumped(self) -> "AbstractNoisyLinear":
        axes = Spectrum(self.spectrum.eigenvalues)
        return eqx.tree_at(lambda problem: problem.spectrum, self, axes)

    def risk(self, params: Params) -> RealScalar:
        eigenvalues = self.spectrum.expand(self.spectrum.eigenvalues)
        return jnp.sum(eigenvalues * params**2) / 2


def spread(spectrum: Spectrum, norms: Float[Array, " m"]) -> Float[Array, " d"]:
    """A vector with these norms in the eigenspaces, even over their dimensions."""
    return spectrum.expand(norms / jnp.sqrt(spectrum.multiplicity))


def as_norms(name: str, value: Any, spectrum: Spectrum) -> Float[Array, " m"]:
    """`value` as the norms of a vector's parts in the eigenspaces."""
    return check(
        _one_each(name, value, spectrum),
        lambda x: ~((x >= 0) & (x < np.inf)),
        f"`{name}` must be norms: non-negative and finite.",
    )


def along_optimum(
    optimum: Any, start: Any, spectrum: Spectrum
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """`optimum` as norms, and `start` as components along it: by default zero."""
    norms = as_norms("optimum", optimum, spectrum)
    if start is None:
        start = jnp.zeros_like(norms)
    return norms, as_components("start", start, spectrum)


def as_components(name: str, value: Any, spectrum: Spectrum) -> Float[Array, " m"]:
    """`value` as components, of either sign, along one direction of each eigenspace."""
    return check(
        _one_each(name, value, spectrum),
        lambda x: ~(abs(x) < np.inf),
        f"`{name}` must be finite.",
    )


def _one_each(name: str, value: Any, spectrum: Spectrum) -> Float[Array, " m"]:
    value = as_float(name, value)
    if value.shape != spectrum.eigenvalues.shape:
        raise ValueError(
            f"`{name}` must have one number for each of the spectrum's eigenvalues: "
            f"shape {spectrum.eigenvalues.shape}. Got {value.shape}."
        )
    return value
