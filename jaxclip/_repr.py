"""How rules, schedules and results are shown: with their numbers."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

# Of a vector that is longer, both ends are shown.
_LONGEST = 6


class Shown(eqx.Module):
    """A module whose `repr` has its numbers in it, as in `HardClip(threshold=1.5)`."""

    def __repr__(self) -> str:
        shown = (field for field in dataclasses.fields(self) if field.repr)
        pairs = ((field.name, getattr(self, field.name, None)) for field in shown)
        inside = ", ".join(f"{name}={show(value)}" for name, value in pairs)
        return f"{type(self).__name__}({inside})"

    def shown_within(self) -> str:
        """As it is shown inside of another."""
        return repr(self)


def show(value: Any) -> str:
    """A value as it is shown: a number, the ends of a vector, the shape of a larger
    array; a function by its name."""
    if isinstance(value, Shown):
        return value.shown_within()
    if isinstance(value, np.ndarray | jax.Array):
        return _array(value)
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        inside = ", ".join(show(item) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if callable(value) and not isinstance(value, eqx.Module):
        return getattr(value, "__name__", repr(value))
    return repr(value)


def _array(value: Any) -> str:
    unknown = isinstance(value, jax.core.Tracer)
    if unknown or value.ndim > 1 or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return eqx.tree_pformat(value)
    elsewhere = isinstance(value, jax.Array) and not value.is_fully_addressable
    # Of an array that was donated nothing is left but its type.
    if elsewhere or (isinstance(value, jax.Array) and value.is_deleted()):
        return eqx.tree_pformat(value)
    values = np.asarray(value)
    if values.ndim == 0:
        return _number(values)
    if values.size <= _LONGEST:
        return "[" + ", ".join(map(_number, values)) + "]"
    ends = f"{_number(values[0])}, {_number(values[1])}, ..., {_number(values[-1])}"
    return f"[{ends}] ({values.size})"


def _number(value: Any) -> str:
    if np.issubdtype(value.dtype, np.bool_) or np.issubdtype(value.dtype, np.integer):
        return str(value)
    if np.issubdtype(value.dtype, np.complexfloating):
        return f"{complex(value):.6g}"
    return f"{float(value):.6g}"
