"""The axes of a sweep: what came, checked, and held as arrays of the host."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

# A coordinate of the table: its dimensions, its values and what it is.
Coordinate = tuple[tuple[str, ...], np.ndarray, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: a pytree whose leaves share a leading axis, one entry a point.

    - `leaves`: its arrays, in the precision of JAX; of random keys, their data.
    - `impls`: how each leaf's keys are made, None for numbers.
    - `paths`: each leaf's place in the pytree, "" for an axis that is one array.
    """

    name: str
    # On the host: chunks are cut out of them, written to a store and sent to other
    # processes, none of which needs a device.
    leaves: tuple[np.ndarray, ...]
    impls: tuple[str | None, ...]
    paths: tuple[str, ...]
    tree: Any

    @property
    def length(self) -> int:
        """How many points the axis has."""
        return len(self.leaves[0])

    @property
    def is_key(self) -> bool:
        """Whether the axis holds random keys, so that its data are made once for all
        settings."""
        return any(self.impls)

    def take(self, index: Any) -> tuple[np.ndarray, ...]:
        """The leaves of one entry, or of several."""
        return tuple(np.asarray(leaf[index]) for leaf in self.leaves)

    def point(self, leaves: tuple[Any, ...]) -> Any:
        """One entry as `fn` is given it, from its leaves."""
        # Here and not before, since numpy has no type for keys: they travel as data.
        pairs = zip(leaves, self.impls, strict=True)
        return self.tree.unflatten(
            leaf if impl is None else jr.wrap_key_data(leaf, impl=impl)
            for leaf, impl in pairs
        )

    def describe(self, index: int) -> str:
        """One entry in words, for an error: its value, or its index and numbers."""
        if self.paths == ("",) and self.impls == (None,):
            return f"{self.name}={_short(self.leaves[0][index])}"
        parts = zip(self.paths, self.leaves, self.impls, strict=True)
        shown = [
            f"{path + ' = ' if path else ''}"
            f"{'' if impl is None else 'key data '}{_short(leaf[index])}"
            for path, leaf, impl in parts
        ]
        return f"{self.name}[{index}] ({', '.join(shown)})"

    def coordinates(self) -> dict[str, Coordinate]:
        """What labels the axis: its values where they are numbers; otherwise an index,
        and beside it the data of its keys and those of its leaves that are numbers."""
        # Only such values can be looked up by `table.sel(lr=0.1)`.
        if self.paths == ("",) and self.impls == (None,) and self.leaves[0].ndim == 1:
            return {self.name: ((self.name,), self.leaves[0], {})}
        index = np.arange(self.length)
        labels: dict[str, Coordinate] = {
            self.name: ((self.name,), index, {"long_name": f"index of {self.name}"})
        }
        for path, leaf, impl in zip(self.paths, self.leaves, self.impls, strict=True):
            name = f"{self.name}.{path}" if path else self.name
            # With the data a point can be run again from the table alone.
            if impl is not None:
                words = [f"{name}_word_{i}" for i in range(leaf.ndim - 1)]
                about = {"long_name": f"data of {impl} keys"}
                labels[f"{name}_data"] = ((self.name, *words), leaf, about)
            elif leaf.ndim == 1:
                labels[name] = ((self.name,), leaf, {})
        return labels


