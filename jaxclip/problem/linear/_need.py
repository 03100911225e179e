"""Which problems the limits of linear models and the criteria know."""

from typing import Any

from ._loss import check_residual, check_squared
from ._model import LinearModel


def need_squared_loss(what: str, problem: Any) -> LinearModel:
    """The problem, if it is one that the limits of linear models and the criteria know.

    **Arguments:**

    - `what`: the name of what needs it.
    """
    problem = _need_linear(what, problem)
    check_squared(what, problem.loss)
    return problem


def need_residual_loss(what: str, problem: Any) -> LinearModel:
    """The problem, if it is a linear model with a loss of the residual.

    **Arguments:**

    - `what`: the name of what needs it.
    """
    problem = _need_linear(what, problem)
    check_residual(what, problem.loss)
    return problem


def _need_linear(what: str, problem: Any) -> LinearModel:
    if isinstance(problem, LinearModel):
        return problem
    raise ValueError(
        f"`{what}` needs a `LinearModel` with the squared loss. Got a "
        f"{type(problem).__name__}; for the rows of a table, estimate one with "
        "`LinearModel.from_data(X, y)`."
    )
