"""Two wells and other landscapes, the basins of large steps, repeated batches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc
from helpers import assert_within, finite_difference

WELLS = jc.TwoWells(jnp.zeros(1))
LINE = -5 + (np.arange(10001)[:, None] + 0.5) * 10 / 10001


@jax.jit
def line(lr, threshold, starts):
    clip = jc.HardClip(threshold)
    return jc.basins(WELLS, clip, lr, starts, WELLS.minima, steps=1500)


def shares(ends):
    """How much of the starts ends in the global minimum, the spurious one, in none."""
    return [float(np.mean(np.asarray(ends) == i)) for i in (0, 1, -1)]


# The wells


def test_the_ball_is_where_the_spurious_well_is_lower():
    """In five dimensions, on both ends of the axis and around it."""
    wells = jc.TwoWells(jnp.zeros(5), height=1.3)
    centre, radius = np.asarray(wells.basin_centre), float(wells.basin_radius)
    directions = np.random.default_rng(0).normal(size=(20, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for direction in [*directions, np.eye(5)[0], -np.eye(5)[0]]:
        x = centre + radius * direction
        narrow = 1.3 + 10 * np.sum((x - 3 * np.eye(5)[0]) ** 2)
        assert narrow == pytest.approx(np.sum(x**2) / 2, rel=1e-12)
    near = np.linalg.norm(centre - radius * np.eye(5)[0] - 3 * np.eye(5)[0])
    assert wells.near_radius == pytest.approx(near, rel=1e-12)


def test_the_numbers_of_the_theory():
    """Section 7 of docs/theory.md."""
    ends = float(WELLS.basin_centre[0]) + float(WELLS.basin_radius) * np.array([-1, 1])
    np.testing.assert_allclose(ends, [2.730314, 3.585476], atol=5e-7)
    assert WELLS.near_radius == pytest.approx(0.269686, abs=5e-7)
    assert WELLS.escape_lr == pytest.approx(0.1, rel=1e-12)
    assert WELLS.escape_clip(0.15) == pytest.approx(2.69686, abs=5e-6)
    assert WELLS.certain_clip == pytest.approx(20 * 0.269686, abs=2e-5)


@pytest.mark.parametrize("steep", [7.0, [7.0, 20.0]])
@pytest.mark.parametrize("smoothing", [None, 0.05])
def test_wells_and_their_slope(steep, smoothing):
    wells = jc.TwoWells(
        jnp.zeros(2), curvature=1.5, spurious_curvature=steep, smoothing=smoothing
    )
    rng = np.random.default_rng(1)
    points = np.array([2.8, 0.0]) + 0.5 * rng.normal(size=(12, 2))

    def loss(x):
        wide = 0.75 * np.sum(x**2)
        narrow = 3 + np.sum(np.array(steep) * (x - np.array([3.0, 0.0])) ** 2) / 2
        if smoothing is None:
            return min(wide, narrow)
        weights = np.exp(-np.array([wide, narrow]) / smoothing)
        return -smoothing * np.log(np.sum(weights))

    ours = jax.vmap(wells.loss)(points)
    np.testing.assert_allclose(ours, [loss(x) for x in points], rtol=1e-12)
    for x, slope in zip(points, jax.vmap(wells.slope)(points), strict=True):
        for i, direction in enumerate(np.eye(2)):
            expected = finite_difference(
                lambda t, x=x, d=direction: loss(x + t * d), 0.0, 1e-4
            )
            assert slope[i] == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_wells_keep_the_precision_of_the_start():
    wells = jc.TwoWells(jnp.zeros(2, jnp.float32), noise=jc.Gaussian(1.0))
    noise = wells.example(jr.key(0), 0)
    assert wells.gradient(wells.init(), noise).dtype == jnp.float32
    assert wells.risk(wells.init()).dtype == wells.minima.dtype == jnp.float32
    # Single starts in wells of doubles, with noise.
    wells = jc.TwoWells(jnp.zeros(1), noise=jc.Gaussian(1.0))
    starts = np.zeros((2, 1), np.float32)
    setting = {"steps": 900, "noisy": 2, "key": jr.key(0)}
    ends = jc.basins(wells, jc.Identity(), 0.05, starts, wells.minima, **setting)
    np.testing.assert_array_equal(ends, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 4.5}, "`height` must be below"),
        ({"spurious_curvature": 1.0}, "must be above `curvature`"),
        ({"spurious_curvature": [20.0, 20.0]}, "a vector as long"),
        ({"distance": 0.0}, "`distance` must be positive"),
        ({"smoothing": 0.0}, "`smoothing` must be positive"),
    ],
)
def test_what_is_no_two_wells_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        jc.TwoWells(jnp.zeros(1), **change)


def test_a_traced_well_is_checked_when_it_runs():
    height = jax.jit(lambda c: jc.TwoWells(jnp.zeros(1), height=c).height)
    assert height(3.0) == 3.0
    with pytest.raises(Exception, match="`height` must be below"):
        jax.block_until_ready(height(5.0))


def test_only_a_ball_has_a_radius():
    wells = jc.TwoWells(jnp.zeros(2), spurious_curvature=[8.0, 20.0])
    assert wells.escape_lr == pytest.approx(0.1)
    with pytest.raises(ValueError, match="one for each axis"):
        _ = wells.near_radius


# Landscapes


def bowl(params):
    return params["u"] ** 2 + jnp.sum(params["v"] ** 4) - 1.0


START = {"u": jnp.array(2.0), "v": jnp.array([0.5, -0.5])}


def test_a_landscape_of_any_pytree():
    bowls = jc.Landscape(bowl, START, minimum=-1.0)
    curve = jc.simulate(bowls, jc.HardClip(0.7), 0.25, steps=2, key=jr.key(0))
    u, v = 2.0, np.array([0.5, -0.5])
    for risk in np.asarray(curve.risk):
        assert risk == pytest.approx(u**2 + np.sum(v**4), rel=1e-13)
        slope = np.array([2 * u, *(4 * v**3)])
        slope *= min(1, 0.7 / np.linalg.norm(slope)) * 0.25
        u, v = u - slope[0], v - slope[1:]


def test_the_noise_of_a_landscape():
    noisy = jc.Landscape(bowl, START, noise=jc.Rademacher(3.0))
    draws = jax.vmap(noisy.example, (None, 0))(jr.key(0), jnp.arange(4000))
    entries = np.column_stack([draws["u"], draws["v"]])
    np.testing.assert_array_equal(np.abs(entries), 3.0)
    assert_within(entries.T @ entries / 4000, 9 / 4000**0.5, 9 * np.eye(3), k=5)
    one = jax.tree.map(lambda x: x[0], draws)
    moved = noisy.gradient(START, one)
    assert moved["u"] == 4.0 + one["u"]
    np.testing.assert_allclose(moved["v"], 4 * START["v"] ** 3 + one["v"])


def test_what_is_no_landscape_is_refused():
    with pytest.raises(ValueError, match="`start` must be a pytree of arrays"):
        jc.Landscape(bowl, {"u": 1, "v": jnp.ones(2)})
    with pytest.raises(ValueError, match="must return one number"):
        jc.Landscape(lambda x: x, jnp.ones(2))


# Basins


@pytest.mark.parametrize(
    ("lr", "to_global", "to_local"),
    [(0.05, 7731, 2270), (0.09, 9016, 985), (0.099, 9222, 779), (0.101, 10001, 0),
     (0.15, 10001, 0)],
)  # fmt: skip
def test_the_table_of_the_theory(lr, to_global, to_local):
    """Section 7 of docs/theory.md."""
    counts = np.bincount(np.asarray(line(lr, jnp.inf, LINE)) + 1, minlength=3)
    np.testing.assert_array_equal(counts, [0, to_global, to_local])


def test_the_threshold_of_the_clip_is_sharp():
    centre, radius = float(WELLS.basin_centre[0]), float(WELLS.basin_radius)
    inside = np.linspace(centre - radius, centre + radius, 10003)[1:-1, None]
    critical = WELLS.escape_clip(0.15)
    assert shares(line(0.15, 0.99 * critical, inside)) == [0.0, 0.0, 1.0]
    assert 0.02 < shares(line(0.15, 1.03 * critical, inside))[0] < 0.2
    assert shares(line(0.15, WELLS.certain_clip, inside)) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("noisy", [0, 70])
def test_basins_are_the_ends_of_simulate(noisy):
    """With as many steps each, and the same noise where there is one."""
    noise = jc.Gaussian(3.0) if noisy else None
    starts, key = LINE[::800], jr.key(0)
    clip, lr, clean = jc.HardClip(3.5), 0.09, 190

    def end(start, key):
        wells = jc.TwoWells(start, noise=noise)
        return jc.simulate(
            wells, clip, lr, steps=noisy or clean, every=noisy or clean, key=key
        ).params

    wells = jc.TwoWells(jnp.zeros(1), noise=noise)
    keys = jax.vmap(jr.fold_in, (None, 0))(key, jnp.arange(len(starts)))
    reached = jax.jit(jax.vmap(end))(starts, keys)
    expected = np.asarray(reached)
    if noisy:
        for _ in range(clean):
            narrow = 3 + 10 * (expected - 3) ** 2 < expected**2 / 2
            slope = np.where(narrow, 20 * (expected - 3), expected)
            expected = expected - lr * np.clip(slope, -3.5, 3.5)
    near = np.abs(expected - np.array([[0.0, 3.0]])) <= 1e-3
    ends = jc.basins(wells, clip, lr, starts, wells.minima, steps=clean, noisy=noisy,
                     key=key, batch_size=5)  # fmt: skip
    np.testing.assert_array_equal(ends, np.where(near.any(1), near.argmax(1), -1))
    assert len(set(np.asarray(ends).tolist())) > 1


# Large from step 100 on; for the first steps only; and a clip that opens.
CHANGING = {
    "rate rises": (
        jc.PiecewiseLinear(jnp.array([100.0, 101.0]), jnp.array([0.09, 0.15])),
        np.inf,
    ),
    "rate falls": (lambda k: jnp.where(k <= 4, 0.12, 0.04), np.inf),
    "clip opens": (0.15, lambda k: jnp.where(k < 200, 1.0, 6.0)),
}


@pytest.mark.parametrize("case", CHANGING)
def test_rates_and_thresholds_that_change_with_the_step(case):
    """Counted from the first noisy step; and nothing settles before the last change."""
    (lr, threshold), noisy, steps = CHANGING[case], 3, 600
    wells = jc.TwoWells(jnp.zeros(1), noise=jc.Gaussian(1e-9))
    expected = starts = np.linspace(2.74, 3.58, 12)[:, None]
    for k in range(noisy + steps):
        rate, limit = (float(f(k)) if callable(f) else f for f in (lr, threshold))
        narrow = 3 + 10 * (expected - 3) ** 2 < expected**2 / 2
        slope = np.where(narrow, 20 * (expected - 3), expected)
        expected = expected - rate * np.clip(slope, -limit, limit)
    near = np.abs(expected - np.array([[0.0, 3.0]])) <= 1e-3
    ends = eqx.filter_jit(jc.basins)(
        wells, jc.HardClip(threshold), lr, starts, wells.minima, steps=steps,
        noisy=noisy, key=jr.key(0),
    )  # fmt: skip
    np.testing.assert_array_equal(ends, np.where(near.any(1), near.argmax(1), -1))
    # With the settings of the first step for ever, with those of the last, and with
    # the steps after the noise counted from 0 it is another result.
    assert np.bincount(ends, minlength=2)[1] == (2 if case == "rate falls" else 0)


def test_a_rate_that_changes_is_checked():
    with pytest.raises(ValueError, match="`lr` must be non-negative"):
        jc.basins(
            WELLS, jc.Identity(), lambda k: jnp.where(k < 128, 0.1, -0.1), LINE,
            WELLS.minima, steps=300,
        )  # fmt: skip


def test_a_start_close_to_an_unstable_minimum_is_not_taken_for_settled():
    """It moves away by a factor 1.002 a step, from within the tolerance."""
    starts = 3 + np.array([[1e-6], [-5e-4], [0.0]])
    ends = jax.jit(
        lambda: jc.basins(
            WELLS, jc.Identity(), 0.1001, starts, WELLS.minima, steps=20000
        )
    )()
    np.testing.assert_array_equal(ends, [0, 0, 1])


def test_a_run_that_diverges_ends_nowhere():
    ends = line(2.1, jnp.inf, np.array([[1.0], [0.0]]))
    np.testing.assert_array_equal(ends, [-1, 0])


@pytest.mark.parametrize("tolerance", [1e-3, 0.2])
def test_how_close_to_a_minimum_a_run_has_to_end(tolerance):
    """Where nothing moves, that is how close it starts."""
    away = tolerance * np.array([0.99, 1.01, -0.99, -1.01])
    starts = np.concatenate([away, 3 + away])[:, None]
    ends = jc.basins(WELLS, jc.Identity(), 0.0, starts, WELLS.minima, steps=2,
                     tolerance=tolerance)  # fmt: skip
    np.testing.assert_array_equal(ends, [0, -1, 0, -1, 1, -1, 1, -1])


def test_basins_of_a_pytree():
    def loss(params):
        x, y = params
        return (x**2 - 1) ** 2 + jnp.sum(y**2)

    landscape = jc.Landscape(loss, (jnp.zeros(()), jnp.zeros(2)))
    starts = (np.array([-0.3, 2.0, 0.2, 0.0]), np.ones((4, 2)))
    minima = (np.array([-1.0, 1.0]), np.zeros((2, 2)))
    ends = jc.basins(landscape, jc.HardClip(1.0), 0.1, starts, minima, steps=300)
    np.testing.assert_array_equal(ends, [0, 1, 1, -1])


def test_noisy_steps_need_a_noise_and_a_key():
    for wells in (WELLS, jc.TwoWells(jnp.zeros(1), noise=jc.Gaussian(1.0))):
        with pytest.raises(ValueError, match="need a landscape with noise and a `key`"):
            jc.basins(
                wells, jc.Identity(), 0.1, LINE, wells.minima, steps=1, noisy=2,
                key=jr.key(0) if wells is WELLS else None,
            )  # fmt: skip


# Repeated batches


class Counted(jc.AbstractProblem):
    """Examples that are their own index, of which there are few."""

    def init(self):
        return jnp.zeros(())

    def check_length(self, samples):
        if samples > 8:
            raise ValueError(f"{samples} samples of 8")

    def example(self, stream, index):
        return index

    def gradient(self, params, example):
        return -(100.0 ** example.astype(float))

    def risk(self, params):
        return params


def test_whole_batches_are_repeated():
    problem = jc.Repeated(Counted(), 3)
    index = jnp.arange(14)
    batches = problem.in_batches(2)
    seen = jax.vmap(batches.example, (None, 0))(jr.key(0), index)
    expected = [0, 1] * 3 + [2, 3] * 3 + [4, 5]
    np.testing.assert_array_equal(seen, expected)
    setting = {"batch_size": 2, "key": jr.key(0)}
    curve = jc.simulate(problem, jc.Identity(), 2.0, steps=4, **setting)
    sizes = [101.0, 101.0, 101.0, 1010000.0]
    np.testing.assert_allclose(curve.risk, np.cumsum([0, *sizes]))
    # An optimiser sees the same batches.
    trained = jc.train(problem, optax.sgd(2.0), steps=4, **setting)
    np.testing.assert_allclose(trained.risk, curve.risk)
    jc.simulate(problem, jc.Identity(), 2.0, steps=12, **setting)
    with pytest.raises(ValueError, match="10 samples of 8"):
        jc.simulate(problem, jc.Identity(), 2.0, steps=13, **setting)


def test_the_variance_of_split_steps():
    """On a parabola, for one, two and three steps on each batch."""
    runs, rate, std = 4000, 0.75, 0.5

    def last(times):
        def one(key):
            # The gradient of 2 (x - xi)^2 / 2, with xi of standard deviation std.
            noise = jc.Gaussian(2 * std)
            parabola = jc.Landscape(lambda x: x**2, jnp.zeros(()), noise=noise)
            split = jc.Repeated(parabola, times)
            steps = 20 * times
            return jc.simulate(
                split, jc.Identity(), rate / times, steps=steps, every=steps, key=key
            ).params

        return jax.jit(jax.vmap(one))(jr.split(jr.key(times), runs))

    for times in (1, 2, 3):
        r = (1 - rate * 2 / times) ** times
        expected = std**2 * (1 - r) / (1 + r)
        error = expected * (2 / runs) ** 0.5
        assert_within(np.var(np.asarray(last(times))), error, expected)


# Sharpness and barriers

RNG = np.random.default_rng(4)
ROTATION = np.linalg.qr(RNG.normal(size=(6, 6)))[0]


def quadratic(eigenvalues):
    matrix = jnp.asarray(ROTATION * np.array(eigenvalues) @ ROTATION.T)

    def loss(params):
        x = jnp.concatenate([params["a"].ravel(), params["b"]])
        return x @ matrix @ x / 2

    return loss


POINT = {"a": jnp.ones((2, 2)), "b": jnp.zeros(2)}


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-9.0, -2.0, 0.5, 1.0, 2.0, 3.0],
        [-5.0, -4.0, -3.0, -2.0, -1.5, -1.0],
        [-2.0] * 6,
        [0.0, 0.0, 0.0, 0.0, 0.0, 7.0],
        [0.0] * 6,
    ],
)
def test_sharpness_is_the_largest_eigenvalue(eigenvalues):
    """Also where the largest in modulus is negative, and where few are different."""
    loss = quadratic(eigenvalues)
    value = jax.jit(
        lambda p: jc.curvature.sharpness(loss, p, key=jr.key(0), iterations=50)
    )(POINT)
    assert value == pytest.approx(max(eigenvalues), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_as_many_products_as_iterations(iterations):
    """The value is the largest on the space that so many products span."""
    eigenvalues = np.array([-9.0, -2.0, 0.5, 1.0, 2.0, 3.0])
    matrix = ROTATION * eigenvalues @ ROTATION.T
    powers = [np.asarray(jr.normal(jr.key(2), (6,)))]
    for _ in range(iterations - 1):
        powers.append(matrix @ powers[-1])
    basis = np.linalg.qr(np.stack(powers, axis=1))[0]
    value = jc.curvature.sharpness(
        quadratic(eigenvalues), POINT, key=jr.key(2), iterations=iterations
    )
    expected = np.linalg.eigvalsh(basis.T @ matrix @ basis)[-1]
    assert value == pytest.approx(expected, rel=1e-9)


def test_nothing_is_made_up_where_one_direction_sees_all():
    """The second direction is zero for some keys; its value 0 would be larger."""
    value = jax.vmap(
        lambda key: jc.curvature.sharpness(
            lambda x: -2 * jnp.sum(x**2), jnp.ones(3), key=key
        )
    )(jr.split(jr.key(0), 30))
    np.testing.assert_allclose(value, -4.0, rtol=1e-12)


def test_few_iterations_find_the_largest_of_many():
    scale = jnp.append(jnp.linspace(0, 1, 4000), 1.5)
    value = jc.curvature.sharpness(
        lambda x: jnp.sum(scale * x**2) / 2, jnp.zeros(4001), key=jr.key(0)
    )
    assert value == pytest.approx(1.5, rel=1e-6)


def test_sharpness_along_a_run():
    landscape = jc.Landscape(lambda x: jnp.sum(x**4), jnp.array([1.0, -0.5]))
    curve = jc.simulate(
        landscape, jc.Identity(), 0.01, steps=4, every=2, key=jr.key(0),
        observe=lambda x: (jc.curvature.sharpness(landscape.loss, x, key=jr.key(1)), x),
    )  # fmt: skip
    value, x = curve.observed
    np.testing.assert_allclose(value, 12 * np.max(np.abs(x), axis=1) ** 2, rtol=1e-10)


def test_the_barrier_between_two_points():
    def loss(params):
        return (params["x"] ** 2 - 1) ** 2 + params["y"]

    def at(x, y):
        return {"x": jnp.array(x), "y": jnp.array(y)}

    # Between the wells, whose heights differ: at 0 the line is at the mean of the two.
    height = jc.curvature.loss_barrier(loss, at(-1.0, 0.3), at(1.0, 0.7), points=5)
    assert height == pytest.approx(1.0, rel=1e-12)
    assert jc.curvature.loss_barrier(loss, at(0.9, 0.3), at(1.0, 0.7)) == pytest.approx(
        0.0
    )
    with pytest.raises(ValueError, match="`points` must be at least 2"):
        jc.curvature.loss_barrier(loss, at(0.0, 0.0), at(1.0, 0.0), points=1)


def test_spider_has_no_batches_of_one_size_to_repeat():
    problem = jc.Repeated(Counted(), 3)
    spider = jc.Spider(
        jc.Identity(), 0.1, jc.algorithm.PeriodicSpider(2), anchor_size=2, batch_size=1
    )
    with pytest.raises(ValueError, match=r"`problem` must not depend on .*Repeated"):
        jc.run_spider(problem, spider, steps=2, key=jr.key(0))
