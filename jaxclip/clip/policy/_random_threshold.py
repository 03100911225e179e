"""The policy that remembers nothing: a threshold that is there by chance."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ..._checks import count, fraction
from ..._schedule import as_schedule
from ..._types import Key, Schedule, Step
from ._base import AbstractMaskedPolicy


class RandomThreshold(AbstractMaskedPolicy):
    r"""A threshold that is there by chance: random clipping.

    $$c_t = \begin{cases} c & \text{with probability } \beta^{(c / n)^k} \text{ where }
    n > c \\ \infty & \text{otherwise.} \end{cases}$$

    The larger the norm $n$, the likelier it is clipped. The package
    TorchClippedOptimizers has it with $k = 1$ (linear) and with $k = 2$ (quadratic).

    **Arguments:**

    - `threshold`: $c \ge 0$, in the unit of the gradient's norm: a number, an array or
        a function of the step.
    - `beta`: $\beta$, the probability at $n = c$, from 0 to 1.
    - `power`: $k$, a positive integer.
    - `key`: determines the draws, together with the step, the part of the gradient and
        the example.
    """

    bound: Schedule
    beta: Float[Array, ""]
    key: Key
    power: int = eqx.field(static=True)

    def __init__(self, threshold: Any, *, key: Key, beta: Any = 0.5, power: int = 1):
        self.bound = as_schedule(threshold, "threshold")
        self.beta = fraction("beta", beta)
        self.key, self.power = key, count("power", power)

    def init(self, dtype: Any, index: Int[Array, ""]) -> Int[Array, ""]:
        del dtype
        return index

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: Int[Array, ""],
        step: Step,
    ) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        del counted
        c = jnp.asarray(self.bound(step)).astype(norms.dtype)
        key = jr.fold_in(jr.fold_in(self.key, state), step)
        long = norms > c
        odds = self.beta ** ((c / jnp.where(long, norms, 1.0)) ** self.power)
        drawn = jr.uniform(key, norms.shape, norms.dtype) < odds
        return jnp.where(long & drawn, c, jnp.inf), state
