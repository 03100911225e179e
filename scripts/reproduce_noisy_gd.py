"""The claims of arXiv:2404.12293, noisy gradient descent, with our numbers.

Noise moves gradient descent along the set of zero loss, on two scales of time. The
paper proves which of them a noise acts on and in what limit; the constants, the
solutions that are selected, the orders of the error and all about clips are derived
here. Each claim says in brackets whose it is. Writes the data and the figures into
`results/noisy_gd/`, and exits with an error where a claim fails. `--quick` takes fewer
runs, and leaves out thresholds that differ and the cost for large networks.

Weaker than the paper: it states convergence in law of whole paths, of which we see
means; that of the diffusions of the slower scale we see on a circle only. No deep
network is trained on real data. In the model of HaoChen et al. a step has one wrong
label on average, by one up or down, in place of exactly one by a normal number,
minibatches are plain ones, and the runs stop at 120000 of 300000 steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, Claim, Report, at_most, near, of, reproduce
from _zero_loss_batches import minibatches
from _zero_loss_models import (
    NONE,
    diagonal,
    ends,
    factors,
    selection,
    slope,
    solve,
    sparse,
    squares,
)
from _zero_loss_networks import cost, network

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

PRODUCT: tuple[Any, Any, Any] = jnp.array([2.0, 0.5]), jnp.ones(1), jnp.ones(1)
ANGLE = 0.2
CIRCLE: tuple[Any, Any, Any] = (
    jnp.array([np.cos(ANGLE), np.sin(ANGLE)]),
    jnp.ones(1),
    jnp.ones(1),
)


def product(w, x):
    return w[0] * w[1] * x


def circle(w, x, scale=1.0):
    return x * jnp.sum(w**2 * scale)


def _decay(w: Any, mean: bool = False) -> float:
    """By how much the logarithm of u^2 - v^2 has fallen."""
    a = w[:, 0] ** 2 - w[:, 1] ** 2
    return float(np.log(3.75) - (np.log(a.mean()) if mean else np.log(a).mean()))


def _turn(w: Any) -> np.ndarray:
    """The logarithm of the tangent of twice the angle, less that of the start."""
    doubled = 2 * np.arctan2(w[:, 1], w[:, 0])
    return np.log(np.tan(doubled)) - np.log(np.tan(2 * ANGLE))


def label_noise(report: Report) -> list[Claim]:
    """The rate, and how fast its limit is reached, on (w1 w2 - 1)^2 / 2."""
    problem = jc.Interpolation(product, *PRODUCT, jc.inject.Label(jc.Gaussian(1.0)))
    rates = np.array([0.1, 0.05, 0.025, 0.0125])
    decays = []
    for lr in rates:
        w = ends(report, problem, float(lr), round(0.5 / lr**2), 2048)
        decays.append((_decay(w), _decay(w, mean=True)))
    per_step, mean = np.array(decays).T
    per_step = per_step / np.round(0.5 / rates**2)
    # The mean of u^2 - v^2 itself, against exp(-1/2) of its start.
    error = np.exp(-mean) - np.exp(-0.5)
    report.save("label_noise", rates=rates, per_step=per_step, error=error)
    _scaling(
        report,
        "label_noise",
        "fall of log $(u^2 - v^2)$ in a step",
        (rates, per_step, rates**2),
        (rates, error),
        "Label noise moves by the square of the rate",
    )
    return of("paper: the scale of time; weaker: of means, not in law", [
        Claim("label noise, motion of a step: power of the rate",
              slope(rates, per_step), 1.95, 2.15),
    ]) + of("derived here", [
        Claim("label noise: order of the error", slope(rates[1:], error[1:]), 0.85,
              1.15),
    ])  # fmt: skip


def dropout(report: Report) -> list[Claim]:
    """The same for dropout on a circle, with noise of a fixed and of a falling size."""
    rates = np.array([0.08, 0.04, 0.02] if report.quick else [0.08, 0.04, 0.02, 0.01])
    runs = 1024 if report.quick else 4096
    per_step = []
    for lr in rates:
        problem = jc.Interpolation(
            circle, *CIRCLE, jc.inject.Dropout(jc.Gaussian(0.1), units=2)
        )
        steps = round(0.3 / (lr * 0.01))
        per_step.append(_turn(ends(report, problem, float(lr), steps, runs)).mean())
    per_step = np.array(per_step) / np.round(0.3 / (rates * 0.01))
    coarse, errors = np.array([0.2, 0.1, 0.05]), []
    for lr in coarse:
        noise = jc.Gaussian(float(np.sqrt(lr / 5)))
        problem = jc.Interpolation(circle, *CIRCLE, jc.inject.Dropout(noise, units=2))
        steps = round(0.3 / (lr**2 / 5))
        w = ends(report, problem, float(lr), steps, 8 * runs)
        angle = np.arctan(np.tan(2 * ANGLE) * np.exp(2 * 0.3)) / 2
        exact = np.array([np.cos(angle), np.sin(angle)])
        errors.append(np.linalg.norm(w.mean(axis=0) - exact))
    report.save("dropout", rates=rates, per_step=per_step, coarse=coarse, error=errors)
    _scaling(
        report,
        "dropout",
        r"rise of log tan $2\theta$ in a step",
        (rates, per_step, 2 * 0.01 * rates),
        (coarse, errors),
        "Dropout moves by the rate",
    )
    return of("paper: the scale of time; weaker: of means, not in law", [
        Claim("dropout, motion of a step: power of the rate", slope(rates, per_step),
              0.95, 1.05),
    ]) + of("derived here", [
        Claim("dropout: order of the error", slope(coarse, errors), 0.8, 1.3),
    ])  # fmt: skip


def _scaling(
    report: Report, name: str, motion: str, moved: Any, missed: Any, law: str
) -> None:
    """Rates with the motion of a step and its limit, and rates with the distance."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    (rates, per_step, limit), (coarse, error) = moved, missed
    first = np.abs(error)[-1] * coarse / coarse[-1]
    for ax, x, y, line, text in (
        (axes[0], rates, per_step, limit, "the limit"),
        (axes[1], coarse, np.abs(error), first, "first order"),
    ):
        ax.loglog(x, y, "o", color=BLUE, label="mean of simulated runs")
        ax.loglog(x, line, "k--", label=text)
        ax.set_xticks(x, [f"{tick:g}" for tick in x])
        ax.minorticks_off()
        ax.set_xlabel("learning rate")
        ax.legend(fontsize=8)
    axes[0].set(ylabel=motion, title=law)
    axes[1].set(
        ylabel="distance of the mean from the limit",
        title="... up to an error of first order",
    )
    report.finish(figure, name)


