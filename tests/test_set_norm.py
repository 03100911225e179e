"""Policies that set the norm: AGGC and GradientStabilizer, against loops in numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip as jc

NORMS = np.random.default_rng(5).gamma(0.7, 1.0, 60)
UNIT = np.array([0.6, -0.8])


def lengths(transform, norms, dtype=float):
    """How long gradients of these norms come out, in one direction."""

    def step(state, norm):
        value, state = transform.update(norm * jnp.asarray(UNIT, dtype), state)
        return state, (jc.safe_norm(value), value)

    state = transform.init(jnp.zeros(2, dtype))
    norms = jnp.asarray(norms, dtype)
    _, (out, values) = jax.jit(lambda s: jax.lax.scan(step, s, norms))(state)
    return np.asarray(out), np.asarray(values)


def low(step):
    return jnp.where(step < 30, 0.3, 0.8)


def high(step):
    return jnp.where(step < 30, 2.0, 1.1)


def aggc(norms, max_raise):
    """As the authors' code has it, but for the start."""
    mean, out = None, []
    for k, norm in enumerate(norms):
        a, b = (0.3, 2.0) if k < 30 else (0.8, 1.1)
        scale = 1.0
        if mean is not None and norm > b * mean:
            scale = b * mean / norm
        elif mean is not None and norm < max(0.05, a * mean):
            scale = min(max(0.05, a * mean) / norm, max_raise)
        out.append(scale * norm)
        mean = out[-1] if mean is None else 0.9 * mean + 0.1 * out[-1]
    return np.array(out)


@pytest.mark.parametrize("max_raise", [1.2, np.inf])
def test_aggc_brings_the_norm_into_its_band(max_raise):
    policy = jc.policy.AGGC(low, high, decay=0.9, min_norm=0.05, max_raise=max_raise)
    out, values = lengths(jc.as_transform(jc.Adaptive(policy)), NORMS)
    np.testing.assert_allclose(out, aggc(NORMS, max_raise), rtol=1e-12)
    # On both sides of the change of the band some are shortened, raised and left.
    for half in (slice(1, 30), slice(30, 60)):
        ratio = out[half] / NORMS[half]
        assert sum(ratio < 0.999) > 1 and sum(ratio > 1.001) > 1
    assert sum(abs(out / NORMS - 1) < 1e-12) > 5
    np.testing.assert_allclose(values / out[:, None], np.tile(UNIT, (60, 1)))


def test_aggc_that_only_shortens():
    policy = jc.policy.AGGC(0.0, 1.5, decay=0.9)
    both = [
        lengths(jc.as_transform(clip), NORMS)[0]
        for clip in (jc.Adaptive(policy), jc.Adaptive(policy, jc.HardClip))
    ]
    np.testing.assert_allclose(*both, rtol=1e-12)
    assert np.all(both[0] <= NORMS * (1 + 1e-12)) and np.any(both[0] < NORMS)


def test_limits_that_cross_give_the_upper_one():
    transform = jc.as_transform(jc.Adaptive(jc.policy.AGGC(0.95, 0.6, min_norm=0.9)))
    out, _ = lengths(transform, [1.0, 5.0, 0.01])
    np.testing.assert_allclose(out, [1.0, 0.6, 0.6 * (0.98 + 0.02 * 0.6)])


def test_a_spike_and_a_dead_part_do_not_carry_the_mean_away():
    out, _ = lengths(
        jc.as_transform(jc.Adaptive(jc.policy.AGGC(0.5, 1.5))),
        [0.0, 1.0, 1e30, 0.0, 1.0, 1e-30],
    )
    assert out[0] == out[3] == 0
    mean = 0.98 + 0.02 * 1.5
    np.testing.assert_allclose(out[[1, 2, 4]], [1.0, 1.5, 1.0])
    np.testing.assert_allclose(out[5], 0.5 * (0.98 * mean + 0.02))


def stabilised(norms, a, b):
    m = v = 0.0
    for t, norm in enumerate(norms, start=1):
        m = a * m + (1 - a) * norm
        v = b * v + (1 - b) * norm**2
        yield (m / (1 - a**t)) / np.sqrt(v / (1 - b**t))


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_the_stabilised_norm_is_a_ratio_of_moments(scale):
    """Of gradients whose squares no float32 holds, too."""
    transform = jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer()))
    out, values = lengths(transform, scale * NORMS, jnp.float32)
    np.testing.assert_allclose(out, list(stabilised(NORMS, 0.7, 0.9)), rtol=1e-5)
    assert out.max() / out.min() > 1.5
    directions = values / out[:, None]
    np.testing.assert_allclose(directions, np.tile(UNIT, (60, 1)), rtol=1e-5)


def test_a_spike_comes_out_as_long_as_it_is_said():
    transform = jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer()))
    for spike in (1e4, 1e12):
        out, _ = lengths(transform, [*np.ones(200), spike])
        np.testing.assert_allclose(out[100:200], 1.0)
        np.testing.assert_allclose(out[200], 0.3 / np.sqrt(0.1), rtol=1e-3)


def test_each_leaf_has_moments_of_its_own():
    clip = jc.Adaptive(jc.policy.GradientStabilizer())
    transform = jc.as_transform(clip, jc.PerLeaf())
    norms = {"a": NORMS[:20], "b": 1e3 * NORMS[20:40]}
    gradient = lambda k: {n: v[k] * jnp.asarray(UNIT) for n, v in norms.items()}  # noqa: E731
    state, update = transform.init(gradient(0)), jax.jit(transform.update)
    expected = {n: list(stabilised(v, 0.7, 0.9)) for n, v in norms.items()}
    for k in range(20):
        value, state = update(gradient(k), state)
        for name, leaf in value.items():
            np.testing.assert_allclose(leaf, expected[name][k] * UNIT, rtol=1e-9)


