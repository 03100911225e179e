"""Advice on a data set: each number by other means, and a verdict that follows them."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

import jaxclip as jc
from helpers import assert_within, mean_and_error
from jaxclip.advise._residuals import ResidualLaw
from jaxclip.advise._rows import RowsSearch, final_risk, run, search, settles_at
from jaxclip.advise._verdict import MATERIAL, Verdict, judge

KEY = jr.key(31)


def _silent(iterable: Any, label: str) -> Any:
    del label
    return iterable


# The verdict

# Facts of which none is worth a reason.
PLAIN: dict[str, float] = {
    "intrinsic_dimension": 50.0,
    "leverage": 1.1,
    "predicted": 0.4,
    "settles": 0.05,
    "ratio": 1.0,
    "wander": 0.1,
}


def _judge(difference: float, error: float, **facts: float) -> Verdict:
    found = RowsSearch(
        lrs=np.ones(1),
        thresholds=np.ones(2),
        risk=np.ones((1, 2)),
        lr=1.0,
        threshold=1.0,
        lr_unclipped=1.0,
        difference=difference,
        error=error,
    )
    return judge(found, **PLAIN | facts)


@pytest.mark.parametrize(
    ("difference", "error", "decision", "sentence"),
    [
        (0.4, 0.1, "clip", "Clip: .* 40.0% below .* (standard error 10.0%)."),
        (0.4, 0.19, "clip", "Clip: "),
        (0.4, 0.21, "cannot tell", "Cannot tell: .* 40.0% below .* 21.0%"),
        # Certain, and not worth a threshold.
        (0.05, 0.01, "do not clip", "Do not clip: .* 5.0% less risk .* 1.0%"),
        (0.05, 0.024, "do not clip", "Do not clip: "),
        (0.05, 0.026, "cannot tell", "Cannot tell: .* whether it gains 10%."),
        (0.101, 0.04, "clip", "Clip: "),
        (0.099, 0.04, "cannot tell", "Cannot tell: "),
        (-0.3, 0.1, "do not clip", "Do not clip: .* 30.0% more risk .* 10.0%"),
        (-0.3, 0.21, "cannot tell", "Cannot tell: .* 30.0% above .* 21.0%"),
        (0.0, 0.0, "do not clip", "Do not clip: .* the same risk, .* less than 10%."),
    ],
)
def test_the_decision_is_the_rows_own(difference, error, decision, sentence):
    verdict = _judge(difference, error)
    assert verdict.decision == decision
    # Whatever is predicted.
    assert _judge(difference, error, predicted=0.0).decision == decision
    parts = sentence.split(".* ")
    at = [verdict.sentence.find(part) for part in parts]
    assert at[0] == 0
    assert at == sorted(at), verdict.sentence
    assert verdict.sentence.endswith(".")


@pytest.mark.parametrize(
    ("difference", "predicted", "reason"),
    [
        (0.4, 0.2, "the risk ODE predicts a gain of 20.0% and agrees"),
        (0.4, 0.05, "the risk ODE predicts a gain of 5.0% and the rows contradict it"),
        (0.0, 0.05, "the risk ODE predicts a gain of 5.0% and agrees"),
        (0.0, 0.2, "the risk ODE predicts a gain of 20.0% and the rows contradict it"),
        (MATERIAL, 0.2, "the risk ODE predicts a gain of 20.0%"),
    ],
)
def test_the_prediction_agrees_or_not(difference, predicted, reason):
    # In the last case the error leaves the rows' gain open.
    error = 0.1 if difference == MATERIAL else 0.01
    assert _judge(difference, error, predicted=predicted).reasons == (reason,)


@pytest.mark.parametrize(
    ("fact", "quiet", "loud", "reason"),
    [
        ("settles", 0.29, 0.31, "does has 0.31 times the final risk of unclipped SGD"),
        ("leverage", 1.49, 1.6, "learning rate 1.6 times smaller than Gaussian"),
        ("intrinsic_dimension", 20.0, 19.0, "the intrinsic dimension is only 19"),
        ("ratio", 1.24, 1.3, "the clipped runs end at 1.3 times the risk that"),
        ("ratio", 0.81, 0.79, "the clipped runs end at 0.79 times the risk that"),
    ],
)
def test_what_else_differs_is_a_reason(fact, quiet, loud, reason):
    assert len(_judge(0.4, 0.1, **{fact: quiet}).reasons) == 1
    verdict = _judge(0.4, 0.1, **{fact: loud})
    assert len(verdict.reasons) == 2
    assert reason in verdict.reasons[1]
    assert verdict.decision == "clip"


def test_runs_in_few_dimensions_scatter():
    verdict = _judge(0.4, 0.1, intrinsic_dimension=3.0, wander=0.27)
    assert "scatter by 27% around their mean" in verdict.reasons[1]


# The law of the residuals


@pytest.mark.parametrize(
    "law",
    [scipy.stats.expon(), scipy.stats.t(5), scipy.stats.uniform()],
    ids=["exponential", "student_t", "uniform"],
)
def test_the_law_of_the_residuals(law):
    residuals = 3 * law.rvs(size=2000, random_state=1) + 0.5
    found = ResidualLaw.of(residuals)
    z = np.asarray(scipy.stats.zscore(residuals))
    np.testing.assert_allclose(
        [found.std, found.skewness, found.excess_kurtosis],
        [
            math.sqrt(scipy.stats.moment(residuals, 2)),
            scipy.stats.skew(residuals),
            scipy.stats.kurtosis(residuals),
        ],
        rtol=1e-10,
    )
    assert found.beyond_three == sum(abs(x) > 3 for x in z) / 2000
    np.testing.assert_allclose(found.largest, max(abs(z)), rtol=1e-12)
    # Hill's estimate is the maximum of the likelihood of a Pareto law.
    tail = sorted(abs(z))[-100:]
    index, *_ = scipy.stats.pareto.fit(tail, floc=0, fscale=tail[0])
    np.testing.assert_allclose(found.tail_index, index, rtol=1e-10)


@pytest.mark.parametrize("index", [1.5, 2.5, 4.0])
def test_the_tail_index_of_a_pareto_law(index):
    # Its quantiles, on both sides of zero.
    size = scipy.stats.pareto(index).ppf((np.arange(100_000) + 0.5) / 100_000)
    found = ResidualLaw.of(np.concatenate([size, -size]))
    # From the 10,000 largest: the quantiles leave an error of their number's inverse.
    np.testing.assert_allclose(found.tail_index, index, rtol=2e-3)


def test_few_residuals_have_a_law():
    found = ResidualLaw.of(np.array([1.0, -1.0, 3.0, -3.0]))
    np.testing.assert_allclose(found.std, math.sqrt(5))
    assert all(math.isfinite(value) for value in dataclasses.astuple(found))


# Where clipped SGD comes to rest


def _rows(noise: np.ndarray, d: int) -> jc.Regression:
    rng = np.random.default_rng(21)
    X = rng.normal(size=(len(noise), d)) * np.linspace(1, 0.3, d)
    # The noise's size depends on a feature: neither symmetric nor of one law.
    return jc.Regression(X, X @ rng.normal(size=d) + noise * np.exp(X[:, 0]))


@pytest.mark.parametrize("threshold", [0.1, 0.7, 3.0])
def test_the_point_of_rest_minimises_a_huber_loss(threshold):
    problem = _rows(np.random.default_rng(22).exponential(size=120), 3)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    bounds = threshold / np.linalg.norm(X, axis=1)

    def loss(x):
        # scipy's pseudonym: delta ** 2 / 2 or delta (|r| - delta / 2).
        return np.mean(scipy.special.huber(bounds, y - X @ x))

    def slope(x):
        return -X.T @ np.clip(y - X @ x, -bounds, bounds) / len(y)

    best = scipy.optimize.minimize(
        loss, np.zeros(3), jac=slope, method="BFGS", options={"gtol": 1e-10}
    )
    expected = float(problem.risk(jnp.asarray(best.x)))
    assert expected > 1e-3
    np.testing.assert_allclose(settles_at(problem, threshold), expected, rtol=1e-5)


def test_without_a_threshold_sgd_settles_at_least_squares():
    problem = _rows(np.random.default_rng(22).exponential(size=120), 3)
    assert settles_at(problem, math.inf) < 1e-25


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_symmetric_residuals_settle_at_least_squares(threshold):
    assert settles_at(jc.Regression(*_pairs(50, 3)), threshold) < 1e-16


# The search on the rows


def test_the_search_judges_on_keys_it_has_not_seen():
    problem = _rows(2 * np.random.default_rng(23).standard_t(2, size=60), 2)
    steps, every, count = 120, 6, 10
    # The largest rates overflow.
    found = search(
        problem,
        [0.02, 50.0],
        [0.5, 0.9],
        steps=steps,
        every=every,
        key=KEY,
        progress=_silent,
        keys=count,
    )
    lrs = 0.0025 * 2.0 ** np.arange(len(found.lrs))
    np.testing.assert_allclose(found.lrs, lrs)
    assert lrs[-2] < 400 <= lrs[-1]
    thresholds = 0.0625 * 2.0 ** np.arange(len(found.thresholds) - 1)
    np.testing.assert_allclose(found.thresholds, [*thresholds, np.inf])
    assert thresholds[-2] < 3.6 <= thresholds[-1]

    def final(key, lr, threshold):
        clip = jc.HardClip(threshold)
        curve = jc.simulate(problem, clip, lr, steps=steps, every=every, key=key)
        # Of 21 records a tenth are 2.
        return (curve.risk[-1] + curve.risk[-2]) / 2

    over = jax.vmap(jax.vmap(final, (None, None, 0)), (None, 0, None))
    every_final = jax.jit(jax.vmap(over, (0, None, None)))
    risk = np.asarray(
        every_final(
            jr.split(KEY, count),
            jnp.asarray(found.lrs),
            jnp.asarray(found.thresholds),
        )
    )
    out = ~np.isfinite(risk).all(axis=0)
    assert out.any()
    assert not out.all()
    assert np.isinf(found.risk[out]).all()
    # Where a run has grown, it has made rounding errors grow with it.
    calm = risk.max(axis=0) < 10
    assert calm.mean() > 0.5
    np.testing.assert_allclose(found.risk[calm], risk.mean(axis=0)[calm], rtol=1e-6)

    seen, unseen = risk[0::2], risk[1::2]
    mean = np.where(out, np.inf, seen.mean(axis=0))
    i, j = divmod(int(mean[:, :-1].argmin()), len(thresholds))
    plain = int(mean[:, -1].argmin())
    assert found.lr == found.lrs[i]
    assert found.threshold == found.thresholds[j]
    assert found.lr_unclipped == found.lrs[plain]
    clipped, unclipped = unseen[:, i, j], unseen[:, plain, -1]
    gain = (unclipped - clipped) / unclipped.mean()
    np.testing.assert_allclose(found.difference, 1 - clipped.mean() / unclipped.mean())
    np.testing.assert_allclose(found.error, scipy.stats.sem(gain), rtol=1e-6)
    # The seen keys would have flattered it.
    assert found.difference != pytest.approx(
        1 - seen[:, i, j].mean() / seen[:, plain, -1].mean(), rel=1e-3
    )


def test_runs_are_those_of_their_keys():
    problem, clip = _rows(np.random.default_rng(23).normal(size=60), 2), jc.HardClip(1)
    lr, keys = jc.Constant(0.1), jr.split(KEY, 5)
    settings: dict[str, Any] = {"steps": 20, "every": 5}
    labels = []

    def progress(iterable, label):
        labels.append((label, len(iterable)))
        return iterable

    curve = run(
        problem, clip, lr, keys=keys, progress=progress, label="x", chunk=2, **settings
    )
    assert labels == [("x", 3)]
    assert curve.risk.shape == (5, 5)
    alone = jax.jit(lambda key: jc.simulate(problem, clip, lr, key=key, **settings))
    np.testing.assert_allclose(curve.risk[4], alone(keys[4]).risk, rtol=1e-10)
    np.testing.assert_allclose(curve.params[1], alone(keys[1]).params, rtol=1e-10)


# The advice


def _pairs(pairs: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that come twice, with errors of both signs: least squares is where every
    clip settles, so that prediction and rows should agree. One error in ten is large.
    """
    rng = np.random.default_rng(24)
    X = rng.normal(size=(pairs, d))
    signal = X @ rng.normal(size=d) / math.sqrt(d)
    large = rng.uniform(size=pairs) < 0.1
    error = rng.normal(size=pairs) * np.where(large, 5.0, 0.3)
    return np.tile(X, (2, 1)), np.concatenate([signal + error, signal - error])


