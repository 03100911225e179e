"""Chi-squared numbers with any number of degrees of freedom, up to billions."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from .._types import Key

# Each round accepts 95 numbers of 100 or more, so that this many are never needed.
_MOST_ROUNDS = 64


def chi_squared(key: Key, freedom: Int[Array, "..."]) -> Float[Array, "..."]:
    r"""Independent chi-squared numbers; 0 where there is no degree of freedom.

    By rejection (Marsaglia and Tsang 2000, doi:10.1145/358407.358414): with
    $d = \nu / 2 - 1/3$ and a normal $x$, the number $2 d (1 + t)^3$ with
    $t = x / (3 \sqrt d)$ is accepted with probability $e^{h}$,
    $h = x^2 / 2 + d\,(1 - (1 + t)^3 + 3 \log(1 + t))$.

    Not `jax.random.chisquare`: in float32 it does not return for some keys at 10^8
    degrees of freedom, and it draws the numbers one after the other on a CPU. Degrees
    of freedom are counts, and are not differentiated.
    """
    square_key, loop_key = jr.split(key)
    d = jnp.maximum(freedom, 2).astype(jnp.result_type(float)) / 2 - 1 / 3
    many = freedom > 1

    def unfinished(state):
        done, _, rounds = state
        return ~jnp.all(done) & (rounds < _MOST_ROUNDS)

    def attempt(state):
        done, value, rounds = state
        accepted, proposal = _propose(jr.fold_in(loop_key, rounds), d)
        return done | accepted, jnp.where(done, value, proposal), rounds + 1

    _, value, _ = jax.lax.while_loop(unfinished, attempt, (~many, 2 * d, 0))
    single = jr.normal(square_key, freedom.shape) ** 2
    return jnp.where(many, value, jnp.where(freedom == 1, single, 0.0))


def _propose(
    key: Key, d: Float[Array, "..."]
) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Whether each proposal is accepted, and the proposals."""
    normal_key, uniform_key = jr.split(key)
    x = jr.normal(normal_key, d.shape)
    t = x / (3 * jnp.sqrt(d))
    # A cube of a negative number is never accepted.
    inside = t > -1
    safe = jnp.where(inside, t, 0.0)
    # For many degrees of freedom the terms of h cancel; this is their expansion.
    tail = 3 / 4 - safe * (3 / 5 - safe * (1 / 2 - safe * (3 / 7 - safe * 3 / 8)))
    near = -d * safe**4 * tail
    cubed = (1 + safe) ** 3
    far = x**2 / 2 + d * (1 - cubed + 3 * jnp.log1p(safe))
    h = jnp.where(jnp.abs(safe) < 0.01, near, far)
    accepted = inside & (jnp.log(jr.uniform(uniform_key, d.shape)) < h)
    return accepted, 2 * d * cubed
