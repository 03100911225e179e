"""From a table of numbers to the advice."""

from dataclasses import dataclass, replace

import numpy as np

from ..problem import LinearModel
from ._advice import Advice
from ._measure import Gain, compare
from ._outcome import Outcome
from ._predict import Guess
from ._reasons import Facts, reasons
from ._recipe import Recipe
from ._reference import Reference, rest
from ._residuals import ResidualLaw
from ._runs import Settings
from ._study import RECORDS
from ._table import Table
from ._trial import KINDS, Held
from ._verdict import judge


@dataclass(frozen=True)
class Fitted:
    """What is known of the rows before any run.

    - `reference`: what excess risks are measured from; `values`: its residuals.
    - `problem`: what the limits see of the rows.
    - `stable_rows`, `stable_gaussian`: the largest stable learning rate without a clip,
        by the rows' fourth moments and for Gaussian features.
    """

    reference: Reference
    values: np.ndarray
    problem: LinearModel
    stable_rows: float
    stable_gaussian: float


def conclude(done: Held, table: Table, fitted: Fitted, plan: Guess) -> Advice:
    """From what was measured to the verdict, its reasons and the setting to use."""
    study, trial = done.study, done.trial
    overall = _gain(done, "unclipped", "scheduled")
    outcomes = {
        name: _outcome(done, plan, done.fixed[i : i + 1], i)
        for i, name in enumerate(KINDS)
    }
    verdict = judge(overall, len(study.y), len(trial.params[0]))
    ode = _outcome(done, plan, plan.clipped, 2 * len(KINDS))
    best, baseline = outcomes["scheduled"].recipe, outcomes["unclipped"].recipe
    settles = 0.0
    if best.clips:
        settles = rest(study.reference, study.X, study.y, best.threshold)
    facts = Facts(
        decision=verdict.decision,
        predicted=plan.gain,
        gain=overall,
        outcomes=outcomes,
        plan=ode,
        rest=settles / max(outcomes["unclipped"].risk, np.finfo(float).tiny),
        leverage=fitted.stable_gaussian / fitted.stable_rows,
        intrinsic_dimension=float(fitted.problem.spectrum.intrinsic_dimension),
        passes=study.steps / len(study.y),
        steps=study.steps,
        rows=len(table.y),
    )
    return Advice(
        verdict=replace(verdict, reasons=reasons(facts)),
        gain=overall,
        constants=_gain(done, "constant", "clipped"),
        outcomes=outcomes,
        plan=ode,
        recommended=baseline if _plainly(verdict.decision, overall) else best,
        baseline=baseline,
        step=np.linspace(0, study.steps, RECORDS + 1)[1:],
        clipped_runs=trial.curves(_shared("scheduled")),
        baseline_runs=trial.curves(_shared("unclipped")),
        prediction=study.prediction,
        guess=plan,
        problem=fitted.problem,
        residuals=ResidualLaw.of(fitted.values),
        residual_values=fitted.values,
        reference=study.reference,
        stable_rows=fitted.stable_rows,
        stable_gaussian=fitted.stable_gaussian,
        rest=settles,
        table=table,
        features=study.X.shape[1],
        steps=study.steps,
    )


def _shared(kind: str) -> int:
    """Where the runs of a kind at the setting that all splits share are."""
    return len(KINDS) + KINDS.index(kind)


def _gain(done: Held, plain: str, clipped: str) -> Gain:
    """What one kind gains over another: at the settings chosen for each split, with the
    error that runs at shared settings show."""
    trial = done.trial
    kinds = (trial.ends(KINDS.index(plain)), trial.ends(KINDS.index(clipped)))
    shared = (trial.ends(_shared(plain)), trial.ends(_shared(clipped)))
    return compare(done.study, trial.splits, trial.folds, kinds, shared)


def _outcome(done: Held, plan: Guess, settings: Settings, position: int) -> Outcome:
    """One setting, what the ODE says of it, and what the runs at a position reach."""
    study = done.study
    recipe = Recipe.of(settings, plan.profile, study.steps)
    predicted = study.prediction.curves(settings, plan.profile)[0, -1]
    return Outcome.of(recipe, predicted, done.trial.curves(position)[:, -1])


def _plainly(decision: str, gain: Gain) -> bool:
    """Whether to train without a clip: where that is the verdict, or it is open and the
    clip has done worse."""
    return decision == "do not clip" or (decision == "cannot tell" and gain.gain < 0)
