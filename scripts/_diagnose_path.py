"""The criteria along a training, for `reproduce_diagnose.py`. Not a program of its own.

Plain SGD without a clip, stopped at some steps. There one half of the examples chooses
a threshold, for single examples and for the mean of a batch, and the other half says
what the criteria are at it: the largest of several estimates is too large, and an
estimate from other examples is not.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _adaptive_tasks import network
from _adaptive_text import CONTEXT, PART, Transformer, characters
from _digits import shuffled_digits

import jaxclip as jc

BATCH = 16
# Examples in a half: 37 batches.
HALF = 592
THRESHOLDS = np.geomspace(0.02, 40, 17)


@dataclass(frozen=True, eq=False)
class Model:
    """Something to train: `start(key)` are parameters, `draw(key, n)` so many examples
    that are trained on, and `loss(params, example)` is of one of them."""

    name: str
    start: Callable[[Any], Any]
    draw: Callable[[Any, int], Any]
    loss: Callable[[Any, Any], Any]
    rate: float


class Point(NamedTuple):
    """What was found at one step of a training: numbers, with their errors.

    `ccc` and `csc` are of clipping examples, `batch_ccc` and `batch_csc` of clipping
    the mean of a batch, each at the threshold that the other half of the examples
    chose. `sure` is whether the mean gradient is told from 0.
    """

    step: int
    loss: float
    threshold: float
    ccc: float
    ccc_error: float
    csc: float
    csc_error: float
    batch_threshold: float
    batch_ccc: float
    batch_ccc_error: float
    batch_csc: float
    batch_csc_error: float
    noise_scale: float
    noise_scale_error: float
    sure: bool


def along(model: Model, at: tuple[int, ...], key: Any) -> list[Point]:
    """One training, with what is found at those steps."""
    first, order, halves = jr.split(key, 3)
    params, points = model.start(first), []
    for begin, end in zip((0, *at), at, strict=False):
        keys = jax.vmap(lambda i: jr.fold_in(order, i))(jnp.arange(begin, end))
        params = _trained(model, params, keys)
        rows = model.draw(jr.fold_in(halves, end), 2 * HALF)
        points.append(_point(model, params, rows, end))
    return points


@eqx.filter_jit
def _trained(model: Model, params: Any, keys: Any) -> Any:
    def step(params, key):
        gradient = jax.grad(lambda p: _mean(model, p, model.draw(key, BATCH)))(params)
        return jax.tree.map(lambda x, g: x - model.rate * g, params, gradient), None

    return jax.lax.scan(step, params, keys)[0]


def _mean(model: Model, params: Any, rows: Any) -> Any:
    return jnp.mean(jax.vmap(model.loss, (None, 0))(params, rows))


def _point(model: Model, params: Any, rows: Any, step: int) -> Point:
    one, other = (jax.tree.map(lambda x, at=at: x[at], rows)
                  for at in (slice(HALF), slice(HALF, None)))  # fmt: skip
    numbers: list[float] = []
    first, batches = (
        [_diagnosed(model, params, half, group) for half in (one, other)]
        for group in (1, BATCH)
    )
    for chosen, found in (first, batches):
        at = int(np.argmin(np.abs(THRESHOLDS - float(chosen.threshold))))
        numbers.append(float(THRESHOLDS[at]))
        for value, error in (found.ccc, found.csc):
            numbers += [float(value[at]), float(error[at])]
    found = first[1]
    scale = [float(number) for number in found.noise_scale]
    sure = bool(found.signal.value > 2 * found.signal.error)
    loss = float(eqx.filter_jit(_mean)(model, params, rows))
    return Point._make([step, loss, *numbers, *scale, sure])


def _diagnosed(model: Model, params: Any, rows: Any, group: int) -> jc.Diagnosis:
    grid = jnp.asarray(THRESHOLDS, jnp.float32)
    how: dict[str, Any] = dict(thresholds=grid, batch_size=BATCH, group=group)
    return jc.diagnose(model.loss, params, rows, **how)


def save(path: Path, found: dict[str, list[list[Point]]]) -> None:
    """A row for each step of each training of each model."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "run", *Point._fields))
        for name, trainings in found.items():
            for run, points in enumerate(trainings):
                writer.writerows((name, run, *point) for point in points)


def models() -> list[Model]:
    return [dense(), convolutional(), transformer()]


def dense() -> Model:
    start, apply = network(lambda key: eqx.nn.MLP(64, 10, 32, 1, key=key))
    return _of_digits("MLP, digits", start, apply, 0.2)


class Convolutional(eqx.Module):
    """Two layers of 3 by 3 kernels on 8 by 8 pixels, of stride 2, and a dense one."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jr.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 8, 3, 2, 1, key=keys[0])
        self.second = eqx.nn.Conv2d(8, 16, 3, 2, 1, key=keys[1])
        self.last = eqx.nn.Linear(64, 10, key=keys[2])

    def __call__(self, image: Any) -> Any:
        x = jax.nn.relu(self.first(image.reshape(1, 8, 8)))
        return self.last(jax.nn.relu(self.second(x)).reshape(-1))


def convolutional() -> Model:
    return _of_digits("convolutional network, digits", *network(Convolutional), 0.2)


def _of_digits(name: str, start: Any, apply: Any, rate: float) -> Model:
    images, labels = shuffled_digits()
    X, y = jnp.asarray(images - 0.3, jnp.float32), jnp.asarray(labels, jnp.int32)

    def draw(key, number):
        rows = jr.choice(key, len(y), (number,), replace=False)
        return X[rows], y[rows]

    def loss(params, row):
        logits = apply(params, row[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, row[1])

    return Model(name, start, draw, loss, rate)


def transformer() -> Model:
    """The next character, by the network and on the text of `_adaptive_text.py`."""
    parts, kinds = characters()
    rows = jnp.asarray(parts)
    start, apply = network(lambda key: Transformer(kinds, key))

    def draw(key, number):
        part, place = jr.split(key)
        part = jr.randint(part, (number,), 0, len(rows))
        begin = jr.randint(place, (number,), 0, PART - CONTEXT)
        return jax.vmap(
            lambda i, j: jax.lax.dynamic_slice(rows[i], (j,), (CONTEXT + 1,))
        )(part, begin)

    def loss(params, window):
        logits = apply(params, window[:-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, window[1:])
        return jnp.mean(each)

    return Model("transformer, text", start, draw, loss, 0.4)


def pooled(trainings: list[list[Point]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The geometric mean over trainings of a criterion at each step, and the error of
    its logarithm: the jackknife's, of the examples."""
    value = np.array([[getattr(p, name) for p in points] for points in trainings])
    error = np.array([[getattr(p, f"{name}_error") for p in points]
                      for points in trainings])  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        of_log = np.sqrt(np.sum((error / value) ** 2, axis=0)) / len(value)
        return np.exp(np.log(value).mean(axis=0)), of_log
