"""Shapes and units, once: the aliases that the public signatures are written with."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, Real

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    _Leaf = TypeVar("_Leaf", default=Any)
    # To a type checker a pytree is anything; jaxtyping's own is of an unknown type.
    PyTree: TypeAlias = Any | _Leaf
else:
    from jaxtyping import PyTree

# A dimensionless real number; traced or not, a Python number included.
RealScalar: TypeAlias = Real[Array, ""]
RealScalarLike: TypeAlias = (
    Real[Array, ""] | Real[np.ndarray, ""] | np.floating | np.integer | int | float
)
# The clock of the whole library: the index of an SGD step. Fractional steps are
# points of the limits, which live in continuous time.
Step: TypeAlias = RealScalarLike
# A function of the step; every optax schedule is one.
Schedule: TypeAlias = Callable[[Any], Any]
# The parameters that SGD moves.
Params: TypeAlias = PyTree[Array]
# What one key and one absolute sample index determine: one training example.
Example: TypeAlias = PyTree[Array]
Key: TypeAlias = PRNGKeyArray
# A `jax.Device`, which JAX defines at run time, so that it is no type to a checker.
Device: TypeAlias = Any
__all__ = [
    "Array",
    "ArrayLike",
    "Device",
    "Example",
    "Float",
    "Int",
    "Key",
    "Params",
    "PyTree",
    "Real",
    "RealScalar",
    "RealScalarLike",
    "Schedule",
    "Step",
]
