"""Norms from the layers: the norms of the gradients, for every kind of layer."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax import lax

import jaxclip as jc

EXAMPLES = 5


@pytest.fixture(autouse=True)
def as_users_write() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def words(seed, shape, low=0, high=6):
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, shape))


def image_loss(kernel, x, **how):
    how = dict(window_strides=(1, 1), padding="SAME") | how
    out = lax.conv_general_dilated(x[None], kernel, **how)
    # So that the cotangents of two places differ.
    return jnp.sum(jnp.tanh(out) * jnp.linspace(-1, 2, out.size).reshape(out.shape))


def scanned(params, x):
    def layer(x, w):
        return jnp.tanh(w @ x), None

    return jnp.sum(lax.scan(layer, x, params["w"])[0] * params["v"])


def normalised(params, x):
    """Weights that are no leaf, but a function of two."""
    w = params["v"] / jnp.linalg.norm(params["v"]) * params["scale"]
    return jnp.sum(jnp.tanh(w @ x))


def in_a_call(params, x):
    """Calls that are written out, one of them twice, and one that is left whole."""
    layer = jax.jit(lambda w, x: jnp.tanh(w @ x))
    x = layer(params["b"], layer(params["a"], x))
    x = jax.checkpoint(lambda w, x: jnp.sin(x @ w))(params["c"], x)
    return jnp.sum(jax.nn.relu(x) * jax.nn.relu(params["d"]))


NHWC = ("NHWC", "HWIO", "NHWC")
# The loss, its parameters and a batch.
LAYERS = {
    "dense": (
        lambda p, x: jnp.sum(jnp.sin(x @ p["w"] + p["b"])),
        {"w": draw(0, 4, 3), "b": draw(1, 3)},
        draw(2, EXAMPLES, 4),
    ),
    "weights to the left": (
        lambda p, x: jnp.sum(jnp.sin(p @ x)),
        draw(0, 3, 4),
        draw(2, EXAMPLES, 4),
    ),
    "a few positions": (
        lambda p, x: jnp.sum(jnp.sin(x @ p)),
        draw(0, 8, 9),
        draw(2, EXAMPLES, 3, 8),
    ),
    "many positions": (
        lambda p, x: jnp.sum(jnp.sin(x @ p)),
        draw(0, 2, 3),
        draw(2, EXAMPLES, 30, 2),
    ),
    "positions of weights to the left": (
        lambda p, x: jnp.sum(jnp.sin(jnp.einsum("ik,tsk->its", p, x))),
        draw(0, 9, 8),
        draw(2, EXAMPLES, 2, 2, 8),
    ),
    "weights that are moved first": (
        lambda p, x: jnp.sum(jnp.sin(x @ p.T.reshape(6, 2, 2).transpose(1, 0, 2)[0])),
        draw(0, 4, 6),
        draw(2, EXAMPLES, 6),
    ),
    "weights that are repeated": (
        lambda p, x: jnp.sum(jnp.sin(x @ jnp.broadcast_to(p[:, None], (4, 3)))),
        draw(0, 4),
        draw(2, EXAMPLES, 4),
    ),
    "weights on both sides": (
        lambda p, x: jnp.sum(jnp.sin(lax.mul(x * p["a"], p["b"]) @ p["a"])),
        {"a": draw(0, 4), "b": draw(1, 4)},
        draw(2, EXAMPLES, 4),
    ),
    "heads": (
        lambda p, x: jnp.sum(jnp.sin(jnp.einsum("htk,hki->hti", x, p))),
        draw(0, 2, 4, 3),
        draw(2, EXAMPLES, 2, 5, 4),
    ),
    "convolution": (image_loss, draw(0, 4, 3, 3, 2), draw(2, EXAMPLES, 3, 7, 6)),
    "convolution, channels last": (
        lambda k, x: image_loss(
            k, x, dimension_numbers=NHWC, window_strides=(2, 1), rhs_dilation=(1, 2)
        ),
        draw(0, 3, 2, 3, 4),
        draw(2, EXAMPLES, 7, 8, 3),
    ),
    "convolution, dilated and cropped": (
        lambda k, x: image_loss(k, x, lhs_dilation=(2, 1), padding=((1, -1), (0, 2))),
        draw(0, 4, 3, 2, 2),
        draw(2, EXAMPLES, 3, 5, 6),
    ),
    "convolution of few places": (
        lambda k, x: image_loss(k, x, padding="VALID"),
        draw(0, 8, 7, 3, 3),
        draw(2, EXAMPLES, 7, 3, 4),
    ),
    "grouped convolution": (
        lambda k, x: image_loss(k, x, feature_group_count=3),
        draw(0, 6, 1, 3, 3),
        draw(2, EXAMPLES, 3, 5, 5),
    ),
    "embedding": (
        lambda p, i: jnp.sum(jnp.sin(p[i]) * jnp.linspace(-1, 2, 21).reshape(7, 3)),
        draw(0, 6, 3),
        words(2, (EXAMPLES, 7)),
    ),
    "embedding of words that are not there": (
        lambda p, i: jnp.sum(jnp.sin(p.at[i].get(mode="fill", fill_value=0.0))),
        draw(0, 6, 3),
        words(2, (EXAMPLES, 7), -9, 9),
    ),
    "embedding, clipped": (
        lambda p, i: jnp.sum(jnp.sin(jnp.take(p, i, axis=0, mode="clip"))),
        draw(0, 6, 3),
        words(2, (EXAMPLES, 7), -3, 9),
    ),
    "embedding of columns": (
        lambda p, i: jnp.sum(jnp.sin(p[:, i])),
        draw(0, 3, 6),
        words(2, (EXAMPLES, 7)),
    ),
    "embedding of one word": (
        lambda p, i: jnp.sum(jnp.sin(p[i])),
        draw(0, 6, 3),
        words(2, (EXAMPLES,)),
    ),
    "embedding of one word at a time": (
        lambda p, i: jnp.sum(jnp.sin(jax.vmap(lambda i: p[i])(i))),
        draw(0, 6, 3),
        words(2, (EXAMPLES, 7)),
    ),
    "tied embedding": (
        lambda p, i: jnp.sum(jax.nn.log_softmax(jnp.sin(p[i]) @ p.T)[:, 0]),
        draw(0, 6, 3),
        words(2, (EXAMPLES, 7)),
    ),
    "shared weights": (
        lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p) @ p)),
        draw(0, 4, 4),
        draw(2, EXAMPLES, 4),
    ),
    "scales": (
        lambda p, x: jnp.sum(jax.nn.standardize(x) * p["g"] ** 2 + p["b"] * x**3),
        {"g": draw(0, 4), "b": draw(1)},
        draw(2, EXAMPLES, 3, 4),
    ),
    "scan": (scanned, {"w": draw(0, 2, 3, 3), "v": draw(1, 3)}, draw(2, EXAMPLES, 3)),
    "normalised weights": (
        normalised,
        {"v": draw(0, 3, 4), "scale": draw(1)},
        draw(2, EXAMPLES, 4),
    ),
    "calls": (
        in_a_call,
        {k: draw(i, *s) for i, (k, s) in enumerate(
            {"a": (3, 4), "b": (3, 3), "c": (3, 3), "d": (3,)}.items()
        )},
        draw(9, EXAMPLES, 4),
    ),
    "a penalty": (
        lambda p, x: jnp.sum(jnp.sin(x @ p["w"])) + jnp.sum(p["w"] ** 2) + p["c"],
        {"w": draw(0, 4, 3), "c": draw(1)},
        draw(2, EXAMPLES, 4),
    ),
    "no data": (lambda p, x: jnp.sum(p**3), draw(0, 4), draw(2, EXAMPLES, 4)),
    "parameters that are not used": (
        lambda p, x: jnp.sum(jnp.sin(x @ p["w"])) + lax.stop_gradient(p["c"]),
        {"w": draw(0, 4, 3), "c": draw(1), "d": draw(3, 2)},
        draw(2, EXAMPLES, 4),
    ),
    "complex": (
        lambda p, x: jnp.sum(jnp.abs(p["c"] @ x) ** 2) * p["r"],
        {"c": lax.complex(draw(0, 3, 4), draw(1, 3, 4)), "r": draw(2)},
        lax.complex(draw(3, EXAMPLES, 4), draw(4, EXAMPLES, 4)),
    ),
    "a condition": (
        lambda p, x: jnp.sum(
            lax.cond(x[0] > 0, lambda w: jnp.sin(x @ w), lambda w: x @ w, p)
        ),
        draw(0, 4, 3),
        draw(2, EXAMPLES, 4),
    ),
}  # fmt: skip


def single(tree):
    def one(x):
        return x.astype(jnp.float32) if eqx.is_inexact_array(x) else x

    return jax.tree.map(one, tree)


def check(loss, params, batch, rtol, **how):
    """Norms, gradient and value in two passes against one; half of it is clipped."""
    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)
    norms = jax.vmap(jc.safe_norm)(gradients)
    clip = jc.HardClip(jnp.median(norms))
    results = [
        jc.clipped_value_and_grad(loss, clip, passes=passes, **how)(params, batch)
        for passes in (1, 2)
    ]
    np.testing.assert_allclose(results[1][0][1].norms, norms, rtol=rtol)
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        scale = float(jnp.max(jnp.abs(one), initial=0.0))
        assert one.dtype == two.dtype
        np.testing.assert_allclose(two, one, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name):
    check(*LAYERS[name], rtol=1e-12)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["a few positions", "convolution", "embedding"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_norms_whose_fourth_powers_overflow(name, scale):
    loss, params, batch = LAYERS[name]
    params, batch = single((params, batch))

    def scaled(params, example):
        return (scale * loss(params, example)).astype(jnp.float32)

    check(scaled, params, batch, rtol=1e-5)


# Of each a gradient is far larger than what goes into it.
LARGE = {
    "dense": (
        lambda w, x: jnp.sum(jnp.sin(x @ w)),
        jnp.zeros((96, 64)),
        jnp.zeros((32, 4, 96)),
    ),
    "weights to the left": (
        lambda w, x: jnp.sum(jnp.sin(w.T @ x.T)),
        jnp.zeros((96, 64)),
        jnp.zeros((32, 4, 96)),
    ),
    "convolution": (image_loss, jnp.zeros((48, 48, 3, 3)), jnp.zeros((32, 48, 3, 3))),
    "embedding": (
        lambda w, i: jnp.sum(jnp.sin(w[i])),
        jnp.zeros((500, 16)),
        jnp.zeros((32, 4), jnp.int32),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_layers_with_a_formula_form_no_gradient(name):
    """By the compiler's count of what it allocates."""
    loss, params, batch = LARGE[name]
    gradient = jax.jit(jc.clipped_grad(loss, jc.HardClip(1.0), passes=2))
    memory = gradient.lower(params, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32 * params.nbytes / 3


# Whole models, in single precision


class Block(eqx.Module):
    """A layer of a transformer, of equinox's own parts."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list

    def __init__(self, width, key):
        first, second = jr.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, width, key=first)
        self.mlp = eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=second)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    words: eqx.nn.Embedding
    blocks: list
    tied: bool
    head: eqx.nn.Linear

    def __init__(self, tied, key):
        keys = jr.split(key, 6)
        self.words = eqx.nn.Embedding(11, 8, key=keys[0])
        self.blocks = [Block(8, each) for each in keys[1:5]]
        self.head = eqx.nn.Linear(8, 11, key=keys[5])
        self.tied = tied

    def __call__(self, example):
        x = jax.vmap(self.words)(example[:-1])
        for block in self.blocks:
            x = block(x)
        logits = x @ self.words.weight.T if self.tied else jax.vmap(self.head)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, example[1:])
        return jnp.mean(losses)


class Convolutions(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(2, 4, 3, stride=2, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(4, 6, 3, padding="SAME", key=keys[1]),
            eqx.nn.MaxPool2d(2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(24, 3, key=keys[2]),
        ]

    def __call__(self, image):
        for layer in self.layers:
            image = layer(image)
        return jax.nn.logsumexp(image) - image[0]


def mlp(key):
    net = eqx.nn.MLP(784, 10, 64, 2, key=key)
    return eqx.nn.Sequential([net, eqx.nn.Lambda(jax.nn.logsumexp)])


MODELS = {
    "MLP": (mlp, draw(0, 8, 784)),
    "transformer": (lambda key: Transformer(False, key), words(1, (8, 13), 0, 11)),
    "tied transformer": (lambda key: Transformer(True, key), words(1, (8, 13), 0, 11)),
    "convolutions": (Convolutions, draw(2, 8, 2, 7, 7)),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("microbatch", [None, 3])
def test_modules_of_equinox(name, microbatch):
    make, batch = MODELS[name]
    params, static = eqx.partition(single(make(jr.key(0))), eqx.is_inexact_array)

    def loss(params, example):
        return eqx.combine(params, static)(example)

    check(loss, params, single(batch), rtol=1e-5, microbatch=microbatch)
