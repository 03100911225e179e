"""The text of `reproduce_adaptive.py`, and the transformer that is trained on it.

Not a program of its own.
"""

from importlib import resources
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _adaptive_tasks import network
from _adaptive_training import Task

CONTEXT, WIDTH, HEADS = 32, 32, 2
# The text is cut into parts of so many characters. Of ten parts one is for validation
# and one for the test.
PART = 330


def characters() -> tuple[np.ndarray, int]:
    """The descriptions of scikit-learn's data sets as numbers, cut into parts, shape
    `(parts, characters)`, and how many different characters there are."""
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".rst")),
                   key=lambda f: f.name)  # fmt: skip
    text = "\n".join(f.read_text(encoding="utf-8") for f in files)
    kinds = sorted(set(text))
    numbers = np.array([kinds.index(c) for c in text])
    return numbers[: len(text) // PART * PART].reshape(-1, PART), len(kinds)


class Transformer(eqx.Module):
    """One layer of causal attention and one of a network, with normalised inputs."""

    embed: Any
    place: Any
    mix: eqx.nn.Linear
    join: eqx.nn.Linear
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, kinds: int, key: Any):
        keys = jr.split(key, 7)
        self.embed = 0.5 * jr.normal(keys[0], (kinds, WIDTH))
        self.place = 0.5 * jr.normal(keys[1], (CONTEXT, WIDTH))
        self.mix = eqx.nn.Linear(WIDTH, 3 * WIDTH, use_bias=False, key=keys[2])
        self.join = eqx.nn.Linear(WIDTH, WIDTH, key=keys[3])
        self.wide = eqx.nn.Linear(WIDTH, 4 * WIDTH, key=keys[4])
        self.narrow = eqx.nn.Linear(4 * WIDTH, WIDTH, key=keys[5])
        self.last = eqx.nn.Linear(WIDTH, kinds, key=keys[6])

    def __call__(self, text: Any) -> Any:
        x = self.embed[text] + self.place
        mixed = jax.vmap(self.mix)(normal(x)).reshape(CONTEXT, 3, HEADS, -1)
        query, key, value = (mixed[:, i] for i in range(3))
        score = jnp.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
        past = jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool))
        weights = jax.nn.softmax(jnp.where(past, score, -1e9), axis=-1)
        heads = jnp.einsum("hij,jhd->ihd", weights, value).reshape(CONTEXT, WIDTH)
        x = x + jax.vmap(self.join)(heads)
        inside = jax.nn.gelu(jax.vmap(self.wide)(normal(x)))
        x = x + jax.vmap(self.narrow)(inside)
        return jax.vmap(self.last)(normal(x))


def normal(x: Any) -> Any:
    """Each row with a root mean square of 1."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def text(shuffled: float, steps: int) -> Task:
    """The next character of 32; in a fraction of the sequences that are trained on the
    characters are in a random order."""
    parts, kinds = characters()
    number = np.arange(len(parts))
    rows = jnp.asarray(parts[number % 10 > 1])
    held, test = (windows(parts[number % 10 == i]) for i in range(2))
    start, apply = network(lambda key: Transformer(kinds, key))

    def draw(data, key):
        del data
        part, place, whether, order = jr.split(key, 4)
        row = rows[jr.randint(part, (), 0, len(rows))]
        begin = jr.randint(place, (), 0, PART - CONTEXT)
        window = jax.lax.dynamic_slice(row, (begin,), (CONTEXT + 1,))
        wrong = window[jnp.argsort(jr.uniform(order, window.shape))]
        return jnp.where(jr.bernoulli(whether, shuffled), wrong, window)

    def loss(params, window):
        logits = apply(params, window[:-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, window[1:])
        return jnp.mean(each)

    def mean(params, part):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, part))

    return Task(
        name=f"text, {shuffled:.0%} of the sequences shuffled",
        start=start,
        data=lambda key: key,
        draw=draw,
        loss=loss,
        measure=lambda params: (mean(params, held), mean(params, test)),
        steps=steps,
        rate=0.4,
    )


def windows(parts: np.ndarray) -> jax.Array:
    """All that fit without an overlap."""
    length = CONTEXT + 1
    return jnp.asarray(parts[:, : PART // length * length].reshape(-1, length))
