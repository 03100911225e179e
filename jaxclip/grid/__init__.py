"""Many settings and seeds at once: a labelled table that survives a kill."""

from ._figure import (
    add_color_bar as add_color_bar,
    diverged_patch as diverged_patch,
    draw_cells as draw_cells,
    median_of_runs as median_of_runs,
)
from ._result import Sweep as Sweep
from ._sweep import sweep as sweep
