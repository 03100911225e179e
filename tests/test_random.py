"""The random numbers of a stream: those of `jax.random`, drawn faster."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from jaxclip import _random

KEYS = [jr.key(0), jr.key(2**63 - 1), jr.fold_in(jr.key(7), 2**32 - 1)]


@pytest.mark.float32
@pytest.mark.parametrize("size", [0, 1, 2, 7, 1000])
def test_bits_are_those_of_jax(size):
    ours = jax.jit(_random.bits, static_argnums=1)
    for key in KEYS:
        bits = ours(key, size)
        assert bits.dtype == jnp.uint32
        np.testing.assert_array_equal(bits, jr.bits(key, (size,), jnp.uint32))
        # An old-style key is the same key.
        np.testing.assert_array_equal(ours(jr.key_data(key), size), bits)


@pytest.mark.float32
def test_bits_under_vmap_are_those_of_each_key():
    keys = jr.split(jr.key(3), 4)
    mapped = jax.vmap(lambda key: _random.bits(key, 5))(keys)
    looped = jnp.stack([jr.bits(key, (5,), jnp.uint32) for key in keys])
    np.testing.assert_array_equal(mapped, looped)


def test_other_generators_are_handed_on():
    key = jr.key(0, impl="rbg")
    expected = jr.bits(key, (9,), jnp.uint32)
    np.testing.assert_array_equal(_random.bits(key, 9), expected)
    assert jnp.all(jnp.abs(_random.normal(key, 9)) < 5)


@pytest.mark.float32
def test_normal_is_that_of_jax_in_float32():
    ours = jax.jit(_random.normal, static_argnums=1)
    for key in KEYS:
        draws = ours(key, 1001)
        assert draws.dtype == jnp.result_type(float)
        expected = jr.normal(key, (1001,), jnp.float32)
        np.testing.assert_array_equal(draws.astype(jnp.float32), expected)


def test_normal_is_the_same_in_both_precisions():
    wide = _random.normal(KEYS[0], 1000)
    with jax.enable_x64(False):
        narrow = _random.normal(KEYS[0], 1000)
    assert (wide.dtype, narrow.dtype) == (jnp.float64, jnp.float32)
    np.testing.assert_array_equal(wide, np.asarray(narrow, np.float64))


@pytest.mark.float32
def test_normal_is_normal():
    draws = np.asarray(_random.normal(jr.key(5), 40_000), np.float64)
    # Beyond 1.95 / sqrt(n) the probability is 1 in 1000; the seed is fixed.
    assert stats.kstest(draws, "norm").statistic < 1.95 / 200
    assert np.isfinite(draws).all()
    # Neighbours in the stream, and two streams, are not correlated.
    other = np.asarray(_random.normal(jr.key(6), 40_000), np.float64)
    for pair in ((draws[1:], draws[:-1]), (draws, other)):
        assert abs(np.mean(pair[0] * pair[1])) < 4 / 200
