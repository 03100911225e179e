"""The engine of a problem."""

from ...problem import AbstractGaussianLinear, AbstractLinear, AbstractProblem
from ...transform import PerTree, algorithm, within_example
from ._base import AbstractEngine
from ._blocked import Blocked
from ._direct import Direct
from ._lumped import Lumped

# One sample a step, clipped over the tree, with no momentum and no decay.
PLAIN = algorithm.Update()
# Above it a block of 64 samples takes gigabytes, and a step tens of milliseconds.
_LARGEST_BLOCKED = 10**7


def default_engine(
    problem: AbstractProblem, update: algorithm.Update = PLAIN
) -> AbstractEngine:
    """The engine that [`jaxclip.simulate`][] takes where none is given.

    | problem | engine |
    |---|---|
    | Gaussian features, more than 10^7 dimensions, repeated eigenvalues | `Lumped()` |
    | other linear models: `LinearModel`, `Logistic`, `Regression` ... | `Blocked()` |
    | anything else; momentum, weight decay, and `PerCoordinate()` | `Direct()` |

    `Direct()` makes one step at a time; a run of `Blocked()` is the same to rounding,
    by matrix products; one of `Lumped()` is another one of the same law, at a cost that
    does not depend on multiplicities.

    Up to 10^7 dimensions a run thus sees the same data as [`jaxclip.train`][] does on
    the same key.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `update`: how a step is made of samples.
    """
    if update.momentum is not None or update.weight_decay is not None:
        return Direct()
    if not isinstance(within_example(update.scope), PerTree):
        return Direct()
    if isinstance(problem, AbstractGaussianLinear):
        dim, eigenvalues = problem.spectrum.dim, problem.spectrum.eigenvalues.size
        if dim > _LARGEST_BLOCKED and eigenvalues < dim:
            return Lumped()
    return Blocked() if isinstance(problem, AbstractLinear) else Direct()
