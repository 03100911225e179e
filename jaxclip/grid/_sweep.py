"""The verb `sweep`: any function over any axes. Knows no model, rule or engine."""

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from .._checks import count
from .._static import hashable
from .._types import Device
from ._axes import read_axes
from ._fingerprint import digest, fingerprint, version
from ._point import at_point, trace
from ._result import Sweep, SweepTable
from ._run import Work, in_memory, into_store
from ._store import Store


def sweep(
    fn: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    devices: Sequence[Device] | None = None,
    batch_size: int | None = None,
    store: str | Path | None = None,
    units: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Sweep:
    r"""Runs a function at every point of a grid.

    $$T_{ij\dots} = f(a_i, b_j, \dots)$$

    Axes of random keys are nested outside of the others, so that all settings see the
    same data under one key, made once: differences between settings are paired. A point
    run alone, `fn(**point)`, gives the same result but for the rounding of sums.

    **Arguments:**

    - `fn`: called with the axes as keyword arguments, one entry of each; returns any
        pytree of arrays. It is traced and vmapped; another sweep of the same function,
        over axes of the same lengths, compiles nothing.
    - `axes`: name to array, key array, or pytree of arrays that share a leading axis.
        Make keys with `jax.random.key`: those of the old kind are taken for settings.
    - `devices`: what to run on, all devices of this process by default. A chunk is
        spread over them along its outermost axis.
    - `batch_size`: points at once on a device, which bounds the memory that a sweep
        takes. By default 256, made smaller until what the compiler says that a chunk
        needs is at most half of the memory that is free.
    - `store`: a folder for the numbers. Finished chunks are then written to it, and not
        held in memory. The same sweep, run again with this folder, goes on where it was
        killed, in the chunks that it had then, whatever `devices` and `batch_size` are
        now; its table is `table.zarr`. Points not yet there read NaN, false, or the
        smallest integer of their type (the largest where it has no sign).
    - `units`: name to unit, of axes and of what `fn` returns (`"value"` where it
        returns one array), which xarray writes on the axes of plots.
    - `progress`: show how far it is and the time left on stderr, where tqdm is there.

    Under `jax.distributed` every process must call it: each computes a share of the
    chunks, and all return the table. A store must be in a folder that they share.

    **Returns:**

    A [`jaxclip.Sweep`][], with `values` as `fn` returns them and `to_xarray()`.

    **Raises:**

    A `ValueError` where an argument is misused, JAX's precision cannot hold an axis, or
    `store` is none or another sweep's; a `RuntimeError` with the point where `fn`
    fails; an `OSError` where the store cannot be written to, a `BlockingIOError` while
    another sweep does. Nothing finished is lost.
    """
    work, jaxpr = _plan(fn, axes, _devices(devices), batch_size, units, progress)
    attrs = _provenance(fn, work.devices)
    if store is not None:
        identity = fingerprint(jaxpr, work.table.axes, work.devices)
        return _kept(into_store(work, Path(store), identity, attrs), work.table)
    leaves, seconds = in_memory(work)
    return Sweep(work.table, leaves, attrs | {"seconds": seconds})


def _plan(
    fn: Callable[..., Any],
    axes: Mapping[str, Any],
    places: tuple[Device, ...],
    batch_size: int | None,
    units: Mapping[str, str] | None,
    progress: bool,
) -> tuple[Work, Any]:
    """What is to be computed, checked, and the program of one point."""
    named = read_axes(axes, fn)
    if batch_size is not None:
        batch_size = count("batch_size", batch_size)
    # Stable, so that keys come first and all else stays in the user's order.
    nested = tuple(sorted(named.values(), key=lambda axis: not axis.is_key))
    point = at_point(fn, nested)
    table, jaxpr = trace(point, tuple(named.values()), nested, units or {})
    # Traced at each call, since `fn` may read what has changed since the last one.
    key = hashable(fn), digest(jaxpr)
    return Work(point, key, table, places, batch_size, progress), jaxpr


def _kept(store: Store, table: SweepTable) -> Sweep:
    """The result that a store holds."""
    attrs = store.attrs | {"seconds": store.seconds()}
    return Sweep(table, store.arrays(), attrs, store.path)


def _devices(devices: Sequence[Device] | None) -> tuple[Device, ...]:
    local = jax.local_devices()
    if devices is None:
        return tuple(local)
    wrong = [device for device in devices if device not in local]
    if wrong or not devices or len(set(devices)) < len(devices):
        raise ValueError(
            "`devices` must be one or more different devices of this process, such as "
            f"`jax.local_devices()`. Got {devices!r}."
        )
    return tuple(devices)


def _provenance(fn: Callable[..., Any], devices: tuple[Device, ...]) -> dict[str, Any]:
    """Where the numbers come from; the data of the keys are among the coordinates."""
    return {
        "function": getattr(fn, "__qualname__", type(fn).__qualname__),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jaxclip", "jax", "jaxlib", "numpy")},
    }
