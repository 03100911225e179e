"""A network whose width can go to infinity."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import count
from .._types import Key


class WideNetwork(eqx.Module):
    r"""A fully connected network without biases, in the scaling of the tangent kernel.

    $$h_0 = x, \qquad h_l = \phi(W_l h_{l-1} / \sqrt{m_{l-1}}), \qquad
    F(x) = W_D h_{D-1} / \sqrt{m_{D-1}},$$

    with independent standard normal entries in every $W_l$ at the start. In this
    scaling gradient descent moves each weight less the wider the network is, and the
    tangent kernel tends to a constant (Jacot, Gabriel and Hongler 2018,
    arXiv:1806.07572).

    All its leaves are arrays, so that it is itself the parameters of a
    [`jaxclip.FiniteSum`][].

    **Arguments:**

    - `sizes`: the widths $m_0, \ldots, m_D$, from the inputs to the outputs.
    - `key`: draws the weights.
    - `activation`: $\phi$, elementwise; `jnp.tanh` by default.

    **Raises:**

    A `ValueError` where there are fewer than two widths, or one is not positive.
    """

    weights: tuple[Float[Array, "out in"], ...]
    activation: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        key: Key,
        activation: Callable[[Any], Any] = jnp.tanh,
    ):
        sizes = [count("sizes", size) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(
                "`sizes` must have the width of the inputs and that of the outputs. "
                f"Got {sizes}."
            )
        keys = jr.split(key, len(sizes) - 1)
        shapes = zip(sizes[1:], sizes[:-1], strict=True)
        self.weights = tuple(
            jr.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, "..."]:
        """The output: shape `(m_D,)`, or a number where the last width is 1."""
        for i, weight in enumerate(self.weights):
            hidden = self.activation(x) if i else x
            x = weight @ hidden / weight.shape[1] ** 0.5
        return x[0] if len(x) == 1 else x
