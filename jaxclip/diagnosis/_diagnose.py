"""Whether clipping per example helps a model now: the criteria from its gradients.

All that is needed of a batch is the norm of each example's gradient and its inner
product with the sums of the clipped ones. So the gradients are made three times, in
microbatches, and never held for the whole batch.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import check, count, leading_length, positive, returns_a_number
from .._numerics import exact_dot
from .._types import PyTree
from ..clip import AbstractClip, HardClip
from ..transform import safe_norm
from ._diagnosis import Diagnosis
from ._jackknife import Products, jackknife

# The default grid: how many thresholds, on how many examples the largest acts, and how
# far below it the smallest may be.
_GRID, _CLIPPED, _SPAN = 24, 10, 1e-3
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
    microbatch: int = 64,
) -> Diagnosis:
    r"""Whether clipping each example's gradient helps a model now, and at what norm.

    With the gradient $g$ of one example and its clipped form $\psi(g)$,

    $$\mu = \frac{\langle E\psi(g), E g\rangle}{\|E g\|^2}, \qquad
    \nu = \frac{E\|\psi(g)\|^2}{E\|g\|^2}, \qquad
    \mathrm{CSC} = \mu / \nu, \qquad \mathrm{CCC} = \mu^2 / \nu:$$

    the criteria of arXiv:2406.11733, in many dimensions those of [`jaxclip.moments`][].
    For other models they are the first two terms of the loss along a step (derived
    here), if its curvature is the same along clipped and unclipped gradients. They say
    nothing about where a run ends whose clipped gradient has another mean.

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example, a number.
    - `params`: the model, a pytree; its arrays of floats are differentiated.
    - `batch`: examples to train on, a pytree of arrays with a leading axis.
    - `target`: other examples to judge the model by, such as clean ones where labels
        are in doubt. With their gradients $h$, $\mu$ is then $\langle E\psi(g), E
        h\rangle / \langle E g, E h\rangle$, and the signal its denominator.
    - `thresholds`: shape `(t,)`, positive, in the unit of the gradient's norm. By
        default 24, evenly spaced in the logarithm from the smallest norms to one that
        acts on ten examples: with fewer, its error would be no measure.
    - `rule`: the clipping rule as a function of its threshold.
    - `batch_size`: how many clipped gradients a step of the training averages: $\nu$
        is then that of the mean of so many.
    - `microbatch`: gradients held at once. The memory is `2 t + microbatch` copies of
        the parameters, the work three backward passes over the batch and `4 t`
        operations for each example and parameter.

    **Returns:**

    A [`jaxclip.Diagnosis`][]: print it, or plot it.

    **Raises:**

    A `ValueError` where leading axes differ or hold fewer than eight examples, where
    the loss is no number, or a threshold is not positive; an error, too, where an
    example's gradient is not finite.
    """
    examples = _count_examples("batch", batch)
    sizes = count("batch_size", batch_size), count("microbatch", microbatch)
    thresholds = None if thresholds is None else _grid(thresholds)
    _check_judge(loss, params, batch, target)
    what = loss, params, batch, target, thresholds, rule
    return _diagnose(*what, sizes[0], min(sizes[1], examples))


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
    loss, params, batch, target, thresholds, rule, batch_size: int, microbatch: int
) -> Diagnosis:
    moved, fixed = eqx.partition(params, eqx.is_inexact_array)

    def gradient(example):
        tree = jax.grad(lambda p: loss(eqx.combine(p, fixed), example))(moved)
        return _real_leaves(tree)

    def over(examples, function):
        return jax.lax.map(
            lambda example: function(gradient(example)), examples, batch_size=microbatch
        )

    norms = over(batch, safe_norm)
    norms = check(
        norms, lambda n: ~jnp.isfinite(n), "The gradient of an example is not finite."
    )
    norms = check(norms, lambda n: jnp.all(n == 0), "Every example's gradient is zero.")
    if thresholds is None:
        thresholds = _default_grid(norms)
    factors = jax.vmap(lambda c: rule(c).factor(norms, 0))(thresholds)
    # The last row is that of no clipping.
    factors = jnp.concatenate([factors, jnp.ones_like(norms)[None]])
    sums = _weighted_sums(gradient, batch, factors, microbatch)
    own = over(batch, lambda g: _products(g, sums)).T
    products = Products(norms, factors, own)
    if target is not None:
        ones = jnp.ones((1, _count_examples("target", target)), norms.dtype)
        goal = _weighted_sums(gradient, target, ones, microbatch)
        toward = over(batch, lambda g: _products(g, goal)[0])
        products = products._replace(
            toward=toward, target=over(target, lambda h: _products(h, sums)).T
        )
    return Diagnosis(thresholds, norms, *jackknife(products, batch_size))


def _default_grid(norms: Float[Array, " b"]) -> Float[Array, " t"]:
    positive_norms = jnp.where(norms > 0, norms, jnp.nan)
    # The error at a threshold that acts on a few examples is far off (by simulation:
    # two of it hold the truth half of the time where it acts on one or two).
    high = jnp.nanquantile(positive_norms, max(0.5, 1 - _CLIPPED / len(norms)))
    # Examples that are solved have a norm of almost nothing.
    low = jnp.maximum(jnp.nanquantile(positive_norms, 0.02), _SPAN * high)
    return jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), _GRID))


def _weighted_sums(gradient, batch, weights: Float[Array, "t b"], microbatch: int):
    """The sum of the gradients for each row of weights: leaves of shape `(t, ...)`."""
    rows, examples = weights.shape
    chunks = -(-examples // microbatch)
    # The last chunk is filled up with examples of weight zero.
    padding = chunks * microbatch - examples
    index = jnp.arange(chunks * microbatch) % examples
    weights = jnp.pad(weights, ((0, 0), (0, padding)))
    weights = weights.reshape(rows, chunks, microbatch)

    def add(sums, chunk):
        index, weights = chunk
        gradients = jax.vmap(gradient)(jax.tree.map(lambda x: x[index], batch))
        return [
            s + exact_dot(weights, g) for s, g in zip(sums, gradients, strict=True)
        ], None

    one = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batch))
    zeros = [jnp.zeros((rows, *leaf.shape), leaf.dtype) for leaf in one]
    chunks = index.reshape(chunks, microbatch), jnp.moveaxis(weights, 1, 0)
    return jax.lax.scan(add, zeros, chunks)[0]


def _products(gradient: list[Array], sums: list[Array]) -> Float[Array, " t"]:
    """The inner product of one gradient with each sum."""
    products = [
        exact_dot(s.reshape(len(s), -1), g.reshape(-1))
        for s, g in zip(sums, gradient, strict=True)
    ]
    return jnp.sum(jnp.stack(products), axis=0)


def _real_leaves(tree: PyTree[Array]) -> list[Float[Array, "..."]]:
    """The real numbers of a gradient, all in its widest precision or in float32."""
    leaves = [
        jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    # Leaves of several precisions are mixed on purpose.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *leaves)
    return [leaf.astype(dtype) for leaf in leaves]


def _count_examples(name: str, batch: PyTree[Array]) -> int:
    return leading_length(f"`{name}`", batch, "examples", least=_LEAST)
