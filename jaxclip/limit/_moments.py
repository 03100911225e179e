"""What the limits see of a rule, a noise and an update: two numbers at each risk."""

import equinox as eqx
import jax.numpy as jnp

from .._checks import nonnegative, positive
from .._types import RealScalarLike, Step
from ..clip import AbstractClip, Adaptive, Moments, need_rule, unchecked_moments
from ..noise import AbstractNoise
from ..transform import AbstractScope, PerExample, PerTree, algorithm


def moments(
    clip: AbstractClip | Adaptive,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step = 0,
    *,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
) -> Moments:
    r"""The reduction factors of a clipping rule.

    A sample's gradient is $w a$ with the residual $w = \sqrt{2R} Z - \epsilon$ and a
    feature vector $a$ whose norm concentrates at `feature_norm`, so that a rule with
    factor $f$ acts on the residual as $\psi(w) = w f(|w| \cdot$ `feature_norm`$)$. Then

    $$\mu = E\,\psi'(w), \qquad \text{second} = E\,\psi(w)^2,$$

    by quadrature in the law of $w$, split at the rule's kinks. Differentiable in every
    number of the rule and the noise, in `risk` and in `feature_norm`. For the hard
    clip both are defined in arXiv:2406.11733; for any other scalar rule they are
    derived here, by the same use of Stein's lemma.

    **Arguments:**

    - `clip`: the rule; its thresholds are in the unit of the gradient's norm. Not an
        `Adaptive` one, which depends on more than the norm.
    - `noise`: the label noise.
    - `risk`: the excess risk $R$, a number in the label's squared unit, not negative.
        For several of them use `jax.vmap`.
    - `feature_norm`: the square root of the trace of the features' covariance, in the
        features' unit, positive.
    - `step`: where a threshold that depends on the step is evaluated.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][]. A batch of $B$ samples leaves
        one over $B$ of the second moment and of the variance.

    **Returns:**

    A [`jaxclip.clip.Moments`][].

    **Raises:**

    A `ValueError` where `clip` is no rule, or a number is out of its range.
    """
    clip = need_rule(clip, "moments")
    risk = nonnegative("risk", risk)
    feature_norm = positive("feature_norm", feature_norm)
    update = algorithm.Update(batch_size, scope)
    need_moments("moments", update)
    return _jitted(clip, noise, risk, feature_norm, jnp.asarray(step), update)


def update_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
    update: algorithm.Update,
) -> Moments:
    """The moments of a batch's update, without the checks at the door."""
    m = unchecked_moments(clip, noise, risk, feature_norm, step)
    if update.batch_size == 1:
        return m
    share = 1 / update.batch_size
    return Moments(m.mu, share * m.second, share * m.variance, m.nu)


def need_moments(who: str, update: algorithm.Update) -> None:
    """Refuses an update whose moments are not known."""
    scope = update.scope
    whole = scope.within if isinstance(scope, PerExample) else scope
    if not isinstance(whole, PerTree):
        raise ValueError(
            f"`{who}` knows the scopes `PerTree()` and `PerExample()` of whole "
            f"gradients. Got `scope={scope!r}`."
        )
    if isinstance(scope, PerTree) and update.batch_size > 1:
        raise ValueError(
            f"`{who}` knows batches that are clipped per example: take "
            f"`scope=PerExample()`. Got `batch_size={update.batch_size}`."
        )
    if isinstance(scope, PerExample) and scope.noise_std is not None:
        raise ValueError(f"`{who}` has no equation for the scope's `noise_std`.")


# Operation by operation the quadrature takes seconds.
_jitted = eqx.filter_jit(update_moments)
