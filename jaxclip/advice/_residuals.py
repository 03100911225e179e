"""The law of residuals in a few numbers."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ResidualLaw:
    """Numbers that tell how far residuals are from normal.

    - `std`: the standard deviation.
    - `skewness`: 0 for a symmetric law.
    - `excess_kurtosis`: 0 for a normal law.
    - `beyond_three`: the fraction beyond three standard deviations; .0027 if normal.
    - `largest`: the largest in size, in standard deviations.
    - `tail_index`: Hill's estimate from the largest 5 percent in size: about the
        highest finite moment. Above 6 or so it tells a light tail apart from none.
    """

    std: float
    skewness: float
    excess_kurtosis: float
    beyond_three: float
    largest: float
    tail_index: float

    @classmethod
    def of(cls, residuals: np.ndarray) -> "ResidualLaw":
        """The law of a vector of residuals with mean about 0."""
        z = (residuals - residuals.mean()) / residuals.std()
        size = np.sort(np.abs(z))
        tail = size[-max(10, len(size) // 20) :]
        hill = np.mean(np.log(np.maximum(tail, 1e-300) / max(tail[0], 1e-300)))
        return cls(
            std=float(residuals.std()),
            skewness=float(np.mean(z**3)),
            excess_kurtosis=float(np.mean(z**4) - 3),
            beyond_three=float(np.mean(size > 3)),
            largest=float(size[-1]),
            tail_index=float(1 / max(hill, 1e-12)),
        )
