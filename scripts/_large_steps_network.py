"""The network of `reproduce_large_steps.py`. Not a program of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_least, at_most
from _digits import shuffled_digits

import jaxclip as jc

LARGE, TIMES, BATCH, STEPS = 12.0, 16, 32, 3200


def network(report: Report) -> list[Claim]:
    """A small network at a large rate, a small one, and a small one with each batch
    repeated, all for the same number of steps times rate."""
    start = jc.WideNetwork([64, 32, 32, 10], key=jr.key(report.seed))
    start = jax.tree.map(lambda w: w.astype(jnp.float32), start)
    data, key = scaled_digits(), jr.key(report.seed)
    problem = jc.FiniteSum(squared_loss, start, data)
    lr, many, loss = LARGE / TIMES, STEPS * TIMES, problem.mean_loss
    again = jc.Repeated(problem, TIMES, BATCH)
    runs = {
        "large rate": run(problem, LARGE, STEPS, key, loss),
        "small rate": run(problem, lr, many, key, loss),
        "small rate, batches repeated": run(again, lr, many, key, loss),
    }
    large, small, repeated = runs.values()
    onwards = jc.FiniteSum(squared_loss, small.params, data)
    following = run(onwards, LARGE, STEPS, key, loss)
    barrier = jax.jit(lambda x, y: jc.loss_barrier(loss, x, y))
    away = float(barrier(large.params, small.params))
    beside = float(barrier(small.params, repeated.params))
    report.save("network", **{name: curve.observed for name, curve in runs.items()})
    draw(report, runs)
    ends = [curve.observed[-1] * LARGE / 2 for curve in runs.values()]
    return [
        at_most("large rate: sharpness over 2 / rate at the end", ends[0], 1),
        at_least("small rate: its sharpness over 2 / large rate", ends[1], 1.2),
        at_least("small rate, batches repeated: the same", ends[2], 1.2),
        at_most("from the small rate's solution at the large one: sharpness, of that",
                following.observed[-1] / small.observed[-1], 0.9),
        at_least("barrier from the large-rate solution to the small-rate one", away,
                 1e-3),
        at_most("barrier from repeated batches to the small rate, over that",
                beside / away, 0.5),
    ]  # fmt: skip


def run(problem: Any, lr: float, steps: int, key: Any, loss: Any) -> jc.Curve:
    """One run, with the sharpness of the mean loss at nine of its steps."""

    def sharp(network):
        return jc.sharpness(loss, network, key=key, iterations=15)

    @jax.jit
    def simulated(problem):
        return jc.simulate(
            problem, jc.Identity(), lr, steps=steps, every=steps // 8, key=key,
            batch_size=BATCH, observe=sharp,
        )  # fmt: skip

    return simulated(problem)


def scaled_digits() -> tuple[Any, Any]:
    """1000 digits, centred and scaled to a root mean square of 1, and their classes."""
    images, labels = shuffled_digits()
    pixels = images - images.mean(axis=0)
    X = pixels[:1000] / np.sqrt(np.mean(pixels**2))
    return X.astype(np.float32), np.eye(10, dtype=np.float32)[labels[:1000]]


def squared_loss(network: Any, example: Any) -> Any:
    x, y = example
    return jnp.sum((network(x) - y) ** 2) / 2


def draw(report: Report, runs: dict[str, jc.Curve]) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", sharex=True
    )
    for (name, curve), color in zip(runs.items(), (ORANGE, BLUE, GREEN), strict=True):
        at = np.linspace(0, 1, len(curve.step))
        left.plot(at, curve.risk, "o-", color=color, label=name)
        right.plot(at, curve.observed, "o-", color=color)
    left.set(yscale="log", xlabel="share of the run", ylabel="mean loss")
    right.axhline(2 / LARGE, color="0.4", ls="--", label="2 / large rate")
    right.set(xlabel="share of the run", ylabel="sharpness")
    left.legend()
    right.legend()
    report.finish(figure, "network")
