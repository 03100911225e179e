"""The law of the mean gradient of a batch: of the norm of a vector of residuals."""

from ._law import BatchLaw as BatchLaw
from ._table import (
    BatchLaws as BatchLaws,
    Near as Near,
    NormalLaws as NormalLaws,
    batch_law as batch_law,
    batch_laws as batch_laws,
)