# A group of several leaves has one norm

PARAMS = {f"{kind}{i}": jnp.ones((2, 2)) for kind in "qkv" for i in range(2)}


@pytest.mark.parametrize(
    "policy", [jc.policy.AGGC(0.9, 1.1), jc.policy.GradientStabilizer()]
)
def test_a_group_of_leaves_has_one_norm(policy):
    """By a part of `optax.partition`: each as if the others were not there."""
    clip = jc.monitor(jc.as_transform(jc.Adaptive(policy)))
    groups = {name: name[0] for name in PARAMS}
    grouped = optax.partition({kind: clip for kind in "qkv"}, groups)
    alone = {kind: jc.as_transform(jc.Adaptive(policy)) for kind in "qkv"}
    state = grouped.init(PARAMS)
    update = jax.jit(grouped.update)
    of = lambda tree, kind: {n: x for n, x in tree.items() if n[0] == kind}  # noqa: E731
    states = {kind: t.init(of(PARAMS, kind)) for kind, t in alone.items()}
    rng = np.random.default_rng(2)
    for _ in range(4):
        gradient = {n: jnp.asarray(rng.normal(size=(2, 2))) for n in PARAMS}
        value, state = update(gradient, state, PARAMS)
        for kind, transform in alone.items():
            expected, states[kind] = transform.update(of(gradient, kind), states[kind])
            for name, leaf in expected.items():
                np.testing.assert_allclose(value[name], leaf, rtol=1e-12)
    metrics = jc.clip_metrics(state)
    last = {kind: jc.safe_norm(of(gradient, kind)) for kind in "kqv"}
    found = [float(metrics[f"{i}/norm"]) for i in range(3)]
    np.testing.assert_allclose(found, list(last.values()), rtol=1e-12)
    assert len(set(found)) == 3


# Around them


def test_a_policy_says_by_which_rule():
    adaptive = jc.Adaptive(jc.policy.GradientStabilizer())
    assert adaptive.rule is jc.clip.Rescale
    assert jc.Adaptive(jc.policy.GradientStabilizer(), jc.SoftClip).rule is jc.SoftClip
    assert jc.Adaptive(jc.policy.Percentile()).rule is jc.HardClip

    class Half(jc.policy.Percentile):
        rule = lambda c: jc.HardClip(0.5 * c.value)  # noqa: E731

    clip = jc.Adaptive(Half(100.0))
    out, _ = lengths(jc.as_transform(clip), [1.0, 2.0])
    np.testing.assert_allclose(out, [0.5, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.policy.AGGC(-0.1, 1.0), "`low` must be non-negative"),
        (lambda: jc.policy.AGGC(0.1, np.nan), "`high` must be non-negative"),
        (lambda: jc.policy.AGGC(0.1, 1.0, decay=1.5), "`decay` must lie between"),
        (lambda: jc.policy.AGGC(0.1, 1.0, min_norm=-1.0), "`min_norm` must be non-neg"),
        (lambda: jc.policy.AGGC(0.1, 1.0, max_raise=0.5), "`max_raise` must be at le"),
        (lambda: jc.policy.GradientStabilizer(1.0), "`decay` must be below 1"),
        (
            lambda: jc.policy.GradientStabilizer(square_decay=1.0),
            "`square_decay` must be below 1",
        ),
        (lambda: jc.clip.Rescale(-1.0), "`threshold` must be non-negative"),
    ],
)
def test_bad_parameters_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: jc.policy.AGGC(0.5, 1.5, max_raise=bad),
        lambda bad: jc.policy.AGGC(0.5, bad),
        lambda bad: jc.policy.GradientStabilizer(square_decay=1 - bad),
    ],
)
def test_a_bad_traced_number_is_none(make):
    def out(bad):
        transform = jc.as_transform(jc.Adaptive(make(bad)))
        state = transform.init(jnp.zeros(2))
        for _ in range(2):
            value, state = transform.update(jnp.asarray(UNIT), state)
        return value

    assert jnp.all(jnp.isnan(jax.jit(out)(-1.0)))
    assert jnp.all(jnp.isfinite(jax.jit(out)(1.0)))


def test_gradients_in_every_number_are_those_of_differences():
    def total(policy):
        transform = jc.as_transform(jc.Adaptive(policy))
        state, sum_ = transform.init(jnp.zeros(2)), 0.0
        for norm in (0.5, 2.0, 1.0, 0.1, 3.0):
            value, state = transform.update(norm * jnp.asarray(UNIT), state)
            sum_ += value[0]
        return sum_

    for policy in (
        jc.policy.AGGC(0.6, 1.3, decay=0.9, min_norm=0.01, max_raise=4.5),
        jc.policy.GradientStabilizer(),
    ):
        leaves, structure = jax.tree.flatten(policy)
        slopes = jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(total))(policy))
        assert len(slopes) == len(leaves)
        for i, leaf in enumerate(leaves):
            up, down = (
                structure.unflatten([*leaves[:i], leaf + h, *leaves[i + 1 :]])
                for h in (1e-6, -1e-6)
            )
            expected = (float(total(up)) - float(total(down))) / 2e-6
            assert float(slopes[i]) == pytest.approx(expected, rel=1e-5, abs=1e-8)
