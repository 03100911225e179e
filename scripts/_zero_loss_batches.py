"""The claims of `reproduce_noisy_gd.py` about minibatches, which select no solution.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, ORANGE, Claim, Report, at_least, at_most, of
from _zero_loss_models import NONE, diagonal, diagonal_network, slope

import jaxclip as jc


def minibatches(report: Report) -> list[Claim]:
    """Minibatches from a start off the zero-loss set: they come to it, and there they
    move on neither scale of time. From a start on the set they would not move whatever
    the theory says, since every gradient is zero there."""
    on, x, y = diagonal_network()
    start = on + 0.2 * jnp.cos(jnp.arange(16.0)).reshape(2, 8)
    batches = jc.Interpolation(diagonal, start, x, y, jc.inject.Minibatch())
    keys, lr = jr.split(jr.key(report.seed), 64), 0.02
    steps = round(4 / lr**2)
    path = np.asarray(_path(batches, lr, steps, steps // 20, keys))
    # Of the scale 1 / lr: from t = 40 to 80.
    first, second = round(40 / lr) * 20 // steps, round(80 / lr) * 20 // steps
    label = jc.Interpolation(diagonal, start, x, y, jc.inject.Label(jc.Gaussian(1.0)))
    noisy = np.asarray(_path(label, lr, steps, steps // 20, keys))
    limit = np.asarray(jc.limit.limit_map(batches, start))
    rates = np.array([0.04, 0.02, 0.01])
    away = []
    for rate in rates:
        length = round(40 / rate)
        ends = np.asarray(_path(batches, float(rate), length, length, keys))[:, -1]
        away.append(np.sqrt(np.mean(np.sum((ends - limit) ** 2, axis=(1, 2)))))
    report.save("minibatches", path=path, noisy=noisy, rates=rates, away=away)
    _motion(report, lr * lr * np.arange(21) * (steps // 20), path, noisy)
    return of(
        "paper: minibatches move on neither scale",
        [
            at_least("minibatches: least way of 64 runs to the set from a start off it",
                     np.abs(path[:, 10] - path[:, 0]).max(axis=(1, 2)).min(), 0.05),
            at_most("... motion from lr k = 40 to 80",
                    np.abs(path[:, second] - path[:, first]).max(), 1e-10),
            at_most("... motion from lr^2 k = 2 to 4",
                    np.abs(path[:, 20] - path[:, 10]).max(), 1e-12),
            at_least("... which under label noise is, on average",
                     np.abs((noisy[:, 20] - noisy[:, 10]).mean(axis=0)).max(), 0.1),
            Claim("... distance of where they end from the end of the gradient flow: "
                  "power of the rate", slope(rates, away), 0.8, 1.2),
        ],
    )  # fmt: skip


@eqx.filter_jit
def _path(problem: Any, lr: float, steps: int, every: int, keys: Any) -> Any:
    """The parameters of a run for each key, at every so many steps."""

    def one(key):
        return jc.simulate(problem, NONE, lr, steps=steps, every=every, key=key,
            observe=lambda w: w).observed  # fmt: skip

    return jax.vmap(one)(keys)


def _motion(report: Report, times: Any, path: Any, noisy: Any) -> None:
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for runs, color, name in (
        (path, BLUE, "minibatches"),
        (noisy, ORANGE, "label noise"),
    ):
        moved = np.abs(runs - runs[:, :1]).max(axis=(2, 3))
        ax.plot(times, np.median(moved, axis=0), color=color, label=name)
        ax.fill_between(times, *np.quantile(moved, (0.1, 0.9), axis=0), color=color,
                        alpha=0.2, lw=0)  # fmt: skip
    ax.set(
        xlabel="slow time: rate$^2$ x steps",
        ylabel="largest change of a parameter since the start",
        title="Minibatches come to the zero-loss set and stay",
    )
    ax.legend()
    report.finish(figure, "minibatches")
