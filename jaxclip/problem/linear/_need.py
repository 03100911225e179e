"""Which problems the limits of linear models and the criteria know."""

from typing import Any

from ._loss import check_squared
from ._model import LinearModel


def need_squared_loss(what: str, problem: Any) -> LinearModel:
    """The problem, if it is one that the limits of linear models and the criteria know.

    **Arguments:**

    - `what`: the name of what needs it.
    """
    if isinstance(problem, LinearModel):
        check_squared(what, problem.loss)
        return problem
    raise ValueError(
        f"`{what}` needs a `LinearModel` with the squared loss. Got a "
        f"{type(problem).__name__}; for the rows of a table, estimate one with "
        "`LinearModel.from_data(X, y)`."
    )
