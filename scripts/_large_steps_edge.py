"""The edge of stability with a clip: a part of `reproduce_large_steps.py`.

Not a program of its own. All of it is ours; the idea of following the centre of a run
is that of central, rod and edge flows (arXiv:2410.24206, 2602.01480, 2606.18080), which
have no clip.
"""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_least, at_most, near, of

import jaxclip as jc

THRESHOLDS = (np.inf, 0.1, 0.03)


def edge(report: Report) -> list[Claim]:
    """Two networks without any noise, at three times and three thresholds."""
    cases = {
        "one hidden layer": (narrow(), 0.4, np.array([2000, 3000, 4000])),
        "two hidden layers": (deep(), 0.3, np.array([1500, 2250, 3000])),
    }
    if report.quick:
        del cases["two hidden layers"]
    claims = []
    for name, (problem, lr, ends) in cases.items():
        claims += followed(report, name, problem, lr, ends)
    return of("derived here", claims)


def followed(
    report: Report, name: str, problem: jc.FiniteSum, lr: float, ends: np.ndarray
) -> list[Claim]:
    """How far the flow is from the runs of one network, and where its edge is."""
    last, key = int(ends[-1]), jr.key(report.seed)
    late = np.concatenate([np.arange(end - 49.0, end + 1) for end in ends])
    steps = np.union1d(late, np.linspace(0, last, 101))
    figure, axes = plt.subplots(
        1, len(THRESHOLDS), figsize=(12, 3.8), layout="constrained", sharey=True
    )
    claims = []
    for threshold, ax in zip(THRESHOLDS, axes, strict=True):
        clip = jc.HardClip(threshold)
        risk = np.asarray(jc.simulate(problem, clip, lr, steps=last, key=key).risk)
        flow = jc.solve(problem, clip, lr, steps=steps, limit=jc.EdgeFlow())
        slow = jc.solve(problem, clip, lr, steps=steps, limit=jc.GradientFlow(1e-4))
        means = mean_of_50(risk[late.astype(int)])
        at_late = np.isin(steps, late)
        error, other = (
            np.max(np.abs(mean_of_50(curve.risk[at_late]) / means - 1))
            for curve in (flow, slow)
        )
        sharp = lr * jc.curvature.sharpness(problem.risk, flow.params, key=key)
        assert flow.observed is not None
        factor = flow.observed.factor[-1]
        text = f"{name}, clip at {threshold}"
        claims += [
            at_most(f"{text}: largest error of the loss at three times", error, 0.05),
            at_least(f"{text}: that of gradient flow, over it", other / error, 5),
            near(f"{text}: sharpness {float(sharp):.3f} / rate, times the mean factor",
                 sharp * factor, 2, 0.02),
        ]  # fmt: skip
        ax.plot(risk, color=BLUE, lw=0.4, alpha=0.6, label="run")
        ax.plot(steps, flow.risk, color=ORANGE, label="EdgeFlow")
        ax.plot(steps, slow.risk, color=GREEN, ls="--", label="gradient flow")
        ax.set(yscale="log", xlabel="step", title=f"clip at {threshold:g}")
        report.save(
            f"edge, {name}, {threshold}", risk=risk, steps=steps, flow=flow.risk
        )
    axes[0].set(ylabel="mean loss")
    axes[0].legend()
    report.finish(figure, f"edge, {name}")
    return claims


def mean_of_50(risk: Any) -> np.ndarray:
    return np.asarray(risk).reshape(-1, 50).mean(axis=1)


def narrow() -> jc.FiniteSum:
    """Eight tanh units on twelve points of a line."""
    x = jnp.linspace(-1, 1, 12)
    first, last = jr.split(jr.key(3))
    start = jr.normal(first, (2, 8)), jr.normal(last, (8,)) / np.sqrt(8)

    def loss(params, example):
        (weights, biases), out = params[0], params[1]
        x, y = example
        return (jnp.dot(out, jnp.tanh(weights * x + biases)) - y) ** 2 / 2

    return jc.FiniteSum(loss, start, (x, jnp.sin(3 * x) + 0.5 * jnp.sign(x))).whole()


def deep() -> jc.FiniteSum:
    """Two layers of twenty tanh units on twenty points."""
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = jnp.sin(3 * x) + 0.5 * jnp.sign(x) * x**2
    sizes, start = (1, 20, 20, 1), []
    for key, rows, columns in zip(
        jr.split(jr.key(0), 3), sizes[:-1], sizes[1:], strict=True
    ):
        weights = jr.normal(key, (rows, columns)) / np.sqrt(rows)
        start.append((weights, jnp.zeros(columns)))

    def loss(params, example):
        x, y = example
        for weights, biases in params[:-1]:
            x = jnp.tanh(x @ weights + biases)
        weights, biases = params[-1]
        return jnp.sum((x @ weights + biases - y) ** 2) / 2

    return jc.FiniteSum(loss, start, (x, y)).whole()
