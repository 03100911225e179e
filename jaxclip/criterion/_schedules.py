"""Schedules of the threshold, each with the learning rate that goes with it."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check, count, positive
from .._schedule import check_rate
from .._types import RealScalar, RealScalarLike, Schedule
from ..clip import HardClip
from ..limit import Laws, clips_mean, moments, need_moments, update_laws
from ..noise import AbstractNoise
from ..problem import LinearModel, need_squared_loss
from ..transform import AbstractScope, PerTree, algorithm
from ._best import best_at, best_of_mean
from ._follow import follow
from ._knots import schedule_knots
from ._setting import Setting
from ._table import Tabulated, interpolation, risk_range

# Below, the compensated rate takes in a thousand times the noise, the risk jumps within
# a step, and no limit describes the run.
_SMALLEST_CCC = 1e-3
# At how many values of the risk the best threshold is found.
_TABLE = 72


@eqx.filter_jit
def _best_tables(
    noise: AbstractNoise,
    low: RealScalar,
    high: RealScalar,
    update: algorithm.Update,
    laws: Laws,
) -> tuple[Tabulated, Tabulated]:
    """The best threshold and its efficiency, as functions of the risk."""
    log_risk = jnp.linspace(jnp.log(low), jnp.log(high), _TABLE)
    size = update.batch_size

    def of_example(risk):
        best = best_at(noise, risk)
        # The mean of a batch has the noise of one sample over its size.
        return best._replace(efficiency=best.efficiency * size)

    def of_mean(risk, laws=laws):
        assert laws is not None
        return best_of_mean(noise.variance, risk, size, lambda r: laws.near(2 * r))

    best = jax.lax.map(of_example if laws is None else of_mean, jnp.exp(log_risk))
    return (
        interpolation(log_risk, best.threshold),
        interpolation(log_risk, best.efficiency, best.slope),
    )


def max_ccc(
    problem: LinearModel,
    lr: RealScalarLike | Schedule,
    *,
    steps: int,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
) -> Setting:
    r"""The max-CCC schedule: the best threshold at every step, its rate compensated.

    The threshold is $c^*(R(k))$ times the feature norm, and the learning rate
    $\gamma_k / \mu$, so that the descent is that of unclipped SGD with $\gamma_k$ and
    only the noise is smaller. For every horizon and spectrum it does at least as well
    as unclipped SGD with $\gamma_k$ (derived here; the schedule is that of section 4 of
    arXiv:2406.11733). Where no threshold beats none, one is given that is too large to
    act.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `lr`: the learning rate of the unclipped run, per step.
    - `steps`: the length of the run.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][]; the unclipped run has the
        same batch.

    **Returns:**

    A [`jaxclip.criterion.Setting`][]: the rule and its learning rate, functions of the
    step, for `simulate` and `solve`.
    """
    problem = need_squared_loss("max_ccc", problem)
    update = need_update("max_ccc", batch_size, scope)
    # What is misused should not take the seconds of the table to be found out.
    lr = check_rate(lr, schedule_knots(count("steps", steps)))
    laws = update_laws(problem.noise, update, problem.risk(problem.init()))
    of = problem.noise, *risk_range(problem), update, laws
    thresholds, efficiencies = _best_tables(*of)
    return follow(
        problem,
        lr,
        thresholds,
        steps=steps,
        compensate=True,
        efficiency=efficiencies,
        update=update,
        laws=laws,
    )


def need_update(who: str, batch_size: int, scope: AbstractScope) -> algorithm.Update:
    update = algorithm.Update(batch_size, scope)
    need_moments(who, update)
    return update


def heuristic(
    problem: LinearModel,
    lr: RealScalarLike | Schedule,
    kappa: RealScalarLike,
    *,
    steps: int,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
) -> Setting:
    r"""The heuristic schedule: a fixed multiple of the residual's standard deviation.

    The threshold on the residual is $c(k) = \kappa \sqrt{2R(k) + \sigma^2}$, that on
    the gradient is $c$ times the feature norm, and the learning rate is compensated as
    that of [`jaxclip.max_ccc`][] is: $\gamma_k / \mu$, so that the descent is that of
    unclipped SGD with $\gamma_k$. arXiv:2406.11733 compares it with the max-CCC one.

    Near its best multiple it costs little: a few percent of the final risk of the
    max-CCC schedule in the paper's experiment. It has no guarantee: where
    $\mu^2 / \nu < 1$ at the threshold it does worse than no clipping, which a multiple
    that is good later on can do at the start.

    **Arguments:**

    - `problem`: what SGD runs on; the noise's variance must be positive and finite.
    - `lr`: the learning rate of the unclipped run, per step.
    - `kappa`: the multiple, positive and without a unit.
    - `steps`: the length of the run.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][]. Where the mean gradient of a
        batch is clipped, it is a multiple of the standard deviation of that mean.

    **Returns:**

    A [`jaxclip.criterion.Setting`][]: the rule and its learning rate, functions of the
    step, for `simulate` and `solve`.

    **Raises:**

    A `ValueError` where an argument is not what is said above, and where the multiple
    is so small beside noise that is never near zero, as of a random sign, that hardly a
    gradient is left to point downhill: the rate that makes up for it has no bound.
    """
    problem = need_squared_loss("heuristic", problem)
    update = need_update("heuristic", batch_size, scope)
    # What is misused should not take the seconds of the moments to be found out.
    lr = check_rate(lr, schedule_knots(count("steps", steps)))
    kappa = positive("kappa", kappa)
    variance = positive("problem.noise.variance", problem.noise.variance)
    risk = problem.risk(problem.init())
    samples = update.batch_size if clips_mean(update) else 1
    threshold = _Multiple(kappa, variance, samples)
    kappa = _not_too_small(kappa, threshold(risk), problem, risk, update)
    return follow(
        problem,
        lr,
        _Multiple(kappa, variance, samples),
        steps=steps,
        compensate=True,
        update=update,
        laws=update_laws(problem.noise, update, risk),
    )


def _not_too_small(
    kappa: RealScalar,
    threshold: RealScalar,
    problem: LinearModel,
    risk: RealScalar,
    update: algorithm.Update,
) -> RealScalar:
    """The multiple, if the threshold that it gives leaves enough of the descent."""
    rule = HardClip(threshold), problem.noise, risk, 1.0
    ccc = check(
        moments(*rule, batch_size=update.batch_size, scope=update.scope).ccc,
        lambda ccc: ~(ccc >= _SMALLEST_CCC),
        "`kappa` must give a clipping-comparison criterion of at least "
        f"{_SMALLEST_CCC:g} at the start of the run: below, the rate that makes up "
        "for the clip multiplies the noise without bounds. Take a larger `kappa`.",
    )
    # Times one, so that under `jit` the check is part of the result.
    return kappa * (ccc / ccc)


class _Multiple(eqx.Module):
    """The heuristic threshold, a function of the risk."""

    kappa: RealScalar
    variance: RealScalar
    samples: int = eqx.field(static=True)

    def __call__(self, risk: RealScalar) -> RealScalar:
        return self.kappa * jnp.sqrt((2 * risk + self.variance) / self.samples)
