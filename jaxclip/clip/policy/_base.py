"""What a policy is: where the threshold of the next step comes from."""

import abc
from typing import Any

from jaxtyping import Array, Float, Int

from ..._repr import Shown
from ..._types import PyTree, Step
from .._base import no_transform


class AbstractPolicy(Shown):
    """Where the threshold of the next step comes from. A new one is a small class.

    **An author must guarantee**, and the library does not check, that

    - both methods are pure and traceable: JAX operations, no branch in Python on a
        value, and what must be remembered is in the state alone;
    - they are for one threshold, without an axis of thresholds: the library maps them
        over the parts of a gradient;
    - the state has the same structure and shapes after each update as before the first
        one, so that it can be carried through a `scan`;
    - a threshold is not negative and not NaN, before the first norm was seen, too;
        infinite means that nothing is clipped;
    - chance comes from a key in a field, folded with the `index` of `init` and with
        `step`, so that two thresholds of one update differ and a run can be repeated.

    What the library takes care of: an update whose norms are not finite, or are all 0
    (a part that got no gradient), leaves the state as it was, and the state keeps the
    types that `init` gave it.
    """

    @property
    def update(self) -> Any:
        """A policy is no optax transform: asking for this says what to do."""
        raise no_transform(self, "policy")

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
