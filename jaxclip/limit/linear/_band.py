r"""The risk ODE together with the scatter of single runs around it.

The covariance $S$ of the risk $u_j$ that the modes hold follows, to leading order in
one over the intrinsic dimension, a linear equation along the path of the mean:

$$\frac{dS}{dk} = J S + S J^T + Q, \qquad
J = -2 q\, \mathrm{diag}(\lambda) + b\, 1^T, \qquad
b_j = \lambda_j (-2 q' u_j + \tfrac12 g' f_j),$$

with the derivatives of $q$ and $g$ in the risk, and the covariance $Q$ of what one step
adds (`_scatter.py`). The variance of the risk is the sum of all entries of $S$. All
sums over $u_j$ and $f_j$ that enter it are those of smooth functions of $\lambda_j$,
which the nodes of a compressed spectrum share with it: a node stands for a mode here,
too. Derived here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._numerics import safe_sqrt
from ..._types import RealScalar
from ._collocation import ModeEquation
from ._scatter import Response, ResponseOfSamples


class Scattered(NamedTuple):
    """The modes of the risk, and how they scatter.

    - `u`: shape `(n,)`, their mean over runs.
    - `covariance`: shape `(n, n)`.
    """

    u: Float[Array, " n"]
    covariance: Float[Array, "n n"]


class ScatterEquation(eqx.Module):
    """The equation of modes and their scatter.

    - `mean`: that of the modes.
    - `response`: a function of a step and a risk.
    """

    mean: ModeEquation
    response: Callable[[RealScalar, RealScalar], Response]

    def __call__(self, step: Any, y: Scattered) -> Scattered:
        modes, covariance = self.mean.modes, y.covariance
        q, _ = self.mean.at(step, jnp.sum(y.u))
        push, added = self.source(step, y.u)
        decay = 2 * q * modes.eigenvalues
        # Of a symmetric matrix, whose second half is the transpose of the first.
        half = -decay[:, None] * covariance
        half += jnp.outer(push, jnp.sum(covariance, axis=0))
        return Scattered(self.mean(step, y.u), half + half.T + added)

    def source(
        self, step: Any, u: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """How the modes move with the risk, $b$, and what one step adds, $Q$."""
        modes, risk = self.mean.modes, jnp.maximum(jnp.sum(u), 0.0)
        found = self.response(self.mean.reading.at(step), risk)
        push = -2 * found.descent * u + found.noise * modes.forcing / 2
        return modes.eigenvalues * push, found.increments.matrix(modes, u)


def summary(
    y: Scattered | Float[Array, " n"],
) -> tuple[Float[Array, " n"], RealScalar | None]:
    """The modes, and the variance of the risk where it is followed."""
    return (y.u, jnp.sum(y.covariance)) if isinstance(y, Scattered) else (y, None)


def deviation(
    response: ResponseOfSamples,
    steps: Float[Array, " s"],
    risk: Float[Array, " s"],
    variance: Float[Array, " s"],
) -> Float[Array, " s"]:
    """The standard deviation from a variance in which what has none was left out."""
    finite = jnp.where(jnp.isfinite(risk), risk, 0.0)
    infinite = jax.vmap(response.infinite)(steps, finite) & (steps > 0)
    infinite |= ~jnp.isfinite(risk)
    infinite = jax.lax.cummax(infinite.astype(int)) > 0
    # Rounding may leave less than nothing of a variance.
    return jnp.where(infinite, jnp.inf, safe_sqrt(variance))


class OfModes(diffrax.AbstractAdaptiveStepSizeController):
    """A controller that looks at the modes alone: the covariance is linear in what they
    are, and small where their error is.

    - `controller`: the one that is shown the modes.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    # Variables in diffrax's types, and here those of the controller inside.
    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction: Any) -> "OfModes":
        controller: Any = self.controller.wrap(direction)
        return OfModes(controller)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        def of_modes(terms, t0, u, args):
            return func(terms, t0, Scattered(u, y0.covariance), args).u

        return self.controller.init(
            terms, t0, t1, y0.u, dt0, args, of_modes, error_order
        )

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        assert y_error is not None  # every solver here estimates its error
        return self.controller.adapt_step_size(
            *(t0, t1, y0.u, y1_candidate.u, args, y_error.u, error_order),
            controller_state,
        )
