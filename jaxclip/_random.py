"""Random numbers of a stream of samples, fast on a CPU.

Drawing the features is the most expensive part of a simulated step in high dimension,
and nine tenths of it is the threefry hash, whose CPU lowering keeps its rounds in a
loop. The same hash written out is bit-identical and three times faster.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ._types import Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def bits(key: Key, size: int) -> UInt32[Array, " size"]:
    """The same numbers as `jax.random.bits`, unsigned and of 32 bits each.

    **Arguments:**

    - `key`: a key; one that is not threefry is handed on to `jax.random`.
    - `size`: how many 32-bit numbers.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if jr.key_impl(key) != "threefry2x32":
            return jr.bits(key, (size,), jnp.uint32)
        key = jr.key_data(key)
    low = jnp.arange(size, dtype=jnp.uint32)
    first, second = _threefry(key[..., 0], key[..., 1], jnp.zeros_like(low), low)
    return first ^ second


def normal(key: Key, size: int) -> Float[Array, " size"]:
    """Standard normal numbers, made of 32 random bits each in every precision.

    Runs in float32 and float64 therefore see the same features; the granularity, 2^-23
    in probability, is far below what any statistic of a simulation resolves.
    """
    # 23 bits make a float in [1, 2); the symmetric open interval follows from it.
    mantissa = (bits(key, size) >> 9) | np.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    draws = np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)
    return draws.astype(jnp.result_type(float))


def _threefry(key0, key1, x0, x1):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), its loop written out."""
    keys = (key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


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
