"""The rules as optax transforms: the corners, optax's own transforms, composition."""

from functools import partial

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxclip as jc
from helpers import RULES, all_clips, all_rules, finite_difference

SATURATING = ["hard", "soft", "root_soft", "delta"]
START = jc.transform.ClipState(jnp.zeros((), jnp.int32))


@pytest.fixture
def mixing():
    """Some of optax's own transforms mix precisions, and steps with numbers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@eqx.filter_jit
def clipped(clip, gradient):
    """One update, without its state."""
    return jc.as_transform(clip).update(gradient, START)[0]


@partial(jax.jit, static_argnames="rule")
def value_and_derivatives(rule, gradient, threshold):
    """The clipped gradient, its Jacobian, and its derivative in the threshold."""

    def update(gradient, threshold):
        return clipped(rule(threshold), gradient)

    jacobian, slope = jax.jacrev(update, (0, 1))(gradient, threshold)
    return update(gradient, threshold), jacobian, slope


# The corners, one by one


@pytest.mark.float32
@all_rules
def test_a_zero_gradient(rule):
    zero, threshold = jnp.zeros(3), jnp.asarray(0.5)
    value, jacobian, slope = value_and_derivatives(rule, zero, threshold)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, 0)
    # The identity, times the factor at 0 (which is 1 / eps where that is a direction).
    np.testing.assert_array_equal(jacobian, np.eye(3) * rule(0.5).factor(0.0, 0))
    if rule is not jc.Normalize:
        np.testing.assert_array_equal(jacobian, np.eye(3))


@pytest.mark.float32
@pytest.mark.parametrize("name", [*SATURATING, "identity", "normalize"])
def test_a_zero_gradient_and_a_zero_threshold(name):
    value, jacobian, slope = value_and_derivatives(
        RULES[name], jnp.zeros(3), jnp.asarray(0.0)
    )
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, 0)
    assert jnp.all(jnp.isfinite(jacobian))


@pytest.mark.float32
@pytest.mark.parametrize("name", SATURATING)
def test_an_infinite_threshold(name):
    for numbers in ([0.0, 0.0, 0.0], [3.0, 4.0, 0.0], [1e30, 1.0, 0.0]):
        gradient = jnp.array(numbers)
        value, jacobian, slope = value_and_derivatives(
            RULES[name], gradient, jnp.asarray(jnp.inf)
        )
        np.testing.assert_array_equal(value, gradient)
        np.testing.assert_array_equal(jacobian, np.eye(3))
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.float32
def test_the_derivative_in_the_threshold():
    gradient = jnp.array([3.0, 4.0, 0.0])
    for threshold, expected in [(1.0, 1.4), (4.999, 1.4), (5.001, 0.0), (9.0, 0.0)]:
        slope = jax.grad(lambda c: jnp.sum(clipped(jc.HardClip(c), gradient)))
        assert slope(threshold) == pytest.approx(expected, rel=1e-6)


def test_the_jacobian_of_an_active_hard_clip():
    gradient, norm = jnp.array([3.0, -4.0, 12.0]), 13.0
    _, jacobian, slope = value_and_derivatives(jc.HardClip, gradient, jnp.asarray(6.5))
    expected = 6.5 / norm * (np.eye(3) - np.outer(gradient, gradient) / norm**2)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(slope, gradient / norm, rtol=1e-15)


def test_the_jacobian_of_an_active_floor():
    gradient = jnp.array([3.0, -4.0, 12.0])
    _, jacobian, slope = value_and_derivatives(
        lambda delta: jc.DeltaClip(0.13, delta), gradient, jnp.asarray(0.05)
    )
    np.testing.assert_allclose(jacobian, 0.05 * np.eye(3), rtol=1e-15)
    np.testing.assert_array_equal(slope, gradient)


@pytest.mark.parametrize("name", ["hard", "delta"])
def test_a_tie_is_not_clipped(name):
    gradient = jnp.array([3.0, 4.0, 0.0])
    value, jacobian, slope = value_and_derivatives(
        RULES[name], gradient, jnp.asarray(5.0)
    )
    np.testing.assert_array_equal(value, gradient)
    np.testing.assert_array_equal(jacobian, np.eye(3))
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["hard", "soft", "root_soft"])
@pytest.mark.parametrize(
    ("gradient", "threshold"),
    [
        # Squares that overflow float32, and squares that underflow it.
        ([1e30, 1.0, 0.0], 1.0),
        ([1e-25, 0.0, 0.0], 1e-30),
        ([3e-24, -4e-24, 0.0], 1e-24),
        ([3e19, 4e19, 1e-19], 5e19),
        # Far apart, but neither.
        ([1e18, 1e-18, 1.0], 1e3),
    ],
)
def test_norms_whose_squares_float32_cannot_hold(name, gradient, threshold):
    low = jnp.array(gradient, jnp.float32), jnp.asarray(threshold, jnp.float32)
    value, jacobian, slope = value_and_derivatives(RULES[name], *low)
    assert value.dtype == jnp.float32
    # The formulas, in twice the digits: psi(n) = n f(n), J = f I + n f' gg' / n^2.
    g, c = np.array(low[0], np.float64), float(low[1])
    n = np.linalg.norm(g)
    f, nf1, f_c = {
        "hard": (c / n, -c / n, 1 / n) if n > c else (1, 0, 0),
        "soft": (c / (c + n), -c * n / (c + n) ** 2, n / (c + n) ** 2),
        "root_soft": (
            c / np.hypot(c, n),
            -c * n**2 / np.hypot(c, n) ** 3,
            n**2 / np.hypot(c, n) ** 3,
        ),
    }[name]
    unit = g / n
    np.testing.assert_allclose(value, f * g, rtol=1e-6, atol=1e-37)
    expected = f * np.eye(3) + nf1 * np.outer(unit, unit)
    # Where the derivative of the factor itself, c / n^2, underflows, only its size is.
    atol = 2e-6 * f if c / n**2 > 1e-38 else 1.01 * f
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(slope, f_c * g, rtol=1e-5, atol=1e-37)


@pytest.mark.float32
def test_safe_norm_against_numpy():
    rng = np.random.default_rng(0)
    both = jax.jit(jax.value_and_grad(jc.safe_norm))
    for scale in (1e-35, 1e-30, 1e-19, 1e-10, 1.0, 1e10, 1e19, 1e30, 1e37):
        values = (scale * rng.standard_normal(50)).astype(np.float32)
        tree = {"a": jnp.asarray(values[:20]), "b": jnp.asarray(values[20:])}
        expected = np.linalg.norm(values.astype(np.float64))
        norm, slope = both(tree)
        assert norm == pytest.approx(expected, rel=1e-6)
        unit = values / expected
        np.testing.assert_allclose(slope["a"], unit[:20], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(slope["b"], unit[20:], rtol=1e-5, atol=1e-7)


@pytest.mark.float32
def test_what_is_not_finite_stays_so():
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for name in ("identity", *SATURATING):
            value = clipped(RULES[name](1.0), jnp.array([bad, 3.0]))
            assert not jnp.isfinite(value[0]), name


@pytest.mark.float32
def test_half_precision_has_its_norm_in_float32():
    # In float16 the squares overflow, in bfloat16 the sum stops growing at 256.
    for dtype, number in [(jnp.float16, 1e4), (jnp.bfloat16, 1.0)]:
        gradient = {"a": jnp.full(4096, number, dtype)}
        assert jc.safe_norm(gradient).dtype == jnp.float32
        assert jc.safe_norm(gradient) == pytest.approx(64 * number, rel=2e-3)
        for threshold in (
            6.4,
            jnp.asarray(6.4),
            jnp.asarray(6.4, jnp.float32),
            jnp.asarray(6.4, jnp.bfloat16),
        ):
            value = clipped(jc.HardClip(threshold), gradient)["a"]
            assert value.dtype == dtype
            np.testing.assert_allclose(value.astype(float), 0.1, rtol=1e-2)


@pytest.mark.float32
def test_leaves_of_several_precisions_keep_theirs():
    gradient = {
        "bfloat16": jnp.array([3.0], jnp.bfloat16),
        "float32": jnp.array([4.0], jnp.float32),
        "float": jnp.array([12.0]),
    }
    value = clipped(jc.HardClip(6.5), gradient)
    for leaf, expected in zip(jax.tree.leaves(value), [1.5, 6, 2], strict=True):
        np.testing.assert_allclose(leaf.astype(float), expected, rtol=1e-6)
    assert jax.tree.map(lambda g: g.dtype, value) == jax.tree.map(
        lambda g: g.dtype, gradient
    )


@pytest.mark.float32
@all_clips
def test_trees_without_numbers_pass_through(clip):
    assert clipped(clip, None) is None
    assert clipped(clip, {}) == {}
    gradient = {"a": None, "b": (jnp.array([3.0, 4.0]), None, ()), "c": jnp.zeros(0)}
    value = clipped(clip, gradient)
    assert jax.tree.structure(value) == jax.tree.structure(gradient)
    np.testing.assert_allclose(
        value["b"][0], clipped(clip, jnp.array([3.0, 4.0])), rtol=1e-6
    )
    assert value["c"].shape == (0,)


@pytest.mark.float32
@pytest.mark.parametrize("name", ["hard", "root_soft"])
def test_complex_leaves_count_by_their_modulus(name):
    clip = RULES[name](6.5)
    gradient = {"a": jnp.array([3.0 + 4.0j]), "b": jnp.array([12.0])}
    value = clipped(clip, gradient)
    assert value["a"].dtype == gradient["a"].dtype
    factor = np.asarray(clip.factor(13.0, 0))
    np.testing.assert_allclose(value["a"], (3 + 4j) * factor, rtol=1e-6)
    np.testing.assert_allclose(value["b"], 12 * factor, rtol=1e-6)
    # At zero, and through to the real and imaginary parts.
    slope = jax.grad(lambda x: jc.safe_norm(jax.lax.complex(x, jnp.zeros_like(x))))
    np.testing.assert_array_equal(slope(jnp.zeros(2)), 0)
    np.testing.assert_allclose(slope(jnp.array([3.0, -4.0])), [0.6, -0.8], rtol=1e-6)


# Agreement with optax

SHAPES = [{"a": (3,)}, {"a": (2, 3), "b": {"c": (), "d": (1,)}}, [(5,), (0,), (2, 2)]]
TREES = [
    jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    for shapes in SHAPES
]


def random_tree(seed, tree, size):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape)), tree)


@jax.jit
def both_by_global_norm(gradient, threshold, cotangent):
    """Value and pulled back cotangent, ours and optax's."""

    def ours(gradient, threshold):
        return clipped(jc.HardClip(threshold), gradient)

    def theirs(gradient, threshold):
        transform = optax.clip_by_global_norm(threshold)
        return transform.update(gradient, optax.EmptyState())[0]

    results = []
    for update in (ours, theirs):
        value, pull = jax.vjp(update, gradient, threshold)
        results.append((value, pull(cotangent)))
    return results


