"""Pictures of sweeps: a coloured cell around each point of a grid."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Real

from .._picture import NOT_FINITE, axes_for, need_matplotlib

# Of the runs of a setting, along the axis that it is told of by name.
Statistic: TypeAlias = Callable[..., Any]


def median_of_runs(
    runs: Real[np.ndarray, "*settings n"],
) -> Real[np.ndarray, "*settings"]:
    """The median along the last axis; of an even number the upper one of the two in the
    middle, which is the number of a run. What is no number counts as above all others:
    where half of the runs have diverged, so has their median."""
    # A sort puts NaN last, after infinity.
    return np.sort(runs, axis=-1)[..., runs.shape[-1] // 2]


def phase_diagram(
    values: Any, ax: Any, statistic: Statistic | None, style: dict[str, Any]
) -> Any:
    """What [`jaxclip.Sweep`][]'s `plot` returns.

    **Arguments:**

    - `values`: an `xarray.DataArray`, the axes that are drawn in front.
    - `statistic`: what is made of the runs of a setting, the median where it is None.
    """
    need_matplotlib()
    # Cells are drawn in order, the points of an axis may come in any.
    values = values.sortby(list(values.dims[:2]))
    x, y = (values[name] for name in values.dims[:2])
    if values.dtype == bool:
        # The share that is true; a median of them says less.
        values, statistic = values.astype(float), statistic or np.mean
    shown = _over_runs(values.values, statistic)
    diverged = ~np.isfinite(shown)
    ax = axes_for(ax)
    mesh = draw_cells(ax, x.values, y.values, shown, diverged, style=style)
    ax.set(xlabel=_label(x), ylabel=_label(y))
    if not diverged.all():
        add_color_bar(ax, mesh, _label(values, _kind(values, statistic)))
    if diverged.any():
        share = f"{diverged.sum()} of {diverged.size} cells"
        patch = diverged_patch(f"diverged (not finite): {share}")
        ax.legend(handles=[patch], loc=_corner(diverged), fontsize="small")
    return ax


def draw_cells(
    ax: Any,
    x: Real[np.ndarray, " n"],
    y: Real[np.ndarray, " m"],
    values: Real[np.ndarray, "n m"],
    diverged: Bool[np.ndarray, "n m"],
    *,
    scales: tuple[str, str] | None = None,
    style: dict[str, Any],
) -> Any:
    """Colours a cell around each point of a grid, on a logarithmic scale of colours
    where no number is negative.

    **Arguments:**

    - `ax`: the matplotlib axes to draw on.
    - `x`, `y`: the points along the axes, in ascending order.
    - `values`: the number of each cell.
    - `diverged`: the cells that have none, and get the colour that says so.
    - `scales`: `"linear"` or `"log"` for each axis; by default the one on which its
        points are more evenly spaced.
    - `style`: handed to matplotlib's `pcolormesh`.

    **Returns:**

    The mesh, for a colour bar.
    """
    xscale, yscale = (_scale(x), _scale(y)) if scales is None else scales
    columns, rows = _edges(x, xscale), _edges(y, yscale)
    style = _with_norm(style, values[~diverged])
    shown = np.ma.masked_array(values, diverged)
    mesh = ax.pcolormesh(columns, rows, shown.T, **style)
    mesh.set_cmap(mesh.get_cmap().with_extremes(bad=NOT_FINITE))
    ax.set(xscale=xscale, yscale=yscale, xlim=columns[[0, -1]], ylim=rows[[0, -1]])
    return mesh


def add_color_bar(ax: Any, mesh: Any, label: str) -> None:
    """A colour bar of some cells, with a point at the end that stands for zeros too."""
    zeros = mesh.norm.vmin is not None and np.any(mesh.get_array() < mesh.norm.vmin)
    ax.figure.colorbar(mesh, ax=ax, label=label, extend="min" if zeros else "neither")


def diverged_patch(label: str) -> Any:
    """What a legend shows of the cells that diverged."""
    from matplotlib.patches import Patch

    return Patch(facecolor=NOT_FINITE, label=label)


def _corner(diverged: Bool[np.ndarray, "n m"]) -> str:
    """The corner with the most cells that diverged: a legend that lies there hides the
    fewest others."""
    n, m = (max(1, size // 3) for size in diverged.shape)
    corners = {
        "upper right": diverged[-n:, -m:],
        "upper left": diverged[:n, -m:],
        "lower right": diverged[-n:, :m],
        "lower left": diverged[:n, :m],
    }
    return max(corners, key=lambda name: corners[name].mean())


def _over_runs(
    values: Real[np.ndarray, "n m *runs"], statistic: Statistic | None
) -> Real[np.ndarray, "n m"]:
    """One number for each setting."""
    if values.ndim == 2:
        return values
    runs = values.reshape(*values.shape[:2], -1)
    if statistic is None:
        return median_of_runs(runs)
    # Between infinite numbers there is none, which needs no warning: it is drawn.
    with np.errstate(invalid="ignore", over="ignore"):
        shown = np.asarray(statistic(runs, axis=-1))
    if shown.shape != runs.shape[:2]:
        raise ValueError(
            "`statistic` must make one number of the runs of each setting, as "
            f"`numpy.mean(runs, axis=-1)` does. Got shape {shown.shape} of "
            f"{runs.shape}."
        )
    return shown


def _with_norm(style: dict[str, Any], values: Real[np.ndarray, " k"]) -> dict[str, Any]:
    """The style, with a logarithmic scale of colours where it names none."""
    from matplotlib.colors import LogNorm

    limits = [style.get("vmin"), style.get("vmax")]
    # A logarithm has no place for what is negative. Zeros, such as risks that
    # underflow, must not take the contrast from the others: they look like the least.
    some = values.size > 0 and values.min() >= 0 and values.max() > 0
    if "norm" in style or not some or any(x is not None and x <= 0 for x in limits):
        return style
    rest = {key: x for key, x in style.items() if key not in ("vmin", "vmax")}
    low, high = limits
    low = values[values > 0].min() if low is None else low
    high = values.max() if high is None else high
    return {**rest, "norm": LogNorm(low, high, clip=True)}


def _kind(values: Any, statistic: Statistic | None) -> str:
    """What a colour bar says before the name: what was made of how many runs."""
    runs = int(np.prod(values.shape[2:]))
    if values.ndim == 2:
        return ""
    word = (
        "median" if statistic is None else getattr(statistic, "__name__", "statistic")
    )
    return f"{word} over {runs} run{'s' * (runs != 1)}"


def _label(column: Any, kind: str = "") -> str:
    name, unit = column.attrs.get("long_name", column.name), column.attrs.get("units")
    # A lone result has no name of its own.
    if unit is not None:
        name = unit if name == "value" else f"{name} ({unit})"
    return f"{name}, {kind}" if kind else name


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
