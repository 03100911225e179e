"""The mean risk of SGD in finitely many dimensions, a step at a time."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..._checks import is_traced
from ..._curve import Curve, finite_or_infinite
from ..._numerics import safe_sqrt
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise
from ...problem import CompressedLinearModel, Modes, need_squared_loss
from .._base import AbstractLimit, AnyProblem, Request
from ._derivatives import Local, higher_moments, local_moments
from ._risk_ode import DIVERGED
from ._scatter import (
    Increments,
    need_each_sample,
    scatter_modes,
    spread_of_norms,
)

# Steps between two of which a reverse pass keeps the state.
_CHUNK = 64


class RiskRecursion(AbstractLimit):
    r"""The mean risk of clipped SGD in finitely many dimensions, on its own clock.

    For the part $u_j = \lambda_j v_j$ of the risk in the eigenspace of $\lambda_j$, and
    $f_j = \lambda_j d_j$, a step with a batch of $B$ samples, each of them clipped, is

    $$u_j \leftarrow u_j \Big(1 - 2 \gamma \mu_j \lambda_j + \gamma^2 \lambda_j^2
    \big[(1 - \tfrac1B) \mu_j^2 + \tfrac1B \mathrm{second}_R\big]\Big)
    + \frac{\gamma^2}{2B}\, \mathrm{second}_j\, \lambda_j f_j + \ldots$$

    with indices $R$ and $T$ for derivatives in the risk and in $T = \mathrm{Tr}\, K$.

    - Without a clip, where $\mu_j = 1$ and $\mathrm{second}_j = 2R + \sigma^2$, it is
        the mean over runs **exactly**, in every dimension.
    - With one, it holds the first correction in one over the intrinsic dimension. The
        squared norm of the features is spread around $T$: $\mu_j = \mu + 2 \lambda_j
        \mu_T + 2 M \mu_{RT} + \mathrm{Tr}(K^2)\, \mu_{TT}$ with $M = \sum_j \lambda_j
        u_j$, and second alike. The dots are what the scatter of the risk from run to
        run adds, as $\mu(R)\, u$ is not linear. The error falls with the square of the
        intrinsic dimension.
    - With a batch as large as the dimension, at a rate that does not fall with it, it
        is the limit itself, which no differential equation is.

    Derived here, in section 1.5 of the theory. The correction is a small one where the
    moments change little while the risk changes by its scatter, and the squared norm of
    the features by its own. It is not where the intrinsic dimension is below 5, nor
    where the label's noise has atoms that a kink of the rule is near to, at a risk far
    below the kink's square.

    The standard deviation that `std=True` adds is that of section 1.4, from a step to
    the next.

    Schedules are read at whole steps, and at a fraction of one the risk is that after
    the last whole one. How many steps are made is structure, as of a run. With a
    correction or a scatter the cost of a step grows with the square of the number of
    modes: more than 64 are then compressed to 64, where they are known before tracing.

    **Arguments:**

    - `corrected`: whether the moments are corrected. Without a clip there is nothing to
        correct.
    """

    corrected: bool = eqx.field(static=True, default=True)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, CompressedLinearModel):
            problem = need_squared_loss("RiskRecursion", problem)
        need_each_sample("RiskRecursion", clip, request.update)
        steps = request.steps
        if is_traced(steps):
            raise ValueError(
                "`steps` must be concrete for `RiskRecursion()`: they decide how many "
                "steps are made. Close over them in place of passing them."
            )
        corrected = self.corrected and not isinstance(clip, Identity)
        scatters = corrected or request.std
        modes = scatter_modes(problem) if scatters else problem.modes
        at = np.floor(np.asarray(steps, float)).astype(int)
        model = _Model(
            modes,
            problem.noise,
            clip,
            lr,
            request.update.batch_size,
            corrected,
            scatters,
        )
        risk, std, last = _run(model, jnp.asarray(at), int(at[-1]))
        if request.throw:
            risk = eqx.error_if(risk, ~jnp.isfinite(risk[-1]), DIVERGED)
        reduced = Modes(modes.eigenvalues, last, modes.forcing)
        return Curve(steps, risk, reduced=reduced, std=std if request.std else None)


class _State(NamedTuple):
    """What a step changes.

    - `u`: shape `(n,)`, the mean of the risk that each mode holds.
    - `covariance`: shape `(n, n)`, of those over runs; None where nobody asks.
    - `infinite`: whether its limit has no variance, because the noise has no fourth
        moment.
    """

    u: Float[Array, " n"]
    covariance: Float[Array, "n n"] | None
    infinite: Bool[Array, ""]


class _Model(eqx.Module):
    """The recursion of one problem, rule and rate."""

    modes: Modes
    noise: AbstractNoise
    clip: AbstractClip
    lr: Schedule
    batch: int = eqx.field(static=True)
    corrected: bool = eqx.field(static=True)
    scatters: bool = eqx.field(static=True)

    def start(self) -> _State:
        u = self.modes.risk
        covariance = jnp.zeros((len(u), len(u)), u.dtype) if self.scatters else None
        return _State(u, covariance, jnp.zeros((), bool))

    def step(self, state: _State, k: Int[Array, ""]) -> _State:
        """One step of SGD, in the mean over samples and runs."""
        lam, f, u = self.modes.eigenvalues, self.modes.forcing, state.u
        risk, trace, rate = jnp.sum(u), jnp.sum(f), jnp.asarray(self.lr(k))
        of = self.clip, self.noise, risk, trace, k
        mu, second = local_moments(*of)
        noise = rate**2 * lam * f / (2 * self.batch)
        mu_j, second_j = mu.value, second.value
        if self.corrected:
            mu_j, second_j = self._spread(mu, u), self._spread(second, u)
        kept = self._kept(rate, mu_j, second.risk)
        new = kept * u + noise * second_j
        if state.covariance is None:
            return _State(new, None, state.infinite)

        # How the map moves with the risk: its first and second derivative.
        bent, curved = self._bent(rate, mu, second)
        pushed = bent * u + noise * second.risk
        shared = jnp.sum(state.covariance, axis=1)
        if self.corrected:
            curvature = curved * u + noise * second.risk_risk
            new = new + bent * shared + curvature * jnp.sum(shared) / 2
        higher = higher_moments(*of)
        covariance = _propagate(
            state.covariance, self._kept(rate, mu.value, second.risk), pushed
        )
        added = Increments.of(mu.value, second, higher, rate, self.batch)
        # Of pairs of different samples, one is the mean and the other scatters.
        left = 1 - (1 - 1 / self.batch) * rate * mu.value * lam
        covariance += added.matrix(self.modes, u, left)
        covariance += jnp.diag(
            spread_of_norms(self.modes, second.value, higher.fourth, rate, self.batch)
        )
        infinite = state.infinite | (higher.infinite & (rate != 0))
        return _State(new, covariance, infinite)

    def _spread(self, moment: Local, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """A moment as each mode sees it, where the norm of the features is spread."""
        lam, f = self.modes.eigenvalues, self.modes.forcing
        common = 2 * jnp.sum(lam * u) * moment.risk_trace
        common += jnp.sum(lam * f) * moment.trace_trace
        return moment.value + common + 2 * lam * moment.trace

    def _kept(self, rate, mu, slope) -> Float[Array, " n"]:
        """What is left of each mode."""
        q, lam, batch = rate * mu, self.modes.eigenvalues, self.batch
        square = (1 - 1 / batch) * q**2 + rate**2 * slope / batch
        return 1 - 2 * q * lam + square * lam**2

    def _bent(self, rate: RealScalar, mu: Local, second: Local):
        """The first and the second derivative of what is kept in the risk."""
        lam, share = self.modes.eigenvalues, 1 - 1 / self.batch
        q, q1, q2 = rate * mu.value, rate * mu.risk, rate * mu.risk_risk
        square = 2 * share * q * q1 + rate**2 * second.risk_risk / self.batch
        bent = -2 * q1 * lam + square * lam**2
        return bent, -2 * q2 * lam + 2 * share * (q1**2 + q * q2) * lam**2


def _propagate(
    covariance: Float[Array, "n n"],
    kept: Float[Array, " n"],
    pushed: Float[Array, " n"],
) -> Float[Array, "n n"]:
    """The covariance after the linear map `diag(kept) + outer(pushed, ones)`."""
    half = kept[:, None] * covariance
    half += jnp.outer(pushed, jnp.sum(covariance, axis=0))
    return half * kept[None, :] + jnp.outer(jnp.sum(half, axis=1), pushed)


@eqx.filter_jit
def _run(model: _Model, at: Int[Array, " s"], last: int):
    """The risk and its deviation at the steps asked for, and the modes at the end."""

    def one(state, k):
        new = model.step(state, k)
        # Beyond the last step nothing moves.
        new = jax.tree.map(lambda a, b: jnp.where(k < last, a, b), new, state)
        variance = jnp.zeros(())
        if new.covariance is not None:
            variance = jnp.where(new.infinite, jnp.inf, jnp.sum(new.covariance))
        return new, (jnp.sum(new.u), variance)

    # Without the checkpoint a reverse pass would keep the covariance of every step.
    @jax.checkpoint
    def chunk(state, first):
        return jax.lax.scan(one, state, first + jnp.arange(_CHUNK))

    start = model.start()
    firsts = _CHUNK * jnp.arange(-(-last // _CHUNK))
    end, (risk, variance) = jax.lax.scan(chunk, start, firsts)
    risk = jnp.concatenate([jnp.sum(start.u)[None], risk.ravel()])[at]
    variance = jnp.concatenate([jnp.zeros(1, risk.dtype), variance.ravel()])[at]
    return finite_or_infinite(risk), safe_sqrt(variance), end.u
