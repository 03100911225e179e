"""Every claim of the theory of clipped SGD that we test, with our number and a verdict.

The setting is that of "To Clip or not to Clip" (arXiv:2406.11733): the experiments of
its figures, with our own runs, and statements derived here, which are marked so. Writes
the data and the figures into `results/clip_or_not/`, and exits with an error where a
claim fails. `--quick` takes fewer runs and leaves out the longest search.
"""

import argparse
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import jaxclip as jc

jax.config.update("jax_enable_x64", True)
SEED = 2406
OUT = Path("results/clip_or_not")
BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"


@dataclass(frozen=True)
class Claim:
    """A statement, our number for it, and where that number has to lie."""

    text: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        wanted = f"[{self.low:.6g}, {self.high:.6g}]"
        verdict = "holds" if self.holds else "FAILS"
        return f"{verdict}  {self.value:>12.6g}  {wanted:<26} {self.text}"


def near(text: str, value: Any, expected: float, relative: float) -> Claim:
    half = abs(expected) * relative
    return Claim(text, float(value), expected - half, expected + half)


def at_most(text: str, value: Any, bound: float) -> Claim:
    return Claim(text, float(value), -np.inf, float(bound))


def save(name: str, **arrays: Any) -> None:
    data: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
    np.savez(OUT / f"{name}.npz", **data)


def finish(figure: Any, name: str) -> None:
    for ax in figure.axes:
        ax.grid(alpha=0.25)
    figure.savefig(OUT / f"{name}.png", dpi=120)
    plt.close(figure)


def simulate_many(problem: Any, clip: Any, lr: Any, at: np.ndarray, runs: int) -> Any:
    """Runs with a key each, recorded at the evenly spaced steps `at`."""
    every, steps = int(at[1] - at[0]), int(at[-1])

    def one(key):
        return jc.simulate(problem, clip, lr, steps=steps, every=every, key=key)

    return jax.jit(jax.vmap(one))(jr.split(jr.key(SEED), runs))


def follows(text: str, runs: Any, ode: Any, dimension: float) -> Claim:
    """Whether the mean of the runs is the ODE's curve, at every recorded step: within
    four standard errors and the mean's own finite-size deviation, of order one over the
    intrinsic dimension. The value is the largest deviation over what is allowed."""
    risk = np.asarray(runs.risk)
    error = risk.std(axis=0, ddof=1) / np.sqrt(len(risk))
    allowed = 4 * error + 4 / dimension * np.asarray(ode.risk)
    deviation = np.abs(risk.mean(axis=0) - np.asarray(ode.risk))
    return at_most(text, np.max(deviation / allowed), 1.0)


def criteria() -> list[Claim]:
    """Section 4: the largest criterion for each noise, and the ceiling of any rule."""
    claims = []
    for name, noise, ceiling in (
        ("Gaussian", jc.Gaussian(1.0), 1.0),
        ("Rademacher", jc.Rademacher(1.0), 51.0),
        ("uniform", jc.Uniform(1.0), 3.76),
    ):
        worst = max(float(jc.best_clip(noise, r).ccc) for r in (1.0, 0.1, 0.01))
        claims.append(near(f"{name}: no threshold beats none", worst, 1.0, 1e-9))
        top = jc.fisher_information(noise, 0.01) * (0.02 + noise.variance)
        text = f"{name}: ceiling of any rule at R = .01 (derived here)"
        claims.append(near(text, top, ceiling, 1e-3))
    tables = {
        "Laplace": (
            jc.Laplace(1.0),
            (
                (1.0, 1.009436, 3.5918),
                (0.1, 1.237185, 0.82675),
                (0.01, 1.634972, 0.2319),
            ),
        ),
        "t3": (
            jc.StudentT(3.0, 3**-0.5),
            (
                (1.0, 1.078902, 3.1967),
                (0.1, 1.520588, 0.97307),
                (0.01, 1.895291, 0.57968),
            ),
        ),
    }
    for name, (noise, rows) in tables.items():
        for excess, ccc, threshold in rows:
            best = jc.best_clip(noise, excess)
            claims.append(near(f"{name}: max CCC at R = {excess}", best.ccc, ccc, 1e-5))
            text = f"{name}: its threshold at R = {excess}"
            claims.append(near(text, best.threshold, threshold, 1e-4))
    return claims


