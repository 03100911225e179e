"""What explains a verdict, and where the rows differ from the prediction and why."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ._measure import Gain
from ._outcome import Outcome
from ._verdict import MATERIAL


@dataclass(frozen=True)
class Facts:
    """What is known of a table beside the measured gain.

    - `decision`: the verdict.
    - `predicted`: the gain by the ODE.
    - `gain`: the best with a clip against the best without.
    - `outcomes`: of each kind.
    - `plan`: what the ODE's own choice with a clip reaches.
    - `rest`: the excess risk of the point where the clip comes to rest, over the risk
        without one.
    - `leverage`: the largest stable rate for Gaussian features over that of the rows.
    - `intrinsic_dimension`: of the features.
    - `passes`: how often a run sees each row.
    - `steps`: the length of a run; `rows`: how many there are.
    """

    decision: str
    predicted: float
    gain: Gain
    outcomes: Mapping[str, Outcome]
    plan: Outcome
    rest: float
    leverage: float
    intrinsic_dimension: float
    passes: float
    steps: int
    rows: int


def reasons(facts: Facts) -> tuple[str, ...]:
    """A sentence for each thing that a reader should know, the most telling first."""
    rows = (
        (True, _prediction),
        (True, _decay),
        (facts.rest > 0.3, _rest),
        (_refuted(facts), _plan),
        (facts.leverage > 1.5, _leverage),
        (facts.intrinsic_dimension < 20, _dimension),
        (_wild(facts) is not None, _one_run),
        (facts.passes > 20 or facts.passes < 0.1, _horizon),
    )
    return tuple(sentence(facts) for holds, sentence in rows if holds)


def _prediction(facts: Facts) -> str:
    text = f"the risk ODE predicts a gain of {facts.predicted:.1%}"
    if facts.decision == "cannot tell":
        return text
    if (facts.predicted >= MATERIAL) == (facts.decision == "clip"):
        return f"{text} and agrees"
    return f"{text} and the rows contradict it"


def _decay(facts: Facts) -> str:
    """Whether a schedule of the rate recovers what the clip gains."""
    constant, decaying = facts.outcomes["constant"], facts.outcomes["decaying"]
    clipped, best = facts.outcomes["clipped"], facts.outcomes["scheduled"]

    def change(outcome: Outcome) -> str:
        if not np.isfinite(constant.risk):
            return f"ends at {outcome.risk:.2g}"
        part = 1 - outcome.risk / constant.risk
        return f"{'gains' if part >= 0 else 'loses'} {abs(part):.0%}"

    return (
        "beside the best constant rate without a clip, a rate that falls to 0 "
        f"{change(decaying)}, a constant rate and threshold {change(clipped)}, and the "
        f"best of all rates and thresholds {change(best)}"
    )


def _rest(facts: Facts) -> str:
    return (
        "with this threshold SGD does not come to rest at least squares (skewed "
        "residuals, or a size that depends on the features): the point where it does "
        f"has {facts.rest:.2g} times the final risk of SGD without a clip"
    )


def _refuted(facts: Facts) -> bool:
    plain = min(facts.outcomes[k].risk for k in ("constant", "decaying"))
    return facts.predicted >= MATERIAL and not facts.plan.risk < plain


def _plan(facts: Facts) -> str:
    plan = facts.plan
    why = "rows are longer than Gaussian ones, which the ODE does not know"
    if facts.rest > 0.3:
        why = (
            "a clip as tight settles beside least squares, which the ODE does not know"
        )
    return (
        f"what the ODE would choose ({plan.recipe}) is refuted by the rows: it ends "
        f"at {plan.risk:.2g}, predicted was {plan.predicted:.2g}; {why}"
    )


def _leverage(facts: Facts) -> str:
    return (
        "single rows are far longer than the rest: SGD without a clip is stable only "
        f"up to a learning rate {facts.leverage:.2g} times smaller than Gaussian "
        "features allow, and a clip acts on those rows too"
    )


def _dimension(facts: Facts) -> str:
    clipped = facts.outcomes["scheduled"]
    return (
        f"the intrinsic dimension is only {facts.intrinsic_dimension:.2g}, where the "
        "ODE is no law of single runs: 80% of those with a clip end between "
        f"{clipped.low:.2g} and {clipped.high:.2g}"
    )


def _wild(facts: Facts) -> tuple[str, Outcome] | None:
    for name, outcome in facts.outcomes.items():
        if outcome.diverged or outcome.largest > 0.2:
            return name, outcome
    return None


def _one_run(facts: Facts) -> str:
    found = _wild(facts)
    assert found is not None
    name, outcome = found
    if outcome.diverged:
        return (
            f"{outcome.diverged} of {outcome.runs} runs of the kind {name!r} diverged: "
            "its mean risk is infinite"
        )
    return (
        f"one of {outcome.runs} runs of the kind {name!r} makes up "
        f"{outcome.largest:.0%} of their mean risk: read the 80% band"
    )


def _horizon(facts: Facts) -> str:
    if facts.passes > 20:
        return (
            f"{facts.steps:,} steps pass the {facts.rows:,} rows "
            f"{facts.passes:.0f} times: what a run ends at is mostly a fit of these "
            "rows; give `steps` for a shorter one"
        )
    return (
        f"{facts.steps:,} steps see {facts.passes:.0%} of the {facts.rows:,} rows: in "
        "a longer run all of the risks are lower; give `steps` for one"
    )
