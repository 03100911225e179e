r"""The law of a residual $w = s Z - \epsilon$, as the limits read it.

Signal $sZ$, $Z \sim N(0, 1)$, minus the noise of a label. Everything that a limit needs
of a noise is one of a few numbers of this law: an expectation of a function of $|w|$,
the expected slope of an odd function, the same two for any function of $w$, the
logarithm of its density and its Fisher information.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import PyTree, RealScalarLike

Function = Callable[[Float[Array, ""]], Any]


class AbstractLaw(eqx.Module):
    """The law of a residual: a real random variable with a smooth density.

    Most noises need no class of their own here: a [`jaxclip.noise.SmoothLaw`][] takes a
    function for the logarithm of the density.

    **An author must guarantee**, and the library does not check, that

    - all methods are pure and traceable, finite for finite arguments, and
        differentiable in the numbers of the law, which are array fields;
    - `expect` and `slope` are accurate to more digits than the limits are solved to,
        1e-9 in float64 and 1e-5 in float32: the limits treat them as exact. Between
        two kinks they may take the function to be smooth, and at a kink it may jump.
        `function` is finite, and is called with norms only;
    - they use the derivative of the density and not that of `function`, which jumps;
    - where the defaults of `expect_signed` and `slope_signed`, whose function and kinks
        are of the residual itself, are replaced, the same holds for these. The defaults
        ask for a `log_density` that may be differentiated in the residual;
    - `size` is a length of the order of a typical residual and positive, since it is
        divided by; no result may depend on it, so that it is a constant to derivatives;
    - `panel_edges` resolves the density: it is read by quadratures that have a function
        of their own to integrate, such as that of the score rule.
    """

    @property
    @abc.abstractmethod
    def size(self) -> Float[Array, ""]:
        """A length of the law's own order, in the unit of the label."""

    @abc.abstractmethod
    def panel_edges(self) -> Float[Array, " e"]:
        """Norms such that the density is smooth on the scale of the distance to the
        next of them, and negligible beyond the largest. In any order."""

    @abc.abstractmethod
    def log_density(self, residual: RealScalarLike) -> Float[Array, ""]:
        """The logarithm of the density at `residual` (in the unit of the label)."""

    @abc.abstractmethod
    def expect(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        r"""$E\,h(|w|)$ for a `function` $h$ that is smooth between the `kinks`."""

    @abc.abstractmethod
    def slope(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        r"""$E\,\psi'(w)$ for the odd function $\psi$ that is `function` at $w \ge 0$.

        Jumps of $\psi$ at the `kinks` count, as they do in Stein's identity
        $E[\psi(w) a] = E[\psi'(w)] K z$, which is what the number is for.
        """

    def expect_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> PyTree[Array]:
        r"""$E\,h(w)$ for a `function` $h$ that is smooth between the `kinks`, which are
        residuals of either sign; an infinite one stands for none.

        By default the expectation of the mean of $h$ over both signs of a norm, each
        with its share of the density.
        """

        def mean(norm):
            gap = self.log_density(norm) - self.log_density(-norm)
            # Far out neither may be representable; what is there does not count.
            share = jax.nn.sigmoid(jnp.where(jnp.isnan(gap), 0.0, gap))
            both = function(norm), function(-norm)
            return jax.tree.map(lambda x, y: share * x + (1 - share) * y, *both)

        return self.expect(mean, [jnp.abs(kink) for kink in kinks])

    def slope_signed(
        self, function: Function, kinks: Sequence[RealScalarLike] = ()
    ) -> Float[Array, ""]:
        r"""$E\,\psi'(w)$ for any `function` $\psi$ of the residual, odd or not.

        Jumps of $\psi$ at the `kinks` count, one at 0 too. By default the `slope` of
        the odd part, and for the even one its mean product with the score
        $-(\log p)'$, by parts.
        """

        def odd(norm):
            return (function(norm) - function(-norm)) / 2

        def even(residual):
            score = -jax.grad(self.log_density)(residual)
            score = jnp.where(jnp.isnan(score), 0.0, score)
            return score * (function(residual) + function(-residual)) / 2

        norms = [jnp.abs(kink) for kink in kinks]
        return self.slope(odd, norms) + self.expect_signed(even, norms)

    @abc.abstractmethod
    def information(self) -> Float[Array, ""]:
        """The Fisher information of the location: the mean square of the score, one
        over the squared unit of the label."""
