"""The motion of noisy gradient descent along the zero-loss set, under Adam."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import fraction, nonnegative
from ..._curve import Curve
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip, Identity
from ...problem import AbstractNoisyProblem
from .._base import AbstractLimit, AnyProblem, Request
from .._gradient_flow import integrate
from ._limit_map import need_on_the_set
from ._set import ZeroLossSet, need_noisy, zero_loss_set


class AdamZeroLossFlow(AbstractLimit):
    r"""How noise drives Adam along the zero-loss set.

    Adam divides the entries of a gradient by $\sqrt v + \epsilon$, where $v$ averages
    their squares. On the set these are the noise's alone. With the diagonal matrix
    $A = 1 / (\sqrt v + \epsilon)$, $\sigma^2 G G^T$ the covariance of a gradient, the
    Jacobian $J$ of the residuals and $P_A = I - A J^T (J A J^T)^{-1} J$,

    $$\frac{dW}{dk} = -\gamma^2 \tfrac{\sigma^2}{4} P_A A\, \nabla \textstyle\sum_j A_j
    (G G^T)_{jj}, \qquad \frac{dv}{dk} = \frac{1 - \beta_2}{1 - \beta_2^{k+1}}
    \bigl(\sigma^2 \mathrm{diag}(G G^T) - v\bigr)$$

    for label noise, where the gradient leaves $A$ as it is. Once $v$ has settled it is
    a multiple of the diagonal of the Hessian $H$, and what descends is
    $\sum_j \sqrt{H_{jj}}$ in place of the trace, at a pace that does not depend on
    $\sigma$: on a diagonal network an $\ell_{1/2}$ norm in place of an $\ell_1$ norm.
    Noise that pushes on the faster scale follows
    $dW/dk = -\gamma \sigma^2 P_A A\, \nabla \mathrm{Reg}$.

    The equation is that of arXiv:2511.02773; derived here by a change of coordinates,
    in section 6.1 of `docs/theory.md`, and with the bias correction of `optax.adam`.
    $\beta_1$ cancels.

    It is the limit of a small $\gamma$ with $1 - \beta_2$ of the order of $\gamma^2$,
    or larger and still small against $\gamma$, so that $v$ averages over the motion
    across the set; runs at a finite $\gamma$ are slower by a share of the order of
    $\gamma$. For symmetric noise, without a clip. The parameters at each step are in
    `Curve.path`, and $v$ at the last one, flat, in `Curve.reduced`.

    **Arguments:**

    - `b2`: $\beta_2$, the decay of the average of squares, at least 0 and below 1.
    - `eps`: $\epsilon$, in the unit of a gradient. Where the solution has zeros it
        bounds the pace at which they are reached.
    - `matrix_free`, `rtol`, `max_steps`: as in [`jaxclip.ZeroLossFlow`][].

    **Raises:**

    A `ValueError` where there is a clip, and an error where the start is not on the
    zero-loss set: Adam does not arrive where gradient flow does.

    **Example:**

    ```python
    problem = jc.Interpolation(
        lambda w, x: w[0] * w[1] * x,
        jnp.array([2.0, 0.5]),
        jnp.ones(1),
        jnp.ones(1),
        jc.inject.Label(jc.Gaussian(0.3)),
    )
    limit = jc.limit.AdamZeroLossFlow(b2=0.9999)
    flow = jc.solve(problem, jc.Identity(), 0.01, steps=jnp.array([1e4]), limit=limit)
    flow.params[0] - flow.params[1]  # exp(-1/2) of 2 - 0.5
    ```
    """

    b2: Float[Array, ""] = eqx.field(converter=partial(fraction, "b2"), default=0.999)
    eps: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "eps"), default=1e-8
    )
    matrix_free: bool | None = eqx.field(static=True, default=None)
    rtol: float = eqx.field(static=True, default=1e-9)
    max_steps: int = eqx.field(static=True, default=10**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        request.need_only("AdamZeroLossFlow")
        problem = need_noisy("AdamZeroLossFlow", problem)
        _need_no_clip(problem, clip)
        manifold, w = zero_loss_set(problem, self.matrix_free)
        motion = _Motion(manifold, lr, self.b2, self.eps)
        w = need_on_the_set("AdamZeroLossFlow", manifold, w)
        return _solution(motion, w, request, self.rtol, self.max_steps)


def _need_no_clip(problem: AbstractNoisyProblem, clip: AbstractClip) -> None:
    for name, rule in (("clip", clip), ("residual_clip", problem.inner_clip)):
        if not isinstance(rule, Identity):
            raise ValueError(
                f"`{name}` must be Identity() for `AdamZeroLossFlow`, whose motion "
                f"with a clip is not known. Got {rule!r}."
            )


class _Motion(eqx.Module):
    """The velocity of the parameters along the set, and of the mean squares."""

    manifold: ZeroLossSet
    lr: Schedule
    b2: Float[Array, ""]
    eps: Float[Array, ""]

    def squares(self, w: Float[Array, " d"]) -> Float[Array, " d"]:
        """The mean squares of a gradient's entries on the set."""
        problem = self.manifold.problem
        columns = problem.diffusion(self.manifold.unravel(w))
        return jnp.asarray(problem.variance) * jnp.sum(columns**2, axis=1)

    def __call__(self, k, y, reading):
        k = reading.at(k)
        w, v = y
        problem = self.manifold.problem
        scale = 1 / (jnp.sqrt(v) + self.eps)
        squares, back = jax.vjp(self.squares, w)
        if problem.power == 2:
            drift, pace = -back(scale)[0] / 4, 1.0
        else:
            # At the pace of the noise's size: the scale divides by one of two.
            drift = self.manifold.drift(w, Identity(), k)
            std = jnp.sqrt(jnp.asarray(problem.variance))
            pace = jnp.where((std > 0) & (std < jnp.inf), std, 1.0)
        # The pull towards the set is at the pace of the drift.
        velocity = self.manifold.correct(w, scale * drift / pace, 1.0, scale)
        share = (1 - self.b2) / -jnp.expm1((k + 1) * jnp.log(self.b2))
        moved = self.lr(k) ** problem.power * pace * velocity
        return moved, share * (squares - v)

    def loss(self, y: tuple[Float[Array, " d"], Any]) -> RealScalar:
        return self.manifold.loss(y[0])


@eqx.filter_jit
def _solution(
    motion: _Motion,
    w: Float[Array, " d"],
    request: Request,
    rtol: float,
    max_steps: int,
) -> Curve:
    start, unravel = (w, motion.squares(w)), motion.manifold.unravel
    found = integrate(motion, motion.loss, start, motion.lr, request, rtol, max_steps)
    params, path = unravel(found.params[0]), jax.vmap(unravel)(found.path[0])
    return Curve(found.step, found.risk, params, path=path, reduced=found.params[1])
