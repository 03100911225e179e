"""What the limit for each coordinate sees of a rule and a noise."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_float, check, is_traced, nonnegative
from .._schedule import Constant
from .._types import RealScalar, RealScalarLike, Schedule, Step
from ..clip import (
    AbstractClip,
    Adaptive,
    HardClip,
    Moments,
    RootSoftClip,
    Scales,
    SkipClip,
    SmoothedFactors,
    SoftClip,
    enough_nodes,
    need_rule,
    unchecked_coordinate_moments,
)
from ..noise import AbstractNoise

# Of the largest to the smallest eigenvalue, where they are traced.
_LARGEST_RATIO = 1e6


def coordinate_moments(
    clip: AbstractClip | Adaptive,
    noise: AbstractNoise,
    risk: RealScalarLike,
    eigenvalues: Any,
    step: Step = 0,
) -> Moments:
    r"""The reduction factors of a rule that acts on each coordinate of a gradient.

    Coordinate $i$ of a sample's gradient is $w a_i$ with the residual $w$ and a feature
    $a_i \sim N(0, \lambda_i)$ independent of it. With $D_i = E[a_i^2 \psi'(w a_i)]$ and
    $S_i = E \psi(w a_i)^2$,

    $$\mu_i = D_i / \lambda_i, \qquad \text{second}_i = S_i / \lambda_i,$$

    which without a clip are 1 and $E w^2$, as of [`jaxclip.moments`][]. Their `ccc` is
    what coordinate $i$ alone would gain over SGD, each at its best rate; it is never
    above the largest `ccc` of a clip of whole gradients. Derived here.

    **Arguments:**

    - `clip`, `noise`, `risk`, `step`: as of [`jaxclip.moments`][].
    - `eigenvalues`: shape `(m,)`, $\lambda_i$, positive, in the features' squared unit:
        the diagonal of the covariance in the optimiser's coordinates.

    **Returns:**

    A [`jaxclip.clip.Moments`][], whose numbers have shape `(m,)`.

    **Raises:**

    A `ValueError` where `clip` is no rule, or a number is out of its range.

    Example:

    ```python
    lam = jnp.array([1.0, 0.1])
    m = jaxclip.limit.coordinate_moments(
        jaxclip.Normalize(), jaxclip.Laplace(1.0), 0.1, lam
    )
    drift, second = lam * m.mu, lam * m.second
    ```
    """
    clip = need_rule(clip, "coordinate_moments")
    risk = nonnegative("risk", risk)
    values = as_float("eigenvalues", eigenvalues)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            "`eigenvalues` must be a vector with at least one number. Got shape "
            f"{values.shape}."
        )
    values = check(
        values,
        lambda x: ~((x > 0) & (x < np.inf)),
        "`eigenvalues` must be positive and finite.",
    )
    unit, threshold = scale_free(clip)
    nodes, step = nodes_of(values), jnp.asarray(step)
    return _jitted(unit, threshold, noise, risk, values, step, nodes)


# Operation by operation the quadrature takes seconds.
@eqx.filter_jit
def _jitted(
    clip: AbstractClip,
    threshold: Schedule,
    noise: AbstractNoise,
    risk: RealScalar,
    eigenvalues: Float[Array, " m"],
    step: Step,
    nodes: int,
) -> Moments:
    centre = centre_of(clip, noise, risk, eigenvalues)
    table = SmoothedFactors.of(clip, step, centre, nodes)
    scales = Scales.of(eigenvalues, nodes)
    return unchecked_coordinate_moments(table, noise, risk, scales, threshold(step))


def scale_free(clip: AbstractClip) -> tuple[AbstractClip, Schedule]:
    """A rule in units of its threshold, and the threshold, where it has one and is
    nothing but scaled by it: its table then serves all thresholds and steps. Any other
    as it is, and 1."""
    if isinstance(clip, HardClip | SoftClip | RootSoftClip | SkipClip):
        return type(clip)(1.0), clip.threshold
    return clip, Constant(jnp.ones(()))


def centre_of(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalarLike,
    eigenvalues: Float[Array, " m"],
) -> RealScalar:
    """Where the table of a rule is: at its threshold where that is its unit, and else
    in the middle of all gradients."""
    if isinstance(clip, HardClip | SoftClip | RootSoftClip | SkipClip):
        return jnp.ones_like(eigenvalues[0])
    size = noise.residual(2 * jnp.asarray(risk)).size
    return size * jnp.exp(jnp.mean(jnp.log(eigenvalues)) / 2)


def nodes_of(eigenvalues: Float[Array, " m"]) -> int:
    """How many nodes the moments are interpolated from."""
    if is_traced(eigenvalues):
        return enough_nodes(_LARGEST_RATIO)
    known = np.asarray(eigenvalues)
    return enough_nodes(float(known.max() / known.min()))
