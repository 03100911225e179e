"""Models of flax: the transforms in an `nnx.Optimizer`, and gradients of a split model.

Flax is in no extra, since it brings orbax and tensorstore with it: these run where it
is installed.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc

nnx = pytest.importorskip("flax.nnx")

HARD = jc.HardClip(0.5)
X = jr.normal(jr.key(1), (12, 3), jnp.float32)
Y = 5 * jr.normal(jr.key(2), (12, 1), jnp.float32)


@pytest.fixture(autouse=True)
def mixing():
    """Flax and optax mix types, as users do."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Model(nnx.Module):
    """With what is no parameter: the statistics of the batches, and a key."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(jnp.tanh(self.first(x)))))


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def vectors(state):
    """The leaves of a state as vectors of numpy."""
    return [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state)]


def shortened(parts, threshold=0.5):
    """By the formula, all of them by one norm."""
    norm = np.linalg.norm(np.concatenate(parts))
    return [part * min(1.0, threshold / norm) for part in parts]


@nnx.jit
def step(model, optimiser, x, y):
    value, gradient = nnx.value_and_grad(loss)(model, x, y)
    optimiser.update(model, gradient)
    return value, gradient, jc.clip_metrics(optimiser.opt_state)


@pytest.mark.parametrize("scope", [jc.PerTree(), jc.PerLeaf()], ids=["tree", "leaf"])
def test_an_optimiser_makes_the_clipped_step(scope):
    """Against the formula, in numpy, over three steps."""
    model = Model(nnx.Rngs(0))
    chain = optax.chain(jc.monitor(jc.as_transform(HARD, scope)), optax.sgd(0.1))
    optimiser = nnx.Optimizer(model, chain, wrt=nnx.Param)
    expected = vectors(nnx.state(model, nnx.Param))
    for number in range(1, 4):
        _, gradient, metrics = step(model, optimiser, X, Y)
        parts = vectors(gradient)
        if isinstance(scope, jc.PerLeaf):
            moved = [shortened([part])[0] for part in parts]
            assert metrics["norm/0"] == pytest.approx(np.linalg.norm(parts[0]), 1e-5)
        else:
            moved = shortened(parts)
            norm = np.linalg.norm(np.concatenate(parts))
            assert metrics["norm"] == pytest.approx(norm, 1e-5)
        expected = [e - 0.1 * m for e, m in zip(expected, moved, strict=True)]
        assert metrics["updates"] == number
        assert all(isinstance(m, jax.Array) and m.shape == () for m in metrics.values())
    for part, other in zip(vectors(nnx.state(model, nnx.Param)), expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-4, atol=1e-6)


def test_metrics_have_the_names_of_parameters():
    model = Model(nnx.Rngs(0))
    chain = jc.monitor(jc.as_transform(HARD, jc.PerLeaf()))
    optimiser = nnx.Optimizer(model, chain, wrt=nnx.Param)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    metrics = jc.clip_metrics(optimiser.opt_state, params)
    names = [name for name in metrics if name.startswith("norm/")]
    layers = {"first": ("bias", "kernel"), "last": ("bias", "kernel")}
    layers |= {"norm": ("bias", "scale")}
    assert names == [
        f"norm/{layer}.{of}" for layer, all in layers.items() for of in all
    ]


def remembered(start):
    """With the threshold `start` at the first step."""
    return jc.Adaptive(jc.policy.QuantileDescent(0.5, initial=start))


@pytest.mark.parametrize("make", [jc.HardClip, remembered])
def test_a_rule_for_each_parameter(make):
    model = Model(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    numbers = iter(range(1, 9))
    rules = jax.tree.map(lambda _: make(0.01 * next(numbers)), params)
    chain = jc.monitor(jc.as_transform(rules, jc.PerLeaf()))
    optimiser = nnx.Optimizer(model, optax.chain(chain, optax.sgd(0.1)), wrt=nnx.Param)
    *_, metrics = step(model, optimiser, X, Y)
    thresholds = [metrics[f"threshold/{number}"] for number in range(6)]
    np.testing.assert_allclose(thresholds, 0.01 * np.arange(1, 7), rtol=1e-5)


@pytest.mark.parametrize(
    "rule", [jc.HardClip(1e3), jc.Adaptive(jc.policy.ZScore(2.5, warmup=3))]
)
def test_a_spike_is_as_if_it_had_not_been(rule):
    model = Model(nnx.Rngs(0))
    guard = jc.skip_spikes(optax.adam(1e-2), rule)
    optimiser = nnx.Optimizer(model, guard, wrt=nnx.Param)
    for _ in range(4):
        optimiser.update(model, nnx.grad(loss)(model, X, Y))
    before = vectors(nnx.state(model, nnx.Param))
    moment = vectors(optimiser.opt_state.inner)
    spike = jax.tree.map(lambda g: 1e6 * g, nnx.grad(loss)(model, X, Y))
    optimiser.update(model, spike)
    assert int(optimiser.opt_state.skipped[...]) == 1
    after = vectors(nnx.state(model, nnx.Param))
    after += vectors(optimiser.opt_state.inner)
    for one, other in zip(before + moment, after, strict=True):
        np.testing.assert_array_equal(one, other)
    optimiser.update(model, nnx.grad(loss)(model, X, Y))
    assert not np.array_equal(before[0], vectors(nnx.state(model, nnx.Param))[0])


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("microbatch", [None, 5])
def test_gradients_clipped_per_example(passes, microbatch):
    """Against a loop over the examples, with flax's own gradient."""
    model = Model(nnx.Rngs(0))
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def of_example(params, example):
        x, y = example
        return loss(nnx.merge(graph, params, rest), x[None], y[None])

    gradient = jc.clipped_grad(of_example, HARD, microbatch=microbatch, passes=passes)
    found = gradient(params, (X, Y))
    assert isinstance(found, nnx.State)
    each = [
        shortened(vectors(nnx.grad(loss)(model, x[None], y[None])))
        for x, y in zip(X, Y, strict=True)
    ]
    for part, *others in zip(vectors(found), *each, strict=True):
        np.testing.assert_allclose(part, np.mean(others, axis=0), rtol=1e-4, atol=1e-6)
    # And it is what an optimiser takes.
    nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param).update(model, found)


def test_a_module_that_was_not_split(without_type_checks):
    """It has counts of batches and a key, to which there is no gradient."""
    gradient = jc.clipped_grad(lambda model, x: loss(model, x, X[:, :1]), HARD)
    with pytest.raises(ValueError, match=r"dropout.rngs.*nnx\.split"):
        gradient(Model(nnx.Rngs(0)), X)


def test_the_section_of_the_documentation():
    """Fenced as `py`: the other blocks of the page run where there is no flax."""
    page = (Path(__file__).parents[1] / "docs" / "how_to" / "flax.md").read_text()
    (block,) = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    exec(compile(block, "flax.md", "exec"), {})
