"""Columns that give the target away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ._table import some

# Rows at a time: a table of a million rows is not copied to be centred.
_CHUNK = 1 << 16
# Rows of which the order is looked at.
_ORDERED = 10_000
# The share of the target's variance that counts as none: what is left of a copy that
# was rounded to four digits, and of a sum of columns, which may be right by chance.
_NOTHING = 1e-8
_NOTHING_OF_SUMS = 1e-10
# From here on a column is worth a word.
_NEARLY = 0.99
_SAME_ORDER = 0.999
_LEAVE_OUT = (
    "Leave out the columns that were computed from the target, or that it was computed "
    "from."
)
# Of fewer rows than this one column may explain nearly everything by chance.
_FEW = 20


@dataclass(frozen=True)
class Source:
    """A raw column, of which some features were made: those from `start` to `stop`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Products:
    """Products of centred columns of length one, and of a target of length one.

    - `gram`: among the columns, shape `(d, d)`; zero where a column is constant.
    - `cross`: with the target, shape `(d,)`.
    """

    gram: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, y: np.ndarray) -> "_Products":
        d = X.shape[1]
        gram, cross = np.zeros((d, d)), np.zeros(d)
        for Z, v in _centred(X, y):
            gram += Z.T @ Z
            cross += v @ Z
        length = np.sqrt(np.diag(gram))
        # A constant has no length but that of its rounding error.
        varies = length > 1e-12 * np.sqrt(len(X))
        scale = np.where(varies, 1 / np.where(varies, length, 1.0), 0.0)
        total = sum(float(v @ v) for _, v in _centred(X[:, :0], y))
        return cls(gram * scale[:, None] * scale, cross * scale / np.sqrt(total))

    def explained(self, start: int, stop: int) -> tuple[float, np.ndarray]:
        """The share of the target's variance that least squares on some columns
        explains, and its coefficients."""
        gram, cross = self.gram[start:stop, start:stop], self.cross[start:stop]
        coefficients = np.linalg.lstsq(gram, cross, rcond=1e-12)[0]
        return float(cross @ coefficients), coefficients


def _centred(X: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time, with columns and target in units of their largest number,
    so that no square overflows, and of mean zero."""
    units = [_unit(values) for values in (X, y)]
    parts = [slice(start, start + _CHUNK) for start in range(0, len(y), _CHUNK)]
    means = [
        sum((values[part] / unit).sum(axis=0) for part in parts) / len(y)
        for values, unit in zip((X, y), units, strict=True)
    ]
    for part in parts:
        yield X[part] / units[0] - means[0], y[part] / units[1] - means[1]


def _unit(values: np.ndarray) -> np.ndarray:
    largest = np.maximum(values.max(axis=0), -values.min(axis=0))
    return np.where(largest > 0, largest, 1.0)


def find_leaks(
    X: np.ndarray, y: np.ndarray, sources: Sequence[Source], target: str
) -> list[str]:
    """Sentences on the raw columns that nearly give the target away: by the share of
    its variance that least squares on them alone explains, or by having its order.

    **Raises:**

    A `ValueError` that names the columns which explain the target without an error,
    each alone or several together.
    """
    n, d = X.shape
    # Three points may lie on a line.
    if n <= 3 or np.ptp(y / _unit(y)) == 0:
        return []
    products = _Products.of(X, y)
    shares = [products.explained(source.start, source.stop)[0] for source in sources]
    alone = [
        source.name
        for source, share in zip(sources, shares, strict=True)
        if share > 1 - _NOTHING and n > source.stop - source.start + 2
    ]
    if alone:
        others = f", and so does {some(alone[1:])}" if len(alone) > 1 else ""
        raise ValueError(
            f"`X` explains `y` without an error: the column {alone[0]!r} alone "
            f"determines the target {target!r}{others}. {_LEAVE_OUT}"
        )
    # With as many features as rows least squares has no error whatever they are.
    if n > d + 2:
        _refuse_sums(X, y, products, sources, target)
    return [] if n < _FEW else _nearly(X, y, shares, sources, target)


def _refuse_sums(
    X: np.ndarray,
    y: np.ndarray,
    products: _Products,
    sources: Sequence[Source],
    target: str,
) -> None:
    share, coefficients = products.explained(0, X.shape[1])
    # The products have half of the digits: what is left is computed from the rows.
    if share < 1 - _NOTHING:
        return
    length = np.sqrt(sum((Z**2).sum(axis=0) for Z, _ in _centred(X, y)))
    weights = np.where(length > 0, coefficients / np.where(length > 0, length, 1), 0.0)
    total = np.sqrt(sum(v @ v for _, v in _centred(X, y)))
    left = sum(float(((v / total - Z @ weights) ** 2).sum()) for Z, v in _centred(X, y))
    if left > _NOTHING_OF_SUMS:
        return
    least = 1e-3 * np.abs(coefficients).max()
    names = [
        repr(source.name)
        for source in sources
        if np.abs(coefficients[source.start : source.stop]).max() > least
    ]
    raise ValueError(
        f"`X` explains `y` without an error: the target {target!r} is a weighted sum "
        f"of the columns {some(names, 5)}. {_LEAVE_OUT}"
    )


def _nearly(
    X: np.ndarray,
    y: np.ndarray,
    shares: Sequence[float],
    sources: Sequence[Source],
    target: str,
) -> list[str]:
    """Sentences on the columns by which the target is known nearly, or by order."""
    notes = []
    near = [
        f"{source.name!r} ({100 * share:.3f}%)"
        for source, share in zip(sources, shares, strict=True)
        # Many indicators explain much of few rows by chance.
        if (1 - share) * len(y) < (1 - _NEARLY) * (len(y) - source.stop + source.start)
    ]
    if near:
        notes.append(
            f"of the variance of {target!r}, a single column explains nearly all: "
            f"{some(near)}; was it known before the target?"
        )
    sample = np.linspace(0, len(y) - 1, min(len(y), _ORDERED)).astype(int)
    ordered = [
        repr(source.name)
        for source, share in zip(sources, shares, strict=True)
        if share <= _NEARLY
        and source.stop == source.start + 1
        and _same_order(X[sample, source.start], y[sample]) > _SAME_ORDER
    ]
    if ordered:
        notes.append(
            f"a single column has the order of {target!r}, and so gives it away: "
            f"{some(ordered)}; was it known before the target?"
        )
    return notes


def _same_order(x: np.ndarray, y: np.ndarray) -> float:
    """How far a column orders the rows as the target does, from 0 to 1: the rank
    correlation; of a target of two values, how far the column divides them."""
    from scipy.stats import rankdata

    values = np.unique(y)
    ranks = rankdata(x)
    if len(values) == 2:
        ones = y == values[1]
        above = ranks[ones].mean() - (ones.sum() + 1) / 2
        return abs(2 * above / (~ones).sum() - 1)
    ranks, others = ranks - ranks.mean(), rankdata(y)
    others = others - others.mean()
    length = np.sqrt((ranks @ ranks) * (others @ others))
    return abs(ranks @ others) / length if length > 0 else 0.0
