"""What a policy is: where the threshold of the next step comes from."""

import abc
from typing import Any

from jaxtyping import Array, Float, Int

from ..._repr import Shown
from ..._types import PyTree, Step


class AbstractPolicy(Shown):
    """Where the threshold of the next step comes from. A new one is a small class.

    **An author must guarantee** that the two methods work for one threshold, without
    axes of their own, do not branch in Python on a value, and return a state of the
    same structure. The library runs them over the parts of a gradient, ignores an
    update whose norms are not finite, and keeps the types of the state.
    """

    @abc.abstractmethod
    def init(self, dtype: Any, index: Int[Array, ""]) -> PyTree[Array]:
        """The state before the first update.

        **Arguments:**

        - `dtype`: the precision of norms.
        - `index`: which of the transform's thresholds this is. Only a policy that draws
            random numbers needs it.
        """

    @abc.abstractmethod
    def threshold(
        self, norms: Float[Array, " n"], state: PyTree[Any], step: Step
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        """The threshold of this update, and the state after it.

        **Arguments:**

        - `norms`: shape `(n,)`, what the threshold will clip: one norm, or those of the
            examples of a batch under [`jaxclip.PerExample`][].
        - `state`: what `init` or the update before returned.
        - `step`: the number of updates made before.

        **Returns:**

        The threshold, shape `()` or `(n,)`, infinite for none; and the new state.
        """
