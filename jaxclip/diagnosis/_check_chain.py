"""Whether the clips and the optimiser of a chain go together, by running them apart."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._checks import is_traced, leading_length
from .._types import PyTree
from ._chain import ChainCheck
from ._measure_chain import measure_chain


def check_chain(
    optimizer: optax.GradientTransformation,
    params: PyTree[Any],
    gradients: PyTree[Array],
    *,
    before: optax.GradientTransformation | None = None,
    after: optax.GradientTransformation | None = None,
) -> ChainCheck:
    """Where clipping goes wrong in silence, measured on gradients of a training.

    ```python
    check = jc.diagnosis.check_chain(
        optax.adam(1e-3),
        params,
        gradients,
        before=jc.as_transform(jc.HardClip(1e-9)),
    )
    print(check)  # epsilon: ... training stalls ...
    ```

    The links `before`, `optimizer` and `after` are run apart on the gradients as they
    are, on gradients ten times as long, and on some of which the last is a million
    times as long; at the same parameters throughout, so that where training goes is not
    asked. What may be found, from a threshold below Adam's epsilon to a guard that
    stands too late, is listed at [`jaxclip.diagnosis.Finding`][].

    The optimiser is compared with itself without `before`, or, if there is none, with
    all clips of this library in it off; of these, what is in a [`jaxclip.monitor`][] is
    watched. What is found is true of these gradients; nothing else is excluded.

    **Arguments:**

    - `optimizer`: the optimiser, or the whole chain.
    - `params`: the parameters.
    - `gradients`: of the structure of the parameters with a leading axis of steps, at
        least 3, in the order in which the training had them; better 20 or more. All of
        them are held several times over.
    - `before`: what stands before the optimiser, such as `as_transform(HardClip(1.0))`
        or `optax.clip_by_global_norm(1.0)`.
    - `after`: what stands behind it.

    **Returns:**

    A [`jaxclip.diagnosis.ChainCheck`][]: print it, or look at its `findings`.

    **Raises:**

    A `ValueError` where the gradients do not match the parameters or hold a number that
    is not finite, where a link changes shapes, or all updates are zero.
    """
    gradients = _need_gradients(params, gradients)
    return measure_chain((before, optimizer, after), params, gradients)


def _need_gradients(params: PyTree[Any], gradients: PyTree[Any]) -> PyTree[Array]:
    leaves = jax.tree.leaves((params, gradients))
    if any(map(is_traced, leaves)):
        raise ValueError(
            "`check_chain` reports in words and runs outside of `jax.jit`. Got traced "
            "parameters or gradients."
        )
    leading_length("`gradients`", gradients, "steps", least=3)
    gradients = jax.tree.map(jnp.asarray, gradients)
    shapes = [
        jax.tree.map(lambda x, k=k: jnp.shape(x)[k:], tree)
        for k, tree in enumerate((params, gradients))
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`gradients` must be of the structure and shapes of `params`, with a "
            f"leading axis of steps. Got {shapes[1]} behind that axis and {shapes[0]}."
        )
    if not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients)):
        raise ValueError(
            "`gradients` must be finite; what a chain makes of those that are not is "
            "tried in any case. Got some that are not."
        )
    return gradients
