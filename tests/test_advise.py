"""Advice on a data set: a verdict that is true of rows that SGD has not seen."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.stats

import jaxclip as jc
from helpers import mean_and_error
from jaxclip.advice import _advise
from jaxclip.advice._measure import Gain
from jaxclip.advice._outcome import Outcome
from jaxclip.advice._reasons import Facts, reasons
from jaxclip.advice._recipe import Recipe
from jaxclip.advice._residuals import ResidualLaw
from jaxclip.advice._verdict import judge

pytestmark = pytest.mark.optimised

# The verdict


def _measured(gain: float, error: float, runs_error: float = 0.0) -> Gain:
    rows_error = math.sqrt(max(error**2 - runs_error**2, 0.0))
    return Gain(gain, error, rows_error, runs_error, (1.0, 1 - gain))


@pytest.mark.parametrize(
    ("gain", "error", "decision", "sentence"),
    [
        (0.4, 0.1, "clip", "40.0% below that of the best without (95% interval 20% to"),
        (0.4, 0.2, "clip", "(95% interval 1% to 79%)"),
        (0.4, 0.21, "cannot tell", "40.0% below (95% interval -1% to 81%)"),
        (0.9, 0.1, "clip", "interval 70% to 100%)"),
        # Certain, and not worth a threshold.
        (0.05, 0.01, "do not clip", "5.0% lower (95% interval 3% to 7%)"),
        (0.05, 0.025, "do not clip", "a gain of less than 10%"),
        (0.05, 0.026, "cannot tell", "leaves open whether it gains 10%"),
        (0.099, 0.04, "cannot tell", "rows would tell"),
        (-0.3, 0.1, "do not clip", "30.0% higher"),
        (-0.3, 0.21, "cannot tell", "30.0% above"),
        (0.0, 0.0, "do not clip", "none does better on rows that SGD has not seen"),
    ],
)
def test_the_decision_is_the_intervals(gain, error, decision, sentence):
    verdict = judge(_measured(gain, error), 500, 16)
    assert verdict.decision == decision
    assert sentence in verdict.sentence
    assert verdict.sentence.lower().startswith(decision)
    assert verdict.sentence.endswith((".", ")."))


def test_what_would_tell_does():
    """With so many rows, or runs, the same gain is decided, and not with far fewer."""
    for gain in (0.3, 0.02, 0.12):
        verdict = judge(_measured(gain, 0.25), 500, 16)
        assert verdict.rows_needed is not None
        assert verdict.runs_needed is None
        for share, decided in ((1.0, True), (0.5, False)):
            error = 0.25 * math.sqrt(500 / (share * verdict.rows_needed))
            again = judge(_measured(gain, error), 500, 16)
            assert (again.decision != "cannot tell") == decided, gain
    verdict = judge(_measured(0.3, 0.25, runs_error=0.249), 500, 16)
    assert verdict.rows_needed is None
    assert verdict.runs_needed is not None
    error = 0.249 * math.sqrt(16 / verdict.runs_needed)
    assert judge(_measured(0.3, error, error), 500, 16).decision == "clip"


# The reasons


def _outcome(risk: float, **changes: Any) -> Outcome:
    recipe = changes.pop("recipe", Recipe(0.01, 1.0, False, 100))
    plain = Outcome(recipe, risk, risk, 0.9 * risk, 1.1 * risk, 0.01, 0, 160)
    return dataclasses.replace(plain, **changes)


def _facts(**changes: Any) -> Facts:
    outcomes = {
        "constant": _outcome(1.0),
        "decaying": _outcome(0.9),
        "unclipped": _outcome(0.9),
        "clipped": _outcome(0.6),
        "scheduled": _outcome(0.4),
    }
    plain: dict[str, Any] = {
        "decision": "clip",
        "predicted": 0.4,
        "gain": _measured(0.5, 0.1),
        "outcomes": outcomes | changes.pop("outcomes", {}),
        "plan": _outcome(0.5),
        "rest": 0.05,
        "leverage": 1.1,
        "intrinsic_dimension": 50.0,
        "passes": 4.0,
        "steps": 2000,
        "rows": 500,
    }
    return Facts(**plain | changes)


@pytest.mark.parametrize(
    ("decision", "predicted", "text"),
    [
        ("clip", 0.2, "the risk ODE predicts a gain of 20.0% and agrees"),
        ("clip", 0.05, "a gain of 5.0% and the rows contradict it"),
        ("do not clip", 0.05, "a gain of 5.0% and agrees"),
        ("do not clip", 0.2, "a gain of 20.0% and the rows contradict it"),
        ("cannot tell", 0.2, "a gain of 20.0%"),
    ],
)
def test_the_prediction_agrees_or_not(decision, predicted, text):
    first, decay, *rest = reasons(_facts(decision=decision, predicted=predicted))
    assert first.endswith(text)
    assert not rest
    # Whether a schedule of the rate recovers what the clip gains.
    assert "a rate that falls to 0 gains 10%" in decay
    assert "a constant rate and threshold gains 40%" in decay
    assert "the best of all rates and thresholds gains 60%" in decay


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"rest": 0.31}, "the point where it does has 0.31 times the final risk"),
        ({"leverage": 1.6}, "a learning rate 1.6 times smaller than Gaussian"),
        ({"intrinsic_dimension": 19.0}, "the intrinsic dimension is only 19"),
        ({"passes": 87.0, "rows": 23}, "pass the 23 rows 87 times"),
        ({"passes": 0.02, "rows": 10**6}, "see 2% of the 1,000,000 rows"),
        ({"plan": _outcome(1.3)}, "is refuted by the rows: it ends at 1.3"),
        (
            {"outcomes": {"constant": _outcome(1.0, largest=0.5)}},
            "one of 160 runs of the kind 'constant' makes up 50%",
        ),
        (
            {"outcomes": {"decaying": _outcome(np.inf, diverged=3)}},
            "3 of 160 runs of the kind 'decaying' diverged",
        ),
    ],
)
def test_what_else_differs_is_a_reason(facts, reason):
    found = reasons(_facts(**facts))
    assert len(found) == 3
    assert reason in found[2]


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


# Advice on tables whose truth is known

N, D, STEPS = 400, 8, 800
TRUE = np.linspace(-0.5, 0.5, D)


def _table(law: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D))
    noise = rng.normal(size=N)
    if law == "outliers":
        noise = np.where(rng.uniform(size=N) < 0.05, 12.0, 1.0) * noise
    return X, X @ TRUE + noise


@pytest.fixture(scope="module")
def outliers() -> jc.Advice:
    return jc.advise(*_table("outliers"), steps=STEPS, key=jr.key(1))


@pytest.fixture(scope="module")
def normal() -> jc.Advice:
    return jc.advise(*_table("normal"), steps=STEPS, key=jr.key(1))


def _true_risk(law: str, setting: Recipe, runs: int = 48) -> tuple[float, float]:
    """The mean excess risk of runs on the rows at a setting, by a loop of numpy and the
    true coefficients, in the target's variance; and its standard error."""
    X, y = _table(law)
    spread, scale = X.std(axis=0), y.std()
    Z, target = (X - X.mean(axis=0)) / spread, (y - y.mean()) / scale
    rng = np.random.default_rng(7)
    x = np.zeros((runs, D))
    at = np.arange(setting.steps)
    rates, cuts = setting.rate_at(at), setting.threshold_at(at)
    for k in range(setting.steps):
        i = rng.integers(N, size=runs)
        slope = np.sum(Z[i] * x, axis=1) - target[i]
        gradient = slope[:, None] * Z[i]
        norm = np.linalg.norm(gradient, axis=1, keepdims=True)
        x = x - rates[k] * np.minimum(1.0, cuts[k] / norm) * gradient
    error = x * scale / spread - TRUE
    risks = np.sum(error**2, axis=1) / 2 / scale**2
    mean, error = mean_and_error(risks)
    return float(mean), float(error)


