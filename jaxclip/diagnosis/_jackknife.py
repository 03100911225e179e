"""The criteria of clipping and their errors, from inner products of gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..clip import criteria
from ._diagnosis import Estimate


class Products(NamedTuple):
    """The inner products that the criteria are made of. The last threshold is no clip.

    With gradients $g_k$ of norm $n_k$, which clipping multiplies by $f_{tk}$:

    - `norms`: shape `(b,)`, $n_k$.
    - `factors`: shape `(t, b)`, $f_{tk}$.
    - `own`: shape `(t, b)`, of $g_k$ with the sum of all $f_{ti} g_i$.
    - `toward`: shape `(b,)`, of $g_k$ with the sum of the gradients $h_j$ of the loss
        that is to be lowered, where that is on examples of its own.
    - `target`: shape `(t, a)`, of $h_j$ with the sum of all $f_{ti} g_i$.
    """

    norms: Float[Array, " b"]
    factors: Float[Array, "t b"]
    own: Float[Array, "t b"]
    toward: Float[Array, " b"] | None = None
    target: Float[Array, "t a"] | None = None


class _Sums(NamedTuple):
    """What the criteria are functions of: sums over examples or pairs of them.

    - `descent`: clipped gradients times those of the loss to be lowered.
    - `motion`: clipped gradients times each other.
    - `second`: clipped gradients times themselves.
    """

    descent: Float[Array, "*n t"]
    motion: Float[Array, "*n t"]
    second: Float[Array, "*n t"]


def jackknife(products: Products, batch_size: int) -> tuple[Estimate, ...]:
    """Signal, mu, nu, CSC and CCC with their errors, from leaving out each example."""
    norms, factors, own, toward, target = products
    size, squares = len(norms), norms[None] ** 2
    alone = factors * squares
    # Only pairs of different examples estimate a product of two means.
    motion, second = factors * (own - alone), factors * alone
    if toward is None or target is None:
        descent, partners = factors * (own[-1:] - squares), size - 1
        # An example leaves the pairs where it is clipped, and where it is the other.
        share, others_left = descent + own - alone, partners - 1
    else:
        descent, partners = factors * toward[None], target.shape[1]
        share, others_left = descent, partners
    sums = _Sums(*(jnp.sum(each, axis=1) for each in (descent, motion, second)))
    values = _criteria(sums, size, partners, batch_size)
    shares = _Sums(share.T, 2 * motion.T, second.T)
    variances = _variances(sums, shares, size - 1, others_left, batch_size)
    if target is not None:
        still = jnp.zeros_like(target.T)
        shares = _Sums(target.T, still, still)
        more = _variances(sums, shares, size, partners - 1, batch_size)
        variances = [a + b for a, b in zip(variances, more, strict=True)]
    return tuple(map(Estimate, values, map(jnp.sqrt, variances)))


def _criteria(sums: _Sums, size: int, partners: int, batch_size: int) -> tuple:
    """Of `size` examples, each with so many `partners` in `descent`."""
    signal = sums.descent[-1] / (size * partners)
    moment = sums.second / size
    moment += (batch_size - 1) * sums.motion / (size * (size - 1))
    mu, nu = sums.descent[:-1] / sums.descent[-1], moment[:-1] / moment[-1]
    return signal, mu, nu, *criteria(mu, nu)


def _variances(sums: _Sums, shares: _Sums, *sizes: Any) -> list[Float[Array, "..."]]:
    """The jackknife's; each row of `shares` is what one example adds to the sums."""

    def without(share):
        return _criteria(jax.tree.map(jnp.subtract, sums, share), *sizes)

    left = jax.vmap(without)(shares)
    return [(len(each) - 1) * jnp.var(each, axis=0) for each in left]
