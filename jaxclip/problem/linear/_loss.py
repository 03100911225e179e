"""Losses of a linear prediction: what one sample costs, and the slope that SGD sees."""

import abc
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import as_float, check, positive
from ..._types import RealScalar, RealScalarLike


def _level(value: Any) -> Array:
    return check(
        as_float("level", value),
        lambda x: ~((x > 0) & (x < 1)),
        "`level` must be the level of a quantile, in (0, 1).",
    )


class AbstractLoss(eqx.Module):
    r"""A loss $\ell(p, y)$ of the prediction $p = \langle a, x \rangle$ of a target.

    **An author must guarantee**, and the library does not check, that

    - `value` is convex in the prediction, and `slope` its derivative in it; at a corner
        any number between the slopes beside it;
    - both are pure, traceable functions of two numbers, in their dtype; the library
        vmaps. `slope` is differentiated once more, by the search for the minimiser on
        the rows of a table;
    - a loss whose slope jumps overrides `smoothed`; `smoothed(width)` of any other is
        the loss itself, the same object, by which the search tells the two apart;
    - numbers are array fields, of any precision.
    """

    @abc.abstractmethod
    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        r"""$\ell(p, y)$.

        **Arguments:**

        - `prediction`: $p$.
        - `target`: $y$.
        """

    @abc.abstractmethod
    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        r"""$\partial \ell / \partial p$.

        **Arguments:**

        - `prediction`, `target`: as of `value`.
        """

    def smoothed(self, width: float) -> "AbstractLoss":
        """A loss with a continuous slope that is nowhere further off than `width`.

        What the minimiser on the rows of a table is searched with. By default the loss
        itself; a loss whose slope jumps must return another one.
        """
        del width
        return self

    def check_targets(self, y: np.ndarray) -> None:
        """Refuses targets that the loss is not meant for; by default it takes any."""
        del y


class AbstractResidualLoss(AbstractLoss):
    r"""A loss of the residual $w = p - y$ alone.

    The limits know linear models with such a loss: they need of it what SGD sees, its
    slope $\ell'(w)$, and where that is not smooth.

    **An author must guarantee** what [`jaxclip.problem.AbstractLoss`][] says, and

    - that `value` and `slope` depend on `prediction - target` alone;
    - that the slope, which never falls, is smooth between the residuals that `kinks`
        lists. A kink that is not listed makes the coefficients inaccurate, and where
        the slope jumps there, wrong;
    - that its derivative is the slope's own on either side of a kink, and finite.
    """

    @abc.abstractmethod
    def kinks(self) -> tuple[Float[Array, ""] | RealScalarLike, ...]:
        """The residuals at which the slope is not smooth in the residual, or jumps;
        `()` if none. In the unit of the target."""


class SquaredLoss(AbstractResidualLoss):
    r"""Half the squared residual, $(p - y)^2 / 2$: for the mean."""

    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return (prediction - target) ** 2 / 2

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return prediction - target

    def kinks(self) -> tuple[()]:
        return ()


def check_residual(what: str, loss: AbstractLoss) -> None:
    """Refuses a loss that is no function of the residual.

    **Arguments:**

    - `what`: the name of what needs one.
    """
    if not isinstance(loss, AbstractResidualLoss):
        raise ValueError(
            f"`{what}` needs a loss of the residual that lists its kinks, such as "
            f"`HuberLoss(1.0)`. Got a {type(loss).__name__}; derive it from "
            "`problem.AbstractResidualLoss`, or take `Logistic` for labels of two "
            "classes."
        )


def check_squared(what: str, loss: AbstractLoss) -> None:
    """Refuses any other loss.

    **Arguments:**

    - `what`: the name of what needs the squared loss.
    """
    if not isinstance(loss, SquaredLoss):
        raise ValueError(
            f"`{what}` needs a `LinearModel` with the squared loss. Got a "
            f"{type(loss).__name__}; leave out its `loss`."
        )


class HuberLoss(AbstractResidualLoss):
    r"""Half the squared residual up to a threshold $\delta$, linear beyond.

    $$\ell = \tfrac12 w^2 \text{ if } |w| \le \delta, \quad
    \delta (|w| - \delta / 2) \text{ else}, \qquad w = p - y.$$

    Huber 1964, doi:10.1214/aoms/1177703732.

    **Arguments:**

    - `threshold`: $\delta > 0$, in the unit of the target.
    """

    threshold: Float[Array, ""] = eqx.field(converter=partial(positive, "threshold"))

    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        slope = self.slope(prediction, target)
        return slope * (prediction - target - slope / 2)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return jnp.clip(prediction - target, -self.threshold, self.threshold)

    def kinks(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return -self.threshold, self.threshold


class PinballLoss(AbstractResidualLoss):
    r"""Absolute residuals, weighted by sign: for the quantile of level $\tau$.

    $$\ell = \max(-\tau w, (1 - \tau) w), \qquad w = p - y.$$

    At the tie the slope is 0. At the level one half it is half the absolute residual:
    SGD on absolute residuals is SGD on this loss at twice the rate, with half the
    threshold where gradients are clipped. Koenker and Bassett 1978,
    doi:10.2307/1913643.

    **Arguments:**

    - `level`: $\tau$ in (0, 1); one half for the median.
    """

    level: Float[Array, ""] = eqx.field(converter=_level)

    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        residual = prediction - target
        return jnp.maximum(-self.level * residual, (1 - self.level) * residual)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        residual = prediction - target
        below = jnp.where(residual < 0, -self.level, 0.0)
        return jnp.where(residual > 0, 1 - self.level, below)

    def kinks(self) -> tuple[float]:
        return (0.0,)

    def smoothed(self, width: float) -> AbstractLoss:
        return _SmoothPinball(self.level, jnp.asarray(width))


class LogisticLoss(AbstractLoss):
    r"""The negative log likelihood of a label that is 0 or 1,

    $$\ell = \log(1 + e^p) - y p,$$

    in nats, with $P(y = 1) = 1 / (1 + e^{-p})$.
    """

    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        # Not the formula above, whose two terms cancel at a large prediction.
        right = jax.nn.softplus(-prediction)
        return target * right + (1 - target) * jax.nn.softplus(prediction)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return jax.nn.sigmoid(prediction) - target

    def check_targets(self, y: np.ndarray) -> None:
        if np.any((y < 0) | (y > 1)):
            raise ValueError(
                "`y` must be 0 or 1, or probabilities between them, for "
                f"`LogisticLoss()`. Got numbers from {y.min():.3g} to {y.max():.3g}; "
                "for labels of -1 and 1 take (y + 1) / 2."
            )


class _SmoothPinball(AbstractLoss):
    r"""$-\tau w + \delta \log(1 + e^{w / \delta})$, at most $\delta \log 2$ above."""

    level: Float[Array, ""]
    width: Float[Array, ""]

    def value(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        residual = prediction - target
        hinge = self.width * jax.nn.softplus(residual / self.width)
        return hinge - self.level * residual

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return jax.nn.sigmoid((prediction - target) / self.width) - self.level