@jax.jit
def both_by_example(gradient, threshold, cotangent):
    def ours(gradient, threshold):
        scope = jc.PerExample("sum")
        return jc.as_transform(jc.HardClip(threshold), scope).update(gradient, START)[0]

    def theirs(gradient, threshold):
        return optax.per_example_global_norm_clip(gradient, threshold)[0]

    results = []
    for update in (ours, theirs):
        value, pull = jax.vjp(update, gradient, threshold)
        results.append((value, pull(cotangent)))
    return results


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        scale = float(jnp.max(jnp.abs(other), initial=0.0))
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12 * scale)


sizes = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4])
thresholds = st.sampled_from([1e-3, 0.2, 1.0, 7.0, 1e5])


@hypothesis.settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from(TREES), sizes, thresholds)
def test_agrees_with_clip_by_global_norm(seed, tree, size, threshold):
    gradient, cotangent = (
        random_tree(seed, tree, size),
        random_tree(seed + 1, tree, 1.0),
    )
    assert_same(*both_by_global_norm(gradient, jnp.asarray(threshold), cotangent))


@hypothesis.settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from(TREES), sizes, thresholds)
def test_agrees_with_per_example_global_norm_clip(seed, tree, size, threshold):
    cotangent = jax.tree.leaves(random_tree(seed + 1, tree, 1.0))
    examples = jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), jax.tree.leaves(tree))
    gradient = random_tree(seed, examples, size)
    assert_same(*both_by_example(gradient, jnp.asarray(threshold), cotangent))


