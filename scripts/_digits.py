"""scikit-learn's handwritten digits, and networks that are trained on them.

Not a program of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxclip as jc


def shuffled_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits in one random order: 64 pixels from 0 to 1 each, and their classes."""
    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.data[order] / 16, data.target[order]


def paired(first: Any, second: Any) -> tuple[float, float]:
    """The mean difference of two accuracies on the same seeds and rows, shape `(seeds,
    rows)`, and its standard error for other seeds and other rows of the same kind: with
    both as random effects, whose joint part is counted twice, on the safe side."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    over_seeds, over_rows = difference.mean(axis=1), difference.mean(axis=0)
    variance = sum(x.var(ddof=1) / len(x) for x in (over_seeds, over_rows))
    return float(difference.mean()), float(variance) ** 0.5


def in_words(
    gap: float, error: float, words: tuple[str, str] = ("ahead of", "behind")
) -> str:
    """Whether one of two is above the other or below, beyond two errors."""
    if abs(gap) < 2 * error:
        return "no different from"
    return words[0] if gap > 0 else words[1]


def wide_network(key: Any) -> jc.curvature.WideNetwork:
    """A fully connected network in the scaling of the tangent kernel."""
    return jc.curvature.WideNetwork([64, 64, 64, 10], key=key)


class ConvNetwork(eqx.Module):
    """Two convolutions and a linear layer on 8 x 8 pixels, all leaves being arrays."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key: Any):
        first, second, last = jr.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 8, 3, key=first)
        self.second = eqx.nn.Conv2d(8, 16, 3, stride=2, key=second)
        self.last = eqx.nn.Linear(64, 10, key=last)

    def __call__(self, x: Any) -> Any:
        x = jax.nn.relu(self.first(x.reshape(1, 8, 8)))
        return self.last(jax.nn.relu(self.second(x)).ravel())


class Trained(NamedTuple):
    """One run, or several along leading axes.

    `norms` and `losses` are those of each step's batch, before the step, the losses in
    nats. `validation` is the loss on the validation rows at the end, infinite where
    training diverged, and `right` whether each test row is then classified rightly.
    """

    norms: Any
    losses: Any
    validation: Any
    right: Any


def train_all(
    start: Callable[[Any], Any],
    make: Callable[[Any], optax.GradientTransformation],
    settings: Any,
    keys: Any,
    steps: int,
) -> Trained:
    """What `train` returns for each setting and key, along two leading axes.

    **Arguments:**

    - `make`: the optimiser of a setting.
    - `settings`: a pytree of arrays with a leading axis.
    """

    def over_keys(setting):
        return jax.vmap(lambda key: train(start, make(setting), key, steps))(keys)

    # One setting after the other: more convolutions at once take longer to compile.
    return jax.jit(lambda settings: jax.lax.map(over_keys, settings))(settings)


def train(
    start: Callable[[Any], Any],
    optimiser: optax.GradientTransformation,
    key: Any,
    steps: int,
) -> Trained:
    """Trains one network in single precision, by the cross entropy of batches of 64 out
    of 1097 rows; 200 others are for validation and 500 for the test."""
    images, labels = shuffled_digits()
    X, y = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    held, test = slice(1097, 1297), slice(1297, None)

    def loss(network, rows):
        logits = jax.vmap(network)(X[rows])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y[rows])
        return jnp.mean(each)

    def body(carry, k):
        network, state = carry
        batch = jr.randint(jr.fold_in(data, k), (64,), 0, 1097)
        value, gradient = jax.value_and_grad(loss)(network, batch)
        updates, state = optimiser.update(gradient, state, network)
        network: Any = optax.apply_updates(network, updates)
        return (network, state), (jc.safe_norm(gradient), value)

    first, data = jr.split(key)
    network = jax.tree.map(lambda w: w.astype(jnp.float32), start(first))
    carry = network, optimiser.init(network)
    (trained, _), (norms, losses) = jax.lax.scan(body, carry, jnp.arange(steps))
    validation = jnp.nan_to_num(loss(trained, held), nan=jnp.inf)
    right = jnp.argmax(jax.vmap(trained)(X[test]), axis=1) == y[test]
    return Trained(norms, losses, validation, right)
