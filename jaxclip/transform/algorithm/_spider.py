"""SPIDER's estimator of the gradient as an optax transform.

The estimator is renewed now and then from a large batch, and between two renewals it
follows the differences of two gradients of the same small batch.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int

from ..._checks import as_float, check, count
from ..._types import Key, PyTree, Step
from ...clip import AbstractClip
from .._norm import safe_norm
from .._scope import PerTree


class AbstractSpiderVariant(eqx.Module):
    """When SPIDER renews its estimator, and what it makes of it.

    **An author must guarantee**, and the library does not check, that

    - both methods are pure and traceable; the step is traced;
    - `anchors` is true at step 0, before which there is no estimator, and depends on
        the step and on fields alone: it is asked twice for a step, by the caller, who
        has to take a large batch, and by the update;
    - `clip` returns two pytrees of the structure, shapes and dtypes of the estimator:
        the first is taken for a gradient, the second is carried on;
    - chance comes from a key in a field, folded with the step.
    """

    @abc.abstractmethod
    def anchors(self, step: Step) -> Bool[Array, ""]:
        """Whether the estimator is renewed at this `step`; it must be at step 0.

        **Arguments:**

        - `step`: the number of updates made before.
        """

    @abc.abstractmethod
    def clip(
        self, clip: AbstractClip, estimator: PyTree[Array], step: Step
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """What SPIDER moves by, and the estimator that it carries on.

        **Arguments:**

        - `clip`: the rule.
        - `estimator`: a pytree of arrays, in the unit of the gradient.
        - `step`: the index of the step.
        """


class PeriodicSpider(AbstractSpiderVariant):
    """SPIDER with clipping as the theory has it: a renewal every so many steps, and the
    estimator carried on unclipped.

    **Arguments:**

    - `period`: steps from one renewal to the next, at least 1.
    """

    period: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        count("period", self.period)

    def anchors(self, step: Step) -> Bool[Array, ""]:
        return jnp.asarray(step) % self.period == 0

    def clip(
        self, clip: AbstractClip, estimator: PyTree[Array], step: Step
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        factor = clip.factor(safe_norm(estimator), step)
        moved = PerTree().multiply(estimator, factor)
        return moved, estimator


class AuthorsSpider(AbstractSpiderVariant):
    r"""SPIDER with clipping as in the code of its authors (arXiv:2303.00883).

    It differs from what the theory analyses in three ways: the rule sees the square of
    the norm, the estimator is carried on clipped, and renewals come at random.

    **Arguments:**

    - `probability`: of a renewal at a step, in $(0, 1]$. Theirs is the small batch over
        the large one, 32 / 1024.
    - `key`: draws the renewals.
    """

    probability: Float[Array, ""]
    key: Key

    def __init__(self, probability: Any, key: Key):
        self.probability = check(
            as_float("probability", probability),
            lambda p: ~((p > 0) & (p <= 1)),
            "`probability` must be above 0 and at most 1.",
        )
        self.key = key

    def anchors(self, step: Step) -> Bool[Array, ""]:
        step = jnp.asarray(step)
        drawn = jr.bernoulli(jr.fold_in(self.key, step), self.probability)
        return drawn | (step == 0)

    def clip(
        self, clip: AbstractClip, estimator: PyTree[Array], step: Step
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        factor = clip.factor(safe_norm(estimator) ** 2, step)
        moved = PerTree().multiply(estimator, factor)
        return moved, moved


class SpiderState(NamedTuple):
    """The state of [`jaxclip.algorithm.spider`][].

    - `step`: the number of updates made so far.
    - `estimator`: the estimated gradient, a pytree like the parameters.
    - `evaluations`: the sample gradients that were taken so far.
    """

    step: Int[Array, ""]
    estimator: PyTree[Array]
    evaluations: Int[Array, ""]


def spider(
    clip: AbstractClip,
    variant: AbstractSpiderVariant,
    *,
    anchor_size: int = 1,
    batch_size: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""SPIDER's estimator, clipped, as an optax transform.

    $$v_k = g(x_k) \text{ at a renewal, else } v_{k-1} + g(x_k) - g(x_{k-1}),$$

    both gradients of a difference on the same samples. The update is $f(\|v_k\|)\, v_k$
    with the rule's factor $f$:

    ```python
    clip, variant = jc.SpiderClip(l0, l1, eps), jc.algorithm.PeriodicSpider(16)
    spider = jc.algorithm.spider(clip, variant)
    optimiser = optax.chain(spider, optax.scale_by_learning_rate(1 / (2 * l0)))
    updates, state = optimiser.update(new, state, params, previous_gradient=old)
    ```

    Where `variant.anchors(state.step)`, hand over the gradient of a large batch; the
    second one is then not used. [`jaxclip.Spider`][] does all that by itself.

    **Arguments:**

    - `clip`: the rule; see [`jaxclip.SpiderClip`][].
    - `variant`: `PeriodicSpider(period)`, or `AuthorsSpider(probability, key)`.
    - `anchor_size`, `batch_size`: the samples in a large and in a small batch, used by
        the count of evaluations in the state alone: a renewal adds the first number,
        another step twice the second.

    **Returns:**

    An optax transform with the state [`jaxclip.algorithm.SpiderState`][]. Its update
    takes `previous_gradient`, like the gradient; a `ValueError` is raised without it.
    """
    _check_kinds(clip, variant)
    costs = count("anchor_size", anchor_size), 2 * count("batch_size", batch_size)

    def update(
        updates: optax.Updates,
        state: SpiderState,
        params: optax.Params | None = None,
        *,
        previous_gradient: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SpiderState]:
        del params, extra_args
        _check_previous(updates, previous_gradient)
        anchor = variant.anchors(state.step)
        estimator = _estimate(anchor, state.estimator, updates, previous_gradient)
        moved, carried = variant.clip(clip, estimator, state.step)
        return moved, SpiderState(
            jnp.asarray(optax.safe_increment(state.step)),
            carried,
            _add(state.evaluations, jnp.where(anchor, *costs)),
        )

    return optax.GradientTransformationExtraArgs(_init, update)  # pyright: ignore[reportArgumentType]  optax types states as any pytree