# Every rule: the transform is the factor of the norm

TREE = {"a": np.array([[0.3, -1.1], [0.2, 0.05]]), "b": np.array([0.7])}


@all_clips
def test_the_transform_is_the_factor_of_the_norm(clip):
    tree = jax.tree.map(jnp.asarray, TREE)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(TREE)))
    factor = float(clip.factor(norm, 0))
    transform = jc.as_transform(clip)
    for update in (transform.update, jax.jit(transform.update)):
        value, _ = update(tree, START)
        for key, leaf in TREE.items():
            np.testing.assert_allclose(value[key], factor * leaf, rtol=1e-13)


@all_rules
def test_derivatives_against_finite_differences(rule):
    gradient, threshold = jnp.array([0.3, -1.1, 0.7]), jnp.asarray(0.8)
    _, jacobian, slope = value_and_derivatives(rule, gradient, threshold)
    expected = finite_difference(lambda c: clipped(rule(c), gradient), threshold, 1e-3)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-9)
    for i in range(3):
        along = jnp.zeros(3).at[i].set(1.0)

        def moved(x, along=along):
            return clipped(rule(threshold), gradient + x * along)

        expected = finite_difference(moved, 0.0, 1e-3)
        np.testing.assert_allclose(jacobian[:, i], expected, rtol=0, atol=1e-9)


