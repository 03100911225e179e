"""SGD itself: two engines, one trajectory, and the recursions that it must follow."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array

import jaxclip as jc
from helpers import (
    CLIPS,
    NOISES,
    OneNoise,
    assert_within,
    finite_difference,
    mean_and_error,
)
from jaxclip.sgd.engine import _blocked

float32 = pytest.mark.float32

# Arguments that several runs share.
Settings: TypeAlias = dict[str, Any]

PROBLEM = jc.LinearModel(
    jc.Spectrum([2.0, 0.5, 0.1], [1, 2, 3]), jc.Exponential(0.7), [1.0, 0.3, 2.0]
)
KEY = jr.key(11)


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For arithmetic of the step, an integer, with floats, such as optax's own."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _table(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(12)
    X = rng.normal(size=(rows, 5)) * np.array([1.5, 1.0, 0.7, 0.5, 0.2])
    return X, X @ rng.normal(size=5) + rng.exponential(size=rows)


PROBLEMS: dict[str, Any] = {
    "gaussian features": PROBLEM,
    "rows": jc.Regression(*_table(30)),
    "one pass": jc.Regression(*_table(340), replacement=False),
}


# Much is compiled here, and an operation at a time takes longer than all at once.
_simulate = eqx.filter_jit(jc.simulate)
_train = eqx.filter_jit(jc.train)


class OneOf(jc.AbstractClip):
    """One of several rules: all through one compilation, under a `vmap`."""

    index: Array
    rules: tuple[jc.AbstractClip, ...]

    def factor(self, norm, step):
        factors = [lambda n, k, rule=rule: rule.factor(n, k) for rule in self.rules]
        return jax.lax.switch(self.index, factors, jnp.asarray(norm), step)

    def kinks(self, step):
        return ()


def _run(engine, problem, rules, **settings) -> jc.Curve:
    def one(index):
        clip = OneOf(index, tuple(CLIPS[rule] for rule in rules))
        return jc.simulate(problem, clip, 0.1, key=KEY, engine=engine, **settings)

    return jax.jit(jax.vmap(one))(jnp.arange(len(rules)))


# One trajectory, whatever the engine

_TREE, _MEAN, _SUM = jc.PerTree(), jc.PerExample(), jc.PerExample("sum")

# Records are 20 steps apart. The blocks between two of them are one or several, and
# divide the 20 steps (20, 5 or 1 steps a block) or do not (7, 4 or 3 steps).
_CASES = [
    ("gaussian features", 1, _TREE, 64, ["hard", "delta", "skip"]),
    ("gaussian features", 4, _TREE, 20, list(CLIPS)),
    ("gaussian features", 4, _MEAN, 12, list(CLIPS)),
    ("gaussian features", 8, _SUM, 24, list(CLIPS)),
    ("gaussian features", 8, _TREE, 8, ["soft", "root_soft"]),
    ("rows", 1, _MEAN, 7, ["identity", "normalize", "redescending"]),
    ("rows", 8, _TREE, 24, ["hard", "soft"]),
    ("one pass", 4, _SUM, 30, ["hard", "delta"]),
]


@pytest.mark.parametrize(("problem", "batch_size", "scope", "size", "rules"), _CASES)
def test_blocked_is_direct(problem, batch_size, scope, size, rules):
    settings: Settings = dict(steps=40, every=20, batch_size=batch_size, scope=scope)
    direct = _run(jc.Direct(), PROBLEMS[problem], rules, **settings)
    blocked = _run(jc.Blocked(size), PROBLEMS[problem], rules, **settings)
    np.testing.assert_array_equal(blocked.step, direct.step)
    np.testing.assert_allclose(blocked.risk, direct.risk, rtol=1e-12)
    scale = np.max(np.abs(direct.params))
    np.testing.assert_allclose(blocked.params, direct.params, atol=1e-12 * scale)
    # The rules differ (of all, two may not act on these gradients).
    assert len(np.unique(np.asarray(direct.risk[:, -1]))) >= min(len(rules), 6)


@float32
def test_blocked_is_direct_in_any_precision():
    settings: Settings = dict(steps=30, every=10, batch_size=4, scope=_TREE)
    rules = ["hard", "soft"]
    direct = _run(jc.Direct(), PROBLEM, rules, **settings)
    blocked = _run(jc.Blocked(16), PROBLEM, rules, **settings)
    assert direct.risk.dtype == blocked.risk.dtype == jnp.result_type(float)
    np.testing.assert_allclose(blocked.risk, direct.risk, rtol=2e-4)


@float32
def test_the_features_do_not_depend_on_the_precision():
    """Without noise, therefore, nor does the run."""
    problem = jc.LinearModel(PROBLEM.spectrum, jc.Gaussian(0.0), PROBLEM.start)
    settings: Settings = dict(steps=20, every=10, key=KEY, batch_size=4)
    risk = _simulate(problem, jc.HardClip(0.8), 0.1, **settings).risk
    # Of the float64 run.
    expected = [1.2225, 0.3496188377, 0.1769121659]
    np.testing.assert_allclose(risk, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def examples() -> tuple[np.ndarray, np.ndarray]:
    """The first examples that a run with KEY sees."""
    draw = jax.jit(jax.vmap(PROBLEM.example, (None, 0)))
    A, y = draw(PROBLEM.stream(KEY), jnp.arange(24))
    return np.asarray(A), np.asarray(y)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("engine", "scope"),
    [
        (jc.Direct(), _TREE),
        (jc.Direct(), _MEAN),
        (jc.Direct(), _SUM),
        (jc.Blocked(8), _TREE),
    ],
)
def test_against_a_loop_written_by_hand(engine, scope, examples):
    """With schedules of the step, on the examples that the run sees."""
    steps, batch = 12, 2
    threshold, lr = (lambda k: 2.0 / (1 + k)), (lambda k: 0.3 * 0.9**k)
    curve = _simulate(
        PROBLEM,
        jc.HardClip(threshold),
        lr,
        steps=steps,
        every=4,
        key=KEY,
        engine=engine,
        batch_size=batch,
        scope=scope,
    )
    A, y = examples
    K = np.array([2.0, 0.5, 0.5, 0.1, 0.1, 0.1])
    x = np.array([1.0, 0.3 / 2**0.5, 0.3 / 2**0.5] + 3 * [2 / 3**0.5])
    risk = [K @ x**2 / 2]
    for k in range(steps):
        a, b = A[k * batch : (k + 1) * batch], y[k * batch : (k + 1) * batch]
        gradients = (a @ x - b)[:, None] * a
        if scope is _TREE:
            gradients = gradients.mean(axis=0, keepdims=True)
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        clipped = gradients * np.minimum(1, threshold(k) / norms)
        total = clipped.sum(axis=0) if scope is _SUM else clipped.mean(axis=0)
        x = x - lr(k) * total
        risk.append(K @ x**2 / 2)
    np.testing.assert_allclose(curve.risk, risk[::4], rtol=1e-12)
    np.testing.assert_allclose(curve.params, x, rtol=1e-11)


def test_train_with_a_clipped_optimiser_is_simulate():
    optimiser = optax.chain(jc.as_transform(jc.HardClip(0.8)), optax.sgd(0.1))
    settings: Settings = dict(steps=20, every=5, key=KEY, batch_size=3)
    trained = _train(PROBLEM, optimiser, **settings)
    curve = _simulate(PROBLEM, jc.HardClip(0.8), 0.1, engine=jc.Direct(), **settings)
    np.testing.assert_allclose(curve.risk, trained.risk, rtol=1e-13)
    np.testing.assert_allclose(curve.params, trained.params, rtol=1e-12)


def test_train_keeps_the_optimisers_state(examples):
    """Momentum, against the recursion: a state that is lost is plain SGD."""
    curve = _train(PROBLEM, optax.sgd(0.05, momentum=0.9), steps=9, every=3, key=KEY)
    A, y = examples[0][:9], examples[1][:9]
    x = np.asarray(PROBLEM.init())
    velocity = np.zeros_like(x)
    for a, b in zip(A, y, strict=True):
        velocity = 0.9 * velocity + (a @ x - b) * a
        x = x - 0.05 * velocity
    np.testing.assert_allclose(curve.params, x, rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_optax_schedules_are_schedules():
    threshold = optax.cosine_decay_schedule(1.0, 20)
    lr = optax.linear_schedule(0.2, 0.02, 15)
    optimiser = optax.chain(jc.as_transform(jc.HardClip(threshold)), optax.sgd(lr))
    settings: Settings = dict(steps=20, every=5, key=KEY, batch_size=4)
    trained = _train(PROBLEM, optimiser, **settings)
    run = _simulate(PROBLEM, jc.HardClip(threshold), lr, **settings)
    # A transform counts in int32 and the blocked engine in int64, so that optax works
    # out its schedules in float32 and in float64.
    np.testing.assert_allclose(run.risk, trained.risk, rtol=1e-6)


# What is recorded


@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked(8)])
def test_records(engine):
    """Recording less often, or something beside the risk, leaves the run alone."""

    def observe(params):
        return {"params": params, "largest": jnp.max(jnp.abs(params))}

    settings: Settings = dict(steps=12, key=KEY, engine=engine)
    clip = jc.SoftClip(1.0)
    plain = _simulate(PROBLEM, clip, 0.1, **settings)
    sparse = _simulate(PROBLEM, clip, 0.1, every=4, observe=observe, **settings)
    np.testing.assert_array_equal(plain.step, np.arange(13))
    np.testing.assert_array_equal(sparse.step, [0, 4, 8, 12])
    np.testing.assert_allclose(sparse.risk, plain.risk[::4], rtol=1e-13)
    np.testing.assert_allclose(sparse.params, plain.params, rtol=1e-12)
    assert plain.observed is None
    seen = sparse.observed["params"]
    np.testing.assert_allclose(seen[0], PROBLEM.init(), rtol=1e-15)
    np.testing.assert_array_equal(seen[-1], sparse.params)
    np.testing.assert_allclose(jax.vmap(PROBLEM.risk)(seen), sparse.risk, rtol=1e-14)
    largest = np.abs(seen).max(axis=1)
    np.testing.assert_array_equal(sparse.observed["largest"], largest)


@float32
@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked(8)])
def test_divergence_is_infinite_risk(engine):
    lr = jnp.array([0.1, 3.0, 1e30])
    every: Settings = dict(steps=1000, every=100, key=KEY, engine=engine)
    run = jax.jit(jax.vmap(lambda lr: jc.simulate(PROBLEM, jc.Identity(), lr, **every)))
    risk = np.asarray(run(lr).risk)
    assert not np.any(np.isnan(risk))
    assert np.all(np.isfinite(risk[0]))
    for diverged in risk[1:]:
        start = np.argmax(np.isinf(diverged))
        assert start > 0
        assert np.all(np.isinf(diverged[start:]))
        assert np.all(np.isfinite(diverged[:start]))


def test_training_that_fails_has_infinite_risk():
    """Not NaN, which would win every comparison for the smallest risk."""
    curve = jc.train(PROBLEM, optax.sgd(jnp.nan), steps=3, key=KEY)
    np.testing.assert_array_equal(np.isinf(curve.risk), [False, True, True, True])


# Transformations


@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked(8)])
def test_jit_and_vmap(engine):
    """A vmap over settings with one key is a loop over them, on the same data."""

    def final(lr, threshold):
        clip = jc.HardClip(threshold)
        how: Settings = dict(steps=16, every=8, batch_size=4, engine=engine)
        return jc.simulate(PROBLEM, clip, lr, key=KEY, **how)

    lrs, thresholds = jnp.array([0.1, 0.02, 0.2]), jnp.array([0.5, 2.0, 1.0])
    nested = jax.vmap(jax.vmap(final, (None, 0)), (0, None))
    together = jax.jit(nested)(lrs, thresholds)
    alone = jax.jit(final)
    for i, j in itertools.product(range(3), range(3)):
        one = alone(lrs[i], thresholds[j])
        np.testing.assert_allclose(together.risk[i, j], one.risk, rtol=1e-13)
        np.testing.assert_allclose(together.params[i, j], one.params, rtol=1e-11)
    eager = final(lrs[2], thresholds[1])
    np.testing.assert_allclose(together.risk[2, 1], eager.risk, rtol=1e-13)


@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked(8)])
def test_new_numbers_do_not_compile_again(engine):
    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def run(problem, clip, lr, key):
        return jc.simulate(problem, clip, lr, steps=4, every=2, key=key, engine=engine)

    def problem(eigenvalue, std, error):
        return jc.LinearModel(
            jc.Spectrum([eigenvalue, 0.5], [1, 2]), jc.Laplace(std), [error, 1.0]
        )

    array = jnp.asarray
    first = run(problem(1.0, 1.0, 1.0), jc.HardClip(1.0), array(0.1), jr.key(0))
    second = run(problem(2.0, 0.5, 0.3), jc.HardClip(2.0), array(0.2), jr.key(1))
    assert np.all(first.risk != second.risk)


@pytest.mark.parametrize(
    ("engine", "scope"),
    [
        (jc.Direct(), _TREE),
        (jc.Blocked(16), _TREE),
        pytest.param(jc.Blocked(16), _MEAN, marks=pytest.mark.slow),
    ],
)
def test_gradient_is_the_finite_difference(engine, scope):
    """In the threshold and in the learning rate, in both modes."""

    def final(settings):
        clip = jc.HardClip(settings[0])
        return jc.simulate(
            PROBLEM,
            clip,
            settings[1],
            steps=24,
            every=12,
            key=KEY,
            engine=engine,
            batch_size=8,
            scope=scope,
        ).risk[-1]

    at = jnp.array([0.9, 0.15])
    values = jax.jit(jax.vmap(final))
    directions = jnp.eye(2)
    expected = finite_difference(
        lambda x: values(at[None, :] + x[:, None] * directions),
        jnp.zeros(2),
        jnp.full(2, 1e-4),
    )
    reverse = jax.jit(jax.grad(final))(at)
    np.testing.assert_allclose(reverse, expected, rtol=1e-5)
    if scope is _TREE:
        forward = jax.jit(jax.jacfwd(final))(at)
        np.testing.assert_allclose(forward, reverse, rtol=1e-10)
    assert np.all(np.abs(expected) > 1e-3)


def test_gradient_at_the_optimum_without_noise():
    """All norms are zero, where a careless norm has no derivative."""
    spectrum = jc.Spectrum([1.0, 0.5])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.0), [0.0, 0.0])

    def final(lr):
        how: Settings = dict(steps=1, batch_size=8, key=KEY)
        runs = [
            jc.simulate(problem, jc.HardClip(1.0), lr, scope=scope, **how)
            for scope in [_TREE, _MEAN]
        ]
        return sum(run.risk[-1] for run in runs)

    assert jax.jit(jax.grad(final))(0.1) == 0


# The theory


def test_mean_of_unclipped_runs_is_exact_at_finite_size():
    """E v_j follows a linear recursion in any dimension, section 1.5 of docs/theory.md:
    v <- v (1 - 2 lr lam + 2 lr^2 lam^2) + lr^2 lam d (2R + sigma^2) / 2."""
    lam, dims, lr, variance = np.array([1.0, 0.3]), np.array([2, 3]), 0.2, 0.8**2
    problem = jc.LinearModel(jc.Spectrum(lam, dims), jc.Uniform(0.8), [1.5, 2.0])

    def run(key):
        every: Settings = dict(steps=30, every=6, key=key)
        return jc.simulate(problem, jc.Identity(), lr, **every).risk

    risk = jax.jit(jax.vmap(run))(jr.split(KEY, 40_000))
    assert len(np.unique(np.asarray(risk[:, -1]))) == 40_000
    v, expected = np.array([1.5, 2.0]) ** 2 / 2, []
    for _ in range(31):
        excess = lam @ v
        expected.append(excess)
        v = v * (1 - 2 * lr * lam + 2 * lr**2 * lam**2)
        v = v + lr**2 * lam * dims * (2 * excess + variance) / 2
    # The recursion without its smallest term is off by twice the bound, or more.
    assert_within(*mean_and_error(risk[:, 1:]), expected[6::6], power=0.03)


# Two spectra of the same structure, so that one compilation serves both.
_ISOTROPIC, _ANISOTROPIC = (1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 0.25, 0.1)
_FRACTIONS = np.array([0.1, 0.2, 0.3, 0.4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "spectra", "count"),
    [
        (["gaussian", "cauchy"], [_ANISOTROPIC], 32),
        (
            ["gaussian", "cauchy", "laplace", "uniform"],
            [_ISOTROPIC, _ANISOTROPIC],
            128,
        ),
    ],
)
def test_a_run_follows_the_ode_to_the_root_of_the_dimension(names, spectra, count):
    """The mean over runs of the largest deviation over time falls like N^(-1/2)."""
    noises = tuple(NOISES[name] for name in names)

    def setting(dim, eigenvalues, noise):
        """The paper's scaling: lr = eta / N and C = c sqrt(Tr K), with R = 1 at 0."""
        spectrum = jc.Spectrum(eigenvalues, np.rint(_FRACTIONS * dim).astype(int))
        N = spectrum.intrinsic_dimension
        start = jnp.sqrt(2 * spectrum.multiplicity.astype(float) / N)
        problem = jc.LinearModel(spectrum, noise, start)
        return problem, jc.HardClip(spectrum.feature_norm), 0.5 / N

    @eqx.filter_jit
    def ode(problem, clip, lr):
        steps = jnp.linspace(0, 120, 11)
        return jc.solve(problem, clip, lr, steps=steps).risk

    @eqx.filter_jit
    def runs(problem, clip, lr, keys):
        def one(key, index):
            noise = OneNoise(index, noises)
            its = jc.LinearModel(problem.spectrum, noise, problem.start)
            steps = 6 * its.spectrum.dim // 5
            # The direct engine compiles faster, the blocked one runs faster.
            engine = jc.Direct() if len(noises) == 2 else jc.Blocked()
            how: Settings = dict(steps=steps, every=steps // 10, engine=engine)
            return jc.simulate(its, clip, lr, key=key, **how).risk

        indices = jnp.arange(len(noises))
        return jax.lax.map(lambda key: jax.vmap(one, (None, 0))(key, indices), keys)

    slopes = np.zeros((len(spectra), len(noises)))
    for i, eigenvalues in enumerate(spectra):
        # In the time k / N the limit is the same in every dimension.
        limit = np.stack([ode(*setting(100, eigenvalues, noise)) for noise in noises])
        dims, deviations = [100, 400, 1600], []
        for dim in dims:
            risk = runs(*setting(dim, eigenvalues, noises[0]), jr.split(KEY, count))
            deviation = np.abs(np.asarray(risk) - limit).max(axis=-1)
            deviations.append(np.log(deviation).mean(axis=0))
        slopes[i] = np.polyfit(np.log(dims), np.array(deviations), 1)[0]
    assert np.all((slopes > -0.6) & (slopes < -0.4)), slopes


# Misuse


def _call(**changes: Any) -> Callable[[], jc.Curve]:
    settings: Settings = dict(
        problem=PROBLEM, clip=jc.HardClip(1.0), lr=0.1, steps=4, every=2, key=KEY
    )
    return lambda: jc.simulate(**{**settings, **changes})


_ONE_PASS = jc.Regression(*_table(30), replacement=False)


@pytest.mark.usefixtures("without_type_checks", "standard_promotion")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -0.1}, r"`lr` must be non-negative and not NaN\. Got -0\.1"),
        ({"lr": jnp.nan}, "`lr` must be non-negative and not NaN"),
        ({"lr": jc.Constant(-0.1)}, "`lr` must be non-negative and not NaN"),
        ({"lr": lambda k: 0.1 - k}, "`lr` must be non-negative and not NaN"),
        ({"lr": jnp.array([0.1, 0.2])}, r"`lr` must be one number.*Got shape \(2,\)"),
        ({"lr": "0.1"}, "`lr` must be a number"),
        ({"clip": 1.0}, r"`clip` must be a clipping rule.*Got 1\.0"),
        ({"clip": optax.clip(1.0)}, "`clip` must be a clipping rule"),
        ({"problem": 3}, "`problem` must be a jaxclip problem. Got 3"),
        (
            {"steps": 5},
            "`every` must divide `steps`.*steps=5 and every=2; take steps=4",
        ),
        ({"steps": 1}, "`every` must divide `steps`.*take steps=2"),
        ({"steps": 0}, "`steps` must be at least 1. Got 0"),
        ({"steps": 4.0}, r"`steps` must be a Python integer.*Got 4\.0 of type float"),
        ({"steps": True, "every": 1}, "`steps` must be a Python integer"),
        ({"every": 0}, "`every` must be at least 1"),
        ({"every": 2.0}, "`every` must be a Python integer"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 1.5}, "`batch_size` must be a Python integer"),
        ({"scope": "tree"}, r"`scope` must be PerTree\(\) or PerCoordinate\(\)"),
        ({"scope": jc.PerTree}, r"`scope` must be PerTree\(\) or PerCoordinate\(\)"),
        (
            {"problem": _ONE_PASS, "steps": 32},
            "One pass over 30 rows has no 32 samples",
        ),
        ({"problem": _ONE_PASS, "batch_size": 8}, "has no 32 samples: take fewer"),
    ],
)
def test_misuse(changes, message):
    with pytest.raises(ValueError, match=message):
        _call(**changes)()


