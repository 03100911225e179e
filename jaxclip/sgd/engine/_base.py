"""What an engine is: a way to compute a run."""

import abc

import equinox as eqx

from ..._curve import Curve
from ..._types import Schedule
from ...clip import AbstractClip
from ...problem import AbstractProblem
from ...transform import AbstractScope, PerTree, within_example
from .._loop import Run


class AbstractEngine(eqx.Module):
    """A way to compute a run.

    `Direct()` and `Blocked()` give the same run for the same key; `Lumped()` gives
    another one of the same law.

    **An author must guarantee**, and the library does not check, that

    - `compute` is pure and traceable: [`jaxclip.simulate`][] compiles it, and users
        differentiate it and map it over settings, rates and keys;
    - the law of the run is that of clipped SGD, step by step. Where it is the same run
        as that of `Direct()`, sample `i` of step `k` has the index
        `k * run.batch_size + i`, and the data come from `problem.stream(run.key)`;
    - all that is random comes from `run.key`;
    - `lr` and the rule are read at whole steps, counted from 0;
    - a problem, an update or an `observe` that it cannot do is refused by a
        `ValueError` that names an engine that can;
    - the curve has a record at step 0 and after every `run.every` steps, `run.observe`
        of the same parameters beside it, and a risk that is infinite and not NaN once
        a run has diverged.
    """

    @abc.abstractmethod
    def compute(
        self, problem: AbstractProblem, clip: AbstractClip, lr: Schedule, run: Run
    ) -> Curve:
        """The run; the arguments are those of [`jaxclip.simulate`][], checked.

        **Arguments:**

        - `problem`: what SGD runs on.
        - `clip`: the rule, not an `Adaptive` one.
        - `lr`: the learning rate, a function of the step, per step.
        - `run`: has the fields `steps`, `every`, `key`, `observe` and `update`, a
            [`jaxclip.algorithm.Update`][], of which `batch_size` and `scope` are also
            the run's own.
        """


def need_whole_gradients(who: str, scope: AbstractScope) -> None:
    """Refuses a scope that does not multiply a sample's gradient by one number, as the
    engines that never form it need."""
    if not isinstance(within_example(scope), PerTree):
        raise ValueError(
            f"`{who}` multiplies whole gradients by a number, and `scope` has a factor "
            f"for each part of them: use `engine=Direct()`. Got {scope!r}."
        )
