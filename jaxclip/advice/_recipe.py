"""A learning rate and a threshold to train with."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from .._schedule import PiecewiseLinear
from ..clip import AbstractClip, HardClip, Identity
from ..criterion import Setting
from ._runs import Decay, Settings

# Knots at which a threshold that changes is handed out.
_KNOTS = 33


@dataclass(frozen=True)
class Recipe:
    """A learning rate and a threshold, constant or on a schedule.

    - `lr`: the learning rate at step 0, per step.
    - `threshold`: on the gradient's norm; of a schedule, the one at the end. Infinite
        for no clip.
    - `decays`: whether the rate falls along a line to 0 at the end of the run.
    - `profile`: shape `(m,)`, what the threshold is over the run in units of that at
        the end, at evenly spaced steps; a single 1 where it is constant.
    - `steps`: the length of the run.
    """

    lr: float
    threshold: float
    decays: bool
    steps: int
    profile: tuple[float, ...] = field(default=(1.0,), repr=False)

    @classmethod
    def of(cls, settings: Settings, profile: np.ndarray, steps: int) -> "Recipe":
        """The recipe of the one setting that `settings` holds."""
        follows = bool(settings.follows[0]) and np.isfinite(settings.threshold[0])
        shape = tuple(map(float, profile)) if follows else (1.0,)
        if len(set(shape)) == 1:
            shape = (1.0,)
        return cls(
            float(settings.lr[0]),
            float(settings.threshold[0]),
            bool(settings.decays[0]),
            steps,
            shape,
        )

    @property
    def clips(self) -> bool:
        """Whether there is a threshold."""
        return bool(np.isfinite(self.threshold))

    def rate_at(self, step: np.ndarray) -> np.ndarray:
        """The learning rate at some steps of the run, an array of their shape."""
        return self.lr * (1 - self.decays * np.asarray(step) / self.steps)

    def threshold_at(self, step: np.ndarray) -> np.ndarray:
        """The threshold at some steps of the run, an array of their shape."""
        at = np.linspace(0, self.steps, max(len(self.profile), 2))
        shape = np.broadcast_to(self.profile, (len(at),))
        return self.threshold * np.interp(step, at, shape)

    @property
    def setting(self) -> Setting:
        """The rule and the learning rate as functions of the step: for `simulate` and
        `solve`, and for an optax chain."""
        dtype = jnp.result_type(float)
        numbers = self.lr, float(self.decays), float(self.steps)
        rate = Decay(*(jnp.asarray(number, dtype) for number in numbers))
        return Setting(self._clip(), rate)

    def _clip(self) -> AbstractClip:
        if not self.clips:
            return Identity()
        if len(self.profile) == 1:
            return HardClip(self.threshold)
        knots = np.linspace(0, self.steps, _KNOTS)
        return HardClip(PiecewiseLinear(knots, self.threshold_at(knots)))

    def __str__(self) -> str:
        rate = f"lr {self.lr:.3g}"
        if self.decays:
            rate += f", falling along a line to 0 over {self.steps:,} steps"
        if not self.clips:
            return f"{rate}; no clip"
        first = float(self.threshold_at(np.zeros(1))[0])
        if len(self.profile) == 1:
            return f"{rate}; threshold {first:.3g}"
        return f"{rate}; threshold {first:.3g} falling to {self.threshold:.3g}"
