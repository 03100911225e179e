"""What an engine is: a way to compute a run."""

import abc

import equinox as eqx

from ..._curve import Curve
from ..._types import Schedule
from ...clip import AbstractClip
from ...problem import AbstractProblem
from .._loop import Run


class AbstractEngine(eqx.Module):
    """A way to compute a run.

    `Direct()` and `Blocked()` give the same run for the same key; `Lumped()` gives
    another one of the same law.
    """

    @abc.abstractmethod
    def compute(
        self, problem: AbstractProblem, clip: AbstractClip, lr: Schedule, run: Run
    ) -> Curve:
        """The run; the arguments are those of [`jaxclip.simulate`][], checked.

        **Arguments:**

        - `run`: has the fields `steps`, `every`, `key`, `batch_size`, `observe` and
            `scope`.
        """
