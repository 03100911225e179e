"""What is looked at of a schedule, and how."""

import equinox as eqx
from jaxtyping import Array

from .._types import RealScalar


class Lookout(eqx.Module):
    """How far schedules have been looked at.

    **Fields:**

    - `seen`: up to where, the start of a cell.
    - `stop`: the first stop, or infinity: there is none before `seen`.
    - `trends`: the direction that each schedule had there.
    """

    seen: RealScalar
    stop: RealScalar
    trends: tuple[Array, ...]
