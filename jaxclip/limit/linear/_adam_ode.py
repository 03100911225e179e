"""The limit of Adam, of RMSProp and of AdamW, on a linear model."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import as_float, check, nonnegative, positive
from ..._curve import Curve
from ..._types import RealScalar, RealScalarLike, Schedule, Step
from ...clip import AbstractClip, Adaptive, need_rule
from ...noise import AbstractNoise
from ...problem import CompressedLinearModel, Modes, need_squared_loss
from .._base import AbstractLimit, AnyProblem, Request
from ._accumulated import (
    AccumulatedEquation,
    How,
    Motion,
    integrate_accumulated,
    need_coordinates,
)
from ._adam_moments import UpdateMoments, adam_moments
from ._adam_table import AbstractSeen, seen_by_adam
from ._risk_ode import RiskODE, few_modes

# The second moment's average is followed in at least so many parts of the run.
_PARTS = 300.0
# The longest memory of the squares whose sums over lags the grid has room for.
_LONGEST = 1e5


class AdamODE(AbstractLimit):
    r"""The deterministic limit of the risk under Adam, on gradients that a rule clips.

    Adam (arXiv:1412.6980) steps along $u = m / \sqrt v$ with the averages $m$ of the
    gradients and $v$ of their squares, coordinate by coordinate. Where $m$ forgets
    within far fewer steps than there are dimensions, a coordinate's update has the mean
    $\alpha \sqrt{\lambda} z$ and fluctuates as noise of strength $\beta$, with the two
    numbers of `moments`, which are functions of the risk. With $v_j = \|z_j\|^2 / 2$
    for the error in the eigenspace of $\lambda_j$, of dimension $d_j$, in steps:

    $$\frac{dv_j}{dk} = -2 \gamma \alpha(R) \sqrt{\tfrac{\mathrm{second}(R)}{s}}
    \sqrt{\lambda_j}\, v_j + \tfrac12 \gamma^2 \beta(R) \tfrac{\mathrm{second}(R)}{s}
    d_j, \qquad R = \sum_j \lambda_j v_j,$$

    where $s$ is the average of $\mathrm{second}(R)$ over the past with the weights of
    $v$: it is $\mathrm{second}(R)$ where $b_2$ remembers few steps beside the
    dimension, and exact too where it remembers as many. `b1=0` is RMSProp; a decoupled
    `weight_decay` is AdamW (arXiv:1711.05101). Derived here.

    The problem's coordinates are those of Adam: it depends on the basis, and the
    covariance is diagonal in this one. What runs is
    `jc.train(problem, optax.chain(jc.as_transform(clip), optax.adam(lr, b1, b2)))`,
    with optax's bias correction and an `eps` that is small beside the gradients. A
    clip of the update that Adam has made has no limit of this kind: its norm is that
    of the last few residuals, and does not concentrate.

    The two numbers are tabulated once in the risk, with an error below 1e-6, where the
    rule does not change with the step; else they are computed at every step of the
    solver, which takes a hundred times as long.

    **Arguments:**

    - `b1`, `b2`: the decays of the two averages, at least 0 and below 1; `b1` below the
        square root of `b2`, or 0: the update has no variance otherwise. `b2` at most
        1 - 1e-5.
    - `slow`: whether $s$ is followed. Otherwise it is $\mathrm{second}(R)$, which is
        right for a short memory, and costs no more than a [`jaxclip.RiskODE`][] with
        any spectrum.
    - `solver`, `rtol`, `max_steps`: as of a [`jaxclip.RiskODE`][]; with `slow`
        Tsitouras' 5/4 method and a tolerance of 1e-8 by default.

    **Raises:**

    A `ValueError` where a decay is out of its range, or the problem, the scope, a batch
    or a momentum has no place in the equation.
    """

    b1: Float[Array, ""]
    b2: Float[Array, ""]
    slow: bool = eqx.field(static=True)
    solver: diffrax.AbstractSolver | None
    rtol: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        b1: Any = 0.9,
        b2: Any = 0.999,
        *,
        slow: bool = True,
        solver: diffrax.AbstractSolver | None = None,
        rtol: float | None = None,
        max_steps: int = 16**5,
    ):
        b1, b2 = as_float("b1", b1), as_float("b2", b2)
        self.b2 = check(
            b2,
            lambda x: ~((x >= 0) & (x <= 1 - 1 / _LONGEST)),
            "`b2` must be at least 0 and at most 1 - 1e-5.",
        )
        self.b1 = check(
            jnp.stack([b1, b2]),
            lambda x: ~((x[0] == 0) | ((x[0] > 0) & (x[0] ** 2 < x[1]))),
            "`b1` must be 0 or positive and below the square root of `b2`, or Adam's "
            "update has no variance (here: `b1`, `b2`).",
        )[0]
        self.slow, self.solver = slow, solver
        self.rtol, self.max_steps = rtol, max_steps

    def moments(
        self,
        clip: AbstractClip | Adaptive,
        noise: AbstractNoise,
        risk: RealScalarLike,
        feature_norm: RealScalarLike,
        step: Step = 0,
    ) -> UpdateMoments:
        r"""The mean and the fluctuations of the update: $\alpha$ and $\beta$.

        **Arguments:** those of [`jaxclip.moments`][].

        **Returns:**

        A [`jaxclip.limit.UpdateMoments`][].
        """
        clip = need_rule(clip, "moments")
        risk = nonnegative("risk", risk)
        feature_norm = positive("feature_norm", feature_norm)
        of = clip, noise, risk, feature_norm, (self.b1, self.b2)
        return _jitted_moments(*of, jnp.asarray(step))

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, CompressedLinearModel):
            problem = need_squared_loss("AdamODE", problem)
        decay = request.update.weight_decay
        request.need_only("AdamODE", ("weight_decay",) if self.slow else ())
        if decay is not None and decay.clipped:
            raise ValueError(
                "`AdamODE` has no equation for a weight decay that is part of the "
                "gradient; AdamW's is `WeightDecay(rate)`, decoupled."
            )
        need_coordinates("AdamODE", problem, decay is not None)
        modes = few_modes(problem)
        norm, start = modes.feature_norm, jnp.sum(modes.risk)
        root = jnp.sqrt(modes.eigenvalues)
        modes = Modes(root, modes.risk, modes.forcing / root)
        decays = self.b1.astype(start.dtype), self.b2.astype(start.dtype)
        seen = seen_by_adam(clip, problem.noise, norm, decays, start)
        settings, scale = (clip, lr), problem.noise.variance
        if not self.slow:
            plain = RiskODE(self.solver, self.rtol, self.max_steps)
            short = _Short(seen, lr)
            return plain.integrate(modes, short, request, settings, scale)
        rate = jnp.zeros_like(start) if decay is None else decay.rate
        rate, end = rate.astype(start.dtype), request.steps[-1]
        slow = _Slow(seen, lr, decays[1], rate, modes, end)
        how = How(self.solver, self.rtol, self.max_steps)
        first = seen(jnp.zeros_like(start), start).second
        return integrate_accumulated(slow, first, request, settings, scale, how)


class _Short(eqx.Module):
    """The coefficients where the second moment is that of the present."""

    seen: AbstractSeen
    lr: Schedule

    def __call__(self, step, risk):
        seen, rate = self.seen(step, risk), self.lr(step)
        return rate * seen.drift, rate**2 * seen.diffusion


class _Slow(eqx.Module):
    """The motion where the second moment is followed; and the equation, from a
    reading."""

    seen: AbstractSeen
    lr: Schedule
    b2: RealScalar
    decay: RealScalar
    modes: Modes
    end: RealScalar

    def __call__(self, reading):
        return AccumulatedEquation(self.modes, self.motion, reading)

    def motion(self, step, risk, average):
        seen, lr = self.seen(step, risk), self.lr(step)
        # With the bias correction the average of k gradients takes in one more.
        own = (1 - self.b2) / (1 - self.b2 ** (step + 1))
        # A memory that is far shorter than the run would cost many steps. It is taken
        # for a longer one that is still short, whose lag is as many times as long.
        taken = jnp.minimum(own, jnp.maximum(_PARTS / self.end, 1 / (step + 1)))
        lag = (average - seen.second) * (taken / own)
        ratio = seen.second / jnp.maximum(seen.second + lag, 1e-3 * seen.second)
        # The decay of weights is the same in all modes.
        descent = seen.drift * jnp.sqrt(ratio) + self.decay / self.modes.eigenvalues
        noise = lr**2 * seen.diffusion * ratio
        return Motion(lr * descent, noise, taken * (seen.second - average))


# Operation by operation the quadratures take seconds.
_jitted_moments = eqx.filter_jit(adam_moments)
