"""Clipping example by example, as in differentially private SGD."""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import leading_length, nonnegative, positive
from .._types import Key, PyTree, Step
from ._examples_spread import axes_of, number_of_all, of_all, own_of, sum_of_all
from ._scope import AbstractScope, PerTree, times
from ._sums import AxisName


class PerExample(AbstractScope):
    r"""One norm for each example, then the mean over the examples (or their sum).

    The updates carry a leading axis of examples on every leaf; what comes out has lost
    it. With `noise_std` and a hard clip this is the step of differentially private SGD
    (Abadi et al. 2016, arXiv:1607.00133), $\tilde g_k + \sigma \Xi_k$ with the reduced
    gradient $\tilde g_k$ and a standard normal $\Xi_k$; the privacy it buys is counted
    by [`jaxclip.privacy.epsilon`][]. [`jaxclip.clipped_grad`][] takes the gradients,
    too, a few examples at a time.

    **Arguments:**

    - `reduce`: what becomes of the clipped gradients of the examples: `"mean"`, or
        `"sum"`. No other: a median, say, is not one factor for each example.
    - `noise_std`: $\sigma$, the standard deviation of the noise that is added to each
        coordinate of the reduced gradient, in the gradient's unit; of a complex number
        the real and the imaginary part are two coordinates. None by default, which
        draws nothing.
    - `key`: determines the noise, together with the index of the step: for
        [`jaxclip.as_transform`][], whose state counts the steps. In
        [`jaxclip.simulate`][] leave it out: the noise comes from the run's own key.
    - `denominator`: what a mean divides by, a positive number, in place of the number
        of the examples there are: the expected one where Poisson sampling draws them,
        since differential privacy does not let their number show. The noise of a mean
        that has the multiplier $z$ is `noise_std` = $z$ times the threshold over it.
    - `within`: what norms are taken over within an example: `PerLeaf()`,
        `PerLeafShare()` ... In `simulate` whole gradients, or `PerCoordinate()`.
    - `axis_name`: inside of `jax.shard_map`, the name of the mesh axis, or a tuple of
        them, over which the examples are spread: the gradient, its noise and adaptive
        thresholds are then those of all examples, and the same on every device. By
        default, and with `()`, each device's examples are a batch of their own.

    **Raises:**

    A `ValueError` where `reduce` is neither of the two, where the noise is negative,
    where there is a key without noise, or a denominator of a sum.
    """

    examples: ClassVar[bool] = True

    reduce: Literal["mean", "sum"] = eqx.field(static=True, default="mean")
    noise_std: Float[Array, ""] | None = eqx.field(
        converter=lambda std: (
            None if std is None else nonnegative("noise_std", std, in_step=True)
        ),
        default=None,
    )
    key: Key | None = None
    within: AbstractScope = PerTree()
    denominator: Float[Array, ""] | None = eqx.field(
        converter=lambda n: None if n is None else positive("denominator", n),
        default=None,
    )
    axis_name: AxisName = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.reduce not in ("mean", "sum"):
            raise ValueError(
                f'`reduce` must be "mean" or "sum". Got {self.reduce!r}; for a median '
                "of gradients, which is no sum with weights, take "
                "`jaxclip.algorithm.geometric_median`."
            )
        if self.noise_std is None and self.key is not None:
            raise ValueError(
                "`key` draws the noise of `noise_std`, and there is none. Give both."
            )
        if self.denominator is not None and self.reduce == "sum":
            raise ValueError(
                "`denominator` is what a mean divides by, and a sum has none. Got "
                f'{self.denominator} with reduce="sum"; take reduce="mean".'
            )
        if self.within.examples:
            raise ValueError(
                "`within` must be a scope of one example, such as `PerLeaf()`. Got "
                f"{self.within!r}."
            )

    @property
    def reads_step(self) -> bool:
        return self.noise_std is not None

    def share(self, examples: Any) -> Any:
        """What each of so many examples counts in the reduced gradient: a number."""
        if self.denominator is not None:
            return 1 / self.denominator
        return 1.0 if self.reduce == "sum" else 1 / examples

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        if not jax.tree.leaves(updates):
            # Of a tree without leaves there are no examples.
            return jax.tree.map(lambda _: jnp.zeros(0), self.within.parts(updates))
        leading_length("The updates of `PerExample`", updates, "examples", least=0)
        return of_all(self.own_norms(updates, params), axes_of(updates, self.axis_name))

    def own_norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        """The norms of the examples of one device, where they are spread over several;
        `norms` has those of all.

        **Arguments:**

        - `updates`, `params`: as for `norms`; at least one leaf.
        """
        return jax.vmap(self.within.norms, (0, None))(updates, params)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        leaves = jax.tree.leaves(updates)
        if not leaves:
            return updates
        # The reduction is linear: a sum, with each example's share in its factor.
        axes = axes_of(updates, self.axis_name)
        examples = max(number_of_all(jnp.shape(leaves[0])[0], axes), 1)
        share = jnp.asarray(self.share(examples))
        shares = jax.tree.map(lambda factor: times(factor, share), factors)
        return sum_of_all(self.within.total(updates, own_of(shares, axes)), axes)

    def parts(self, params: PyTree[Array]) -> PyTree[Any]:
        return self.within.parts(params)

    def perturb(self, updates: PyTree[Array], step: Step) -> PyTree[Array]:
        if self.noise_std is None:
            return updates
        if self.key is None:
            raise ValueError(
                "`PerExample(noise_std=...)` needs a `key` that draws its noise. Give "
                "it one, as in `PerExample(noise_std=0.1, key=jax.random.key(0))`."
            )
        leaves, structure = jax.tree.flatten(updates)
        keys = jr.split(jr.fold_in(self.key, step), len(leaves))
        noisy = [
            _add_noise(leaf, self.noise_std, key)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)


def axis_name_of(scope: AbstractScope) -> AxisName:
    """The axes over which parts of one gradient are spread, where a scope knows."""
    return getattr(scope, "axis_name", None)


def within_example(scope: AbstractScope) -> AbstractScope:
    """What norms are taken over within an example, or within the gradient of a batch
    where the scope is not over examples."""
    return scope.within if isinstance(scope, PerExample) else scope


def _add_noise(leaf: Array, std: Float[Array, ""], key: Key) -> Array:
    # Drawn in float32 or better: half precision has no tails to speak of.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            # A standard complex normal number has variance 1/2 in each of its parts.
            std = std * np.sqrt(2)
        noise = std * jr.normal(key, leaf.shape, dtype)
        return (leaf + noise).astype(leaf.dtype)
