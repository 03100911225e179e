"""The data and the training of `reproduce_diagnose.py`. Not a program of its own."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _digits import shuffled_digits

import jaxclip as jc

ROWS, VALIDATION, STEPS, BATCH = 1200, 200, 300, 8
THRESHOLDS = np.geomspace(0.1, 10, 12)
NO_CLIP = 1e3
RATES = (0.14, 0.28, 0.57, 1.13)


class Losses(NamedTuple):
    """Cross entropy: of validation and of test rows, their labels clean; of the same
    rows, their labels corrupted like those that are trained on."""

    validation: Any
    test: Any
    corrupted_validation: Any
    corrupted: Any


def load() -> tuple[jax.Array, jax.Array]:
    images, labels = shuffled_digits()
    images = (images - 0.3).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(labels.astype(np.int32))


IMAGES, LABELS = load()
HELD_OUT = slice(ROWS, ROWS + VALIDATION)


def loss(model: Any, example: Any) -> Any:
    image, label = example
    return optax.softmax_cross_entropy_with_integer_labels(model(image), label)


def start(key: Any, dtype: Any) -> Any:
    return eqx.nn.MLP(64, 10, 32, 1, dtype=dtype, key=key)


def corrupt(key: Any, labels: Any, fraction: Any) -> Any:
    """Another digit in place of a fraction of the labels."""
    which, by = jr.split(key)
    wrong = (labels + jr.randint(by, labels.shape, 1, 10)) % 10
    return jnp.where(jr.bernoulli(which, fraction, labels.shape), wrong, labels)


def data(key: Any, fraction: Any) -> tuple[Any, Any]:
    """The rows to train on, and the order in which training takes them."""
    noise, order = jr.split(key)
    labels = corrupt(noise, LABELS[:ROWS], fraction)
    epochs = jr.split(order, -(-STEPS * BATCH // ROWS))
    order = jax.vmap(lambda k: jr.permutation(k, ROWS))(epochs).reshape(-1)
    return labels, order[: STEPS * BATCH].reshape(STEPS, BATCH)


def train(
    threshold: Any, lr: Any, key: Any, fraction: Any, images: Any = IMAGES
) -> tuple[Any, Any]:
    """The trained network, and the labels it was trained on."""
    model_key, data_key = jr.split(key)
    labels, order = data(data_key, fraction)
    gradients = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))
    clip = jc.as_transform(jc.HardClip(threshold), jc.PerExample())
    model, _ = jc.unroll(
        lambda model, rows: gradients(model, (images[rows], labels[rows])),
        start(model_key, images.dtype),
        optax.chain(clip, optax.sgd(jnp.asarray(lr, images.dtype))),
        order,
    )
    return model, labels


def learning_rate(threshold: Any, rate: Any) -> Any:
    # A clipped step is at most the threshold times the learning rate long.
    return rate * jnp.maximum(1, 2 / threshold)


def losses(model: Any, fraction: Any, images: Any = IMAGES) -> Losses:
    log_p = jax.nn.log_softmax(jax.vmap(model)(images[ROWS:]))
    clean = -jnp.take_along_axis(log_p, LABELS[ROWS:, None], axis=1)[:, 0]
    # The mean over the wrong labels, in place of one draw of them.
    wrong = (-log_p.sum(axis=1) - clean) / 9
    mixed = (1 - fraction) * clean + fraction * wrong
    means = [
        part.mean()
        for each in (clean, mixed)
        for part in (each[:VALIDATION], each[VALIDATION:])
    ]
    return Losses(*means)


@jax.jit
def runs(threshold: Any, rates: Any, keys: Any, fraction: Any) -> Losses:
    """The losses after training, shape `(rates, keys)`."""

    def one(rate, key):
        lr = learning_rate(threshold, rate)
        return losses(train(threshold, lr, key, fraction)[0], fraction)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(rates, keys)


@jax.jit
def diagnoses(threshold: Any, rate: Any, keys: Any, fraction: Any) -> Any:
    """At the end of a training: for clean validation rows, and for its own labels."""

    def one(key):
        lr = learning_rate(threshold, rate)
        model, labels = train(threshold, lr, key, fraction)
        batch = IMAGES[:ROWS], labels
        target, grid = (IMAGES[HELD_OUT], LABELS[HELD_OUT]), jnp.asarray(THRESHOLDS)
        clean = jc.diagnose(loss, model, batch, target=target, thresholds=grid)
        return clean, jc.diagnose(loss, model, batch, thresholds=grid)

    return jax.lax.map(one, keys)


def grid_search(keys: Any, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The test losses, clean and corrupted, of each threshold at the rate of its least
    loss on validation rows, clean and corrupted; no clip comes last. Shape
    `(thresholds, keys)`."""
    clean, corrupted = [], []
    for threshold in (*THRESHOLDS, NO_CLIP):
        found = runs(threshold, jnp.array(RATES), keys, fraction)
        clean.append(found.test[jnp.argmin(found.validation.mean(axis=1))])
        best = jnp.argmin(found.corrupted_validation.mean(axis=1))
        corrupted.append(found.corrupted[best])
    return np.array(clean), np.array(corrupted)


def pilot(threshold: float, keys: Any, fraction: float) -> Any:
    """Trains at the best rate for a threshold, then asks which would help now."""
    rates = jnp.array(RATES)
    validation = runs(threshold, rates, keys, fraction).validation
    return diagnoses(threshold, rates[validation.mean(axis=1).argmin()], keys, fraction)
