"""Computes the chunks of a sweep, into memory or into a store."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._types import Device
from ._axes import Axis
from ._chunks import Program, Source, build, compile_layout
from ._disk import locked
from ._failure import named
from ._layout import Layout
from ._processes import agree, gather, leads, my_share, together
from ._result import SweepTable, blank
from ._store import Store


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be computed, and where.

    - `point`: the function at one point, of the leaves of the axes in nested order.
    - `key`: what it is told from others by, where a compiled program is looked for.
    """

    point: Callable[..., Any]
    key: Hashable
    table: SweepTable
    devices: tuple[Device, ...]
    batch_size: int | None
    progress: bool

    def program(self) -> Program:
        """The program of a sweep whose cut is free, the same in all processes."""
        program = build(self._source, self._axes, self.devices, self.batch_size)
        *block, split = agree([*program.layout.block, program.layout.split])
        layout = Layout(program.layout.lengths, tuple(block), split)
        return program if layout == program.layout else self.program_for(layout)

    def program_for(self, layout: Layout) -> Program:
        """The program of a sweep that is already cut."""
        return compile_layout(self._source, self._axes, self.devices, layout)

    @property
    def _source(self) -> Source:
        return Source(self.point, self.key)

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return self.table.nested


def in_memory(work: Work) -> tuple[tuple[np.ndarray, ...], float]:
    """All leaves, in the user's order, and the seconds that they took here."""
    program, table = work.program(), work.table
    layout = program.layout
    kinds = list(zip(table.shapes, table.dtypes, strict=True))
    wholes = [
        np.full(layout.lengths + shape, blank(dtype), dtype) for shape, dtype in kinds
    ]
    total = 0.0
    with together():
        for chunk, results, seconds in _run(work, program, layout.chunks()):
            total += seconds
            for whole, part in zip(wholes, results, strict=True):
                whole[layout.region(chunk)] = part
    if jax.process_count() > 1:
        wholes = [_assemble(program, whole) for whole in wholes]
    return tuple(table.to_user(whole) for whole in wholes), total


def into_store(
    work: Work, path: Path, identity: dict[str, Any], attrs: dict[str, Any]
) -> Store:
    """The store of a sweep, with every chunk in it.

    **Arguments:**

    - `identity`: what decides the numbers; a store's must be the same.
    - `attrs`: where the numbers come from.
    """
    # Before a lock is put into a folder that is something else.
    with together():
        Store.open(path, work.table, identity)
    with contextlib.ExitStack() as stack:
        with together():
            writable = stack.enter_context(locked(path)) if leads() else True
        # Once more: another sweep may have made it, and let the lock go, since.
        store = Store.open(path, work.table, identity)
        program = None
        if store is None:
            program = work.program()
            store = Store(path, work.table, program.layout, attrs)
        left = _left(store, identity, writable)
        if left:
            program = program or work.program_for(store.layout)
            with together():
                for chunk, results, seconds in _run(work, program, left):
                    store.write(chunk, results, seconds)
    return store


def _left(
    store: Store, identity: dict[str, Any], writable: bool
) -> list[tuple[int, ...]]:
    """The chunks that must still be computed, for which the store is made ready."""
    chunks = store.layout.chunks()
    finished: set[tuple[int, ...]] = set()
    with together():
        if leads():
            finished = store.finished()
            if len(finished) < len(chunks):
                store.create(identity, writable)
    known = agree([chunk in finished for chunk in chunks])
    return [chunk for chunk, done in zip(chunks, known, strict=True) if not done]


def _assemble(program: Program, mine: np.ndarray) -> np.ndarray:
    """A leaf of which each process has computed its share of the chunks."""
    every = gather(mine)
    for i, chunk in enumerate(program.layout.chunks()):
        region = program.layout.region(chunk)
        mine[region] = every[i % len(every)][region]
    return mine


def _run(
    work: Work, program: Program, chunks: list[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], list[np.ndarray], float]]:
    """This process's share of some chunks: each with its results and its seconds."""
    mine = my_share(chunks)
    with _bar(len(mine), work.progress and leads()) as bar:
        for chunk in mine:
            start = time.perf_counter()
            with named(work.point, program, chunk):
                results = program.run(chunk)
            yield chunk, results, time.perf_counter() - start
            # After what the caller did with the chunk, such as writing it.
            bar.update()


def _bar(total: int, shown: bool) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc="sweep", unit="chunk", disable=not shown)


class _NoBar(contextlib.nullcontext):
    """Shows nothing: tqdm is an extra."""

    def __enter__(self) -> "_NoBar":
        return self

    def update(self) -> None:
        """Counts nothing."""
