"""The motion of noisy gradient descent along the zero-loss set, without diffusion."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._curve import Curve
from ..._types import Schedule
from ...clip import AbstractClip
from .._base import AbstractLimit, AnyProblem, Request
from .._gradient_flow import integrate
from ._limit_map import bring
from ._set import ZeroLossSet, need_noisy, zero_loss_set


class ZeroLossFlow(AbstractLimit):
    r"""How noise drives gradient descent along the zero-loss set.

    $$\frac{dW}{dk} = -\gamma \sigma^2 P(W) \nabla \mathrm{Reg}(W), \qquad
    W(0) = \Phi(w_0),$$

    with the projection $P$ on the tangent space and the regularizer of the noise. For
    label noise, whose regularizer is constant, it is the motion on the slower scale,
    which is deterministic too: $dW/dk = -\gamma^2 \sigma^2 \tfrac{c}{4} P \nabla
    \mathrm{tr} H$. Theorems of Section 2 of arXiv:2404.12293. Other noises of the
    slower scale diffuse: [`jaxclip.ZeroLossSDE`][].
    [`jaxclip.limit.time_scale`][] tells which.

    With a clip, derived here. Each residual clipped (`residual_clip` of the problem):
    label noise is slower by $E\,\psi^2 / \sigma^2$ where all have one threshold, and
    $E\,\psi'$ cancels; noise in the model by $E\,\psi'$ of each residual. The gradient
    clipped (`clip`), $n$ examples with the Jacobian $J$ a step: label noise follows
    $-\tfrac{1}{4n^2} P \nabla \mathrm{tr}\, S J J^T$ with
    $S = E\,\eta \eta^T f(|J^T \eta| / n)^2$; noise in the model, with the sensitivities
    $c = \partial_\eta r$, $-\tfrac{1}{2n} P \nabla \mathrm{tr}\, c M c^T$ with
    $M = E\,\eta \eta^T f(|G \eta|)$ ($S$ and $M$ held as they are at the point). For
    Gaussian noise, or label noise with one example a step; it forms the Jacobian.

    It is the limit of a small $\gamma$, one noise a step (`batch_size=1`), and, but for
    label noise, a small $\sigma$. The parameters at each step are in `Curve.path`.
    Where the solution that is selected has fewer non-zero parameters than there are
    data, the tangent kernel becomes singular in the long run, and the solver stops
    there: ask for earlier steps, or take `throw=False`.

    **Arguments:**

    - `matrix_free`: solve the linear systems of the projection by conjugate gradients
        on Jacobian-vector products in place of a factorisation. By default where the
        Jacobian has more than 10^6 entries.
    - `rtol`: the relative tolerance of the adaptive steps.
    - `max_steps`: how many steps the solver may take.
    """

    matrix_free: bool | None = eqx.field(static=True, default=None)
    rtol: float = eqx.field(static=True, default=1e-11)
    max_steps: int = eqx.field(static=True, default=10**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        problem = need_noisy("ZeroLossFlow", problem)
        request.need_only("ZeroLossFlow")
        manifold, w = zero_loss_set(problem, self.matrix_free)
        problem.check_clip(clip)
        flat = integrate(
            _Motion(manifold, clip, lr),
            manifold.loss,
            bring(manifold, w),
            (clip, lr),
            request,
            self.rtol,
            self.max_steps,
        )
        return _unravelled(manifold, flat)


class _Motion(eqx.Module):
    """The velocity along the zero-loss set, and what keeps the solution on it."""

    manifold: ZeroLossSet
    clip: AbstractClip
    lr: Schedule

    def __call__(self, k, w, reading):
        k = reading.at(k)
        # Noise may be absent; and, clipped, have no variance.
        problem = self.manifold.problem
        variance = jnp.asarray(problem.variance)
        pace = jnp.where((variance > 0) & (variance < jnp.inf), variance, 1.0)
        drift = self.manifold.drift(w, self.clip, k)
        # The pull towards the set is at the pace of the drift: faster would make the
        # equation stiff, and slower let the errors of long runs grow.
        velocity = self.manifold.correct(w, drift / pace, 1.0)
        return self.lr(k) ** problem.power * pace * velocity


@eqx.filter_jit
def _unravelled(manifold: ZeroLossSet, flat: Curve) -> Curve:
    params, path = manifold.unravel(flat.params), jax.vmap(manifold.unravel)(flat.path)
    return Curve(flat.step, flat.risk, params, path=path)
