"""The rules as functions of a norm, and where their thresholds come from."""

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
from helpers import (
    RULES,
    all_clips,
    all_rules,
    finite_difference,
    one_sided_difference,
)

# The formulas of the rules, as they are printed, with delta 0.2 in `DeltaClip`.
LITERAL = {
    "identity": lambda n, c: np.ones_like(n),
    "hard": lambda n, c: np.minimum(1, c / n),
    "soft": lambda n, c: c / (c + n),
    "root_soft": lambda n, c: c / np.sqrt(c**2 + n**2),
    "delta": lambda n, c: np.minimum(1, np.maximum(0.2, c / n)),
    "normalize": lambda n, c: 1 / (n + c),
    "redescending": lambda n, c: 1 / (1 + (n / c) ** 2),
    "skip": lambda n, c: np.where(n > c, 0.0, 1.0),
}
OURS = ["identity", "hard", "soft", "root_soft", "delta", "normalize"]
SATURATING = ["hard", "soft", "root_soft", "delta"]

NORMS = np.logspace(-6, 6, 61)


@pytest.mark.float32
@pytest.mark.parametrize("name", RULES)
def test_factor_is_the_formula(name):
    eps = jnp.finfo(jnp.result_type(float)).eps
    for threshold in (1e-3, 0.7, 40.0):
        factor = RULES[name](threshold).factor(jnp.asarray(NORMS), 0)
        expected = LITERAL[name](NORMS, threshold)
        assert factor.dtype == jnp.result_type(float)
        np.testing.assert_allclose(factor, expected, rtol=8 * eps, atol=0)


# XLA treats subnormal numbers as zero, and so they are left out.
@given(
    norm=st.floats(0, 1e150, allow_subnormal=False),
    threshold=st.floats(0, 1e150, allow_subnormal=False),
)
@hypothesis.settings(max_examples=30)
def test_a_clip_shortens_and_never_lengthens(norm, threshold):
    for name in SATURATING:
        factor = float(RULES[name](threshold).factor(norm, 0))
        assert 0 <= factor <= 1, name
    for rule in (jc.HardClip, jc.SoftClip, jc.RootSoftClip):
        length = norm * float(rule(threshold).factor(norm, 0))
        assert length <= threshold * (1 + 1e-15)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (jc.HardClip(6.5), (1.5, -2, 6)),
        (jc.SoftClip(6.5), (1, -1.333333, 4)),
        (jc.RootSoftClip(6.5), (1.341641, -1.788854, 5.366563)),
        (jc.DeltaClip(6.5, 0.1), (1.5, -2, 6)),
        (jc.DeltaClip(6.5, 0.9), (2.7, -3.6, 10.8)),
        (jc.DeltaClip(20.0, 0.1), (3, -4, 12)),
        (jc.DeltaClip(0.13, 0.05), (0.15, -0.2, 0.6)),
        (jc.Normalize(1.0), (3 / 14, -4 / 14, 12 / 14)),
    ],
)
def test_golden_vectors(clip, expected):
    gradient = jnp.array([3.0, -4.0, 12.0])
    clipped, _ = jc.as_transform(clip).update(gradient, None)
    np.testing.assert_allclose(clipped, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "gamma", "delta"),
    [(0.5, 6.5, 0.1), (0.9, 6.5, 0.9), (1.0, 20.0, 0.1), (0.05, 0.13, 0.05)],
)
def test_golden_delta_factors(factor, gamma, delta):
    assert jc.DeltaClip(gamma, delta).factor(13.0, 0) == pytest.approx(factor)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_golden_vectors_of_examples(reduce):
    # Per-example clipping at 1, and AUTO-S, which is `Normalize` at 0.01.
    rows = jnp.array([[3.0, 4.0], [0.0, 0.5], [6.0, 8.0]])
    for clip, total in [
        (jc.HardClip(1.0), (1.2, 2.1)),
        (jc.Normalize(0.01), (1.198203, 2.577996)),
        (jc.AutoS(), (1.198203, 2.577996)),
    ]:
        transform = jc.as_transform(clip, jc.PerExample(reduce))
        clipped, _ = transform.update(rows, transform.init(jnp.zeros(2)))
        expected = np.array(total) / (1 if reduce == "sum" else 3)
        np.testing.assert_allclose(clipped, expected, rtol=0, atol=1e-6)