def test_outliers_are_to_be_clipped(outliers):
    assert outliers.verdict.decision == "clip"
    assert outliers.recommended.clips
    clipped, _ = _true_risk("outliers", outliers.recommended)
    plain, _ = _true_risk("outliers", outliers.baseline)
    gain = 1 - clipped / plain
    assert gain > 0.3
    low, high = outliers.gain.interval
    assert low < gain < high


def test_normal_errors_are_not_to_be_clipped(normal):
    assert normal.verdict.decision != "clip"
    assert normal.gain.interval[0] <= 0.02
    clipped, error = _true_risk("normal", normal.outcomes["scheduled"].recipe)
    plain, _ = _true_risk("normal", normal.baseline)
    low, high = normal.gain.interval
    assert low - 4 * error / plain < 1 - clipped / plain < high + 4 * error / plain


@pytest.mark.parametrize("law", ["outliers", "normal"])
@pytest.mark.parametrize("kind", ["constant", "decaying", "clipped", "scheduled"])
def test_what_is_said_of_each_kind_is_true(law, kind, request):
    """Excess risks on rows not seen: those of the least-squares solution on the same
    rows are off by its own, most of what is left at the end."""
    outcome = request.getfixturevalue(law).outcomes[kind]
    true, error = _true_risk(law, outcome.recipe)
    # Of one table of 400 rows: its own fit lies anywhere from half to twice the mean.
    assert 0.35 < outcome.risk / true < 2.5
    assert outcome.low < outcome.risk < outcome.high
    assert outcome.runs % 10 == 0
    # And what is recommended is none of those that lose.
    assert error < 0.3 * true