def test_forward_and_reverse_mode_agree():
    def update(gradient, threshold):
        return clipped(jc.HardClip(threshold), gradient)

    at = jnp.array([0.3, -1.1, 0.7]), jnp.asarray(0.8)
    forward = jax.jit(jax.jacfwd(update, (0, 1)))(*at)
    _, *backward = value_and_derivatives(jc.HardClip, *at)
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)


@all_rules
def test_a_vmap_over_thresholds_is_a_loop(rule):
    gradient = jnp.array([0.3, -1.2, 0.4])
    thresholds = jnp.array([0.0, 0.2, 1.0, 1.3, 5.0, jnp.inf])
    if rule not in (jc.HardClip, jc.SoftClip, jc.RootSoftClip, jc.DeltaClip):
        thresholds = thresholds[1:-1]
    mapped = jax.vmap(lambda c: clipped(rule(c), gradient))(thresholds)
    for threshold, value in zip(thresholds, mapped, strict=True):
        np.testing.assert_allclose(
            value, clipped(rule(threshold), gradient), rtol=1e-15
        )


def test_a_threshold_follows_the_count_of_updates(mixing):
    schedule = optax.piecewise_constant_schedule(1.0, {2: 0.5})
    transform = jc.as_transform(jc.HardClip(schedule))
    gradient = jnp.array([3.0, 4.0])
    state = transform.init(gradient)
    lengths = []
    for _ in range(4):
        value, state = transform.update(gradient, state)
        lengths.append(float(jc.safe_norm(value)))
    np.testing.assert_allclose(lengths, [1, 1, 0.5, 0.5], rtol=1e-6)
    assert state == jc.transform.ClipState(4)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, float])
def test_a_scan_keeps_all_types(dtype):
    clip = jc.HardClip(jc.PiecewiseLinear(jnp.array([0, 999]), jnp.array([1.0, 2.0])))
    transform = jc.as_transform(clip)
    gradient = {"a": jnp.array([3.0, 4.0], dtype)}

    def body(carry, _):
        value, state = transform.update(gradient, carry[1])
        return (value, state), jc.safe_norm(value)

    carry = gradient, transform.init(gradient)
    (value, state), lengths = jax.jit(lambda c: jax.lax.scan(body, c, None, 1000))(
        carry
    )
    assert value["a"].dtype == gradient["a"].dtype
    assert state.step.dtype == jnp.int32
    assert state.step == 1000
    expected = 2.0 ** (np.arange(1000) / 999)
    tolerance = 1e-2 if dtype is jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(lengths, expected, rtol=tolerance)


