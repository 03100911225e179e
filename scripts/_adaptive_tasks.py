"""What `reproduce_adaptive.py` trains: a linear model, digits, and a table.

Not a program of its own. The text is in `_adaptive_text.py`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _adaptive_training import Task
from _digits import shuffled_digits
from sklearn.datasets import load_breast_cancer

import jaxclip as jc


def network(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A function that starts a network's arrays, and one that applies it."""
    rest = eqx.filter(make(jr.key(0)), eqx.is_array, inverse=True)

    def start(key):
        return eqx.filter(make(key), eqx.is_array)

    return start, lambda params, x: eqx.combine(params, rest)(x)


def linear(steps: int, ask: bool = True) -> Task:
    """Least squares in 100 directions, the labels' noise with 2 degrees of freedom.

    The risk, and with it the best threshold, is known: the one of the largest criterion
    at the present risk, whatever the batch. To `ask` for it takes a while.
    """
    noise = jc.StudentT(2.0, 0.5)
    eigenvalues = jnp.arange(1, 101) ** -0.5
    eigenvalues = eigenvalues / eigenvalues.sum()
    risks = np.geomspace(1e-5, 1e2, 40)
    best = [jc.best_clip(noise, r, 1.0).clip.threshold(0) for r in risks if ask]
    best = jnp.log(jnp.array(best))

    def draw(data, key):
        del data
        features, label = jr.split(key)
        x = jr.normal(features, (100,)) * jnp.sqrt(eigenvalues)
        return x, noise.sample(label)

    def risk(params):
        return 0.5 * jnp.sum(eigenvalues * params**2)

    def known(params):
        at = jnp.log(jnp.maximum(risk(params), 1e-5))
        return jc.HardClip(jnp.exp(jnp.interp(at, np.log(risks), best)))

    return Task(
        name="linear model, Student's t with 2 degrees of freedom",
        start=lambda key: jr.normal(key, (100,)),
        data=lambda key: key,
        draw=draw,
        loss=lambda params, row: 0.5 * (row[0] @ params - row[1]) ** 2,
        measure=lambda params: (risk(params), risk(params)),
        steps=steps,
        rate=0.8,
        known=known if ask else None,
    )


def digits(fraction: float, steps: int) -> Task:
    """Digits, a fraction of the labels that are trained on wrong."""
    images, labels = shuffled_digits()
    X = jnp.asarray(images - 0.3, jnp.float32)
    y = jnp.asarray(labels, jnp.int32)
    rows, held = 1200, slice(1200, 1400)
    start, apply = network(lambda key: eqx.nn.MLP(64, 10, 32, 1, key=key))

    def data(key):
        which, by = jr.split(key)
        wrong = (y[:rows] + jr.randint(by, (rows,), 1, 10)) % 10
        return jnp.where(jr.bernoulli(which, fraction, (rows,)), wrong, y[:rows])

    def draw(data, key):
        row = jr.randint(key, (), 0, rows)
        return X[row], data[row]

    def loss(params, row):
        logits = apply(params, row[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, row[1])

    def mean(params, part):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, (X[part], y[part])))

    return Task(
        name=f"digits, {fraction:.0%} wrong labels",
        start=start,
        data=data,
        draw=draw,
        loss=loss,
        measure=lambda params: (mean(params, held), mean(params, slice(1400, None))),
        steps=steps,
        rate=0.4,
    )


def tumours(steps: int) -> Task:
    """A network on scikit-learn's breast cancer table: the standard error of a tumour's
    area, a column with a heavy tail, from the others but its radius's and
    perimeter's."""
    table: Any = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(table.target))
    X, names = table.data[order], list(table.feature_names)
    target = X[:, names.index("area error")]
    left_out = [names.index(f"{n} error") for n in ("radius", "perimeter", "area")]
    X = np.log1p(np.delete(X, left_out, axis=1))
    rows, held, test = slice(0, 350), slice(350, 430), slice(430, None)
    X = (X - X[rows].mean(axis=0)) / X[rows].std(axis=0)
    target = (target - np.median(target[rows])) / target[rows].std()
    X, y = jnp.asarray(X, jnp.float32), jnp.asarray(target, jnp.float32)
    start, apply = network(lambda key: eqx.nn.MLP(27, "scalar", 32, 1, key=key))

    def draw(data, key):
        del data
        row = jr.randint(key, (), 0, rows.stop)
        return X[row], y[row]

    def loss(params, row):
        return 0.5 * (apply(params, row[0]) - row[1]) ** 2

    def mean(params, part):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, (X[part], y[part])))

    return Task(
        name="table, a target with a heavy tail",
        start=start,
        data=lambda key: key,
        draw=draw,
        loss=loss,
        measure=lambda params: (mean(params, held), mean(params, test)),
        steps=steps,
        rate=0.04,
    )
