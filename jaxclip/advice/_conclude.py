"""From a table of numbers to the advice."""

from dataclasses import replace

import numpy as np

from ..problem import LinearModel
from ._advice import Advice
from ._measure import Gain, compare
from ._outcome import Outcome
from ._predict import Guess, Prediction
from ._reasons import Facts, reasons
from ._recipe import Recipe
from ._reference import rest
from ._residuals import ResidualLaw
from ._runs import Settings
from ._study import RECORDS
from ._table import Table
from ._trial import KINDS, Held
from ._verdict import judge


def conclude(
    done: Held,
    table: Table,
    prediction: Prediction,
    plan: Guess,
    problem: LinearModel,
    stable: tuple[float, float],
    values: np.ndarray,
) -> Advice:
    """From what was measured to the verdict, its reasons and the setting to use."""
    study, trial = done.study, done.trial
    steps, reference = study.steps, study.reference
    named = dict(zip(KINDS, range(len(KINDS)), strict=True))
    fixed = {name: len(KINDS) + i for name, i in named.items()}

    def gain(plain: str, clipped: str) -> Gain:
        kinds = trial.ends(named[plain]), trial.ends(named[clipped])
        settings = trial.ends(fixed[plain]), trial.ends(fixed[clipped])
        return compare(study, trial.splits, trial.folds, kinds, settings)

    def outcome(settings: Settings, position: int) -> Outcome:
        recipe = Recipe.of(settings, plan.profile, steps)
        predicted = prediction.curves(settings, plan.profile)[0, -1]
        return Outcome.of(recipe, predicted, trial.curves(position)[:, -1])

    overall, constants = gain("unclipped", "scheduled"), gain("constant", "clipped")
    outcomes = {
        name: outcome(done.fixed[i : i + 1], named[name]) for name, i in named.items()
    }
    runs = len(trial.params[0])
    verdict = judge(overall, len(study.y), runs)
    wanted = "unclipped" if verdict.decision == "do not clip" else "scheduled"
    if verdict.decision == "cannot tell" and overall.gain < 0:
        wanted = "unclipped"
    recommended, baseline = outcomes[wanted].recipe, outcomes["unclipped"].recipe
    settles = 0.0
    best = outcomes["scheduled"].recipe
    if best.clips:
        settles = rest(reference, study.X, study.y, best.threshold)
    ode = outcome(plan.clipped, 2 * len(KINDS))
    facts = Facts(
        decision=verdict.decision,
        predicted=plan.gain,
        gain=overall,
        outcomes=outcomes,
        plan=ode,
        rest=settles / max(outcomes["unclipped"].risk, np.finfo(float).tiny),
        leverage=stable[1] / stable[0],
        intrinsic_dimension=float(problem.spectrum.intrinsic_dimension),
        passes=steps / len(study.y),
        steps=steps,
        rows=len(table.y),
    )
    step = np.linspace(0, steps, RECORDS + 1)[1:]
    return Advice(
        verdict=replace(verdict, reasons=reasons(facts)),
        gain=overall,
        constants=constants,
        outcomes=outcomes,
        plan=ode,
        recommended=recommended,
        baseline=baseline,
        step=step,
        clipped_runs=trial.curves(fixed["scheduled"]),
        baseline_runs=trial.curves(fixed["unclipped"]),
        prediction=prediction,
        guess=plan,
        problem=problem,
        residuals=ResidualLaw.of(values),
        residual_values=values,
        reference=reference,
        stable_rows=stable[0],
        stable_gaussian=stable[1],
        rest=settles,
        table=table,
        features=study.X.shape[1],
        steps=steps,
    )
