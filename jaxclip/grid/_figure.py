"""Pictures of sweeps: a coloured cell around each point of a grid."""

from typing import Any

import numpy as np
from jaxtyping import Float, Real


def phase_diagram(values: Any, ax: Any, style: dict[str, Any]) -> Any:
    """What [`jaxclip.Sweep`][]'s `plot` returns.

    **Arguments:**

    - `values`: an `xarray.DataArray`, the axes that are drawn in front.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    # Cells are drawn in order, the points of an axis may come in any.
    values = values.sortby(list(values.dims[:2]))
    x, y = (values[name] for name in values.dims[:2])
    mean = values.values.mean(axis=tuple(range(2, values.ndim)))
    mesh = draw_cells(ax, x.values, y.values, mean, style=style)
    ax.figure.colorbar(mesh, ax=ax, label=_label(values))
    ax.set(xlabel=_label(x), ylabel=_label(y))
    return ax


def draw_cells(
    ax: Any,
    x: Real[np.ndarray, " n"],
    y: Real[np.ndarray, " m"],
    values: Real[np.ndarray, "n m"],
    *,
    scales: tuple[str, str] | None = None,
    style: dict[str, Any],
) -> Any:
    """Colours a cell around each point of a grid.

    **Arguments:**

    - `ax`: the matplotlib axes to draw on.
    - `x`, `y`: the points along the axes, in ascending order.
    - `values`: may be a masked array, what it masks is left out.
    - `scales`: `"linear"` or `"log"` for each axis; by default the one on which its
        points are more evenly spaced.
    - `style`: handed to matplotlib's `pcolormesh`.

    **Returns:**

    The mesh, for a colour bar.
    """
    xscale, yscale = (_scale(x), _scale(y)) if scales is None else scales
    columns, rows = _edges(x, xscale), _edges(y, yscale)
    mesh = ax.pcolormesh(columns, rows, values.T, **style)
    ax.set(xscale=xscale, yscale=yscale, xlim=columns[[0, -1]], ylim=rows[[0, -1]])
    return mesh


def _label(column: Any) -> str:
    name = column.attrs.get("long_name", column.name)
    if "units" not in column.attrs:
        return name
    # A lone result has no name of its own.
    return column.units if name == "value" else f"{name} ({column.units})"


def _scale(points: Real[np.ndarray, " n"]) -> str:
    """The scale on which some points are more evenly spaced."""
    if len(points) < 3 or not points.min() > 0:
        return "linear"

    def unevenness(values):
        return np.ptp(np.diff(values)) / np.ptp(values)

    return "log" if unevenness(np.log(points)) < unevenness(points) else "linear"


def _edges(points: Real[np.ndarray, " n"], scale: str) -> Float[np.ndarray, " n+1"]:
    """The ends of the cells: half of the way between points, on the scale drawn."""
    at = np.asarray(points, float)
    at = np.log(at) if scale == "log" else at
    half = np.diff(at) / 2
    # A lone point has no neighbour to say how wide its cell is.
    first, last = (half[0], half[-1]) if len(half) else (0.05, 0.05)
    edges = np.concatenate([[at[0] - first], at[:-1] + half, [at[-1] + last]])
    return np.exp(edges) if scale == "log" else edges
