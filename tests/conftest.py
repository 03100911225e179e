"""Strict numerics for every test: nothing is promoted or broadcast by accident."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # before anything can import matplotlib
# The processes that the tests are spread over share one accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import hypothesis
import jax
import jax.random as jr
import jaxtyping
import pytest
from jaxtyping import Array, Key

# JAX_ENABLE_X64=0 asks for the float32 run: `JAX_ENABLE_X64=0 pytest -m float32`.
jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The first example compiles, so no deadline; the same examples on every run.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")


# Every compiled program maps pieces of memory of its own. Linux allows a process 65530
# of them, and the compilation after those crashes.
_MOST_MAPS = 30_000


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Lets go of what was compiled before there is too much of it."""
    start, maps = time.perf_counter(), Path("/proc/self/maps")
    yield
    # Tests that are fast compiled nothing, and counting takes a while itself.
    slow = time.perf_counter() - start > 0.5 and maps.exists()
    if slow and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def getkey() -> Callable[[], Key[Array, ""]]:
    """A function that returns a new key at each call, the same ones in every run."""
    key = jr.key(2406)

    def next_key() -> Key[Array, ""]:
        nonlocal key
        key, subkey = jr.split(key)
        return subkey

    return next_key


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """What a user sees who runs no type checker: the library's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