@pytest.mark.usefixtures("without_type_checks")
def test_steps_may_be_numpy_integers():
    curve = _call(steps=np.int64(4), every=np.int32(2))()
    np.testing.assert_array_equal(curve.step, [0, 2, 4])


@pytest.mark.usefixtures("without_type_checks")
def test_traced_steps_are_refused():
    with pytest.raises(ValueError, match="known before tracing"):
        jax.jit(lambda steps: _call(steps=steps, every=1)().risk)(4)


class Quartic(jc.AbstractProblem):
    """A problem as a user would write it, on a dictionary of parameters."""

    def init(self):
        return {"x": jnp.array([1.0, -0.5]), "y": jnp.asarray(2.0)}

    def example(self, stream, index):
        return jr.normal(jr.fold_in(stream, index), (2,))

    def gradient(self, params, example):
        return jax.grad(self._loss)(params, example)

    def _loss(self, params, example):
        return jnp.sum((params["x"] - example) ** 2) / 2 + params["y"] ** 4

    def risk(self, params):
        return jnp.sum(params["x"] ** 2) / 2 + params["y"] ** 4


def test_any_problem_runs():
    problem = Quartic()
    curve = _simulate(problem, jc.HardClip(1.0), 0.05, steps=10, every=5, key=KEY)
    x, y = np.array([1.0, -0.5]), 2.0
    for k in range(10):
        gx = x - np.asarray(problem.example(KEY, k))
        gy = 4 * y**3
        factor = min(1, 1 / np.sqrt(gx @ gx + gy**2))
        x, y = x - 0.05 * factor * gx, y - 0.05 * factor * gy
    np.testing.assert_allclose(curve.params["x"], x, rtol=1e-12)
    np.testing.assert_allclose(curve.params["y"], y, rtol=1e-12)
    np.testing.assert_allclose(curve.risk[-1], x @ x / 2 + y**4, rtol=1e-12)


