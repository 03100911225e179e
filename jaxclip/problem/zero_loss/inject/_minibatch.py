"""The choice of a batch as a noise."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from ...._checks import count
from ...._types import Example, Key, Params, RealScalar
from ....clip import AbstractClip
from ._base import AbstractInjection
from ._fit import Fit


class Minibatch(AbstractInjection):
    r"""A few of the examples at every step, and no other noise.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i (1 + \eta_i) |f(w, x_i) - y_i|^2,$$

    where $1 + \eta_i$ is $n/b$ times how often a batch of $b$ draws example $i$. At a
    solution every example's gradient is zero, and so is this noise: each point of the
    zero-loss set is fixed, on both scales of time and with any clip.

    **Arguments:**

    - `batch_size`: $b$, how many examples a step sees, drawn with replacement.

    **Raises:**

    A `ValueError` where `batch_size` is no positive Python integer.
    """

    batch_size: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        count("batch_size", self.batch_size)

    def shape(self, fit: Fit) -> tuple[int, ...]:
        return (fit.size,)

    def variance(self, fit: Fit) -> Float[Array, ""]:
        return jnp.asarray((fit.size - 1) / self.batch_size)

    def draw(self, fit: Fit, key: Key) -> Float[Array, "..."]:
        rows = self.example(fit, key)
        return jnp.zeros(fit.size).at[rows].add(fit.size / self.batch_size) - 1

    def loss(self, fit: Fit, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        squares = fit.residuals(params).reshape(fit.size, -1) ** 2
        return jnp.sum((1 + noise) * jnp.sum(squares, 1)) / (2 * fit.size)

    def check(self, fit: Fit) -> None:
        del fit

    def example(self, fit: Fit, key: Key) -> Example:
        return jr.randint(key, (self.batch_size,), 0, fit.size)

    def gradient(self, fit: Fit, params: Params, example: Example) -> Params:
        some = fit.take(example)
        return some.gradient(some.residuals, params)

    def check_clip(self, fit: Fit, clip: AbstractClip) -> None:
        # What is zero is not clipped.
        del fit, clip
