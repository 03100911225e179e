"""What every member of a family does, and that every public one is a known member.

The properties are those that the abstract class asks of an author; each is tested here
against something that does not know the class: quadrature of another library, finite
differences, Monte Carlo.
"""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

import jaxclip as jc
from helpers import assert_within, mean_and_error
from registry import (
    ENGINES,
    FAMILIES,
    INJECTIONS,
    LIMITS,
    LOSSES,
    NOISES,
    POLICIES,
    PROBLEMS,
    RULES,
    SCOPES,
    VARIANTS,
    public_classes,
)

NORMS = np.geomspace(1e-2, 1e2, 400)


# Nothing is missing


@pytest.mark.parametrize("base", FAMILIES, ids=lambda base: base.__name__)
def test_every_public_class_is_in_the_registry(base):
    found = {
        value.__name__
        for value in public_classes()
        if issubclass(value, base) and not inspect.isabstract(value)
    }
    assert found == set(FAMILIES[base]), "tests/registry.py lists others"


@pytest.mark.parametrize("base", FAMILIES, ids=lambda base: base.__name__)
def test_a_name_is_that_of_its_class(base):
    for name, value in FAMILIES[base].items():
        value = value[0] if isinstance(value, tuple) else value
        value = getattr(value, "injection", value) if name in INJECTIONS else value
        assert type(value).__name__ == name


def test_a_new_class_would_be_missed(monkeypatch):
    """The first test of this file can fail."""

    class Forgotten(jc.HardClip):
        pass

    monkeypatch.setattr(jc.clip, "Forgotten", Forgotten, raising=False)
    with pytest.raises(AssertionError, match="Forgotten"):
        test_every_public_class_is_in_the_registry(jc.AbstractClip)


def _gauss(edges):
    """Nodes and weights of a quadrature between the edges."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * nodes).ravel(), (half * weights).ravel()


# Rules


@pytest.mark.float32
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_finite_at_every_norm(name):
    for dtype in (jnp.result_type(float), jnp.bfloat16):
        top = float(jnp.finfo(dtype).max) ** 0.9
        norms = jnp.array([0.0, 1e-30, 1e-6, 1.0, 1e6, top], dtype)
        factor = RULES[name].factor(norms, 0)
        assert factor.dtype == dtype
        assert jnp.all(jnp.isfinite(factor)) and jnp.all(factor >= 0)


def _beside_kinks(rule, norms, h):
    kinks = np.array([float(kink) for kink in rule.kinks(0)])
    return np.all(np.abs(norms[:, None] / kinks[None, :] - 1) > 3 * h, axis=1)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_lists_its_kinks(name):
    """A kink that is not listed makes a second difference of order 1/h."""
    rule, h = RULES[name], 1e-4
    norms = NORMS[_beside_kinks(rule, NORMS, h)]
    psi = [n * np.asarray(rule.factor(jnp.asarray(n), 0)) for n in
           (norms * (1 - h), norms, norms * (1 + h))]  # fmt: skip
    bend = np.abs(psi[0] - 2 * psi[1] + psi[2]) / (np.abs(psi[1]) + 1e-9) / h**2
    assert np.max(bend) < 0.05 / h


def test_a_kink_that_is_not_listed_is_seen(monkeypatch):
    monkeypatch.setitem(RULES, "HardClip", jc.HardClip(NORMS[200]))
    monkeypatch.setattr(jc.HardClip, "kinks", lambda self, step: ())
    with pytest.raises(AssertionError):
        test_a_rule_lists_its_kinks("HardClip")


@pytest.mark.parametrize("name", RULES)
def test_a_rule_with_a_number_that_is_none(name):
    """It would otherwise clip nothing, or everything, in silence."""
    leaves, structure = jax.tree.flatten(RULES[name])
    for i, leaf in enumerate(leaves):
        bad = structure.unflatten(
            [*leaves[:i], jnp.full_like(leaf, jnp.nan), *leaves[i + 1 :]]
        )
        factor = eqx.filter_jit(bad.factor)(jnp.array([1e-3, 1.0, 1e3]), 0)
        assert jnp.all(jnp.isnan(factor))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_the_derivative_of_its_factor(name):
    rule, h = RULES[name], 1e-4
    norms = NORMS[_beside_kinks(rule, NORMS, h)]
    slope = jax.vmap(jax.grad(lambda n: rule.factor(n, 0)))(jnp.asarray(norms))
    up, down = (np.asarray(rule.factor(jnp.asarray(norms * f), 0)) for f in
                (1 + h, 1 - h))  # fmt: skip
    expected = (up - down) / (2 * h * norms)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", RULES)
def test_a_transform_multiplies_by_the_factor(name):
    rule, gradient = RULES[name], {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    transform = jc.as_transform(rule)
    clipped, _ = transform.update(gradient, transform.init(gradient))
    factor = rule.factor(jnp.sqrt(5.25), 0)
    for key, leaf in gradient.items():
        np.testing.assert_allclose(clipped[key], factor * leaf, rtol=1e-12)


# The score of a law is long to compile, and is held against it in the criteria's tests.
_LONG = {"ScoreClip": pytest.mark.slow}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=_LONG.get(name, ())) for name in RULES]
)
def test_a_rule_has_the_moments_of_a_quadrature(name):
    """On a normal residual, where Stein's identity gives the mean slope."""
    rule, norm, risk, std = RULES[name], 1.3, 0.4, 0.6
    width = np.sqrt(2 * risk + std**2)
    # A quadrature must stop at the kinks, and be fine where a rule varies.
    kinks = [float(kink) / norm for kink in rule.kinks(0)]
    fine = np.concatenate([[0], np.geomspace(1e-4, 9 * width, 60)])
    w, weight = _gauss(np.unique([*fine, *(k for k in kinks if 0 < k < 9 * width)]))
    psi = w * np.asarray(eqx.filter_jit(rule.factor)(jnp.asarray(norm * w), 0))
    weight = 2 * weight * scipy.stats.norm.pdf(w, scale=width)
    slope, square = np.sum(weight * w * psi) / width**2, np.sum(weight * psi**2)
    found = jc.moments(rule, jc.Gaussian(std), risk, norm)
    np.testing.assert_allclose(found.mu, slope, rtol=1e-7)
    np.testing.assert_allclose(found.second, square, rtol=1e-7)


