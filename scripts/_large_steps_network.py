"""The networks of `reproduce_large_steps.py`. Not a program of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_least, at_most
from _digits import in_words, paired, shuffled_digits

import jaxclip as jc

LARGE, TIMES, BATCH, STEPS = 12.0, 16, 32, 3200


def network(report: Report) -> list[Claim]:
    """A small network at a large rate, a small one, and a small one with each batch
    repeated, all for the same number of steps times rate."""
    start = jc.curvature.WideNetwork([64, 32, 32, 10], key=jr.key(report.seed))
    start = jax.tree.map(lambda w: w.astype(jnp.float32), start)
    data, key = scaled_digits(), jr.key(report.seed)
    problem = jc.FiniteSum(squared_loss, start, data)
    lr, many, loss = LARGE / TIMES, STEPS * TIMES, problem.mean_loss
    again = jc.Repeated(problem, TIMES)
    runs = {
        "large rate": run(problem, LARGE, STEPS, key, loss),
        "small rate": run(problem, lr, many, key, loss),
        "small rate, batches repeated": run(again, lr, many, key, loss),
    }
    large, small, repeated = runs.values()
    onwards = jc.FiniteSum(squared_loss, small.params, data)
    following = run(onwards, LARGE, STEPS, key, loss)
    barrier = jax.jit(lambda x, y: jc.curvature.loss_barrier(loss, x, y))
    away = float(barrier(large.params, small.params))
    beside = float(barrier(small.params, repeated.params))
    report.save("network", **{name: curve.observed for name, curve in runs.items()})
    draw(report, runs)
    ends = [curve.observed[-1] * LARGE / 2 for curve in runs.values()]
    ours = "(ours, after the paper: they differ in where they lead)"
    return [
        at_most("large rate: sharpness over 2 / rate at the end (ours)", ends[0], 1),
        at_least(f"small rate: its sharpness over 2 / large rate {ours}", ends[1], 1.2),
        at_least(f"small rate, batches repeated: the same {ours}", ends[2], 1.2),
        at_most("from the small rate's solution at the large one: sharpness, of that "
                "(paper, abstract: a large rate leaves the minimum; weaker: no barrier "
                "was found on the line)",
                following.observed[-1] / small.observed[-1], 0.9),
        at_least(f"barrier from the large-rate solution to the small-rate one {ours}",
                 away, 1e-3),
        at_most(f"barrier from repeated batches to the small rate, over that {ours}",
                beside / away, 0.5),
    ]  # fmt: skip


def generalisation(report: Report) -> list[Claim]:
    """The test rows at a large and a small rate: each seed draws a network and its rows
    to train on, and all rates share them.

    The paper's statement is that a large rate is essential for the best test accuracy,
    also without noise, and that repeated batches are no substitute. So it is with 200
    rows, where there is much to gain. With 1000 it is not: there the small rate is even
    a little ahead. A `full` batch has no noise.
    """
    seeds = jr.split(jr.key(report.seed + 1), 8)
    many, few = 1000, 200
    cases = {
        "large": (LARGE, 1, 1, few, BATCH),
        "small": (LARGE, TIMES, 1, few, BATCH),
        "repeated": (LARGE, TIMES, TIMES, few, BATCH),
        "full large": (LARGE, 1, 1, few, few),
        "full small": (LARGE, 4, 1, few, few),
        "many large": (LARGE, 1, 1, many, BATCH),
        "many small": (LARGE, TIMES, 1, many, BATCH),
    }
    found = {name: tested(seeds, *case) for name, case in cases.items()}
    for name, (right, loss) in found.items():
        print(f"         {name}: test accuracy {right.mean():.4f}, test loss "
              f"{loss.mean():.4f}")  # fmt: skip
    report.save("generalisation", **{name: x for name, (x, _) in found.items()},
                **{f"{name} loss": x for name, (_, x) in found.items()})  # fmt: skip

    def gap(which, first, second):
        """The difference, its error, and a sentence."""
        difference, error = paired(found[first][which], found[second][which])
        text = (
            f"test {('accuracy', 'loss')[which]} at rate '{first}' "
            f"{in_words(difference, error, ('above', 'below'))} that at '{second}', by "
            f"{difference:+.4f} +- {error:.4f}"
        )
        return difference, error, text

    paper = "(paper, CIFAR-10: a large rate is best; the nearest that was run)"
    claims = []
    for first, second, least in (("large", "small", 2), ("large", "repeated", 2),
                                 ("full large", "full small", -2)):  # fmt: skip
        difference, error, text = gap(1, first, second)
        claims.append(at_most(f"200 rows, {text}, in errors {paper}",
                              difference / error, -2))  # fmt: skip
        difference, error, text = gap(0, first, second)
        said = paper if least > 0 else "(weaker than the paper: not worse)"
        claims.append(
            at_least(f"200 rows, {text}, in errors {said}", difference / error, least)
        )
    difference, error, text = gap(0, "many large", "many small")
    claims.append(at_most(f"1000 rows, {text}: |difference| + 2 errors (the paper's "
                          "gain is NOT seen here: within 1.5%)",
                          abs(difference) + 2 * error, 0.015))  # fmt: skip
    return claims


def tested(
    seeds: Any, lr: float, split: int, repeats: int, rows: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each test row is classified rightly, and its loss, shape `(seeds, rows)`,
    after 3200 steps of batches, or 1600 of everything, at rate `lr`; or `split` times
    as many at a rate as much smaller."""
    X, Y = (jnp.asarray(x) for x in scaled_digits(None))
    steps = (STEPS if batch < rows else STEPS // 2) * split

    def one(key):
        first, which, order = jr.split(key, 3)
        start = jc.curvature.WideNetwork([64, 32, 32, 10], key=first)
        start = jax.tree.map(lambda w: w.astype(jnp.float32), start)
        chosen = jr.permutation(which, 1000)[:rows]
        data, loss, size = (X[chosen], Y[chosen]), squared_loss, batch
        if batch == rows:
            # The whole set is one example.
            data, size = jax.tree.map(lambda x: x[None], data), 1

            def loss(network, example):
                return jnp.mean(jax.vmap(squared_loss, (None, 0))(network, example))

        problem = jc.FiniteSum(loss, start, data)
        if repeats > 1:
            problem = jc.Repeated(problem, repeats)
        network = jc.simulate(
            problem, jc.Identity(), lr / split, steps=steps, every=steps, key=order,
            batch_size=size,
        ).params  # fmt: skip
        outputs = jax.vmap(network)(X[1000:])
        right = jnp.argmax(outputs, axis=1) == jnp.argmax(Y[1000:], axis=1)
        return right, jnp.sum((outputs - Y[1000:]) ** 2, axis=1) / 2

    right, losses = jax.jit(jax.vmap(one))(seeds)
    return np.asarray(right), np.asarray(losses)


def run(problem: Any, lr: float, steps: int, key: Any, loss: Any) -> jc.Curve:
    """One run, with the sharpness of the mean loss at nine of its steps."""

    def sharp(network):
        return jc.curvature.sharpness(loss, network, key=key, iterations=15)

    @jax.jit
    def simulated(problem):
        return jc.simulate(
            problem, jc.Identity(), lr, steps=steps, every=steps // 8, key=key,
            batch_size=BATCH, observe=sharp,
        )  # fmt: skip

    return simulated(problem)


def scaled_digits(number: int | None = 1000) -> tuple[Any, Any]:
    """Digits, centred and scaled to a root mean square of 1, and their classes; all of
    them where no number is given."""
    images, labels = shuffled_digits()
    pixels = images - images.mean(axis=0)
    X = pixels[:number] / np.sqrt(np.mean(pixels**2))
    return X.astype(np.float32), np.eye(10, dtype=np.float32)[labels[:number]]


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
