"""The minimiser of a convex loss on the rows of a table."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import is_traced
from ._loss import AbstractLoss, SquaredLoss


def minimiser(loss: AbstractLoss, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    r"""The parameters with the smallest mean loss over the rows, shape `(d,)`.

    In float64 whatever JAX's precision is. The squared loss has a closed form; for the
    others damped Newton steps from there (Levenberg-Marquardt). A loss whose slope
    jumps is approached through smooth ones of halving width, each started from the
    last, and its solution is then put on the corner that it has come next to.

    **Raises:**

    A `ValueError` where the search does not arrive: the rows have no minimiser, as with
    a logistic loss on classes that a plane separates.
    """
    if any(is_traced(leaf) for leaf in jax.tree.leaves(loss)):
        raise ValueError(
            "`loss` must be known before tracing: its minimiser on the rows is worked "
            "out when the problem is made. Make it outside of `jit`."
        )
    x = np.linalg.lstsq(X, y, rcond=None)[0]
    if isinstance(loss, SquaredLoss):
        return x
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        loss = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), loss)
        width = float(np.mean(np.abs(y - X @ x)))
        if loss.smoothed(width) is loss:
            return _newton(loss, X, y, x)
        for halvings in range(27):
            x = _newton(loss.smoothed(width * 0.5**halvings), X, y, x)
        return _on_the_corner(loss, X, y, x)


def _newton(
    loss: AbstractLoss, X: np.ndarray, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Newton steps whose damping follows their success."""
    sizes = np.linalg.norm(X, axis=1)
    # Without damping a loss that is linear at most rows has a singular Hessian.
    unit, damping = np.mean(sizes**2), 1e-9
    value, slope, curvature = _terms(loss, X @ x, y)
    for _ in range(500):
        gradient = X.T @ slope / len(y)
        terms = np.mean(sizes * np.abs(slope)) + np.finfo(float).tiny
        small = np.linalg.norm(gradient) / terms
        # Below the second number rounding may be all that is left to go down by.
        if small < 1e-14 or (small < 1e-5 and damping > 1e6):
            return x
        hessian = (X.T * curvature) @ X / len(y)
        step = np.linalg.solve(hessian + damping * unit * np.eye(len(x)), gradient)
        trial = _terms(loss, X @ (x - step), y)
        if trial[0].mean() < value.mean():
            x, (value, slope, curvature) = x - step, trial
            damping = max(damping / 10, 1e-14)
        else:
            damping = damping * 10
    raise ValueError(
        f"The loss has no minimiser on the rows that {type(loss).__name__} could be "
        "followed to, as where a plane separates two classes. Leave out columns, or "
        "use another loss."
    )


def _on_the_corner(
    loss: AbstractLoss, X: np.ndarray, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The exact solution of a piecewise linear loss: it fits as many rows as there are
    directions without error, and next to it they are those with the least error."""
    rank = np.linalg.matrix_rank(X)
    fitted = np.argsort(np.abs(X @ x - y))[:rank]
    corner = np.linalg.lstsq(X[fitted], y[fitted], rcond=None)[0]
    means = [_terms(loss, X @ point, y)[0].mean() for point in (x, corner)]
    return corner if means[1] <= means[0] else x


def _terms(
    loss: AbstractLoss, prediction: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, slope and curvature on every row."""
    value, slope, curvature = _traced_terms(
        loss, jnp.asarray(prediction), jnp.asarray(target)
    )
    return np.asarray(value), np.asarray(slope), np.asarray(curvature)


@eqx.filter_jit
def _traced_terms(
    loss: AbstractLoss, prediction: Float[Array, " n"], target: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    def one(p, t):
        return loss.value(p, t), *jax.value_and_grad(loss.slope)(p, t)

    return jax.vmap(one)(prediction, target)
