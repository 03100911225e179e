"""The picture of what monitors saw: norms and thresholds, and how much was clipped."""

from typing import Any

import numpy as np
from jaxtyping import Real

# More lines than these are not told apart.
_MOST_PARTS = 10
# What jumps from update to update lies pale behind what is an average or a threshold.
_NOISY: dict[str, Any] = dict(lw=0.7, alpha=0.45)
_SMOOTH: dict[str, Any] = dict(lw=1.8, zorder=3)


def metrics_figure(
    steps: Real[np.ndarray, " s"], columns: dict[str, np.ndarray]
) -> Any:
    """What [`jaxclip.transform.LivePlot`][]'s `figure` returns.

    **Arguments:**

    - `steps`: where the records lie along the horizontal axis.
    - `columns`: a vector for each name, as `clip_metrics` names them.
    """
    # Not through pyplot, which would keep the figure, and show it a second time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _norms(above, steps, columns)
    _shares(below, steps, columns)
    above.set(title=_title(columns))
    below.set(xlabel="step")
    for ax in (above, below):
        ax.grid(alpha=0.25)
        if ax.lines:
            legend = ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            for line in legend.get_lines():
                line.set(lw=1.8, alpha=1.0)
    return figure


def _norms(ax: Any, steps: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    norms, thresholds = _parts("norm", columns), _parts("threshold", columns)
    most = sorted(norms, key=lambda part: -_last(norms[part]))[:_MOST_PARTS]
    for number, part in enumerate(sorted(most, key=list(norms).index)):
        color = f"C{number}"
        name = f"norm {part}".strip()
        ax.plot(steps, _drawable(norms[part]), color=color, label=name, **_NOISY)
        threshold = _drawable(thresholds.get(part, np.full(len(steps), np.nan)))
        if not np.all(np.isnan(threshold)):
            # Of one pair the second line has a name too; of many it is the dashed one.
            name = "threshold" if len(norms) == 1 else None
            ax.plot(steps, threshold, color=color, ls="--", label=name, **_SMOOTH)
    lengths = [line.get_ydata() for line in ax.lines]
    if any(np.any(np.isfinite(length)) for length in lengths):
        ax.set(yscale="log")
    hidden = len(norms) - len(most)
    note = f", the {_MOST_PARTS} largest of {len(norms)}" if hidden > 0 else ""
    ax.set(ylabel=f"norm (thresholds dashed{note})" if norms else "norm")


def _shares(ax: Any, steps: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    lines = ("recent", "clipped lately", _SMOOTH), ("removed", "length removed", _NOISY)
    for kind, name, style in lines:
        for part, column in _parts(kind, columns).items():
            ax.plot(steps, column, label=f"{name} {part}".strip(), **style)
    ax.set(ylim=(-0.03, 1.03), ylabel="fraction")


def _title(columns: dict[str, np.ndarray]) -> str:
    clipped = [f"{_last(c):.0%}" for c in _parts("clipped", columns).values()]
    title = [f"clipped so far: {', '.join(clipped)}"] if clipped else []
    bad = max((_last(c) for c in _parts("nonfinite", columns).values()), default=0)
    return "; ".join(title + ([f"{bad:.0f} gradients not finite"] if bad else []))


def _parts(kind: str, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of one quantity, by the part that they are of: `w` of `norm/w`, and
    `0/w` of `0/norm/w`, where there are several monitors; empty where there is one."""
    found = {}
    for name, column in columns.items():
        first, *rest = name.split("/")
        monitor = [first] if first.isdigit() and rest else []
        of, *part = rest if monitor else [first, *rest]
        if of == kind:
            found["/".join([*monitor, *part])] = column
    return found


def _last(column: np.ndarray) -> float:
    """The last number, and 0 where it is none."""
    last = float(column[-1]) if len(column) else 0.0
    return last if np.isfinite(last) else 0.0


def _drawable(column: np.ndarray) -> np.ndarray:
    """With gaps where a logarithmic axis has no place."""
    column = np.asarray(column, np.float64)
    return np.where(np.isfinite(column) & (column > 0), column, np.nan)
