"""What monitors saw, as a flat dictionary for any logger."""

from typing import Any

import jax
from jaxtyping import Array

from .._types import PyTree
from ._monitor import MonitorState

_OF_PARTS = ("norm", "factor", "threshold")
_SCALARS = ("removed", "clipped", "recent", "updates", "nonfinite")


def clip_metrics(
    state: PyTree[Any], params: PyTree[Any] | None = None
) -> dict[str, Array]:
    """What the monitors anywhere in an optimiser's state saw, as scalars by name.

    ```python
    clip = jaxclip.monitor(jaxclip.as_transform(jaxclip.HardClip(1.0)))
    optimiser = optax.chain(clip, optax.adam(1e-3))
    state = optimiser.init(params)
    ...
    logger.log(jaxclip.clip_metrics(state))
    ```

    **Arguments:**

    - `state`: the state of an optimiser, a chain, a guard, or a whole train state, in
        which a [`jaxclip.monitor`][] is at work; of an `nnx.Optimizer` its `opt_state`.
    - `params`: the parameters, or anything of their structure, which name the leaves
        where a scope takes a norm of each: `norm/layer.weight`, and `norm/0` without.

    **Returns:**

    A flat dictionary of arrays of shape `()`, under `jit` too: `norm`, `factor`,
    `threshold`, `removed`, `clipped`, `recent`, `updates`, `nonfinite` and `regime/0`,
    `regime/1` ..., as [`jaxclip.transform.MonitorState`][] explains them. With several
    monitors the names of each begin with its number, `0/norm`.

    **Raises:**

    A `ValueError` where there is no monitor in the state.
    """

    def is_monitor(node):
        return isinstance(node, MonitorState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_monitor) if is_monitor(s)]
    if not found:
        raise ValueError(
            "`state` must be an optimiser's state with a monitor in it, as that of "
            "`optax.chain(monitor(as_transform(HardClip(1.0))), ...)`. Got a state "
            f"without one, of type {type(state).__name__}."
        )
    metrics: dict[str, Array] = {}
    for number, monitor in enumerate(found):
        start = f"{number}/" if len(found) > 1 else ""
        for name, value in _of_one(monitor, params).items():
            metrics[start + name] = value
    return metrics


def _of_one(monitor: MonitorState, params: PyTree[Any] | None) -> dict[str, Array]:
    seen = {name: _array(getattr(monitor, name)) for name in monitor._fields[1:]}
    metrics: dict[str, Array] = {}
    for name in _OF_PARTS:
        values = seen[name]
        if values.ndim == 0:
            metrics[name] = values
        else:
            for leaf, value in zip(_names(params, values.size), values, strict=True):
                metrics[f"{name}/{leaf}"] = value
    metrics |= {name: seen[name] for name in _SCALARS}
    regimes = enumerate(seen["regimes"])
    return metrics | {f"regime/{number}": count for number, count in regimes}


def _array(field: Any) -> Array:
    """The array of a field, which flax's `nnx.Optimizer` wraps in a pytree of one leaf:
    a logger would not take that for a number."""
    (array,) = jax.tree.leaves(field)
    return array


def _names(params: PyTree[Any] | None, count: int) -> list[str]:
    """A name for each leaf; a number where the parameters are not given, or have
    other leaves than the norms."""
    paths = [] if params is None else jax.tree_util.tree_leaves_with_path(params)
    if len(paths) != count:
        return [str(number) for number in range(count)]
    return [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in paths]
