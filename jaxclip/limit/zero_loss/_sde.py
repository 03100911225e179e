"""The diffusion of noisy gradient descent along the zero-loss set."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from ..._checks import is_traced, positive
from ..._curve import Curve, finite_or_infinite
from ..._types import Key, Schedule
from ...clip import AbstractClip, Identity
from ...problem import (
    AbstractNoisyProblem,
)
from .._base import AbstractLimit, AnyProblem, Request
from .._intervals import grid, steps_inside
from ._limit_map import bring
from ._set import ZeroLossSet, need_noisy, zero_loss_set

# Gauss-Newton steps after each step of the SDE: the first leaves the square of the
# distance, the second its fourth power.
_RETRACTIONS = 2


class ZeroLossSDE(AbstractLimit):
    r"""The diffusion along the zero-loss set, of noise whose regularizer does not act.

    $$dW = \gamma \sigma P G\, dB_k
    + \tfrac12 \gamma^2 \sigma^2\, D^2\Phi(W)[\Sigma]\, dk, \qquad
    W(0) = \Phi(w_0), \quad \Sigma = G G^T,$$

    in the sense of Itô, with the full second derivative of the limit map $\Phi$:

    $$D^2\Phi[S] = -H^+ D^3L[PSP] - 2 P D^3L[P S H^+]
    - P D^3L[\mathcal{L}_H^{-1}(P_N S P_N)],$$

    $\mathcal{L}_H V = HV + VH$ on the normal space $N$. Section 2 of arXiv:2404.12293;
    the formula of the derivative is derived here. Stepped with a fixed step and brought
    back to the set after each one; weak order 1. It forms the Hessian, so that it is
    for models of up to some hundred parameters.

    The parameters at each step are in `Curve.path`.

    **Arguments:**

    - `dt`: the length of an interval, in SGD steps. Small against
        $1 / (\gamma^2 \sigma^2)$. Shorter ones are taken where a reported step falls
        inside of one. The rate is read at every step of SGD in an interval, whatever
        its length.
    """

    dt: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        positive("dt", self.dt)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        problem = need_noisy("ZeroLossSDE", problem)
        request.need_only("ZeroLossSDE")
        steps, key = request.steps, request.key
        if key is None:
            raise ValueError(
                "`ZeroLossSDE` is random and needs a `key`, such as "
                "`jax.random.key(0)`."
            )
        if is_traced(steps):
            raise ValueError(
                "`steps` must be concrete for `ZeroLossSDE()`: they decide how many "
                "intervals there are. Close over them in place of passing them."
            )
        _need_no_clip(problem, clip)
        manifold, w0 = zero_loss_set(problem, matrix_free=False)
        times, reported = grid(np.asarray(steps, float), self.dt, whole=True)
        return _run(
            manifold,
            bring(manifold, w0),
            lr,
            steps,
            jnp.asarray(times),
            jnp.asarray(reported),
            key,
            self.dt,
        )


@eqx.filter_jit
def _run(
    manifold: ZeroLossSet,
    w0: Float[Array, " d"],
    lr: Schedule,
    steps: Float[Array, " s"],
    times: Float[Array, " n"],
    reported: Int[Array, " s"],
    key: Key,
    dt: float,
) -> Curve:
    problem = manifold.problem

    def body(w, interval):
        start, length, index = interval
        made, inside = steps_inside(start, length, dt)
        rates = jax.vmap(lambda k: jnp.asarray(lr(k)))(made)
        # The clock of the diffusion: gamma^2 sigma^2, summed over the interval.
        spent = jnp.sum(rates**2 * inside) * problem.variance
        columns = problem.diffusion(manifold.unravel(w))
        drift = limit_map_curvature(manifold, w, columns @ columns.T) / 2
        normals = jr.normal(jr.fold_in(key, index), columns.shape[1:], w.dtype)
        noise = manifold.project(w, columns @ normals)
        w = manifold.retract(w + spent * drift + jnp.sqrt(spent) * noise, _RETRACTIONS)
        return w, w

    times = times.astype(w0.dtype)
    xs = (times[:-1], jnp.diff(times), jnp.arange(len(times) - 1))
    path = jax.lax.scan(body, w0, xs)[1]
    path = jnp.concatenate([w0[None], path])[reported]
    risk = finite_or_infinite(jax.vmap(manifold.loss)(path))
    params, path = manifold.unravel(path[-1]), jax.vmap(manifold.unravel)(path)
    return Curve(steps, risk, params, path=path)


def limit_map_curvature(
    manifold: ZeroLossSet, w: Float[Array, " d"], s: Float[Array, "d d"]
) -> Float[Array, " d"]:
    r"""$D^2\Phi(w)[S]$, the second derivative of the limit map on the zero-loss set."""
    hessian = jax.hessian(manifold.loss)
    # The rows of the Jacobian span the normal space; singular vectors are orthonormal.
    normal = jnp.linalg.svd(manifold.jacobian(w), full_matrices=False)[2].T
    # Eigenvectors of the Hessian within the normal space.
    eigenvalues, q = jnp.linalg.eigh(normal.T @ hessian(w) @ normal)
    normal = normal @ q
    # In this basis H is diagonal, so that H^+ is a division by the eigenvalues, and the
    # solution of H V + V H = P_N S P_N one by the sums of two of them. All of them are
    # positive: on the set the loss grows in every normal direction.
    inverse = (normal / eigenvalues[None]) @ normal.T
    tangent = jnp.eye(w.size) - normal @ normal.T
    inside = (normal.T @ s @ normal) / (eigenvalues[:, None] + eigenvalues[None])

    # D^3 L[V], a vector: the gradient of <H(w), V>, without a tensor of third order.
    def third(v):
        return jax.grad(lambda w: jnp.sum(hessian(w) * v))(w)

    # D^3 L is linear, so that what P multiplies is one call for the last two terms. It
    # sees the symmetric part of V alone, which is why P S H^+ counts twice.
    along = 2 * tangent @ s @ inverse + normal @ inside @ normal.T
    return -inverse @ third(tangent @ s @ tangent) - tangent @ third(along)


def _need_no_clip(problem: AbstractNoisyProblem, clip: AbstractClip) -> None:
    for name, rule in (("clip", clip), ("residual_clip", problem.inner_clip)):
        if not isinstance(rule, Identity):
            raise ValueError(
                f"`{name}` must be Identity() for `ZeroLossSDE`, whose diffusion with "
                f"a clip is not known. Got {rule!r}. Label noise has a limit without "
                "diffusion that knows a clip: `ZeroLossFlow()`."
            )
