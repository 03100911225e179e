"""From a file that nobody prepared to numbers that SGD can run on."""

import difflib
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

# pandas is an extra and not imported here; its own annotations are too loose to help.
DataFrame: TypeAlias = Any
Series: TypeAlias = Any

# A text column with more distinct values than this is a name, not a category.
_MOST_CATEGORIES = 30


@dataclass(frozen=True)
class Table:
    """Features and target, and what was done to get them.

    - `X`: shape `(n, d)`, finite.
    - `y`: shape `(n,)`, finite.
    - `columns`: the names of the features.
    - `target`: the name of the target.
    - `notes`: a sentence for each thing that was done to the raw table.
    """

    X: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    target: str
    notes: tuple[str, ...] = field(default=())


def read_table(path: str | Path) -> DataFrame:
    """Reads a CSV, Parquet or NPZ file.

    An NPZ file holds arrays of one length: a vector is a column of its name, a matrix
    `X` the columns `X0`, `X1` ...

    **Raises:**

    A `ValueError` that names the file where it is missing, of another kind or no table.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    readers = {
        # By parts, a column may get a type for each of them.
        ".csv": partial(pd.read_csv, low_memory=False),
        ".parquet": pd.read_parquet,
        ".npz": _read_npz,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{str(path)!r} must be a .csv, .parquet or .npz file. "
            f"Got the ending {path.suffix!r}."
        )
    try:
        frame = reader(path)
    # The readers raise a zoo of errors on files of another kind.
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not a table: {error}") from error
    if frame.shape[0] < 2 or frame.shape[1] < 2:
        raise ValueError(
            f"{str(path)!r} must have at least two rows and two columns. "
            f"Got {frame.shape[0]} rows and {frame.shape[1]} columns."
            + " In a .csv file, commas go between them."
            * (frame.shape[1] == 1)
        )
    frame.columns = [str(name) for name in frame.columns]
    return frame


def clean(frame: DataFrame, target: str | None = None) -> Table:
    """Turns a raw table into numbers, and says what it did.

    Rows without a target are left out. A column of numbers has its missing values
    replaced by its median; a column of text or truth values with few distinct values
    becomes an indicator for each of them but the most frequent; columns that are
    constant, empty, dates or names are dropped.

    **Arguments:**

    - `frame`: the raw table.
    - `target`: the column to predict; the last one by default.

    **Raises:**

    A `ValueError` where the target is missing, not numeric or constant, or no column is
    left to predict it from.
    """
    target, values, notes = _target(frame, target)
    kept = np.isfinite(values)
    if not kept.all():
        notes.append(f"left out {(~kept).sum():,} rows without a target")
    frame, y = frame.loc[kept].drop(columns=target), values[kept]
    if len(y) < 2:
        raise ValueError(f"The target {target!r} has {len(y)} rows with a value.")
    if np.ptp(y) == 0:
        raise ValueError(f"The target {target!r} is constant ({y[0]:g}).")
    columns: dict[str, np.ndarray] = {}
    for name in frame.columns:
        columns |= _numbers(_plain(frame[name]), notes)
    if not columns:
        raise ValueError(
            f"No column is left to predict {target!r} from: " + "; ".join(notes) + "."
        )
    X = np.column_stack(list(columns.values()))
    return Table(X, y, tuple(columns), target, tuple(notes))


def _target(frame: DataFrame, name: str | None) -> tuple[str, np.ndarray, list[str]]:
    """The target's name and values, NaN where it has none."""
    notes = []
    if name is None:
        name = str(frame.columns[-1])
        notes.append(f"took the last column, {name!r}, as the target")
    if name not in frame.columns:
        near = difflib.get_close_matches(name, frame.columns, n=1, cutoff=0.0)
        raise ValueError(
            f"There is no column {name!r}. Did you mean {near[0]!r}? The columns are: "
            + ", ".join(frame.columns)
            + "."
        )
    column = _plain(frame[name])
    if not _is_numeric(column):
        numeric = [key for key in frame.columns if _is_numeric(_plain(frame[key]))]
        near = difflib.get_close_matches(name, numeric, n=1, cutoff=0.0)
        hint = f" The nearest numeric column is {near[0]!r}." if near else ""
        raise ValueError(
            f"The target {name!r} must be numeric. It holds "
            f"{str(column.dropna().iloc[0])!r}, for example.{hint}"
            if column.notna().any()
            else f"The target {name!r} is empty.{hint}"
        )
    return name, column.to_numpy(float, na_value=np.nan), notes


