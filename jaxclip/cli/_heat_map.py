"""The figure of a sweep over learning rates and thresholds."""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..grid import draw_cells

# Okabe and Ito's vermilion, which is in no colour of the map beside it, and is told
# from them by colour-blind readers.
DIVERGED = "#D55E00"
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
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(7.6, 5.6), layout="constrained")
    ax = figure.subplots()
    # False for what is infinite too.
    kept = risks <= limit
    handles: list[Any] = []
    mesh = draw_cells(
        ax,
        lrs,
        thresholds,
        np.ma.masked_array(risks, ~kept),
        scales=("log", "log"),
        style={"norm": LogNorm(), "cmap": "viridis"},
    )
    if kept.any():
        label = "median final excess risk (label unit squared)"
        figure.colorbar(mesh, ax=ax, label=label)
        i, j = np.unravel_index(np.argmin(np.where(kept, risks, np.inf)), risks.shape)
        best = f"best: {risks[i, j]:.3g}"
        handles += ax.plot(lrs[i], thresholds[j], label=best, **_STAR)
    if not kept.all():
        handles.append(Patch(facecolor=DIVERGED, label=f"diverged: above {limit:.3g}"))
    # What the mesh leaves out shows the colour behind it.
    ax.set_facecolor(DIVERGED)
    ax.set(
        title=title,
        xlabel="learning rate per step (units of 1 / trace of the covariance)",
        ylabel="clipping threshold (units of the feature norm)",
    )
    ax.legend(handles=handles, loc="upper left", facecolor="0.85", framealpha=0.95)
    return figure