def _init(params: optax.Params) -> SpiderState:
    return SpiderState(
        step=jnp.zeros((), jnp.int32),
        estimator=jax.tree.map(jnp.zeros_like, params),
        evaluations=jnp.zeros((), jnp.result_type(int)),
    )


def _check_kinds(clip: Any, variant: Any) -> None:
    if not isinstance(clip, AbstractClip):
        raise ValueError(f"`clip` must be a clipping rule. Got {clip!r}.")
    if not isinstance(variant, AbstractSpiderVariant):
        raise ValueError(
            "`variant` must be one such as `PeriodicSpider(period=16)`. "
            f"Got {variant!r}."
        )


def _estimate(anchor: Bool[Array, ""], carried: Any, new: Any, old: Any) -> Any:
    """The new gradient at a renewal, else what was carried plus what has changed."""

    def leaf(carried, new, old):
        return jnp.where(anchor, new, carried + (new - old)).astype(carried.dtype)

    return jax.tree.map(leaf, carried, new, old)


def _check_previous(updates: Any, previous: Any) -> None:
    if previous is None:
        raise ValueError(
            "`spider` needs a second gradient at each update, on the same samples and "
            "at the previous parameters. Got none: call `update(gradient, state, "
            "params, previous_gradient=...)`, or use `jaxclip.Spider`, which takes "
            "both gradients by itself."
        )
    structures = jax.tree.structure(updates), jax.tree.structure(previous)
    if structures[0] != structures[1]:
        raise ValueError(
            "`previous_gradient` must be a pytree like the gradient. Got "
            f"{structures[1]}, wanted {structures[0]}."
        )


def _add(total: Int[Array, ""], cost: Int[Array, ""]) -> Int[Array, ""]:
    # Without x64 the count is one of 32 bits: it stops at the largest number in place
    # of becoming negative.
    cost = cost.astype(total.dtype)
    largest = jnp.iinfo(total.dtype).max
    return jnp.where(total > largest - cost, largest, total + cost)
