"""Thresholds that adapt, or are drawn: golden vectors, recurrences, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc
from registry import POLICIES, POLICIES_OF_NORMS

KEY = jr.key(7)
all_policies = pytest.mark.parametrize("name", POLICIES_OF_NORMS)


def once(policy, norms, state, step=0):
    """One threshold, checked against the state's types."""
    norms = jnp.atleast_1d(jnp.asarray(norms, float))
    # As `Adaptive` calls it.
    with jax.numpy_dtype_promotion("standard"):
        return eqx.filter_jit(policy.threshold)(norms, state, jnp.asarray(step))


def start(policy):
    return policy.init(jnp.result_type(float), jnp.asarray(0))


# Golden vectors


def test_golden_percentile():
    policy = jc.policy.Percentile(10.0)
    state = start(policy)
    for norm in (3.0, 10.0, 1.0, 4.0, 2.0):
        threshold, state = once(policy, norm, state)
    assert threshold == pytest.approx(1.4)


def test_golden_z_score():
    policy = jc.policy.ZScore(max_norm=jnp.inf)
    state = start(policy)._replace(
        mean=jnp.asarray(1.0), variance=jnp.asarray(0.25), seen=jnp.asarray(25.0)
    )
    threshold, state = once(policy, 3.0, state)
    np.testing.assert_allclose(threshold, 1.781252, atol=1e-6)
    np.testing.assert_allclose(state.mean, 1.023438, atol=1e-6)
    np.testing.assert_allclose(state.variance, 0.259728, atol=1e-6)


def test_golden_adagc():
    threshold, state = once(jc.policy.AdaGC(), 5.0, jnp.asarray(1.0), 100)
    assert jc.HardClip(threshold[()]).factor(5.0, 0) == pytest.approx(0.21)
    assert state == pytest.approx(1.001)


def test_golden_spam():
    transform = jc.as_transform(
        jc.Adaptive(jc.policy.SecondMoment()), jc.PerCoordinate()
    )
    gradient = jnp.array([1.0, -100.0])
    state = transform.init(gradient)._replace(policies=(jnp.ones(2),))
    value, _ = transform.update(gradient, state)
    np.testing.assert_allclose(value, [1, -70.710678], atol=1e-6)


# Against the recurrences as they are printed, in numpy


def percentile(norms, k, state):
    seen = norms[max(0, k - 15) : k + 1]
    return np.percentile(seen, 30), state


def quantile(norms, k, c):
    c = 1.0 if c is None else c
    return c, c * np.exp(-0.1 * (float(norms[k] <= c) - 0.7))


def z_score(norms, k, state):
    if k < 5:
        return 4.0, (np.mean(norms[: k + 1]), np.var(norms[: k + 1]))
    (mean, var), n = state, norms[k]
    z = (n - mean) / (np.sqrt(var) + 1e-6)
    c = mean + 1.5 * np.sqrt(var) / (z / 1.5) if z > 1.5 else np.inf
    mean = 0.9 * mean + 0.1 * min(n, c)
    return min(c, 4.0), (mean, 0.9 * var + 0.1 * (min(n, c) - mean) ** 2)


def adagc(norms, k, gamma):
    if k < 5:
        return np.inf, min(norms[: k + 1])
    factor = min(1.1 * gamma / norms[k], 1)
    return 1.1 * gamma, 0.9 * gamma + 0.1 * factor * norms[k]


def second_moment(norms, k, v):
    c = np.inf if k == 0 else np.sqrt(4 * v)
    return c, 0.9 * (0 if v is None else v) + 0.1 * min(norms[k], c) ** 2