def figure_limits(quick: bool) -> list[Claim]:
    """The paper's figure of SGD, homogenized SGD and the ODE, with Cauchy noise, and
    with Gaussian noise beside unclipped SGD."""
    spectrum = jc.Spectrum.power_law(500, 0.2)
    dimension, norm = float(spectrum.intrinsic_dimension), spectrum.feature_norm
    start, lr = jnp.full(500, 500**-0.5), 0.6 / dimension
    at = np.arange(0, 15 * dimension, 50)
    runs = 24 if quick else 100
    cases = (
        ("Cauchy noise, clipped", jc.Cauchy(0.5), jc.HardClip(0.4 * norm), BLUE),
        ("Gaussian noise, clipped", jc.Gaussian(0.5), jc.HardClip(0.4 * norm), GREEN),
        ("Gaussian noise, unclipped", jc.Gaussian(0.5), jc.Identity(), ORANGE),
    )
    claims, figure = [], plt.figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for name, noise, clip, color in cases:
        problem = jc.LeastSquares(spectrum, noise, start)
        sgd = simulate_many(problem, clip, lr, at, runs)
        ode = jc.solve(jc.RiskODE(), problem, clip, lr, steps=at)

        def sde(key, problem=problem, clip=clip):
            limit = jc.HomogenizedSDE(dt=10.0)
            return jc.solve(limit, problem, clip, lr, steps=at, key=key)

        diffusion = jax.jit(jax.vmap(sde))(jr.split(jr.key(SEED + 1), runs))
        save(f"limits {name}", step=at, sgd=sgd.risk, sde=diffusion.risk, ode=ode.risk)
        claims.append(
            follows(f"{name}: the mean of SGD is the ODE", sgd, ode, dimension)
        )
        text = f"{name}: the mean of homogenized SGD is the ODE"
        claims.append(follows(text, diffusion, ode, dimension))
        sgd.plot(ax, color=color, label=f"{name}: SGD, 80% band")
        diffusion.plot(ax, color=color, ls=":", label="its SDE")
        ode.plot(ax, color="black", ls="--", lw=1, label="its ODE")
    ax.set(title="One step size, three noises", xscale="linear")
    ax.legend(fontsize=8)
    finish(figure, "limits")
    return claims


def figure_schedule(quick: bool) -> list[Claim]:
    """The paper's tuned schedule: max-CCC against every heuristic multiple and against
    no clipping, with rare large noise."""
    spectrum = jc.Spectrum.power_law(500, 1 / 6)
    dimension = float(spectrum.intrinsic_dimension)
    start, lr = jnp.full(500, 500**-0.5), 0.4 / dimension
    problem = jc.LeastSquares(spectrum, jc.SparseSign(0.8, 0.2), start)
    at = np.arange(0, 15 * dimension, 50)
    steps = int(at[-1])
    clip, rate = jc.max_ccc(problem, lr, steps=steps)
    best = jc.solve(jc.RiskODE(), problem, clip, rate, steps=at)
    plain = jc.solve(jc.RiskODE(), problem, jc.Identity(), lr, steps=at)
    kappas = jnp.linspace(0.1, 5, 10 if quick else 50)

    def heuristic(kappa):
        rule = jc.heuristic_clip(problem, lr, kappa, steps=steps)
        return jc.solve(jc.RiskODE(), problem, rule, lr, steps=at).risk

    scanned = jax.lax.map(jax.jit(heuristic), kappas)
    sgd = simulate_many(problem, clip, rate, at, 24 if quick else 100)
    save("schedule", step=at, best=best.risk, plain=plain.risk, kappas=kappas,
         heuristic=scanned, sgd=sgd.risk)  # fmt: skip
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ax.plot(at, scanned.T, color="0.8", lw=1)
    ax.plot([], [], color="0.8", label="heuristic, each multiple")
    plain.plot(ax, color=ORANGE, label="no clip")
    sgd.plot(ax, color=SKY, label="max-CCC, SGD, 80% band")
    best.plot(ax, color=BLUE, ls="--", label="max-CCC, ODE")
    ax.set(title="The best schedule with rare large noise", xscale="linear")
    ax.legend(fontsize=8)
    finish(figure, "schedule")
    return [
        at_most(
            "max-CCC is never above no clipping (derived here: proof)",
            jnp.max(best.risk / plain.risk),
            1 + 1e-6,
        ),
        at_most(
            "max-CCC ends below the best heuristic multiple",
            best.risk[-1] / jnp.min(scanned[:, -1]),
            1.0,
        ),
        follows("SGD with the max-CCC schedule follows its ODE", sgd, best, dimension),
    ]


