"""Which way noise pushes along the zero-loss set, where it pushes deterministically."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..clip import AbstractClip, Identity
from ..problem import AbstractNoise, AbstractNoisyModel, Gaussian, LabelNoise
from ._moments import unchecked_moments
from ._zero_loss_set import ZeroLossSet

# The velocity at a point, whose part along the set counts.
Drift = Callable[[Float[Array, " d"]], Float[Array, " d"]]


def slow_drift(manifold: ZeroLossSet) -> tuple[int, Drift]:
    r"""The power $p$ and the velocity $v$ of $dW/dk = \gamma^p P v(W)$.

    Unclipped, $v = -\sigma^2 \nabla \mathrm{Reg}$ with $p = 1$; for label noise
    $v = -\tfrac{c}{4} \sigma^2 \nabla \mathrm{tr} H$ with $p = 2$ (Section 2 of
    arXiv:2404.12293). With a clip of the residuals, derived here.
    """
    problem = manifold.problem
    if isinstance(problem, LabelNoise):
        if _alike(problem.residual_clip):
            return 2, lambda w: _label_drift(manifold, problem, w)
        return 2, lambda w: _unequal_drift(manifold, problem, w)
    if isinstance(problem, AbstractNoisyModel):
        return 1, lambda w: _model_drift(manifold, problem, w)

    def regularizer(w):
        return problem.regularizer(manifold.unravel(w))

    return 1, lambda w: -problem.variance * jax.grad(regularizer)(w)


def _model_drift(
    manifold: ZeroLossSet, problem: AbstractNoisyModel, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""$-\sigma^2 \sum_i \rho_i \nabla \mathrm{Reg}_i$ with
    $\mathrm{Reg}_i = |c_i|^2 / 2n$ and $\rho_i = E\,\psi'$ of a residual of standard
    deviation $\sigma |c_i|$. By Stein's lemma, hence exact for normal noise."""

    def each(w):
        c = problem.sensitivities(manifold.unravel(w))
        return jnp.sum(c**2, axis=1) / (2 * problem.size)

    if isinstance(problem.residual_clip, Identity):
        return -problem.variance * jax.grad(lambda w: jnp.sum(each(w)))(w)
    if not isinstance(problem.noise, Gaussian):
        raise ValueError(
            "`residual_clip` with noise inside of the model needs Gaussian noise: the "
            "limit is known by Stein's lemma. Got "
            f"{type(problem.noise).__name__}; take `Gaussian(std)`."
        )
    values, pull = jax.vjp(each, w)
    std = jnp.sqrt(2 * problem.size * problem.variance * values)
    rho = jax.vmap(lambda clip, std: _moments(clip, Gaussian(std))[0])(
        _per_residual(problem.residual_clip, len(values)), std
    )
    return -problem.variance * pull(rho)[0]


def _label_drift(
    manifold: ZeroLossSet, problem: LabelNoise, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""$-\tfrac{c}{4} s^2 \nabla \mathrm{tr} H$, where on the set
    $\mathrm{tr} H = \tfrac1n \sum |\nabla f_i|^2$ and $s^2 = E\,\psi^2$: where all
    residuals are clipped alike, $E\,\psi'$ cancels."""
    n, b = problem.size, problem.seen
    second = _moments(problem.residual_clip, problem.noise)[1]
    return -second / (4 * b) * _trace_gradient(manifold, problem, w) / n


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


def _unequal_drift(
    manifold: ZeroLossSet, problem: LabelNoise, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    r"""$-\tfrac1n \sum_i \rho_i \nabla^2 f_i V \nabla f_i$ with $A V + V A = \Sigma$
    for $A = J^T R J / n$ and $\Sigma = J^T S J / (n b)$, where $R$ and $S$ hold
    $\rho_i = E\,\psi_i'$ and $s_i^2 = E\,\psi_i^2$.

    $V = J^T Z J$ with $R K Z + Z K R = S / b$, solved in the eigenvectors of
    $R^{1/2} K R^{1/2}$.
    """
    jacobian = manifold.jacobian(w)
    m, n, b = len(jacobian), problem.size, problem.seen
    rho, second = jax.vmap(lambda clip: _moments(clip, problem.noise))(
        _per_residual(problem.residual_clip, m)
    )
    root = jnp.sqrt(rho)
    kernel = root[:, None] * (jacobian @ jacobian.T) * root[None]
    eigenvalues, q = jnp.linalg.eigh(kernel)
    driven = q.T @ ((second / (b * rho))[:, None] * q)
    inner = driven / (eigenvalues[:, None] + eigenvalues[None])
    z = root[:, None] * (q @ inner @ q.T) * root[None]

    def energy(w):
        inside = manifold.jacobian(w) @ jacobian.T
        return jnp.sum(rho * jnp.sum((inside @ z) * inside, axis=1)) / (2 * n)

    return -jax.grad(energy)(w)


def _moments(
    clip: AbstractClip, noise: AbstractNoise
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$E\,\psi'$ and $E\,\psi^2$ of the noise alone."""
    moments = unchecked_moments(clip, noise, 0.0, 1.0, 0)
    return moments.mu, moments.second


def _alike(clip: AbstractClip) -> bool:
    """Whether a rule has one threshold for all residuals."""
    return all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(clip))


def _per_residual(clip: AbstractClip, m: int) -> AbstractClip:
    """The rule with a leading axis of residuals, to be vmapped over."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (m,)), clip)
