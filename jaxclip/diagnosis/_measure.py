"""From the gradients of a batch to its diagnosis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check
from ..clip import AbstractClip
from ..transform import safe_norm
from ._diagnosis import Diagnosis, Estimate
from ._jackknife import Products, jackknife
from ._passes import Gradients, products

# The default grid: how many thresholds, on how many gradients the largest acts, and how
# far below it the smallest may be.
_GRID, _CLIPPED, _SPAN = 24, 10, 1e-3


class Step(NamedTuple):
    """What a step of the training does.

    - `batch_size`: how many examples it averages.
    - `group`: how many of them are clipped as one.
    - `rule`: the clipping rule as a function of its threshold.
    - `noise_multiplier`: of the noise that is added, over the threshold; `None` for
        none.
    """

    batch_size: int
    group: int
    rule: Callable[[Any], AbstractClip]
    noise_multiplier: Float[Array, ""] | None


def measure(
    units: Gradients,
    target: Gradients | None,
    thresholds: Float[Array, " t"] | None,
    step: Step,
) -> tuple[Diagnosis, list[Float[Array, "_ t"]]]:
    """The diagnosis, and the shares of `Jackknifed`.

    **Arguments:**

    - `units`: the gradients that are clipped.
    - `target`: those of the loss that is to be lowered, where that is on other
        examples.
    """
    norms = _checked(units.each(safe_norm), step.group)
    if thresholds is None:
        thresholds = _default_grid(norms)
    factors = jax.vmap(lambda c: step.rule(c).factor(norms, 0))(thresholds)
    # The last row is that of no clipping.
    factors = jnp.concatenate([factors, jnp.ones_like(norms)[None]])
    unit = jnp.max(norms)
    noise = _noise(units, thresholds.astype(norms.dtype) / unit, step)
    units = units.measured_in(unit)
    sums = units.weighted_sums(factors)
    own = units.each(lambda g: products(g, sums)).T
    found = Products(norms / unit, factors, own, jnp.append(noise, 0))
    if target is not None:
        target = target.measured_in(unit)
        ones = jnp.ones((1, target.number), norms.dtype)
        goal = target.weighted_sums(ones)
        toward = units.each(lambda g: products(g, goal)[0])
        judged = target.each(lambda h: products(h, sums)).T
        found = found._replace(toward=toward, target=judged)
    estimates, shares = jackknife(found, step.batch_size // step.group)
    signal, noise_scale, *criteria = estimates
    # The mean of a group has a covariance that is so many times smaller.
    noise_scale = Estimate(*(step.group * each for each in noise_scale))
    diagnosis = Diagnosis(
        *(thresholds, norms, signal, noise_scale, *criteria),
        batch_size=step.batch_size,
        group=step.group,
        noise_multiplier=step.noise_multiplier,
    )
    return diagnosis, shares


def _checked(norms: Float[Array, " b"], group: int) -> Float[Array, " b"]:
    whose = "an example" if group == 1 else f"a group of {group} examples"
    norms = check(
        norms, lambda n: ~jnp.isfinite(n), f"The gradient of {whose} is not finite."
    )
    every = "example" if group == 1 else "group"
    return check(norms, lambda n: jnp.all(n == 0), f"Every {every}'s gradient is zero.")


def _default_grid(norms: Float[Array, " b"]) -> Float[Array, " t"]:
    positive_norms = jnp.where(norms > 0, norms, jnp.nan)
    # The error at a threshold that acts on a few examples is far off (by simulation:
    # two of it hold the truth half of the time where it acts on one or two).
    high = jnp.nanquantile(positive_norms, max(0.5, 1 - _CLIPPED / len(norms)))
    # Examples that are solved have a norm of almost nothing.
    low = jnp.maximum(jnp.nanquantile(positive_norms, 0.02), _SPAN * high)
    return jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), _GRID))


def _noise(
    units: Gradients, thresholds: Float[Array, " t"], step: Step
) -> Float[Array, " t"]:
    r"""The expected square of the noise of each clipped gradient.

    The sum of $B$ of them has the noise $z c$ in each of $P$ numbers. That is as if
    each had an independent part of it, of the square $z^2 c^2 P / B$.
    """
    if step.noise_multiplier is None:
        return jnp.zeros_like(thresholds)
    numbers = sum(leaf.size for leaf in units.shapes())
    deviation = step.noise_multiplier.astype(thresholds.dtype) * thresholds
    return deviation**2 * (numbers / step.batch_size)