def test_the_count_stops_rather_than_overflows():
    transform = jc.as_transform(jc.HardClip(1.0))
    last = jc.transform.ClipState(jnp.asarray(2**31 - 1, jnp.int32))
    _, state = transform.update(jnp.ones(2), last)
    assert state == last


# Scope


def test_the_scope_of_examples_averages_or_sums():
    rng = np.random.default_rng(2)
    gradient = {"a": rng.standard_normal((5, 3)), "b": rng.standard_normal((5, 2, 2))}
    flat = np.concatenate([gradient["a"], gradient["b"].reshape(5, 4)], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    factors = np.minimum(1, 1.9 / norms)
    assert 0 < np.sum(factors < 1) < 5
    for reduce, numpy in [("mean", np.mean), ("sum", np.sum)]:
        transform = jc.as_transform(jc.HardClip(1.9), jc.PerExample(reduce))
        value, state = transform.update(jax.tree.map(jnp.asarray, gradient), START)
        for key, leaf in gradient.items():
            shape = (5, *[1] * (leaf.ndim - 1))
            expected = numpy(factors.reshape(shape) * leaf, axis=0)
            np.testing.assert_allclose(value[key], expected, rtol=1e-14, atol=1e-15)
        assert state.step == 1


@pytest.mark.parametrize(
    "shapes", [{"a": (5, 3), "b": (4, 3)}, {"a": (5,), "b": ()}, {"a": ()}]
)
def test_examples_need_one_leading_axis(shapes):
    gradient = {key: jnp.zeros(shape) for key, shape in shapes.items()}
    transform = jc.as_transform(jc.HardClip(1.0), jc.PerExample())
    with pytest.raises(ValueError, match="same leading axis"):
        transform.update(gradient, START)


def test_what_people_put_into_a_chain(without_type_checks):
    """A rule, an adaptive one, a policy, and a class in place of a scope."""
    adaptive, policy = jc.Adaptive(jc.policy.ZScore()), jc.policy.ZScore()
    for link, wrapped in (
        (jc.HardClip(1.0), r"as_transform\(HardClip\(threshold=1"),
        (adaptive, r"as_transform\(Adaptive\(policy=ZScore"),
    ):
        with pytest.raises(AttributeError, match=wrapped):
            optax.chain(link, optax.sgd(0.1))
        assert not hasattr(link, "init")
    with pytest.raises(AttributeError, match=r"as_transform\(Adaptive\(ZScore"):
        policy.update  # noqa: B018  the error is that of asking for it
    as_transform = jc.as_transform.__wrapped__
    with pytest.raises(ValueError, match=r"`jaxclip.Adaptive\(policy\)`"):
        as_transform(policy)
    with pytest.raises(ValueError, match="`scope` must be what norms are taken over"):
        as_transform(jc.HardClip(1.0), jc.PerLeaf)


def test_a_threshold_is_no_rule():
    with pytest.raises(ValueError, match=r"`clip` must be a clipping rule.*1\.0"):
        jc.as_transform.__wrapped__(1.0)


# Composition with optax


PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([0.5])}
GRADIENT = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([12.0])}
CLIPPED = {"a": np.array([1.5, -2.0]), "b": np.array([6.0])}
CLIP = jc.HardClip(6.5)


def run(transform, gradients):
    """The updates of a transform, under jit."""
    state, values = transform.init(PARAMS), []
    update = jax.jit(transform.update)
    for gradient in gradients:
        value, state = update(gradient, state, PARAMS)
        values.append(value)
    return values, state


def assert_tree(value, expected):
    for key, leaf in expected.items():
        np.testing.assert_allclose(value[key], leaf, rtol=1e-12, atol=1e-12)


