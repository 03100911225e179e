"""The claims of `reproduce_clip_or_not.py` about the best rates and thresholds.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.optimize
from _claims import Claim, Report, at_least, at_most, near, of

import jaxclip as jc

# Isotropic features, from the risk 1/2 to t = 20; dR/dt as in the risk ODE.
DIM, HORIZON, START = 100, 20, 0.5


def bound_of_schedules(variance: float) -> float:
    """The smallest final risk of unclipped SGD under any schedule of its rate.

    The rate that is best at every moment is 2 R / (2 R + variance), at which
    dR/dt = -2 R^2 / (2 R + variance); this integrates in closed form."""

    def missing(risk):
        spent = np.log(START / risk) + variance / 2 * (1 / risk - 1 / START)
        return spent - HORIZON

    root: Any = scipy.optimize.brentq(missing, 1e-6, START, xtol=1e-14)
    return float(root)


def log_risk(noise: Any, setting: Any) -> Any:
    """The logarithm of the final risk at a rate and, where there is one, a clip."""
    problem = jc.LinearModel(jc.Spectrum.isotropic(DIM), noise, jnp.ones(1))
    clip = jc.HardClip(setting["c"]) if "c" in setting else jc.Identity()
    ends = jnp.array([0.0, HORIZON * DIM])
    curve = jc.solve(problem, clip, setting["lr"], steps=ends)
    return jnp.log(curve.risk[-1])


def schedules(noise: Any, knots: int, steps: int, *, clip: bool) -> tuple[Any, float]:
    """The best schedules that a search by gradient finds, and their final risk."""
    # Denser towards the start, where the risk falls fastest.
    at = HORIZON * DIM * np.linspace(0, 1, knots) ** 2
    init = {"lr": jc.PiecewiseLinear(at, jnp.full(knots, 0.1 / DIM))}
    if clip:
        init["c"] = jc.PiecewiseLinear(at, jnp.full(knots, DIM**0.5))
    best, history = jc.tune(lambda s: log_risk(noise, s), init, steps=steps)
    return best, float(jnp.exp(history.min()))


def gaussian(report: Report) -> list[Claim]:
    """With Gaussian noise clipping cannot improve SGD: rate and threshold are tuned,
    from a threshold that clips a third of the gradients."""
    knots, steps = (4, 60) if report.quick else (8, 200)
    noise = jc.Gaussian(1.0)
    bound = bound_of_schedules(1.0)
    tuned, risk = schedules(noise, knots, steps, clip=True)
    thresholds = tuned["c"].values[1:] / DIM**0.5
    excess = np.geomspace(1e-4, 1e2, 13)

    def ccc(threshold, excess):
        # In units of the residual, from a hundredth of it up to ten.
        clip = jc.HardClip(threshold * jnp.sqrt(2 * excess + 1))
        return jc.moments(clip, noise, excess, 1.0).ccc

    over = jax.jit(jax.vmap(jax.vmap(ccc, (0, None)), (None, 0)))
    values = over(np.geomspace(1e-2, 10, 60), excess)
    return of(
        "paper, abstract: with Gaussian noise clipping cannot improve SGD",
        [
            at_most("Gaussian: largest CCC of 60 thresholds at 13 risks, less 1",
                    jnp.max(values) - 1, 1e-12),
            at_least("Gaussian: tuned rate and threshold, final risk over the least of "
                     "unclipped SGD", risk / bound, 1 - 1e-9),
            at_most("... which the search comes close to", risk / bound, 1.02),
            at_least("... by a threshold that no longer acts: smallest, in noise sd",
                     thresholds.min(), 3.0),
        ],
    )  # fmt: skip


def no_schedule(report: Report) -> list[Claim]:
    """What clipping gives no schedule of the rate recovers: t3 noise, whose variance is
    finite, at one rate and one threshold against all schedules without a clip."""
    noise, (threshold, rate) = jc.StudentT(3.0, 1.0), (1.30682, 0.14341)
    bound = bound_of_schedules(3.0)
    clip = jc.HardClip(threshold * DIM**0.5)
    clipped = float(jnp.exp(log_risk(noise, {"c": clip.threshold, "lr": rate / DIM})))
    dim, runs = 1000, 64 if report.quick else 400
    problem = jc.LinearModel(jc.Spectrum.isotropic(dim), noise, jnp.ones(1))

    def run(key):
        clip, steps = jc.HardClip(threshold * dim**0.5), HORIZON * dim
        return jc.simulate(problem, clip, rate / dim, steps=steps, every=steps, key=key,
            engine=jc.Lumped())  # fmt: skip

    sgd = jax.jit(jax.vmap(run))(jr.split(jr.key(report.seed), runs)).risk[:, -1]
    worst = jnp.mean(sgd) + 4 * jnp.std(sgd) / runs**0.5
    return of(
        "paper, abstract of its first version; isotropic features",
        [
            at_least("t3: least final risk of SGD under any schedule of the rate, over "
                     "that of one rate and one clip", bound / clipped, 1.3),
            at_most("... clipped SGD itself, mean and 4 standard errors, over the "
                    "former", worst / bound, 0.9),
        ],
    )  # fmt: skip


def tuning(report: Report) -> list[Claim]:
    """t3 noise: constant rates and thresholds, the greedy rate, and the ceiling."""
    noise = jc.StudentT(3.0, 1.0)
    _, plain = schedules(jc.Gaussian(3**0.5), 1, 60, clip=False)
    best, both = schedules(noise, 1, 60, clip=True)
    claims = [
        near("best constant rate, no clip", plain, 0.0827545, 1e-4),
        near("best constant rate and clip", both, 0.0540779, 1e-4),
        near("... its threshold", best["c"].values[0] / DIM**0.5, 1.30682, 1e-3),
        near("... its rate", best["lr"].values[0] * DIM, 0.14341, 1e-3),
        near("greedy rate, best threshold", greedy(noise, "clip"), 0.0425215, 1e-3),
        near("ceiling of any rule, one pass", greedy(noise, "score"), 0.042030, 1e-3),
    ]
    _, both = schedules(noise, 8, 150, clip=True)
    # The best schedule is no piecewise linear one.
    claims.append(near("8 knots of rate and clip", both, 0.0425216, 2e-3))
    # Without a clip the ODE knows no more of the noise than its variance.
    _, plain = schedules(jc.Gaussian(3**0.5), 8, 150, clip=False)
    claims.append(Claim("8 knots of rate, no clip, over the bound of all schedules",
                        plain / bound_of_schedules(3.0), 1 - 1e-9, 1.02))  # fmt: skip
    del report
    return of("derived here", claims)


def greedy(noise: Any, rule: str) -> float:
    """The final risk of the best rate at every moment on isotropic features:
    dR/dt = -2 R^2 I with I the efficiency of the rule."""
    if rule == "score":
        efficiency = tabulated_information(noise)
    else:
        efficiency = tabulated_efficiency(noise, np.geomspace(0.02, 0.6, 60))
    risk = START
    for _ in range(100 * HORIZON):
        risk = runge_kutta(lambda r: -2 * r**2 * efficiency(r), risk, 0.01)
    return risk


def greedy_anisotropic(report: Report) -> list[Claim]:
    """On the eigenvalues 1/i, the rate that is best at every moment is far from the
    best schedule, whose threshold it shares."""
    del report
    dim, steps = 100, 10_000
    spectrum = jc.Spectrum.power_law(dim, 1.0)
    trace = float(spectrum.trace)
    noise, start = jc.StudentT(3.0, 1.0), jnp.full(dim, trace**-0.5)
    problem = jc.LinearModel(spectrum, noise, start)

    def loss(setting):
        clip, ends = jc.HardClip(setting["c"]), jnp.array([0.0, steps])
        curve = jc.solve(problem, clip, setting["lr"], steps=ends)
        return jnp.log(curve.risk[-1])

    knots = jnp.concatenate([jnp.zeros(1), jnp.geomspace(steps / 300, steps, 7)])
    init = {"lr": jc.PiecewiseLinear(knots, jnp.full(8, 0.1 / trace)),
            "c": jc.PiecewiseLinear(knots, jnp.full(8, 1.3 * trace**0.5))}  # fmt: skip
    # Far from converged, and far enough: each of them takes seconds.
    _, history = jc.tune(loss, init, steps=20)

    lam, v = np.asarray(spectrum.eigenvalues), np.asarray(start) ** 2 / 2
    efficiency = tabulated_efficiency(noise, np.geomspace(1e-4, 1, 60))

    def slope(v):
        risk = lam @ v
        share = efficiency(risk)
        # What minimises dR/dk over q = lr mu at the best threshold.
        q = 2 * (lam**2 @ v) * share / np.sum(lam**2)
        return -2 * q * lam * v + q**2 / share * lam / 2

    for step in np.diff(np.concatenate([[0], np.geomspace(1e-4, steps, 4000)])):
        v = runge_kutta(slope, v, step)
    text = "eigenvalues 1/i: the greedy rate's final risk over the tuned one's"
    return of("derived here", [at_least(text, lam @ v / jnp.exp(history.min()), 2.0)])


def tabulated_information(noise: Any) -> Any:
    """The Fisher information as a function of the risk, interpolated."""
    grid = np.geomspace(0.01, 0.6, 60)
    values = [float(jc.criterion.fisher_information(noise, r)) for r in grid]
    return lambda risk: np.interp(np.log(risk), np.log(grid), values)


def tabulated_efficiency(noise: Any, grid: np.ndarray) -> Any:
    """The largest mu^2 / second as a function of the risk, interpolated."""
    values = [float(jc.best_clip(noise, r, 1.0).ccc / (2 * r + noise.variance))
              for r in grid]  # fmt: skip
    return lambda risk: np.interp(np.log(risk), np.log(grid), values)


def runge_kutta(slope: Any, y: Any, step: float) -> Any:
    """One step of the classical fourth-order method."""
    k1 = slope(y)
    k2 = slope(y + step / 2 * k1)
    k3 = slope(y + step / 2 * k2)
    return y + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + step * k3))