def test_blocked_needs_a_linear_model():
    with pytest.raises(ValueError, match=r"needs a linear model.*Got a Quartic"):
        _call(problem=Quartic(), engine=jc.Blocked())()


@pytest.mark.parametrize(
    "scope", [jc.PerLeaf(), jc.PerUnit(), jc.PerExample(within=jc.PerLeaf())]
)
def test_an_unknown_scope_is_refused(scope):
    with pytest.raises(ValueError, match=r"`scope` must be PerTree\(\).*`train`"):
        _call(scope=scope)()


@pytest.mark.parametrize("size", [0, -1, True])
def test_block_size(size):
    with pytest.raises(ValueError, match="`size` must be"):
        jc.Blocked(size)
    with pytest.raises(ValueError, match="`settings` must be"):
        jc.Blocked(settings=size)


def test_the_block_size_that_is_stated_is_the_one_taken(monkeypatch):
    sizes = []

    def run_blocked(*arguments):
        sizes.append(arguments[-1])
        return jc.Curve(jnp.arange(1), jnp.zeros(1))

    monkeypatch.setattr(_blocked, "run_blocked", run_blocked)
    wide = jc.LinearModel(jc.Spectrum.isotropic(101), jc.Gaussian(1.0), jnp.ones(1))
    for engine in (jc.Blocked(), jc.Blocked(settings=256), jc.Blocked(7, settings=256)):
        for problem in (PROBLEM, wide):
            jc.simulate(problem, jc.Identity(), 0.1, steps=1, key=KEY, engine=engine)
            assert sizes[-1] == engine.block(problem.spectrum.dim)
    assert sizes == [64, 64, 64, 128, 7, 7]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "lr",
    [lambda x: x, lambda x: lambda k: x - k, lambda x: jc.Constant(x)],
    ids=["number", "function", "schedule"],
)
@pytest.mark.parametrize("bad", [-0.1, np.nan])
def test_a_traced_bad_learning_rate_fails_when_it_runs(lr, bad):
    @eqx.filter_jit
    def run(x):
        return _call(lr=lr(x), engine=jc.Direct())().risk

    with pytest.raises(RuntimeError, match="`lr` must be non-negative and not NaN"):
        run(jnp.asarray(bad))


@pytest.mark.parametrize("steps", [3, 2.0, "4", None])
@pytest.mark.usefixtures("without_type_checks")
def test_misuse_of_train(steps):
    with pytest.raises(ValueError, match="`steps`"):
        jc.train(PROBLEM, optax.sgd(0.1), steps=steps, every=2, key=KEY)
