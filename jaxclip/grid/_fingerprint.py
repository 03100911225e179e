"""What makes two sweeps the same, so that one may resume the other."""

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._types import Device
from ._axes import Axis

# Where Python objects are printed, their place in memory changes from run to run; and
# JAX prints programs in colour in a terminal or a notebook, and without it elsewhere.
_PASSING = re.compile(r" at 0x[0-9a-f]+|\x1b\[[0-9;]*m")


def fingerprint(
    jaxpr: Any, axes: Sequence[Axis], devices: Sequence[Device]
) -> dict[str, Any]:
    """What decides the numbers of a sweep, entry by entry, as hashes and names.

    **Arguments:**

    - `jaxpr`: the closed jaxpr of the function at one point.
    - `axes`: in the user's order.
    """
    config: Any = jax.config
    return {
        "function": _digest(_text(jaxpr)),
        "fixed arguments": _digest(*_constants(jaxpr)),
        "axes": {axis.name: _axis(axis) for axis in axes},
        "precision": [
            bool(config.jax_enable_x64),
            str(config.jax_default_matmul_precision),
        ],
        "platform": devices[0].platform,
        "jaxclip": version("jaxclip"),
        "jax": jax.__version__,
    }


def digest(jaxpr: Any) -> str:
    """What a closed jaxpr computes, its constants included, as one hash."""
    config: Any = jax.config
    precision = f"{config.jax_enable_x64}{config.jax_default_matmul_precision}"
    return _digest(precision.encode(), _text(jaxpr), *_constants(jaxpr))


def differences(mine: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """The names of the entries that differ, with both values where they are short."""
    shown = {"precision", "platform", "jaxclip", "jax"}
    return [
        f"{name} ({stored.get(name)} in the store, {mine[name]} now)"
        if name in shown
        else name
        for name in mine
        if mine[name] != stored.get(name)
    ]


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _axis(axis: Axis) -> str:
    about = map(_text, (axis.tree, axis.paths, axis.impls))
    return _digest(*about, *map(_bytes, axis.leaves))


def _text(value: Any) -> bytes:
    return _PASSING.sub("", str(value)).encode()


def _constants(closed: Any):
    """Every array that a closed jaxpr closes over, as bytes, in the order of use.

    They are not in its text, and JAX keeps them where they are used: beside the jaxprs
    of nested calls, and as literals.
    """
    yield from map(_bytes, closed.consts)
    yield from _inner(closed.jaxpr)


def _inner(jaxpr: Any):
    for equation in jaxpr.eqns:
        for operand in equation.invars:
            if hasattr(operand, "val"):
                yield _bytes(operand.val)
        for parameter in equation.params.values():
            yield from _of_parameter(parameter)
    for result in jaxpr.outvars:
        if hasattr(result, "val"):
            yield _bytes(result.val)


def _of_parameter(parameter: Any):
    if isinstance(parameter, tuple | list):
        for entry in parameter:
            yield from _of_parameter(entry)
    elif hasattr(parameter, "consts"):
        yield from _constants(parameter)
    elif hasattr(parameter, "eqns"):
        yield from _inner(parameter)
    elif isinstance(parameter, np.ndarray | jax.Array):
        yield _bytes(parameter)


def _bytes(array: Any) -> bytes:
    if isinstance(array, jax.Array) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        array = jr.key_data(array)
    array = np.asarray(array)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()
