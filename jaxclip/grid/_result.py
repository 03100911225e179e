"""The result of a sweep: a table with named axes, in memory or on disk."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._types import PyTree
from ._axes import Axis, Coordinate
from ._figure import Statistic, phase_diagram


@dataclasses.dataclass(frozen=True)
class SweepTable:
    """What the results of a sweep are called, and their shapes.

    - `axes`: in the user's order; `nested`: the same with random keys first.
    - `names`: of the leaves of what `fn` returns.
    - `shapes`, `dtypes`: of each leaf at one point.
    - `tree`: the structure of what `fn` returns.
    - `units`: of axes and of leaves, by name, where the user gave them.
    """

    axes: tuple[Axis, ...]
    nested: tuple[Axis, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    tree: Any
    units: Mapping[str, str]

    def dims(self, i: int) -> tuple[str, ...]:
        """The names of the dimensions of leaf `i`."""
        name, own = self.names[i], len(self.shapes[i])
        axes = tuple(axis.name for axis in self.axes)
        return axes + tuple(f"{name}_{j}" for j in range(own))

    def coordinates(self) -> dict[str, Coordinate]:
        """The coordinates of all axes."""
        found: dict[str, Coordinate] = {}
        for axis in self.axes:
            found |= axis.coordinates()
        return {
            name: (dims, values, about | self.about(name))
            for name, (dims, values, about) in found.items()
        }

    def about(self, name: str) -> dict[str, str]:
        """What is known of an axis or a leaf: its unit, under xarray's name for it."""
        return {"units": self.units[name]} if name in self.units else {}

    @property
    def order(self) -> tuple[int, ...]:
        """Where each axis, in the user's order, is among the nested ones."""
        names = [axis.name for axis in self.nested]
        return tuple(names.index(axis.name) for axis in self.axes)

    def to_user(self, leaf: np.ndarray) -> np.ndarray:
        """A leaf with nested axes in front, with them in the user's order."""
        return leaf.transpose(*self.order, *range(len(self.axes), leaf.ndim))


def blank(dtype: np.dtype) -> Any:
    """What a point that has not been computed reads: NaN where the type has it.

    Otherwise the smallest number of a type with a sign, and the largest of one without;
    booleans have none to spare, and are false.
    """
    if np.issubdtype(dtype, np.inexact):
        return dtype.type(np.nan)
    if np.issubdtype(dtype, np.integer):
        range_ = np.iinfo(dtype)
        return dtype.type(range_.min or range_.max)
    return dtype.type(0)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The result of [`jaxclip.sweep`][].

    - `leaves`: an array for each leaf of what the function returned, or where a store
        holds it.
    - `attrs`: where the numbers come from: versions, device, date, seconds.
    - `store`: the folder that holds them, or None where they are in memory.
    """

    _table: SweepTable = dataclasses.field(repr=False)
    leaves: tuple[Any, ...] = dataclasses.field(repr=False)
    attrs: dict[str, Any]
    store: Path | None = None

    @property
    def values(self) -> PyTree[np.ndarray]:
        """What `fn` returns, with the axes in front, in the user's order, as numpy
        arrays. A store is read here, all of it."""
        return self._table.tree.unflatten(np.asarray(leaf[...]) for leaf in self.leaves)

    def to_xarray(self) -> Any:
        """The table as an `xarray.Dataset`. Needs the extra `cli`.

        Its dimensions are the axes by name, in the user's order. The coordinate of an
        axis is its values where they are one number a point, else an index, with the
        data of its keys and the numbers among its leaves beside it. A store's numbers
        are read when they are used, chunk by chunk.
        """
        import xarray as xr

        if self.store is not None:
            path = self.store / "table.zarr"
            # No dask: xarray's own lazy arrays read only what is asked for.
            table = xr.open_zarr(path, chunks=None, consolidated=False)
            return table.assign_attrs(self.attrs)
        names = self._table.names
        data = {
            name: (self._table.dims(i), leaf, self._table.about(name))
            for i, (name, leaf) in enumerate(zip(names, self.leaves, strict=True))
        }
        return xr.Dataset(data, self._table.coordinates(), self.attrs)

    def plot(
        self,
        ax: Any = None,
        *,
        name: str | None = None,
        statistic: Statistic | None = None,
        **style: Any,
    ) -> Any:
        """Draws a phase diagram: one number over the two axes that are no random keys,
        the first of them to the right; its median over those that are, since a single
        run that has diverged would be all that a mean shows. Needs the extra `cli`.

        Colours are on a logarithmic scale, unless a number is negative. A cell whose
        number is not finite has a colour of its own, which a legend names.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `name`: which leaf of what `fn` returns; the first by default.
        - `statistic`: what is made of the runs of a setting in place of their median: a
            function of an array and of the `axis` of the runs in it, such as
            `numpy.mean`, which is the default for true and false.
        - `style`: handed to matplotlib's `pcolormesh`, such as `vmin` and `cmap`;
            `norm="linear"` makes the scale of the colours linear.

        **Returns:**

        The axes. A colour bar is beside them, unless all cells have diverged.

        **Raises:**

        A `ValueError` where there are not two such axes, or not one number a point; an
        `ImportError` without matplotlib.
        """
        name = self._table.names[0] if name is None else name
        if name not in self._table.names:
            names = ", ".join(self._table.names)
            raise ValueError(f"`name` must be one of {names}. Got {name!r}.")
        values = self.to_xarray()[name]
        settings = [axis.name for axis in self._table.axes if not axis.is_key]
        if len(settings) != 2 or values.ndim != len(self._table.axes):
            raise ValueError(
                "A phase diagram needs two axes without random keys, and one number a "
                f"point. Got the axes {settings}, and {name!r} with the dimensions "
                f"{values.dims}; sweep over two, or draw `to_xarray()`."
            )
        return phase_diagram(values.transpose(*settings, ...), ax, statistic, style)
