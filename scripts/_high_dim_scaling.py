"""The claims of `reproduce_high_dim.py` about scaling laws.

Not a program of its own.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, PINK, Claim, Report, at_most, exactly, of

import jaxclip as jc

features = jc.problem.CompressedLinearModel.power_law_features
# An interior point of each phase; sizes, steps and compute between which its powers
# have taken over.
PHASES = {
    "Ia": ((0.8, 0.25), (1e3, 1e5), (1e3, 1e7), (1e7, 1e9), BLUE),
    "II": ((0.9, 0.7), (1e3, 1e5), (1e3, 1e6), (1e7, 1e9), ORANGE),
    "III": ((0.8, 1.2), (1e3, 3e6), (1e2, 1e7), (1e8, 1e10), GREEN),
    "IVa": ((0.4, 1.2), (1e6, 1e8), (1e5, 1e8), (1e12, 1e14), PINK),
}
# Excess risks of one run of the authors' program, at half over the trace of its draw.
PUBLISHED = {10: 0.0608, 100: 0.00399, 1000: 3.45e-4, 5000: 1.30e-4, 19000: 5.34e-5}


def scaling(report: Report) -> list[Claim]:
    """The published run among draws, the equivalent among draws, and the phases."""
    return [*_published(report), *_equivalent(report), *_phases(report)]


def _published(report: Report) -> list[Claim]:
    """Runs of SGD on draws of the published experiment: one sample a step, 1200 inputs
    and 300 features. What is published is a run on a draw that is not ours."""
    draws = 4 if report.quick else 12
    steps = np.array(list(PUBLISHED))
    risks = []
    for key in jr.split(jr.key(report.seed), draws):
        draw_key, run_key = jr.split(key)
        problem = jc.LinearModel.power_law_features(1.0, 0.7, 1200, 300, key=draw_key)
        lr = 0.5 / problem.spectrum.trace
        run = jc.simulate(
            problem, jc.Identity(), lr, steps=19_000, every=10, key=run_key
        )
        risks.append(np.asarray(run.risk)[steps // 10])
    logs = np.log(risks)
    report.save("scaling published", step=steps, risk=risks)
    away = np.log(list(PUBLISHED.values())) - logs.mean(axis=0)
    worst = np.max(np.abs(away) / logs.std(axis=0, ddof=1))
    text = "power-law features: the published run, in standard deviations of our runs"
    return of(
        "authors' program; the draw differs",
        [
            at_most(text, worst, 3.0),
            at_most("and their scatter, of the logarithm", logs.std(axis=0).max(), 0.6),
        ],
    )


def _equivalent(report: Report) -> list[Claim]:
    """The deterministic equivalent beside draws, in the risk of SGD on both."""
    steps = jnp.array([100.0, 1e3, 1e4])
    claims, sizes = [], (50, 100, 200, 400)
    solve = eqx.filter_jit(
        lambda modes, noise, lr: (
            jc.solve(
                jc.problem.CompressedLinearModel(modes, noise, jnp.zeros(())),
                *(jc.Identity(), lr),
                steps=steps,
                limit=jc.RiskODE(solver=jc.limit.ExponentialModes()),
            ).risk
        )
    )
    errors = []
    for d in sizes:
        model = features(1.0, 0.7, 4 * d, d)
        lr = 0.3 / model.modes.feature_norm**2
        ours, risks = solve(model.modes, model.noise, lr), []
        for key in jr.split(jr.key(report.seed + 1), 8 if report.quick else 32):
            draw = jc.LinearModel.power_law_features(1.0, 0.7, 4 * d, d, key=key)
            risks.append(solve(draw.modes, draw.noise, lr))
        mean, error = np.mean(risks, axis=0), np.std(risks, axis=0, ddof=1)
        error /= len(risks) ** 0.5
        errors.append(np.max(np.abs(ours - mean) / (4 * error + 4 / d * mean)))
    text = "the equivalent is the mean of draws, within 4 standard errors and 4 / d"
    claims.append(at_most(text, max(errors), 1.0))
    large = features(1.0, 0.7, 4 * 10**9, 10**9)
    claims.append(at_most("10^9 features: the error of 48 nodes", large.error, 1e-3))
    return of("derived here", claims)


def _phases(report: Report) -> list[Claim]:
    """The exponents of compute-optimal curves, one point in each of the four phases."""
    claims, figure = [], plt.figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    count = 12 if report.quick else 24
    for phase, (point, sizes, steps, compute, color) in PHASES.items():
        sizes = np.round(np.geomspace(*sizes, count)).astype(int)
        steps, compute = jnp.geomspace(*steps, 40), jnp.geomspace(*compute, 40)
        risk = _losses(*point, sizes.tolist(), steps)
        cost = sizes[:, None] * np.asarray(steps)
        best = jc.criterion.compute_optimal(cost, risk, compute)
        slope = np.polyfit(np.log(compute), np.log(best.risk), 1)[0]
        size = np.polyfit(np.log(compute), np.log(sizes[best.run]), 1)[0]
        law = jc.criterion.scaling_law(*point)
        report.save(f"scaling {phase}", cost=cost, risk=risk, compute=compute)
        name = f"phase {phase}, alpha {point[0]}, beta {point[1]}"
        claims.append(exactly(f"{name}: exponent of the loss", slope, law.risk, 0.02))
        claims.append(exactly(f"{name}: of the best size", size, law.size, 0.06))
        scale = compute / compute[0]
        ax.loglog(scale, best.risk / best.risk[0], color=color, label=name)
        ax.loglog(scale, scale**law.risk, "k--", lw=1)
    ax.set(xlabel="compute, of the first", ylabel="loss, of the first")
    ax.legend()
    report.finish(figure, "scaling")
    return of("phases of arXiv:2405.15074", claims)


def _losses(alpha: float, beta: float, sizes: list[int], steps: jax.Array) -> jax.Array:
    """The whole loss of SGD at half over the trace, of all sizes in one call."""
    models = [features(alpha, beta, 4 * d, d) for d in sizes]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)

    def one(model):
        lr = 0.5 / model.modes.feature_norm**2
        limit = jc.RiskODE(solver=jc.limit.ExponentialModes(), rtol=1e-6)
        curve = jc.solve(model, jc.Identity(), lr, steps=steps, limit=limit)
        return curve.risk + model.noise.variance / 2

    return jax.jit(jax.vmap(one))(models)
