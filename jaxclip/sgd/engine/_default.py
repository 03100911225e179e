"""The engine of a problem."""

from ...problem import AbstractGaussianLinear, AbstractLinear, AbstractProblem
from ._base import AbstractEngine
from ._blocked import Blocked
from ._direct import Direct
from ._lumped import Lumped

# Above it a block of 64 samples takes gigabytes, and a step tens of milliseconds.
_LARGEST_BLOCKED = 10**7


def default_engine(problem: AbstractProblem) -> AbstractEngine:
    """The engine that [`jaxclip.simulate`][] takes where none is given.

    | problem | engine |
    |---|---|
    | Gaussian features, more than 10^7 dimensions, repeated eigenvalues | `Lumped()` |
    | other linear models: `LinearModel`, `Logistic`, `Regression` ... | `Blocked()` |
    | anything else | `Direct()` |

    Up to 10^7 dimensions a run thus sees the same data as [`jaxclip.train`][] does on
    the same key.

    **Arguments:**

    - `problem`: what SGD runs on.
    """
    if isinstance(problem, AbstractGaussianLinear):
        dim, eigenvalues = problem.spectrum.dim, problem.spectrum.eigenvalues.size
        if dim > _LARGEST_BLOCKED and eigenvalues < dim:
            return Lumped()
    return Blocked() if isinstance(problem, AbstractLinear) else Direct()