RECURRENCES = {
    "Percentile": percentile,
    "QuantileDescent": quantile,
    "ZScore": z_score,
    "AdaGC": adagc,
    "SecondMoment": second_moment,
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences(name):
    policy, norms = POLICIES[name], np.random.default_rng(3).gamma(1.0, 1.0, 60)
    transform = jc.as_transform(jc.Adaptive(policy))

    def step(state, norm):
        value, state = transform.update(norm * jnp.array([0.6, 0.8]), state)
        return state, jc.safe_norm(value)

    state = transform.init(jnp.zeros(2))
    after, lengths = jax.jit(lambda s: jax.lax.scan(step, s, jnp.asarray(norms)))(state)
    expected, state, clipped = [], None, 0
    for k, norm in enumerate(norms):
        threshold, state = RECURRENCES[name](norms, k, state)
        expected.append(min(norm, threshold))
        clipped += norm > threshold
    np.testing.assert_allclose(lengths, expected, rtol=1e-10)
    assert 3 < clipped < 55
    assert after.step == 60


def test_quantile_descent_finds_the_quantile():
    # Under a batch: the fraction is that of its examples.
    policy = jc.Adaptive(jc.policy.QuantileDescent(0.8, lr=0.1))
    transform = jc.as_transform(policy, jc.PerExample())

    def step(state, key):
        batch = jr.exponential(key, (64, 1))
        return transform.update(batch, state)[1], state.policies[0][0]

    state = transform.init(jnp.zeros(1))
    keys = jr.split(KEY, 400)
    _, thresholds = jax.jit(lambda s: jax.lax.scan(step, s, keys))(state)
    # The mean of the last 200 is good to about 0.02.
    assert np.mean(thresholds[200:]) == pytest.approx(-np.log(0.2), rel=0.05)


@pytest.mark.parametrize("power", [1, 2])
def test_random_clipping_clips_as_often_as_it_says(power):
    policy = jc.policy.RandomThreshold(1.0, beta=0.3, key=KEY, power=power)
    norms = jnp.repeat(jnp.array([0.5, 1.5, 4.0]), 20_000)
    thresholds, _ = once(policy, norms, start(policy))
    assert set(np.unique(thresholds)) == {1.0, np.inf}
    fraction = np.mean(np.asarray(thresholds == 1.0).reshape(3, -1), axis=1)
    odds = np.array([0, *(0.3 ** ((1 / n) ** power) for n in (1.5, 4.0))])
    error = np.sqrt(odds * (1 - odds) / 20_000)
    assert np.all(np.abs(fraction - odds) <= 4 * error)


def test_random_clipping_draws_for_each_part_and_step():
    clip = jc.Adaptive(jc.policy.RandomThreshold(1.0, key=KEY))
    transform = jc.as_transform(clip, jc.PerLeaf())
    gradient = [jnp.array([1.1])] * 8
    state = transform.init(gradient)
    draws = []
    for _ in range(8):
        value, state = eqx.filter_jit(transform.update)(gradient, state)
        draws.append(np.array([float(leaf[0]) for leaf in value]) < 1.05)
    draws = np.array(draws)
    # Neither are leaves of a step alike nor the steps of a leaf.
    assert np.all((draws.mean(axis=0) > 0) & (draws.mean(axis=0) < 1))
    assert np.all((draws.mean(axis=1) > 0) & (draws.mean(axis=1) < 1))
    again, _ = transform.update(gradient, transform.init(gradient))
    np.testing.assert_array_equal(np.ravel(again) < 1.05, draws[0])


# All of them


@all_policies
@pytest.mark.parametrize("dtype", [jnp.bfloat16, float])
def test_a_scan_keeps_all_types_and_a_bad_gradient_no_trace(name, dtype):
    transform = jc.as_transform(jc.Adaptive(POLICIES[name]), jc.PerLeaf())
    # Steps 500 and 501 are not finite.
    size = jr.exponential(KEY, (1000,)).at[500].set(jnp.nan).at[501].set(jnp.inf)

    def step(state, size):
        gradient = {"a": jnp.array([3.0, 4.0]) * size, "b": (jnp.ones(1) * size, None)}
        gradient = jax.tree.map(lambda leaf: leaf.astype(dtype), gradient)
        value, state = transform.update(gradient, state)
        return state, jc.safe_norm(value)

    params = {"a": jnp.zeros(2, dtype), "b": (jnp.zeros(1, dtype), None)}
    state = transform.init(params)
    after, lengths = jax.jit(lambda s: jax.lax.scan(step, s, size))(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert jnp.all(jnp.isfinite(jnp.delete(lengths, np.array([500, 501]))))
    assert not jnp.any(jnp.isfinite(lengths[500:502]))
    for leaf in jax.tree.leaves(after):
        assert jnp.all(jnp.isfinite(leaf))


@all_policies
@pytest.mark.parametrize("scope", [jc.PerUnit(), jc.PerExample(within=jc.PerLeaf())])
def test_parts_have_thresholds_of_their_own(name, scope):
    transform = jc.as_transform(jc.Adaptive(POLICIES[name], jc.SoftClip), scope)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    gradient = {"a": jnp.arange(1.0, 7.0).reshape(3, 2), "b": jnp.array([1.0, 2.0])}
    if scope.examples:
        gradient = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), gradient)
    update = jax.jit(transform.update)
    state = transform.init(params)
    for _ in range(2):
        value, state = update(gradient, state, params)
    assert jax.tree.map(jnp.shape, value) == jax.tree.map(jnp.shape, params)
    # One threshold for each leaf, on an axis; or two units of a matrix and one of a
    # vector, each field of the state a pytree like the parameters.
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.policies)]
    if scope.examples:
        assert {shape[0] for shape in shapes} == {2}
    else:
        assert {shape[:2] for shape in shapes[::2]} == {(1, 2)}
        assert {shape[:1] for shape in shapes[1::2]} == {(1,)}


def test_another_rule_and_a_tree_of_them():
    policy = jc.policy.Percentile(100.0)
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    rules = {"a": jc.Adaptive(policy, jc.SoftClip), "b": jc.HardClip(6.0)}
    transform = jc.as_transform(rules, jc.PerLeaf())
    value, state = transform.update(gradient, transform.init(gradient))
    # The threshold is the norm itself, at which a soft clip halves.
    np.testing.assert_allclose(value["a"], [1.5, 2.0])
    np.testing.assert_allclose(value["b"], [6.0])
    assert state.policies[1] == ()