def figure_criteria() -> list[Claim]:
    """The paper's curves of the criterion, and where clipping widens stability."""
    noises = {
        "Gaussian": (jc.Gaussian(5.0), "black", False),
        "uniform": (jc.Uniform(5.0), PINK, False),
        "Rademacher-like": (jc.SparseSign(5.0, 0.2), GREEN, True),
        "exponential": (jc.Exponential(5.0), SKY, True),
        "t3": (jc.StudentT(3.0, 5 / 3**0.5), BLUE, True),
    }
    thresholds = jnp.linspace(0.1, 40, 120)
    claims, data = [], {"threshold": thresholds}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name, (noise, color, helps) in noises.items():

        def both(threshold, noise=noise):
            m = jc.moments(jc.HardClip(threshold), noise, 3.0, 1.0)
            return m.ccc, m.csc

        ccc, csc = jax.lax.map(both, thresholds)
        data[name] = ccc
        for ax, values in zip(axes, (ccc, csc), strict=True):
            ax.plot(thresholds, values, color=color, label=name)
        text = f"{name}: the largest CCC at R = 3, noise sd 5"
        bounds = (1 + 1e-4, np.inf) if helps else (0.0, 1 + 1e-9)
        claims.append(Claim(text, float(jnp.max(ccc)), *bounds))
    save("criteria", **data)
    for ax, name in zip(axes, ("comparison", "stability"), strict=True):
        ax.axhline(1, color="0.5", lw=1)
        ax.set(xlabel="threshold on the residual (noise sd 5)",
               title=f"clipped-{name} criterion" if name == "stability"
               else "clipping-comparison criterion")  # fmt: skip
    axes[0].legend(fontsize=8)
    axes[0].set(ylabel="above 1: clipping helps")
    axes[1].set(yscale="log")
    finish(figure, "criteria")
    return claims


def stability_claims() -> list[Claim]:
    """Section 4: constant rates, stationary risk, and no bound when clipped."""
    dim = 200
    start = jnp.array([2**0.5])
    problem = jc.LeastSquares(jc.Spectrum.isotropic(dim), jc.Gaussian(1.0), start)
    at = jnp.array([0.0, 100.0 * dim])
    claims = []
    for rate in (0.5, 1.5):
        end = jc.solve(jc.RiskODE(), problem, jc.Identity(), rate / dim, steps=at)
        text = f"unclipped stationary risk b s^2 / (2 (2 - b)) at b = {rate}"
        claims.append(near(text, end.risk[-1], rate / (2 * (2 - rate)), 1e-6))
    clip = jc.HardClip(dim**0.5)
    for rate in (0.5, 3.0):
        end = jc.solve(jc.RiskODE(), problem, clip, rate / dim, steps=at).risk[-1]
        m = jc.moments(clip, problem.noise, end, dim**0.5)
        text = f"clipped: bounded, and R = (b / 4) second / mu, at b = {rate}"
        claims.append(near(text, end, float(rate / 4 * m.second / m.mu), 1e-6))
    text = "largest stable rate times trace, 200 Gaussian dimensions"
    stable = jc.stable_lr(problem) * dim
    return [*claims, near(text, stable, 2 * dim / (dim + 2), 1e-9)]


