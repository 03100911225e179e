"""Many settings and seeds at once: a labelled table that survives a kill."""

from ._figure import draw_cells as draw_cells
from ._result import Sweep as Sweep
from ._sweep import sweep as sweep
