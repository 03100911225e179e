"""From a table that nobody prepared to numbers that SGD can run on."""

from typing import Any, TypeAlias

import numpy as np

from ._columns import as_text
from ._encode import CONSTANT, Encoder, Features
from ._leaks import Source, find_leaks
from ._number_text import read_numbers
from ._table import Notes, Table
from ._target import find_target, read_target

# pandas is an extra and not imported here; its own annotations are too loose to help.
DataFrame: TypeAlias = Any
_FILLED = "filled missing values with the median of {columns}"
_EXTRA = (
    "A table that is not of numbers alone needs an extra: `pip install 'jaxclip[cli]'`."
)
# Rows that tell which decimal mark a table is written with.
_SAMPLE = 1000


def prepare(data: Any, target: Any = None) -> Table:
    """Turns a table into numbers, and notes what it did.

    Numbers in arrays are taken as they are. Of a frame, rows without a target are left
    out. Text that holds numbers is read (`$16,884.92`, `1.234,56`, `12 kg`, `(3.5)`);
    marks such as `?` or `n/a`, infinities and empty cells are missing, and missing
    numbers become the median of their column. Dates become the days since the first
    one, month, weekday and hour. Words become an indicator of each but the most
    frequent. Columns of a single value, identifiers and free text are left out. A
    target of two words becomes 0 and 1.

    **Arguments:**

    - `data`: a pandas, polars or Arrow frame, or an array of shape `(n, d)`.
    - `target`: the name of the column to predict, by default that of the last one; or
        what to predict, shape `(n,)`.

    **Returns:**

    The table. Names of the features of an array are x0, x1 ...

    **Raises:**

    A `ValueError` where there is nothing to predict, or nothing to predict it from;
    where the target has a cell that cannot be read, with its row; or where columns
    explain the target without an error. An `ImportError` where a frame needs a package
    that is not there.
    """
    if not _is_frame(data) and target is not None and not isinstance(target, str):
        X, y = np.asarray(data), np.asarray(target)
        if all(values.dtype.kind in "biuf" for values in (X, y)):
            return _of_arrays(X, y)
    try:
        import pandas  # noqa: F401
        import skrub  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{_EXTRA} ({error})", name=error.name) from error
    return _of_frame(data, target)


def _is_frame(data: Any) -> bool:
    """Whether data are a frame of columns, by the protocol that frames share."""
    return hasattr(data, "__arrow_c_stream__")


def _of_arrays(X: np.ndarray, y: np.ndarray) -> Table:
    X, y = np.asarray(X, float), np.asarray(y, float)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(
            "`X` must be a matrix of rows and `y` a vector with a number for each row. "
            f"Got shapes {X.shape} and {y.shape}."
        )
    for name, values in (("X", X), ("y", y)):
        bad = values.size - np.count_nonzero(np.isfinite(values))
        if bad:
            raise ValueError(
                f"`{name}` must be finite; {bad} of its numbers are NaN or infinite. "
                "Fill them in or leave their rows out."
            )
    columns = tuple(f"x{j}" for j in range(X.shape[1]))
    sources = [Source(name, j, j + 1) for j, name in enumerate(columns)]
    return Table(X, y, columns, "y", tuple(find_leaks(X, y, sources, "y")))


def _of_frame(data: Any, target: Any) -> Table:
    notes = Notes()
    frame = _as_pandas(data, notes)
    frame, column, target = _split(frame, target, notes)
    y, classes = read_target(column, target, notes)
    kept = ~np.isnan(y)
    if not kept.all():
        gone = int((~kept).sum())
        notes.say(f"left out {gone:,} row{'s' * (gone > 1)} without a target")
        frame, y = frame.loc[kept], y[kept]
    if len(y) < 2:
        raise ValueError(f"The target {target!r} has {len(y)} rows with a value.")
    if not _varies(y):
        raise ValueError(f"The target {target!r} is constant ({y[0]:g}).")
    encoder = Encoder(notes, _decimal(frame))
    features: Features = {}
    sources = []
    for name in frame.columns:
        new = _filled(encoder.encode(frame[name], name), name, notes)
        if new:
            sources.append(Source(name, len(features), len(features) + len(new)))
        # Of names such as "a=b" two may be alike.
        features |= {_unlike(key, features): values for key, values in new.items()}
    if not features:
        said = "; ".join(notes.sentences())
        raise ValueError(f"No column is left to predict {target!r} from: {said}.")
    X = np.column_stack(list(features.values()))
    for sentence in find_leaks(X, y, sources, target):
        notes.say(sentence)
    return Table(X, y, tuple(features), target, notes.sentences(), classes)


