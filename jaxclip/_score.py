"""The ceiling of all clipping rules, and the rule that attains it."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import count, positive
from ._curve import Curve
from ._feedback import (
    Tabulated,
    need_least_squares,
    risk_range,
    schedule_knots,
    tabulate_smooth,
)
from ._schedule import PiecewiseLinear, Ratio, as_schedule, check_rate
from ._types import RealScalar, RealScalarLike, Schedule, Step
from .clip import AbstractClip
from .limit import RiskODE
from .limit._moments import unchecked_moments
from .limit._risk_ode import few_modes
from .problem import AbstractLaw, AbstractNoise, LeastSquares, NormalMixture


def fisher_information(noise: AbstractNoise, excess: RealScalarLike) -> RealScalar:
    r"""The Fisher information of the residual's location: the ceiling of all rules.

    For every rule, $\mu^2 / \mathrm{second} \le I = E\,s(w)^2$ with the score
    $s = -p' / p$ of the residual's density, by Cauchy-Schwarz applied to
    $\mu = E[\psi s]$; the bound is met by $\psi \propto s$ alone. The ceiling of the
    clipping-comparison criterion is $I$ times the residual's variance. Derived here.

    **Arguments:**

    - `noise`: the label noise.
    - `excess`: the excess risk $R$, positive, in the label's squared unit.
    """
    return _fisher_information(noise, positive("excess", excess))


@eqx.filter_jit
def _fisher_information(noise: AbstractNoise, excess: RealScalar) -> RealScalar:
    return noise.residual(2 * excess).information()


class ScoreClip(AbstractClip):
    r"""The best rule of all: the posterior mean of the signal in a residual.

    $$\psi(w) = 2R\, s(w) = E[\text{signal} \mid w], \qquad s = -p' / p,$$

    with $p$ the density of the residual's size. By Tweedie's formula the two forms are
    one. Its clipping-comparison criterion is the Fisher information times the
    residual's variance, the ceiling of all rules; where the noise is skewed it is that
    of the noise with a random sign, since a rule sees a norm and no sign. Derived here.

    **Arguments:**

    - `noise`: the label noise.
    - `excess`: the excess risk $R$, positive: a number, or a function of the step.
    - `feature_norm`: the square root of the covariance's trace.
    """

    noise: AbstractNoise
    excess: Schedule = eqx.field(converter=partial(as_schedule, name="excess"))
    feature_norm: Float[Array, ""] = eqx.field(
        converter=lambda value: positive("feature_norm", value)
    )

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        signal_variance = 2 * jnp.asarray(self.excess(step))
        law = self.noise.residual(signal_variance)

        def log_density(size):
            return jnp.logaddexp(law.log_density(size), law.log_density(-size))

        # The score vanishes at 0 like a multiple of the size: taken just beside. Where
        # no residual ever is, the density may underflow: the factor is held.
        least, most = 1e-4 * jnp.sqrt(signal_variance), jnp.max(law.panel_edges())

        def of(size):
            size = jnp.clip(size, least, most)
            return -signal_variance * jax.grad(log_density)(size) / size

        size = jnp.asarray(norm) / self.feature_norm
        return jnp.vectorize(of)(size)

    def kinks(self, step: Step) -> tuple[Float[Array, ""], ...]:
        law = self.noise.residual(2 * jnp.asarray(self.excess(step)))
        return tuple(edge * self.feature_norm for edge in _edges(law))


def _edges(law: AbstractLaw) -> tuple[Float[Array, ""], ...]:
    """Where panels must end so that they resolve the score, which is smooth but varies
    as fast as the density: the wide components of a mixture know nothing of the narrow
    ones. A law that is no mixture has these edges in its panels already."""
    if not isinstance(law, NormalMixture):
        return ()
    # Where more than these are as narrow, each one's own panels are as fine.
    narrow = jnp.argsort(law.stds)[:4]
    narrowest = jax.tree.map(lambda leaf: leaf[narrow], law)
    return tuple(narrowest.panel_edges())


def score_clip(
    problem: LeastSquares, lr: RealScalarLike | Schedule, *, steps: int
) -> tuple[ScoreClip, Schedule]:
    r"""The schedule of the best rule: the score of the residual's law at every step.

    The learning rate is compensated, $\gamma_k / \mu$, so that the descent is that of
    unclipped SGD with $\gamma_k$ and the noise is the smallest that any rule leaves.

    **Arguments:**

    - `problem`: what SGD runs on; symmetric noise, or the ceiling is not met.
    - `lr`: the learning rate of the unclipped run, per step.
    - `steps`: the length of the run.

    **Returns:**

    The rule and its learning rate, for `simulate` and `solve`.
    """
    knots = schedule_knots(count("steps", steps))
    risk = ceiling(problem, lr, steps=knots).risk
    excess = PiecewiseLinear(knots, risk)
    clip = ScoreClip(problem.noise, excess, problem.spectrum.feature_norm)

    mus = _mus(clip, knots)
    return clip, Ratio(check_rate(lr, knots), PiecewiseLinear(knots, mus))


@eqx.filter_jit
def _mus(clip: ScoreClip, knots: Float[Array, " k"]) -> Float[Array, " k"]:
    """How much of the descent the rule leaves, at the knots."""

    def mu(step):
        excess = clip.excess(step)
        return unchecked_moments(clip, clip.noise, excess, clip.feature_norm, step).mu

    return jax.lax.map(mu, knots)


def ceiling(
    problem: LeastSquares, lr: RealScalarLike | Schedule, *, steps: Any
) -> Curve:
    r"""The risk of the best of all rules with the descent of unclipped SGD.

    The rule is the score of the residual's law at every step, its rate compensated; no
    rule with the descent rate $\gamma_k$ has a smaller error in any eigenspace at any
    time (derived here). On isotropic features with the best $\gamma_k$ it is the
    Cramér-Rao limit of one pass over the samples, $dR/dk = -2 R^2 I / d$.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `lr`: the rate of descent, $\gamma_k \mu$, per step.
    - `steps`: shape `(s,)`, where to report.
    """
    problem = need_least_squares("ceiling", problem)
    steps = jnp.asarray(steps, jnp.result_type(float))
    lr = check_rate(lr, steps)
    information = tabulate_smooth(_Information(problem.noise), *risk_range(problem))
    return RiskODE().integrate(
        few_modes(problem),
        _Best(lr, information),
        steps,
        settings=lr,
        scale=problem.noise.variance,
    )


class _Information(eqx.Module):
    """The Fisher information, a function of the risk."""

    noise: AbstractNoise

    def __call__(self, excess: RealScalar) -> RealScalar:
        return _fisher_information(self.noise, excess)


class _Best(eqx.Module):
    """The coefficients of a run with the best of all rules."""

    lr: Schedule
    information: Tabulated

    def __call__(self, step: Step, excess: RealScalar) -> tuple[RealScalar, RealScalar]:
        rate = self.lr(step)
        return rate, rate**2 / self.information(excess)
