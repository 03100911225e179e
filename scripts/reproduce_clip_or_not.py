"""The claims of "To Clip or not to Clip" (arXiv:2406.11733), with our numbers.

Each claim says in brackets whose it is: the paper's, with the place where that is
known; the paper's in a weaker or easier form, and how; or derived here. Writes the data
and the figures into `results/clip_or_not/`, and exits with an error where a claim
fails. `--quick` takes fewer runs and shorter searches, and leaves out most of what is
derived here.

Out of reach are the paper's two real data sets, CIFAR-10 and Wikitext-2, which its
first figure has beside the synthetic runs: the same recipe is run on the handwritten
digits that scikit-learn ships.
"""

from typing import Any

import _clip_criteria
import _clip_limits
import _clip_tuning
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from _claims import (
    BLUE,
    ORANGE,
    SKY,
    Claim,
    Report,
    at_least,
    at_most,
    follows,
    near,
    of,
    reproduce,
)
from sklearn.datasets import load_digits

import jaxclip as jc

jax.config.update("jax_enable_x64", True)


def schedule(report: Report) -> list[Claim]:
    """The paper's tuned schedule: max-CCC against the heuristic at every multiple and
    against no clipping, with rare large noise."""
    spectrum = jc.Spectrum.power_law(500, 1 / 6)
    dimension = float(spectrum.intrinsic_dimension)
    start, lr = jnp.full(500, 500**-0.5), 0.4 / dimension
    problem = jc.LinearModel(spectrum, jc.noise.SparseSign(0.8, 0.2), start)
    at = np.arange(0, 15 * dimension, 50)
    steps = int(at[-1])
    clip, rate = jc.max_ccc(problem, lr, steps=steps)
    best = jc.solve(problem, clip, rate, steps=at)
    plain = jc.solve(problem, jc.Identity(), lr, steps=at)
    # The paper's multiples. In quick mode those around the best, and two beyond.
    kappas = np.linspace(0.1, 5, 50)
    kappas = kappas[[0, 1, 2, 3, 5, 9]] if report.quick else kappas

    @jax.jit
    def heuristic(kappa):
        rule, compensated = jc.heuristic(problem, lr, kappa, steps=steps)
        return jc.solve(problem, rule, compensated, steps=at).risk

    scanned = jnp.stack([heuristic(kappa) for kappa in kappas])
    sgd = report.simulate_many(problem, clip, rate, at, 24 if report.quick else 100)
    report.save("schedule", step=at, best=best.risk, plain=plain.risk, kappas=kappas,
         heuristic=scanned, sgd=sgd.risk)  # fmt: skip
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ax.plot(at, scanned.T, color="0.8", lw=1)
    ax.plot([], [], color="0.8", label="heuristic, each multiple")
    plain.plot(ax, color=ORANGE, label="no clip")
    sgd.plot(ax, color=SKY, label="max-CCC, SGD, 80% band")
    best.plot(ax, color=BLUE, ls="--", label="max-CCC, ODE")
    ax.set(title="The best schedule with rare large noise", xscale="linear")
    ax.legend(fontsize=8)
    report.finish(figure, "schedule")
    ends = scanned[:, -1]
    return of(
        "paper, the tuned schedule",
        [
            at_most("max-CCC over no clipping, at every step", jnp.max(best.risk
                    / plain.risk), 1 + 1e-6),
            Claim("max-CCC over the heuristic at its best multiple, at the end: within "
                  "6%; by the authors' code .947", float(best.risk[-1] / jnp.min(ends)),
                  0.94, 1.0),
            near("... which is the multiple", kappas[jnp.argmin(ends)], 0.3, 1e-6),
            at_least("no clipping over max-CCC at the end", plain.risk[-1]
                     / best.risk[-1], 5.0),
            follows("SGD with the max-CCC schedule follows its ODE", sgd, best,
                    dimension),
        ],
    )  # fmt: skip


def early_harm(report: Report) -> list[Claim]:
    """The heuristic has no guarantee: with Laplace noise and a multiple of .7 it starts
    worse than no clipping with the same descent."""
    dim = 200
    problem = jc.LinearModel(
        jc.Spectrum.isotropic(dim), jc.Laplace(1.0), jnp.array([2**0.5])
    )
    at, lr = np.linspace(0, 20 * dim, 201), 0.5 / dim
    clip, rate = jc.heuristic(problem, lr, 0.7, steps=int(at[-1]))
    clipped = jc.solve(problem, clip, rate, steps=at)
    plain = jc.solve(problem, jc.Identity(), lr, steps=at)
    report.save("early_harm", step=at, clipped=clipped.risk, plain=plain.risk)
    ratio = np.asarray(clipped.risk / plain.risk)
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    plain.plot(ax, color=ORANGE, label="no clip")
    clipped.plot(ax, color=BLUE, label="threshold .7 sd of the residual")
    ax.set(title="The heuristic schedule hurts before it helps", xscale="linear")
    ax.legend()
    report.finish(figure, "early_harm")
    return of(
        "derived here",
        [
            at_least("heuristic, kappa = .7, Laplace: over no clipping, early on",
                     ratio.max(), 1.01),
            at_most("... and in the end", ratio[-1], 0.99),
        ],
    )  # fmt: skip