# Each with its formula, as it is printed, and a parameter inside the grid of norms.
WITHOUT_THRESHOLD = {
    "auto_s": (jc.AutoS, lambda n, r: 1 / (n + r)),
    "psac": (jc.PSAC, lambda n, r: 1 / (n + r / (n + r))),
    "skip": (jc.SkipClip, lambda n, c: np.where(n <= c, 1.0, 0.0)),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", WITHOUT_THRESHOLD)
def test_rules_of_one_parameter(name):
    rule, literal = WITHOUT_THRESHOLD[name]
    eps = jnp.finfo(jnp.result_type(float)).eps
    norms = np.array([0.0, 1e-3, 0.05, 0.7, 0.70001, 3.0, 1e4])
    for parameter in (0.01, 0.7):
        factor = rule(parameter).factor(jnp.asarray(norms), 0)
        np.testing.assert_allclose(factor, literal(norms, parameter), rtol=8 * eps)
    assert rule(optax.constant_schedule(0.5)).factor(0.2, 3) == pytest.approx(
        literal(0.2, 0.5), rel=1e-6
    )
    # At the corners neither value nor derivative is NaN.
    both = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda n, r: rule(r).factor(n, 0), (0, 1)), (0, None)
        )
    )
    for parameter in (0.0, 0.1):
        # Without a constant the slope of `PSAC` is 1 / n^3, too large at a small norm.
        small = 1e-30 if parameter else 1e-9
        norms = jnp.array([0.0, small, 1.0, 1e30])
        value, slopes = both(norms, jnp.asarray(parameter))
        assert jnp.all(jnp.isfinite(value))
        for slope in slopes:
            assert not jnp.any(jnp.isnan(slope))
    with pytest.raises(ValueError, match=r"`(stability|threshold)`.*non-negative"):
        rule(-1.0)


def test_derivatives_of_rules_of_one_parameter():
    norms = jnp.array([0.0, 0.05, 0.7, 3.0])
    for rule in (jc.AutoS, jc.PSAC):
        factor = jax.jit(lambda n, r, rule=rule: rule(r).factor(n, 0))
        slope = jax.jacfwd(factor, 1)(norms, 0.2)
        expected = finite_difference(partial(factor, norms), 0.2, 1e-4)
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-14)
        slope = jax.vmap(jax.grad(factor), (0, None))(norms[1:], 0.2)
        expected = finite_difference(lambda n, f=factor: f(n, 0.2), norms[1:], 1e-4)
        np.testing.assert_allclose(slope, expected, rtol=1e-5)
    assert jc.SkipClip(0.7).kinks(0) == (0.7,)
    assert jc.PSAC().kinks(0) == jc.AutoS().kinks(0) == ()


@all_clips
def test_factor_is_smooth_but_at_the_declared_kinks(clip):
    # Even points, of which none comes closer than 0.01 to a kink.
    norms = np.arange(0.105, 9, 0.05)
    kinks = np.array([float(kink) for kink in clip.kinks(0)])
    kinks = kinks[np.isfinite(kinks)]
    if len(kinks):
        norms = norms[np.min(np.abs(norms[:, None] - kinks), axis=1) > 0.01]
    factor = jax.jit(jax.vmap(lambda n: clip.factor(n, 0)))
    slope = jax.jit(jax.vmap(jax.grad(lambda n: clip.factor(n, 0))))(norms)
    for side in (-1e-5, 1e-5):
        one_sided = one_sided_difference(factor, norms, side)
        np.testing.assert_allclose(one_sided, slope, rtol=0, atol=1e-7)

    # And there is a kink, or a jump, at each of those that are declared.
    for kink in kinks:
        beside = kink + np.array([-1e-5, 1e-5])
        slopes = one_sided_difference(factor, beside, beside - kink)
        assert max(abs(np.diff(slopes)), abs(np.diff(factor(beside)))) > 0.01