DATA = _pairs(300, 20)


@pytest.fixture(scope="module")
def advice() -> jc.Advice:
    # Columns on scales of their own, which must not matter.
    X, y = DATA
    scales = np.logspace(-6, 6, X.shape[1])
    return jc.advise(X * scales + 3 * scales, 1e4 * y - 7e5, steps=1000, runs=11)


@pytest.fixture
def standardised() -> tuple[np.ndarray, np.ndarray]:
    X, y = DATA
    return np.asarray(scipy.stats.zscore(X)), np.asarray(scipy.stats.zscore(y))


def test_heavy_tails_are_to_be_clipped(advice):
    assert advice.verdict.decision == "clip"
    assert advice.search.difference > 0.3
    (reason,) = [r for r in advice.verdict.reasons if "risk ODE predicts a gain" in r]
    assert reason.endswith("and agrees")


def test_the_rows_are_standardised(advice, standardised):
    X, y = standardised
    np.testing.assert_allclose(advice.regression.X, X, atol=1e-8)
    np.testing.assert_allclose(advice.regression.y, y, atol=1e-8)
    fit = np.linalg.lstsq(X, y, rcond=None)[0]
    residuals = y - X @ fit
    np.testing.assert_allclose(advice.residuals.std, residuals.std(), rtol=1e-8)
    np.testing.assert_allclose(
        advice.residuals.excess_kurtosis, scipy.stats.kurtosis(residuals), rtol=1e-6
    )