def test_a_falling_rate_is_compared_with_a_falling_rate(outliers):
    kinds = outliers.outcomes
    assert not kinds["constant"].recipe.decays
    assert not kinds["constant"].recipe.clips
    assert kinds["decaying"].recipe.decays
    assert not kinds["decaying"].recipe.clips
    assert not kinds["clipped"].recipe.decays
    assert len(kinds["clipped"].recipe.profile) == 1
    # The measured gain is of the better with a clip over the better without.
    risks = outliers.gain.risks
    assert risks[0] == pytest.approx(kinds["unclipped"].risk, rel=1e-9)
    assert risks[1] == pytest.approx(kinds["scheduled"].risk, rel=1e-9)
    assert outliers.constants.risks[0] == pytest.approx(kinds["constant"].risk)
    # Runs were made at the very setting that is recommended.
    assert outliers.clipped_runs.shape[1] == len(outliers.step) == 20
    mean = outliers.clipped_runs[:, -1].mean()
    assert 0.3 < mean / kinds["scheduled"].risk < 3


def test_the_thresholds_reach_where_the_clip_no_longer_acts():
    """Long rows and normal errors: without a clip the range ends nowhere else."""
    rng = np.random.default_rng(3)
    X = rng.standard_t(2.0, size=(N, D))
    y = X @ TRUE + rng.normal(size=N)
    advice = jc.advise(X, y, steps=STEPS, key=jr.key(2))
    # No clip is one of the clips: more risk is impossible but for the choice's noise.
    assert advice.gain.gain > -2 * advice.gain.error - 0.02
    assert advice.stable_rows < advice.stable_gaussian
    assert any("single rows are far longer" in text for text in advice.verdict.reasons)


def test_the_rows_and_their_scale_do_not_matter(outliers):
    X, y = _table("outliers")
    again = jc.advise(1e-9 * X + 3, 1e12 * y - 5, steps=STEPS, key=jr.key(1))
    assert again.verdict.decision == outliers.verdict.decision
    np.testing.assert_allclose(again.gain.gain, outliers.gain.gain, rtol=1e-3)


def test_the_same_key_gives_the_same_numbers(outliers):
    again = jc.advise(*_table("outliers"), steps=STEPS, key=jr.key(1))
    assert again.to_dict() == outliers.to_dict()
    other = jc.advise(*_table("outliers"), steps=STEPS, key=jr.key(2))
    assert other.gain.gain != outliers.gain.gain


def test_as_many_runs_as_are_asked_for():
    advice = jc.advise(*_table("normal"), steps=STEPS, runs=5, key=jr.key(1))
    # Of ten splits of the rows.
    assert advice.outcomes["constant"].runs == 50


def test_some_of_very_many_rows(monkeypatch):
    monkeypatch.setattr(_advise, "_MOST_ROWS", 300)
    advice = jc.advise(*_table("normal"), steps=STEPS, runs=4, key=jr.key(1))
    assert advice.rows == N
    assert len(advice.residual_values) == 300


# Frames


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_a_frame_with_words_in_it(library):
    X, y = _table("normal")
    town = np.where(X[:, 0] > 0.3, "Ys", "Thule")
    frame = library(
        {"price": y, "town": town} | {f"a{j}": X[:, j] for j in range(1, D)}
    )
    advice = jc.advise(frame, "price", steps=STEPS, runs=4)
    assert advice.table.target == "price"
    assert advice.features == D
    assert any("town" in note for note in advice.table.notes)
    for note in advice.table.notes:
        assert note in str(advice)


def test_random_features():
    advice = jc.advise(*_table("normal"), steps=STEPS, runs=4, features=30)
    assert advice.features == 30
    assert advice.table.X.shape == (N, D)


# Reports


def test_the_repr_is_the_recommendation(outliers):
    assert repr(outliers) == (
        f"{outliers.verdict.sentence}\nRecommended: {outliers.recommended}."
    )


def test_the_report_says_it_all(outliers):
    text = str(outliers)
    for part in (
        outliers.verdict.sentence,
        *outliers.verdict.reasons,
        str(outliers.recommended),
        str(outliers.baseline),
        "800 steps (2 passes over the rows)",
        "rows not trained on",
        "no clip, falling rate",
        f"{N} x {D}",
    ):
        assert part in text
    assert "nan" not in text


def test_the_numbers_are_json(outliers, normal):
    for advice in (outliers, normal):
        numbers = advice.to_dict()
        assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
        assert numbers["verdict"]["decision"] == advice.verdict.decision
        assert numbers["recommended"]["lr"] == advice.recommended.lr
        assert numbers["steps"] == STEPS


