"""What the limits say of a problem: the best settings of SGD, and what they reach."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from .._criteria import BestClip, best_clip
from .._curve import Curve
from .._feedback import Tabulated, follow, tabulate
from .._schedule import Constant, PiecewiseLinear
from .._score import fisher_information
from .._stability import stable_lr
from .._tune import tune
from .._types import RealScalar, Schedule
from ..clip import AbstractClip, HardClip, Identity
from ..limit import RiskODE, moments, solve
from ..limit._risk_ode import few_modes
from ..problem import AbstractNoise, LeastSquares, Modes

# Values of the risk at which the best rules are tabulated.
_POINTS = 32


@dataclass(frozen=True)
class Setting:
    """A rule with a learning rate, and the risk that the ODE predicts for them."""

    clip: AbstractClip
    lr: Schedule
    predicted: Curve


@dataclass(frozen=True)
class Prediction:
    """The best settings of each kind for one problem and one length of run.

    - `unclipped`, `clipped`: the best constants without and with a hard threshold.
    - `scheduled`: the max-CCC threshold at every step, at the best rate of descent.
    - `ceiling`: what the best of all rules reaches at its best rate of descent.
    - `now`, `later`: the best threshold at the risk of the start, and at the smallest
        risk that the best constants reach.
    """

    unclipped: Setting
    clipped: Setting
    scheduled: Setting
    ceiling: Curve
    now: BestClip
    later: BestClip


def predict(
    problem: LeastSquares, steps: Float[Array, " s"], largest_lr: float
) -> Prediction:
    """The best settings by the risk ODE.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `steps`: shape `(s,)`, where to report; the risk at the last is what is minimised.
    - `largest_lr`: no unclipped rate above this one is considered: the ODE does not
        know that rows with heavy tails make unclipped SGD unstable.
    """
    gaussian = float(stable_lr(problem)) / 2
    noise = problem.noise

    def spread(excess):
        return 2 * excess + noise.variance

    start = float(problem.risk(problem.init()))
    low, high = 1e-5 * start, 2 * start
    lr, unclipped = _best_descent(
        problem, tabulate(spread, low, high, _POINTS), steps, min(largest_lr, gaussian)
    )
    low = min(start, float(unclipped.risk.min())) / 30

    table = tabulate(lambda r: best_clip(noise, r).threshold, low, high, _POINTS)
    after = tabulate(lambda r: _spread_after(noise, table(r), r), low, high, _POINTS)
    descent, curve = _best_descent(problem, after, steps, gaussian)
    clip, rate = follow(
        problem, descent, table, steps=round(float(steps[-1])), compensate=True
    )
    scheduled = Setting(clip, rate, curve)

    information = tabulate(
        lambda r: 1 / fisher_information(noise, r), low, high, _POINTS
    )
    _, top = _best_descent(problem, information, steps, gaussian)

    later = best_clip(noise, float(curve.risk.min()))
    plain = Setting(Identity(), lr, unclipped)
    clipped = plain
    if np.isfinite(float(later.threshold)):
        # The middle of the schedule is a fair guess at the best constants.
        middle = float(steps[-1]) / 2
        guess = float(rate(middle)), float(clip.threshold(middle))
        clipped = _best_constants(problem, steps, *guess, low, high)
    return Prediction(plain, clipped, scheduled, top, best_clip(noise, start), later)


def _spread_after(noise: AbstractNoise, threshold: RealScalar, excess: RealScalar):
    """The noise of a clipped run whose rate of descent is 1."""
    m = moments(HardClip(threshold), noise, excess, 1.0)
    return m.second / m.mu**2


def _best_descent(
    problem: LeastSquares,
    spread: Tabulated,
    steps: Float[Array, " s"],
    largest: float,
) -> tuple[Constant, Curve]:
    """The best constant rate of descent q, where the noise is q^2 times `spread`."""

    # In one dimension a grid, refined once, is more robust than a gradient.
    rates = largest * np.logspace(-3, 0, 25)
    risk = _descend(few_modes(problem), spread, jnp.asarray(rates), steps).risk
    top = int(np.argmin(risk[:, -1]))
    rates = np.geomspace(rates[max(top - 1, 0)], rates[min(top + 1, 24)], 25)
    curves = _descend(few_modes(problem), spread, jnp.asarray(rates), steps)
    top = int(np.argmin(curves.risk[:, -1]))
    return Constant(rates[top]), jax.tree.map(lambda leaf: leaf[top], curves)


@eqx.filter_jit
def _descend(modes: Modes, spread: Tabulated, rates, steps) -> Curve:
    """The curve of each of several constant rates of descent."""

    def one(q):
        def coefficients(step, excess):
            del step
            return q, q**2 * spread(excess)

        return RiskODE(rtol=1e-6).integrate(modes, coefficients, steps)

    return jax.vmap(one)(rates)


def _best_constants(
    problem: LeastSquares,
    steps: Float[Array, " s"],
    lr: float,
    threshold: float,
    low: float,
    high: float,
) -> Setting:
    """The best constant learning rate and threshold, by gradient through the ODE."""
    ends = steps[jnp.array([0, -1])]
    modes, norm = few_modes(problem), problem.spectrum.feature_norm
    # A setting is wanted to a percent, so neither the solver nor the search is asked
    # for more: both cost several times as much at their defaults.
    ode, search = RiskODE(rtol=1e-6, max_steps=4096), optx.BFGS(rtol=1e-3, atol=1e-3)

    def loss(setting):
        # Tabulated at each trial threshold, through which the gradient flows: the ODE
        # asks for thousands of moments.
        def of(excess):
            return moments(HardClip(threshold), problem.noise, excess, norm)

        rate, threshold = setting["lr"](0), setting["threshold"](0)
        mu = tabulate(lambda r: of(r).mu, low, high, _POINTS)
        second = tabulate(lambda r: of(r).second, low, high, _POINTS)

        def coefficients(step, excess):
            del step
            return rate * mu(excess), rate**2 * second(excess)

        # A trial rate may be too large to solve for: infinite risk, and not taken.
        curve = ode.integrate(modes, coefficients, ends, throw=False)
        return jnp.log(curve.risk[-1])

    init = {"lr": PiecewiseLinear(0, lr), "threshold": PiecewiseLinear(0, threshold)}
    best, _ = tune(loss, init, steps=25, optimiser=search)
    clip, rate = HardClip(best["threshold"]), best["lr"]
    return Setting(clip, rate, solve(ode, problem, clip, rate, steps=steps))
