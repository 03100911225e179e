"""The policy that asks the criterion for its threshold: its arithmetic, against loops
in numpy; what it finds where the truth is known; and what it refuses."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxclip as jc

KEY = jr.key(5)
PARAMS = {"w": jnp.ones(6), "b": jnp.zeros(())}


def linear(params, example):
    x, y = example
    return (x @ params["w"] + params["b"] - y) ** 2 / 2


def batch(key, size=16, scale=1.0):
    left, right = jr.split(key)
    return jr.normal(left, (size, 6)), scale * jr.t(right, 2.0, (size,))


def rows_of(params, examples, metric=None):
    """The gradients of the examples as rows, and what they are multiplied in."""
    gradients = jax.vmap(jax.grad(linear), (None, 0))(params, examples)
    rows = np.concatenate([gradients["b"][:, None], gradients["w"]], axis=1)
    weights = np.ones(rows.shape[1])
    if metric is not None:
        weights = np.append(np.asarray(metric["b"]), metric["w"])
    return np.asarray(rows, float), weights


def by_loops(norms, lengths, products, errors):
    """The threshold by the formula of the docstring, one number at a time."""
    ordered, count = np.sort(norms), len(norms)
    low, high = ordered[int(0.02 * count)], ordered[max(count - 10, count // 2)]
    grid = np.exp(np.linspace(np.log(low), np.log(high), 16))
    qualities, influences = [], []
    for c in grid:
        factors = [min(1.0, c / n) if n > 0 else 1.0 for n in norms]
        moved = [f * p for f, p in zip(factors, products, strict=True)]
        square = [(f * n) ** 2 for f, n in zip(factors, lengths, strict=True)]
        second = sum(square) / count
        quality = sum(moved) / count / second**0.5
        qualities.append(quality)
        influences.append(
            [
                m / second**0.5 - quality * s / second / 2
                for m, s in zip(moved, square, strict=True)
            ]
        )
    best = int(np.argmax(qualities))
    chosen = 0.0
    for c, quality, influence in zip(grid, qualities, influences, strict=True):
        error = np.std(np.subtract(influences[best], influence)) / count**0.5
        if qualities[best] - quality <= errors * error:
            chosen = max(chosen, c)
    return chosen if qualities[best] > 0 else grid[-1]


@pytest.mark.parametrize("errors", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(
    "metric", [None, {"w": jnp.arange(1.0, 7.0), "b": jnp.ones(())}]
)
def test_the_threshold_is_that_of_the_formula(errors, metric):
    """Each example against the mean of the others, in loops over pairs."""
    gradient = jc.clipped_grad(
        linear, jc.Adaptive(jc.policy.Criterion(window=96, errors=errors))
    )
    state, seen, finite = gradient.init(PARAMS), [], 0
    for i in range(8):
        examples = batch(jr.fold_in(KEY, i))
        value, state = gradient(PARAMS, examples, state=state, metric=metric)
        rows, weights = rows_of(PARAMS, examples, metric)
        for k, row in enumerate(rows):
            others = np.delete(rows, k, axis=0).mean(axis=0)
            length = np.sqrt(np.sum(weights * row**2))
            seen.append((np.linalg.norm(row), length, np.sum(weights * row * others)))
        seen = seen[-96:]
        threshold = np.inf
        if len(seen) >= 64:
            threshold = by_loops(*map(np.array, zip(*seen, strict=True)), errors)
        factors = np.minimum(1, threshold / np.linalg.norm(rows, axis=1))
        expected = (factors[:, None] * rows).mean(axis=0)
        np.testing.assert_allclose(value["w"], expected[1:], rtol=1e-9)
        finite += threshold < np.inf
    assert finite >= 2


def test_a_gradient_alone_is_compared_with_the_running_mean():
    policy = jc.policy.Criterion(window=64, errors=0.0, decay=0.8)
    transform = jc.as_transform(jc.Adaptive(policy))
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    mean, seen, finite = np.zeros(7), [], 0
    for i in range(90):
        rows, _ = rows_of(PARAMS, batch(jr.fold_in(KEY, i), 2))
        row = rows.mean(axis=0)
        value, state = update({"w": row[1:], "b": row[0]}, state)
        if i:
            seen = [*seen, (np.linalg.norm(row), np.linalg.norm(row), row @ mean)][-64:]
        threshold = np.inf
        if len(seen) >= 64:
            threshold = by_loops(*map(np.array, zip(*seen, strict=True)), 0.0)
        clipped = row * min(1.0, threshold / np.linalg.norm(row))
        np.testing.assert_allclose(value["w"], clipped[1:], rtol=1e-9)
        mean = 0.8 * mean + 0.2 * clipped
        finite += threshold < np.inf
    assert finite >= 10


# Where the truth is known


@pytest.mark.parametrize(
    ("noise", "loss", "clips"),
    [
        # With a tail and without; another law of either kind is another program.
        pytest.param(jc.StudentT(3.0, 3**-0.5), 0.03, True, marks=pytest.mark.slow),
        (jc.Contaminated(1.0, 10.0, 0.1), 0.03, True),
        (jc.Gaussian(1.0), 0.01, False),
        pytest.param(jc.Uniform(1.0), 0.01, False, marks=pytest.mark.slow),
    ],
)
def test_it_finds_the_best_threshold_of_least_squares(noise, loss, clips):
    """In 400 dimensions, where `moments` knows the criterion of every threshold: that
    of the chosen one is nearly the largest; without heavy tails that is no clip."""
    dimension, risk, size = 400, 0.1, 64
    start = jnp.full(dimension, np.sqrt(2 * risk / dimension) * dimension**0.5)
    gradient = jc.clipped_value_and_grad(
        lambda z, example: (example[0] @ z / dimension**0.5 - example[1]) ** 2 / 2,
        jc.Adaptive(jc.policy.Criterion(window=128 * size, errors=0.5)),
    )

    def step(state, key):
        left, right = jr.split(key)
        examples = jr.normal(left, (size, dimension)), noise.sample(right, (size,))
        ((_, seen), _), state = gradient(start, examples, state=state)
        lengths = jnp.where(seen.factors < 1, seen.factors * seen.norms, 0.0)
        return state, jnp.max(lengths)

    state, keys = gradient.init(start), jr.split(KEY, 128)
    _, thresholds = jax.jit(lambda s: jax.lax.scan(step, s, keys))(state)
    # In the last steps nothing may have been clipped: no clip, or above all of a batch.
    threshold = float(jnp.median(jnp.where(thresholds > 0, thresholds, jnp.inf)[-16:]))

    def ccc(c):
        return float(jc.moments(jc.HardClip(c), noise, risk, 1.0).ccc)

    at_best = float(jc.best_clip(noise, risk, feature_norm=1.0).ccc)
    chosen = ccc(threshold) if np.isfinite(threshold) else 1.0
    assert chosen >= at_best * (1 - loss)
    if clips:
        assert at_best > 1.2
    else:
        assert np.isinf(threshold) or chosen > 0.99


@pytest.mark.float32
@pytest.mark.parametrize("power", [-80, 80])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_moves_the_threshold_alone(power, dtype):
    """Gradients from 1e-24 to 1e24: no square and no product overflows."""
    clip = jc.Adaptive(jc.policy.Criterion(window=128, errors=0.5))
    for transform, lead in (
        (jc.as_transform(clip, jc.PerExample()), (16,)),
        (jc.as_transform(clip), ()),
    ):
        update = jax.jit(transform.update)
        states = [transform.init(jnp.zeros(6, dtype)) for _ in range(2)]
        for i in range(90):
            left, right = jr.split(jr.fold_in(KEY, i))
            rows = 0.5 + jr.normal(left, (*lead, 6), dtype)
            rows *= jr.pareto(right, 1.5, (*lead, 1), dtype)
            values = []
            for k, scale in enumerate((0, power)):
                value, states[k] = update(rows * 2.0**scale, states[k])
                values.append(np.asarray(value, np.float64) * 2.0**-scale)
            assert np.all(np.isfinite(values[1]))
            np.testing.assert_allclose(values[1], values[0], rtol=1e-2)


def test_a_bad_gradient_leaves_no_trace():
    transform = jc.as_transform(jc.Adaptive(jc.policy.Criterion(window=64)))
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    for i in range(70):
        rows, _ = rows_of(PARAMS, batch(jr.fold_in(KEY, i), 2))
        row = rows.mean(axis=0)
        _, state = update({"w": row[1:], "b": row[0]}, state)
    for bad in (np.nan, np.inf):
        _, after = update({"w": jnp.full(6, bad), "b": jnp.ones(())}, state)
        for new, old in zip(*map(jax.tree.leaves, (after, state)), strict=True):
            if new.dtype != jnp.int32:
                np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_examples_on_a_mesh_are_compared(kind):
    """The examples over one axis and the weights over the other."""
    clip = jc.Adaptive(jc.policy.Criterion(window=64, errors=0.0))
    transform = jc.as_transform(clip, jc.PerExample())

    def run(batches):
        state = transform.init({"w": jnp.zeros((16, 24))})
        for tree in batches:
            value, state = transform.update(tree, state)
        return value, state

    rows = np.random.default_rng(3).standard_t(2.0, (12, 8, 16, 24)) + 0.3
    batches = [{"w": row.astype(np.float32)} for row in rows]
    alone = jax.jit(run)(batches)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    place = NamedSharding(mesh, P("data", None, "model"))
    with jax.set_mesh(mesh):
        spread = jax.tree.map(partial(jax.device_put, device=place), batches)
        compiled = jax.jit(run).lower(spread).compile()
        many = compiled(spread)
    for one, other in zip(*map(jax.tree.leaves, (alone, many)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    assert not re.findall(r"all-gather.*16,24", compiled.as_text())


def test_adams_metric_is_handed_over():
    """In a chain, from Adam's own second moment."""
    # optax mixes precisions.
    with jax.numpy_dtype_promotion("standard"):
        check_metric_of_a_chain()