def test_kinks_are_where_they_are_said_to_be():
    assert jc.HardClip(0.7).kinks(0) == (0.7,)
    clip = jc.DeltaClip(optax.linear_schedule(1.0, 3.0, 10), 0.25)
    np.testing.assert_allclose(clip.kinks(5), (2.0, 8.0))
    # Without a floor only the first is left, and the second is out of the way.
    np.testing.assert_allclose(jc.DeltaClip(1.0, 0.0).kinks(0), (1.0, np.inf))
    for clip in (jc.Identity(), jc.SoftClip(1.0), jc.RootSoftClip(1.0)):
        assert clip.kinks(0) == ()


@all_rules
def test_derivative_in_the_threshold(rule):
    norms = jnp.array([0.0, 0.3, 0.69, 0.71, 2.0, 3.4, 3.6, 50.0])

    @jax.jit
    def factor(c):
        return rule(c).factor(norms, 0)

    exact = jax.jit(jax.jacfwd(factor))(jnp.asarray(0.7))
    backward = jax.jit(jax.jacrev(factor))(jnp.asarray(0.7))
    expected = finite_difference(factor, jnp.asarray(0.7), 1e-3)
    np.testing.assert_allclose(exact, expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(exact, backward, rtol=1e-14, atol=1e-14)


def test_derivative_in_delta_is_one_where_the_floor_is_active():
    norms = jnp.array([0.5, 2.0, 30.0])
    slope = jax.jacfwd(lambda delta: jc.DeltaClip(1.0, delta).factor(norms, 0))(0.1)
    np.testing.assert_array_equal(slope, [0, 0, 1])


def test_a_tie_is_the_inactive_side():
    one = jnp.asarray(1.0)
    for rule in (jc.HardClip, lambda c: jc.DeltaClip(c, 0.2)):
        for argument in (0, 1):
            slope = jax.grad(lambda n, c, rule=rule: rule(c).factor(n, 0), argument)
            assert slope(one, one) == 0
    # Where the floor meets the hard clip, the hard clip is.
    slope = jax.grad(lambda n: jc.DeltaClip(1.0, 0.25).factor(n, 0))
    assert slope(jnp.asarray(4.0)) == -1 / 16


@pytest.mark.float32
@pytest.mark.parametrize("name", OURS)
def test_corners_are_not_nan(name):
    corners = [0.0, 1e-30, 1.0, 1e30]
    thresholds = [0.0, 1e-30, 1.0, 1e30]
    thresholds += [jnp.inf] if name in SATURATING else []
    norms, thresholds = jnp.meshgrid(jnp.array(corners), jnp.array(thresholds))

    def factor(n, c):
        return RULES[name](c).factor(n, 0)

    value = jax.jit(jax.vmap(jax.value_and_grad(factor, argnums=(0, 1))))
    values, slopes = value(norms.ravel(), thresholds.ravel())
    assert jnp.all(jnp.isfinite(values))
    # Some derivatives are as large as 1 / threshold^2, and overflow.
    for slope in slopes:
        assert not jnp.any(jnp.isnan(slope))


@pytest.mark.parametrize("name", SATURATING)
def test_an_infinite_threshold_is_the_identity(name):
    factor = jax.value_and_grad(lambda n, c: RULES[name](c).factor(n, 0), (0, 1))
    factor = jax.jit(factor)
    for norm in (0.0, 1.0, 1e200):
        value, slopes = factor(norm, jnp.inf)
        assert (value, *slopes) == (1, 0, 0)


@pytest.mark.float32
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_factor_keeps_the_precision_of_the_norm(name, dtype):
    norms = np.array([0.0, 0.25, 0.75, 3.0, 100.0])
    # Whatever the precision of the threshold.
    for threshold in (0.5, jnp.asarray(0.5), jnp.asarray(0.5, jnp.float32)):
        clip = RULES[name](threshold)
        factor = clip.factor(jnp.asarray(norms, dtype), 0)
        exact = clip.factor(jnp.asarray(norms), 0)
        assert factor.dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(factor.astype(exact.dtype), exact, rtol=4 * eps)


@pytest.mark.float32
@pytest.mark.parametrize("name", OURS)
def test_norms_may_be_numbers(name):
    clip = RULES[name](0.5)
    for norm in (3, 3.0, np.float32(3), np.array(3.0)):
        assert clip.factor(norm, 0) == pytest.approx(LITERAL[name](3.0, 0.5), rel=1e-6)


# Where thresholds come from


@pytest.mark.float32
@pytest.mark.parametrize(
    "threshold",
    [
        2,
        2.0,
        np.float64(2),
        np.array(2),
        jnp.array(2),
        jnp.array(2.0),
        jnp.array(2.0, jnp.bfloat16),
        jc.Constant(2.0),
        optax.constant_schedule(2.0),
        optax.linear_schedule(1.0, 3.0, 10),
        lambda step: 1 + step / 5,
        lambda step: 2,
        jc.PiecewiseLinear(np.array([0, 10]), np.array([1.0, 4.0])),
        jc.PiecewiseLinear(3, 2.0),
    ],
)
def test_thresholds_of_every_kind(threshold):
    clips = jc.HardClip(threshold), jc.DeltaClip(threshold, 0.2)
    factors = jax.jit(lambda n, k: [clip.factor(n, k) for clip in clips])
    for step in (5, 5.0, jnp.array(5), jnp.array(5, jnp.int32)):
        for clip, factor in zip(clips, factors(8.0, step), strict=True):
            assert factor == pytest.approx(0.25, rel=1e-6)
            assert clip.kinks(step)[0] == pytest.approx(2.0, rel=1e-6)


def test_numbers_are_leaves_and_functions_are_structure():
    assert jax.tree.leaves(jc.DeltaClip(2.0, 0.1)) == [2.0, 0.1]
    assert jax.tree.leaves(jc.HardClip(optax.constant_schedule(1.0))) == []
    assert (
        len(
            jax.tree.leaves(
                jc.HardClip(jc.PiecewiseLinear(np.array([0, 9]), np.array([1, 2])))
            )
        )
        == 2
    )
    # So that a rule is the argument of a gradient, in the rule's own form.
    gradient = jax.grad(lambda clip: clip.factor(4.0, 0))(jc.HardClip(2.0))
    assert isinstance(gradient, jc.HardClip)
    assert gradient.threshold.value == 0.25


def test_a_grid_of_thresholds_is_a_vmap():
    thresholds = jnp.array([0.5, 1.0, 2.0])
    factors = jax.vmap(lambda c: jc.HardClip(c).factor(4.0, 0))(thresholds)
    np.testing.assert_array_equal(factors, thresholds / 4)
    clips = jax.vmap(jc.HardClip)(thresholds)
    factors = jax.vmap(lambda clip: clip.factor(4.0, 0))(clips)
    np.testing.assert_array_equal(factors, thresholds / 4)


@pytest.mark.parametrize("name", ["hard", "soft", "root_soft", "normalize"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-1.0, "non-negative"),
        (-1, "non-negative"),
        (np.nan, "NaN"),
        (-np.inf, "non-negative"),
        (jnp.array([1.0, -2.0]), "non-negative"),
        ("1.0", "must be a number"),
        (None, "must be a number"),
        (1j, "must be real"),
        (True, "must be real"),
        ([1.0, "x"], "must be a number"),
    ],
)
def test_bad_thresholds_are_refused_by_name(name, bad, message):
    field = "eps" if name == "normalize" else "threshold"
    with pytest.raises(ValueError, match=f"`{field}`.*{message}"):
        RULES[name](bad)


