"""The criteria of clipping, estimated from a model's gradients."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxclip as jc
from helpers import NOISES, OneNoise, assert_within, mean_and_error

# Least squares: what section 1 of docs/theory.md is about


def squared_error(x, example):
    features, label = example
    return (features @ x - label) ** 2 / 2


DIM, SIZE, RUNS = 60, 800, 16
NORM = DIM**0.5
NAMES = ["gaussian", "rademacher", "laplace", "contaminated"]
CHOICES = (*(NOISES[name] for name in NAMES[:3]), jc.Contaminated(0.3, 5.0, 0.1))
THRESHOLDS = NORM * jnp.array([0.3, 0.8, 1.6])


def least_squares(noise, key, size=SIZE):
    """Examples, at a point of excess risk one half."""
    features, labels = jr.split(key)
    rows = jr.normal(features, (size, DIM))
    return jnp.full(DIM, 1 / NORM), (rows, noise.sample(labels, (size,)))


@pytest.fixture(scope="module")
def runs():
    """For each noise and key: against thresholds, and with the default ones."""

    def one(noise, key):
        x, batch = least_squares(noise, key)
        given = jc.diagnose(squared_error, x, batch, thresholds=THRESHOLDS)
        return given, jc.diagnose(squared_error, x, batch)

    def each(index):
        keys = jr.split(jr.key(6), RUNS)
        return jax.lax.map(lambda key: one(OneNoise(index, CHOICES), key), keys)

    return jax.jit(lambda: jax.lax.map(each, jnp.arange(len(NAMES))))()


def pick(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


@eqx.filter_jit
def criteria(noise, thresholds):
    return jax.vmap(lambda c: jc.moments(jc.HardClip(c), noise, 0.5, NORM))(thresholds)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", ["mu", "nu", "csc", "ccc"])
def test_equals_the_moments_of_the_theory(runs, name, number):
    """Section 1.2 of docs/theory.md, which the estimates of 1.6 tend to."""
    found = pick(getattr(runs[0], number), NAMES.index(name))
    expected = getattr(criteria(CHOICES[NAMES.index(name)], THRESHOLDS), number)
    # Each run by its own error, which is what a user has; on the scale of the logarithm
    # where a criterion is a ratio to tell from 1.
    relative = found.error / found.value
    assert_within(np.log(found.value), relative, np.log(expected) * np.ones((RUNS, 1)))
    # All runs together see an error of a tenth; finite size is of order 1 / DIM.
    value, error = mean_and_error(np.log(found.value))
    assert_within(value, error + 0.01, np.log(expected), power=0.25)


def test_helps_where_it_does(runs):
    """In single runs, with the default thresholds; never where no threshold helps."""
    helped = jax.vmap(jax.vmap(lambda found: found.helps))(runs[1]).mean(axis=1)
    assert helped[NAMES.index("gaussian")] == 0
    assert helped[NAMES.index("rademacher")] == 0
    assert helped[NAMES.index("contaminated")] > 0.9


def test_the_best_of_the_default_thresholds(runs):
    found = pick(runs[1], NAMES.index("contaminated"))
    best = jc.best_clip(CHOICES[-1], 0.5, 1.0)
    chosen = jax.vmap(lambda one: one.threshold)(found)
    reached = criteria(CHOICES[-1], chosen).ccc
    # The criterion is flat at its maximum: what is lost by the choice, not its place.
    assert np.mean(reached - 1) > 0.8 * (best.ccc - 1)


def test_the_noise_scale():
    """Of gradients with a known mean and covariance, by the error of each batch."""
    dim, mean, runs = 30, 0.4, 200
    stds = jnp.broadcast_to(jnp.linspace(0.5, 2.0, dim), (runs, 256, dim))
    noise = stds * jr.normal(jr.key(21), stds.shape)
    found = jax.jit(jax.vmap(lambda b: jc.diagnose(jnp.vdot, jnp.zeros(dim), b)))(
        noise + mean
    )
    expected = np.sum(np.linspace(0.5, 2.0, dim) ** 2) / (dim * mean**2)
    value, error = map(np.asarray, found.noise_scale)
    assert_within(value[:, None], error[:, None], expected * np.ones((runs, 1)))
    assert np.mean(error) == pytest.approx(np.std(value), rel=0.2)
    assert "noise scale" in str(pick(found, 0))


# By brute force


def model_loss(params, example):
    x, y = example
    hidden = jnp.tanh(params["in"] @ x + params["shift"])
    return jnp.sum((params["out"] * hidden - y) ** 2)


MODEL = {
    "in": jr.normal(jr.key(0), (3, 2)),
    "shift": jnp.array(0.3),
    "out": jr.normal(jr.key(1), (3,)),
}


def examples(size, seed):
    return jr.normal(jr.key(seed), (size, 2)), 2 * jr.normal(jr.key(seed + 1), (size,))


def flat_gradients(batch):
    each = jax.vmap(jax.grad(model_loss), (None, 0))(MODEL, batch)
    rows = [np.asarray(leaf) for leaf in jax.tree.leaves(each)]
    return np.concatenate([row.reshape(len(row), -1) for row in rows], axis=1)


def by_hand(g, clipped, h, average, noise):
    """The signal and the criteria, by loops over pairs; without `h`, of the batch's."""
    pairs = list(itertools.permutations(range(len(g)), 2))

    def descent(a):
        if h is None:
            return np.mean([a[i] @ g[j] for i, j in pairs])
        return np.mean([row @ other for row in a for other in h])

    def moment(a):
        own = np.mean(np.sum(a**2, axis=1))
        between = np.mean([a[i] @ a[j] for i, j in pairs])
        return own / average + (1 - 1 / average) * between

    mu, nu = descent(clipped) / descent(g), (moment(clipped) + noise) / moment(g)
    return np.array([descent(g), mu, nu, mu / nu, mu**2 / nu])


