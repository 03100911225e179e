"""Random numbers of a stream of samples, fast on a CPU.

Drawing the features is the most expensive part of a simulated step in high dimension,
and nine tenths of it is the threefry hash, whose CPU lowering keeps its rounds in a
loop. The same hash written out is bit-identical and three times faster.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, UInt32

from .._types import Key

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
