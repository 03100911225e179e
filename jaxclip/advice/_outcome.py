"""What a kind of runs ends at, in a few numbers."""

from dataclasses import dataclass

import numpy as np

from ._recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """What the best setting of one kind reaches: excess risks at the end of its runs.

    All of them are in units of the target's variance.

    - `recipe`: the best of the kind, chosen on all rows.
    - `predicted`: the excess risk at the end of its run by the risk ODE.
    - `risk`: the mean excess risk on rows held out, of the kind at the settings that
        were chosen without those rows.
    - `low`, `high`: between them lie 80% of the runs.
    - `largest`: the part of the mean that is owed to the one run with the largest risk,
        from 0 to 1.
    - `runs`: how many runs there are; `diverged`: how many of them diverged.
    """

    recipe: Recipe
    predicted: float
    risk: float
    low: float
    high: float
    largest: float
    diverged: int
    runs: int

    @classmethod
    def of(cls, recipe: Recipe, predicted: float, risks: np.ndarray) -> "Outcome":
        """The outcome of runs, from their excess risks at their end, shape
        `(runs,)`."""
        # The nearest run, since between a finite and an infinite risk is no number.
        low, high = np.quantile(risks, [0.1, 0.9], method="nearest")
        finite = np.abs(risks[np.isfinite(risks)])
        total = finite.sum()
        return cls(
            recipe,
            float(predicted),
            float(risks.mean()),
            float(low),
            float(high),
            float(finite.max() / total) if total > 0 else 0.0,
            int(risks.size - finite.size),
            int(risks.size),
        )
