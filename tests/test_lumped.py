"""The lumped engine: the law of a run, from a few numbers an eigenvalue."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array
from scipy.stats import chi2, ks_2samp, kstest

import jaxclip as jc
from helpers import (
    NOISES,
    OneNoise,
    assert_within,
    finite_difference,
    mean_and_error,
)
from jaxclip._random import chi_squared
from jaxclip.sgd.engine import _axes, _lumped

float32 = pytest.mark.float32
Settings: TypeAlias = dict[str, Any]

KEY = jr.key(31)
RUNS, STEPS, EVERY = 2000, 40, 10

# 120 dimensions; the first two blocks have fewer than a batch of four samples.
MULTIPLICITY = np.array([1, 2, 117])
SPECTRUM = jc.Spectrum([2.0, 1.0, 0.1], MULTIPLICITY)
ERROR0 = jnp.array([1.0, 0.7, 2.0])


class OneLoss(jc.problem.AbstractNoisyLinear):
    """A problem as a user would write it, whose loss is one of several."""

    spectrum: jc.Spectrum
    noise: jc.AbstractNoise
    start: Array
    index: Array
    losses: tuple[jc.problem.AbstractLoss, ...]

    def slope(self, prediction, target):
        slopes = [lambda p, y, of=loss: of.slope(p, y) for loss in self.losses]
        return jax.lax.switch(self.index, slopes, prediction, target)


_NOISES = ["gaussian", "student_t", "cauchy", "laplace", "sparse_sign", "exponential"]
_LOSSES = (jc.SquaredLoss(), jc.HuberLoss(0.5), jc.PinballLoss(0.3))

# Of noise and loss: every noise with the squared loss, and one with each of the others.
CASES = [(name, 0) for name in _NOISES] + [("student_t", 1), ("exponential", 2)]


def _blocks(params):
    """The norm in each eigenspace."""
    edges = np.cumsum(MULTIPLICITY)[:-1]
    return jnp.stack([jnp.linalg.norm(part) for part in jnp.split(params, edges)])


def _law(engine, key, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Risks, shape `(runs, cases, times)`, and final norms `(runs, cases, blocks)`."""
    noises = tuple(NOISES[name] for name in _NOISES)

    def one(noise, loss, key):
        problem = OneLoss(SPECTRUM, OneNoise(noise, noises), ERROR0, loss, _LOSSES)
        how: Settings = dict(steps=STEPS, every=EVERY, key=key, engine=engine)
        curve = jc.simulate(problem, jc.HardClip(2.5), 0.15, **how, **settings)
        lumped = isinstance(engine, jc.Lumped)
        return curve.risk[1:], curve.reduced if lumped else _blocks(curve.params)

    indices = jnp.array([[_NOISES.index(noise), loss] for noise, loss in CASES])
    cases = jax.vmap(one, (0, 0, None))
    run = jax.jit(jax.vmap(lambda key: cases(indices[:, 0], indices[:, 1], key)))
    risk, norms = run(jr.split(key, RUNS))
    return np.asarray(risk), np.asarray(norms)


def _p_values(first, second) -> np.ndarray:
    """Of the two samples Kolmogorov-Smirnov test, for each trailing index."""
    first, second = (x.reshape(len(x), -1).T for x in (first, second))
    return np.array([ks_2samp(a, b).pvalue for a, b in zip(first, second, strict=True)])


_TREE, _MEAN = jc.PerTree(), jc.PerExample()
_NOISY = jc.PerExample("sum", noise_std=0.3)
MODES: dict[str, Settings] = {
    "one sample": dict(batch_size=1, scope=_TREE),
    "batch": dict(batch_size=4, scope=_TREE),
    "per example": dict(batch_size=4, scope=_MEAN),
    "noise": dict(batch_size=4, scope=_NOISY),
    "noise on one sample": dict(batch_size=1, scope=_NOISY),
}


@pytest.fixture(scope="module")
def direct():
    """The law by steps, worked out once for each mode."""
    known: dict[str, Any] = {}

    def law(mode: str):
        if mode not in known:
            known[mode] = _law(jc.Direct(), jr.key(1), **MODES[mode])
        return known[mode]

    return law


# The others go through the same lines, and are compiled again for it.
_SLOW = ("one sample", "batch", "per example", "noise on one sample")


@pytest.mark.optimised
@pytest.mark.parametrize(
    "mode",
    [pytest.param(m, marks=pytest.mark.slow) if m in _SLOW else m for m in MODES],
)
def test_the_law_is_that_of_steps(mode, direct):
    """Of the risk at four times and of the final norms, for each noise and loss."""
    lumped = _law(jc.Lumped(), jr.key(2), **MODES[mode])
    for ours, reference in zip(lumped, direct(mode), strict=True):
        p = _p_values(ours, reference)
        assert p.size >= 24
        assert np.all(p > 1e-3), p


