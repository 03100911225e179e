"""The criteria of clipping and their errors, from inner products of gradients."""

from typing import NamedTuple

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


class _Sizes(NamedTuple):
    """How many terms the sums have.

    - `examples`: of the batch.
    - `partners`: how many gradients each clipped one is multiplied with in `descent`.
    - `batch`: how many clipped gradients a step averages.
    """

    examples: int
    partners: int
    batch: int


def jackknife(products: Products, batch_size: int) -> tuple[Estimate, ...]:
    """Signal, noise scale, mu, nu, CSC and CCC with their errors, from leaving out each
    example."""
    if products.toward is None or products.target is None:
        values, variances = _on_one_batch(products, batch_size)
    else:
        values, variances = _on_two_batches(
            products, products.toward, products.target, batch_size
        )
    return tuple(map(Estimate, values, map(jnp.sqrt, variances)))


def _on_one_batch(products: Products, batch_size: int) -> tuple[tuple, list[Array]]:
    r"""The criteria and their variances where the batch is judged by itself.

    A product of two means is estimated from pairs of different examples,

    $$\mathrm{descent}_t = \sum_{k \ne i} f_{tk} \langle g_k, g_i \rangle, \qquad
    \mathrm{motion}_t = \sum_{k \ne i} f_{tk} f_{ti} \langle g_k, g_i \rangle.$$

    An example that is left out leaves the pairs in which it is clipped, and those in
    which it is the other: it takes
    $\sum_{i \ne k} (f_{tk} + f_{ti}) \langle g_k, g_i \rangle$ from `descent`.
    """
    terms = _terms(products)
    norms, factors, own = products.norms, products.factors, products.own
    # The last factors are 1, so that own[-1] is with the sum of all gradients.
    clipped = factors * (own[-1:] - norms[None] ** 2)
    as_the_other = own - factors * norms[None] ** 2
    examples = len(norms)
    sums = _summed(terms._replace(descent=clipped))
    shares = _Sums(clipped + as_the_other, 2 * terms.motion, terms.second)
    sizes = _Sizes(examples, examples - 1, batch_size)
    without_one = _Sizes(examples - 1, examples - 2, batch_size)
    return _criteria(sums, sizes), _variances(sums, shares, without_one)


def _on_two_batches(
    products: Products,
    toward: Float[Array, " b"],
    target: Float[Array, "t a"],
    batch_size: int,
) -> tuple[tuple, list[Array]]:
    r"""The criteria and their variances where the model is judged on other examples,

    $$\mathrm{descent}_t = \sum_{k, j} f_{tk} \langle g_k, h_j \rangle,$$

    of which both batches are samples, so that the variances add.
    """
    terms = _terms(products)._replace(descent=products.factors * toward[None])
    sums = _summed(terms)
    examples, partners = len(products.norms), target.shape[1]
    values = _criteria(sums, _Sizes(examples, partners, batch_size))
    shares = terms._replace(motion=2 * terms.motion)
    trained = _variances(sums, shares, _Sizes(examples - 1, partners, batch_size))
    # An example that the model is judged by moves nothing but the descent.
    still = jnp.zeros_like(target)
    judged = _variances(
        sums,
        _Sums(target, still, still),
        _Sizes(examples, partners - 1, batch_size),
    )
    return values, [a + b for a, b in zip(trained, judged, strict=True)]


def _terms(products: Products) -> _Sums:
    """What each clipped gradient has with the others, and with itself, shape `(t, b)`;
    the descent is left open."""
    norms, factors, own = products.norms, products.factors, products.own
    with_itself = factors * norms[None] ** 2
    # Only pairs of different examples estimate a product of two means.
    motion = factors * (own - with_itself)
    return _Sums(jnp.zeros_like(motion), motion, factors * with_itself)


def _summed(terms: _Sums) -> _Sums:
    return _Sums(*(jnp.sum(each, axis=1) for each in terms))


def _criteria(sums: _Sums, sizes: _Sizes) -> tuple:
    """Signal, noise scale, mu, nu, CSC and CCC from the sums; the last threshold is no
    clip."""
    examples, partners, batch = sizes
    signal = sums.descent[-1] / (examples * partners)
    # Of this batch's own mean gradient, whatever the model is judged by.
    mean_square = sums.motion[-1] / (examples * (examples - 1))
    noise_scale = sums.second[-1] / examples / mean_square - 1
    # The second moment of the mean of `batch` clipped gradients, times `batch`.
    moment = sums.second / examples
    moment += (batch - 1) * sums.motion / (examples * (examples - 1))
    mu, nu = sums.descent[:-1] / sums.descent[-1], moment[:-1] / moment[-1]
    return signal, noise_scale, mu, nu, *criteria(mu, nu)


def _variances(sums: _Sums, shares: _Sums, sizes: _Sizes) -> list[Float[Array, "..."]]:
    r"""The jackknife's variance of each criterion, $\tfrac{b-1}{b} \sum_k (\theta_k -
    \bar\theta)^2$ with $\theta_k$ the criterion without example $k$.

    **Arguments:**

    - `shares`: shape `(t, b)` each, what an example takes from the sums when it goes.
    - `sizes`: how many terms are left without it.
    """

    def without(share: _Sums) -> tuple:
        return _criteria(jax.tree.map(jnp.subtract, sums, share), sizes)

    left = jax.vmap(without)(jax.tree.map(jnp.transpose, shares))
    return [(len(each) - 1) * jnp.var(each, axis=0) for each in left]
