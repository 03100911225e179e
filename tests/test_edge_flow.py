"""The edge of stability with a clip: the flow of the centre and of the oscillation."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import finite_difference

FLOW = jc.EdgeFlow(seed=0.0)
SLOPE = 0.02


def bowl(x):
    """An isotropic well of curvature 1, whose slope is at most 1."""
    return jnp.sqrt(1 + jnp.sum(x**2)) - 1


def valley(x):
    """Of curvature `1 + x[0]` across, and a slope along it."""
    return (1 + x[0]) * x[1] ** 2 / 2 - SLOPE * x[0]


def parabolas(x):
    """Three of them."""
    return jnp.sum(jnp.array([0.4, 1.9, 2.1]) * x**2) / 2


def flow(function, start, clip, lr, steps, limit=FLOW, **how):
    problem = jc.Landscape(function, jnp.asarray(start))
    steps = jnp.asarray(steps, float)
    return jc.solve(problem, clip, lr, steps=steps, limit=limit, **how)


def run(function, start, clip, lr, steps, **how):
    """The parameters at every step."""
    problem = jc.Landscape(function, jnp.asarray(start))
    return jc.simulate(
        problem, clip, lr, steps=steps, key=jr.key(0), observe=lambda x: x, **how
    )


# Closed forms


@pytest.mark.parametrize("order", [1, 2])
def test_on_a_parabola_both_parts_are_exponentials(order):
    """The velocities of the centre and of the oscillation are `v` times themselves, or
    of second order the series of `log(1 + v)`. At a rate of 1."""
    x0, k = np.array([1.0, -0.5, 0.3]), np.array([0.0, 1.0, 7.0])
    curve = flow(
        parabolas, x0, jc.Identity(), 1.0, k, jc.EdgeFlow(0.0, order, rtol=1e-10)
    )
    z = np.array([0.4, 1.9, 2.1])
    # The second difference of x0, (1 - z) x0 and (1 - z)^2 x0, over 4.
    d0 = z**2 / 4 * x0
    for part, start, v in (
        (curve.path, x0 - d0, -z),
        (curve.observed.vector, d0, z - 2),
    ):
        v = v if order == 1 else v - v**2 / 2 + v**3 / 3
        expected = start * np.exp(v * k[:, None])
        np.testing.assert_allclose(part, expected, rtol=1e-8, atol=1e-12)
    points = [curve.path + sign * curve.observed.vector for sign in (1, -1)]
    risk = np.mean([jax.vmap(parabolas)(x) for x in points], axis=0)
    np.testing.assert_allclose(curve.risk[1:], risk[1:], rtol=1e-12)
    assert curve.risk[0] == pytest.approx(float(parabolas(x0)), rel=1e-12)


def end_of_bowl(lr, threshold):
    """The oscillation on the line after many steps, and the mean factor."""
    limit = jc.EdgeFlow(order=1)
    curve = flow(bowl, [2.0], jc.HardClip(threshold), lr, [0.0, 400.0], limit)
    return curve.params[0], curve.observed.vector[-1, 0], curve.observed.factor[-1]


def test_a_cycle_of_two_points_is_found_exactly():
    """Descent on the bowl ends in x, -x with `lr f(s) s = 2 x` of the slope
    `s = x / sqrt(1 + x^2)`: `x = sqrt(lr^2 / 4 - 1)`, or half the longest step."""
    lrs, thresholds = jnp.array([2.5, 4.0]), jnp.array([0.2, 0.5, np.inf])
    over_thresholds = jax.vmap(end_of_bowl, (None, 0))
    ends = jax.jit(jax.vmap(over_thresholds, (0, None)))(lrs, thresholds)
    centre, apart, factor = map(np.asarray, ends)
    lrs, thresholds = np.asarray(lrs)[:, None], np.asarray(thresholds)[None]
    free, held = np.sqrt(np.square(lrs) / 4 - 1), lrs * thresholds / 2
    slope = free / np.sqrt(1 + free**2)
    expected = np.where(slope > thresholds, held, free)
    assert 0 < np.sum(slope > thresholds) < slope.size * 3, "clipped, and not"
    np.testing.assert_allclose(np.abs(apart), expected, rtol=2e-4)
    # Between two points that are both clipped the centre is held by nothing.
    np.testing.assert_allclose(np.where(slope > thresholds, 0, centre), 0, atol=1e-4)
    assert np.abs(centre).max() < 0.1
    # The slope of the secant in place of the sharpness.
    secant = 1 / np.sqrt(1 + apart**2)
    np.testing.assert_allclose(lrs * factor * secant, 2, rtol=3e-3)


@pytest.mark.parametrize(
    ("nesterov", "edge", "clipped"), [(False, 3.0, True), (True, 1.5, False)]
)
def test_momentum_moves_the_edge(nesterov, edge, clipped):
    """To 2 (1 + beta) over the rate, and with Nesterov's to 2 (1 + beta) / (1 + 2 beta)
    over it: the cycle in the bowl has that slope over its distance, less what decay
    adds to it."""
    lr, rate, beta = 7.0, 0.02, 0.5
    update = {
        "momentum": jc.algorithm.Momentum(beta, nesterov=nesterov),
        "weight_decay": jc.algorithm.WeightDecay(rate, clipped=clipped),
    }
    how = bowl, [2.0], jc.Identity(), lr
    apart = flow(*how, [0.0, 400.0], jc.EdgeFlow(order=1), **update).observed.vector[
        -1, 0
    ]
    decay = rate if clipped else edge / 2 * rate
    expected = np.sqrt(1 / (edge / lr - decay) ** 2 - 1)
    assert abs(float(apart)) == pytest.approx(expected, rel=2e-4)
    end = run(*how, 400, every=400, **update).observed[-1, 0]
    assert abs(float(end)) == pytest.approx(expected, rel=1e-6)


def test_a_hard_clip_can_remove_the_edge():
    """Where it acts at both points the oscillation is half the longest step, however
    steep the valley. If that is too short to hold the drive the valley steepens on:
    `x' = (2 / (1 + x)) (SLOPE - (lr C / 2)^2 / 2)`."""
    lr, threshold, steps = 0.5, 0.4, 2000
    start, limit = [3.2, 0.1], jc.EdgeFlow(order=1)
    k = np.array([500.0, 1000.0, 2000.0])
    curve = flow(valley, start, jc.HardClip(threshold), lr, k, limit)
    apart = lr * threshold / 2
    np.testing.assert_allclose(np.abs(curve.observed.vector[:, 1]), apart, rtol=1e-2)
    pace = SLOPE - apart**2 / 2
    steepness = np.square(1 + np.asarray(curve.path[:, 0]))
    np.testing.assert_allclose(np.diff(steepness), 4 * pace * np.diff(k), rtol=1e-2)
    edge = lr * curve.observed.factor * (1 + curve.path[:, 0])
    np.testing.assert_allclose(edge, 2, rtol=1e-3)
    assert lr * (1 + curve.params[0]) > 4
    # And so it is in the run.
    x = run(valley, start, jc.HardClip(threshold), lr, steps).observed
    x = (x[k.astype(int) - 1] + x[k.astype(int)]) / 2
    np.testing.assert_allclose(curve.path[:, 0], x[:, 0], rtol=5e-3)


# Runs


def test_the_error_at_a_small_rate_is_of_second_order():
    """That of the gradient flow is of the first. The clip acts at the start alone."""
    start, clip = [1.5, 0.7], jc.SoftClip(0.5)
    limits = {"edge": jc.EdgeFlow(0.0, rtol=1e-9), "gradient": jc.GradientFlow()}
    errors = {name: [] for name in limits}
    for lr, steps in ((0.1, 40), (0.05, 80)):
        end = run(bowl, start, clip, lr, steps, every=steps).observed[-1]
        for name, limit in limits.items():
            found = flow(bowl, start, clip, lr, [0.0, steps], limit).params
            errors[name].append(float(np.max(np.abs(found - end))))
    (first, second), (coarse, fine) = errors["edge"], errors["gradient"]
    assert first / second == pytest.approx(4, rel=0.15)
    assert coarse / fine == pytest.approx(2, rel=0.15)
    assert first < 0.2 * coarse


def network_problem():
    """A small tanh network on 12 points of a line, which it cannot fit soon."""
    x = jnp.linspace(-1, 1, 12)
    y = jnp.sin(3 * x) + 0.5 * jnp.sign(x)
    keys = jr.split(jr.key(3), 2)
    start = {
        "in": jr.normal(keys[0], (2, 8)),
        "out": jr.normal(keys[1], (8,)) / np.sqrt(8),
    }
    return jc.FiniteSum(squared, start, (x, y)).whole()


def squared(params, example):
    x, y = example
    hidden = jnp.tanh(params["in"][0] * x + params["in"][1])
    return (jnp.dot(params["out"], hidden) - y) ** 2 / 2


@pytest.mark.slow
def test_a_network_is_followed():
    """The mean loss of 50 steps at three times and three thresholds, within 1%, where
    gradient flow is 17% off at the last one; and the sharpness is that of the edge."""
    problem, lr, key = network_problem(), 0.4, jr.key(0)
    ends = np.array([2000, 3000, 4000])
    steps = np.concatenate([np.arange(end - 49.0, end + 1) for end in ends])
    for threshold in (np.inf, 0.03, 0.1):
        clip = jc.HardClip(threshold)
        risk = np.asarray(jc.simulate(problem, clip, lr, steps=4000, key=key).risk)
        means = risk[steps.astype(int)].reshape(3, 50).mean(axis=1)
        curve = jc.solve(problem, clip, lr, steps=steps, limit=jc.EdgeFlow())
        found = np.asarray(curve.risk).reshape(3, 50).mean(axis=1)
        np.testing.assert_allclose(found, means, rtol=0.01)
        sharpness = jc.curvature.sharpness(problem.risk, curve.params, key=key)
        edge = float(lr * sharpness * curve.observed.factor[-1])
        assert edge == pytest.approx(2, rel=0.02)
    limit = jc.GradientFlow(1e-6)
    flow = jc.solve(problem, clip, lr, steps=ends * 1.0, limit=limit)
    assert np.all(np.asarray(flow.risk) < 0.85 * means)
    assert curve.observed.factor[-1] < 0.97


# Use


LOOSE = jc.EdgeFlow(seed=0.0, order=1, rtol=1e-9, max_steps=200)


def test_derivatives_are_those_of_finite_differences():
    """Of a risk on the way to the bowl's cycle."""
    steps = jnp.array([0.0, 20.0])

    @jax.jit
    def risk(threshold, lr):
        problem = jc.Landscape(bowl, jnp.array([2.0]))
        clip = jc.SoftClip(threshold)
        return jc.solve(problem, clip, lr, steps=steps, limit=LOOSE).risk[-1]

    slopes = jax.grad(risk, (0, 1))(0.5, 4.5)
    expected = (
        finite_difference(lambda c: risk(c, 4.5), 0.5, 1e-4),
        finite_difference(lambda lr: risk(0.5, lr), 4.5, 1e-4),
    )
    np.testing.assert_allclose(slopes, expected, rtol=1e-4)


