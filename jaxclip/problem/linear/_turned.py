"""Linear models in the coordinates that an optimiser works in."""

from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._numerics import exact_dot
from ..._types import Example, Params, PyTree, RealScalar, RealScalarLike
from ._basis import into_eigenbasis, out_of_eigenbasis
from ._gaussian import AbstractNoisyLinear, draw, spread
from ._spectrum import Spectrum

_Turned = TypeVar("_Turned", bound=AbstractNoisyLinear)


class AbstractTurnedLinear(AbstractNoisyLinear):
    r"""Parameters $x = Q \tilde x$, with $\tilde x$ the components in the eigenbasis.

    The author writes what [`jaxclip.problem.AbstractNoisyLinear`][] asks for, and two
    more fields: `optimum`, the component of $x^*$ along the error in each eigenspace,
    and `basis`, the eigenvectors $Q$, one a column, or None where they are the
    coordinates themselves.
    """

    optimum: eqx.AbstractVar[Float[Array, " m"]]
    basis: eqx.AbstractVar[Float[Array, "p d"] | None]

    @property
    def covariance(self) -> Float[Array, "p p"]:
        """$K$, in the coordinates that the optimiser works in."""
        eigenvalues = self.spectrum.expand(self.spectrum.eigenvalues)
        if self.basis is None:
            return jnp.diag(eigenvalues)
        return exact_dot(self.basis * eigenvalues[None, :], self.basis.T)

    def in_eigenbasis(self: _Turned) -> _Turned:
        """The same problem, with parameters that are components in the eigenbasis."""
        return eqx.tree_at(lambda p: p.basis, self, None, is_leaf=lambda x: x is None)

    def from_eigenbasis(self, components: Float[Array, " d"]) -> Float[Array, " p"]:
        """A vector in the optimiser's coordinates, from its components."""
        return out_of_eigenbasis(self.basis, components)

    def lumped(self) -> "AbstractTurnedLinear":
        axes = Spectrum(self.spectrum.eigenvalues)
        return eqx.tree_at(lambda p: p.spectrum, self.in_eigenbasis(), axes)

    def init(self) -> Float[Array, " p"]:
        """The error $x_0 - x^*$."""
        return out_of_eigenbasis(self.basis, spread(self.spectrum, self.start))

    def origin(self) -> Float[Array, " p"]:
        """The weights that are zero, measured from the optimum."""
        return out_of_eigenbasis(self.basis, -spread(self.spectrum, self.optimum))

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        # The draws are those of the eigenbasis: in any other basis the run of a rule
        # that does not see it is the same one, turned.
        features, label = draw(self, stream, index)
        return out_of_eigenbasis(self.basis, features), label

    def risk(self, params: Params) -> RealScalar:
        eigenvalues = self.spectrum.expand(self.spectrum.eigenvalues)
        return jnp.sum(eigenvalues * into_eigenbasis(self.basis, params) ** 2) / 2