def _numbers(column: Series, notes: list[str]) -> dict[str, np.ndarray]:
    """The columns of numbers that a raw column becomes; none where it is dropped."""
    import pandas as pd

    name = str(column.name)
    if column.isna().all():
        notes.append(f"dropped {name!r}: it is empty")
        return {}
    try:
        constant = column.nunique(dropna=False) == 1
    except TypeError:
        # Lists or dictionaries, which a Parquet file may hold.
        notes.append(f"dropped {name!r}: its cells are no single values")
        return {}
    if constant:
        notes.append(f"dropped {name!r}: it is constant")
        return {}
    # Complex numbers, times between dates, and dates.
    if column.dtype.kind in "cmM":
        notes.append(f"dropped {name!r}: {column.dtype} is not supported")
        return {}
    if _is_numeric(column) and not pd.api.types.is_bool_dtype(column):
        return _filled(name, column.to_numpy(float, na_value=np.nan), notes)
    return _indicators(name, column, notes)


def _filled(name: str, values: np.ndarray, notes: list[str]) -> dict[str, np.ndarray]:
    """A column of numbers, its gaps filled with the median."""
    from sklearn.impute import SimpleImputer

    missing = ~np.isfinite(values)
    if missing.all():
        notes.append(f"dropped {name!r}: it has no finite value")
        return {}
    if missing.any():
        values = np.where(missing, np.nan, values)
        values = SimpleImputer(strategy="median").fit_transform(values[:, None])[:, 0]
        notes.append(
            f"filled {missing.sum():,} missing values of {name!r} with its median"
        )
    if np.ptp(values) == 0:
        notes.append(f"dropped {name!r}: it is constant")
        return {}
    return {name: values}


def _indicators(name: str, column: Series, notes: list[str]) -> dict[str, np.ndarray]:
    """An indicator for each value of a column but the most frequent."""
    import pandas as pd

    text = column.astype("string").fillna("missing")
    counts = text.value_counts()
    if len(counts) > _MOST_CATEGORIES:
        notes.append(f"dropped {name!r}: text with {len(counts):,} distinct values")
        return {}
    base = counts.index[0]
    dummies = pd.get_dummies(text, prefix=name, prefix_sep="=", dtype=float)
    dummies = dummies.drop(columns=f"{name}={base}")
    notes.append(
        f"encoded {name!r} as {len(dummies.columns)} indicators, against {base!r}"
    )
    return {str(key): dummies[key].to_numpy() for key in dummies.columns}


def _is_numeric(column: Series) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) and column.dtype.kind != "c"


def _plain(column: Series) -> Series:
    """Decimals, which pandas keeps as Python objects, as floats."""
    import pandas as pd

    decimal = column.dtype == object and pd.api.types.infer_dtype(column) == "decimal"
    return column.astype(float) if decimal else column


def _read_npz(path: Path) -> DataFrame:
    import pandas as pd

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays, such as `numpy.savez` writes")
    columns: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            new = _columns(name, arrays)
            if twice := columns.keys() & new.keys():
                raise ValueError(f"two of its columns are named {min(twice)!r}")
            columns |= new
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays have different lengths: {lengths}")
    return pd.DataFrame(columns)


def _columns(name: str, arrays: Any) -> dict[str, np.ndarray]:
    """The columns that an array of an archive holds."""
    try:
        values = np.asarray(arrays[name])
    except ValueError as error:
        raise ValueError(f"the array {name!r} cannot be read: {error}") from error
    if values.ndim not in (1, 2) or values.dtype.kind == "V":
        raise ValueError(
            f"the array {name!r} must be a vector or a matrix. "
            f"Got shape {values.shape} of {values.dtype}"
        )
    # pandas reads the byte order of this machine only.
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 1:
        return {name: values}
    return {f"{name}{j}": values[:, j] for j in range(values.shape[1])}
