"""The claims of `reproduce_clip_or_not.py` about one moment of a run: the criteria.

What the paper calls exponential noise is the two-sided law, Laplace's: its formula for
mu and ours agree to rounding.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Claim,
    Report,
    at_least,
    at_most,
    near,
    of,
)

import jaxclip as jc


def criteria(report: Report) -> list[Claim]:
    """The largest criterion for each noise, and the ceiling of any rule."""
    del report
    claims = []
    for name, noise, ceiling in (
        ("Gaussian", jc.Gaussian(1.0), 1.0),
        ("Rademacher", jc.Rademacher(1.0), 51.0),
        ("uniform", jc.Uniform(1.0), 3.76),
    ):
        worst = max(float(jnp.max(comparison(noise, r, 8.0))) for r in (1.0, 0.1, 0.01))
        claims.append(at_most(f"{name}: largest CCC of 100 thresholds, less 1",
                              worst - 1, 1e-9))  # fmt: skip
        text = f"{name}: ceiling of any rule at R = .01"
        claims.append(near(text, ceiling_ccc(noise, 0.01), ceiling, 1e-3))
    text = "Rademacher: the score's gain at R = .02, 26 times"
    claims.append(near(text, ceiling_ccc(jc.Rademacher(1.0), 0.02), 26.0, 1e-3))
    t3, laplace = jc.StudentT(3.0, 3**-0.5), jc.Laplace(1.0)
    for name, noise, rows in (
        ("Laplace", laplace, ((1.0, 1.009436, 3.5918), (0.1, 1.237185, 0.82675),
                              (0.01, 1.634972, 0.2319))),
        ("t3", t3, ((1.0, 1.078902, 3.1967), (0.1, 1.520588, 0.97307),
                    (0.01, 1.895291, 0.57968))),
    ):  # fmt: skip
        for excess, ccc, threshold in rows:
            best = jc.best_clip(noise, excess, 1.0)
            claims.append(near(f"{name}: max CCC at R = {excess}", best.ccc, ccc, 1e-5))
            text = f"{name}: its threshold at R = {excess}"
            claims.append(near(text, best.clip.threshold(0), threshold, 1e-4))
    return of("derived here", claims)


def comparison(noise: Any, excess: float, largest: float = 15.0) -> Any:
    """The clipping-comparison criterion at 100 thresholds from .1 on, as the paper's
    curves have them."""

    def ccc(threshold):
        return jc.moments(jc.HardClip(threshold), noise, excess, 1.0).ccc

    return jax.lax.map(ccc, jnp.linspace(0.1, largest, 100))


def ceiling_ccc(noise: Any, excess: float) -> float:
    """The criterion of the score: the largest of any rule."""
    variance = 2 * excess + noise.variance
    return float(jc.criterion.fisher_information(noise, excess) * variance)


def efficiencies(report: Report) -> list[Claim]:
    """How much of the ceiling the best hard threshold reaches."""
    noises = {
        "t3": (jc.StudentT(3.0, 1.0), BLUE, 0.988, 0.995),
        "Laplace": (jc.Laplace(1.0), GREEN, 0.997, 0.999),
        "contaminated": (jc.Contaminated(1.0, 10.0, 0.1), ORANGE, 0.846, 0.923),
    }
    risks = np.geomspace(0.03, 2, 7)
    claims, data = [], {"risk": risks}
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, (noise, color, low, high) in noises.items():
        share = [float(jc.best_clip(noise, r, 1.0).ccc) / ceiling_ccc(noise, r)
                 for r in risks]  # fmt: skip
        data[name] = np.array(share)
        ax.plot(risks, share, "o-", color=color, label=name)
        for text, value in (("smallest", min(share)), ("largest", max(share))):
            text = f"{name}: {text} share of the ceiling, best hard clip"
            claims.append(Claim(text, value, low - 6e-4, high + 6e-4))
    ax.axhline(1, color="0.5", lw=1)
    ax.set(xscale="log", xlabel="excess risk (noise of scale 1)",
           ylabel="CCC of the best hard clip / ceiling",
           title="A hard clip is nearly the best rule, but for outliers")  # fmt: skip
    ax.legend()
    report.save("efficiencies", **data)
    report.finish(figure, "efficiencies")
    return of("derived here", claims)


NOISES = {
    "Gaussian": (jc.Gaussian, "black"),
    "uniform": (jc.Uniform, PINK),
    "Rademacher-like": (lambda std: jc.noise.SparseSign(std, 0.2), GREEN),
    "exponential (Laplace)": (jc.Laplace, SKY),
}
# The largest criterion on the curves: R = 3, noise sd 5, 100 thresholds up to 15.
LARGEST = {"Rademacher-like": 2.525780, "exponential (Laplace)": 1.206574}
STUDENT = {50.0: 1.000201, 10.0: 1.026803, 5.0: 1.131044, 2.5: 1.871486, 2.1: 3.180908}


def curves(report: Report) -> list[Claim]:
    """The paper's curves of the criterion: four noises, and the family of Student-t."""
    excess, std = 3.0, 5.0
    thresholds = np.linspace(0.1, 15, 100)
    claims, data = [], {"threshold": thresholds}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name, (make, color) in NOISES.items():
        data[name] = comparison(make(std), excess)
        axes[0].plot(thresholds, data[name], color=color, label=name)
        value = jnp.max(data[name])
        if name in LARGEST:
            text = f"{name}: the largest CCC at R = 3, noise sd 5"
            claims.append(near(text, value, LARGEST[name], 1e-6))
        else:
            text = f"{name}: the largest CCC at R = 3, noise sd 5, is below 1"
            claims.append(at_most(text, value, 1.0))

    @jax.jit
    def student(df):
        return comparison(jc.StudentT(df, std * jnp.sqrt(1 - 2 / df)), excess)

    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(STUDENT)))
    for (df, largest), color in zip(STUDENT.items(), shades, strict=True):
        data[f"t {df:g}"] = student(jnp.asarray(df))
        axes[1].plot(thresholds, data[f"t {df:g}"], color=color, label=f"df {df:g}")
        text = f"Student-t, df {df:g}: the largest CCC at R = 3, noise sd 5"
        # The paper's integrals stop at 30 scales, which leaves the fifth digit open.
        claims.append(near(text, jnp.max(data[f"t {df:g}"]), largest, 5e-5))
    report.save("criteria", **data)
    for ax, name in zip(axes, ("four noises", "Student-t"), strict=True):
        ax.axhline(1, color="0.5", lw=1)
        ax.set(xlabel="threshold on the residual (noise sd 5)", title=name)
        ax.legend(fontsize=8)
    axes[0].set(ylabel="clipping-comparison criterion (above 1: clipping helps)")
    report.finish(figure, "criteria")
    return of("paper, the curves of the CCC", claims)


