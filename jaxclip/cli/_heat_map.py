"""The figure of a sweep over learning rates and thresholds."""

from typing import Any

import numpy as np
from jaxtyping import Float

from .._picture import need_matplotlib
from ..grid import add_color_bar, diverged_patch, draw_cells

_STAR: dict[str, Any] = dict(marker="*", ms=18, ls="", color="white")
_STAR["markeredgecolor"] = "black"


def heat_map(
    lrs: Float[np.ndarray, " n"],
    thresholds: Float[np.ndarray, " m"],
    risks: Float[np.ndarray, "n m"],
    *,
    limit: float,
    title: str = "",
) -> Any:
    """The risk over learning rates and thresholds, the best of them marked.

    **Arguments:**

    - `lrs`: in units of one over the trace of the features' covariance, ascending.
    - `thresholds`: in units of the features' norm, ascending.
    - `risks`: the excess risk, in the label's squared unit.
    - `limit`: the risk above which a setting counts as diverged.

    **Returns:**

    A matplotlib figure.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    ax = figure.subplots()
    # False for what is infinite too.
    kept = risks <= limit
    handles: list[Any] = []
    scales, style = ("log", "log"), {"cmap": "viridis"}
    mesh = draw_cells(ax, lrs, thresholds, risks, ~kept, scales=scales, style=style)
    if kept.any():
        add_color_bar(ax, mesh, "median final excess risk (label unit squared)")
        i, j = np.unravel_index(np.argmin(np.where(kept, risks, np.inf)), risks.shape)
        best = f"best: {risks[i, j]:.3g}"
        handles += ax.plot(lrs[i], thresholds[j], label=best, **_STAR)
    if not kept.all():
        handles.append(diverged_patch(f"diverged: above {limit:.3g}"))
    ax.set(
        title=title,
        xlabel="learning rate per step (units of 1 / trace of the covariance)",
        ylabel="clipping threshold (units of the feature norm)",
    )
    ax.legend(handles=handles, loc="upper left", facecolor="0.85", framealpha=0.95)
    return figure
