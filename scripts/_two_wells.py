"""The wells of the scripts on large steps, and descents on them.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxclip as jc

# Before the wells are made: they keep the precision of that moment.
jax.config.update("jax_enable_x64", True)

WELLS = jc.TwoWells(jnp.zeros(1))
# The spurious minimum is nearly as low as the other, and its basin is wide.
NEAR_TIE = jc.TwoWells(jnp.zeros(1), height=0.05)
STEPS = 1500


def midpoints(number: int) -> np.ndarray:
    """Starts that cover [-5, 5]."""
    return -5 + 10 * (np.arange(number)[:, None] + 0.5) / number


def inside(wells: jc.TwoWells, number: int) -> np.ndarray:
    """Starts that cover the ball around the spurious minimum, on the line."""
    centre, radius = float(wells.basin_centre[0]), float(wells.basin_radius)
    return centre + radius * (2 * (np.arange(number)[:, None] + 0.5) / number - 1)


def share(ends: Any, which: int) -> float:
    return float(np.mean(np.asarray(ends) == which))


@jax.jit
def descend(wells: jc.TwoWells, lr: Any, threshold: Any, starts: Any) -> Any:
    clip = jc.HardClip(threshold)
    return jc.basins(wells, clip, lr, starts, wells.minima, steps=STEPS)