def read_axes(axes: Any, fn: Callable[..., Any]) -> dict[str, Axis]:
    """The axes by name, in the user's order, each of them checked.

    **Raises:**

    A `ValueError` where they are not what [`jaxclip.sweep`][] asks for.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise ValueError(
            "`axes` must be a dictionary from the names of arguments of `fn` to arrays,"
            f" with at least one of them. Got {axes!r}."
        )
    for name in axes:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"`axes` must be named as arguments of `fn` are. Got the name {name!r}."
            )
    _check_arguments(fn, tuple(axes))
    return {name: _read_axis(name, value) for name, value in axes.items()}


def _check_arguments(fn: Callable[..., Any], names: tuple[str, ...]) -> None:
    if not callable(fn):
        raise ValueError(f"`fn` must be a function of the axes. Got {fn!r}.")
    try:
        signature = inspect.signature(fn)
    except ValueError:
        # Some callables have no signature to ask; a wrong name fails when it is traced.
        return
    try:
        # Names are what is matched, whatever the values; the function is not called.
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        raise ValueError(
            "`fn` is called with the axes as keyword arguments, so `axes` must name "
            f"exactly what it takes: {error}. Its signature is {signature}, the axes "
            f"are {', '.join(names)}; close over what does not vary."
        ) from error


def _read_axis(name: str, value: Any) -> Axis:
    found, tree = jax.tree_util.tree_flatten_with_path(value)
    # `None` or an empty list: how many points it has is not known.
    if not found:
        raise ValueError(f"The axis `{name}` holds no array. Got {value!r}.")
    paths = tuple(
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found
    )
    read = [
        _read_leaf(f"{name}.{path}" if path else name, leaf)
        for path, (_, leaf) in zip(paths, found, strict=True)
    ]
    leaves, impls = zip(*read, strict=True)
    lengths = {
        path or name: len(leaf) for path, leaf in zip(paths, leaves, strict=True)
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The leaves of the axis `{name}` must have the same length along their "
            f"first axis. Got {lengths}."
        )
    if not leaves[0].shape[0]:
        raise ValueError(f"The axis `{name}` is empty: it must have a point or more.")
    return Axis(name, leaves, impls, paths, tree)


def _read_leaf(name: str, leaf: Any) -> tuple[np.ndarray, str | None]:
    """A leaf as an array of the host, and how its keys are made if it holds keys."""
    impl = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impl = str(jr.key_impl(leaf))
        if "rbg" in impl:
            raise ValueError(
                f"The axis `{name}` has {impl!r} keys. Under `vmap` such keys all draw "
                "from the first of them, so that no point could be reproduced alone; "
                "use `jax.random.key(seed, impl='threefry2x32')`."
            )
        leaf = jr.key_data(leaf)
        # One axis is the words of each key.
        if leaf.ndim == 1:
            raise ValueError(
                f"The axis `{name}` is one key; an axis is several along a first axis: "
                "`jax.random.split(key, n)`."
            )
    array = _in_precision(name, leaf)
    if array.ndim == 0:
        raise ValueError(
            f"The axis `{name}` is one number; an axis is an array with a leading axis."
            f" Got {leaf!r}; for a list of numbers write `jnp.array([...])`."
        )
    return array, impl


def _in_precision(name: str, leaf: Any) -> np.ndarray:
    """A leaf in JAX's precision, which is what `fn` would be given for one point.

    **Raises:**

    A `ValueError` where it holds no numbers, or one that this precision has not: JAX
    would wrap an integer around, and make an infinity or a zero of a float.
    """
    try:
        given = np.asarray(leaf)
        # What overflows is refused below, with its value.
        with np.errstate(over="ignore"):
            array = np.asarray(jnp.asarray(leaf))
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"The axis `{name}` must be an array of numbers, each of them within the "
            f"range of its type. Got {_short(leaf)}."
        ) from error
    # Else a point would be run at another number than was asked for.
    lost = _lost(given, array)
    if lost.any():
        raise ValueError(
            f"The axis `{name}` holds {_short(given[lost][0])}, which {array.dtype} "
            f"cannot hold: it would become {_short(array[lost][0])}. Set "
            "`jax_enable_x64`, or take other values."
        )
    return array


def _lost(given: np.ndarray, array: np.ndarray) -> Any:
    """Where the numbers of an array are others than those given, beyond rounding."""
    # An integer that has wrapped around is another number; a float that is rounded is
    # not, as long as it has not become infinite or zero.
    if np.issubdtype(array.dtype, np.integer) or array.dtype == bool:
        return given != array
    if np.issubdtype(array.dtype, np.inexact):
        # Of real and imaginary parts alike: only their ends count.
        return (np.isfinite(given) & ~np.isfinite(array)) | (
            (given != 0) & (array == 0)
        )
    return np.zeros(array.shape, bool)


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."
