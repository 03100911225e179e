"""What all pictures share: matplotlib, which is an extra; the axes; the colours."""

from typing import Any

import jax
import numpy as np

from ._checks import known

# Of Okabe and Ito's colours those that colour-blind readers tell apart and that stand
# out from white, and the one of them that says that there is no number.
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#000000")
NOT_FINITE = "#D55E00"
# What is drawn for comparison lies pale behind.
BESIDE: dict[str, Any] = dict(color="0.45", lw=1.2, zorder=1)


def need_matplotlib() -> Any:
    """matplotlib's `pyplot`; an error that names the extra where there is none."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which comes with an extra: "
            f"`pip install 'jaxclip[cli]'`. ({error})"
        ) from error
    return plt


def axes_for(ax: Any) -> Any:
    """`ax`, or the axes of a new figure where it is None.

    Asked for after all that can be refused: a call that fails leaves no figure behind.
    """
    plt = need_matplotlib()
    if ax is not None:
        return ax
    _, ax = plt.subplots(layout="constrained")
    ax.set_prop_cycle(color=COLORS)
    return ax


def right_axis(ax: Any, label: str) -> Any:
    """Axes in the place of `ax` with a vertical scale of their own to the right: those
    that an earlier picture made, or new ones."""
    place = ax.get_position().bounds
    for other in ax.get_shared_x_axes().get_siblings(ax):
        same = other.get_ylabel() == label and other.get_position().bounds == place
        if other is not ax and same:
            return other
    right = ax.twinx()
    right.set(ylabel=label)
    return right


def legend(ax: Any, *others: Any) -> None:
    """One legend of the lines of `ax` and of the axes that lie upon it, on the topmost
    of them, where no line hides it."""
    pairs = [each.get_legend_handles_labels() for each in (ax, *others)]
    handles = {
        label: handle for found in pairs for handle, label in zip(*found, strict=True)
    }
    top = (ax, *others)[-1]
    top.legend(handles.values(), handles.keys(), fontsize="small", framealpha=0.9)


def need_one(name: str, value: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuses to draw what is traced, or stands for several.

    **Arguments:**

    - `name`: what is drawn, such as `"rule"`.
    - `value`: the module that is drawn.
    - `shapes`: of numbers of it that would be single ones, by what they are called.
    """
    known(**{name: value})
    for what, shape in shapes.items():
        if shape != ():
            raise ValueError(
                f"`plot` draws one {name}. Got a batch: {what} has the shape {shape}. "
                f"Take one of them, as in `jax.tree.map(lambda x: x[0], {name})`."
            )


def numbers(name: str, values: Any) -> np.ndarray:
    """`values` as a vector of finite float64s that are not negative: where to draw."""
    known(**{name: values})
    try:
        found = np.asarray(jax.device_get(values), np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be numbers. Got {values!r}.") from error
    if found.ndim != 1 or found.size == 0:
        raise ValueError(
            f"`{name}` must be a vector of numbers, such as `jnp.linspace(0, 100, 50)`."
            f" Got shape {found.shape}."
        )
    if not np.all((found >= 0) & (found < np.inf)):
        raise ValueError(f"`{name}` must be finite and not negative. Got {values!r}.")
    return found


def named(label: str | None, what: str) -> str:
    """The name of a line in a legend."""
    return what if label is None else f"{label}: {what}"