def test_what_is_recommended_can_be_run(outliers):
    """The rule and the rate, in an optax chain and in `simulate`."""
    clip, lr = outliers.recommended.setting
    X, y = _table("outliers")
    rows = jc.Regression((X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std())

    def run(key):
        return jc.simulate(rows, clip, lr, steps=STEPS, every=STEPS, key=key).params

    params = np.asarray(jax.vmap(run)(jr.split(jr.key(4), 32)))
    error = params * y.std() / X.std(0) - TRUE
    risks = np.sum(error**2, axis=1) / 2 / y.std() ** 2
    mean, scatter = mean_and_error(risks)
    plain, plain_error = _true_risk("outliers", outliers.recommended)
    assert abs(mean - plain) < 4 * np.hypot(scatter, plain_error) + 0.05 * plain


# The figure


@pytest.fixture(scope="module")
def figure(outliers) -> Iterator[Any]:
    yield outliers.plot("homes")


def test_the_figure_has_four_labelled_panels(figure, tmp_path):
    assert len(figure.axes) == 4
    for ax in figure.axes:
        assert ax.get_title()
        assert ax.get_xlabel()
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_heading_is_the_verdict(outliers, figure):
    heading = figure.get_suptitle()
    assert heading.startswith("homes: clip (excess risk ")
    assert f"{outliers.gain.gain:.0%} lower" in heading


def test_the_panels_draw_what_was_measured(outliers, figure):
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    drawn = lines["clip: SGD, rows not seen, 80% band"].get_ydata()
    np.testing.assert_allclose(drawn, outliers.clipped_runs.mean(axis=0))
    drawn = lines["no clip: predicted (ODE)"].get_ydata()
    np.testing.assert_allclose(drawn, outliers.predicted(outliers.baseline))
    points = [
        float(line.get_xdata()[0])
        for line in figure.axes[1].get_lines()
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    kinds = ("constant", "decaying", "clipped", "scheduled")
    np.testing.assert_allclose(points, [outliers.outcomes[k].risk for k in kinds])


def test_the_criterion_is_that_of_the_quadrature(outliers, figure):
    line = figure.axes[2].get_lines()[1]
    law, norm = outliers.prediction.law, outliers.prediction.feature_norm
    risk = float(outliers.predicted(outliers.outcomes["scheduled"].recipe)[-1])
    noise = jc.Empirical(jnp.asarray(outliers.residual_values), 128)
    at = np.array([10, 25, 40])
    cuts = np.asarray(line.get_xdata())[at]
    ccc = [jc.moments(jc.HardClip(c / norm), noise, risk, 1.0).ccc for c in cuts]
    np.testing.assert_allclose(np.asarray(line.get_ydata())[at], ccc, rtol=0.02)
    assert len(line.get_xdata()) == len(law.thresholds)


# Progress


def test_progress_is_shown_where_it_is_asked_for(capsys):
    seen = []

    def track(iterable, label):
        seen.append(label)
        return iterable

    small = {"steps": STEPS, "runs": 4}
    jc.advise(*_table("normal"), progress=track, **small)
    assert seen == [
        "fit the rows",
        "solve the limits",
        "search on the rows",
        "choose",
        "run",
    ]
    jc.advise(*_table("normal"), progress=True, **small)
    assert "choose" in capsys.readouterr().err
    # A test is no terminal.
    jc.advise(*_table("normal"), **small)
    assert capsys.readouterr().err == ""


# What is refused


def _with(X: np.ndarray, value: float, *columns: int) -> np.ndarray:
    X = X.copy()
    X[3 if np.isnan(value) or np.isinf(value) else slice(None), columns] = value
    return X


X, y = (part[:40] for part in _table("normal"))
X = X[:, :3]

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
    "one row": (X[:1], y[:1], {}, "rows"),
    "few rows": (X[:9], y[:9], {}, "at least ten rows"),
    "rows for too many features": (X, y, {"features": 30}, "30 features and only 40"),
    "an exact fit": (X, X @ [1.0, -2.0, 3.0], {}, "without an error"),
    "no steps": (X, y, {"steps": 0}, "`steps` must be at least 1. Got 0"),
    "half a step": (X, y, {"steps": 1.5}, "`steps` must be a Python integer"),
    "one run": (X, y, {"runs": 1}, "`runs` must be at least 2. Got 1"),
    "no features": (X, y, {"features": 0}, "`features` must be at least 1. Got 0"),
}


@pytest.mark.parametrize(
    ("X", "y", "settings", "message"), REFUSED.values(), ids=REFUSED.keys()
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_data_set_is_refused(X, y, settings, message):
    with pytest.raises(ValueError, match=message):
        jc.advise(X, y, **settings)