def test_a_policy_is_tuned_through_the_transform():
    def length(percent):
        transform = jc.as_transform(jc.Adaptive(jc.policy.Percentile(percent)))
        state = transform.init(jnp.zeros(1))
        for norm in (1.0, 2.0, 5.0):
            value, state = transform.update(jnp.array([norm]), state)
        return value[0]

    # Of 1, 2 and 5 the percentile rises from 1 to 2 within 50 percent.
    assert jax.grad(length)(20.0) == pytest.approx(1 / 50)


# A new one is a small class


class Last(jc.policy.AbstractPolicy):
    """The norm of the update before."""

    def init(self, dtype, index):
        return jnp.asarray(jnp.inf, dtype)

    def threshold(self, norms, state, step):
        return state, jnp.max(norms)


def test_a_policy_as_a_user_would_write_it():
    transform = jc.as_transform(jc.Adaptive(Last()))
    state = transform.init(jnp.zeros(1))
    values = []
    for norm in (2.0, 5.0, 3.0):
        value, state = transform.update(jnp.array([norm]), state)
        values.append(value[0])
    assert values == [2, 2, 3]


# Who refuses them


def test_limits_refuse_them_by_name():
    clip = jc.Adaptive(jc.policy.Percentile())
    problem = jc.LinearModel(jc.Spectrum.isotropic(4), jc.Gaussian(1.0), jnp.ones(1))
    said = r"`{}` needs a rule.*Adaptive\(Percentile\).*as_transform"
    with pytest.raises(ValueError, match=said.format("solve")):
        jc.solve(problem, clip, 0.1, steps=[0, 1])
    with pytest.raises(ValueError, match=said.format("moments")):
        jc.moments(clip, jc.Gaussian(1.0), 1.0, 1.0)
    with pytest.raises(ValueError, match=said.format("simulate")):
        jc.simulate(problem, clip, 0.1, steps=1, key=KEY)
    # And this is what to do.
    optimiser = optax.chain(jc.as_transform(clip), optax.sgd(0.1))
    curve = jc.train(problem, optimiser, steps=2, key=KEY)
    assert jnp.all(jnp.isfinite(curve.risk))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.policy.Percentile(-1.0), "`percent` must be non-negative"),
        (lambda: jc.policy.Percentile(101.0), "`percent` must be at most 100"),
        (lambda: jc.policy.Percentile(window=0), "`window` must be at least 1"),
        (lambda: jc.policy.QuantileDescent(1.1), "`quantile` must lie between 0 and 1"),
        (lambda: jc.policy.QuantileDescent(lr=0.0), "`lr` must be positive"),
        (lambda: jc.policy.ZScore(warmup=0), "`warmup` must be at least 1"),
        (lambda: jc.policy.ZScore(max_norm=-1.0), "`max_norm` must be non-negative"),
        (lambda: jc.policy.AdaGC(decay=2.0), "`decay` must lie between 0 and 1"),
        (lambda: jc.policy.SecondMoment(0.0), "`theta` must be positive"),
        (lambda: jc.policy.RandomThreshold(-1.0, key=KEY), "`threshold`.*non-negative"),
        (lambda: jc.policy.RandomThreshold(1.0, beta=2.0, key=KEY), "`beta` must lie"),
    ],
)
def test_bad_parameters_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_in_every_number_are_finite():
    # While AdaGC watches, its mean is infinite, and so would be its derivatives.
    norms = jnp.array([0.5, 2.0, 1.0, 3.0, 0.7, 1.5, 4.0, 1.1])

    def total(policy):
        state, thresholds = policy.init(norms.dtype, jnp.asarray(0)), []
        for step, norm in enumerate(norms):
            with jax.numpy_dtype_promotion("standard"):
                threshold, state = policy.threshold(norm[None], state, step)
            thresholds.append(jnp.minimum(threshold, norm))
        return jnp.sum(jnp.stack(thresholds))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(policy):
        return total(policy)

    for policy in (
        jc.policy.AdaGC(1.1, decay=0.9, warmup=3),
        jc.policy.SecondMoment(),
        jc.policy.ZScore(warmup=3),
        jc.policy.QuantileDescent(),
        jc.policy.Percentile(60.0, window=4),
    ):
        slopes = gradient(policy)
        assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
    # Of AdaGC against differences: its threshold acts at the fourth norm.
    adagc = [
        float(total(jc.policy.AdaGC(x, decay=0.9, warmup=3)))
        for x in (1.1 - 1e-6, 1.1, 1.1 + 1e-6)
    ]
    slope = gradient(jc.policy.AdaGC(1.1, decay=0.9, warmup=3)).relative
    assert slope > 0
    assert slope == pytest.approx((adagc[2] - adagc[0]) / 2e-6, rel=1e-6)
