"""What the limits see of a rule, a noise and an update: two numbers at each risk."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import nonnegative, positive
from .._schedule import Constant
from .._types import RealScalar, RealScalarLike, Step
from ..clip import (
    AbstractClip,
    Adaptive,
    HardClip,
    Moments,
    factor_at,
    factor_at_infinity,
    need_rule,
    unchecked_moments,
)
from ..noise import AbstractNoise, batch
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

    by quadrature in the law of $w$, split at the rule's kinks. Differentiable in all
    numbers. For the hard clip both are defined in arXiv:2406.11733; for any other
    scalar rule they are derived here, by the same use of Stein's lemma.

    **Arguments:**

    - `clip`: the rule, not an `Adaptive` one; thresholds are on the gradient's norm.
    - `noise`: the label noise.
    - `risk`: the excess risk $R$, one number in the label's squared unit, not negative.
    - `feature_norm`: the square root of the trace of the features' covariance, in the
        features' unit, positive.
    - `step`: where a threshold that depends on the step is evaluated.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][].

    A batch of $B$ examples that are clipped one by one, `scope=PerExample()`, leaves
    one over $B$ of the second moment and of the variance. With `scope=PerTree()` the
    mean gradient is clipped, whose norm is `feature_norm` times $r = \|w\| / B$ for the
    vector $w$ of $B$ residuals; then

    $$\mu = E\Big[\frac{\psi'(r)}{B} + \Big(1 - \frac1B\Big) \frac{\psi(r)}{r}\Big],
    \qquad \text{second} = E\,\psi(r)^2,$$

    derived here. `variance` is that of the mean of $B$ residuals, so that `nu`, `csc`
    and `ccc` compare with unclipped SGD at the same batch. To about six digits in
    float64. Noise that takes few values is followed value by value in batches of up to
    16; in larger ones, and for an `Empirical` noise, whose sums are binned, fewer
    digits are right where the signal is narrower than the gaps between the sums.

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


Laws = batch.BatchLaws | batch.NormalLaws | None


def update_laws(
    noise: AbstractNoise,
    update: algorithm.Update,
    start: RealScalarLike,
) -> Laws:
    """The laws that the moments of a batch's clipped mean are integrated in, for all
    values of the risk that a run from `start` may have. None where one sample's will
    do."""
    if not clips_mean(update):
        return None
    low, high = _range(noise, jnp.asarray(start))
    return batch.batch_laws(noise, update.batch_size, low, high)


@eqx.filter_jit
def _range(noise: AbstractNoise, start: RealScalar) -> tuple[RealScalar, RealScalar]:
    """The values of the risk that a run may pass through, and more."""
    # Of a noise without a variance the size of a typical residual.
    size = jnp.minimum(noise.variance, noise.residual(0.0).size ** 2)
    size = jax.lax.stop_gradient(jnp.where(size > 0, size, start))
    size = jnp.where(size > 0, size, jnp.ones_like(size))
    most = jax.lax.stop_gradient(jnp.maximum(start, size))
    return 1e-8 * size, 1e2 * most


def update_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    feature_norm: RealScalarLike,
    step: Step,
    update: algorithm.Update,
    laws: Laws = None,
) -> Moments:
    """The moments of a batch's update, without the checks at the door.

    **Arguments:**

    - `laws`: those of [`jaxclip.limit.update_laws`][], where many moments are asked
        for.
    """
    if clips_mean(update):
        if laws is None:
            near = batch.batch_law(noise, update.batch_size, risk)
        else:
            near = laws.near(2 * jnp.asarray(risk))
        rule = clip, feature_norm, step
        return _mean_moments(rule, noise.variance, risk, update.batch_size, near)
    m = unchecked_moments(clip, noise, risk, feature_norm, step)
    mean, square = shares(update)
    return Moments(mean * m.mu, square * m.second, square * m.variance, m.nu)


def shares(update: algorithm.Update) -> tuple[Any, Any]:
    """What the update has of the mean of one sample's clipped gradient, and of the
    second moment: all, and one over their number, of the mean of a batch."""
    scope, size = update.scope, update.batch_size
    share = scope.share(size) if isinstance(scope, PerExample) else 1 / size
    return share * size, share**2 * size


def fixed_moments(
    clip: AbstractClip, feature_norm: RealScalarLike, size: int, laws: Laws
) -> Laws:
    """In the place of the laws, what a rule that does not depend on the step makes of
    each of them: all that its moments need, so that each is an interpolation."""
    if not isinstance(laws, batch.BatchLaws):
        return laws
    numbers = _numbers_of((clip, feature_norm, 0), size, laws.laws)
    return batch.BatchLaws(laws.first, laws.spacing, numbers)


def clips_mean(update: algorithm.Update) -> bool:
    """Whether it is the mean gradient of several samples that is clipped."""
    return isinstance(update.scope, PerTree) and update.batch_size > 1


def _mean_moments(
    rule: tuple[AbstractClip, RealScalarLike, Step],
    noise_variance: Float[Array, ""],
    risk: RealScalarLike,
    size: int,
    near: batch.Near,
) -> Moments:
    """The moments of the clipped mean gradient of a batch of `size` samples."""
    clip, _, step = rule
    kept = factor_at_infinity(clip, step)
    signal = 2 * jnp.asarray(risk)
    variance = (signal + noise_variance) / size
    some = signal + noise_variance > 0
    numbers = near.laws
    if isinstance(numbers, batch.BatchLaw):
        numbers = _numbers_of(rule, size, numbers)
    mu, rest = (jnp.dot(near.weights, column) for column in numbers)
    own = jnp.where(kept == 0, 0.0, kept**2 * jnp.where(kept == 0, 1.0, variance))
    nu = kept**2 + rest / jnp.where(some, variance, 1.0)
    # Without signal and noise the rule is that at norm 0.
    at_zero = jnp.asarray(clip.factor(0.0, step))
    return Moments(
        jnp.where(some, mu, at_zero),
        jnp.where(some, rest + own, 0.0),
        variance,
        jnp.where(some, nu, at_zero**2),
    )


@eqx.filter_jit
def _numbers_of(
    rule: tuple[AbstractClip, RealScalarLike, Step], size: int, laws: batch.BatchLaw
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    r"""For each of several laws $\mu$, and the second moment less the part that the
    largest gradients keep."""
    clip, feature_norm, step = rule
    kept = factor_at_infinity(clip, step)
    kinks = [kink / feature_norm * size for kink in clip.kinks(step)]

    def of(law: batch.BatchLaw) -> tuple[RealScalar, RealScalar]:
        unit = jax.lax.stop_gradient(law.unit)
        nodes = law.read(kinks)
        level = factor_at(clip, unit / size * feature_norm, step)
        factors = factor_at(clip, nodes.radius / size * feature_norm, step)
        norm = nodes.radius / unit
        # Stein's identity in B dimensions, for what differs from a multiple of the
        # identity, for which it is known: few digits cancel where the law is narrow.
        change = (factors - level) * norm
        mu = level - jnp.sum(nodes.mass * nodes.slope * unit * change) / size
        rest = (factors - kept) * norm * (factors + kept) * norm
        return mu, (unit / size) ** 2 * jnp.sum(nodes.mass * rest)

    return jax.vmap(of)(laws)


def hard_moments(
    threshold: RealScalar, size: int, near: batch.Near
) -> tuple[RealScalar, RealScalar]:
    """The first and the second moment of the mean gradient of a batch of `size` samples
    with a threshold on it, for features of norm 1."""
    # As a schedule: a number would be checked again.
    clip = HardClip(Constant(threshold))
    mu, second = _numbers_of((clip, 1.0, 0), size, near.laws)
    return jnp.dot(near.weights, mu), jnp.dot(near.weights, second)


def need_moments(who: str, update: algorithm.Update) -> None:
    """Refuses an update whose moments are not known."""
    scope = update.scope
    whole = scope.within if isinstance(scope, PerExample) else scope
    if not isinstance(whole, PerTree):
        raise ValueError(
            f"`{who}` knows the scopes `PerTree()` and `PerExample()` of whole "
            f"gradients. Got `scope={scope!r}`."
        )
    if isinstance(scope, PerExample) and scope.noise_std is not None:
        raise ValueError(f"`{who}` has no `noise_std`: leave it out of the scope.")


# Operation by operation the quadrature takes seconds.
_jitted = eqx.filter_jit(update_moments)
