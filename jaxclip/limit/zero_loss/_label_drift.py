"""Which way noise in labels pushes along the zero-loss set, with and without a clip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import Step
from ...clip import AbstractClip, Identity, Moments, unchecked_moments
from ...noise import AbstractNoise
from ...problem import LabelNoise
from ._clipped_covariance import clipped_covariance
from ._set import ZeroLossSet

# The velocity at a point and a step, whose part along the set counts.
Drift = Callable[[Float[Array, " d"], Step], Float[Array, " d"]]


def label_drift(
    manifold: ZeroLossSet, problem: LabelNoise, clip: AbstractClip
) -> Drift:
    r"""The velocity $v$ of $dW/dk = \gamma^2 P v(W)$."""
    if sees_one(problem) and not isinstance(clip, Identity):
        return lambda w, k: _one_at_a_time(manifold, problem, clip, w, k)
    if not isinstance(clip, Identity):
        return lambda w, k: _whole_drift(manifold, problem, clip, w, k)
    if not _alike(problem.residual_clip):
        return lambda w, k: _unequal_drift(manifold, problem, w)

    def drift(w, k):
        r"""$-\tfrac{c}{4} s^2 \nabla \mathrm{tr} H$, where on the set
        $\mathrm{tr} H = \tfrac1n \sum |\nabla f_i|^2$ and $s^2 = E\,\psi^2$: where all
        residuals are clipped alike, $E\,\psi'$ cancels."""
        del k
        second = of_noise(problem.residual_clip, problem.noise).second
        slope = _trace_gradient(manifold, problem, w)
        return -second / (4 * problem.seen * problem.size) * slope

    return drift


def _trace_gradient(
    manifold: ZeroLossSet, problem: LabelNoise, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""$\nabla \sum_i |\nabla f_i|^2$, one example at a time: the memory is that of a
    few sets of parameters."""

    def add(total, x):
        def energy(w):
            slopes = jax.jacrev(lambda w: problem.model(manifold.unravel(w), x))(w)
            return jnp.sum(slopes**2)

        return total + jax.grad(energy)(w), None

    return jax.lax.scan(add, jnp.zeros_like(w), problem.xs)[0]


def _whole_drift(
    manifold: ZeroLossSet,
    problem: LabelNoise,
    clip: AbstractClip,
    w: Float[Array, " d"],
    k: Step,
) -> Float[Array, " d"]:
    r"""$-\tfrac{1}{4n^2} \nabla \mathrm{tr}\, S J J^T$ with
    $S = E\,\eta \eta^T f(|J^T \eta| / n)^2$ as it is at the point.

    For normal noise $S$ and $E\,\psi'$ are functions of the tangent kernel, so that
    $E\,\psi'$ cancels as it does where all residuals are clipped alike.
    """
    jacobian, pull = jax.vjp(manifold.jacobian, w)
    n, std = problem.size, jnp.sqrt(problem.variance)
    gram = jacobian @ jacobian.T / n**2
    second = clipped_covariance(gram, clip, k, std, power=2)
    return -pull(second @ jacobian)[0] / (2 * n**2)


def _one_at_a_time(
    manifold: ZeroLossSet,
    problem: LabelNoise,
    clip: AbstractClip,
    w: Float[Array, " d"],
    k: Step,
) -> Float[Array, " d"]:
    """Where a step sees one example, a clip of the gradient is one of its residual, at
    the threshold over the norm of the example's slope."""
    norms = jnp.linalg.norm(manifold.jacobian(w), axis=1)
    moments = jax.vmap(lambda norm: of_noise(clip, problem.noise, norm, k))(norms)
    return _driven(manifold, problem, w, moments)


def _unequal_drift(
    manifold: ZeroLossSet, problem: LabelNoise, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    clips = per_residual(problem.residual_clip, problem.ys.size)
    return _driven(
        manifold, problem, w, jax.vmap(lambda c: of_noise(c, problem.noise))(clips)
    )


def _driven(
    manifold: ZeroLossSet,
    problem: LabelNoise,
    w: Float[Array, " d"],
    moments: Moments,
) -> Float[Array, " d"]:
    r"""$-\tfrac1n \sum_i \rho_i \nabla^2 f_i V \nabla f_i$ with $A V + V A = \Sigma$
    for $A = J^T R J / n$ and $\Sigma = J^T S J / (n b)$, where $R$ and $S$ hold
    $\rho_i = E\,\psi_i'$ and $s_i^2 = E\,\psi_i^2$.

    $V = J^T Z J$ with $R K Z + Z K R = S / b$, solved in the eigenvectors of
    $R^{1/2} K R^{1/2}$.
    """
    rho, second = moments.mu, moments.second
    jacobian = manifold.jacobian(w)
    root = jnp.sqrt(rho)
    kernel = root[:, None] * (jacobian @ jacobian.T) * root[None]
    eigenvalues, q = jnp.linalg.eigh(kernel)
    driven = q.T @ ((second / (problem.seen * rho))[:, None] * q)
    inner = driven / (eigenvalues[:, None] + eigenvalues[None])
    z = root[:, None] * (q @ inner @ q.T) * root[None]

    def energy(w):
        inside = manifold.jacobian(w) @ jacobian.T
        return jnp.sum(rho * jnp.sum((inside @ z) * inside, axis=1))

    return -jax.grad(energy)(w) / (2 * problem.size)


def of_noise(
    clip: AbstractClip, noise: AbstractNoise, norm: Array | float = 1.0, step: Step = 0
) -> Moments:
    r"""$E\,\psi'$ and $E\,\psi^2$ of the noise alone, for gradients of a residual 1 of
    this norm."""
    return unchecked_moments(clip, noise, 0.0, norm, step)


def _alike(clip: AbstractClip) -> bool:
    """Whether a rule has one threshold for all residuals."""
    return all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(clip))


def per_residual(clip: AbstractClip, m: int) -> AbstractClip:
    """The rule with a leading axis of residuals, to be vmapped over."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (m,)), clip)


def sees_one(problem: LabelNoise) -> bool:
    """Whether a step sees one residual only."""
    return problem.seen == 1 and problem.ys.size == problem.size
