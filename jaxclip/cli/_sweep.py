"""The command `jaxclip sweep`: clipped SGD over learning rates and thresholds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._checks import count
from ..clip import HardClip
from ..grid import Sweep, median_of_runs, sweep
from ..problem import LinearModel
from ..sgd import simulate
from ._heat_map import heat_map
from ._settings import Settings, problem_of

UNITS = {
    "lr": "per step",
    "threshold": "norm of the gradient",
    "value": "label squared",
}


def run(settings: Settings, store: Path) -> tuple[Sweep, LinearModel]:
    """The sweep of the final risk over learning rates, thresholds and seeds."""
    problem = problem_of(settings)
    steps, seeds = count("steps", settings.steps), count("seeds", settings.seeds)
    lrs = _range("lr", settings.lr_min, settings.lr_max, settings.lrs)
    thresholds = _range(
        "threshold",
        settings.threshold_min,
        settings.threshold_max,
        settings.thresholds,
    )

    def final_risk(lr, threshold, key):
        clip = HardClip(threshold)
        return simulate(problem, clip, lr, steps=steps, every=steps, key=key).risk[-1]

    axes = {
        "lr": jnp.asarray(lrs) / problem.spectrum.trace,
        "threshold": jnp.asarray(thresholds) * problem.spectrum.feature_norm,
        "key": jr.split(jr.key(settings.seed), seeds),
    }
    found = sweep(
        final_risk, axes, batch_size=settings.batch_size, store=store, units=UNITS
    )
    return found, problem


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a sweep found: the median over seeds of the final risk of each setting.

    - `lrs`, `thresholds`: as an optimiser uses them.
    - `median`: infinite where half of the runs or more have overflowed.
    - `attrs`: where the numbers come from.
    """

    settings: Settings
    trace: float
    feature_norm: float
    lrs: np.ndarray
    thresholds: np.ndarray
    median: np.ndarray
    attrs: dict[str, Any]

    @classmethod
    def of(cls, settings: Settings, found: Sweep, problem: LinearModel) -> "Summary":
        """The summary of what `run` returned."""
        table = found.to_xarray()
        return cls(
            settings,
            float(problem.spectrum.trace),
            float(problem.spectrum.feature_norm),
            table["lr"].values,
            table["threshold"].values,
            median_of_runs(table["value"].values),
            found.attrs,
        )

    @property
    def limit(self) -> float:
        """The risk above which a setting counts as diverged: ten times that of the
        start, and the square of the noise's scale. A clipped run need not overflow: no
        step of it is longer than the threshold times the learning rate."""
        return 10 * max(self.settings.start, self.settings.scale**2)

    @property
    def best(self) -> dict[str, float] | None:
        """The setting with the smallest median; None where all diverge."""
        i, j = np.unravel_index(np.argmin(self.median), self.median.shape)
        if not self.median[i, j] <= self.limit:
            return None
        return {
            "lr": float(self.lrs[i]),
            "lr_times_trace": float(self.lrs[i]) * self.trace,
            "threshold": float(self.thresholds[j]),
            "threshold_over_feature_norm": float(self.thresholds[j])
            / self.feature_norm,
            "median_final_risk": float(self.median[i, j]),
        }

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as a dictionary that JSON can hold."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "units": UNITS,
            "trace": self.trace,
            "feature_norm": self.feature_norm,
            "diverged_above": self.limit,
            "share_diverged": float(np.mean(~(self.median <= self.limit))),
            "best": self.best,
            "provenance": self.attrs,
        }

    def figure(self) -> Any:
        """The heat map."""
        s = self.settings
        return heat_map(
            self.lrs * self.trace,
            self.thresholds / self.feature_norm,
            self.median,
            limit=self.limit,
            title=f"SGD after {s.steps:,} steps: {s.spectrum} spectrum, d = {s.dim:,},"
            f"\n{s.noise} noise, {s.seeds} seeds",
        )


def _range(name: str, low: float, high: float, points: int) -> np.ndarray:
    """So many numbers from `low` to `high`, evenly in the logarithm."""
    points = count(f"{name}s", points)
    if not 0 < low <= high < np.inf:
        raise ValueError(
            f"`{name}_min` and `{name}_max` must be positive, finite and in this order."
            f" Got {low} and {high}."
        )
    return np.geomspace(low, high, points)