def check_metric_of_a_chain():
    optimiser = optax.chain(
        jc.as_transform(jc.Adaptive(jc.policy.Criterion(window=64))), optax.adam(1e-2)
    )
    state, params = optimiser.init(PARAMS), PARAMS
    for i in range(3):
        gradient = jax.grad(lambda p, e: jnp.mean(jax.vmap(linear, (None, 0))(p, e)))(
            params, batch(jr.fold_in(KEY, i))
        )
        nu = optax.tree.get(state, "nu")
        metric = jax.tree.map(lambda v: 1 / (jnp.sqrt(v) + 1e-8), nu)
        updates, state = optimiser.update(gradient, state, params, metric=metric)
        params = optax.apply_updates(params, updates)
    lengths = state[0].policies[0].lengths[0]
    length = np.sqrt(
        sum(
            np.sum(np.asarray(m) * np.asarray(g) ** 2)
            for m, g in zip(*map(jax.tree.leaves, (metric, gradient)), strict=True)
        )
    )
    assert lengths[1] == pytest.approx(length)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("microbatch", [None, 6])
def test_a_complex_number_is_two_real_ones(passes, microbatch):
    """The same model with its number in two parts has the same states."""

    def whole(params, example):
        x, z, y = example
        residual = (x @ params["w"]).astype(complex) + z * params["c"] - y
        return jnp.abs(residual) ** 2 / 2

    def halves(params, example):
        c = jax.lax.complex(params["re"], params["im"])
        return whole({"w": params["w"], "c": c}, example)

    clip = jc.Adaptive(jc.policy.Criterion(window=64, errors=0.0))
    how = dict(passes=passes, microbatch=microbatch)
    start = {"w": jnp.ones(3), "c": jnp.array(0.5 - 1.0j)}
    apart = {"w": jnp.ones(3), "re": jnp.array(0.5), "im": jnp.array(-1.0)}
    one, two = (jc.clipped_grad(loss, clip, **how) for loss in (whole, halves))
    state, other = one.init(start), two.init(apart)
    for i in range(6):
        keys = jr.split(jr.fold_in(KEY, i), 5)
        x, a, b, c, d = (jr.normal(k, (16, *s)) for k, s in
                         zip(keys, [(3,), (), (), (), ()], strict=True))  # fmt: skip
        examples = x, jax.lax.complex(a, b), jax.lax.complex(c, 3 * d + 1)
        value, state = one(start, examples, state=state)
        parts, other = two(apart, examples, state=other)
        # JAX's gradient is the conjugate.
        np.testing.assert_allclose(value["c"].real, parts["re"], rtol=1e-10)
        np.testing.assert_allclose(value["c"].imag, -parts["im"], rtol=1e-10)
    assert jnp.any(state.policies[0].products[0] != 0)
    for mine, its in zip(*map(jax.tree.leaves, (state, other)), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-9, atol=1e-12)


