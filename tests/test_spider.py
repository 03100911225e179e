"""SPIDER with clipping: its rule, its transform, and its loop over a problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.integrate import quad
from scipy.stats import norm as normal_law

import jaxclip as jc
from helpers import finite_difference

# c0 = 0.5 and c1 = 1, with kinks at 0.5 and at L0 / L1 = 2.
CLIP = jc.SpiderClip(2.0, 1.0, 0.25)


# The rule


@pytest.mark.float32
@pytest.mark.parametrize("eps", [0.25, 1.0, 3.0])
def test_factor_is_the_formula(eps):
    norms = np.logspace(-6, 6, 61)
    c0, c1 = 2 * eps, 2 * eps * 2.0 / 1.5
    expected = np.minimum(1, np.minimum(c0 / norms, c1 / norms**2))
    factor = jc.SpiderClip(2.0, 1.5, eps).factor(jnp.asarray(norms), 0)
    rtol = 16 * jnp.finfo(factor.dtype).eps
    np.testing.assert_allclose(factor, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("norm", "factor"), [(0, 1), (0.4, 1), (1, 0.5), (2, 0.25), (4, 1 / 16)]
)
def test_golden_factors(norm, factor):
    assert CLIP.factor(norm, 0) == pytest.approx(factor, rel=1e-15)


def test_golden_vector():
    clipped, _ = jc.as_transform(CLIP).update(
        jnp.array([3.0, -4.0, 12.0]), jc.transform.ClipState(jnp.array(0))
    )
    np.testing.assert_allclose(clipped, np.array([3, -4, 12]) / 169, rtol=1e-14)


def test_kinks_are_where_the_pieces_meet():
    np.testing.assert_allclose(CLIP.kinks(0), (0.5, 2.0), rtol=1e-15)
    # No middle piece: min(1, 6 / n, 4 / n^2) leaves 1 at n = 2.
    np.testing.assert_allclose(jc.SpiderClip(2.0, 3.0, 3.0).kinks(0), (2.0, np.inf))
    np.testing.assert_allclose(jc.SpiderClip(2.0, 0.0, 3.0).kinks(0), (6.0, np.inf))


def test_derivatives_are_differences():
    norms = jnp.array([0.1, 0.8, 1.7, 2.4, 30.0])
    settings = jnp.array([2.0, 1.0, 0.25])

    def factor(settings, norms):
        return jc.SpiderClip(*settings).factor(norms, 0)

    slopes = jax.jit(jax.jacrev(factor))(settings, norms)
    along_norm = jax.vmap(jax.grad(factor, 1), (None, 0))(settings, norms)
    expected = finite_difference(lambda x: factor(settings, norms + x), 0.0, 1e-3)
    np.testing.assert_allclose(along_norm, expected, atol=1e-8)
    for i, direction in enumerate(np.eye(3)):
        expected = finite_difference(
            lambda x, d=direction: factor(settings + x * d, norms), 0.0, 1e-3
        )
        np.testing.assert_allclose(slopes[:, i], expected, atol=1e-8)


@pytest.mark.float32
def test_corners_are_not_nan():
    corners = jnp.array([0.0, 1e-15, 1.0, 1e15])
    grid = jnp.stack(jnp.meshgrid(*[corners] * 4), axis=-1).reshape(-1, 4)

    def factor(x):
        return jc.SpiderClip(x[1], x[2], x[3]).factor(x[0], 0)

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(factor)))(grid)
    assert jnp.all(jnp.isfinite(values)) and not jnp.any(jnp.isnan(slopes))
    assert CLIP.factor(jnp.inf, 0) == 0


def test_without_l1_it_is_a_hard_clip():
    norms = jnp.linspace(0, 9, 19)
    np.testing.assert_array_equal(
        jc.SpiderClip(2.0, 0.0, 0.7).factor(norms, 0),
        jc.HardClip(1.4).factor(norms, 0),
    )


def test_moments_split_at_its_kinks():
    moments = jc.moments(CLIP, jc.Gaussian(1.0), 0.4, 1.0)
    std = np.sqrt(0.8 + 1)

    def psi(r):
        return r * min(1, 0.5 / r, 1 / r**2)

    def expectation(f):
        pieces = [(0, 0.5), (0.5, 2.0), (2.0, 40.0)]
        density = normal_law(scale=std).pdf
        values = [quad(lambda r: f(r) * density(r), *p, epsabs=1e-13) for p in pieces]
        return 2 * sum(value for value, _ in values)

    mu = expectation(lambda r: r * psi(r)) / std**2
    second = expectation(lambda r: psi(r) ** 2)
    assert moments.mu == pytest.approx(mu, rel=1e-9)
    assert moments.second == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("name", ["l0", "l1", "eps"])
def test_bad_settings_are_refused_by_name(name):
    settings = {"l0": 1.0, "l1": 1.0, "eps": 0.1, name: -1.0}
    with pytest.raises(ValueError, match=f"`{name}` must be non-negative"):
        jc.SpiderClip(**settings)


# The transform and the loop, beside SPIDER in plain numpy

SIZE, BATCH, PERIOD, STEPS = 23, 5, 4, 11
RNG = np.random.default_rng(5)
ROWS, TARGETS = RNG.normal(size=(SIZE, 3)), RNG.normal(size=SIZE)


def loss(params, example):
    features, target, _ = example
    return jnp.log(jnp.cosh(features @ params["w"] + params["b"] - target))


PARAMS = {"w": jnp.array([3.0, -2.0, 1.0]), "b": jnp.array(0.5)}
PROBLEM = jc.FiniteSum(loss, PARAMS, (ROWS, TARGETS, np.arange(SIZE)))
SPIDER = jc.Spider(CLIP, 0.3, jc.algorithm.PeriodicSpider(PERIOD), batch_size=BATCH)


def in_numpy(key, anchors, anchor_size=None, authors=False):
    """SPIDER written out: the parameters and the sample gradients after each step."""

    def gradients(x, rows):
        A = np.hstack([ROWS, np.ones((SIZE, 1))])[rows]
        return np.tanh(A @ x - TARGETS[rows])[:, None] * A

    before = x = np.array([3.0, -2.0, 1.0, 0.5])
    index, counted, path = 0, 0, []
    for k in range(STEPS):
        if k in anchors and anchor_size is None:
            rows = np.arange(SIZE)
        else:
            size = anchor_size if k in anchors else BATCH
            samples = index + jnp.arange(size)
            rows = np.asarray(jax.vmap(PROBLEM.example, (None, 0))(key, samples)[2])
            index += size
        new = gradients(x, rows)
        counted += len(new)
        if k in anchors:
            v = new.mean(0)
        else:
            old = gradients(before, rows)
            counted += len(old)
            v = v + new.mean(0) - old.mean(0)
        n = np.linalg.norm(v) ** (2 if authors else 1)
        step = v * min(1, 0.5 / n, 1 / n**2)
        if authors:
            v = step
        before, x = x, x - 0.3 * step
        path.append((x, counted))
    return path


def flat(params):
    return np.append(params["w"], params["b"])


@eqx.filter_jit
def run(optimiser, key):
    def see(run):
        w, b = run.params["w"], run.params["b"]
        return jnp.append(w, b), run.state.evaluations

    curve = jc.run_spider(PROBLEM, optimiser, steps=STEPS, key=key, observe=see)
    return curve.risk, curve.observed


@pytest.mark.parametrize("anchor_size", [None, 7])
def test_the_loop_is_spider_in_numpy(anchor_size):
    key = jr.key(1)
    optimiser = jc.Spider(
        CLIP,
        0.3,
        jc.algorithm.PeriodicSpider(PERIOD),
        anchor_size=anchor_size,
        batch_size=BATCH,
    )
    risk, (params, evaluations) = run(optimiser, key)
    expected = in_numpy(key, {0, 4, 8}, anchor_size)
    for k, (x, counted) in enumerate(expected):
        np.testing.assert_allclose(params[k + 1], x, rtol=1e-12)
        assert evaluations[k + 1] == counted
    assert evaluations[0] == 0
    assert evaluations[-1] == 3 * (anchor_size or SIZE) + 8 * 2 * BATCH
    w, b = params[-1, :3], params[-1, 3]
    residual = ROWS @ np.asarray(w) + float(b) - TARGETS
    assert risk[-1] == pytest.approx(np.mean(np.log(np.cosh(residual))), rel=1e-12)


def test_the_authors_variant_is_theirs():
    variant = jc.algorithm.AuthorsSpider(0.3, jr.key(8))
    steps = jnp.arange(STEPS)
    anchors = set(np.flatnonzero(jax.vmap(variant.anchors)(steps)))
    assert 0 in anchors and 2 <= len(anchors) < STEPS
    optimiser = jc.Spider(CLIP, 0.3, variant, anchor_size=9, batch_size=BATCH)
    _, (params, evaluations) = run(optimiser, jr.key(2))
    expected = in_numpy(jr.key(2), anchors, 9, authors=True)
    np.testing.assert_allclose(params[1:], [x for x, _ in expected], rtol=1e-12)
    np.testing.assert_array_equal(evaluations[1:], [count for _, count in expected])


def test_random_renewals_are_as_frequent_as_they_should_be():
    variant = jc.algorithm.AuthorsSpider(1 / 32, jr.key(0))
    drawn = np.asarray(jax.vmap(variant.anchors)(jnp.arange(1, 32_001)))
    assert abs(drawn.sum() - 1000) < 4 * np.sqrt(1000 * 31 / 32)


def test_a_batch_of_runs_is_each_of_them():
    keys = jr.split(jr.key(3), 3)
    together = jax.vmap(lambda key: run(SPIDER, key))(keys)
    for i in range(3):
        alone = run(SPIDER, keys[i])
        for one, other in zip(
            jax.tree.leaves(alone), jax.tree.leaves(together), strict=True
        ):
            np.testing.assert_allclose(other[i], one, rtol=1e-13)


def test_the_pure_functions_are_the_loop():
    state = SPIDER.init(PROBLEM, jr.key(1))
    step = eqx.filter_jit(lambda state: SPIDER.step(PROBLEM, state))
    for _ in range(STEPS):
        state = step(state)
    _, (params, evaluations) = run(SPIDER, jr.key(1))
    np.testing.assert_allclose(flat(state.params), params[-1], rtol=1e-14)
    assert state.state.evaluations == evaluations[-1]
    assert state.state.step == STEPS


def test_the_transform_in_a_training_loop_of_ones_own():
    """With gradients that a user takes, in a chain, under a scan."""
    optimiser = optax.chain(
        jc.algorithm.spider(
            CLIP,
            jc.algorithm.PeriodicSpider(PERIOD),
            anchor_size=SIZE,
            batch_size=BATCH,
        ),
        optax.scale_by_learning_rate(0.3),
    )

    def body(carry, k):
        params, previous, state, index = carry
        samples = index + jnp.arange(BATCH)
        rows = jax.vmap(PROBLEM.example, (None, 0))(jr.key(1), samples)

        def gradient(params):
            each = jax.vmap(PROBLEM.gradient, (None, 0))(params, rows)
            return jax.tree.map(lambda g: jnp.mean(g, 0), each)

        anchor = state[0].step % PERIOD == 0
        new, old = gradient(params), gradient(previous)
        full = PROBLEM.full_gradient(params)
        new = jax.tree.map(lambda f, g: jnp.where(anchor, f, g), full, new)
        updates, state = optimiser.update(new, state, params, previous_gradient=old)
        index = jnp.where(anchor, index, index + BATCH)
        return (optax.apply_updates(params, updates), params, state, index), None

    carry = (PARAMS, PARAMS, optimiser.init(PARAMS), jnp.zeros((), int))
    (params, _, state, _), _ = jax.lax.scan(body, carry, jnp.arange(STEPS))
    x, counted = in_numpy(jr.key(1), {0, 4, 8})[-1]
    np.testing.assert_allclose(flat(params), x, rtol=1e-12)
    assert state[0].evaluations == counted
    assert state[0].step == STEPS


@pytest.mark.float32
def test_the_estimator_is_carried_unclipped_in_its_own_precision():
    transform = jc.algorithm.spider(jc.HardClip(1.0), jc.algorithm.PeriodicSpider(5))
    params = {"half": jnp.ones(2, jnp.bfloat16), "none": None}
    gradient = {"half": jnp.array([3.0, 4.0], jnp.bfloat16), "none": None}
    state = transform.init(params)
    update, state = transform.update(gradient, state, previous_gradient=gradient)
    np.testing.assert_allclose(update["half"].astype(float), [0.6, 0.8], rtol=1e-2)
    update, state = transform.update(gradient, state, previous_gradient=gradient)
    np.testing.assert_array_equal(state.estimator["half"].astype(float), [3.0, 4.0])
    assert update["half"].dtype == state.estimator["half"].dtype == jnp.bfloat16
    assert update["none"] is None
    assert state.evaluations == 1 + 2


def test_the_count_stops_at_the_largest_number():
    transform = jc.algorithm.spider(
        jc.Identity(), jc.algorithm.PeriodicSpider(1), anchor_size=10
    )
    state = transform.init(jnp.zeros(1))
    state = state._replace(evaluations=jnp.array(2**31 - 5, jnp.int32))
    zero = jnp.zeros(1)
    _, state = transform.update(zero, state, previous_gradient=zero)
    assert state.evaluations == 2**31 - 1


def test_a_missing_second_gradient_is_a_clear_error():
    transform = jc.algorithm.spider(CLIP, jc.algorithm.PeriodicSpider(4))
    state = transform.init(PARAMS)
    with pytest.raises(ValueError, match=r"second gradient.*previous_gradient="):
        transform.update(PARAMS, state, PARAMS)
    chain = optax.chain(transform, optax.scale_by_learning_rate(0.1))
    with pytest.raises(ValueError, match=r"second gradient.*jaxclip.Spider"):
        jax.jit(chain.update)(PARAMS, chain.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="like the gradient"):
        transform.update(PARAMS, state, PARAMS, previous_gradient={"w": jnp.ones(3)})


def test_an_optimiser_of_train_has_no_second_gradient():
    with pytest.raises(ValueError, match="second gradient"):
        optimiser = jc.algorithm.spider(CLIP, jc.algorithm.PeriodicSpider(4))
        jc.train(PROBLEM, optimiser, steps=2, key=jr.key(0))


def test_guaranteed_settings():
    online = jc.Spider.online(2.0, 1.0, 0.03, 1.5)
    assert (online.anchor_size, online.batch_size) == (2500, 100)
    assert online.variant.period == 12
    assert online.lr(0) == 0.25
    total = jc.Spider.finite_sum(2.0, 1.0, 0.03, 569)
    assert (total.anchor_size, total.batch_size) == (None, 48)
    assert total.variant.period == 6
    assert jc.Spider.finite_sum(1.0, 1.0, 0.1, 4).variant.period == 1


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.algorithm.PeriodicSpider(0), "`period` must be at least 1"),
        (
            lambda: jc.algorithm.AuthorsSpider(0.0, jr.key(0)),
            "`probability` must be above 0",
        ),
        (lambda: jc.algorithm.AuthorsSpider(1.5, jr.key(0)), "at most 1. Got 1.5"),
        (
            lambda: jc.algorithm.spider(0.3, jc.algorithm.PeriodicSpider(2)),
            "`clip` must be",
        ),
        (lambda: jc.algorithm.spider(CLIP, 4), "`variant` must be"),
        (
            lambda: jc.algorithm.spider(
                CLIP, jc.algorithm.PeriodicSpider(2), batch_size=0
            ),
            "`batch_size`",
        ),
        (
            lambda: jc.Spider(CLIP, 0.1, jc.algorithm.PeriodicSpider(2), anchor_size=0),
            "anchor_",
        ),
        (lambda: jc.Spider.online(1.0, 1.0, 0.0, 1.0), "`eps` must be positive"),
        (lambda: jc.Spider.finite_sum(0.0, 1.0, 0.1, 9), "`l0` must be positive"),
        (lambda: jc.Spider.finite_sum(1.0, 1.0, 0.1, 0), "`size` must be at least 1"),
        (
            lambda: jc.Spider(CLIP, -0.1, jc.algorithm.PeriodicSpider(2)),
            "`lr` must be non-neg",
        ),
        (
            lambda: jc.run_spider(PROBLEM, SPIDER, steps=5, every=2, key=jr.key(0)),
            "`every` must divide",
        ),
        (
            lambda: SPIDER.init(
                jc.LinearModel(jc.Spectrum.isotropic(2), jc.Gaussian(1.0), np.ones(1)),
                jr.key(0),
            ),
            "`anchor_size=None` takes the full gradient.*LinearModel",
        ),
    ],
)
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_runs_on_any_problem():
    """Least squares on fresh data: SPIDER comes closer than the batch's noise lets SGD
    with the same small batch and rate."""
    problem = jc.LinearModel(jc.Spectrum.isotropic(3), jc.Gaussian(1.0), np.ones(1))
    clip = jc.SpiderClip(1.0, 0.1, 0.3)
    optimiser = jc.Spider(
        clip, 0.5, jc.algorithm.PeriodicSpider(4), anchor_size=400, batch_size=20
    )
    setting = {"steps": 200, "every": 10, "key": jr.key(0)}
    spider = jc.run_spider(problem, optimiser, **setting)
    plain = jc.simulate(problem, clip, 0.5, batch_size=20, **setting)
    assert np.mean(spider.risk[10:]) < np.mean(plain.risk[10:]) / 4