# Noises


_SIGNAL, _LENGTHS, _SIDES = 0.3, (0.3, 1.0, 3.0), ((-1.0, -0.6), (0.6, 1.0))


@functools.cache
def _seen_of_a_noise(name):
    """Samples of the noise and of a residual; how often that is within some lengths by
    its law, its density on two sides, with weights, and its mass and square. By one
    program for the tests below."""
    size = 40_000
    at, weight = zip(*(_gauss(np.linspace(*side, 9)) for side in _SIDES), strict=True)

    @eqx.filter_jit
    def everything(noise, key):
        own, other = jr.split(key)
        sample = noise.sample(own, (size,))
        law = noise.residual(_SIGNAL)
        below = [
            law.expect(lambda w, c=c: jnp.where(w < c, 1.0, 0.0), (c,))
            for c in _LENGTHS
        ]
        density = jnp.exp(jax.vmap(law.log_density)(jnp.asarray(at).ravel()))
        moments = law.expect(jnp.ones_like), law.expect(lambda w: w**2)
        w = np.sqrt(_SIGNAL) * jr.normal(other, (size,)) - sample
        return sample, w, below, density.reshape(2, -1), moments

    sample, w, below, density, moments = everything(NOISES[name], jr.key(3))
    return sample, w, below, np.sum(density * np.stack(weight), axis=1), moments


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_draws_what_its_law_says(name):
    """How often a residual is within some lengths, by the law and by sampling; the
    signs too, by the law of a shifted residual's density."""
    _, w, below, beside, _ = _seen_of_a_noise(name)
    for length, expected in zip(_LENGTHS, below, strict=True):
        mean, error = mean_and_error(np.abs(w) < length)
        assert_within(mean, error, float(expected))
    for (low, high), expected in zip(_SIDES, beside, strict=True):
        mean, error = mean_and_error((w > low) & (w < high))
        assert_within(mean, error, float(expected))


@pytest.mark.parametrize("name", NOISES)
def test_the_moments_of_a_noise(name):
    noise, (sample, *_, moments) = NOISES[name], _seen_of_a_noise(name)
    one, square = moments
    np.testing.assert_allclose(one, 1.0, rtol=1e-9)
    if jnp.isfinite(noise.variance) and name != "StudentT":
        np.testing.assert_allclose(square, _SIGNAL + noise.variance, rtol=1e-8)
    if name != "Cauchy":
        mean, error = mean_and_error(sample)
        assert_within(mean, error, 0.0)


