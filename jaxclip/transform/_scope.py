"""What the norm is taken over."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .._checks import nonnegative
from .._types import Key, Step
from ._norm import safe_norm


class AbstractScope(eqx.Module):
    """The part of an update that one norm is taken over and one factor multiplies."""

    @abc.abstractmethod
    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        """The updates, each part multiplied by the factor of its own norm.

        **Arguments:**

        - `factor`: the multiplier of a part, as a function of the part's norm.
        - `updates`: a pytree of arrays.
        """

    def perturb(self, updates: PyTree[Array], step: Step) -> PyTree[Array]:
        """What is added after scaling; by default nothing is.

        **Arguments:**

        - `updates`: what `scale` returned.
        - `step`: the index of the SGD step.
        """
        del step
        return updates


class PerTree(AbstractScope):
    """One norm over all leaves: clipping by the global norm."""

    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        multiplier = factor(safe_norm(updates))
        return jax.tree.map(lambda leaf: _multiply(leaf, multiplier), updates)


class PerExample(AbstractScope):
    r"""One norm for each example, then the mean over the examples (or their sum).

    The updates carry a leading axis of examples on every leaf; what comes out has lost
    it. With `noise_std` and a hard clip this is the step of differentially private SGD
    (Abadi et al. 2016, arXiv:1607.00133), $\tilde g_k + \sigma \Xi_k$ with the reduced
    gradient $\tilde g_k$ and a standard normal $\Xi_k$; the privacy it buys is not
    worked out here.

    **Arguments:**

    - `reduce`: `jnp.mean` or `jnp.sum`, called with `axis=0`.
    - `noise_std`: $\sigma$, the standard deviation of the noise that is added to each
        coordinate of the reduced gradient, in the gradient's unit. None by default,
        which draws nothing.
    - `key`: determines the noise, together with the index of the step: for
        [`jaxclip.as_transform`][], whose state counts the steps. In
        [`jaxclip.simulate`][] leave it out: the noise comes from the run's own key.

    **Raises:**

    A `ValueError` where the noise is negative, or where there is a key without noise.
    """

    reduce: Callable[..., Any] = eqx.field(static=True, default=jnp.mean)
    noise_std: Float[Array, ""] | None = eqx.field(
        converter=lambda std: None if std is None else nonnegative("noise_std", std),
        default=None,
    )
    key: Key | None = None

    def __check_init__(self):
        if self.noise_std is None and self.key is not None:
            raise ValueError(
                "`key` draws the noise of `noise_std`, and there is none. Give both."
            )

    def scale(
        self,
        factor: Callable[[Float[Array, ""]], Float[Array, ""]],
        updates: PyTree[Array],
    ) -> PyTree[Array]:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(updates)}
        if len(sizes) > 1 or () in sizes:
            raise ValueError(
                "`PerExample` needs the same leading axis of examples on every leaf. "
                f"Got leading axes {sorted(sizes)}."
            )
        scaled = jax.vmap(lambda example: PerTree().scale(factor, example))(updates)
        return jax.tree.map(lambda leaf: self.reduce(leaf, axis=0), scaled)

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


def _multiply(leaf: Array, factor: Float[Array, ""]) -> Array:
    # In the wider of the two precisions, then back: a bfloat16 leaf stays bfloat16.
    with jax.numpy_dtype_promotion("standard"):
        return (leaf * factor).astype(leaf.dtype)


def _add_noise(leaf: Array, std: Float[Array, ""], key: Key) -> Array:
    # Drawn in float32 or better: half precision has no tails to speak of.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        noise = std * jr.normal(key, leaf.shape, dtype)
        return (leaf + noise).astype(leaf.dtype)
