"""What the monitor records, and the guards."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc

KEY = jr.key(11)


def watched(transform, gradients, params=None):
    """The monitor's state after a scan over gradients, and the updates."""
    transform = jc.monitor(transform)

    def step(state, gradient):
        value, state = transform.update(gradient, state, params)
        return state, value

    one = jax.tree.map(lambda leaf: leaf[0], gradients)
    return jax.jit(lambda s: jax.lax.scan(step, s, gradients))(transform.init(one))


def test_the_three_regimes_of_delta_clip():
    norms = np.random.default_rng(0).gamma(1.0, 2.0, 1000)
    direction = np.array([0.6, 0.8])
    clip = jc.as_transform(jc.DeltaClip(1.0, 0.25))
    state, values = watched(clip, jnp.asarray(norms[:, None] * direction))
    counts = [np.sum(norms <= 1), np.sum((norms > 1) & (norms <= 4)), np.sum(norms > 4)]
    assert min(counts) > 100
    np.testing.assert_array_equal(state.regimes, counts)
    np.testing.assert_allclose(state.clipped, np.mean(norms > 1), rtol=1e-12)
    np.testing.assert_allclose(state.norm, norms[-1])
    np.testing.assert_allclose(state.factor, min(1, max(0.25, 1 / norms[-1])))
    assert state.nonfinite == 0
    assert state.inner == optax.EmptyState()
    assert state.updates == 1000
    # And the updates are those of the transform.
    lengths = np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(lengths, norms * np.clip(1 / norms, 0.25, 1))


def test_what_is_not_finite_is_counted_apart():
    gradients = jnp.array([[3.0], [jnp.nan], [0.5], [jnp.inf], [0.2]])
    state, _ = watched(jc.as_transform(jc.HardClip(1.0)), gradients)
    assert state.nonfinite == 2
    np.testing.assert_array_equal(state.regimes, [2, 1])
    assert state.clipped == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("scope", "norm", "regimes"),
    [
        (jc.PerLeaf(), {"a": 5.0, "b": 2.0}, [1, 1]),
        (jc.PerUnit(axis=0), {"a": 3.5, "b": 2.0}, [1, 2]),
        (jc.PerCoordinate(), {"a": 3.5, "b": 2.0}, [1, 2]),
        (jc.PerExample(within=jc.PerLeaf()), {"a": 7.5, "b": 3.0}, [1, 3]),
    ],
)
def test_every_scope(scope, norm, regimes):
    # For `PerUnit` a matrix of one row: two units.
    params = {"a": jnp.ones((1, 2)), "b": jnp.ones(1)}
    gradient = {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([2.0])}
    if scope.examples:
        gradient = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), gradient)
    transform = jc.monitor(jc.as_transform(jc.HardClip(2.5), scope))
    state = transform.init(params)
    for _ in range(2):
        _, state = jax.jit(transform.update)(gradient, state, params)
    np.testing.assert_allclose(state.norm, list(norm.values()))
    np.testing.assert_array_equal(state.regimes, 2 * np.array(regimes))
    assert state.clipped == pytest.approx(regimes[1] / sum(regimes))


def test_adaptive_rules_trees_and_half_precision():
    rules = {"a": jc.Adaptive(jc.policy.Percentile(100.0)), "b": jc.DeltaClip(1.0, 0.5)}
    transform = jc.as_transform(rules, jc.PerLeaf())
    gradients = {"a": jnp.ones((7, 2), jnp.bfloat16), "b": jnp.full((7, 1), 1.5)}
    state, values = watched(transform, gradients)
    # The largest of the two rules has three regimes.
    np.testing.assert_array_equal(state.regimes, [7, 7, 0])
    assert values["a"].dtype == jnp.bfloat16
    assert state.norm.dtype == jnp.result_type(float)


def test_in_a_chain_and_with_a_guard():
    clip = jc.monitor(jc.as_transform(jc.HardClip(1.0)))
    optimiser = jc.skip_nonfinite(optax.chain(clip, optax.sgd(0.1)))
    state = optimiser.init(jnp.zeros(1))
    for norm in (3.0, jnp.nan, 0.5):
        update, state = jax.jit(optimiser.update)(jnp.array([norm]), state)
    assert state.nonfinite == 1
    np.testing.assert_array_equal(state.inner[0].regimes, [1, 1])
    np.testing.assert_allclose(update, [-0.05])


def test_a_chain_is_not_watched(without_type_checks):
    chain = optax.chain(jc.as_transform(jc.HardClip(1.0)), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`monitor` watches what `as_transform`"):
        jc.monitor.__wrapped__(chain)


# Guards


def test_skipping_leaves_everything_as_it_was():
    inner = optax.chain(jc.as_transform(jc.HardClip(1.0)), optax.trace(0.9))
    guarded = jc.skip_nonfinite(inner)
    good, bad = {"a": jnp.array([3.0, 4.0])}, {"a": jnp.array([jnp.inf, 4.0])}
    update = jax.jit(guarded.update)
    expected, _ = inner.update(good, inner.init(good))
    value, state = update(good, guarded.init(good))
    np.testing.assert_allclose(value["a"], expected["a"])
    skipped, after = update(bad, state)
    np.testing.assert_array_equal(skipped["a"], 0)
    assert after.nonfinite == 1
    for leaf, same in zip(
        *map(jax.tree.leaves, (after.inner, state.inner)), strict=True
    ):
        np.testing.assert_array_equal(leaf, same)
    value, after = update(good, after)
    np.testing.assert_allclose(value["a"], 1.9 * expected["a"])
    assert after.nonfinite == 1


def test_zeroing_clips_what_is_left():
    guarded = jc.zero_nonfinite(jc.as_transform(jc.HardClip(1.0)))
    gradient = {"a": jnp.array([3.0, jnp.nan, 4.0]), "b": None}
    value, state = jax.jit(guarded.update)(gradient, guarded.init(gradient))
    np.testing.assert_allclose(value["a"], [0.6, 0.0, 0.8])
    assert state.nonfinite == 1
    assert state.inner == optax.EmptyState()