def plane(report: Report) -> list[Claim]:
    """The paper's plane of the stability criterion: threshold and noise, at R = 1."""
    axis = jnp.linspace(1, 6, 21 if report.quick else 61)
    planes = {}
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained",
                                sharey=True)  # fmt: skip
    image: Any = None
    for ax, (name, (make, _)) in zip(axes, NOISES.items(), strict=True):

        def csc(threshold, std, make=make):
            return jc.moments(jc.HardClip(threshold), make(std), 1.0, 1.0).csc

        values = jax.jit(jax.vmap(jax.vmap(csc, (0, None)), (None, 0)))(axis, axis)
        planes[name] = values
        image = ax.pcolormesh(axis, axis, jnp.log10(values), cmap="PuOr_r",
                              vmin=-1, vmax=1, shading="gouraud")  # fmt: skip
        if float(values.min()) < 1 < float(values.max()):
            ax.contour(axis, axis, values, levels=[1.0], colors="black")
        ax.set(title=name, xlabel="threshold on the residual")
    axes[0].set(ylabel="sd of the noise")
    figure.colorbar(image, ax=axes, label="log10 mu/nu\n(above 0: wider stability)")
    report.save("csc_plane", axis=axis, **planes)
    report.finish(figure, "csc_plane")
    beyond = jc.moments(jc.HardClip(10.0), jc.noise.SparseSign(4.0, 0.2), 1.0, 1.0)
    laplace, sparse = planes["exponential (Laplace)"], planes["Rademacher-like"]
    return of("paper, the plane of the CSC", [
        at_least("Gaussian: clipping widens stability in all the plane",
                 planes["Gaussian"].min(), 1 + 1e-9),
        at_least("exponential (Laplace): so it does", laplace.min(), 1 + 1e-9),
        at_most("uniform: somewhere it narrows it", planes["uniform"].min(), 1 - 1e-3),
        at_least("Rademacher-like: clipping widens it in all the plane",
                 sparse.min(), 1 + 1e-9),
    ]) + of("derived here", [
        at_most("Rademacher-like: it narrows it at threshold 10, noise sd 4",
                beyond.csc, 0.999),
    ])  # fmt: skip


def tails(report: Report) -> list[Claim]:
    """The criteria in terms of tails, by draws of the residual that no quadrature made;
    and the condition of first order at the best threshold."""
    claims = []
    excess, threshold, draws = 0.3, 1.4, 1_000_000 if report.quick else 8_000_000
    for name, noise in (
        ("Laplace", jc.Laplace(1.0)),
        ("t3", jc.StudentT(3.0, 3**-0.5)),
        ("uniform", jc.Uniform(1.0)),
        ("exponential", jc.Exponential(1.0)),
    ):
        key, other = jr.split(jr.key(report.seed))
        signal = (2 * excess) ** 0.5 * jr.normal(key, (draws,))
        square = jnp.square(signal - noise.sample(other, (draws,)))
        beyond = square > threshold**2
        over = jnp.where(beyond, square - threshold**2, 0.0)
        p, mean = float(beyond.mean()), float(over.mean())
        m = jc.moments(jc.HardClip(threshold), noise, excess, 1.0)
        # mu = 1 - p and second = V - E[w^2 - c^2; |w| > c], which is what turns the one
        # form of both criteria into the other.
        error = float(over.std()) / draws**0.5
        text = f"{name}: V - second is the tail's excess, in standard errors"
        claims.append(at_most(text, abs(m.variance - m.second - mean) / error, 4.0))
        error = (p * (1 - p) / draws) ** 0.5
        text = f"{name}: 1 - mu is the tail's probability, in standard errors"
        claims.append(at_most(text, abs(1 - m.mu - p) / error, 4.0))
        best = jc.best_clip(noise, excess, 1.0)
        best_threshold = float(best.clip.threshold(0))
        if not jnp.isfinite(best_threshold):
            continue
        width = 1e-3 * best_threshold
        low, middle, high = (
            jc.moments(jc.HardClip(best_threshold + s), noise, excess, 1.0)
            for s in (-width, 0.0, width)
        )
        density = (high.mu - low.mu) / (2 * width)  # f(c) + f(-c)
        right = best_threshold * middle.mu * (1 - middle.mu)
        text = f"{name}: second (f(c) + f(-c)) = c mu (1 - mu) at the best threshold"
        claims.append(near(text, middle.second * density / right, 1.0, 1e-4))
    return of("derived here", claims)


PAPER = (curves, plane)
DERIVED = (criteria, efficiencies, tails)
