"""The algorithms built on a rule, each against its formulas or what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxclip as jc

ONE = jc.HardClip(1.0)


def descend(transform, gradient, start, lr, steps):
    """Gradient descent through a transform."""
    optimiser = optax.chain(transform, optax.sgd(lr))

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = start, optimiser.init(start)
    return jax.jit(lambda c: jax.lax.scan(step, c, None, steps))(carry)[0][0]


def test_golden_mixed_momentum():
    # Which is `min(eta, gamma / norm)` of the paper.
    transform = jc.algorithm.mixed_momentum(jc.HardClip(0.2 / 0.1), decay=0.9, mix=0.7)
    state = transform.init(jnp.zeros(3))._replace(momentum=jnp.array([6.0, 8.0, 0.0]))
    value, state = transform.update(jnp.array([0.0, 0.0, 5.0]), state)
    expected = (-0.083871, -0.111828, -0.067766)
    np.testing.assert_allclose(-0.1 * value, expected, atol=1e-6)
    np.testing.assert_allclose(state.momentum, [5.4, 7.2, 0.5])


def test_clip21_converges_where_clipped_workers_stall():
    targets = jnp.array([10.0, -1.0, 0.0])

    def gradient(x):
        return x - targets

    stalled = descend(
        jc.as_transform(ONE, jc.PerExample()), gradient, jnp.array(5.0), 0.1, 2000
    )
    assert stalled == pytest.approx(0.0, abs=1e-6)
    converged = descend(
        jc.algorithm.clip21(ONE, 3), gradient, jnp.array(0.0), 0.1, 2000
    )
    assert converged == pytest.approx(3.0, abs=1e-6)


def test_clip21_step_by_step():
    transform = jc.algorithm.clip21(ONE, 2, jc.PerLeaf())
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    state = transform.init(params)
    rng = np.random.default_rng(0)
    sent = {"a": np.zeros((2, 2)), "b": np.zeros((2, 1))}
    for _ in range(3):
        updates = {"a": 2 * rng.normal(size=(2, 2)), "b": 2 * rng.normal(size=(2, 1))}
        value, state = transform.update(jax.tree.map(jnp.asarray, updates), state)
        for key, leaf in updates.items():
            change = leaf - sent[key]
            length = np.linalg.norm(change, axis=1, keepdims=True)
            sent[key] += change / np.maximum(length, 1)
            np.testing.assert_allclose(value[key], sent[key].mean(axis=0))
    with pytest.raises(ValueError, match="leading axis of the 2 workers"):
        transform.update({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}, state)


def test_error_feedback_loses_nothing():
    transform = jc.algorithm.error_feedback(jc.as_transform(ONE))
    state = transform.init(jnp.zeros(2))
    total = np.zeros(2)
    gradients = 2 * np.random.default_rng(1).normal(size=(20, 2)) + 0.5
    for gradient in gradients:
        value, state = transform.update(jnp.asarray(gradient), state)
        assert np.linalg.norm(value) <= 1 + 1e-12
        total += value
    np.testing.assert_allclose(total + state.error, gradients.sum(axis=0))
    assert np.linalg.norm(state.error) > 0.1


def test_centered_clip_is_its_iteration():
    gradients = 3 * np.random.default_rng(2).normal(size=(5, 2))
    transform = jc.algorithm.centered_clip(ONE, iterations=4)
    state = transform.init(jnp.zeros(2))
    z = np.zeros(2)
    for scale in (1.0, 0.5):
        value, state = transform.update(jnp.asarray(scale * gradients), state)
        for _ in range(4):
            away = scale * gradients - z
            length = np.linalg.norm(away, axis=1, keepdims=True)
            z = z + np.mean(away / np.maximum(length, 1), axis=0)
        np.testing.assert_allclose(value, z)
    assert state.inner.step == 2


def test_aggregates_that_wild_workers_cannot_carry_away():
    honest = np.random.default_rng(3).normal(size=(7, 2)) + np.array([2.0, -1.0])
    gradients = jnp.asarray(np.concatenate([honest, np.full((3, 2), 1e8)]))
    center = honest.mean(axis=0)
    centered = jc.algorithm.centered_clip(ONE, iterations=60)
    value, _ = centered.update(gradients, centered.init(jnp.zeros(2)))
    assert np.linalg.norm(value - center) < 1.5
    median = jc.algorithm.geometric_median(iterations=50)
    value, _ = median.update(gradients, median.init(jnp.zeros(2)))
    assert np.linalg.norm(value - center) < 1.5
    assert np.linalg.norm(jnp.mean(gradients, axis=0)) > 1e7


def test_the_geometric_median_minimises_the_distances():
    gradients = np.random.default_rng(4).normal(size=(9, 3)) ** 3
    found = scipy.optimize.minimize(
        lambda z: np.linalg.norm(gradients - z, axis=1).sum(),
        gradients.mean(axis=0),
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 5000},
    )
    tree = {"a": jnp.asarray(gradients[:, :1]), "b": jnp.asarray(gradients[:, 1:])}
    value, _ = jc.algorithm.geometric_median(iterations=300).update(
        tree, optax.EmptyState()
    )
    np.testing.assert_allclose([*value["a"], *value["b"]], found.x, atol=1e-5)


def test_clipped_sstm_is_its_three_sequences():
    lr, bound, eigenvalues = 0.5, 0.8, np.array([1.0, 0.1])
    transform = jc.algorithm.clipped_sstm(lr, jc.HardClip(bound))
    params = jnp.array([5.0, -3.0])
    state = transform.init(params)
    update = jax.jit(transform.update)
    x = y = z = np.array(params)
    total = 0.0
    for k in range(30):
        alpha = (k + 2) * lr / 2
        x = (total * y + alpha * z) / (total + alpha)
        np.testing.assert_allclose(params, x, rtol=1e-10)
        g = eigenvalues * x
        # The gradient clipped at B / alpha, as it is printed.
        g = g * min(1, bound / alpha / np.linalg.norm(g))
        z = z - alpha * g
        y = (total * y + alpha * z) / (total + alpha)
        total += alpha
        updates, state = update(jnp.asarray(eigenvalues) * params, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state.average, y, rtol=1e-10)
    with pytest.raises(ValueError, match="was given none"):
        transform.update(params, state)


def test_skipping_instead_of_clipping():
    transform = jc.as_transform(jc.SkipClip(4.9))
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    value, _ = transform.update(gradient, transform.init(gradient))
    assert value == {"a": 0, "b": 0}
    value, _ = jc.as_transform(jc.SkipClip(5.0)).update(
        gradient, transform.init(gradient)
    )
    assert value == gradient


# All of them in a scan, with optax around them

TRANSFORMS = {
    "mixed_momentum": jc.algorithm.mixed_momentum(ONE),
    "error_feedback": jc.algorithm.error_feedback(jc.as_transform(ONE)),
    "clipped_sstm": jc.algorithm.clipped_sstm(0.1, ONE),
    "stable_adam": jc.algorithm.stable_adam(ONE, b2=0.5),
    "monitor": jc.monitor(jc.as_transform(ONE)),
    "skip_nonfinite": jc.skip_nonfinite(jc.as_transform(ONE)),
    "zero_nonfinite": jc.zero_nonfinite(jc.as_transform(ONE)),
    "per_leaf": jc.as_transform(ONE, jc.PerLeaf()),
    "per_leaf_rms": jc.as_transform(ONE, jc.transform.PerLeafRMS()),
    "per_leaf_share": jc.as_transform(ONE, jc.transform.PerLeafShare()),
    "per_unit": jc.as_transform(ONE, jc.PerUnit()),
    "per_coordinate": jc.as_transform(ONE, jc.PerCoordinate()),
    "a_rule_for_each": jc.as_transform({"a": ONE, "b": jc.PSAC()}, jc.PerLeaf()),
    "adaptive": jc.as_transform(jc.Adaptive(jc.policy.ZScore()), jc.PerLeaf()),
}
PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[0.5]])}
GRADIENT = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[12.0]])}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_composition_with_optax(name):
    transform = TRANSFORMS[name]
    only_a = {"a": GRADIENT["a"], "b": None}

    def outputs():
        """Of one update each, through what is wrapped around the transform."""
        bad = {"a": GRADIENT["a"] * jnp.nan, "b": GRADIENT["b"]}
        wrapped = {
            "alone": (transform, [GRADIENT]),
            "alone_a": (transform, [only_a]),
            "chain": (optax.chain(transform, optax.scale(-0.1)), [GRADIENT]),
            "masked": (optax.masked(transform, {"a": True, "b": False}), [GRADIENT]),
            "partition": (
                optax.partition(
                    {"clip": transform, "scale": optax.scale(0.5)},
                    {"a": "clip", "b": "scale"},
                ),
                [GRADIENT],
            ),
            "multi": (
                optax.MultiSteps(transform, 2).gradient_transformation(),
                [GRADIENT, GRADIENT],
            ),
            "finite": (optax.apply_if_finite(transform, 5), [bad, GRADIENT]),
        }
        values = {}
        for key, (outer, gradients) in wrapped.items():
            params = {**PARAMS, "b": None} if key == "alone_a" else PARAMS
            state = outer.init(params)
            for gradient in gradients:
                values[key], state = outer.update(gradient, state, params)
        return values

    # Some of optax's transforms mix precisions.
    with jax.numpy_dtype_promotion("standard"):
        values = jax.jit(outputs)()
    alone, alone_a = values["alone"], values["alone_a"]["a"]
    same = {"chain": -0.1, "multi": 1.0}
    if "nonfinite" not in name:
        # Guards make the bad gradient finite, and their state has moved on.
        same["finite"] = 1.0
    for key, factor in same.items():
        for leaf, expected in zip(
            *map(jax.tree.leaves, (values[key], alone)), strict=True
        ):
            np.testing.assert_allclose(leaf, factor * expected, rtol=1e-12)
    for key, b in (("masked", 12.0), ("partition", 6.0)):
        np.testing.assert_allclose(values[key]["a"], alone_a, rtol=1e-12)
        np.testing.assert_allclose(values[key]["b"], [[b]])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_scan_of_a_thousand_steps_keeps_all_types(name, dtype):
    transform = TRANSFORMS[name]
    gradient = jax.tree.map(lambda leaf: leaf.astype(dtype), GRADIENT)
    params = jax.tree.map(jnp.ones_like, gradient)

    def step(state, _):
        value, state = transform.update(gradient, state, params)
        return state, value

    state = transform.init(params)
    after, values = jax.jit(lambda s: jax.lax.scan(step, s, None, 1000))(state)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
        lambda x: x.dtype, state
    )
    for leaf, like in zip(*map(jax.tree.leaves, (values, gradient)), strict=True):
        assert leaf.dtype == like.dtype
        assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize("scope", [jc.PerLeaf(), jc.PerCoordinate()])
def test_inject_hyperparams(scope):
    @optax.inject_hyperparams
    def make(threshold, percent):
        policy = jc.Adaptive(jc.policy.Percentile(percent, window=8))
        rules = {"a": jc.HardClip(threshold), "b": policy}
        return jc.as_transform(rules, scope)

    with jax.numpy_dtype_promotion("standard"):
        transform = make(threshold=lambda step: 1.0 + step, percent=50.0)
        state, update = transform.init(PARAMS), jax.jit(transform.update)
        for k in range(2):
            value, state = update(GRADIENT, state, PARAMS)
            expected = jc.as_transform(jc.HardClip(1.0 + k), scope)
            alone, _ = expected.update(
                GRADIENT["a"], jc.transform.ClipState(jnp.array(0))
            )
            np.testing.assert_allclose(value["a"], alone)
            np.testing.assert_allclose(value["b"], [[12.0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.algorithm.clip21(ONE, 0), "`workers` must be at least 1"),
        (
            lambda: jc.algorithm.centered_clip(ONE, iterations=0),
            "`iterations` must be at least",
        ),
        (lambda: jc.algorithm.geometric_median(eps=0.0), "`eps` must be positive"),
        (lambda: jc.algorithm.mixed_momentum(ONE, mix=1.5), "`mix` must lie between"),
        (lambda: jc.algorithm.clipped_sstm(-0.1, ONE), "`lr` must be positive"),
        (
            lambda: jc.algorithm.stable_adam(ONE, b2=1.5),
            "`b2` must lie between 0 and 1",
        ),
        (lambda: jc.algorithm.stable_adam(ONE, eps=0.0), "`eps` must be positive"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