def _ode(setting: Any, data: tuple[np.ndarray, np.ndarray], steps: int) -> float:
    """The excess risk at the end of the risk ODE: other moments, another solver."""
    X, y = data
    residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    eigenvalues, vectors = np.linalg.eigh(X.T @ X / len(X))
    lr = float(setting.lr(0))
    bound = float(setting.clip.threshold(0)) / math.sqrt(eigenvalues.sum())
    z, weights = scipy.special.roots_hermitenorm(61)
    weights /= weights.sum()

    def slope(step, v):
        del step
        w = residuals[:, None] + math.sqrt(2 * eigenvalues @ v) * z
        mu = np.mean(np.abs(w) < bound, axis=0) @ weights
        second = np.mean(np.clip(w, -bound, bound) ** 2, axis=0) @ weights
        return eigenvalues * (-2 * lr * mu * v + lr**2 * second / 2)

    start = (vectors.T @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2 / 2
    solution = scipy.integrate.solve_ivp(
        slope, (0, steps), start, rtol=1e-5, t_eval=np.linspace(0, steps, 101)
    )
    return float(np.mean((eigenvalues @ solution.y)[-10:]))


@pytest.mark.parametrize("which", ["recommended", "baseline"])
def test_the_predicted_risk_by_other_means(advice, standardised, which):
    setting = getattr(advice, which)
    expected = _ode(setting, standardised, 1000)
    # 64 atoms in place of all residuals are good to a percent or two.
    np.testing.assert_allclose(final_risk(setting.predicted), expected, rtol=0.03)


def _sgd(
    data: tuple[np.ndarray, np.ndarray], lr: float, threshold: float, seed: int
) -> np.ndarray:
    """The final risks of clipped SGD, in numpy and with other random numbers."""
    (X, y), rng, runs = data, np.random.default_rng(seed), 128
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    x = np.zeros((runs, X.shape[1]))
    risk = np.zeros(runs)
    for step in range(1000):
        row = rng.integers(len(X), size=runs)
        gradient = (np.einsum("rd,rd->r", X[row], x) - y[row])[:, None] * X[row]
        norm = np.linalg.norm(gradient, axis=1, keepdims=True)
        x -= lr * np.minimum(1, threshold / np.maximum(norm, 1e-300)) * gradient
        # The last ten records are ten steps apart.
        if step >= 905 and (step + 1) % 10 == 0:
            risk += np.mean((X @ (x - best).T) ** 2, axis=0) / 2 / 10
    return risk


@pytest.mark.parametrize("clipped", [True, False])
def test_the_runs_by_other_means(advice, standardised, clipped):
    found = advice.search
    lr = found.lr if clipped else found.lr_unclipped
    threshold = found.threshold if clipped else math.inf
    curve = advice.clipped_runs if clipped else advice.unclipped_runs
    mean, error = mean_and_error(final_risk(curve))
    other, other_error = mean_and_error(_sgd(standardised, lr, threshold, 25))
    total = math.hypot(error, other_error)
    assert_within(mean, total, other, power=0.6 * float(other))


def test_the_measured_gain_by_other_means(advice, standardised):
    found = advice.search
    clipped = _sgd(standardised, found.lr, found.threshold, 26)
    unclipped = _sgd(standardised, found.lr_unclipped, math.inf, 27)
    ratio = clipped.mean() / unclipped.mean()
    error = ratio * math.hypot(
        *(mean_and_error(r)[1] / r.mean() for r in (clipped, unclipped))
    )
    total = math.hypot(error, found.error)
    assert_within(found.difference, total, 1 - ratio, power=0.8)


def test_paired_runs_start_alike(advice):
    assert advice.clipped_runs.risk.shape == (11, 101)
    np.testing.assert_array_equal(
        advice.clipped_runs.step, np.broadcast_to(np.arange(0, 1001, 10), (11, 101))
    )
    start = float(advice.regression.risk(advice.regression.init()))
    for curve in (advice.clipped_runs, advice.unclipped_runs):
        np.testing.assert_allclose(curve.risk[:, 0], start, rtol=1e-12)
    for setting in (advice.recommended, advice.baseline):
        np.testing.assert_allclose(setting.predicted.risk[0], start, rtol=1e-6)


def test_prediction_orders_its_settings(advice):
    p = advice.prediction
    plain, clipped, scheduled, ceiling = (
        float(final_risk(curve))
        for curve in (
            p.unclipped.predicted,
            p.clipped.predicted,
            p.scheduled.predicted,
            p.ceiling,
        )
    )
    assert ceiling < scheduled < clipped < plain
    assert p.unclipped.lr(0) <= 0.8 * advice.stable_rows
    assert advice.settles < 1e-10


# What is told


def test_the_numbers_are_json(advice):
    numbers = advice.to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    found, spectrum = advice.search, advice.problem.spectrum
    assert (numbers["rows"], numbers["features"], numbers["steps"]) == (600, 20, 1000)
    assert numbers["verdict"]["decision"] == "clip"
    assert numbers["verdict"]["reasons"] == list(advice.verdict.reasons)
    assert numbers["residuals"] == dataclasses.asdict(advice.residuals)
    X, y = np.asarray(advice.regression.X), np.asarray(advice.regression.y)
    fit = X @ np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(numbers["explained_variance"], fit.var() / y.var())
    np.testing.assert_allclose(numbers["feature_norm"], math.sqrt(20), rtol=1e-6)
    eigenvalues = np.linalg.eigvalsh(X.T @ X / len(X))
    dimension = eigenvalues.sum() / eigenvalues.max()
    np.testing.assert_allclose(numbers["intrinsic_dimension"], dimension)
    best, norm = advice.prediction.later, float(spectrum.feature_norm)
    assert numbers["max_ccc"]["at_end"] == {
        "threshold": pytest.approx(float(best.threshold) * norm),
        "ccc": pytest.approx(float(best.ccc)),
    }
    recommended = numbers["recommended"]
    assert recommended["lr"] == found.lr
    assert recommended["threshold"] == found.threshold
    assert recommended["lr_without_clipping"] == found.lr_unclipped
    assert numbers["measured_gain"]["mean"] == found.difference
    schedule, scheduled = recommended["schedule"], advice.prediction.scheduled
    assert schedule["step"][0] == 0
    assert schedule["step"][-1] == 1000
    assert schedule["lr"][3] == float(scheduled.lr(150.0))
    assert schedule["threshold"][3] == float(scheduled.clip.threshold(150.0))
    runs = np.sort(np.asarray(final_risk(advice.clipped_runs)))
    assert numbers["final_risk"]["recommended"]["clipped"] == {
        "predicted": float(final_risk(advice.recommended.predicted)),
        "mean": pytest.approx(runs.mean()),
        # Of 11 runs a tenth are below the second and above the last but one.
        "low": runs[1],
        "high": runs[-2],
    }


def test_the_report_says_it_all(advice):
    text, numbers = str(advice), advice.to_dict()
    assert text.startswith(numbers["verdict"]["sentence"])
    law, risk = numbers["residuals"], numbers["final_risk"]
    shown = [
        *numbers["verdict"]["reasons"],
        "rows x features       600 x 20\n",
        f"{numbers['intrinsic_dimension']:.3g}\n",
        f"{numbers['explained_variance']:.1%}\n",
        f"sd {law['std']:.3g}",
        f"skewness {law['skewness']:.2g}",
        f"kurtosis {law['excess_kurtosis']:.3g}\n",
        f"{law['beyond_three']:.2%} beyond 3 sd",
        f"largest {law['largest']:.3g} sd",
        f"tail index {law['tail_index']:.2g}\n",
        f"{numbers['largest_stable_lr']['rows']:.3g} without clipping",
        f"({numbers['largest_stable_lr']['gaussian_features']:.3g} if Gaussian)\n",
        *(
            f"{best['ccc']:.4g} at a threshold of {best['threshold']:.3g}\n"
            for best in numbers["max_ccc"].values()
        ),
        f"lr {advice.search.lr:.3g}, threshold {advice.search.threshold:.3g}\n",
        f"lr {advice.search.lr_unclipped:.3g}\n",
        f"after 1,000 steps, from {risk['start']:.3g}, in units",
        *(f"{value:.3g}" for value in risk["predicted_best"].values()),
        *(
            f"{row['predicted']:>12.3g}{row['mean']:>14.3g}"
            f"{row['low']:>13.3g} to {row['high']:.3g}".replace(" ", "")
            for row in risk["recommended"].values()
        ),
    ]
    schedule = numbers["recommended"]["schedule"]
    for name in ("lr", "threshold"):
        first, last = schedule[name][0], schedule[name][-1]
        shown.append(f"{name} {first:.3g} to {last:.3g}")
    squeezed = text.replace(" ", "")
    for part in shown:
        assert part in text or part in squeezed, part


def test_the_same_key_gives_the_same_numbers(advice):
    # The cheap half of them: the rest is made of the same calls.
    again = search(
        advice.regression,
        [advice.search.lrs[0] * 8, advice.search.lrs[-1] / 8],
        [advice.search.thresholds[0] * 8, advice.search.thresholds[-2] / 4],
        steps=1000,
        every=10,
        key=jr.split(jr.key(0), 3)[1],
        progress=_silent,
    )
    np.testing.assert_allclose(again.difference, advice.search.difference, rtol=1e-6)


def _diverged(curve: jc.Curve, count: int) -> jc.Curve:
    risk = np.asarray(curve.risk).copy()
    risk[:count, 50:] = np.inf
    return jc.Curve(curve.step, jnp.asarray(risk))


@pytest.mark.parametrize("count", [1, 11])
def test_runs_that_diverged_are_told_as_such(advice, count):
    other = dataclasses.replace(
        advice, unclipped_runs=_diverged(advice.unclipped_runs, count)
    )
    numbers = other.to_dict()
    json.dumps(numbers, allow_nan=False)
    row = numbers["final_risk"]["recommended"]["unclipped"]
    assert row["mean"] is None
    assert (row["low"] is None) == (count == 11)
    assert "infinite" in str(other)
    other.figure().canvas.draw()


def test_no_threshold_is_told_as_such(advice):
    p = advice.prediction
    now = p.now._replace(threshold=jnp.asarray(jnp.inf), ccc=jnp.asarray(1.0))
    scheduled = dataclasses.replace(p.scheduled, clip=jc.HardClip(jnp.inf))
    prediction = dataclasses.replace(p, now=now, scheduled=scheduled)
    other = dataclasses.replace(advice, prediction=prediction)
    numbers = other.to_dict()
    json.dumps(numbers, allow_nan=False)
    assert numbers["max_ccc"]["at_start"] == {"threshold": None, "ccc": 1.0}
    assert set(numbers["recommended"]["schedule"]["threshold"]) == {None}
    text = str(other)
    assert "max CCC at the start  1: no threshold beats none\n" in text
    assert "as a schedule         no threshold\n" in text
    axes = other.figure().axes
    assert [t.get_text() for ax in axes for t in ax.texts] == ["no threshold"]


# The figure


@pytest.fixture(scope="module")
def figure(advice) -> Iterator[Any]:
    yield advice.figure("pairs, y")


def test_the_figure_has_four_labelled_panels(figure, tmp_path):
    *panels, right = figure.axes
    assert len(panels) == 4
    for ax in panels:
        assert all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
        assert ax.get_legend() is not None
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert len(texts) >= 2
        assert all(texts)
    assert right.get_ylabel() == "learning rate, per step"
    figure.savefig(tmp_path / "advice.png", dpi=40)
    content = (tmp_path / "advice.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def _line(ax: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [line for line in ax.lines if line.get_label().startswith(label)]
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def test_the_heading_is_the_verdict(advice, figure):
    gain, error = advice.search.difference, advice.search.error
    assert figure.get_suptitle() == (
        f"pairs, y: clip (risk {gain:.0%} lower with clipping, "
        f"standard error {error:.0%})"
    )
    found = dataclasses.replace(advice.search, difference=-0.25)
    verdict = dataclasses.replace(advice.verdict, decision="do not clip")
    other = dataclasses.replace(advice, search=found, verdict=verdict)
    heading = other.figure().get_suptitle()
    assert heading.startswith("Do not clip (risk 25% higher with clipping")


def test_the_panel_of_the_risk(advice, figure):
    ax = figure.axes[0]
    for name, runs, setting in (
        ("clip", advice.clipped_runs, advice.recommended),
        ("no clip", advice.unclipped_runs, advice.baseline),
    ):
        step, risk = _line(ax, f"{name}: SGD on the rows")
        np.testing.assert_array_equal(step, np.arange(0, 1001, 10))
        np.testing.assert_allclose(risk, np.asarray(runs.risk).sum(axis=0) / 11)
        _, risk = _line(ax, f"{name}: predicted")
        np.testing.assert_array_equal(risk, setting.predicted.risk)
    _, risk = _line(ax, "ceiling")
    np.testing.assert_array_equal(risk, advice.prediction.ceiling.risk)
    assert len(ax.collections) == 2
    assert ax.get_yscale() == "log"


def test_the_panel_of_the_criterion(advice, figure):
    ax = figure.axes[1]
    norm = math.sqrt(20)
    residuals = np.asarray(advice.regression.residuals)
    z, weights = scipy.special.roots_hermitenorm(61)
    weights /= weights.sum()
    scheduled = advice.prediction.scheduled.predicted.risk
    risks = {"at the start": scheduled[0], "at the end": scheduled.min()}
    for label, risk in risks.items():
        thresholds, ccc = _line(ax, label)
        w = residuals[:, None] + math.sqrt(2 * float(risk)) * z
        for i in (20, 40, 59):
            bound = thresholds[i] / norm
            mu = np.mean(np.abs(w) < bound, axis=0) @ weights
            second = np.mean(np.clip(w, -bound, bound) ** 2, axis=0) @ weights
            expected = mu**2 / second * (np.mean(w**2, axis=0) @ weights)
            # A quadrature of a jump.
            np.testing.assert_allclose(ccc[i], expected, rtol=0.02)
        # The widest threshold clips nothing.
        np.testing.assert_allclose(ccc[-1], 1, atol=1e-6)
    at, _ = _line(ax, "best on the rows")
    np.testing.assert_allclose(at, advice.search.threshold)


def test_the_panel_of_the_residuals(advice, figure):
    ax = figure.axes[2]
    residuals = np.asarray(advice.regression.residuals)
    area = sum(bar.get_width() * bar.get_height() for bar in ax.patches)
    np.testing.assert_allclose(area, 1)
    inside = sum(
        bar.get_width() * bar.get_height()
        for bar in ax.patches
        if bar.get_x() < 0 and bar.get_x() + bar.get_width() <= 1e-9
    )
    np.testing.assert_allclose(inside, np.mean(residuals < 0))
    x, density = _line(ax, "normal")
    shown = np.isfinite(density)
    np.testing.assert_allclose(density[shown], scipy.stats.norm.pdf(x[shown]))


def test_the_panel_of_the_schedule(advice, figure):
    left, right = figure.axes[3:]
    scheduled = advice.prediction.scheduled
    step, threshold = _line(left, "threshold")
    for i in (0, 37, 100):
        expected = float(scheduled.clip.threshold(step[i]))
        np.testing.assert_allclose(threshold[i], expected, rtol=1e-12)
    step, lr = _line(right, "learning rate")
    np.testing.assert_allclose(lr[37], float(scheduled.lr(step[37])), rtol=1e-12)


# What is refused


def _with(X: np.ndarray, value: float, *columns: int) -> np.ndarray:
    X = X.copy()
    X[3 if np.isnan(value) or np.isinf(value) else slice(None), columns] = value
    return X


X, y = _pairs(20, 3)

REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "constant columns": (
        _with(X, 3.0, 0, 2),
        y,
        {},
        r"`X` is constant columns \[0, 2\]: leave it out",
    ),
    "nearly constant column": (
        np.where(np.arange(3) == 1, 1e9 + 1e-7 * X, X),
        y,
        {},
        r"`X` is constant columns \[1\]",
    ),
    "constant target": (X, np.full(len(y), 2.0), {}, "^`y` is constant: leave it out"),
    "a gap": (_with(X, np.nan, 1), y, {}, "`X` must be finite; 1 of its numbers"),
    "infinity": (_with(X, np.inf, 0, 1), y, {}, "`X` must be finite; 2 of its numbers"),
    "a gap in the target": (
        X,
        np.where(np.arange(len(y)) < 2, np.nan, y),
        {},
        "`y` must be finite; 2 of its numbers are NaN or infinite",
    ),
    "a vector": (X[:, 0], y, {}, r"Got shapes \(40,\) and \(40,\)"),
    "another length": (X, y[1:], {}, r"Got shapes \(40, 3\) and \(39,\)"),
    "a column of targets": (X, y[:, None], {}, r"Got shapes \(40, 3\) and \(40, 1\)"),
    "no columns": (X[:, :0], y, {}, "`X` must have at least one column"),
    "no rows": (X[:0], y[:0], {}, "`X` must have at least two rows"),
    "one row": (X[:1], y[:1], {}, "`X` must have at least two rows"),
    "few rows": (X[:3], y[:3], {}, "`X` has 3 features and only 3 rows"),
    "many features": (X, y, {"features": 40}, "`X` has 40 features and only 40 rows"),
    "an exact fit": (X, X @ [1.0, -2.0, 3.0], {}, "`X` explains `y` without an error"),
    "text": (X.astype(str)[:, :2] + "u", y, {}, "could not convert string to float"),
    "no steps": (X, y, {"steps": 0}, "`steps` must be at least 1. Got 0"),
    "half a step": (X, y, {"steps": 1.5}, "`steps` must be a Python integer"),
    "no runs": (X, y, {"runs": 0}, "`runs` must be at least 1. Got 0"),
    "no features": (X, y, {"features": 0}, "`features` must be at least 1. Got 0"),
}


@pytest.mark.parametrize(
    ("X", "y", "settings", "message"), REFUSED.values(), ids=REFUSED.keys()
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_data_set_is_refused(X, y, settings, message):
    with pytest.raises(ValueError, match=message):
        jc.advise(X, y, **settings)