def test_one_pass_needs_no_forward_mode():
    """A loss with a derivative of its own, as kernels for accelerators have."""

    @jax.custom_vjp
    def square(x):
        return x**2 / 2

    square.defvjp(lambda x: (square(x), x), lambda x, g: (x * g,))

    def loss(params, example):
        x, y = example
        return square(x @ params["w"] + params["b"] - y)

    clip = jc.Adaptive(jc.policy.Criterion(window=64, errors=0.0))
    ours, plain = jc.clipped_grad(loss, clip), jc.clipped_grad(linear, clip)
    states = [ours.init(PARAMS), plain.init(PARAMS)]
    for i in range(5):
        examples = batch(jr.fold_in(KEY, i))
        value, states[0] = ours(PARAMS, examples, state=states[0])
        expected, states[1] = plain(PARAMS, examples, state=states[1])
        np.testing.assert_allclose(value["w"], expected["w"], rtol=1e-12)


def test_shards_of_the_users_own_are_compared_as_a_whole():
    """Inside of `shard_map`, beside a leaf that is on all devices."""
    policy = jc.policy.Criterion(window=64, errors=0.0)
    rows = np.random.default_rng(1).standard_t(2.0, (80, 8)) + 0.3

    def run(scope, rows, bias):
        transform = jc.as_transform(jc.Adaptive(policy), scope)

        def step(state, gradient):
            value, state = transform.update(gradient, state)
            return state, value

        state = transform.init({"w": rows[0], "b": bias[0]})
        state, values = jax.lax.scan(step, state, {"w": rows, "b": bias})
        return values, state.policies[0].products

    bias = np.ones((80, 2)) * 0.2
    alone, products = jax.jit(partial(run, jc.PerTree()))(rows, bias)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    many, spread = jax.jit(
        jax.shard_map(
            partial(run, jc.PerTree(axis_name="d")),
            mesh=mesh,
            in_specs=(P(None, "d"), P()),
            out_specs=({"w": P(None, "d"), "b": P()}, P()),
        )
    )(rows, bias)
    np.testing.assert_allclose(spread, products, rtol=1e-9)
    for name in ("w", "b"):
        np.testing.assert_allclose(many[name], alone[name], rtol=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda clip: jc.as_transform(clip, jc.PerLeaf()),
            r"`Criterion` sets one threshold.*PerLeaf",
        ),
        (
            lambda clip: jc.as_transform({"a": clip, "b": clip}),
            "it must be the only rule",
        ),
        (
            lambda clip: jc.clipped_grad(
                linear, clip, jc.PerExample(within=jc.PerLeaf())
            ),
            "sets one threshold",
        ),
        (
            lambda clip: _step(clip, batch(KEY, 1)),
            "compares each example.*at least two.*PerTree",
        ),
        (
            lambda clip: _step(clip, batch(KEY), metric={"w": jnp.ones(5)}),
            "`metric` must be a pytree like the parameters",
        ),
        (
            lambda clip: _step(clip, batch(KEY), metric=PARAMS, passes=2),
            "`metric` needs the gradient of each example.*passes=1",
        ),
        (
            lambda clip: _step(
                jc.Adaptive(jc.policy.AdaGC()), batch(KEY), metric=PARAMS
            ),
            "`metric` is what `policy.Criterion` compares.*Leave it out",
        ),
        (
            lambda clip: clip.policy.threshold(jnp.ones(1), None, 0),
            "needs to know where gradients point",
        ),
        (lambda clip: jc.policy.Criterion(window=32), "`window` must be at least 64"),
        (lambda clip: jc.policy.Criterion(errors=-1.0), "`errors`"),
    ],
)
def test_mistakes_get_a_sentence(call, message):
    with pytest.raises((ValueError, RuntimeError), match=f"(?s){message}"):
        call(jc.Adaptive(jc.policy.Criterion()))


def _step(clip, examples, metric=None, **how):
    gradient = jc.clipped_grad(linear, clip, **how)
    return gradient(PARAMS, examples, state=gradient.init(PARAMS), metric=metric)