def jackknifed(g, clipped, h, average, noise):
    def spread(values):
        values = np.stack(values)
        return (len(values) - 1) * values.var(axis=0)

    def drop(a, i):
        return np.delete(a, i, axis=0)

    how = average, noise
    variance = spread(
        [by_hand(drop(g, i), drop(clipped, i), h, *how) for i in range(len(g))]
    )
    if h is not None:
        variance += spread(
            [by_hand(g, clipped, drop(h, j), *how) for j in range(len(h))]
        )
    return by_hand(g, clipped, h, *how), np.sqrt(variance)


@pytest.mark.parametrize(
    ("target", "batch_size", "group", "microbatch", "noise"),
    [
        (None, 1, 1, 64, 0.0),
        (None, 5, 1, 3, 0.0),
        (9, 4, 1, 11, 0.7),
        (None, 6, 2, 5, 0.0),
        (9, 3, 3, 64, 0.0),
    ],
)
def test_equals_sums_over_pairs(target, batch_size, group, microbatch, noise):
    # The last examples fill no group.
    batch = examples(12 * group - 1, 2)
    h = None if target is None else examples(target, 4)
    thresholds, floor = np.array([1.4, 4.0]), 0.3
    found = jc.diagnose(
        model_loss,
        MODEL,
        batch,
        target=h,
        thresholds=thresholds[::-1],
        rule=lambda c: jc.DeltaClip(c, floor),
        batch_size=batch_size,
        group=group,
        noise_multiplier=noise,
        microbatch=microbatch,
    )
    np.testing.assert_array_equal(found.thresholds, thresholds)
    assert found.batch is None and found.advantage is None
    g = flat_gradients(batch)
    units = len(g) // group
    g = g[: units * group].reshape(units, group, -1).mean(axis=1)
    norms = np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-12)
    assert norms.min() < thresholds[0] and norms.max() > thresholds[0] / floor
    for i, threshold in enumerate(thresholds):
        factors = np.minimum(1, np.maximum(floor, threshold / norms))
        others = None if h is None else flat_gradients(h)
        square = (noise * threshold / batch_size) ** 2 * g.shape[1]
        clipped, average = factors[:, None] * g, batch_size // group
        value, error = jackknifed(g, clipped, others, average, square)
        criteria = [found.mu, found.nu, found.csc, found.ccc]
        each = [found.signal, *(pick(number, i) for number in criteria)]
        np.testing.assert_allclose([e.value for e in each], value, rtol=1e-10)
        np.testing.assert_allclose([e.error for e in each], error, rtol=1e-9)