def others(report: Report) -> list[Claim]:
    """Noise of the parameters, and noise of the gradient."""
    std, lr = 0.1, 0.005
    problem = jc.Interpolation(
        product, *PRODUCT, jc.inject.AntiCorrelated(jc.Gaussian(std))
    )
    steps = round(0.25 / (lr * std**2))
    rate = _decay(ends(report, problem, lr, steps, 256)) / (lr * std**2 * steps)
    std, lr = 0.3, 0.05
    start = jnp.array([1.0, 0.0])
    langevin = jc.Interpolation(
        circle, start, *CIRCLE[1:], jc.inject.Langevin(jc.Gaussian(std))
    )
    steps = round(1 / (lr * std) ** 2)
    w = ends(report, langevin, lr, steps, 4096)
    cosine = w[:, 0] / np.linalg.norm(w, axis=1)
    return of("paper: the scale of time; the constant derived here", [
        near("anti-correlated noise: decay of u^2 - v^2 over lr sigma^2 a step", rate,
             2.0, 0.03),
        near("noise of the gradient: Brownian motion on a circle, E cos at t = 1",
             cosine.mean(), np.exp(-0.5), 0.04),
    ])  # fmt: skip


def clipping(report: Report) -> list[Claim]:
    """What clips of the residuals do to the motion."""
    claims, lr = [], 0.0125
    for threshold in (1.0, 0.5):
        clip = jc.HardClip(threshold)
        problem = jc.Interpolation(
            product, *PRODUCT, jc.inject.Label(jc.Gaussian(1.0)), residual_clip=clip
        )
        steps = round(0.5 / lr**2)
        rate = _decay(ends(report, problem, lr, steps, 1024)) / (steps * lr**2)
        second = float(jc.moments(clip, jc.Gaussian(1.0), 0.0, 1.0).second)
        text = f"label noise clipped at {threshold}: slow time times E psi^2"
        claims.append(near(text, rate, second, 0.02))
    std, lr = 0.05, 0.02
    for threshold in (1.0, 0.5):
        clip = jc.HardClip(threshold * std)
        drop = jc.inject.Dropout(jc.Gaussian(std), units=2)
        problem = jc.Interpolation(circle, *CIRCLE, drop, residual_clip=clip)
        steps = round(0.3 / (lr * std**2))
        turn = _turn(ends(report, problem, lr, steps, 512)).mean()
        limit = solve(
            problem, NONE, lr, steps=np.array([steps]), limit=jc.ZeroLossFlow()
        )
        expected = float(_turn(np.asarray(limit.params)[None])[0])
        text = f"dropout clipped at {threshold} sigma: turn by the flow with E psi'"
        claims.append(near(text, turn, expected, 0.03))
    more = [] if report.quick else [_unequal(report)]
    return of("derived here", [*claims, *more])


def _unequal(report: Report) -> Claim:
    """Thresholds that differ, against runs at two rates, extrapolated to zero."""
    xs = jnp.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.8]])
    start = jnp.array([[1.0, 0.8, 1.2], [0.5, -0.3, 0.6]])
    ys = xs @ (start[0] * start[1])
    clip = jc.HardClip(jnp.array([0.3, 2.0]))
    problem = jc.Interpolation(
        diagonal, start, xs, ys, jc.inject.Label(jc.Gaussian(1.0)), residual_clip=clip
    )
    means, errors = [], []
    for lr in (0.1, 0.05):
        steps, runs = round(1 / lr**2), 16384
        a = ends(report, problem, lr, steps, runs)
        a = a[:, 0] ** 2 - a[:, 1] ** 2
        means.append(a.mean(axis=0))
        errors.append(a.std(axis=0) / np.sqrt(runs))
    limit = solve(problem, NONE, 1.0, steps=np.array([1.0]), limit=jc.ZeroLossFlow())
    w = np.asarray(limit.params)
    extrapolated = 2 * means[1] - means[0]
    error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    away = np.abs(extrapolated - (w[0] ** 2 - w[1] ** 2)) / error
    text = "label noise, unequal thresholds: standard errors from the limit"
    return at_most(text, away.max(), 4.0)


if __name__ == "__main__":
    parts = (
        label_noise,
        dropout,
        minibatches,
        others,
        selection,
        squares,
        factors,
        sparse,
        clipping,
        network,
    )
    reproduce(str(__doc__).splitlines()[0], "noisy_gd", 7, parts, (cost,))
