"""What theory guarantees of gradient descent on wide networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import nonnegative, positive, reporting_steps
from .._types import RealScalar, RealScalarLike
from ..clip import AbstractClip


class PLViolations(eqx.Module):
    """How often a path of gradient descent broke what theory says of it; see
    [`jaxclip.curvature.pl_violations`][].

    **Fields**, each a number of steps:

    - `inequality`: the Polyak-Lojasiewicz inequality.
    - `descent`: the decrease of the loss in one step.
    - `rate`: the geometric rate.
    - `path`: the bound on the length of the path so far.
    """

    inequality: Int[Array, ""]
    descent: Int[Array, ""]
    rate: Int[Array, ""]
    path: Int[Array, ""]


def pl_violations(
    loss: Float[Array, " s"],
    gradient_norm: Float[Array, " s"],
    clip: AbstractClip,
    lr: RealScalarLike,
    *,
    mu: RealScalarLike,
    floor: RealScalarLike,
) -> PLViolations:
    r"""Holds a path of clipped gradient descent against the theory of PL losses.

    Where $\|\nabla L\|^2 \ge 2 \mu L$, the curvature is at most $1/\gamma$ and the
    clip's factor at least $\delta$, with steps $h_t = \gamma f(\|\nabla L_t\|)$,

    $$L_{t+1} \le L_t - h_t \|\nabla L_t\|^2 / 2, \qquad
    L_t \le (1 - \gamma\delta\mu)^t L_0, \qquad
    \sum_t h_t \|\nabla L_t\| \le 2 \sqrt{2 L_0 / \mu}.$$

    [`jaxclip.DeltaClip`][] has such a $\delta$ everywhere (arXiv:2404.08624). A hard
    clip has one on a given path, its threshold over the largest norm there.

    The counts say something only for constants that were chosen before the run: with
    $\mu$ the smallest eigenvalue of the tangent kernel along the path itself,
    $\|\nabla L\|^2 = r^T K r \ge 2 \mu L$ is an identity, and `inequality` is zero
    whatever the network does. The guarantee for wide networks is that the eigenvalue
    stays above a fraction of its start (Liu, Zhu and Belkin 2020, arXiv:2003.00307),
    so that half of its start is a $\mu$ that can be wrong.

    **Arguments:**

    - `loss`: shape `(s,)`, $L_t$ at every step of a run, from step 0, in the unit of
        the loss; its smallest possible value has to be 0. Steps from where it has
        fallen to $L_0$ times the precision of its type are left out. A step with a
        loss or a gradient that is not finite breaks everything that it enters.
    - `gradient_norm`: shape `(s,)`, $\|\nabla L_t\|$.
    - `clip`: the rule.
    - `lr`: the learning rate $\gamma$, per step.
    - `mu`: $\mu$, positive, in the unit of the squared norm over the loss: such as
        half the smallest eigenvalue of [`jaxclip.curvature.tangent_kernel`][] at the
        start.
    - `floor`: $\delta$, the clip's smallest factor, positive.

    **Returns:**

    A [`jaxclip.curvature.PLViolations`][].

    **Raises:**

    A `ValueError` where the two arrays are not vectors of one length, at least 2; where
    `lr`, `mu` or `floor` is not positive and finite, as with a tangent kernel of
    deficient rank.
    """
    _check_path(loss, gradient_norm)
    numbers = {"lr": lr, "mu": mu, "floor": floor}
    checked = (positive(n, v).astype(loss.dtype) for n, v in numbers.items())
    return _pl_violations(loss, gradient_norm, clip, *checked)


def _check_path(loss: Float[Array, " s"], gradient_norm: Float[Array, " s"]) -> None:
    if loss.ndim != 1 or loss.shape != gradient_norm.shape or len(loss) < 2:
        raise ValueError(
            "`loss` and `gradient_norm` must be vectors of one length, at least 2. Got "
            f"shapes {loss.shape} and {gradient_norm.shape}."
        )


@eqx.filter_jit
def _pl_violations(
    loss: Float[Array, " s"],
    gradient_norm: Float[Array, " s"],
    clip: AbstractClip,
    lr: RealScalar,
    mu: RealScalar,
    floor: RealScalar,
) -> PLViolations:
    dtype, eps = loss.dtype, jnp.finfo(loss.dtype).eps
    step = jnp.arange(len(loss))
    # An infinity is below another one, a NaN is below nothing.
    loss, gradient_norm = (
        jnp.where(jnp.isfinite(x), x, jnp.nan) for x in (loss, gradient_norm)
    )
    norm = gradient_norm[:-1]
    h = lr * jax.vmap(clip.factor)(norm, step[:-1])
    # What a sum of squares is rounded by, on the side of no violation.
    slack = 1 + 100 * eps
    # Through the logarithm: a power of 1 minus a tiny number would round the number.
    # In a step whose share is 1 or more nothing would be left of the loss.
    decay = jnp.log1p(-jnp.minimum(lr * floor * mu, 1))
    bound = jnp.where(step > 0, jnp.exp(step.astype(dtype) * decay), 1) * loss[0]
    length = jnp.cumsum(h * norm)

    # Counted as what does not hold, so that a NaN, which compares false, is counted.
    small = loss <= eps * loss[0]

    def broken(holds):
        return jnp.sum(~(holds | small[: len(holds)]))

    return PLViolations(
        inequality=broken(gradient_norm**2 * slack >= 2 * mu * loss),
        descent=broken(loss[1:] <= (loss[:-1] - h * norm**2 / 2) * slack),
        rate=broken(loss <= bound * slack),
        path=broken(length <= 2 * jnp.sqrt(2 * loss[0] / mu) * slack),
    )


def hard_clip_floor(
    loss0: RealScalarLike,
    threshold: RealScalarLike,
    lr: RealScalarLike,
    steps: Float[Array, " s"],
    *,
    largest: RealScalarLike,
) -> Float[Array, " s"]:
    r"""The loss that gradient descent with a hard clip cannot fall below so early.

    $$L_T \ge \big((\sqrt{2 L_0} - \sqrt{\lambda}\, \gamma c T)_+\big)^2 / 2$$

    for the loss $\|F - y\|^2/2$: a step is at most $\gamma c$ long, and the residual
    moves by at most $\sqrt{\lambda}$ times as much. While it clips, $\sqrt{L}$ falls at
    most linearly; after that the rate is geometric as ever.

    **Arguments:**

    - `loss0`: $L_0$.
    - `threshold`: $c$, in the unit of the gradient's norm.
    - `lr`: $\gamma$, per step.
    - `steps`: shape `(s,)`, the values of $T$: not negative and increasing.
    - `largest`: $\lambda$, the largest eigenvalue of the tangent kernel on the path.

    **Returns:**

    Shape `(s,)`, in the unit of the loss.
    """
    loss0, threshold, lr, largest = (
        nonnegative(name, value)
        for name, value in (
            *(("loss0", loss0), ("threshold", threshold)),
            *(("lr", lr), ("largest", largest)),
        )
    )
    return _hard_clip_floor(loss0, threshold, lr, reporting_steps(steps), largest)


@jax.jit
def _hard_clip_floor(
    loss0: RealScalar,
    threshold: RealScalar,
    lr: RealScalar,
    steps: Float[Array, " s"],
    largest: RealScalar,
) -> Float[Array, " s"]:
    root = jnp.sqrt(2 * loss0) - jnp.sqrt(largest) * lr * threshold * steps
    return jnp.maximum(root, 0.0) ** 2 / 2