def test_is_the_mean_over_all_half_batches():
    batch = examples(8, 2)
    g = flat_gradients(batch)
    clipped = g * np.minimum(1, 2.5 / np.linalg.norm(g, axis=1))[:, None]
    products = []
    for half in itertools.combinations(range(8), 4):
        rest = [i for i in range(8) if i not in half]
        one, two = g[list(half)].mean(axis=0), g[rest].mean(axis=0)
        products.append((clipped[list(half)].mean(axis=0) @ two, one @ two))
    descent, signal = np.mean(products, axis=0)
    found = jc.diagnose(model_loss, MODEL, batch, thresholds=np.array([2.5]))
    np.testing.assert_allclose(found.signal.value, signal, rtol=1e-10)
    np.testing.assert_allclose(found.mu.value[0], descent / signal, rtol=1e-10)


# The errors


def location_loss(x, example):
    return jnp.sum((x - example) ** 2) / 2


@pytest.fixture(scope="module")
def small_batches():
    """Many small batches, half of the gradients ten times as long; and a large one."""

    def draw(key, size):
        one, two = jr.split(key)
        scale = jnp.where(jr.bernoulli(two, 0.5, (size, 1)), 3.0, 1.0)
        return scale * jr.normal(one, (size, 4))

    def found(key, size):
        x, thresholds = jnp.full(4, 1.5), jnp.array([2.0, 4.0])
        return jc.diagnose(location_loss, x, draw(key, size), thresholds=thresholds)

    small = jax.jit(jax.vmap(lambda key: found(key, 80)))(jr.split(jr.key(3), 600))
    return small, found(jr.key(4), 20_000)


@pytest.mark.parametrize("number", ["signal", "mu", "nu", "csc", "ccc"])
def test_the_errors_are_right(small_batches, number):
    small, large = (
        jc.diagnosis.Estimate(*map(np.asarray, getattr(each, number)))
        for each in small_batches
    )
    assert np.all(large.error < 0.1 * np.mean(small.error, axis=0))
    scatter = np.std(small.value, axis=0)
    np.testing.assert_allclose(np.mean(small.error, axis=0), scatter, rtol=0.15)
    covered = np.abs(small.value - large.value) < 2 * small.error
    # 95 %, within four errors of 600 batches and what a ratio loses of that.
    assert np.all((covered.mean(axis=0) > 0.9) & (covered.mean(axis=0) < 0.99))
    # No bias to speak of beside the error.
    assert np.all(np.abs(small.value.mean(axis=0) - large.value) < 0.25 * scatter)


# What comes out, and what is refused


def test_in_words_and_as_a_figure():
    batch = least_squares(CHOICES[-1], jr.key(8))[1]
    helpful = jc.diagnose(squared_error, jnp.full(DIM, 1 / NORM), batch)
    assert str(helpful).startswith("Clipping per example helps now: at the threshold")
    assert str(helpful).count("<- best") == 1
    assert f"{SIZE} examples" in str(helpful)
    ax = helpful.plot(label="now")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), helpful.ccc.value)
    assert ax.get_xscale() == "log" and ax.lines[0].get_label() == "now"
    plt.close(ax.figure)
    # The answer follows the estimates that are in it.
    harmful = eqx.tree_at(
        lambda d: d.ccc,
        helpful,
        jc.diagnosis.Estimate(helpful.ccc.value / 9, helpful.ccc.error),
    )
    assert "is not seen to help now" in str(harmful)
    noisy = eqx.tree_at(
        lambda d: d._signal.error, helpful, helpful._signal.value * 0.51
    )
    assert str(noisy).startswith("Cannot tell") and not noisy.helps


@pytest.mark.parametrize(("errors", "helps"), [(1.9, False), (2.1, True)])
@pytest.mark.parametrize("number", ["ccc", "_signal"])
def test_two_errors_tell(number, errors, helps):
    """The criterion's logarithm from 0, and the mean gradient from 0."""
    batch = least_squares(CHOICES[-1], jr.key(8))[1]
    found = jc.diagnose(squared_error, jnp.full(DIM, 1 / NORM), batch)
    value = getattr(found, number).value
    error = (value * jnp.log(value) if number == "ccc" else value) / errors
    moved = eqx.tree_at(lambda d: getattr(d, number).error, found, jnp.abs(error))
    assert moved.helps == helps
    assert str(moved).startswith("Clipping per example helps now") == helps


