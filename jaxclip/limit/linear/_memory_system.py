"""The linear system of a collocation step for modes with momentum, solved."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._radau import apply, inverse, times


class Parts(NamedTuple):
    """The coefficients of the modes that follow from forces, shape `(t, n)` or
    `(t, 1)`, with `t` nodes.

    - `carry`, `kick`, `forget`, `pull`: as of `Forces`.
    - `slope`: $h_j$, the stiffness of each mode.
    - `both`: what the error decays by at once, by the kick and by the decay.
    - `pushed`: how the origin moves the error at once.
    - `drive`: what the noise adds to the modes.
    """

    carry: Array
    kick: Array
    forget: Array
    pull: Array
    slope: Array
    both: Array
    pushed: Array
    drive: Array


class System(eqx.Module):
    """The linear system of a step's nodes, solved: matrices have the shape
    `(t, t, n)`, or `(t, t, 1)` where they are the same for all modes.

    - `f`, `integral`: the coefficients, and the matrix that integrates.
    - `error`, `momentum`: inverses for the squares of both, of which the product
        follows with `middle`; `mean`, `memory`: those for the means along the origin.
        None where there are none.
    """

    f: Parts
    integral: Array
    error: Array
    momentum: Array | None
    middle: Array | None
    mean: Array | None
    memory: Array | None

    @classmethod
    def of(cls, f: Parts, integral: Array, memory: bool, means: bool) -> "System":
        eye = jnp.eye(len(integral), dtype=integral.dtype)[:, :, None]

        def decayed(rate):
            return inverse(eye + integral * rate[None])

        error = decayed(2 * f.both)
        mean = decayed(f.both) if means else None
        if not memory:
            return cls(f, integral, error, None, None, mean, None)
        momentum = decayed(2 * f.forget)
        # The squares are linear in the product of error and momentum.
        pull, carry = integral * f.slope[None], integral * f.carry[None]
        middle = eye + integral * (f.forget + f.both)[None]
        middle = middle + 2 * times(pull, times(error, carry))
        middle = middle + 2 * times(carry, times(momentum, pull))
        slow = None
        if mean is not None:
            slow = eye + integral * f.forget[None] + times(pull, times(mean, carry))
            slow = inverse(slow)
        return cls(f, integral, error, momentum, inverse(middle), mean, slow)

    def respond(self, added: Float[Array, "rows t n"]) -> Float[Array, "rows t n"]:
        """What is followed at the nodes, from what is added until then from outside:
        by the start, by the noise and by the origin."""
        f = self.f
        if self.middle is None or self.momentum is None:
            if self.mean is None:
                return apply(self.error, added[0])[None]
            p = apply(self.mean, added[1])
            u = apply(self.error, added[0] - 2 * self._to(f.pushed * p))
            return jnp.stack([u, p])
        p = r = jnp.zeros_like(added[0])
        if self.mean is not None and self.memory is not None:
            free = apply(self.mean, added[3])
            r = apply(self.memory, added[4] + self._to(f.slope * free))
            p = free - apply(self.mean, self._to(f.carry * r))
        u = apply(self.error, added[0] - 2 * self._to(f.pushed * p))
        q = apply(self.momentum, added[2] + 2 * self._to(f.pull * r))
        cross = f.pull * p - f.pushed * r + f.slope * u - f.carry * q
        b = apply(self.middle, added[1] + self._to(cross))
        u = u - 2 * apply(self.error, self._to(f.carry * b))
        q = q + 2 * apply(self.momentum, self._to(f.slope * b))
        return jnp.stack([u, b, q] if self.mean is None else [u, b, q, p, r])

    def _to(self, rate: Float[Array, "t n"]) -> Float[Array, "t n"]:
        """The integral of a rate up to each node."""
        return apply(self.integral, rate)
