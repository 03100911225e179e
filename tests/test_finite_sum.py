"""Finite sums and expectations of any loss of any parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc
from helpers import assert_within, finite_difference

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 2)), RNG.normal(size=9)
PARAMS = {"w": jnp.array([0.3, -1.0]), "b": jnp.array(0.2)}


def loss(params, example):
    features, target = example
    return jnp.tanh(features @ params["w"] + params["b"] - target) ** 2


PROBLEM = jc.FiniteSum(loss, PARAMS, (X, Y), minimum=0.1)


def total(w, b):
    return np.mean(np.tanh(X @ w + b - Y) ** 2)


def test_risk_and_gradient_are_those_of_the_mean():
    w, b = np.array([0.3, -1.0]), 0.2
    assert PROBLEM.size == 9
    assert PROBLEM.mean_loss(PARAMS) == pytest.approx(total(w, b), rel=1e-14)
    assert PROBLEM.risk(PARAMS) == pytest.approx(total(w, b) - 0.1, rel=1e-14)
    full = PROBLEM.full_gradient(PARAMS)
    for i, direction in enumerate(np.eye(3)):
        expected = finite_difference(
            lambda t, d=direction: total(w + t * d[:2], b + t * d[2]), 0.0, 1e-3
        )
        assert np.append(full["w"], full["b"])[i] == pytest.approx(expected, abs=1e-9)
    rows = jax.vmap(PROBLEM.gradient, (None, 0))(PARAMS, (X, Y))
    for one, mean in zip(jax.tree.leaves(rows), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(one.mean(0), mean, rtol=1e-13)


def test_samples_are_rows_with_equal_chances():
    rows = jc.FiniteSum(lambda p, i: p, jnp.ones(()), np.arange(9))
    index = jnp.arange(9000)
    drawn = jax.vmap(rows.example, (None, 0))(rows.stream(jr.key(0)), index)
    counts = np.bincount(np.asarray(drawn), minlength=9)
    assert_within(counts, np.sqrt(9000 / 9 * 8 / 9), np.full(9, 1000.0), k=5)


def test_the_whole_is_gradient_descent():
    curve = jc.simulate(PROBLEM.whole(), jc.HardClip(0.2), 0.5, steps=3, key=jr.key(0))
    w, b = np.array([0.3, -1.0]), 0.2
    for risk in np.asarray(curve.risk):
        assert risk == pytest.approx(total(w, b) - 0.1, rel=1e-12)
        t = np.tanh(X @ w + b - Y)
        slope = 2 * t * (1 - t**2)
        gradient = np.append(slope @ X, slope.sum()) / 9
        step = 0.5 * gradient * min(1, 0.2 / np.linalg.norm(gradient))
        w, b = w - step[:2], b - step[2]


def test_an_equinox_model_is_split_and_trained():
    model = eqx.nn.MLP(2, "scalar", 4, 1, key=jr.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def square(arrays, example):
        return (eqx.combine(arrays, static)(example[0]) - example[1]) ** 2

    problem = jc.FiniteSum(square, arrays, (X, Y))
    curve = jc.train(problem, optax.sgd(0.1), steps=60, every=60, key=jr.key(1))
    assert curve.risk[-1] < 0.9 * curve.risk[0]
    assert jax.tree.structure(curve.params) == jax.tree.structure(arrays)
    with pytest.raises(ValueError, match=r"`start`.*equinox.partition"):
        jc.FiniteSum(square, model, (X, Y))


def test_online_draws_afresh_and_records_the_excess():
    def draw(key):
        return 2 + jr.normal(key)

    problem = jc.Online(
        lambda x, xi: (x - xi) ** 2 / 2,
        jnp.array(5.0),
        draw,
        lambda x: (x - 2) ** 2 / 2,
    )
    assert problem.risk(jnp.array(5.0)) == 4.5
    examples = jax.vmap(problem.example, (None, 0))(jr.key(0), jnp.arange(4000))
    assert len(np.unique(examples)) == 4000
    assert_within(examples.mean(), 4000**-0.5, 2.0, power=0.1)
    assert problem.gradient(jnp.array(5.0), jnp.array(1.5)) == 3.5

    # Runs that share a key share their data, whatever they are run by.
    one = jc.simulate(problem, jc.Identity(), 0.1, steps=20, key=jr.key(3))
    other = jc.train(problem, optax.sgd(0.1), steps=20, key=jr.key(3))
    np.testing.assert_allclose(one.risk, other.risk, rtol=1e-13)
    assert one.risk[-1] < 2.0


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.FiniteSum(loss, {"w": jnp.arange(2)}, (X, Y)), "arrays of floats"),
        (lambda: jc.FiniteSum(loss, {}, (X, Y)), "`start` must hold"),
        (lambda: jc.FiniteSum(loss, PARAMS, (X, Y[:4])), r"`data`.*\(4,\), \(9,\)"),
        (lambda: jc.FiniteSum(loss, PARAMS, ()), "`data` must have"),
        (lambda: jc.FiniteSum(loss, PARAMS, (X[:0], Y[:0])), "least 1 examples. Got 0"),
        (lambda: jc.FiniteSum(lambda p, e: p["w"], PARAMS, (X, Y)), "one number"),
        (lambda: jc.FiniteSum(loss, PARAMS, (X, Y), minimum="0"), "`minimum`"),
        (lambda: jc.Online(lambda p, e: e, jnp.ones(()), lambda k: jr.normal(k, (2,)),
                           lambda p: p), "one number, a float"),
    ],
)  # fmt: skip
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
