"""The report on a data set, for a person and for a program."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._rows import final_risk


def to_dict(advice: Any) -> dict[str, Any]:
    """The numbers of an `Advice`, as a dictionary that JSON can hold."""
    spectrum, prediction = advice.problem.spectrum, advice.prediction
    norm = float(spectrum.feature_norm)
    steps = np.asarray(advice.recommended.predicted.step)
    knots = np.linspace(0, steps[-1], 21)
    scheduled = prediction.scheduled
    return {
        "rows": len(advice.regression.y),
        "features": advice.regression.X.shape[1],
        "intrinsic_dimension": float(spectrum.intrinsic_dimension),
        "feature_norm": norm,
        "residuals": vars(advice.residuals),
        "explained_variance": 1 - float(jnp.var(advice.regression.residuals)),
        "largest_stable_lr": {
            "rows": advice.stable_rows,
            "gaussian_features": advice.stable_gaussian,
        },
        "max_ccc": {
            "at_start": _best(prediction.now, norm),
            "at_end": _best(prediction.later, norm),
        },
        "verdict": {
            "decision": advice.verdict.decision,
            "sentence": advice.verdict.sentence,
            "reasons": list(advice.verdict.reasons),
        },
        "recommended": {
            "lr": advice.search.lr,
            "threshold": advice.search.threshold,
            "lr_without_clipping": advice.search.lr_unclipped,
            "schedule": {
                "step": knots.tolist(),
                "lr": [float(scheduled.lr(k)) for k in knots],
                "threshold": [_finite(scheduled.clip.threshold(k)) for k in knots],
            },
        },
        "measured_gain": {
            "mean": advice.search.difference,
            "standard_error": advice.search.error,
        },
        "steps": int(steps[-1]),
        "final_risk": {
            "start": float(advice.recommended.predicted.risk[0]),
            "predicted_best": {
                "unclipped": _last(prediction.unclipped.predicted),
                "clipped": _last(prediction.clipped.predicted),
                "scheduled": _last(prediction.scheduled.predicted),
                "ceiling": _last(prediction.ceiling),
            },
            "recommended": {
                "clipped": _compare(advice.recommended, advice.clipped_runs),
                "unclipped": _compare(advice.baseline, advice.unclipped_runs),
            },
            "clipped_comes_to_rest_at": _finite(advice.settles),
        },
    }


def report(advice: Any) -> str:
    """An `Advice` in lines that a person reads."""
    d = to_dict(advice)
    law, best, risk = d["residuals"], d["max_ccc"], d["final_risk"]
    predicted, schedule = risk["predicted_best"], d["recommended"]["schedule"]
    lines = [
        d["verdict"]["sentence"],
        *(f"  - {reason}" for reason in d["verdict"]["reasons"]),
        "",
        "The data, features and target scaled to mean 0 and standard deviation 1",
        _row("rows x features", f"{d['rows']:,} x {d['features']}"),
        _row("intrinsic dimension", f"{d['intrinsic_dimension']:.3g}"),
        _row("variance explained", f"{d['explained_variance']:.1%}"),
        _row(
            "residuals",
            f"sd {law['std']:.3g}, skewness {law['skewness']:.2g}, "
            f"excess kurtosis {law['excess_kurtosis']:.3g}",
        ),
        _row(
            "their tail",
            f"{law['beyond_three']:.2%} beyond 3 sd (normal: 0.27%), largest "
            f"{law['largest']:.3g} sd, tail index {law['tail_index']:.2g}",
        ),
        _row(
            "largest stable rate",
            f"{d['largest_stable_lr']['rows']:.3g} without clipping "
            f"({d['largest_stable_lr']['gaussian_features']:.3g} if Gaussian)",
        ),
        _row("max CCC at the start", _ccc(best["at_start"])),
        _row("max CCC at the end", _ccc(best["at_end"])),
        "",
        "Recommended, for one row a step",
        _row("with clipping", _constants(d["recommended"])),
        _row("without clipping", f"lr {d['recommended']['lr_without_clipping']:.3g}"),
        _row("as a schedule", _schedule(schedule)),
        "",
        f"Excess risk after {d['steps']:,} steps, from {risk['start']:.3g}, in units "
        "of the target's variance",
        _row("", f"{'predicted':>12}{'on the rows':>14}{'80% of runs':>24}"),
        _risk_row("clipped", risk["recommended"]["clipped"]),
        _risk_row("unclipped", risk["recommended"]["unclipped"]),
        "",
        "The best that the risk ODE predicts",
        _row("unclipped SGD", _risk(predicted["unclipped"])),
        _row("clipped SGD", _risk(predicted["clipped"])),
        _row("scheduled threshold", _risk(predicted["scheduled"])),
        _row("ceiling of any rule", _risk(predicted["ceiling"])),
    ]
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"  {name:<22}{text}"


def _risk(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _risk_row(name: str, numbers: dict[str, float | None]) -> str:
    predicted, mean, low, high = (_risk(value) for value in numbers.values())
    return _row(name, f"{predicted:>12}{mean:>14}{f'{low} to {high}':>24}")


def _ccc(best: dict[str, float | None]) -> str:
    if best["threshold"] is None:
        return "1: no threshold beats none"
    gain = "infinite" if best["ccc"] is None else f"{best['ccc']:.4g}"
    return f"{gain} at a threshold of {best['threshold']:.3g}"


def _constants(recommended: dict[str, Any]) -> str:
    return f"lr {recommended['lr']:.3g}, threshold {recommended['threshold']:.3g}"


def _schedule(schedule: dict[str, list]) -> str:
    first, last = schedule["threshold"][0], schedule["threshold"][-1]
    if last is None:
        return "no threshold"
    start = "none" if first is None else f"{first:.3g}"
    rates = f"lr {schedule['lr'][0]:.3g} to {schedule['lr'][-1]:.3g}"
    return f"{rates}, threshold {start} to {last:.3g} (in the file of numbers)"


def _best(best: Any, norm: float) -> dict[str, float | None]:
    """The threshold on the gradient's norm, and the criterion there."""
    return {"threshold": _finite(best.threshold * norm), "ccc": _finite(best.ccc)}


def _finite(value: Any) -> float | None:
    """JSON has no infinity; a threshold too large to act is none, and a risk beyond
    measure is that of a run that diverged."""
    value = float(value)
    return value if math.isfinite(value) and value < 1e12 else None


def _last(curve: Any) -> float | None:
    return _finite(final_risk(curve))


def _compare(setting: Any, runs: Any) -> dict[str, float | None]:
    final = np.asarray(final_risk(runs))
    # The nearest run, since between a finite and an infinite risk is no number.
    low, high = np.quantile(final, [0.1, 0.9], method="nearest")
    return {
        "predicted": _last(setting.predicted),
        "mean": _finite(final.mean()),
        "low": _finite(low),
        "high": _finite(high),
    }