@pytest.mark.float32
def test_in_single_precision():
    start, limit = jnp.array([2.0], jnp.float32), jc.EdgeFlow(order=1)
    curve = flow(bowl, start, jc.HardClip(0.5), 4.0, [0.0, 400.0], limit)
    apart = float(jnp.abs(curve.observed.vector[-1, 0]))
    assert apart == pytest.approx(1.0, rel=1e-3)


def test_a_run_that_diverges_has_an_infinite_risk():
    def steep(x):
        return jnp.sum(x**4)

    with pytest.raises(Exception, match="cannot be continued"):
        flow(steep, [2.0], jc.Identity(), 1.0, [0.0, 100.0])
    curve = flow(steep, [2.0], jc.Identity(), 1.0, [0.0, 100.0], throw=False)
    np.testing.assert_array_equal(curve.risk, [16.0, np.inf])


@pytest.mark.parametrize(
    ("problem", "how", "message"),
    [
        ("minibatches", {}, r"`problem` must be one of which each step .*whole\(\)"),
        ("noisy", {}, "Landscape of minibatches or with noise"),
        ("bowl", {"batch_size": 8}, "no equation for this `batch_size`"),
        ("bowl", {"scope": jc.PerExample()}, "no equation for this `scope`"),
        ("bowl", {"std": True}, "standard deviation of the risk"),
    ],
)
def test_what_it_has_no_equation_for_is_refused(problem, how, message):
    start = jnp.array([2.0])
    problem = {
        "minibatches": jc.FiniteSum(bowl_and, start, jnp.ones((4, 1))),
        "noisy": jc.Landscape(bowl, start, noise=jc.Gaussian(0.1)),
        "bowl": jc.Landscape(bowl, start),
    }[problem]
    with pytest.raises(ValueError, match=message):
        jc.solve(problem, jc.Identity(), 0.1, steps=[1.0], limit=jc.EdgeFlow(), **how)


def bowl_and(x, row):
    return bowl(x - row)


def test_a_misused_limit_is_refused():
    with pytest.raises(ValueError, match="`order` must be 1 or 2"):
        jc.EdgeFlow(order=3)
    with pytest.raises(ValueError, match="`seed` must be non-negative"):
        jc.EdgeFlow(seed=-1.0)
