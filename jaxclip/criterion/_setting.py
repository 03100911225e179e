"""A rule with the learning rate that goes with it."""

from typing import NamedTuple

from .._types import Schedule
from ..clip import AbstractClip


class Setting(NamedTuple):
    """A rule with the learning rate that goes with it, as a schedule gives them.

    The two are handed on in this order: `simulate(problem, *setting, steps=...)`, and
    `solve` likewise.

    **Fields:**

    - `clip`: the rule; its threshold is on the gradient's norm, a function of the step.
    - `lr`: the learning rate, per step, a function of the step.
    """

    clip: AbstractClip
    lr: Schedule
