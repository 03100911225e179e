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
    Of any model they are the first two terms of the loss along a step of a curvature
    that is always the same (docs/theory.md, section 1.7, derived here). They do not say
    where a run ends whose clipped gradient has another mean.

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example, a number.
    - `params`: the model, a pytree; its arrays of floats are differentiated.
    - `batch`: examples to train on, in random order: arrays with a leading axis.
    - `target`: other examples to judge the model by, such as clean ones where labels
        are in doubt. With their gradients $h$, $\mu$ is then $\langle E\psi(g), E
        h\rangle / \langle E g, E h\rangle$, and the signal its denominator.
    - `thresholds`: shape `(t,)`, positive, in the unit of the gradient's norm. By
        default 24, from the smallest norms to one that acts on ten gradients.
    - `rule`: the clipping rule as a function of its threshold.
    - `batch_size`: how many examples a step averages: $\nu$ is of such means.
    - `group`: how many consecutive examples are clipped as one, by their mean gradient;
        it divides `batch_size`. By default 1; and beside it `batch_size`, at default
        thresholds, as `Diagnosis.batch`, if there are eight batches.
    - `noise_multiplier`: of DP-SGD, $z$: noise of the deviation $z c$ in each number of
        the sum of gradients clipped at $c$. The criteria compare with a step that has
        neither clip nor noise. Single examples, and rules that keep norms below $c$.
    - `microbatch`: gradients held at once. The memory is `2 t + microbatch` copies of
        the parameters, the work three backward passes and `4 t` products a gradient.

    **Returns:**

    A [`jaxclip.Diagnosis`][]: print it, or plot it.

    **Raises:**

    A `ValueError` where an argument is misused or there are fewer than eight examples
    or groups; an error, too, where a gradient is not finite.
    """
    steps = _steps(batch, batch_size, group, rule, noise_multiplier)
    _check_judge(loss, params, batch, target)
    what = loss, params, batch, target, _grid(thresholds), steps
    return _diagnose(*what, count("microbatch", microbatch))


def _steps(
    batch: Any, batch_size: Any, group: Any, rule: Any, noise_multiplier: Any
) -> tuple[Step, Step | None]:
    """The step that is judged, and the one that is judged beside it."""
    examples = _count_examples("batch", batch)
    size, noise = count("batch_size", batch_size), _noise(noise_multiplier, group)
    step = Step(size, _group(group, size, examples), rule, noise)
    # Where no example is clipped, noise gives an example no privacy.
    both = group is None and size > 1 and noise is None and examples >= _LEAST * size
    return step, step._replace(group=size) if both else None


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


def _grid(thresholds: Any) -> Float[Array, " t"] | None:
    """Those that a user names, in order, if any."""
    if thresholds is None:
        return None
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
    loss, params, batch, target, thresholds, steps: tuple, microbatch: int
) -> Diagnosis:
    def measured(thresholds, step):
        of = partial(gradients, loss, params, microbatch=microbatch)
        judge = None if target is None else of(target, 1)
        return measure(of(batch, step.group), judge, thresholds, step)

    step, beside = steps
    found, shares = measured(thresholds, step)
    if beside is None:
        return found
    other, its_shares = measured(None, beside)
    best, its_best = found._best, other._best
    error = difference(
        [share[:, best] for share in shares],
        [share[:, its_best] for share in its_shares],
        beside.group,
    )
    ratio = jnp.log(found.ccc.value[best] / other.ccc.value[its_best])
    return dataclasses.replace(found, batch=other, advantage=Estimate(ratio, error))


def _count_examples(name: str, batch: PyTree[Array]) -> int:
    return leading_length(f"`{name}`", batch, "examples", least=_LEAST)
