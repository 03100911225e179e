"""What a policy is: where the threshold of the next step comes from."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._repr import Shown
from ..._types import PyTree, Step
from .._base import AbstractClip, no_transform
from .._rules import HardClip


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

    # What the threshold is handed to where `Adaptive` is given no rule.
    rule: ClassVar[Callable[[Any], AbstractClip]] = HardClip

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


class AbstractMaskedPolicy(AbstractPolicy):
    """A policy that can leave out examples of a batch, such as those that it is padded
    with. All that come with the library can.

    Of any other policy [`jaxclip.clipped_grad`][] refuses a `mask`, since a mean or a
    percentile of all norms would count what is not there.

    **An author must guarantee**, beside what an [`jaxclip.policy.AbstractPolicy`][]
    needs, that what does not count changes nothing but its own threshold.
    """

    def threshold(
        self, norms: Float[Array, " n"], state: PyTree[Any], step: Step
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        return self.threshold_of(norms, jnp.ones(norms.shape, bool), state, step)

    @abc.abstractmethod
    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: PyTree[Any],
        step: Step,
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        """The threshold of this update, and the state after it.

        **Arguments:**

        - `norms`, `state`, `step`: as of
            [`jaxclip.policy.AbstractPolicy.threshold`][].
        - `counted`: shape `(n,)`, which norms count. The others are 0. Where none does,
            the library keeps the state as it was.
        """


class Along(NamedTuple):
    """How gradients lie to the mean of others, as far as it is known.

    - `lengths`: shape `(n,)`, their lengths in the metric of the optimiser; without one
        they are the norms.
    - `products`: shape `(n,)`, their components along the mean of others, in the unit
        of the lengths; all 0 before there is one.
    - `sizes`: shape `(n,)`, the length of that mean, so that a product of gradients is
        the component times this: two numbers, since their product may overflow.
    - `counted`: shape `(n,)`, which of them count; the others are to be left out.
    """

    lengths: Float[Array, " n"]
    products: Float[Array, " n"]
    sizes: Float[Array, " n"]
    counted: Bool[Array, " n"]


class AbstractDirectedPolicy(AbstractPolicy):
    """A policy that sees where gradients point, and not their norms alone.

    Each example of a batch is compared with the mean of the others. A gradient that
    comes alone is compared with a running mean of the updates handed on before, which
    the transform keeps, with the weight `decay` of the past. Both need one norm over
    all leaves: the scope `PerExample()`, or `PerTree()`.

    **An author must guarantee**, beside what an [`jaxclip.policy.AbstractPolicy`][]
    needs, that there is a field `decay`, from 0 to 1.
    """

    decay: eqx.AbstractVar[Float[Array, ""]]

    def threshold(
        self, norms: Float[Array, " n"], state: PyTree[Any], step: Step
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        del norms, state, step
        raise ValueError(
            f"`{type(self).__name__}` needs to know where gradients point, which their "
            "norms do not tell. Use it in `as_transform` or `clipped_grad`, with the "
            "scope `PerTree()` or `PerExample()`."
        )

    @abc.abstractmethod
    def threshold_along(
        self, norms: Float[Array, " n"], along: Along, state: PyTree[Any], step: Step
    ) -> tuple[Float[Array, "..."], PyTree[Array]]:
        """The threshold of this update, and the state after it.

        **Arguments:**

        - `norms`, `state`, `step`: as of
            [`jaxclip.policy.AbstractPolicy.threshold`][].
        - `along`: of the same gradients.
        """
