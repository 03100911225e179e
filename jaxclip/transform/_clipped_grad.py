"""Gradients of a batch, clipped per example, a few examples in memory at a time."""

from collections.abc import Callable
from typing import Any

from .._checks import count
from .._static import hashable
from ._clipped_gradient import ClippedGradient
from ._direction import directed
from ._parts import Rules, check_rules
from ._per_example import Engine
from ._scope import PerTree
from ._scope_example import PerExample


def clipped_grad(
    loss: Callable[[Any, Any], Any],
    clip: Rules,
    scope: PerExample = PerExample(),
    *,
    microbatch: int | None = None,
    has_aux: bool = False,
    group: int = 1,
    drop_nonfinite: bool = False,
    passes: int = 1,
) -> ClippedGradient:
    r"""The gradient of a mean over examples, each example's clipped: a function.

    $$(x, (b_1, \dots, b_n)) \mapsto \tfrac1n \sum_i f(\|g_i\|)\, g_i, \qquad
    g_i = \nabla_x\, \text{loss}(x, b_i),$$

    or the sum, by `scope`. It is to `as_transform(clip, scope)` what `jax.grad` is to
    an optimiser: the same numbers, but never more than `microbatch` gradients at a
    time, where the transform is given all of them; and with `passes=2` not even those.

    ```python
    gradient = jaxclip.clipped_grad(loss, jaxclip.HardClip(1.0), microbatch=32)
    updates, state = optimiser.update(gradient(params, batch), state, params)
    ```

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example. What is returned is
        compiled once for the same function and shapes, whatever the numbers.
    - `clip`: the rule, an [`jaxclip.Adaptive`][] one, or a pytree with a rule for each
        leaf, as for `as_transform`. An adaptive one sees the norms of the whole batch,
        also in microbatches, and has a state.
    - `scope`: the reduction and the noise, as for `as_transform`.
    - `microbatch`: how many examples (or groups) at a time; all at once by default. Of
        a batch that it does not divide the last ones are fewer.
    - `has_aux`: whether the loss returns a pair, of which the second is handed out for
        each example.
    - `group`: how many consecutive examples, such as those of one user, are clipped as
        one, by the mean of their gradients, or the sum, as `scope` reduces. It must
        divide the batch; `mask` makes smaller groups.
    - `drop_nonfinite`: whether an example (or group) whose gradient is not finite is
        left out, as if the batch had been without it.
    - `passes`: 1 forms the gradient of each example. 2 takes their norms from the
        inputs and cotangents of the layers, and the weighted sum from a second backward
        pass: the same numbers up to rounding, for any loss, under `PerTree()`. Products
        with weights, convolutions and embeddings form no gradient of an example; other
        parameters (biases, scales, weights used twice or in a `scan`) do, of a
        microbatch.

    **Returns:**

    A [`jaxclip.transform.ClippedGradient`][]: `gradient(params, batch)` is a pytree
    like the parameters, and with `has_aux` the pair of it and the auxiliary outputs.

    **Raises:**

    A `ValueError` where an argument is misused.
    """
    how = (microbatch, has_aux, group, drop_nonfinite, passes)
    return ClippedGradient(_engine(loss, clip, scope, *how), _with_value=False)


def clipped_value_and_grad(
    loss: Callable[[Any, Any], Any],
    clip: Rules,
    scope: PerExample = PerExample(),
    *,
    microbatch: int | None = None,
    has_aux: bool = False,
    group: int = 1,
    drop_nonfinite: bool = False,
    passes: int = 1,
) -> ClippedGradient:
    """The value beside [`jaxclip.clipped_grad`][], and what each example had.

    ```python
    both = jaxclip.clipped_value_and_grad(loss, jaxclip.HardClip(1.0))
    (value, examples), gradient = both(params, batch)
    clipped = jnp.mean(examples.norms > 1.0)
    ```

    **Arguments:**

    - `loss`, `clip`, `scope`, `microbatch`, `has_aux`, `group`, `drop_nonfinite`,
        `passes`: all arguments are those of [`jaxclip.clipped_grad`][].

    **Returns:**

    A [`jaxclip.transform.ClippedGradient`][] that returns a pair like that of
    `jax.value_and_grad(..., has_aux=True)`: `(value, examples), gradient`. The value is
    the mean of the losses, or their sum, as `scope` reduces; `examples` is a
    [`jaxclip.transform.Examples`][].

    **Raises:**

    A `ValueError` where an argument is misused.
    """
    how = (microbatch, has_aux, group, drop_nonfinite, passes)
    return ClippedGradient(_engine(loss, clip, scope, *how), _with_value=True)


def _engine(
    loss: Callable[[Any, Any], Any],
    clip: Rules,
    scope: PerExample,
    microbatch: int | None,
    has_aux: bool,
    group: int,
    drop_nonfinite: bool,
    passes: int,
) -> Engine:
    check_rules(clip)
    directed(clip, scope)
    if microbatch is not None:
        count("microbatch", microbatch)
    count("group", group)
    if passes not in (1, 2):
        raise ValueError(
            "`passes` must be 1, which forms each example's gradient, or 2, which "
            f"takes their norms first. Got {passes!r}."
        )
    if passes == 2 and not isinstance(scope.within, PerTree):
        raise ValueError(
            "`passes=2` needs one norm over all leaves, "
            "`PerExample(within=PerTree())`, since an example gets one weight. Got "
            f"within={scope.within!r}; take `passes=1`."
        )
    how = (microbatch, has_aux, group, drop_nonfinite, passes)
    return Engine(hashable(loss), clip, scope, *how)