def _as_pandas(data: Any, notes: Notes) -> DataFrame:
    """A pandas frame whose columns have names, no two alike."""
    import pandas as pd

    if not isinstance(data, pd.DataFrame):
        data = _converted(data)
    for sentence in data.attrs.get("jaxclip_notes", ()):
        notes.say(sentence)
    names: dict[str, None] = {}
    for name in data.columns:
        new = _unlike(str(name), names)
        if new != str(name):
            notes.of_column("renamed {columns} of a name that another has", new)
        names[new] = None
    return data.set_axis(list(names), axis=1)


def _converted(data: Any) -> DataFrame:
    """Columns of another library, or a matrix, as a pandas frame."""
    import pandas as pd

    if hasattr(data, "__arrow_c_stream__"):
        import pyarrow as pa

        try:
            return pa.table(data).to_pandas()
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise ValueError(_no_table(data)) from error
    matrix = np.asarray(data)
    if matrix.ndim != 2:
        raise ValueError(_no_table(data))
    return pd.DataFrame(matrix, columns=[f"x{j}" for j in range(matrix.shape[1])])


def _no_table(data: Any) -> str:
    return (
        "`X` must be a table: a frame of pandas or polars, or an array of shape (n, d)."
        f" Got {type(data).__name__} of shape {getattr(data, 'shape', ())}."
    )


def _unlike(name: str, names: Any) -> str:
    """The name, with a number added where it is taken."""
    number, new = 0, name
    while new in names:
        number += 1
        new = f"{name}_{number}"
    return new


def _split(frame: DataFrame, target: Any, notes: Notes) -> tuple[DataFrame, Any, str]:
    """The columns to predict from, what to predict, and its name."""
    import pandas as pd

    if frame.shape[1] == 0:
        raise ValueError("The table has no columns.")
    if target is None:
        target = str(frame.columns[-1])
        notes.say(f"took the last column, {target!r}, as the target")
    if np.ndim(target) == 0:
        name = find_target(list(frame.columns), str(target))
        return frame.drop(columns=name), frame[name], name
    name = getattr(target, "name", None)
    values = target.to_list() if hasattr(target, "to_list") else np.asarray(target)
    if np.ndim(values) != 1 or len(values) != len(frame):
        raise ValueError(
            f"The target must have a value for each of the {len(frame)} rows. "
            f"Got shape {np.shape(values)}."
        )
    name = "y" if name in (None, "") else str(name)
    return frame, pd.Series(values, index=frame.index), name


def _decimal(frame: DataFrame) -> str:
    """The decimal mark of a table: a comma where a column cannot do without it, and
    none can do without a point."""
    marks = set()
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "biufcmM":
            text = as_text(column.head(_SAMPLE))
            numbers = None if text is None else read_numbers(text)
            if numbers is not None and numbers.wrong.mean() <= 0.5:
                marks.add(numbers.decimal)
    return "," if "," in marks and "." not in marks else "."


def _filled(features: Features, name: str, notes: Notes) -> Features:
    """Columns of numbers, their gaps filled with the median, without constants."""
    from sklearn.impute import SimpleImputer

    kept: Features = {}
    gaps = 0
    for key, values in features.items():
        missing = ~np.isfinite(values)
        if missing.any():
            if missing.all():
                notes.of_column("dropped {columns} without a finite value", name)
                return {}
            gaps = max(gaps, int(missing.sum()))
            values = np.where(missing, np.nan, values)
            imputer = SimpleImputer(strategy="median")
            values = imputer.fit_transform(values[:, None])[:, 0]
        if _varies(values):
            kept[key] = values
    if gaps:
        notes.of_column(_FILLED, f"{name} ({gaps:,})")
    if not kept and features:
        notes.of_column(CONSTANT, name)
    return kept


def _varies(values: np.ndarray) -> bool:
    """Whether numbers differ by more than their rounding errors."""
    least, most = values.min(), values.max()
    if least == most:
        return False
    return float(np.std(values / max(abs(least), abs(most)))) > 1e-12
