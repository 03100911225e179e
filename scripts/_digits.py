"""scikit-learn's handwritten digits, and networks that are trained on them.

Not a program of its own.
"""

from collections.abc import Callable
from typing import Any

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


def wide_network(key: Any) -> jc.WideNetwork:
    """A fully connected network in the scaling of the tangent kernel."""
    return jc.WideNetwork([64, 64, 64, 10], key=key)


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


def train_all(
    start: Callable[[Any], Any],
    make: Callable[[Any], optax.GradientTransformation],
    settings: Any,
    keys: Any,
    steps: int,
) -> tuple[Any, Any, Any]:
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
) -> tuple[Any, Any, Any]:
    """Trains one network in single precision, by the cross entropy of batches of 64 out
    of 1297 rows: the gradient's norm and the loss in nats at every step, and the
    accuracy on the 500 other rows."""
    images, labels = shuffled_digits()
    X, y = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    rows, test = slice(1297), slice(1297, None)

    def loss(network, batch):
        logits = jax.vmap(network)(X[rows][batch])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y[batch])
        return jnp.mean(each)

    def body(carry, k):
        network, state = carry
        batch = jr.randint(jr.fold_in(data, k), (64,), 0, 1297)
        value, gradient = jax.value_and_grad(loss)(network, batch)
        updates, state = optimiser.update(gradient, state, network)
        network: Any = optax.apply_updates(network, updates)
        return (network, state), (jc.safe_norm(gradient), value)

    first, data = jr.split(key)
    network = jax.tree.map(lambda w: w.astype(jnp.float32), start(first))
    carry = network, optimiser.init(network)
    (trained, _), (norms, losses) = jax.lax.scan(body, carry, jnp.arange(steps))
    guess = jnp.argmax(jax.vmap(trained)(X[test]), axis=1)
    return norms, losses, jnp.mean(guess == y[test])
