"""What advice is: whether to clip on a data set, at what threshold, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problem import LinearModel
from ._figure import advice_figure
from ._measure import Gain
from ._outcome import Outcome
from ._predict import Guess, Prediction
from ._recipe import Recipe
from ._reference import Reference
from ._report import report, to_dict
from ._residuals import ResidualLaw
from ._runs import Settings
from ._table import Table
from ._verdict import Verdict


@dataclass(frozen=True)
class Advice:
    """What [`jaxclip.advise`][] found out. `print` it for the report.

    Features and target are scaled to mean 0 and standard deviation 1, and every
    number is for SGD on them, one row a step: learning rates are per step, thresholds
    are on the gradient's norm, and risks are excess risks on rows that SGD has not
    seen, in units of the target's variance.

    What is measured is the excess risk after a run of the length that you will train
    for, on rows that SGD was not trained on: without a clip and with one, at constant
    learning rates and at rates that fall to 0. The verdict is on the paired difference,
    and its interval covers the rows, the keys and the rows that you train on. The risk
    ODE only says where to search, and what it predicts is printed beside what the rows
    say.

    The excess risk is the distance to the best linear prediction in the norm of the
    features' covariance, worked out from the rows held out: as the difference of their
    squared losses, or, where outliers make that too noisy and no bias is seen, from
    residuals that are cut at a threshold (a Huber fit). Where clipped SGD settles
    beside least squares, as on skewed residuals, that is part of the difference.

    - `verdict`: whether to clip, why, and what would tell where it is open.
    - `gain`: what the best with a clip gains over the best without, rates and
        thresholds constant or on a schedule.
    - `constants`: the same with both constant.
    - `outcomes`: for each kind of setting its best and what it reaches: "constant" and
        "decaying" without a clip, "clipped" with a constant rate and threshold,
        "scheduled" with any rate and threshold.
    - `plan`: the setting that the risk ODE alone leads to, and what it reaches.
    - `recommended`: the setting to use; `baseline`: the best without a clip.
    - `step`, `clipped_runs`, `baseline_runs`: shapes `(s,)`, `(runs, s)` and
        `(runs, s)`, the excess risk of runs at the best with a clip and without.
    - `prediction`, `guess`: what the risk ODE says.
    - `problem`: what the limits see of the rows, to go on with.
    - `residuals`: the law of the residuals.
    - `residual_values`: the residuals themselves.
    - `reference`: what excess risks were measured from.
    - `stable_rows`, `stable_gaussian`: the largest stable learning rate without
        clipping, by the rows' fourth moments and for Gaussian features.
    - `rest`: the excess risk of the point where the best clip comes to rest.
    - `table`: the rows as numbers, before they were scaled, with what was done to get
        there (`table.notes`).
    - `features`, `steps`: how many features SGD runs on, and for how many steps.
    """

    verdict: Verdict
    gain: Gain
    constants: Gain
    outcomes: Mapping[str, Outcome]
    plan: Outcome
    recommended: Recipe
    baseline: Recipe
    step: np.ndarray
    clipped_runs: np.ndarray
    baseline_runs: np.ndarray
    prediction: Prediction
    guess: Guess
    problem: LinearModel
    residuals: ResidualLaw
    residual_values: np.ndarray
    reference: Reference
    stable_rows: float
    stable_gaussian: float
    rest: float
    table: Table
    features: int
    steps: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.table.y)

    def __repr__(self) -> str:
        return f"{self.verdict.sentence}\nRecommended: {self.recommended}."

    def __str__(self) -> str:
        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as a dictionary that JSON can hold."""
        return to_dict(self)

    def predicted(self, recipe: Recipe) -> np.ndarray:
        """The excess risk of a recipe by the risk ODE, at the steps `prediction.at`, in
        units of the target's variance."""
        flags = float(recipe.decays), float(len(recipe.profile) > 1)
        settings = Settings(
            *(np.array([v]) for v in (recipe.lr, recipe.threshold, *flags))
        )
        return self.prediction.curves(settings, self.guess.profile)[0]

    def plot(self, title: str = "") -> Any:
        """Draws a matplotlib figure of four panels: risk against the step, the
        criterion against the threshold, the law of the residuals, and what each kind of
        setting reaches. Needs the extra `cli`.

        **Arguments:**

        - `title`: the name of the data set.
        """
        return advice_figure(self, title)
