"""What the limits see of a rule, a loss of the residual and a noise."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import nonnegative, positive
from .._types import RealScalar, RealScalarLike, Step
from ..clip import (
    AbstractClip,
    Adaptive,
    Identity,
    criteria,
    factor_at,
    need_rule,
    unchecked_moments,
)
from ..noise import AbstractLaw, AbstractNoise
from ..problem import AbstractLoss, AbstractResidualLoss, SquaredLoss
from ..transform import PerExample, PerTree, algorithm
from ._crossing import crossing
from ._moments import Laws, need_moments, shares, update_moments


class LossMoments(NamedTuple):
    r"""The reduction factors of a clipping rule for a loss of the residual.

    With the residual $w$ and the clipped slope of the loss $\psi$:

    - `mu`: $E\,\psi'(w)$, the rate of descent, in the slope's unit over the label's.
    - `second`: $E\,\psi(w)^2$, in the squared unit of the slope.
    - `own_mu`, `own_second`: the same of the loss without a clip.
    """

    mu: Float[Array, "..."]
    second: Float[Array, "..."]
    own_mu: Float[Array, "..."]
    own_second: Float[Array, "..."]

    @property
    def csc(self) -> Float[Array, "..."]:
        """The clipped-stability criterion against the same loss without a clip. Above
        1, clipping widens the range of stable learning rates."""
        return criteria(*self._fractions)[0]

    @property
    def ccc(self) -> Float[Array, "..."]:
        """The clipping-comparison criterion against the same loss without a clip. Above
        1, clipped SGD at its best learning rate beats unclipped SGD now."""
        return criteria(*self._fractions)[1]

    @property
    def efficiency(self) -> Float[Array, "..."]:
        r"""$\mu^2 / E\,\psi(w)^2$, which the fall of the risk at the best rate is
        proportional to: what losses are compared by. One over the squared unit of the
        label; at most the residual's Fisher information ([`jaxclip.ceiling`][])."""
        return self.mu**2 / self.second

    @property
    def _fractions(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        return self.mu / self.own_mu, self.second / self.own_second


def loss_moments(
    clip: AbstractClip | Adaptive,
    loss: AbstractResidualLoss,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step = 0,
) -> LossMoments:
    r"""The reduction factors of a clipping rule for a loss of the residual.

    A sample's gradient is $\ell'(w) a$ with the residual
    $w = \sqrt{2R} Z - \epsilon$, so that a rule with factor $f$ acts as
    $\psi(w) = \ell'(w) f(|\ell'(w)| \cdot$ `feature_norm`$)$, and by Stein's lemma
    $E[\psi(w) a] = E[\psi'(w)] K (x - x^*)$: two numbers are all that the limits need,

    $$\mu = E\,\psi'(w), \qquad \text{second} = E\,\psi(w)^2,$$

    whatever the loss. By quadrature in the law of $w$, split at the kinks of the loss
    and at the residuals where its slope is at a kink of the rule. A slope that jumps,
    as that of [`jaxclip.PinballLoss`][], counts in $\mu$ with its jump times the
    density there. Derived here; for the squared loss they are those of
    [`jaxclip.moments`][].

    ```python
    m = jc.limit.loss_moments(
        jc.Identity(), jc.HuberLoss(1.0), jc.StudentT(3.0, 1.0), 0.1, 1.0
    )
    ```

    **Arguments:**

    - `clip`, `noise`, `risk`, `feature_norm`, `step`: as of [`jaxclip.moments`][].
    - `loss`: of the residual.

    **Returns:**

    A [`jaxclip.limit.LossMoments`][]. Where the noise has no variance and the clipped
    slope grows without bound, its second moment counts as infinite.

    **Raises:**

    A `ValueError` where `clip` is no rule, `loss` is none of the residual, or a number
    is out of its range.
    """
    clip = need_rule(clip, "loss_moments")
    if not isinstance(loss, AbstractResidualLoss):
        raise ValueError(
            "`loss` must be one of the residual, such as `HuberLoss(1.0)`. "
            f"Got {loss!r}."
        )
    risk = nonnegative("risk", risk)
    feature_norm = positive("feature_norm", feature_norm)
    return _jitted(clip, loss, noise, risk, feature_norm, jnp.asarray(step))


@eqx.filter_jit
def _jitted(clip, loss, noise, risk, feature_norm, step) -> LossMoments:
    setting = (loss, noise, risk, feature_norm, step)
    return LossMoments(
        *clipped_slope(clip, *setting), *clipped_slope(Identity(), *setting)
    )


def clipped_slope(
    clip: AbstractClip,
    loss: AbstractLoss,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
) -> tuple[RealScalar, RealScalar]:
    """`mu` and `second` of [`LossMoments`][], for use inside a solver's loop."""
    if isinstance(loss, SquaredLoss):
        m = unchecked_moments(clip, noise, risk, feature_norm, step)
        return m.mu, m.second
    assert isinstance(loss, AbstractResidualLoss)  # as checked at the door
    signal_variance = 2 * jnp.asarray(risk)
    # Without signal and noise every residual is 0, and SGD does not move; the law is
    # then one of which nothing is used.
    some = signal_variance + noise.variance > 0
    law = noise.residual(jnp.where(some, signal_variance, 1.0))
    zero = jnp.zeros_like(signal_variance)

    def slope(residual):
        return loss.slope(residual, zero.astype(residual.dtype))

    def psi(residual):
        s = slope(residual)
        return s * factor_at(clip, jnp.abs(s) * feature_norm, step)

    kinks = _kinks(clip, loss, slope, law, feature_norm, step)
    mu = law.slope_signed(psi, kinks)
    second = _second(psi, law, noise, kinks)
    here, rise = jax.jvp(psi, (zero,), (jnp.ones_like(zero),))
    return jnp.where(some, mu, rise), jnp.where(some, second, here**2)


def loss_update(
    clip: AbstractClip,
    loss: AbstractLoss,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
    update: algorithm.Update,
    laws: Laws = None,
) -> tuple[RealScalar, RealScalar]:
    """The same of a batch's update, with the laws of [`jaxclip.limit.update_laws`][]
    where many are asked for."""
    if isinstance(loss, SquaredLoss):
        m = update_moments(clip, noise, risk, feature_norm, step, update, laws)
        return m.mu, m.second
    mu, second = clipped_slope(clip, loss, noise, risk, feature_norm, step)
    mean, square = shares(update)
    return mean * mu, square * second


def need_loss_moments(who: str, loss: AbstractLoss, update: algorithm.Update) -> None:
    """Refuses an update whose moments are not known for this loss."""
    if isinstance(loss, SquaredLoss):
        need_moments(who, update)
    else:
        need_samples(f"{who}` with a `{type(loss).__name__}", update)


def need_samples(who: str, update: algorithm.Update) -> None:
    """Refuses an update that clips anything but whole gradients of single samples."""
    scope = update.scope
    each = isinstance(scope, PerExample) and isinstance(scope.within, PerTree)
    if not each and not isinstance(scope, PerTree):
        raise ValueError(
            f"`{who}` knows the scopes `PerTree()` and `PerExample()` of whole "
            f"gradients. Got `scope={scope!r}`."
        )
    if isinstance(scope, PerTree) and update.batch_size > 1:
        raise ValueError(
            f"`{who}` knows batches that are clipped per example: take "
            f"`scope=PerExample()`. Got `batch_size={update.batch_size}`."
        )
    if isinstance(scope, PerExample) and scope.reduce != "mean":
        raise ValueError(
            f"`{who}` knows the mean of the clipped gradients: take `PerExample()`. "
            f"Got `scope={scope!r}`."
        )
    if isinstance(scope, PerExample) and scope.noise_std is not None:
        raise ValueError(
            f"`{who}` has no equation for the scope's `noise_std`: leave it out."
        )


def _kinks(
    clip: AbstractClip,
    loss: AbstractResidualLoss,
    slope: Callable[[RealScalar], RealScalar],
    law: AbstractLaw,
    feature_norm: RealScalarLike,
    step: Step,
) -> list[RealScalarLike]:
    """The residuals at which the clipped slope is not smooth."""
    own = [jnp.asarray(kink / feature_norm) for kink in clip.kinks(step)]
    # A rule may jump where the slope passes 0.
    values = jnp.stack([jnp.zeros_like(law.size), *own, *(-kink for kink in own)])
    points = jax.vmap(lambda value: crossing(slope, value, law.size))(values)
    return [*loss.kinks(), *points]


def _second(
    psi: Callable[[RealScalar], RealScalar],
    law: AbstractLaw,
    noise: AbstractNoise,
    kinks: list[RealScalarLike],
) -> RealScalar:
    """The mean square, infinite where it counts as that."""
    far = law.size * jnp.array([1e13, 1e14])
    ends = jnp.abs(jax.lax.stop_gradient(jax.vmap(psi)(jnp.concatenate([far, -far]))))
    grows = jnp.any(ends[1::2] > 1.5 * ends[::2])
    infinite = grows & ~(noise.variance < jnp.inf)

    # Not the squares of what is not used, which may not be representable.
    def square(residual):
        return jnp.where(infinite, 0.0, psi(jnp.where(infinite, 0.0, residual))) ** 2

    return jnp.where(infinite, jnp.inf, law.expect_signed(square, kinks))
