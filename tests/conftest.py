"""Strict numerics for every test: nothing is promoted or broadcast by accident."""

import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # before anything can import matplotlib
# Compiling is what takes the time, and without optimisation it takes a third of that.
# Programs as users have them: `JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= pytest`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA ends at a flag that it does not know, and newer ones do not know the second.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)
# What is compiled is kept for the processes beside this one, and for the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
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

_OPTIMISE = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that runs longer than it compiles is optimised in any case."""
    long = any(map(item.get_closest_marker, ("optimised", "slow")))
    jax.config.update("jax_disable_most_optimizations", not (_OPTIMISE or long))


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


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """A program that sets the precision for itself, such as the command line's, leaves
    that of the tests after it as it was."""
    before = jax.config.read("jax_enable_x64")
    yield
    if jax.config.read("jax_enable_x64") != before:
        jax.config.update("jax_enable_x64", before)


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