def tuning(quick: bool) -> list[Claim]:
    """Section 4: t3 noise, isotropic, T = 20, R(0) = 1/2. All derived here."""
    dim, horizon = 100, 20
    noise = jc.StudentT(3.0, 1.0)
    problem = jc.LeastSquares(jc.Spectrum.isotropic(dim), noise, jnp.ones(1))
    ends = jnp.array([0.0, horizon * dim])

    def log_risk(setting):
        clip = jc.HardClip(setting["c"]) if "c" in setting else jc.Identity()
        curve = jc.solve(jc.RiskODE(), problem, clip, setting["lr"], steps=ends)
        return jnp.log(curve.risk[-1])

    def constant(value):
        return jc.PiecewiseLinear(0, value)

    lr, threshold = constant(0.1 / dim), constant(dim**0.5)
    _, plain = jc.tune(log_risk, {"lr": lr}, steps=60)
    best, both = jc.tune(log_risk, {"lr": lr, "c": threshold}, steps=60)
    claims = [
        near("best constant rate, no clip", jnp.exp(plain.min()), 0.0827545, 1e-4),
        near("best constant rate and clip", jnp.exp(both.min()), 0.0540779, 1e-4),
        near("... its threshold", best["c"].values[0] / dim**0.5, 1.30682, 1e-3),
        near("... its rate", best["lr"].values[0] * dim, 0.14341, 1e-3),
        near(
            "greedy rate at the best threshold", greedy(noise, "clip"), 0.0425215, 1e-3
        ),
        near("ceiling of any rule, one pass", greedy(noise, "score"), 0.042030, 1e-3),
    ]
    if quick:
        return claims
    knots = jnp.linspace(0, horizon * dim, 8)
    for text, setting, expected in (
        ("8 knots of rate, no clip", {"lr": lr}, 0.0712534),
        ("8 knots of rate and clip", {"lr": lr, "c": threshold}, 0.0425216),
    ):
        init = {k: jc.PiecewiseLinear(knots, jnp.full(8, v.values[0]))
                for k, v in setting.items()}  # fmt: skip
        _, history = jc.tune(log_risk, init, steps=150)
        # The best schedule is no piecewise linear one: theory's own is not ours.
        claims.append(near(text, jnp.exp(history.min()), expected, 2e-3))
    return claims


def greedy(noise: Any, rule: str) -> float:
    """The risk at t = 20 of the best rate at every moment on isotropic features:
    dR/dt = -2 R^2 I with I the efficiency of the rule, by fourth-order Runge-Kutta in
    the efficiency's interpolation."""
    grid = np.geomspace(0.02, 0.6, 60)
    if rule == "score":
        values = [float(jc.fisher_information(noise, r)) for r in grid]
    else:
        values = [float(jc.best_clip(noise, r).ccc / (2 * r + noise.variance))
                  for r in grid]  # fmt: skip

    def slope(risk):
        return -2 * risk**2 * np.interp(np.log(risk), np.log(grid), values)

    risk, step = 0.5, 0.01
    for _ in range(2000):
        k1 = slope(risk)
        k2 = slope(risk + step / 2 * k1)
        k3 = slope(risk + step / 2 * k2)
        risk += step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(risk + step * k3))
    return risk