@pytest.mark.slow
@pytest.mark.parametrize("shift", ["one more", "none"])
def test_a_wrong_engine_is_seen(shift, direct, monkeypatch):
    """With d_j in place of d_j - 1 hidden dimensions, and with none of them."""
    right = _axes.bartlett

    def wrong(key, dims, rows):
        return right(key, dims + 1 if shift == "one more" else 0 * dims, rows)

    monkeypatch.setattr(_axes, "bartlett", wrong)
    lumped = _law(jc.Lumped(), jr.key(2), **MODES["batch"])
    risk, norms = (
        _p_values(a, b) for a, b in zip(lumped, direct("batch"), strict=True)
    )
    assert np.min(norms) < 1e-6
    if shift == "none":
        assert np.mean(risk < 1e-6) > 0.9


_LOGISTIC = jc.Logistic(SPECTRUM, [1.0, 0.6, 2.0], [-0.4, 0.5, 0.0])


def _logistic_law(engine, key, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Risks, and the parts of the parameters along the optimum and beside it."""

    def one(key):
        how: Settings = dict(steps=STEPS, every=EVERY, key=key, engine=engine)
        curve = jc.simulate(_LOGISTIC, jc.HardClip(1.5), 0.5, **how, **settings)
        if isinstance(engine, jc.Lumped):
            return curve.risk[1:], curve.reduced
        edges = np.cumsum(MULTIPLICITY)[:-1]
        parts = jnp.split(curve.params, edges)
        along = jnp.stack([jnp.sum(x) / np.sqrt(x.size) for x in parts])
        beside = jnp.stack([jnp.linalg.norm(x - jnp.mean(x)) for x in parts])
        return curve.risk[1:], jnp.concatenate([along, beside])

    risk, parts = jax.jit(jax.vmap(one))(jr.split(key, RUNS))
    return np.asarray(risk), np.asarray(parts)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["one sample", "noise"])
def test_the_law_of_logistic_regression(mode):
    lumped = _logistic_law(jc.Lumped(), jr.key(3), **MODES[mode])
    steps = _logistic_law(jc.Direct(), jr.key(4), **MODES[mode])
    # In one dimension there is nothing beside the optimum.
    np.testing.assert_array_equal(lumped[1][:, 3], 0)
    assert np.all(_p_values(lumped[0], steps[0]) > 1e-3)
    kept = [0, 1, 2, 4, 5]
    assert np.all(_p_values(lumped[1][:, kept], steps[1][:, kept]) > 1e-3)


# What it is made of


def test_chi_squared_numbers():
    """Against the distribution function, from none to 10^9 degrees of freedom."""
    freedom = np.array([0, 1, 2, 3, 8, 60, 10**4, 10**9])
    draw = jax.jit(lambda key: chi_squared(key, jnp.asarray(freedom)))
    draws = np.asarray(jax.vmap(draw)(jr.split(KEY, 20_000)))
    assert np.all(draws[:, 0] == 0)
    for n, values in zip(freedom[1:], draws.T[1:], strict=True):
        assert kstest(values, chi2(n).cdf).pvalue > 1e-3, n
        assert kstest(values, chi2(n + 1).cdf).pvalue < 1e-6 or n > 100
    assert np.all(np.abs(np.corrcoef(draws.T[1:]) - np.eye(7)) < 0.03)


@float32
def test_chi_squared_numbers_come_to_an_end():
    """At 10^8 degrees of freedom `jax.random.gamma` does not, in float32."""
    rest = jr.split(jr.key(0))[1]
    keys = jax.vmap(lambda k: jr.fold_in(rest, k))(jnp.arange(3000))
    freedom = jnp.full(3, 10**8)
    draws = jax.jit(jax.vmap(lambda key: chi_squared(key, freedom)))(keys)
    relative = (np.asarray(draws, float) - 1e8) / np.sqrt(2e8)
    assert_within(*mean_and_error(relative.ravel()), 0.0)
    assert_within(*mean_and_error(relative.ravel() ** 2), 1.0, power=0.1)


def test_triangles_are_factors_of_gram_matrices():
    """For more and for fewer columns than rows, entry by entry in law."""
    dims, rows = np.array([0, 1, 2, 3, 7]), 3
    draw = jax.jit(jax.vmap(lambda key: _axes.bartlett(key, jnp.asarray(dims), rows)))
    L = np.asarray(draw(jr.split(KEY, 5000)))
    gram = L @ np.swapaxes(L, -1, -2)
    rng = np.random.default_rng(3)
    for j, n in enumerate(dims):
        X = rng.normal(size=(5000, rows, n))
        expected = X @ np.swapaxes(X, -1, -2)
        if n == 0:
            assert np.all(gram[:, 0] == 0)
            continue
        lower = np.tril_indices(rows)
        ours, reference = gram[:, j][:, *lower], expected[:, *lower]
        assert np.all(_p_values(ours, reference) > 1e-3)
        w = np.array([1.0, -2.0, 0.5])
        forms = [np.einsum("kij,i,j->k", g, w, w) for g in (gram[:, j], expected)]
        assert _p_values(*forms) > 1e-3


# What it does not depend on


@pytest.mark.slow
def test_records_leave_the_run_alone():
    """Randomness belongs to the absolute step, and 65 steps are not one chunk."""
    problem = jc.LinearModel(SPECTRUM, jc.Laplace(0.5), ERROR0)
    how: Settings = dict(steps=130, key=KEY, engine=jc.Lumped(), batch_size=2)
    how |= dict(scope=_NOISY)
    often, seldom = (
        jc.simulate(problem, jc.HardClip(2.0), 0.1, every=every, **how)
        for every in (13, 65)
    )
    np.testing.assert_allclose(seldom.risk, often.risk[::5], rtol=1e-12)
    np.testing.assert_allclose(seldom.reduced, often.reduced, rtol=1e-12)
    lam = np.asarray(SPECTRUM.eigenvalues)
    risk = lam @ np.asarray(seldom.reduced) ** 2 / 2
    np.testing.assert_allclose(seldom.risk[-1], risk, rtol=1e-14)
    np.testing.assert_allclose(seldom.risk[0], lam @ ERROR0**2 / 2, rtol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_program_does_not_depend_on_multiplicities(batch_size):
    def program(multiplicity):
        def run(spectrum, lr):
            problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), jnp.ones(2))
            how: Settings = dict(steps=4, every=2, key=KEY, engine=jc.Lumped())
            clip, scope = jc.HardClip(spectrum.feature_norm), _NOISY
            return jc.simulate(
                problem, clip, lr, **how, batch_size=batch_size, scope=scope
            ).risk

        spectrum = jc.Spectrum([1.0, 0.5], multiplicity)
        return jax.jit(run).lower(spectrum, 0.5 / spectrum.trace).as_text()

    assert program([1, 2]) == program([10**9, 10**9])


@float32
def test_small_steps_are_not_lost_to_rounding():
    """In 10^9 dimensions a step moves the error by less than float32 resolves."""
    problem = jc.LinearModel(jc.Spectrum.isotropic(10**9), jc.Gaussian(1.0), [1.0])
    spectrum = problem.spectrum
    clip, lr, steps = jc.HardClip(spectrum.feature_norm), 0.5 / spectrum.trace, 2000

    @jax.jit
    @jax.vmap
    def final(key):
        how: Settings = dict(steps=steps, every=steps, key=key, engine=jc.Lumped())
        return jc.simulate(problem, clip, lr, **how).reduced[0]

    moments = jc.moments(clip, problem.noise, 0.5, spectrum.feature_norm)
    drift = -0.5e-9 * moments.mu + (0.5e-9) ** 2 * moments.second * 1e9 / 2
    moved = np.asarray(final(jr.split(KEY, 400)), float) - 1
    mean, error = mean_and_error(moved)
    assert_within(mean, error, steps * drift, power=0.1 * abs(steps * drift))


def test_a_run_follows_the_ode():
    """In 10^4 dimensions to a few times one over their root."""
    spectrum = jc.Spectrum([1.0, 0.3], [4000, 8000])
    problem = jc.LinearModel(spectrum, jc.StudentT(3.0, 1.0), [1.0, 1.0])
    clip, lr = jc.HardClip(spectrum.feature_norm), 0.7 / spectrum.trace
    how: Settings = dict(steps=8000, every=2000, key=KEY, engine=jc.Lumped())
    run = jax.jit(lambda: jc.simulate(problem, clip, lr, **how).risk)()
    ode = jc.solve(problem, clip, lr, steps=np.arange(0, 8001, 2000))
    np.testing.assert_allclose(run, ode.risk, rtol=0.05)
    assert ode.risk[-1] < 0.8 * ode.risk[0]


# Gradients


@pytest.mark.parametrize(
    ("problem", "batch_size", "scope"),
    [
        ("least squares", 1, "tree"),
        pytest.param("logistic", 3, "noisy", marks=pytest.mark.slow),
    ],
)
def test_gradient_is_the_finite_difference(problem, batch_size, scope):
    """In rate, threshold, noise and eigenvalues, with blocks of one dimension."""

    def final(at):
        lr, threshold, std = at[0], at[1], at[2]
        spectrum = jc.Spectrum(at[3:6], [1, 2, 30])
        if problem == "logistic":
            its = jc.Logistic(spectrum, jnp.array([1.0, 0.5, 0.3]))
        else:
            its = jc.LinearModel(spectrum, jc.StudentT(3.0, std), ERROR0)
        noisy = jc.PerExample(noise_std=std)
        return jc.simulate(
            its,
            jc.HardClip(threshold * spectrum.feature_norm),
            lr / spectrum.trace,
            steps=12,
            every=6,
            key=KEY,
            engine=jc.Lumped(),
            batch_size=batch_size,
            scope=noisy if scope == "noisy" else _TREE,
        ).risk[-1]

    at = jnp.array([0.5, 0.3, 0.8, 2.0, 1.0, 0.1])
    values = jax.jit(jax.vmap(final))
    steps = 1e-4 * jnp.diag(at)
    expected = finite_difference(lambda h: values(at[None, :] + h * steps), 0.0, 1.0)
    gradient = jax.jit(jax.grad(final))(at)
    assert np.all(np.isfinite(gradient)) and np.all(gradient != 0)
    np.testing.assert_allclose(gradient, expected / (1e-4 * at), rtol=1e-5, atol=1e-10)


@float32
def test_no_nan():
    """From the optimum, without a step, and where the run diverges."""
    problem = jc.LinearModel(jc.Spectrum([1.0, 0.5], [1, 9]), jc.Cauchy(1.0), [0, 0])

    def final(lr):
        how: Settings = dict(steps=6, every=6, key=KEY, engine=jc.Lumped())
        return jc.simulate(problem, jc.Identity(), lr, batch_size=3, **how).risk[-1]

    lrs = jnp.array([0.0, 0.5, 1e30])
    risk, slope = jax.jit(jax.vmap(jax.value_and_grad(final)))(lrs)
    assert risk[0] == 0 and np.isfinite(risk[1]) and risk[2] > 1e30
    assert np.all(np.isfinite(slope[:2]))


# Which engine

_ROWS = jc.Regression(np.eye(5)[:, :2], np.arange(5.0))


def _least_squares(spectrum):
    return jc.LinearModel(spectrum, jc.Gaussian(1.0), 0 * spectrum.eigenvalues)


@pytest.mark.parametrize(
    ("problem", "engine"),
    [
        (_least_squares(jc.Spectrum.isotropic(10**7)), jc.Blocked),
        (_least_squares(jc.Spectrum.isotropic(10**7 + 1)), jc.Lumped),
        (jc.Logistic(jc.Spectrum([1.0, 0.5], [10**9, 1]), [1.0, 1.0]), jc.Lumped),
        (_LOGISTIC, jc.Blocked),
        (_ROWS, jc.Blocked),
    ],
)
def test_the_default_engine(problem, engine):
    assert type(jc.sgd.default_engine(problem)) is engine


def test_the_default_engine_is_the_one_that_runs():
    problem = _least_squares(jc.Spectrum.isotropic(10**8))
    how: Settings = dict(steps=2, key=KEY)
    by_default = jc.simulate(problem, jc.Identity(), 1e-8, **how)
    lumped = jc.simulate(problem, jc.Identity(), 1e-8, engine=jc.Lumped(), **how)
    np.testing.assert_array_equal(by_default.risk, lumped.risk)
    assert by_default.reduced.shape == (1,)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": _ROWS}, r"needs Gaussian features.*Got a Regression; use `Blo"),
        ({"observe": lambda x: x}, "`observe` is a function of all parameters"),
        ({"scope": "tree"}, r"`scope` must be PerTree\(\) or PerCoordinate\(\)"),
    ],
)
def test_misuse(changes, message):
    settings: Settings = dict(problem=_LOGISTIC, clip=jc.HardClip(1.0), lr=0.1)
    settings |= dict(steps=1, key=KEY, engine=jc.Lumped(), **changes)
    with pytest.raises(ValueError, match=message):
        jc.simulate(**settings)


def test_multiplicities_that_do_not_fit_are_refused():
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        jc.Spectrum([1.0], [2**31])


def test_what_rounding_takes_is_added_later():
    """10^5 steps of 1e-9, each below the rounding of a 1 in float32."""
    one, step = jnp.ones(1, jnp.float32), jnp.full(1, 1e-9, jnp.float32)

    def body(state, _):
        return _lumped._add(*state, step), None

    start = one, jnp.zeros_like(one)
    (total, _), _ = jax.jit(lambda s: jax.lax.scan(body, s, length=10**5))(start)
    np.testing.assert_allclose(total, 1 + 1e-4, rtol=2e-7)
    assert one + step == one
