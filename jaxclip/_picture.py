"""What all pictures share: matplotlib, which is an extra; the axes; the colours."""

from typing import Any

import numpy as np

from ._checks import as_float, known

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


def legend(ax: Any, *others: Any, loc: str = "best") -> None:
    """One legend of the lines of `ax` and of the axes that lie upon it, on the topmost
    of them, where no line hides it."""
    pairs = [each.get_legend_handles_labels() for each in (ax, *others)]
    handles = {
        label: handle for found in pairs for handle, label in zip(*found, strict=True)
    }
    top = (ax, *others)[-1]
    top.legend(
        handles.values(), handles.keys(), fontsize="small", framealpha=0.8, loc=loc
    )


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


def vector(name: str, values: Any, *, finite: bool = True) -> np.ndarray:
    """`values` as a vector of float64s that are not negative.

    **Arguments:**

    - `name`: what an error calls them.
    - `finite`: whether what is not finite is refused; else it stays, and is a gap.
    """
    known(**{name: values})
    found = np.asarray(as_float(name, values), np.float64)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(
            f"`{name}` must be a vector of numbers, such as `jnp.linspace(0, 100, 50)`."
            f" Got shape {found.shape}."
        )
    if np.any(found < 0) or (finite and not np.all(np.isfinite(found))):
        wanted = "finite and not negative" if finite else "not negative"
        raise ValueError(f"`{name}` must be {wanted}. Got {np.array2string(found)}.")
    return found


def named(label: str | None, what: str) -> str:
    """The name of a line in a legend."""
    return what if label is None else f"{label}: {what}"


# Schedules: numbers against the step


def draw_level(ax: Any, value: float, at: np.ndarray | None, label: str | None) -> Any:
    """The picture of a constant, across all of the axes where `at` is None."""
    ax = axes_for(ax)
    if not np.isfinite(value):
        ax.text(0.5, 0.95, f"{value:g} at every step", transform=ax.transAxes,
                ha="center", va="top")  # fmt: skip
    elif at is None:
        # Of the next colour, which `axhline` would not take.
        color = ax.plot([], [])[0].get_color()
        ax.axhline(value, color=color, label=label)
    else:
        ax.plot(at, np.full_like(at, value), label=label)
    return _over_steps(ax, label, logarithmic=value > 0)


def draw_knots(ax: Any, curve: Any, knots: Any, label: str | None) -> Any:
    """The picture of a curve through some knots, each a pair of steps and values."""
    ax = axes_for(ax)
    (line,) = ax.plot(*map(np.asarray, curve), label=label)
    at, values = knots
    inside = (at >= curve[0].min()) & (at <= curve[0].max())
    ax.plot(at[inside], values[inside], "o", color=line.get_color())
    return _over_steps(ax, label, logarithmic=True)


def around_knots(knots: np.ndarray) -> np.ndarray:
    """Steps from 0, or from the first knot where it is negative, to a little beyond the
    last: there it is seen that nothing changes any more."""
    first, last = min(0.0, knots[0]), knots[-1]
    beyond = last + 0.05 * (last - first) if last > first else first + 1.0
    return np.union1d(np.linspace(first, beyond, 201), knots)


def _over_steps(ax: Any, label: str | None, *, logarithmic: bool) -> Any:
    ax.set(xlabel="SGD step", ylabel="value (in the unit of what is scheduled)")
    if logarithmic:
        ax.set(yscale="log")
    if label is not None:
        legend(ax)
    return ax
