"""The criteria of clipping and their errors, from inner products of gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..clip import criteria
from ._diagnosis import Estimate


class Products(NamedTuple):
    """The inner products that the criteria are made of. The last threshold is no clip.

    With the gradients $g_k$ of units (examples, or groups of them) of norm $n_k$, which
    clipping multiplies by $f_{tk}$:

    - `norms`: shape `(b,)`, $n_k$.
    - `factors`: shape `(t, b)`, $f_{tk}$.
    - `own`: shape `(t, b)`, of $g_k$ with the sum of all $f_{ti} g_i$.
    - `noise`: shape `(t,)`, the expected square of the noise that is added to each
        clipped gradient.
    - `toward`: shape `(b,)`, of $g_k$ with the sum of the gradients $h_j$ of the loss
        that is to be lowered, where that is on examples of its own.
    - `target`: shape `(t, a)`, of $h_j$ with the sum of all $f_{ti} g_i$.
    """

    norms: Float[Array, " b"]
    factors: Float[Array, "t b"]
    own: Float[Array, "t b"]
    noise: Float[Array, " t"]
    toward: Float[Array, " b"] | None = None
    target: Float[Array, "t a"] | None = None


class _Sums(NamedTuple):
    """What the criteria are functions of: sums over units or pairs of them.

    - `descent`: clipped gradients times those of the loss to be lowered.
    - `motion`: clipped gradients times each other.
    - `second`: clipped gradients times themselves, with the noise of each.
    """

    descent: Float[Array, "*n t"]
    motion: Float[Array, "*n t"]
    second: Float[Array, "*n t"]


class _Sizes(NamedTuple):
    """How many terms the sums have.

    - `units`: clipped gradients in all.
    - `partners`: how many gradients each clipped one is multiplied with in `descent`.
    - `average`: how many clipped gradients a step averages.
    """

    units: int
    partners: int
    average: int


class Jackknifed(NamedTuple):
    """What comes of leaving out one gradient in turn.

    - `estimates`: signal, noise scale, mu, nu, CSC and CCC, with their errors.
    - `shares`: what each gradient adds to the logarithm of CCC, to first order, shape
        `(b, t)`; and, where the loss is on examples of its own, what each of those
        adds, shape `(a, t)`. Their squares add up to the variance.
    """

    estimates: tuple[Estimate, ...]
    shares: list[Float[Array, "_ t"]]


def jackknife(products: Products, average: int) -> Jackknifed:
    """The criteria of steps that average so many clipped gradients, with their
    errors."""
    if products.toward is None or products.target is None:
        values, parts = _on_one_batch(products, average)
    else:
        values, parts = _on_two_batches(
            products, products.toward, products.target, average
        )
    # Two batches are independent samples, so that the variances add.
    variances = [sum(map(_variance, each)) for each in zip(*parts, strict=True)]
    estimates = tuple(map(Estimate, values, map(jnp.sqrt, variances)))
    return Jackknifed(estimates, [_shares(part[-1], values[-1]) for part in parts])


def difference(
    ours: list[Float[Array, "_"]], theirs: list[Float[Array, "_"]], group: int
) -> Float[Array, ""]:
    r"""The standard error of the difference of two numbers from the same examples.

    With $s_k$ what example $k$ adds to the one and $s'_J$ what a group $J$ of examples
    adds to the other, the variance is $\sum_J (\sum_{k \in J} s_k - s'_J)^2$: the two
    errors are not independent, and what they have in common cancels.

    **Arguments:**

    - `ours`, `theirs`: shares of `Jackknifed`, at one threshold each.
    - `group`: how many examples of `ours` make one of `theirs`. Those that fill no
        group add to the error of ours alone.
    """
    (first, *judged), (second, *judged_too) = ours, theirs
    grouped, alone = jnp.split(first, [len(second) * group])
    apart = grouped.reshape(-1, group).sum(axis=1) - second
    rest = [one - other for one, other in zip(judged, judged_too, strict=True)]
    return jnp.sqrt(sum(jnp.sum(each**2) for each in (apart, alone, *rest)))


def _on_one_batch(products: Products, average: int) -> tuple[tuple, list[tuple]]:
    r"""The criteria, and those without each example, where the batch is judged by
    itself.

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
    units = len(norms)
    sums = _summed(terms._replace(descent=clipped))
    shares = _Sums(clipped + as_the_other, 2 * terms.motion, terms.second)
    sizes = _Sizes(units, units - 1, average)
    without_one = _Sizes(units - 1, units - 2, average)
    return _criteria(sums, sizes), [_without_each(sums, shares, without_one)]


def _on_two_batches(
    products: Products,
    toward: Float[Array, " b"],
    target: Float[Array, "t a"],
    average: int,
) -> tuple[tuple, list[tuple]]:
    r"""The criteria, and those without each example of either batch, where the model is
    judged on other examples,

    $$\mathrm{descent}_t = \sum_{k, j} f_{tk} \langle g_k, h_j \rangle.$$
    """
    terms = _terms(products)._replace(descent=products.factors * toward[None])
    sums = _summed(terms)
    units, partners = len(products.norms), target.shape[1]
    values = _criteria(sums, _Sizes(units, partners, average))
    shares = terms._replace(motion=2 * terms.motion)
    trained = _without_each(sums, shares, _Sizes(units - 1, partners, average))
    # An example that the model is judged by moves nothing but the descent.
    still = jnp.zeros_like(target)
    judged = _without_each(
        sums,
        _Sums(target, still, still),
        _Sizes(units, partners - 1, average),
    )
    return values, [trained, judged]


def _terms(products: Products) -> _Sums:
    """What each clipped gradient has with the others, and with itself, shape `(t, b)`;
    the descent is left open."""
    norms, factors, own = products.norms, products.factors, products.own
    with_itself = factors * norms[None] ** 2
    # Only pairs of different examples estimate a product of two means.
    motion = factors * (own - with_itself)
    second = factors * with_itself + products.noise[:, None]
    return _Sums(jnp.zeros_like(motion), motion, second)


def _summed(terms: _Sums) -> _Sums:
    return _Sums(*(jnp.sum(each, axis=1) for each in terms))


def _criteria(sums: _Sums, sizes: _Sizes) -> tuple:
    """Signal, noise scale, mu, nu, CSC and CCC from the sums; the last threshold is no
    clip."""
    units, partners, average = sizes
    signal = sums.descent[-1] / (units * partners)
    # Of this batch's own mean gradient, whatever the model is judged by.
    mean_square = sums.motion[-1] / (units * (units - 1))
    noise_scale = sums.second[-1] / units / mean_square - 1
    # The second moment of the mean of so many clipped gradients, times their number.
    moment = sums.second / units
    moment += (average - 1) * sums.motion / (units * (units - 1))
    mu, nu = sums.descent[:-1] / sums.descent[-1], moment[:-1] / moment[-1]
    return signal, noise_scale, mu, nu, *criteria(mu, nu)


def _without_each(sums: _Sums, shares: _Sums, sizes: _Sizes) -> tuple:
    """The criteria without each example in turn, with a leading axis of examples.

    **Arguments:**

    - `shares`: shape `(t, b)` each, what an example takes from the sums when it goes.
    - `sizes`: how many terms are left without it.
    """

    def without(share: _Sums) -> tuple:
        return _criteria(jax.tree.map(jnp.subtract, sums, share), sizes)

    return jax.vmap(without)(jax.tree.map(jnp.transpose, shares))


def _variance(left: Float[Array, "b *n"]) -> Float[Array, "*n"]:
    r"""The jackknife's variance, $\tfrac{b-1}{b} \sum_k (\theta_k - \bar\theta)^2$ with
    $\theta_k$ the number without example $k$."""
    return (len(left) - 1) * jnp.var(left, axis=0)


def _shares(left: Float[Array, "b t"], value: Float[Array, " t"]) -> Array:
    """What each example adds to the logarithm of a number, to first order."""
    taken = (jnp.mean(left, axis=0)[None] - left) / value[None]
    return taken * ((len(left) - 1) / len(left)) ** 0.5
