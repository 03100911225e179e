"""What `clipped_grad` returns: a function with its checks at the door."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._checks import leading_length
from .._types import Key, Params, PyTree, Step
from ..clip import Adaptive, policy
from ._as_transform import ClipState
from ._comparison import need_others
from ._direction import directed
from ._examples_spread import axes_of, number_of_all
from ._parts import Rules, has_state, init_policies, is_rule
from ._per_example import Engine
from ._reduced import reduced
from ._varying import varying_axes


# Told apart by identity, as functions are: numbers have no hash.
@dataclass(frozen=True, eq=False)
class ClippedGradient:
    """A function that returns the clipped gradient of a batch, as
    [`jaxclip.clipped_grad`][] and [`jaxclip.clipped_value_and_grad`][] make it.

    ```python
    gradient = jaxclip.clipped_grad(loss, jaxclip.Adaptive(policy))
    state = gradient.init(params)
    value, state = gradient(params, batch, state=state)
    ```

    Inside of `jax.shard_map` it is that of the examples of one device, and what it
    returns varies between devices: take `jax.lax.pmean`, or `psum` of a sum. Where the
    scope names the axis that the batch is spread over, `PerExample(axis_name="data")`,
    it is that of all examples, the same on every device, with one threshold and one
    noise; what each example had stays on its device.
    """

    _engine: Engine
    _with_value: bool

    def init(self, params: Params) -> ClipState:
        """The state before the first step: what the policies of adaptive rules
        remember, and the number of steps made.

        **Arguments:**

        - `params`: a pytree of arrays.
        """
        policies = init_policies(self._engine.clip, self._engine.scope, params)
        return ClipState(jnp.zeros((), jnp.int32), policies)

    def __call__(
        self,
        params: Params,
        batch: PyTree[Array],
        *,
        step: Step | None = None,
        key: Key | None = None,
        mask: Bool[Array, " n"] | None = None,
        state: ClipState | None = None,
        metric: Params | None = None,
    ) -> Any:
        """The clipped gradient of a batch.

        **Arguments:**

        - `params`: a pytree of arrays of floats. What else a model has, such as keys,
            counts and functions, the loss must close over.
        - `batch`: a pytree of arrays with a leading axis of examples. There may be
            none of them, as Poisson sampling draws now and then: what is left then is
            the noise.
        - `step`: the index of the SGD step, at which schedules are evaluated. Noise
            needs it too, or a `key` or a `state`: two steps must not have the same.
        - `key`: draws the noise, in place of that of the scope.
        - `mask`: shape `(n,)`, which examples are real. Those that are not, such as
            what a batch is padded with, count in nothing: a mean is over the others.
        - `state`: what `init` or the step before returned. It is needed for adaptive
            rules, and counts the steps in place of `step`.
        - `metric`: a pytree like the parameters, the diagonal that the optimiser
            multiplies a gradient by, for [`jaxclip.policy.Criterion`][]; 1 by default.

        **Returns:**

        What the function that made this one says; with a `state` the pair of that and
        the state after this step.

        **Raises:**

        A `ValueError` where an argument is missing, too many, or of a wrong shape.
        """
        _check(self._engine, step, key, mask, state)
        _check_metric(self._engine, metric)
        _check_params(params)
        # Python numbers are numbers: they must not be compiled in.
        params, batch, mask = jax.tree.map(jnp.asarray, (params, batch, mask))
        _check_shapes(self._engine, batch, mask)
        start = jnp.asarray(0 if step is None else step)
        clock = ClipState(start) if state is None else state
        value, examples, gradient, state_after = reduced(
            self._engine, params, batch, mask, key, clock, metric
        )
        result = gradient
        if self._with_value:
            result = (value, examples), gradient
        elif self._engine.has_aux:
            result = gradient, examples.aux
        return result if state is None else (result, state_after)


def _check(engine: Engine, step: Any, key: Any, mask: Any, state: Any) -> None:
    noisy = engine.scope.noise_std is not None
    if step is not None and state is not None:
        raise ValueError(
            f"`step` and `state` were both given, and a state counts the steps. Got "
            f"step={step!r}; leave it out."
        )
    if noisy and step is None and key is None and state is None:
        raise ValueError(
            "`step` is needed where the scope has noise, and was not given: the noise "
            "of two calls without it would be the same, which hides nothing. Call "
            "`gradient(params, batch, step=k)` with the index of the step, or give a "
            "fresh `key` each time."
        )
    if noisy and key is None and engine.scope.key is None:
        raise ValueError(
            "`key` is needed: the scope has noise and no key that draws it. Give one, "
            "as in `gradient(params, batch, key=jax.random.key(0))`, or to the scope."
        )
    if key is not None and not noisy:
        raise ValueError(
            "`key` draws the noise of the scope, which has none. Leave it out, or take "
            "`PerExample(noise_std=...)`."
        )
    if not has_state(engine.clip):
        return
    if state is None:
        raise ValueError(
            "`state` is needed for an `Adaptive` rule, and was not given. Call "
            "`gradient(params, batch, state=state)`, with `gradient.init(params)` at "
            "first; it returns the state too."
        )
    if mask is not None or engine.drop_nonfinite:
        _check_counting(engine.clip)


def _check_counting(clip: Rules) -> None:
    for rule in jax.tree.leaves(clip, is_leaf=is_rule):
        if not isinstance(rule, Adaptive) or isinstance(
            rule.policy, policy.AbstractMaskedPolicy | policy.AbstractDirectedPolicy
        ):
            continue
        raise ValueError(
            "`mask` and `drop_nonfinite` need a policy that can leave examples out, a "
            "`policy.AbstractMaskedPolicy`, or it would count those that are not "
            f"there. Got {rule.policy!r}; give it whole batches."
        )


def _check_metric(engine: Engine, metric: Any) -> None:
    if metric is None:
        return
    if directed(engine.clip, engine.scope) is None:
        raise ValueError(
            "`metric` is what `policy.Criterion` compares gradients in, and there is "
            f"none. Leave it out. Got it for {engine.clip!r}."
        )
    if engine.passes == 2:
        raise ValueError(
            "`metric` needs the gradient of each example, for its length, which "
            "`passes=2` does not form. Take `passes=1`."
        )


def _check_params(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                "`params` must be floats, or there is no gradient with respect to them."
                f" Got {dtype} at `{name}`. Take the rest of a model out of it, and "
                "close the loss over that: `eqx.partition(model, eqx.is_inexact_array)`"
                ", or `nnx.split(model, nnx.Param, ...)` in flax."
            )


def _check_shapes(engine: Engine, batch: PyTree[Array], mask: Array | None) -> None:
    size = leading_length("The batch", batch, "examples", least=0)
    if size % engine.group:
        raise ValueError(
            f"`group` must divide the number of examples. Got group={engine.group} and "
            f"a batch of {size}. Pad the batch, and say by `mask` which are real."
        )
    if mask is not None and (mask.shape != (size,) or mask.dtype != bool):
        raise ValueError(
            "`mask` must hold a boolean for each example, true for those that are "
            f"real. Got shape {mask.shape} of {mask.dtype} for {size} examples."
        )
    axes = axes_of(batch, engine.scope.axis_name)
    if directed(engine.clip, engine.scope) is not None:
        need_others(number_of_all(size // engine.group, axes))
    if engine.scope.noise_std is not None and varying_axes(batch) - set(axes):
        raise ValueError(
            "`scope` has noise, and the batch is spread over devices by `shard_map`: "
            "the noise would be added on each of them. Name the axis in the scope, "
            '`PerExample(axis_name="data")`; or leave the noise out, add the gradients '
            "up by `jax.lax.psum`, and then call `scope.perturb(gradient, step)`."
        )