@pytest.mark.slow
def test_a_model_of_several_precisions():
    """Under `jit`, with leaves that are no numbers, and what comes out in float32."""
    key = jr.key(0)
    model = eqx.nn.MLP(2, "scalar", 3, 1, key=key)
    wide = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, model
    )
    half = eqx.tree_at(lambda m: m.layers[1].weight, wide, replace_fn=_to_half)

    @eqx.filter_jit
    def found(model):
        def loss(model, example):
            x, y = example
            with jax.numpy_dtype_promotion("standard"):
                return (model(x).astype(jnp.float32) - y) ** 2

        with jax.numpy_dtype_promotion("standard"):
            batch = jax.tree.map(lambda x: x.astype(jnp.float32), examples(40, 5))
            return jc.diagnose(loss, model, batch)

    ours, reference = found(half), found(wide)
    assert ours.ccc.value.dtype == ours.norms.dtype == jnp.float32
    np.testing.assert_allclose(ours.norms, reference.norms, rtol=0.05)
    np.testing.assert_allclose(ours.ccc.value, reference.ccc.value, rtol=0.1, atol=0.01)


def _to_half(leaf):
    return leaf.astype(jnp.bfloat16)


def test_solved_examples_do_not_stretch_the_grid():
    batch = jnp.concatenate([jnp.zeros((20, 2)), jr.normal(jr.key(1), (60, 2))])
    found = jc.diagnose(location_loss, jnp.zeros(2), batch)
    assert found.thresholds[0] > 1e-3 and np.all(np.diff(found.thresholds) > 0)
    assert np.all(np.isfinite(found.ccc.value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch": (jnp.zeros((9, 2)), jnp.zeros(8))},
            r"`batch` must have the same.*8",
        ),
        ({"target": {"x": jnp.zeros(())}}, "`target` must have the same leading axis"),
        ({"batch": examples(7, 2)}, "`batch` must hold at least 8 examples.* Got 7"),
        ({"target": examples(7, 2)}, "`target` must hold at least 8 examples"),
        ({"thresholds": np.array([1.0, -1.0])}, "`thresholds` must be positive"),
        ({"thresholds": np.array([0.0])}, "`thresholds` must be positive"),
        ({"thresholds": np.float64(1.0)}, "`thresholds` must be a vector of at least"),
        ({"thresholds": np.zeros(0)}, "`thresholds` must be a vector of at least one"),
        ({"batch_size": 0}, "`batch_size` must be at least 1. Got 0"),
        ({"microbatch": 0}, "`microbatch` must be at least 1. Got 0"),
        ({"group": 0}, "`group` must be at least 1. Got 0"),
        ({"group": 2, "batch_size": 3}, "`group` must divide.* group=2 and batch_size"),
        ({"group": 2, "batch_size": 2}, "at least 8 groups.* 16 examples for.* Got 9"),
        ({"noise_multiplier": -1.0}, "`noise_multiplier` must be non-negative"),
        ({"noise_multiplier": np.inf}, "`noise_multiplier` must be non-negative"),
        ({"noise_multiplier": np.ones(2)}, "`noise_multiplier` must be one number"),
        (
            {"noise_multiplier": 1.0, "group": 2, "batch_size": 2},
            "`noise_multiplier` must be 0 where groups are clipped.* Got group=2",
        ),
        ({"loss": lambda p, x: p["out"]}, "must return one number"),
        ({"loss": lambda p, x: jnp.asarray(1)}, "must return one number, a float"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_errors(change, message):
    given = {"loss": model_loss, "batch": examples(9, 2), **change}
    with pytest.raises(ValueError, match=message):
        jc.diagnose(given.pop("loss"), MODEL, given.pop("batch"), **given)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (jnp.zeros((9, 2)).at[3, 0].set(jnp.nan), "of an example is not finite"),
        (jnp.zeros((9, 2)), "Every example's gradient is zero"),
    ],
)
def test_gradients_without_an_answer(batch, message):
    with pytest.raises(Exception, match=message):
        jc.diagnose(location_loss, jnp.zeros(2), batch)
