"""Whether clipping helps a model now: the criteria from its gradients.

All that is needed of a batch is the norm of each gradient and its inner product with
the sums of the clipped ones. So the gradients are made three times, in microbatches,
and never held for the whole batch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import (
    as_float,
    check,
    count,
    is_traced,
    leading_length,
    positive,
    returns_a_number,
)
from .._types import PyTree, RealScalarLike
from ..clip import AbstractClip, HardClip
from ._diagnosis import Diagnosis, Estimate
from ._jackknife import difference
from ._measure import Step, measure
from ._passes import gradients

# With fewer examples the jackknife's own error is as large as what it estimates.
_LEAST = 8


def diagnose(
    loss: Callable[[Any, Any], Any],
    params: PyTree[Any],
    batch: PyTree[Array],
    *,
    target: PyTree[Array] | None = None,
    thresholds: Real[Any, " t"] | None = None,
    rule: Callable[[Any], AbstractClip] = HardClip,
    batch_size: int = 1,
    group: int | None = None,
    noise_multiplier: RealScalarLike = 0.0,
    microbatch: int = 64,
) -> Diagnosis:
    r"""Whether clipping gradients helps a model now, and at what norm.

    With the gradient $g$ of one example and its clipped form $\psi(g)$,

    $$\mu = \frac{\langle E\psi(g), E g\rangle}{\|E g\|^2}, \qquad
    \nu = \frac{E\|\psi(g)\|^2}{E\|g\|^2}, \qquad
    \mathrm{CSC} = \mu / \nu, \qquad \mathrm{CCC} = \mu^2 / \nu:$$

    the criteria of arXiv:2406.11733, in many dimensions those of [`jaxclip.moments`][].
    For other models they are the first two terms of the loss along a step (derived
    here), if its curvature is the same along clipped and unclipped gradients. They say
    nothing about where a run ends whose clipped gradient has another mean.

    A step that averages `batch_size` examples can clip each of them, or the mean of
    all, as training loops do. `diagnose(loss, params, batch, batch_size=64)` judges
    both, if there are eight batches among the examples: each against the same step
    without a clip (section 1.7 of docs/theory.md, derived here).

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example, a number.
    - `params`: the model, a pytree; its arrays of floats are differentiated.
    - `batch`: examples to train on, a pytree of arrays with a leading axis; in random
        order where groups of them are clipped.
    - `target`: other examples to judge the model by, such as clean ones where labels
        are in doubt. With their gradients $h$, $\mu$ is then $\langle E\psi(g), E
        h\rangle / \langle E g, E h\rangle$, and the signal its denominator.
    - `thresholds`: shape `(t,)`, positive, in the unit of the gradient's norm. By
        default 24, evenly spaced in the logarithm from the smallest norms to one that
        acts on ten examples: with fewer, its error would be no measure. Where two clips
        are judged, they are those for examples.
    - `rule`: the clipping rule as a function of its threshold.
    - `batch_size`: how many examples a step of the training averages: $\nu$ is then the
        ratio of the second moments of such means.
    - `group`: how many consecutive examples are clipped as one, by the mean of their
        gradients, as for [`jaxclip.clipped_grad`][]; it divides `batch_size`. 1 clips
        each example, `batch_size` the batch, and what is between them the microbatches
        that are accumulated. By default 1, and beside it `batch_size`.
    - `noise_multiplier`: of DP-SGD, $z$: noise of the standard deviation $z c$ is added
        to each number of the sum of gradients clipped at $c$. The criteria then compare
        a step with clip and noise with one that has neither: their maximum is the best
        threshold, and mostly below 1. Only for `group=1`, and for rules that leave no
        norm above their threshold.
    - `microbatch`: gradients held at once. The memory is `2 t + microbatch` copies of
        the parameters, the work three backward passes over the batch and `4 t`
        operations for each clipped gradient and parameter; twice that for two clips. A
        group takes the memory of a training step on it.

    **Returns:**

    A [`jaxclip.Diagnosis`][]: print it, or plot it.

    **Raises:**

    A `ValueError` where leading axes differ or hold fewer than eight examples or
    groups, where `group` does not divide `batch_size`, where the loss is no number, or
    a threshold is not positive; an error, too, where a gradient is not finite.
    """
    examples = _count_examples("batch", batch)
    size, microbatch = count("batch_size", batch_size), count("microbatch", microbatch)
    noise = _noise(noise_multiplier, group)
    step = Step(size, _group(group, size, examples), rule, noise)
    thresholds = None if thresholds is None else _grid(thresholds)
    _check_judge(loss, params, batch, target)
    # Where no example is clipped, noise gives an example no privacy.
    both = group is None and size > 1 and noise is None and examples >= _LEAST * size
    return _diagnose(loss, params, batch, target, thresholds, step, microbatch, both)


def _group(group: Any, batch_size: int, examples: int) -> int:
    group = 1 if group is None else count("group", group)
    if batch_size % group:
        raise ValueError(
            "`group` must divide `batch_size`: a step averages whole groups. Got "
            f"group={group} and batch_size={batch_size}."
        )
    if examples < _LEAST * group:
        raise ValueError(
            f"`batch` must hold at least {_LEAST} groups of examples, here "
            f"{_LEAST * group} examples for group={group}. Got {examples}; take more, "
            "or a smaller group."
        )
    return group


def _noise(noise_multiplier: Any, group: Any) -> Float[Array, ""] | None:
    """The noise multiplier, or `None` where it is known to be 0."""
    noise = check(
        as_float("noise_multiplier", noise_multiplier),
        lambda z: ~((z >= 0) & (z < np.inf)),
        "`noise_multiplier` must be non-negative and finite.",
    )
    if noise.ndim:
        raise ValueError(
            f"`noise_multiplier` must be one number. Got shape {noise.shape}."
        )
    if not is_traced(noise) and not np.any(np.asarray(noise)):
        return None
    if group not in (None, 1):
        raise ValueError(
            "`noise_multiplier` must be 0 where groups are clipped: the noise is that "
            f"of DP-SGD, which clips each example. Got group={group}; leave it out."
        )
    return noise


def _check_judge(loss: Any, params: Any, batch: Any, target: Any) -> None:
    """Refuses a loss that returns no number, and too few examples to judge by."""
    if target is not None:
        _count_examples("target", target)
    example = jax.tree.map(lambda x: x[0], batch)
    returns_a_number("loss(params, example)", loss, params, example)


def _grid(thresholds: Any) -> Float[Array, " t"]:
    """Those that a user names, in order."""
    thresholds = positive("thresholds", thresholds)
    if thresholds.ndim != 1 or not thresholds.size:
        raise ValueError(
            "`thresholds` must be a vector of at least one number. "
            f"Got shape {thresholds.shape}."
        )
    return jnp.sort(thresholds)


# Operation by operation the passes would take seconds.
@eqx.filter_jit
def _diagnose(
    loss, params, batch, target, thresholds, step: Step, microbatch: int, both: bool
) -> Diagnosis:
    def measured(thresholds, step):
        of = partial(gradients, loss, params, microbatch=microbatch)
        judge = None if target is None else of(target, 1)
        return measure(of(batch, step.group), judge, thresholds, step)

    found, shares = measured(thresholds, step)
    if not both:
        return found
    other, its_shares = measured(None, step._replace(group=step.batch_size))
    best, its_best = found._best, other._best
    error = difference(
        [share[:, best] for share in shares],
        [share[:, its_best] for share in its_shares],
        step.batch_size,
    )
    ratio = jnp.log(found.ccc.value[best] / other.ccc.value[its_best])
    return dataclasses.replace(found, batch=other, advantage=Estimate(ratio, error))


def _count_examples(name: str, batch: PyTree[Array]) -> int:
    return leading_length(f"`{name}`", batch, "examples", least=_LEAST)