# Losses


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_convex_with_the_slope_of_its_value(name):
    loss, y = LOSSES[name], jnp.asarray(1.0)
    p = np.linspace(-3.03, 4.04, 41)
    value = jax.vmap(lambda p: loss.value(p, y))
    slope = np.asarray(jax.vmap(lambda p: loss.slope(p, y))(jnp.asarray(p)))
    h = 1e-5
    expected = (np.asarray(value(p + h)) - np.asarray(value(p - h))) / (2 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8)
    assert np.all(np.diff(slope) >= -1e-12)
    smooth = loss.smoothed(1e-3)
    near = np.asarray(jax.vmap(lambda p: smooth.value(p, y))(jnp.asarray(p)))
    np.testing.assert_allclose(near, value(p), atol=1.001e-3)


# Scopes


_UPDATES = {"w": jnp.array([[3.0, -1.0], [0.2, 0.4], [0.0, 2.0]]), "b": jnp.ones(3)}
_PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.full(3, 0.5)}


def _apply(scope, clip):
    updates, params = _UPDATES, _PARAMS
    transform = jc.as_transform(clip, scope)
    return transform.update(updates, transform.init(params), params)[0]


@pytest.mark.float32
@pytest.mark.parametrize("name", SCOPES)
def test_a_scope_leaves_alone_what_is_not_clipped(name):
    mean = (lambda x: jnp.mean(x, axis=0)) if SCOPES[name].examples else (lambda x: x)
    left = _apply(SCOPES[name], jc.Identity())
    for key, leaf in _UPDATES.items():
        np.testing.assert_allclose(left[key], mean(leaf), rtol=1e-6)


@pytest.mark.float32
@pytest.mark.parametrize("name", [n for n in SCOPES if not SCOPES[n].examples])
def test_no_part_of_a_scope_is_longer_than_the_threshold(name):
    scope, threshold = SCOPES[name], 0.3
    clipped = _apply(scope, jc.HardClip(threshold))
    before = jax.tree.leaves(scope.norms(_UPDATES, _PARAMS))
    after = jax.tree.leaves(scope.norms(clipped, _PARAMS))
    assert any(jnp.any(norm > threshold) for norm in before)
    for long, short in zip(before, after, strict=True):
        np.testing.assert_allclose(short, jnp.minimum(long, threshold), rtol=1e-5)
    # It shortens and does not turn: each number keeps its sign.
    for key, leaf in _UPDATES.items():
        assert jnp.all(clipped[key] * leaf >= 0)


def test_a_scope_over_examples_clips_each():
    clipped = _apply(SCOPES["PerExample"], jc.HardClip(0.3))
    rows = np.concatenate([_UPDATES["w"], _UPDATES["b"][:, None]], axis=1)
    rows *= np.minimum(1, 0.3 / np.linalg.norm(rows, axis=1, keepdims=True))
    np.testing.assert_allclose(clipped["w"], rows[:, :2].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(clipped["b"], rows[:, 2].mean(), rtol=1e-12)


# Policies


@pytest.mark.float32
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_keeps_its_state_and_its_precision(name):
    # By a rule that only shortens, whatever the policy's own is.
    transform = jc.as_transform(jc.Adaptive(POLICIES[name], jc.HardClip))
    update = jax.jit(transform.update)
    for dtype in (jnp.result_type(float), jnp.bfloat16):
        gradient = {"w": jnp.array([3.0, 4.0], dtype)}
        state = transform.init(gradient)
        for scale in (1.0, 0.2, 30.0, 0.0, 1.0):
            scaled = {"w": gradient["w"] * jnp.asarray(scale, dtype)}
            clipped, new = update(scaled, state)
            assert clipped["w"].dtype == dtype
            assert jnp.all(jnp.abs(clipped["w"]) <= jnp.abs(scaled["w"]) * 1.01)
            same = jax.tree.map(lambda a, b: a.dtype == b.dtype, new, state)
            assert jax.tree.all(same)
            state = new
        # What is not finite leaves the memory alone.
        bad = {"w": gradient["w"] * jnp.asarray(np.nan, dtype)}
        memory = update(bad, state)[1].policies
        same = jax.tree.map(lambda a, b: jnp.array_equal(a, b), memory, state.policies)
        assert jax.tree.all(same)


# Problems

# The gradients of these are not those of the risk, by their definition: noise adds a
# regularizer to it, the loss is another one, or it is counted from another point.
_OTHER = {"NoisyLoss"}


@pytest.mark.parametrize("name", [*PROBLEMS, *INJECTIONS])
def test_an_example_hangs_on_its_index_alone(name):
    problem = (PROBLEMS | INJECTIONS)[name].in_batches(1)
    stream = problem.stream(jr.key(5))
    together = eqx.filter_jit(eqx.filter_vmap(problem.example, in_axes=(None, 0)))(
        stream, jnp.arange(6)
    )
    alone = eqx.filter_jit(problem.example)(stream, jnp.asarray(4))
    for one, all_of_them in zip(*map(jax.tree.leaves, (alone, together)), strict=True):
        np.testing.assert_array_equal(one, all_of_them[4])
    start = problem.init()
    gradient = eqx.filter_jit(problem.gradient)(start, alone)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (gradient, start)]
    assert shapes[0] == shapes[1]
    risk = eqx.filter_jit(problem.risk)(start)
    assert risk.shape == () and risk >= 0


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in _OTHER])
def test_gradients_are_those_of_the_risk_on_average(name):
    problem, size = PROBLEMS[name].in_batches(1), 4000
    params = jax.tree.map(lambda x: x + 0.1, problem.init())
    stream = problem.stream(jr.key(6))

    @jax.jit
    def everything(params):
        examples = jax.vmap(problem.example, (None, 0))(stream, jnp.arange(size))
        each = jax.vmap(problem.gradient, (None, 0))(params, examples)
        return each, jax.grad(problem.risk)(params)

    each, expected = map(np.asarray, everything(params))
    mean, error = mean_and_error(each)
    # Half of the examples of `Repeated` are others' again.
    wide = np.sqrt(2) if name == "Repeated" else 1
    assert_within(mean, wide * error + 1e-9 * np.abs(expected), expected, k=4.5)


