"""Gradients of a batch, clipped per example, a few examples in memory at a time."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import count
from .._static import hashable
from .._types import Params, PyTree, Step
from ..clip import AbstractClip, Adaptive, need_rule
from ._parts import factors
from ._scope import times
from ._scope_example import PerExample


def clipped_grad(
    loss: Callable[[Any, Any], Float[Array, ""]],
    clip: AbstractClip | Adaptive,
    scope: PerExample = PerExample(),
    *,
    microbatch: int | None = None,
) -> Callable[..., Params]:
    r"""The gradient of a mean over examples, each example's clipped: a function.

    $$(x, (b_1, \dots, b_n)) \mapsto \tfrac1n \sum_i f(\|g_i\|)\, g_i, \qquad
    g_i = \nabla_x\, \text{loss}(x, b_i),$$

    or the sum, by `scope`. It is to `as_transform(clip, scope)` what `jax.grad` is to
    an optimiser: the same numbers, but never more than `microbatch` gradients at a
    time, where the transform is given all of them.

    ```python
    gradient = jaxclip.clipped_grad(loss, jaxclip.HardClip(1.0), microbatch=32)
    updates, state = optimiser.update(gradient(params, batch), state, params)
    ```

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example. What is returned is
        compiled once for the same function and shapes, whatever the numbers.
    - `clip`: the rule. Not an `Adaptive` one: there is no state here.
    - `scope`: the reduction and the noise, as for `as_transform`.
    - `microbatch`: how many examples at a time; all at once by default. It must divide
        the batch.

    **Returns:**

    A function of the parameters, a batch (a pytree whose leaves have a leading axis of
    examples) and, by keyword, the `step` at which a schedule is evaluated. It returns
    a pytree like the parameters.

    **Raises:**

    A `ValueError` where an argument is misused.
    """
    rule = need_rule(clip, "clipped_grad")
    if microbatch is not None:
        count("microbatch", microbatch)

    known = hashable(loss)

    def gradient(params: Params, batch: PyTree[Array], *, step: Step = 0) -> Params:
        # Python numbers are numbers: they must not be compiled in.
        params, batch, step = jax.tree.map(jnp.asarray, (params, batch, step))
        return _gradient(known, rule, scope, microbatch, params, batch, step)

    return gradient


# A call that is not jitted would compile the loop over microbatches each time.
@eqx.filter_jit
def _gradient(
    loss: Callable[[Any, Any], Float[Array, ""]],
    rule: AbstractClip,
    scope: PerExample,
    microbatch: int | None,
    params: Params,
    batch: PyTree[Array],
    step: Step,
) -> Params:
    def reduced(examples):
        """Of one microbatch, without noise."""
        gradients = jax.vmap(jax.grad(loss), (None, 0))(params, examples)
        norms = scope.norms(gradients, params)
        parts, _ = factors(rule, norms, (), step, True)
        return scope.multiply(gradients, parts.factors)

    if microbatch is None:
        return scope.perturb(reduced(batch), step)
    pieces = jax.tree.map(lambda leaf: _split(leaf, microbatch), batch)
    number = jnp.shape(jax.tree.leaves(pieces)[0])[0]

    def add(total, piece):
        return jax.tree.map(_add, total, reduced(piece)), None

    total, _ = jax.lax.scan(add, jax.tree.map(_wide_zeros, params), pieces)
    # The mean of the pieces' means, or the sum of their sums.
    share = jnp.asarray(scope.share(number))
    mean = jax.tree.map(
        lambda leaf, x: times(leaf, share).astype(x.dtype), total, params
    )
    return scope.perturb(mean, step)


def _wide_zeros(leaf: Array) -> Array:
    # In float32 or better: a sum of many pieces in half precision stops growing.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def _add(total: Array, leaf: Array) -> Array:
    return total + leaf.astype(total.dtype)


def _split(leaf: Array, microbatch: int) -> Array:
    """The leaf, with an axis of microbatches before that of their examples."""
    size = jnp.shape(leaf)[0]
    if size % microbatch:
        raise ValueError(
            "`microbatch` must divide the number of examples. Got "
            f"microbatch={microbatch} and a batch of {size}."
        )
    return jnp.reshape(leaf, (size // microbatch, microbatch, *jnp.shape(leaf)[1:]))
