"""The report on a data set, for a person and for a program."""

import math
from typing import Any

import numpy as np

from ._measure import Gain
from ._outcome import Outcome
from ._recipe import Recipe

# The kinds that are shown, and what they are called.
NAMES = {
    "constant": "no clip, constant rate",
    "decaying": "no clip, falling rate",
    "clipped": "clip, both constant",
    "scheduled": "clip, any schedule",
}


def to_dict(advice: Any) -> dict[str, Any]:
    """The numbers of an `Advice`, as a dictionary that JSON can hold."""
    spectrum = advice.problem.spectrum
    verdict = advice.verdict
    return {
        "verdict": {
            "decision": verdict.decision,
            "sentence": verdict.sentence,
            "reasons": list(verdict.reasons),
            "rows_needed": verdict.rows_needed,
            "runs_needed": verdict.runs_needed,
        },
        "recommended": _recipe(advice.recommended),
        "without_clipping": _recipe(advice.baseline),
        "gain": _gain(advice.gain),
        "gain_of_constants": _gain(advice.constants),
        "outcomes": {name: _outcome(o) for name, o in advice.outcomes.items()},
        "predicted": {
            "gain": _finite(advice.guess.gain),
            "choice": _outcome(advice.plan),
        },
        "target": advice.table.target,
        "columns": list(advice.table.columns),
        "notes": list(advice.table.notes),
        "rows": advice.rows,
        "features": advice.features,
        "steps": advice.steps,
        "passes": advice.steps / advice.rows,
        "intrinsic_dimension": float(spectrum.intrinsic_dimension),
        "feature_norm": float(spectrum.feature_norm),
        "residuals": vars(advice.residuals),
        "residuals_cut_at": _finite(advice.reference.threshold),
        "largest_stable_lr": {
            "rows": advice.stable_rows,
            "gaussian_features": advice.stable_gaussian,
        },
        "start_risk": float(advice.prediction.start.sum()),
        "comes_to_rest_at": _finite(advice.rest),
    }


def report(advice: Any) -> str:
    """An `Advice` in lines that a person reads."""
    law, d = advice.residuals, to_dict(advice)
    passes = f"{d['passes']:.2g} passes over the rows"
    if d["passes"] < 0.995:
        passes = f"{d['passes']:.0%} of one pass over the rows"
    lines = [
        advice.verdict.sentence,
        *(f"  - {reason}" for reason in advice.verdict.reasons),
        "",
        "Recommended, for one row a step",
        f"  {advice.recommended}",
    ]
    if advice.recommended != advice.baseline:
        lines.append(f"  without a clip: {advice.baseline}")
    some = next(iter(advice.outcomes.values()))
    lines += [
        "",
        f"Excess risk after {advice.steps:,} steps ({passes}), from "
        f"{d['start_risk']:.3g}, on rows not trained on,",
        f"in units of the target's variance ({some.runs:,} runs of each)",
        _row("", f"{'predicted':>12}{'measured':>12}{'80% of runs':>24}"),
        *(_row(text, _risks(advice.outcomes[name])) for name, text in NAMES.items()),
        "",
        "The data, features and target scaled to mean 0 and standard deviation 1",
        _row("target", advice.table.target),
        *(f"  {note}" for note in advice.table.notes),
        _row("rows x features", f"{advice.rows:,} x {advice.features}"),
        _row("intrinsic dimension", f"{d['intrinsic_dimension']:.3g}"),
        _row("variance explained", f"{1 - law.std**2:.1%}"),
        _row(
            "residuals",
            f"sd {law.std:.3g}, skewness {law.skewness:.2g}, "
            f"excess kurtosis {law.excess_kurtosis:.3g}",
        ),
        _row(
            "their tail",
            f"{law.beyond_three:.2%} beyond 3 sd (normal: 0.27%), largest "
            f"{law.largest:.3g} sd, tail index {law.tail_index:.2g}",
        ),
        _row("risks measured by", _reference(advice)),
        _row(
            "largest stable rate",
            f"{advice.stable_rows:.3g} without a clip "
            f"({advice.stable_gaussian:.3g} if Gaussian)",
        ),
    ]
    return "\n".join(lines)


def _reference(advice: Any) -> str:
    cut = advice.reference.threshold
    if np.isinf(cut):
        return "squared losses of the rows held out"
    cut = cut / advice.residuals.std
    return f"a fit to the rows held out, residuals cut at {cut:.2g} sd"


def _row(name: str, text: str) -> str:
    return f"  {name:<24}{text}"


def _risk(value: float | None) -> str:
    return "infinite" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _risks(outcome: Outcome) -> str:
    low, high = _risk(outcome.low), _risk(outcome.high)
    predicted, risk = _risk(outcome.predicted), _risk(outcome.risk)
    return f"{predicted:>12}{risk:>12}{f'{low} to {high}':>24}"


def _recipe(recipe: Recipe) -> dict[str, Any]:
    at = np.linspace(0, recipe.steps, 21)
    return {
        "text": str(recipe),
        "lr": recipe.lr,
        "threshold": _finite(recipe.threshold),
        "lr_falls_to_0": recipe.decays,
        "schedule": {
            "step": at.tolist(),
            "lr": recipe.rate_at(at).tolist(),
            "threshold": [_finite(value) for value in recipe.threshold_at(at)],
        },
    }


def _gain(gain: Gain) -> dict[str, Any]:
    low, high = gain.interval
    return {
        "mean": _finite(gain.gain),
        "standard_error": _finite(gain.error),
        "interval": [_finite(low), _finite(high)],
        "error_of_rows": _finite(gain.rows_error),
        "error_of_runs": _finite(gain.runs_error),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "recipe": _recipe(outcome.recipe),
        "predicted": _finite(outcome.predicted),
        "risk": _finite(outcome.risk),
        "low": _finite(outcome.low),
        "high": _finite(outcome.high),
        "largest_share": outcome.largest,
        "diverged": outcome.diverged,
        "runs": outcome.runs,
    }


def _finite(value: Any) -> float | None:
    """The number, or `None` from 1e12 on: JSON has no infinity, and a number as large
    stands for no threshold, or for a run that diverged."""
    value = float(value)
    return value if math.isfinite(value) and abs(value) < 1e12 else None
