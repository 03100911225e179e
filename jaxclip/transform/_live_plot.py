"""What a clip does, drawn in a notebook while training runs."""

import io
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from .._checks import count, is_traced, nonnegative
from ._figure import metrics_figure

# Records whose numbers may be on their way from the device at once.
_WAITING = 256


class LivePlot:
    """Draws in a notebook, while training runs, what a clip does to its gradients.

    ```python
    plot = jaxclip.transform.LivePlot(seconds=2.0)
    for batch in batches:
        params, state = train_step(params, state, batch)
        plot.record(jaxclip.clip_metrics(state))
    plot.show()
    ```

    One picture, which is drawn anew in its place, has the norms before clipping and the
    thresholds over the updates; below them it has the fraction that was clipped lately
    and the share of the gradient's length that was removed. It is drawn if this object
    was made in a notebook, below the cell that runs, and needs the extra `cli` there.
    Anywhere else, as in a script, the records are only kept: `figure()` draws them.

    To record does not wait for the device. The numbers are copied there, so that the
    state may be donated to the next step, and are read when a picture is due, or 256 of
    them are waiting.

    **Arguments:**

    - `seconds`: how long after a picture the next one is drawn at the earliest.
    - `most`: how many records are kept, at least 2. Where there would be more, every
        second one is dropped, and from then on only every second one is taken: the run
        is seen from its start, more and more coarsely.

    **Raises:**

    A `ValueError` where an argument is misused; an `ImportError` in a notebook without
    matplotlib, here and not in the middle of a run.
    """

    def __init__(self, *, seconds: float = 2.0, most: int = 4000):
        self._seconds = float(nonnegative("seconds", seconds))
        self._most = count("most", most, least=2)
        self._names: tuple[str, ...] = ()
        # The numbers of each record; dictionaries of arrays where they were not read.
        self._rows: list[Any] = []
        self._steps: list[float | None] = []
        self._read_rows = self._calls = 0
        self._every = 1
        self._display = _display()
        # A picture of one record shows nothing, so that the first one waits too.
        self._drawn_at = time.monotonic()

    def record(
        self, metrics: Mapping[str, Any], step: float | int | None = None
    ) -> None:
        """Takes down one row of numbers, and draws a picture if one is due.

        **Arguments:**

        - `metrics`: what [`jaxclip.clip_metrics`][] returns, of one update after
            another; not necessarily of each. Other numbers may be added by name, such
            as a loss: they are kept beside it, but not drawn.
        - `step`: where the record lies along the horizontal axis; by default the number
            of updates that the monitor has counted.

        **Raises:**

        A `ValueError` where the metrics are no dictionary of single numbers, are
        traced, or have other names than those of the first record.
        """
        metrics = self._need_metrics(metrics)
        self._calls += 1
        if (self._calls - 1) % self._every == 0:
            self._rows.append(_copied(metrics))
            self._steps.append(None if step is None else float(step))
            if len(self._rows) - self._read_rows >= _WAITING:
                self._read()
            if len(self._rows) > self._most:
                self._thin_out()
        if time.monotonic() - self._drawn_at >= self._seconds:
            self.show()

    def show(self) -> None:
        """Draws the records now, however short ago the last picture was; nothing where
        there is no notebook, or no record."""
        if self._display is not None and self._rows:
            picture = io.BytesIO()
            self.figure().savefig(picture, format="png", dpi=80)
            self._display(picture.getvalue())
        # From the end of the drawing, so that a slow one leaves time to train.
        self._drawn_at = time.monotonic()

    def figure(self) -> Any:
        """A matplotlib figure of the records. Needs the extra `cli`."""
        steps, columns = self._table()
        return metrics_figure(steps, columns)

    def to_dict(self) -> dict[str, list[float | int | None]]:
        """The records as lists by name, with their `step`, as JSON can hold them: a
        number that is not finite, such as the threshold of a rule that has none, is
        None."""
        steps, columns = self._table()
        return {
            name: [x if np.isfinite(x) else None for x in column.tolist()]
            for name, column in {"step": steps, **columns}.items()
        }

    def to_xarray(self) -> Any:
        """The records as an `xarray.Dataset` over `step`, with `.` in place of `/` in
        the names: `norm.w` for `norm/w`. Needs the extra `cli`."""
        import xarray as xr

        steps, columns = self._table()
        # A slash is a group in the files that xarray writes.
        data = {name.replace("/", "."): ("step", c) for name, c in columns.items()}
        return xr.Dataset(data, coords={"step": steps})

    def __repr__(self) -> str:
        return f"LivePlot({len(self._rows)} records)"

    def _need_metrics(self, metrics: Any) -> dict[str, Any]:
        single = isinstance(metrics, Mapping) and all(
            isinstance(name, str) and np.shape(value) == ()
            for name, value in metrics.items()
        )
        if not single or not metrics:
            raise ValueError(
                "`metrics` must be a dictionary with a single number under each name, "
                f"as `clip_metrics(state)` returns. Got a {type(metrics).__name__}."
            )
        if any(map(is_traced, metrics.values())):
            raise ValueError(
                "`metrics` is traced, and a picture needs numbers: return the metrics, "
                "or the state, from the jitted step, and record them outside of it."
            )
        self._names = self._names or tuple(metrics)
        if set(metrics) != set(self._names):
            raise ValueError(
                "`metrics` must have the same names at each record. Got "
                f"{sorted(set(metrics) ^ set(self._names))} in some and not in others."
            )
        return {name: metrics[name] for name in self._names}

    def _read(self) -> None:
        """Waits for the numbers that are still on the device."""
        for i in range(self._read_rows, len(self._rows)):
            row = self._rows[i]
            self._rows[i] = [np.asarray(row[name]) for name in self._names]
        self._read_rows = len(self._rows)

    def _thin_out(self) -> None:
        self._read()
        self._rows, self._steps = self._rows[::2], self._steps[::2]
        self._read_rows = len(self._rows)
        self._every *= 2

    def _table(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The steps, and a vector for each name."""
        self._read()
        columns = {
            name: np.array([row[i] for row in self._rows])
            for i, name in enumerate(self._names)
        }
        # With several monitors the name begins with a number; each counts all updates.
        counts = (c for name, c in columns.items() if name.endswith("updates"))
        default = next(counts, np.arange(len(self._rows)))
        steps = zip(self._steps, default.tolist(), strict=True)
        return np.array([d if s is None else s for s, d in steps]), columns


@jax.jit
def _copied(metrics: dict[str, ArrayLike]) -> dict[str, Array]:
    """Arrays of their own: those of a state are gone once it is donated."""
    return jax.tree.map(jnp.copy, metrics)


def _display() -> Callable[[bytes], None] | None:
    """A function that shows a PNG, each in place of the one before; None where there is
    no notebook to show it in."""
    # Whoever runs in a notebook has imported IPython; a shell in a terminal has no
    # kernel, and would print a line for each picture.
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    import matplotlib  # noqa: F401  an error before training rather than during it
    from IPython.display import Image, display

    handle: Any = None

    def show(png: bytes) -> None:
        nonlocal handle
        if handle is None:
            handle = display(Image(data=png, format="png"), display_id=True)
        else:
            handle.update(Image(data=png, format="png"))

    return show
