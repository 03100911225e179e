"""scikit-learn's handwritten digits, as scripts that train networks take them.

Not a program of its own.
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits


def shuffled_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits in one random order: 64 pixels from 0 to 1 each, and their classes."""
    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return data.data[order] / 16, data.target[order]
