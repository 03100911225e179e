"""The models of `bench_per_example.py`, in plain JAX: the loss of one example.

Not a program of its own.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr


class Model(NamedTuple):
    """`loss(params, example)`, its parameters, and a batch."""

    loss: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def mlp(examples: int, width: int = 1024) -> Model:
    """784 - 1024 - 1024 - 10, with biases."""
    sizes = [784, width, width, 10]
    keys = jr.split(jr.key(0), 4)
    params = [
        (_weights(key, *pair), jnp.zeros(pair[1]))
        for key, pair in zip(keys[:3], pairwise(sizes), strict=True)
    ]

    def loss(params: Any, example: Any) -> jax.Array:
        x, label = example
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        return -jax.nn.log_softmax(x @ w + b)[label]

    batch = jr.normal(keys[3], (examples, 784)), jnp.arange(examples) % 10
    return Model(loss, params, batch)


def transformer(examples: int, width: int = 256, tokens: int = 64) -> Model:
    """Four layers with four heads, 1000 words, the next word at every place."""
    words, heads, layers = 1000, 4, 4
    keys = iter(jr.split(jr.key(1), 4 * layers + 4))

    def layer() -> dict[str, Any]:
        return {
            "qkv": _weights(next(keys), width, 3 * width),
            "out": _weights(next(keys), width, width),
            "up": _weights(next(keys), width, 4 * width),
            "down": _weights(next(keys), 4 * width, width),
            "scales": jnp.ones((2, width)),
            "shifts": jnp.zeros((2, width)),
        }

    params = {
        "words": 0.02 * jr.normal(next(keys), (words, width)),
        "places": 0.02 * jr.normal(next(keys), (tokens, width)),
        "layers": [layer() for _ in range(layers)],
        "head": _weights(next(keys), width, words),
    }

    def normed(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        return jax.nn.standardize(x, axis=-1) * scale + shift

    def attend(layer: dict[str, Any], x: jax.Array) -> jax.Array:
        q, k, v = jnp.split((x @ layer["qkv"]).reshape(tokens, 3 * heads, -1), 3, 1)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)

    def loss(params: Any, example: jax.Array) -> jax.Array:
        x = params["words"][example[:-1]] + params["places"]
        for layer in params["layers"]:
            scales, shifts = layer["scales"], layer["shifts"]
            x = x + attend(layer, normed(x, scales[0], shifts[0])) @ layer["out"]
            up = jax.nn.gelu(normed(x, scales[1], shifts[1]) @ layer["up"])
            x = x + up @ layer["down"]
        logs = jax.nn.log_softmax(x @ params["head"])
        return -jnp.mean(jnp.take_along_axis(logs, example[1:, None], axis=1))

    batch = jr.randint(next(keys), (examples, tokens + 1), 0, words)
    return Model(loss, params, batch)


def convolutions(examples: int, width: int = 32) -> Model:
    """Three layers of 3 by 3 kernels on 32 by 32 pixels, then a dense layer."""
    channels = [3, width, 2 * width, 2 * width]
    keys = iter(jr.split(jr.key(2), 5))
    kernels = [
        _weights(next(keys), 9 * before, after).reshape(3, 3, before, after)
        for before, after in pairwise(channels)
    ]
    params = {
        "kernels": kernels,
        "biases": [jnp.zeros(after) for after in channels[1:]],
        "head": _weights(next(keys), 4 * 4 * channels[-1], 10),
    }
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def loss(params: Any, example: Any) -> jax.Array:
        image, label = example
        x = image[None]
        for kernel, bias in zip(params["kernels"], params["biases"], strict=True):
            x = jax.nn.relu(convolve(x, kernel) + bias)
        return -jax.nn.log_softmax(x.reshape(-1) @ params["head"])[label]

    batch = jr.normal(next(keys), (examples, 32, 32, 3)), jnp.arange(examples) % 10
    return Model(loss, params, batch)


def _weights(key: jax.Array, before: int, after: int) -> jax.Array:
    return jr.normal(key, (before, after)) / before**0.5