def test_a_schedule_must_return_a_number():
    with pytest.raises(ValueError, match=r"`threshold` must be a number.*None"):
        jc.HardClip(lambda step: None).factor(1.0, 0)


def test_bad_delta_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`delta`.*non-negative"):
        jc.DeltaClip(1.0, -0.1)
    with pytest.raises(ValueError, match=r"`threshold`.*non-negative"):
        jc.DeltaClip(-1.0, 0.1)


@pytest.mark.parametrize("bad", [-0.5, jnp.nan])
def test_a_bad_traced_threshold(bad):
    """In a training step, which may hold no callback, it is seen: all is NaN. A verb
    refuses it when it runs."""
    factor = eqx.filter_jit(lambda c: jc.HardClip(c).factor(1.0, 0))
    assert factor(jnp.asarray(0.5)) == 0.5
    assert jnp.isnan(factor(jnp.asarray(bad)))
    noise = jc.Gaussian(1.0)
    moments = eqx.filter_jit(lambda c: jc.moments(jc.HardClip(c), noise, 1.0, 1.0).mu)
    assert jnp.isfinite(moments(jnp.asarray(0.5)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`clip` holds a number"):
        moments(jnp.asarray(bad))


def test_a_rule_must_have_both_methods():
    class Half(jc.AbstractClip):
        def factor(self, norm, step):
            return 1 / (1 + norm)

    with pytest.raises(TypeError, match="abstract"):
        Half()


# Schedules


def test_piecewise_linear_interpolates_the_logarithm():
    knots, values = np.array([2.0, 5.0, 11.0]), np.array([4.0, 0.5, 3.0])
    schedule = jc.PiecewiseLinear(knots, values)
    steps = np.linspace(-3, 15, 37)
    expected = np.exp(np.interp(steps, knots, np.log(values)))
    for at in (schedule.__call__, eqx.filter_jit(schedule)):
        np.testing.assert_allclose(jax.vmap(at)(steps), expected, rtol=1e-14)
    np.testing.assert_allclose(schedule.values, values, rtol=1e-15)
    np.testing.assert_allclose([schedule(-3.0), schedule(100)], [4, 3], rtol=1e-15)
    # A geometric mean half-way, which a linear interpolation would not give.
    assert schedule(3.5) == pytest.approx(np.sqrt(2))


def test_piecewise_linear_moves_its_values_and_not_its_knots():
    schedule = jc.PiecewiseLinear(np.array([2, 5, 11]), np.array([4.0, 0.5, 3.0]))
    for step in (0.0, 3.0, 5.0, 9.0, 20.0):
        gradient = jax.grad(lambda s, step=step: s(step))(schedule)
        np.testing.assert_array_equal(gradient.knots, 0)

        def value(log_values, step=step):
            at = eqx.tree_at(lambda s: s.log_values, schedule, log_values)
            return at(step)

        for i in range(3):
            along = jnp.zeros(3).at[i].set(1.0)
            expected = finite_difference(
                lambda x, along=along: value(schedule.log_values + x * along), 0.0, 1e-3
            )
            np.testing.assert_allclose(gradient.log_values[i], expected, atol=1e-9)


def test_one_knot_is_a_positive_constant():
    schedule = jc.PiecewiseLinear(7, 0.3)
    assert schedule.log_values.shape == (1,)
    for step in (0, 7, 1000):
        assert schedule(step) == pytest.approx(0.3)


def test_a_stack_of_schedules_is_a_vmap():
    values = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    at = jax.vmap(lambda v: jc.PiecewiseLinear(np.array([0, 10]), v)(5))(values)
    np.testing.assert_allclose(at, np.sqrt([2.0, 15.0]))


@pytest.mark.parametrize(
    ("knots", "values", "message"),
    [
        ([0, 1], [1.0], "same length"),
        ([[0, 1]], [[1.0, 2.0]], "same length"),
        ([0, 0], [1.0, 2.0], "strictly increasing"),
        ([1, 0], [1.0, 2.0], "strictly increasing"),
        ([0, np.nan], [1.0, 2.0], "strictly increasing"),
        ([0, 1], [1.0, 0.0], "positive and finite"),
        ([0, 1], [1.0, -2.0], "positive and finite"),
        ([0, 1], [1.0, np.inf], "positive and finite"),
        ([0, 1], [np.nan, 1.0], "positive and finite"),
    ],
)
def test_bad_schedules_are_refused(knots, values, message):
    with pytest.raises(ValueError, match=message):
        jc.PiecewiseLinear(np.array(knots), np.array(values))


def test_bad_traced_schedules_are_refused_when_they_run():
    value = eqx.filter_jit(lambda knots, values: jc.PiecewiseLinear(knots, values)(0.5))
    knots = jnp.array([0.0, 1.0])
    assert value(knots, jnp.ones(2)) == 1
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive and finite"):
        value(knots, -jnp.ones(2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="strictly increasing"):
        value(knots[::-1], jnp.ones(2))
