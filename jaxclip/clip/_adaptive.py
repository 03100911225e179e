"""Thresholds that follow what has been seen, or chance: a rule with a policy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from .._checks import check, is_traced
from .._picture import need_one, vector
from .._schedule import Constant
from .._types import PyTree, Step
from ._base import AbstractClip, NoTransform
from ._figure import draw_replay
from .policy import (
    AbstractDirectedPolicy,
    AbstractMaskedPolicy,
    AbstractPolicy,
    Along,
)


class Adaptive(NoTransform):
    """A rule whose threshold is set by a policy at each update.

    ```python
    clip = jaxclip.Adaptive(jaxclip.policy.Percentile(10.0))
    optax.chain(jaxclip.as_transform(clip), optax.adam(1e-3))
    ```

    Its factor is a function of more than the norm, so it is no
    [`jaxclip.AbstractClip`][]: the state lives in the transform, and the limits, which
    have none, refuse it. To run it on a problem use [`jaxclip.train`][].

    **Arguments:**

    - `policy`: where the threshold comes from, such as `Percentile(10.0)`.
    - `rule`: the rule as a function of its threshold: a class such as `HardClip`, or
        `lambda c: DeltaClip(c, 0.1)`. By default the policy's own: `HardClip`, or
        [`jaxclip.clip.Rescale`][] where the policy sets the norm and no bound of it.
    """

    policy: AbstractPolicy
    rule: Callable[[Any], AbstractClip] = eqx.field(static=True)

    def __init__(
        self,
        policy: AbstractPolicy,
        rule: Callable[[Any], AbstractClip] | None = None,
    ):
        self.policy = policy
        # Of the class: one of an instance would be a method.
        self.rule = type(policy).rule if rule is None else rule

    def at(
        self,
        norms: Float[Array, " n"],
        state: PyTree[Array],
        step: Step,
        along: Along | None = None,
        counted: Bool[Array, " n"] | None = None,
    ) -> tuple[AbstractClip, PyTree[Array]]:
        """The rule of this update, and the policy's state after it.

        **Arguments:**

        - `norms`, `state`, `step`: as in [`jaxclip.policy.AbstractPolicy`][].
        - `along`: as in [`jaxclip.policy.AbstractDirectedPolicy`][], which needs it.
        - `counted`: as in [`jaxclip.policy.AbstractMaskedPolicy`][]; all by default.
        """
        seen = norms
        if counted is not None:
            seen = jnp.where(counted, norms, 0.0)
            if along is not None:
                along = Along(
                    lengths=jnp.where(counted, along.lengths, 0.0),
                    products=jnp.where(counted, along.products, 0.0),
                    sizes=jnp.where(counted, along.sizes, 0.0),
                    counted=counted & along.counted,
                )
        # A parameter of the policy may be of another precision than the gradient.
        with jax.numpy_dtype_promotion("standard"):
            threshold, after = self._threshold(seen, counted, state, step, along)
            # One infinite norm would stay in an average for ever. And norms that are
            # all 0 say nothing about the size of gradients: an expert that got no
            # tokens, a layer that is frozen. Counted, they would set a threshold of 0.
            usable = jnp.all(jnp.isfinite(seen)) & jnp.any(seen > 0)
            if along is not None:
                usable &= jnp.all(jnp.isfinite(jnp.stack(along[:3])))
            after = jax.tree.map(
                lambda new, old: jnp.where(usable, new, old).astype(old.dtype),
                after,
                state,
            )
        # As a schedule: a number would be checked again at every step.
        return self.rule(Constant(jnp.asarray(threshold, norms.dtype))), after

    def plot(self, ax: Any = None, *, norms: Real[Any, " n"]) -> Any:
        """Draws what the policy would have made of some norms, as of a run that was
        logged: each of them before and after clipping, and the threshold of its update.
        Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `norms`: shape `(n,)`, of one update after another, in the gradient's unit.
            What is not finite is a gap, which the policy does not count either.

        **Returns:**

        The axes.

        **Raises:**

        A `ValueError` of a policy that sees where gradients point, and not their norms
        alone; of a batch of policies, and of norms that are negative or no vector.
        """
        if isinstance(self.policy, AbstractDirectedPolicy):
            raise ValueError(
                "`plot` shows what a policy makes of norms alone. Got "
                f"`{type(self.policy).__name__}`, which also sees where gradients "
                "point: `LivePlot` draws what `clip_metrics` returns of a run."
            )
        need_one("policy", self, {})
        before = vector("norms", norms, finite=False)
        after, threshold = _replay(self, jnp.asarray(before))
        need_one("policy", self, {"its threshold": threshold.shape[1:]})
        return draw_replay(before, np.asarray(after), np.asarray(threshold), ax)

    def _threshold(
        self,
        norms: Array,
        counted: Array | None,
        state: PyTree[Array],
        step: Step,
        along: Along | None,
    ) -> tuple[Array, PyTree[Array]]:
        if isinstance(self.policy, AbstractDirectedPolicy) and along is not None:
            return self.policy.threshold_along(norms, along, state, step)
        if isinstance(self.policy, AbstractMaskedPolicy) and counted is not None:
            return self.policy.threshold_of(norms, counted, state, step)
        return self.policy.threshold(norms, state, step)


@eqx.filter_jit
def _replay(
    clip: Adaptive, norms: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, "n ..."]]:
    """The norms after clipping, and the thresholds, of one update after another."""

    def update(carry, norm):
        state, step = carry
        # The threshold of this update is that of the state before it.
        with jax.numpy_dtype_promotion("standard"):
            threshold, _ = clip._threshold(norm[None], None, state, step, None)
        rule, state = clip.at(norm[None], state, step)
        after = norm * rule.factor(norm[None], step)
        shape = () if threshold.size == 1 else threshold.shape
        return (state, step + 1), (after, threshold.reshape(shape))

    step = jnp.zeros((), jnp.int32)
    start = clip.policy.init(norms.dtype, step)
    _, (after, thresholds) = jax.lax.scan(update, (start, step), norms)
    return after.reshape(len(norms), -1)[:, 0], thresholds


def _not_nan(number: Any) -> Any:
    """A number of a rule; where it is traced, an error at run time if it is NaN: what
    the rule made of one that it does not allow."""
    if not (is_traced(number) and jnp.issubdtype(number.dtype, jnp.floating)):
        return number
    return check(
        number,
        jnp.isnan,
        "`clip` holds a number that its rule does not allow, such as a threshold that "
        "is negative or NaN.",
    )


def need_rule(clip: Any, verb: str) -> AbstractClip:
    """`clip`, if it is a rule; an error that says why an adaptive one is none.

    **Arguments:**

    - `verb`: the function that needs it, as an error calls it.
    """
    if isinstance(clip, AbstractClip):
        return jax.tree.map(_not_nan, clip)
    if isinstance(clip, Adaptive):
        raise ValueError(
            f"`{verb}` needs a rule whose factor depends on the norm and the step "
            f"alone. Got `Adaptive({type(clip.policy).__name__})`, whose threshold "
            "depends on earlier gradients or on chance: a state that only an optax "
            "transform has. Use `train(problem, optax.chain(as_transform(clip), ...))`."
        )
    raise ValueError(
        "`clip` must be a clipping rule, such as `HardClip(1.0)`, or `Identity()` for "
        f"none. Got {clip!r}."
    )