@pytest.mark.parametrize("name", INJECTIONS)
def test_noise_is_of_its_variance_and_enters_where_it_is_said(name):
    problem, size = INJECTIONS[name], 4000
    fit, injection = problem.fit, problem.injection
    draws = jax.vmap(lambda key: injection.draw(fit, key))(jr.split(jr.key(8), size))
    assert draws.shape[1:] == injection.shape(fit)
    square = np.asarray(draws).reshape(size, -1) ** 2
    mean, error = mean_and_error(square)
    assert_within(mean, error + 1e-12, float(injection.variance(fit)))
    # The model fits the data: without noise there is neither loss nor slope.
    silence = jnp.zeros(injection.shape(fit))
    params = problem.init()
    assert float(injection.loss(fit, params, silence)) == pytest.approx(0, abs=1e-20)
    np.testing.assert_allclose(injection.residuals(fit, params), 0, atol=1e-12)


# Limits and engines


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_starts_at_the_start_and_ends_where_it_says(name):
    limit, problem = LIMITS[name]
    steps, lr = jnp.array([0.0, 3.5, 40.0]), 0.02

    def run(lr):
        how = dict(steps=steps, limit=limit, key=jr.key(9))
        return jc.solve(problem, jc.Identity(), lr, **how)

    curve = jax.jit(run)(lr)
    np.testing.assert_array_equal(curve.step, steps)
    start = problem.risk(problem.init())
    np.testing.assert_allclose(curve.risk[0], start, rtol=1e-9, atol=1e-12)
    assert jnp.all(jnp.isfinite(curve.risk)) and jnp.all(curve.risk >= 0)
    if curve.params is not None:
        end = problem.risk(curve.params)
        np.testing.assert_allclose(end, curve.risk[-1], rtol=1e-6, atol=1e-12)
    if curve.path is not None:
        np.testing.assert_array_equal(curve.path[-1], curve.params)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_records_the_run_that_it_makes(name):
    """From where the start is, at every step asked for, in the mean as the ODE says."""
    dim = 400
    spectrum = jc.Spectrum.isotropic(dim)
    problem = jc.LinearModel(spectrum, jc.Laplace(0.5), [1.0])
    clip, lr = jc.HardClip(spectrum.feature_norm), 0.5 / dim

    def run(key):
        how = dict(steps=200, every=50, key=key, engine=ENGINES[name])
        return jc.simulate(problem, clip, lr, **how)

    curves = jax.jit(jax.vmap(run))(jr.split(jr.key(10), 32))
    np.testing.assert_array_equal(curves.step[0], [0, 50, 100, 150, 200])
    np.testing.assert_allclose(curves.risk[:, 0], 0.5, rtol=1e-12)
    mean, error = mean_and_error(curves.risk)
    ode = jc.solve(problem, clip, lr, steps=curves.step[0]).risk
    # The mean is off by a term of one over the dimension.
    assert_within(mean[1:], error[1:] + np.asarray(ode[1:]) / dim, ode[1:], power=0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_spider_anchors_at_the_first_step(name):
    variant = VARIANTS[name]
    anchors = [bool(variant.anchors(jnp.asarray(step))) for step in range(40)]
    assert anchors[0] and not all(anchors) and sum(anchors) > 2
    traced = jax.vmap(variant.anchors)(jnp.arange(40))
    np.testing.assert_array_equal(traced, anchors)
