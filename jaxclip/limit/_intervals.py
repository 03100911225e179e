"""The intervals of a scheme with fixed steps, and the steps of SGD inside of them."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._schedule import Constant
from .._types import RealScalar
from ._reading import is_schedule


def varies(settings: Any) -> bool:
    """Whether a rule or a rate may depend on the step."""
    nodes = jax.tree.leaves(settings, is_leaf=is_schedule)
    return any(is_schedule(node) and not isinstance(node, Constant) for node in nodes)


def grid(
    steps: np.ndarray, dt: float, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Times that include the steps and are at most `dt` apart, and where the steps are
    among them. With `whole`, every step of SGD is among the times, if `dt` is no longer
    than one."""
    edges = np.unique(np.concatenate([[0.0], steps]))
    if whole and dt <= 1:
        edges = np.union1d(edges, np.arange(np.ceil(edges[-1])))
    pieces = [np.zeros(1)]
    for start, end in itertools.pairwise(edges):
        pieces.append(np.linspace(start, end, math.ceil((end - start) / dt) + 1)[1:])
    times = np.concatenate(pieces)
    return times, np.searchsorted(times, steps)


def steps_inside(
    start: RealScalar, length: RealScalar, dt: float
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """The steps that SGD makes in an interval, and how much of each is in it: a step
    is a unit of time, in which SGD uses the schedules' values at its start."""
    # Of a grid with all whole steps each interval is inside of one.
    count = 1 if dt <= 1 else math.ceil(dt) + 1
    steps = jnp.floor(start) + jnp.arange(count, dtype=start.dtype)
    if count == 1:
        return steps, length[None]
    inside = jnp.minimum(start + length, steps + 1) - jnp.maximum(start, steps)
    return steps, jnp.maximum(inside, 0.0)