def test_chain():
    transform = optax.chain(jc.as_transform(CLIP), optax.sgd(0.1, momentum=0.9))
    values, state = run(transform, [GRADIENT, GRADIENT])
    assert_tree(values[0], jax.tree.map(lambda g: -0.1 * g, CLIPPED))
    assert_tree(values[1], jax.tree.map(lambda g: -0.19 * g, CLIPPED))
    assert state[0] == optax.EmptyState()


def test_chain_before_adam_agrees_with_optax(mixing):
    gradients = [random_tree(seed, PARAMS, 4.0) for seed in range(5)]
    ours = optax.chain(jc.as_transform(jc.HardClip(5.0)), optax.adam(0.1))
    theirs = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(0.1))
    for mine, other in zip(
        run(ours, gradients)[0], run(theirs, gradients)[0], strict=True
    ):
        assert_tree(mine, other)


def test_masked():
    transform = optax.masked(jc.as_transform(jc.HardClip(2.5)), {"a": True, "b": False})
    values, _ = run(transform, [GRADIENT])
    assert_tree(values[0], {"a": [1.5, -2.0], "b": [12.0]})


def test_partition():
    transform = optax.partition(
        {"clip": jc.as_transform(jc.HardClip(2.5)), "sgd": optax.sgd(0.5)},
        {"a": "clip", "b": "sgd"},
    )
    values, _ = run(transform, [GRADIENT])
    assert_tree(values[0], {"a": [1.5, -2.0], "b": [-6.0]})


def test_multi_steps(mixing):
    transform = optax.MultiSteps(jc.as_transform(CLIP), every_k_schedule=2)
    double = jax.tree.map(lambda g: 2 * g, GRADIENT)
    zero = jax.tree.map(jnp.zeros_like, GRADIENT)
    values, state = run(transform.gradient_transformation(), [zero, double])
    assert_tree(values[0], zero)
    assert_tree(values[1], CLIPPED)
    assert state.inner_opt_state == optax.EmptyState()


def test_inject_hyperparams(mixing):
    @optax.inject_hyperparams
    def make(threshold):
        return jc.as_transform(jc.HardClip(threshold))

    transform = make(threshold=6.5)
    state = transform.init(PARAMS)
    update = jax.jit(transform.update)
    value, state = update(GRADIENT, state)
    assert_tree(value, CLIPPED)
    state.hyperparams["threshold"] = jnp.asarray(13.0)
    value, _ = update(GRADIENT, state)
    assert_tree(value, GRADIENT)
    # And from a schedule of optax's own.
    values, _ = run(make(threshold=lambda step: 6.5 * (1 + step)), [GRADIENT] * 2)
    assert_tree(values[0], CLIPPED)
    assert_tree(values[1], GRADIENT)


def test_apply_if_finite():
    transform = optax.apply_if_finite(jc.as_transform(CLIP), 5)
    bad = {"a": jnp.array([jnp.nan, 1.0]), "b": jnp.array([1.0])}
    values, state = run(transform, [bad, GRADIENT])
    assert_tree(values[0], jax.tree.map(jnp.zeros_like, bad))
    assert_tree(values[1], CLIPPED)
    assert state.total_notfinite == 1


def test_a_rule_is_tuned_through_the_transform():
    # The derivative of what training does, in the threshold, through an optimiser.
    def loss(threshold):
        transform = optax.chain(
            jc.as_transform(jc.HardClip(threshold)), optax.sgd(0.1, momentum=0.5)
        )
        params, state = PARAMS, transform.init(PARAMS)
        for _ in range(3):
            gradient = jax.tree.map(lambda p: 10 * p, params)
            updates, state = transform.update(gradient, state)
            params = optax.apply_updates(params, updates)
        return jc.safe_norm(params)

    loss = eqx.filter_jit(loss)
    exact = jax.grad(loss)(3.0)
    expected = finite_difference(loss, 3.0, 1e-3)
    np.testing.assert_allclose(exact, expected, rtol=1e-8)
    assert exact < 0
