"""Which point of a sweep failed: a chunk is one program, whose error names none."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax

from ._chunks import Program

# What XLA says where memory is short, which is no point's fault.
_NO_MEMORY = "RESOURCE_EXHAUSTED"
# What a running program raises: the second where a function on the host did.
_FAILURES = (RuntimeError, ValueError)


@contextlib.contextmanager
def named(
    point: Callable[..., Any], program: Program, chunk: tuple[int, ...]
) -> Iterator[None]:
    """Names the point at which a chunk failed, by running its points one at a time.

    **Arguments:**

    - `point`: the function at one point, of the leaves of the axes in nested order.

    **Raises:**

    A `RuntimeError` in place of the chunk's, which is its cause.
    """
    try:
        yield
    except _FAILURES as error:
        if _NO_MEMORY in str(error):
            raise
        alone = eqx.filter_jit(point)
        for index in _points(program, chunk):
            why = _failure(alone, program, index)
            if why is not None:
                raise RuntimeError(
                    f"`fn` failed at the point {_describe(program, index)}: {why}"
                ) from error
        first, last = itertools.islice(_ends(program, chunk), 2)
        raise RuntimeError(
            f"`fn` failed in the chunk from the point {_describe(program, first)} to "
            f"{_describe(program, last)}, though at none of its points alone: {error}"
        ) from error


def _failure(
    alone: Callable[..., Any], program: Program, index: tuple[int, ...]
) -> str | None:
    """What the error at a point says, or None where there is none."""
    entries = [axis.take(i) for axis, i in zip(program.axes, index, strict=True)]
    try:
        jax.block_until_ready(alone(*entries))
    except _FAILURES as error:
        # Equinox puts the stack before its message, and advice behind it.
        _, *after = str(error).rsplit("EquinoxRuntimeError: ", 1)
        return after[0].split("\n----")[0].strip() if after else str(error)
    return None


def _points(program: Program, chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    region = program.layout.region(chunk)
    return itertools.product(*(range(place.start, place.stop) for place in region))


def _ends(program: Program, chunk: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    region = program.layout.region(chunk)
    yield tuple(place.start for place in region)
    yield tuple(place.stop - 1 for place in region)


def _describe(program: Program, index: tuple[int, ...]) -> str:
    pairs = zip(program.axes, index, strict=True)
    return ", ".join(axis.describe(i) for axis, i in pairs)
