"""What advice predicts, against the quadrature, the ODE's solver and runs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import assert_within, mean_and_error
from jaxclip.advice._law import MomentTable
from jaxclip.advice._predict import Prediction, guess
from jaxclip.advice._recipe import Recipe
from jaxclip.advice._reference import Reference
from jaxclip.advice._runs import Decay, Settings, SomeRows, final_params
from jaxclip.advice._search import explore
from jaxclip.advice._study import Study

pytestmark = pytest.mark.optimised

N, D, STEPS = 300, 6, 400


def _table(law: str = "t", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)) * np.linspace(0.5, 1.5, D)
    noise = rng.standard_t(2.5, N) if law == "t" else rng.normal(size=N)
    y = X @ np.full(D, 0.5) + noise
    return X / X.std(axis=0), (y - y.mean()) / y.std()


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    X, y = _table()
    reference = Reference.of(X, y)
    return Prediction.of(reference, y - X @ reference.solution, STEPS)


def test_the_coefficients_are_those_of_the_quadrature():
    residuals = np.random.default_rng(3).exponential(size=200) - 1
    law = MomentTable.of(residuals, 0.5)
    noise = jc.Empirical(jnp.asarray(residuals - residuals.mean()), 128)
    rows, columns = np.array([0, 9, 23]), np.array([0, 12, 30, 47])

    @jax.jit
    def of(risk, threshold):
        m = jc.moments(jc.HardClip(threshold), noise, risk, 1.0)
        return m.mu, m.second

    risks, cuts = jnp.exp(law.risks[rows]), jnp.exp(law.thresholds[columns])
    mu, second = jax.vmap(jax.vmap(of, (None, 0)), (0, None))(risks, cuts)
    np.testing.assert_allclose(law.mu[np.ix_(rows, columns)], mu, atol=1e-9)
    # Simpson's rule on eight points between two thresholds.
    np.testing.assert_allclose(law.second[np.ix_(rows, columns)], second, rtol=2e-3)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("threshold", [0.8, np.inf])
def test_the_curves_are_those_of_the_risk_ode(prediction, decays, threshold):
    lr = 0.04
    setting = Settings.grid([lr], [threshold], [int(decays)], [0])
    found = prediction.curves(setting)[0]
    X, y = _table()
    reference = Reference.of(X, y)
    residuals = y - X @ reference.solution
    start = np.sqrt(2 * prediction.start / prediction.eigenvalues)
    problem = jc.LinearModel(
        jc.Spectrum(prediction.eigenvalues),
        jc.Empirical(jnp.asarray(residuals - residuals.mean()), 128),
        jnp.asarray(start),
    )
    # In place of a line to 0, one to next to nothing: the logarithm is interpolated.
    rate = Decay(jnp.asarray(lr), jnp.asarray(float(decays)), jnp.asarray(float(STEPS)))
    curve = jc.solve(
        problem,
        jc.HardClip(threshold),
        rate,
        steps=prediction.at[::20],
        limit=jc.RiskODE(rtol=1e-7),
    )
    # A step of SGD at a time against a step as small as it takes.
    np.testing.assert_allclose(found[::20], curve.risk, rtol=0.05)
    np.testing.assert_allclose(found[-1], curve.risk[-1], rtol=0.02)


def test_the_guess_is_the_best_of_a_finer_grid(prediction):
    plan = guess(prediction, np.inf)
    lrs = np.geomspace(1e-3, 1.0, 40) / D
    plain = Settings.grid(lrs, [np.inf], [0, 1], [0])
    best = prediction.curves(plain)[:, -1].min()
    assert prediction.curves(plan.unclipped)[0, -1] < 1.1 * best
    clips = Settings.grid(lrs, np.geomspace(0.05, 20, 30), [0, 1], [0])
    best = prediction.curves(clips)[:, -1].min()
    assert prediction.curves(plan.clipped)[0, -1] < 1.1 * best
    assert plan.gain > 0.1
    assert plan.profile[-1] == 1.0
    assert plan.profile[0] > 1.5


def test_under_normal_residuals_no_clip_is_expected_to_gain():
    rng = np.random.default_rng(5)
    X, _ = _table()
    # Normal to the last quantile.
    noise = np.sort(rng.normal(size=N))
    y = X @ np.full(D, 0.3) + rng.permutation(noise)
    reference = Reference.of(X, y)
    plan = guess(Prediction.of(reference, y - X @ reference.solution, STEPS), np.inf)
    assert plan.gain < 0.03


def test_runs_on_few_rows_end_where_they_are_expected_to():
    """Runs that draw from the same rows over and over tend to a fit of them."""
    settings = Settings.grid([0.01], [0.7, np.inf], [1], [0])
    found, expected = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(N, D))
        y = X @ np.full(D, 0.3) + 0.8 * rng.standard_t(3, N)
        rows = SomeRows(jnp.asarray(X), jnp.asarray(y), jnp.arange(N), jnp.asarray(N))
        keys = jr.split(jr.key(seed), 4)
        params = final_params(rows, settings, np.ones(2), keys, 2000, 1)[:, :, -1]
        found.append(np.mean(np.sum((params - 0.3) ** 2, axis=-1) / 2, axis=0))
        reference = Reference.of(X, y)
        law = Prediction.of(reference, y - X @ reference.solution, 2000)
        expected.append(law.on_rows(settings, np.ones(2), N))
    ratio, error = mean_and_error(np.array(found) / np.mean(expected, axis=0))
    # To a fifth: with too few rows for the fit to be normal, and rates not small.
    assert_within(ratio, error + 0.05, 1.0, power=0.8)
    fresh = law.curves(settings)[:, -1]
    # Which runs on fresh rows do not.
    assert np.all(np.mean(expected, axis=0) > [1.1, 2.0] * fresh)


# Runs


def test_runs_are_those_of_a_plain_loop():
    X, y = _table(seed=2)
    order, count = np.random.default_rng(0).permutation(N), 200
    rows = SomeRows(
        jnp.asarray(X), jnp.asarray(y), jnp.asarray(order), jnp.asarray(count)
    )
    settings = Settings.grid([0.03], [0.5, np.inf], [0, 1], [0, 1])
    profile, keys, steps = np.array([3.0, 2.0, 1.0]), jr.split(jr.key(3), 4), 60
    found = final_params(rows, settings, profile, keys, steps, 3)
    assert found.shape == (4, 8, 3, D)
    drawn = jax.vmap(lambda i: jr.randint(jr.fold_in(keys[1], i), (), 0, count))(
        jnp.arange(steps)
    )
    for j in range(8):
        x = np.zeros(D)
        for k in range(steps):
            lr = settings.lr[j] * (1 - settings.decays[j] * k / steps)
            cut = settings.threshold[j]
            if settings.follows[j]:
                cut = cut * np.interp(k, [0, steps / 2, steps], profile)
            a, b = X[order[drawn[k]]], y[order[drawn[k]]]
            gradient = (a @ x - b) * a
            x = x - lr * min(1.0, cut / np.linalg.norm(gradient)) * gradient
        np.testing.assert_allclose(found[1, j, -1], x, rtol=1e-9, atol=1e-12)
    # The rows that are left out are never drawn.
    assert not set(order[np.asarray(drawn)]) & set(order[count:])


def test_more_settings_than_one_program_holds():
    X, y = _table(seed=2)
    rows = SomeRows(jnp.asarray(X), jnp.asarray(y), jnp.arange(N), jnp.asarray(N))
    settings = Settings.grid(np.geomspace(1e-3, 0.1, 70), [1.0], [0], [0])
    keys = jr.split(jr.key(3), 4)
    found = final_params(rows, settings, np.ones(2), keys, 60, 3)
    alone = final_params(rows, settings[69], np.ones(2), keys, 60, 3)
    np.testing.assert_allclose(found[:, 69:], alone, rtol=1e-12)


# Settings


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("profile", [(1.0,), (4.0, 2.0, 1.0)])
def test_a_recipe_is_what_it_hands_out(decays, profile):
    recipe = Recipe(0.1, 0.5, decays, 100, profile)
    rule, lr = recipe.setting
    at = np.arange(0, 100, 25)
    rates = [float(lr(jnp.asarray(k))) for k in at]
    np.testing.assert_allclose(rates, recipe.rate_at(at))
    assert rates[-1] == pytest.approx(0.025 if decays else 0.1)
    assert isinstance(rule, jc.HardClip)
    cuts = [float(rule.threshold(jnp.asarray(k))) for k in at]
    np.testing.assert_allclose(cuts, recipe.threshold_at(at), rtol=1e-3)
    assert cuts[0] == pytest.approx(0.5 * profile[0])
    text = str(recipe)
    assert ("falling along a line to 0" in text) == decays
    assert ("threshold 2 falling to 0.5" in text) == (len(profile) == 3)


def test_a_recipe_without_a_clip():
    recipe = Recipe(0.1, np.inf, False, 100)
    assert not recipe.clips
    assert isinstance(recipe.setting.clip, jc.Identity)
    assert str(recipe) == "lr 0.1; no clip"


# The search


def _silent(iterable, label):
    del label
    return iterable


@pytest.mark.parametrize("wrong", [1 / 300, 1.0, 300])
def test_the_search_grows_until_the_best_is_inside(prediction, wrong):
    """From a guess that is wrong by hundreds, up or down, to the same settings."""
    X, y = _table()
    study = Study(X, y, Reference.of(X, y), prediction, np.ones(2), STEPS)
    plan = guess(prediction, np.inf)
    off = jax.tree.map(np.copy, plan.clipped)
    off.lr[:] *= wrong
    off.threshold[:] /= wrong
    moved = type(plan)(plan.unclipped, off, plan.profile, plan.gain)
    settings, score = explore(study, moved, jr.key(2), _silent)
    kind = np.isfinite(settings.threshold) & (settings.decays == 1)
    best = score.best(kind & (settings.follows == 0))
    assert 0.005 < settings.lr[best] < 0.3
    assert 0.05 < settings.threshold[best] < 8
    assert np.isfinite(score.mean[best])
