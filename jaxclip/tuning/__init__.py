"""Settings tuned by gradient, through a limit or a training run."""

from ._tune import tune as tune
from ._unroll import unroll as unroll
