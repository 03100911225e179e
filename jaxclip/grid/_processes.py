"""Many processes under `jax.distributed`, each with a share of the chunks."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def my_share(chunks: Sequence[T]) -> list[T]:
    """The chunks that this process computes: every n-th of them."""
    return list(chunks[jax.process_index() :: jax.process_count()])


def leads() -> bool:
    """Whether this process does what only one may: it locks and creates the store."""
    return jax.process_index() == 0


def agree(numbers: Sequence[int]) -> tuple[int, ...]:
    """The leader's numbers, so that all processes cut the sweep in the same way."""
    if jax.process_count() == 1:
        return tuple(numbers)
    found = multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.int32))
    return tuple(int(n) for n in found)


def gather(mine: np.ndarray) -> np.ndarray:
    """What every process has here, along a new first axis."""
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leaves when all processes do, and with an error in all if there is one in any:
    otherwise the others would wait for a process that has stopped."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if jax.process_count() > 1:
        failed = gather(np.asarray(problem is not None))
        if problem is None and failed.any():
            raise RuntimeError(
                f"Process {int(np.argmax(failed))} of this sweep failed and has said "
                "why. What is in the store is kept; run the same sweep again."
            )
    if problem is not None:
        raise problem
