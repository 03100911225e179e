"""Optax optimisers as pytrees, so that new numbers do not compile a program again.

An optax optimiser is a pair of functions whose numbers are hidden in closures: to
`jax.jit` each new one is another program. Here the closures that optax and this package
make are taken apart into the code, which is structure, and what it closes over, whose
numbers are leaves. A function that is written elsewhere is left whole, and is told by
its identity: it may use global names, whose values change without a trace.
"""

from collections.abc import Callable
from types import CellType, CodeType, FunctionType
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._static import ByIdentity, hashable

T = TypeVar("T")
# The packages whose closures are taken apart: their global names never change.
_KNOWN = {"optax", __name__.split(".")[0]}
# Raised where a program asks for the value of a number that it does not know yet.
_NEEDS_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def with_optimiser(
    run: Callable[..., T], optimiser: optax.GradientTransformation, *args: Any
) -> T:
    """`run(optimiser, *args)` for a jitted `run`, with the optimiser as a pytree.

    Its Python floats are numbers like all others, unless the optimiser decides
    something by one (`if decay > 0`): it is then compiled for their values.
    """
    return adopt(run, optimiser, *args)[1]


def adopt(
    run: Callable[..., T], optimiser: optax.GradientTransformation, *args: Any
) -> "tuple[Optimiser, T]":
    """The pytree that `with_optimiser` hands to `run`, too, for more calls of it."""
    tree = as_pytree(optimiser)
    try:
        numbers = jax.tree.map(_as_number, tree)
        return numbers, run(numbers, *args)
    except _NEEDS_VALUE:
        return tree, run(tree, *args)


class Optimiser(eqx.Module):
    """An optimiser as a pytree: `init` and `update` are those of the one it is of."""

    init: Any
    update: Any


def as_pytree(optimiser: optax.GradientTransformation) -> Optimiser:
    """The optimiser with its closures taken apart."""
    # By name, and not as a pytree: a subclass may be made of more than two functions.
    return Optimiser(_apart(optimiser.init), _apart(optimiser.update))


class _Code(eqx.Module):
    """A function without what it closes over; two of one definition are equal."""

    code: CodeType = eqx.field(static=True)
    names: ByIdentity[dict[str, Any]] = eqx.field(static=True)
    name: str = eqx.field(static=True)


class _Closure(eqx.Module):
    """A function as a pytree of what it closes over and of its default arguments."""

    code: _Code
    contents: tuple[Any, ...]
    defaults: tuple[Any, ...] | None
    named_defaults: dict[str, Any] | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cells = tuple(CellType(_together(content)) for content in self.contents)
        about, names = self.code, self.code.names.value
        defaults = _together(self.defaults)
        function = FunctionType(about.code, names, about.name, defaults, cells)
        function.__kwdefaults__ = _together(self.named_defaults)
        return function(*args, **kwargs)


def _apart(tree: Any, outside: frozenset[int] = frozenset()) -> Any:
    """A pytree with the functions among its leaves taken apart.

    **Arguments:**

    - `outside`: the functions that it is in the closure of, by identity: one that is in
        its own closure is left whole.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, FunctionType) and id(value) not in outside:
            return _closure(value, outside | {id(value)})
        return value if eqx.is_array(value) else hashable(value)

    return jax.tree.map(leaf, tree)


def _closure(function: FunctionType, outside: frozenset[int]) -> Any:
    known = (function.__module__ or "").split(".")[0] in _KNOWN
    # What is no local function is made once, and equal to itself.
    if not known or "<locals>" not in function.__qualname__:
        return function
    try:
        contents = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        # A name that has no value yet.
        return function
    code = _Code(function.__code__, ByIdentity(function.__globals__), function.__name__)
    kept = (tuple(contents), function.__defaults__, function.__kwdefaults__)
    return _Closure(code, *(_apart(part, outside) for part in kept))


def _together(tree: Any) -> Any:
    """What was taken apart, as the code that it is handed to knows it."""

    def leaf(value: Any) -> Any:
        return value.value if isinstance(value, ByIdentity) else value

    return jax.tree.map(leaf, tree, is_leaf=lambda value: isinstance(value, _Closure))


def _as_number(leaf: Any) -> Any:
    # A weak type, as a Python number has: no precision is widened by it.
    is_number = isinstance(leaf, float) and not isinstance(leaf, np.generic)
    return jnp.asarray(leaf) if is_number else leaf