def score_rule(quick: bool) -> list[Claim]:
    """SGD with the best rule of all. Derived here."""
    dim, noise = 200, jc.Laplace(1.0)
    problem = jc.LeastSquares(jc.Spectrum.isotropic(dim), noise, jnp.ones(1))
    at = np.arange(0, 8 * dim + 1, 100)
    clip, lr = jc.score_clip(problem, 0.3 / dim, steps=int(at[-1]))
    ode = jc.solve(jc.RiskODE(), problem, clip, lr, steps=at)
    top = jc.ceiling(problem, 0.3 / dim, steps=at)
    sgd = simulate_many(problem, clip, lr, at, 24 if quick else 200)
    one_pass = [0.5]
    for _ in range(int(at[-1])):
        information = jc.fisher_information(noise, one_pass[-1])
        one_pass.append(one_pass[-1] - 2 * one_pass[-1] ** 2 * float(information) / dim)
    final = np.asarray(sgd.risk)[:, -1]
    bound = one_pass[-1] - 4 * final.std() / len(final) ** 0.5
    return [
        follows("SGD with the score rule follows its ODE", sgd, ode, dim),
        near("its ODE is the ceiling", ode.risk[-1], float(top.risk[-1]), 1e-4),
        Claim("and stays above the Cramer-Rao limit", final.mean(), bound, np.inf),
    ]


def real_data(quick: bool) -> list[Claim]:
    """The paper's recipe for a real set, on sets that scikit-learn ships: random tanh
    features, a start at random around the optimum, one shuffled pass."""
    digits: Any = load_digits()
    # Not on smaller intrinsic dimensions: at N = 2, scikit-learn's tumours, the mean of
    # the runs and the ODE differ by a third.
    sets = (
        ("digits, parity", digits.target % 2 * 2.0 - 1, 0.4, 0.1),
        ("digits, eight or not", np.where(digits.target == 8, 1.0, -1.0), 0.6, 0.4),
    )
    X, count = scaled(digits.data), 300
    features = jc.random_features(X, count, key=jr.key(SEED))
    claims = []
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for ax, (name, target, spread, eta) in zip(axes, sets, strict=True):
        y = (target - target.mean()) / target.std()
        optimum = jc.Regression(features, y).optimum
        start = optimum + spread * jr.normal(jr.key(SEED + 1), (count,))
        rows = jc.Regression(features, y, start=start, replacement=False)
        empirical = jc.LeastSquares.from_regression(rows)
        std = float(jnp.std(rows.residuals))
        gaussian = jc.LeastSquares(
            empirical.spectrum, jc.Gaussian(std), empirical.error0
        )
        dimension = float(empirical.spectrum.intrinsic_dimension)
        lr, clip = eta / dimension, jc.HardClip(0.5 * empirical.spectrum.feature_norm)
        at = np.arange(0, len(y) // 100 * 100 + 1, 20)
        sgd = simulate_many(rows, clip, lr, at, 16 if quick else 50)
        sgd.plot(ax, color=BLUE, label="SGD on the rows, 80% band")
        for law, problem, style in (
            ("empirical", empirical, "--"),
            ("Gaussian", gaussian, ":"),
        ):
            ode = jc.solve(jc.RiskODE(rtol=1e-6), problem, clip, lr, steps=at)
            ode.plot(ax, color="black", ls=style, label=f"ODE, {law} residuals")
            save(f"real {name} {law}", step=at, sgd=sgd.risk, ode=ode.risk)
            worst = jnp.max(jnp.abs(jnp.log(sgd.risk.mean(axis=0) / ode.risk)))
            text = f"{name} (N = {dimension:.1f}), {law} residuals: mean within 15%"
            claims.append(at_most(text, jnp.expm1(worst), 0.15))
        ax.set(title=f"{name}, N = {dimension:.1f}", xscale="linear")
        ax.legend(fontsize=8)
    finish(figure, "real_data")
    return claims


def scaled(X: np.ndarray) -> np.ndarray:
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, for CI")
    quick = parser.parse_args().quick
    OUT.mkdir(parents=True, exist_ok=True)
    print(
        f"jax {jax.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, seed {SEED}\n"
    )
    print(f"{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    failed = 0
    for part in (
        criteria,
        figure_criteria,
        stability_claims,
        lambda: figure_limits(quick),
        lambda: figure_schedule(quick),
        lambda: score_rule(quick),
        lambda: real_data(quick),
        lambda: tuning(quick),
    ):
        for claim in part():
            print(claim, flush=True)
            failed += not claim.holds
    print(f"\n{failed} claims fail. Data and figures: {OUT}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
