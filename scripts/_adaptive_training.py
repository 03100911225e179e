"""The trainings that `reproduce_adaptive.py` compares. Not a program of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxclip as jc

BATCH = 16
# Powers of 2, times the median norm of a pilot.
POWERS = np.arange(-5, 7)
POLICIES = {
    "AutoClip": jc.policy.Percentile(10.0),
    "ZClip": jc.policy.ZScore(),
    "AdaGC": jc.policy.AdaGC(),
    "QuantileDescent": jc.policy.QuantileDescent(),
    "Criterion": jc.policy.Criterion(),
    # The best threshold and not the largest of those that are as good as it.
    "Criterion(errors=0)": jc.policy.Criterion(errors=0.0),
}
# The most that a run counts, and what one counts that ends with no number.
DIVERGED = 1e3
# How far from the first rate the search goes, in factors of 2.
FAR = 7


@dataclass(frozen=True, eq=False)
class Task:
    """Something to train.

    - `start(key)`: the parameters before the first step.
    - `data(key)`: what the batches of one run are drawn from, the wrong labels of that
        run among it.
    - `draw(data, key)`: one example.
    - `loss(params, example)`: what is trained on.
    - `measure(params)`: the loss on validation rows, and that on test rows.
    - `rate`: where the search for a learning rate begins.
    - `known`: the rule for given parameters, where the best one is known.
    """

    name: str
    start: Callable[[Any], Any]
    data: Callable[[Any], Any]
    draw: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    measure: Callable[[Any], tuple[Any, Any]]
    steps: int
    rate: float
    known: Callable[[Any], Any] | None = None


class Outcome(NamedTuple):
    """Of one training, or of several along a leading axis.

    `validation` and `test` are losses, `clipped` the fraction of gradients that a
    threshold acted on, and `norms` the norms of all of them.
    """

    validation: Any
    test: Any
    clipped: Any
    norms: Any


class Judged(NamedTuple):
    """A method at its best rate: the test losses of each seed, the fraction clipped,
    the rate, and whether the rate is at the edge of those that were tried."""

    test: np.ndarray
    clipped: float
    rate: float
    edge: bool


class Given(NamedTuple):
    """What a run is given by its key: the parameters before the first step, and the
    batch of each. With a leading axis of runs."""

    params: Any
    batches: Any


@eqx.filter_jit
def given(task: Task, keys: Any) -> Given:
    """It is the same for every method, which makes differences paired."""

    def one(key):
        first, rows, order = jr.split(key, 3)
        data = task.data(rows)
        draws = jr.split(order, (task.steps, BATCH))
        batches = jax.vmap(jax.vmap(lambda key: task.draw(data, key)))(draws)
        return Given(task.start(first), batches)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def runs(task: Task, clip: Any, lr: Any, given: Given) -> Outcome:
    """Trainings with one setting. Without a `clip` it is the known one."""
    return jax.vmap(lambda each: train(task, clip, lr, each))(given)


def train(task: Task, clip: Any, lr: Any, given: Given) -> Outcome:
    """SGD, each example's gradient clipped."""

    def gradient(params):
        rule = task.known(params) if clip is None and task.known else clip
        return jc.clipped_value_and_grad(task.loss, rule)

    def step(carry, batch):
        params, state = carry
        ((_, examples), mean), state = gradient(params)(params, batch, state=state)
        params = jax.tree.map(lambda x, g: x - lr * g, params, mean)
        (norms,), (factors,) = map(jax.tree.leaves, examples[1:3])
        return (params, state), (norms, factors < 1)

    carry = given.params, gradient(given.params).init(given.params)
    (params, _), (norms, clipped) = jax.lax.scan(step, carry, given.batches)
    validation, test = (
        jnp.minimum(jnp.nan_to_num(loss, nan=DIVERGED), DIVERGED)
        for loss in task.measure(params)
    )
    return Outcome(validation, test, jnp.mean(clipped), norms)


def tuned(
    task: Task, clip: Any, scale: float, mine: Given
) -> tuple[float, float, bool]:
    """The rate of the least loss on validation rows, in factors of 2; that loss; and
    whether no larger or no smaller rate was tried.

    It tries more rates on the side where the best one is the last.
    """
    found: dict[int, float] = {}

    def loss(power: int) -> float:
        if power not in found:
            rate = jnp.float32(task.rate * scale * 2.0**power)
            found[power] = float(jnp.mean(runs(task, clip, rate, mine).validation))
        return found[power]

    best = min((-1, 0, 1), key=loss)
    while best in (min(found), max(found)) and abs(best) < FAR:
        loss(best + (1 if best == max(found) else -1))
        best = min(found, key=loss)
    edge = best in (min(found), max(found))
    return task.rate * scale * 2.0**best, found[best], edge


def judged(task: Task, clip: Any, rate: float, edge: bool, others: Given) -> Judged:
    """What other seeds do at that rate."""
    found = runs(task, clip, jnp.float32(rate), others)
    return Judged(np.asarray(found.test), float(found.clipped.mean()), rate, edge)


def compare(task: Task, mine: Given, others: Given) -> dict[str, Judged]:
    """Every method on one task: the rates, and the best fixed threshold, by validation
    rows and the runs `mine`; the losses by test rows and `others`."""
    pilot = runs(task, jc.HardClip(jnp.inf), jnp.float32(task.rate), mine)
    median = float(jnp.median(pilot.norms))
    thresholds = median * 2.0**POWERS
    # A clipped step is at most the threshold times the learning rate long.
    fixed = [
        (c, *tuned(task, jc.HardClip(c), max(1.0, median / c), mine))
        for c in thresholds
    ]
    best, rate, _, edge = min(fixed, key=lambda each: each[2])
    rules: dict[str, Any] = {
        "no clip": jc.HardClip(jnp.inf),
        **{name: jc.Adaptive(policy) for name, policy in POLICIES.items()},
    }
    if task.known is not None:
        rules["known risk"] = None
    name = f"fixed, median x 2^{int(np.rint(np.log2(best / median)))}"
    methods = {name: judged(task, jc.HardClip(best), rate, edge, others)}
    for name, clip in rules.items():
        # The first guess of a rate is that of steps of the usual length.
        rate, _, edge = tuned(task, clip, 1.0, mine)
        methods[name] = judged(task, clip, rate, edge, others)
    return methods
