"""A linear model in a few modes."""

import equinox as eqx
from jaxtyping import Array, Float

from ...noise import AbstractNoise
from ._modes import Modes


class CompressedLinearModel(eqx.Module):
    """What the risk ODE needs of a [`jaxclip.LinearModel`][], in a few modes.

    Made by its `compress`. [`jaxclip.solve`][] takes it in place of the problem.

    **Fields:**

    - `modes`: twice as many [`jaxclip.problem.Modes`][] as the nodes asked for.
    - `noise`: the label noise.
    - `error`: the error of the compression; see `compress`.
    """

    modes: Modes
    noise: AbstractNoise
    error: Float[Array, ""]