def score_rule(report: Report) -> list[Claim]:
    """SGD with the best rule of all."""
    dim, noise = 200, jc.Laplace(1.0)
    problem = jc.LinearModel(jc.Spectrum.isotropic(dim), noise, jnp.ones(1))
    at = np.arange(0, 8 * dim + 1, 100)
    clip, lr = jc.score(problem, 0.3 / dim, steps=int(at[-1]))
    ode = jc.solve(problem, clip, lr, steps=at)
    top = jc.ceiling(problem, 0.3 / dim, steps=at)
    sgd = report.simulate_many(problem, clip, lr, at, 24 if report.quick else 200)
    one_pass, information = 0.5, _clip_tuning.tabulated_information(noise)
    for _ in range(int(at[-1])):
        one_pass = one_pass - 2 * one_pass**2 * information(one_pass) / dim
    final = np.asarray(sgd.risk)[:, -1]
    bound = one_pass - 4 * final.std() / len(final) ** 0.5
    return of(
        "derived here",
        [
            follows("SGD with the score rule follows its ODE", sgd, ode, dim),
            near("its ODE is the ceiling", ode.risk[-1], float(top.risk[-1]), 1e-4),
            at_least("and stays above the Cramer-Rao limit", final.mean(), bound),
        ],
    )


def real_data(report: Report) -> list[Claim]:
    """The paper's recipe for CIFAR-10, on a set that scikit-learn ships: random tanh
    features, a start at random around the optimum, one shuffled pass, and the residuals
    taken for Gaussian; or for what they are, which is ours."""
    digits: Any = load_digits()
    # Not on smaller intrinsic dimensions: at N = 2, scikit-learn's tumours, the mean of
    # the runs and the ODE differ by a third.
    sets = (
        ("digits, parity", digits.target % 2 * 2.0 - 1, 0.4, 0.1),
        ("digits, eight or not", np.where(digits.target == 8, 1.0, -1.0), 0.6, 0.4),
    )
    X, count = scaled(digits.data), 300
    features = jc.problem.random_features(X, count, key=jr.key(report.seed))
    claims = []
    sets = sets[:1] if report.quick else sets
    figure, axes = plt.subplots(1, len(sets), figsize=(5.5 * len(sets), 4.4),
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, (name, target, spread, eta) in zip(axes[0], sets, strict=True):
        y = (target - target.mean()) / target.std()
        optimum = jc.Regression(features, y).optimum
        start = optimum + spread * jr.normal(jr.key(report.seed + 1), (count,))
        rows = jc.Regression(features, y, start=start, replacement=False)
        empirical = jc.LinearModel.from_regression(rows)
        std = float(jnp.std(rows.residuals))
        gaussian = jc.LinearModel(empirical.spectrum, jc.Gaussian(std), empirical.start)
        dimension = float(empirical.spectrum.intrinsic_dimension)
        lr, clip = eta / dimension, jc.HardClip(0.5 * empirical.spectrum.feature_norm)
        at = np.arange(0, len(y) // 100 * 100 + 1, 20)
        sgd = report.simulate_many(rows, clip, lr, at, 16 if report.quick else 50)
        sgd.plot(ax, color=BLUE, label="SGD on the rows, 80% band")
        laws = (("Gaussian", gaussian, ":"), ("empirical", empirical, "--"))
        for law, problem, style in laws[:1] if report.quick else laws:
            ode = jc.solve(problem, clip, lr, steps=at, limit=jc.RiskODE(rtol=1e-6))
            ode.plot(ax, color="black", ls=style, label=f"ODE, {law} residuals")
            report.save(f"real {name} {law}", step=at, sgd=sgd.risk, ode=ode.risk)
            worst = jnp.max(jnp.abs(jnp.log(sgd.risk.mean(axis=0) / ode.risk)))
            text = f"{name} (N = {dimension:.1f}), {law} residuals: mean off the ODE"
            claims.append(at_most(text, jnp.expm1(worst), 0.1))
        ax.set(title=f"{name}, N = {dimension:.1f}", xscale="linear")
        ax.legend(fontsize=8)
    report.finish(figure, "real_data")
    return of("paper, figure 1; weaker: digits for CIFAR-10 and Wikitext-2", claims)


def scaled(X: np.ndarray) -> np.ndarray:
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0)


if __name__ == "__main__":
    reproduce(
        __doc__ or "",
        "clip_or_not",
        2406,
        (
            _clip_limits.limits,
            schedule,
            *_clip_criteria.PAPER,
            _clip_tuning.gaussian,
            _clip_tuning.no_schedule,
            _clip_limits.widened,
            real_data,
        ),
        long=(
            _clip_limits.single_runs,
            _clip_limits.stability,
            *_clip_criteria.DERIVED,
            score_rule,
            early_harm,
            _clip_tuning.tuning,
            _clip_tuning.greedy_anisotropic,
        ),
    )
