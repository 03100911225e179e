"""How a sweep is cut into chunks, and the one program that computes any of them."""

import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._types import Device
from ._axes import Axis
from ._layout import Layout

# Settings at once where nobody says: matrix products of this width are near their peak
# speed, and chunks stay short enough for progress and resumption to be fine-grained.
_POINTS = 256
_MESH = "sweep"


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled function of a chunk: from its inputs to all of its results."""

    layout: Layout
    axes: tuple[Axis, ...]
    compiled: Any
    shardings: tuple[NamedSharding, ...]

    def run(self, chunk: tuple[int, ...]) -> list[np.ndarray]:
        """The results of a chunk, leaf by leaf, without the padding."""
        results = jax.device_get(self.compiled(*self._inputs(chunk)))
        region = self.layout.region(chunk)
        kept = tuple(slice(place.stop - place.start) for place in region)
        return [np.asarray(leaf)[kept] for leaf in jax.tree.leaves(results)]

    def _inputs(self, chunk: tuple[int, ...]) -> list[Any]:
        return _place(self.layout, self.axes, self.shardings, chunk)


@dataclasses.dataclass(frozen=True)
class Source:
    """What a program is compiled from.

    - `point`: the function at one point, of the leaves of the axes in nested order.
    - `key`: equal for two functions that compute the same.
    """

    point: Callable[..., Any] = dataclasses.field(compare=False)
    key: Hashable


# The programs of the latest sweeps, oldest first: the same one again, with other
# numbers on its axes, compiles nothing. A few, since a program holds constants.
_KEPT: dict[Hashable, tuple[Any, tuple[NamedSharding, ...]]] = {}
_MOST_KEPT = 16


def build(
    source: Source,
    axes: tuple[Axis, ...],
    devices: Sequence[Device],
    batch_size: int | None,
) -> Program:
    """The program for at most `batch_size` points at once on a device.

    Without a `batch_size` it is 256, made smaller until what the compiler says that a
    chunk needs is at most half of the memory that is free.
    """
    points = _POINTS if batch_size is None else batch_size
    while True:
        layout = Layout.make(axes, len(devices), points)
        program = compile_layout(source, axes, devices, layout)
        here = math.prod(layout.block) // layout.devices(len(devices))
        if batch_size is not None or here == 1:
            return program
        need, budget = _needed(program.compiled), _free(devices) // 2
        if need <= budget:
            return program
        points = max(1, min(here // 2, here * budget // need))


def compile_layout(
    source: Source,
    axes: tuple[Axis, ...],
    devices: Sequence[Device],
    layout: Layout,
) -> Program:
    """The program for chunks that are already decided on, compiled if it is new."""
    key = source, layout, tuple(devices)
    kept = _KEPT.pop(key, None)
    if kept is None:
        kept = _compile(source.point, axes, devices, layout)
    _KEPT[key] = kept
    while len(_KEPT) > _MOST_KEPT:
        del _KEPT[next(iter(_KEPT))]
    compiled, shardings = kept
    return Program(layout, axes, compiled, shardings)


def _compile(
    point: Callable[..., Any],
    axes: tuple[Axis, ...],
    devices: Sequence[Device],
    layout: Layout,
) -> tuple[Any, tuple[NamedSharding, ...]]:
    used = devices[: layout.devices(len(devices))]
    sizes = list(layout.block)
    sizes[layout.split] //= len(used)
    mesh = Mesh(np.array(used), (_MESH,))
    specs = tuple(
        PartitionSpec(_MESH if i == layout.split else None) for i in range(len(axes))
    )
    # Each device runs the same program on its own points. Under automatic partitioning
    # a batched `while_loop` would ask all devices whether to go on at every step.
    function = jax.shard_map(
        _nest(point, sizes),
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(*[None] * layout.split, _MESH),
        check_vma=False,
    )
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    example = _place(layout, axes, shardings, (0,) * len(axes))
    return jax.jit(function).lower(*example).compile(), shardings


def _nest(point: Callable[..., Any], sizes: Sequence[int]) -> Callable[..., Any]:
    """One `vmap` an axis, the first axis outermost: what does not depend on an axis is
    then computed once for all of its entries, whatever the others."""
    for i in reversed(range(len(sizes))):
        if sizes[i] == 1:
            # A batch of one is more than no batch: it halves the speed of products.
            point = _single(point, i)
        else:
            over = tuple(0 if j == i else None for j in range(len(sizes)))
            point = jax.vmap(point, over)
    return point


def _single(point: Callable[..., Any], i: int) -> Callable[..., Any]:
    """What `vmap` over argument `i` gives where it has one entry."""

    def one(*arguments: Any) -> Any:
        entry = jax.tree.map(lambda leaf: leaf[0], arguments[i])
        result = point(*arguments[:i], entry, *arguments[i + 1 :])
        return jax.tree.map(lambda leaf: leaf[None], result)

    return one


def _place(
    layout: Layout,
    axes: tuple[Axis, ...],
    shardings: tuple[NamedSharding, ...],
    chunk: tuple[int, ...],
) -> list[Any]:
    parts = zip(axes, layout.indices(chunk), shardings, strict=True)
    return [jax.device_put(axis.take(index), to) for axis, index, to in parts]


def _needed(compiled: Any) -> int:
    """The bytes that a run of a compiled program takes on each device."""
    memory = compiled.memory_analysis()
    if memory is None:
        # Some backends do not say; a smaller chunk would not make them.
        return 0
    return (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
    )


def _free(devices: Sequence[Device]) -> int:
    """The bytes that are free for each device."""
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    return _host_memory() // len(devices)


def _host_memory() -> int:
    """The host's memory that can be had without swapping, in bytes."""
    try:
        with open("/proc/meminfo") as lines:
            found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration):
        # No Linux: half of what there is.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
