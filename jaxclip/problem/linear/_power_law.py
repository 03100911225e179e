r"""Power-law random features: one draw of them.

The model of arXiv:2405.15074. Inputs $x \in R^v$ have independent coordinates
$x_j \sim N(0, \lambda_j)$ with $\lambda_j = j^{-2\alpha}$, the target is
$\langle x, b \rangle$ with $b_j = j^{-\beta}$, and the features are $W^T x$ with a
matrix $W \in R^{v \times d}$ of independent $N(0, 1/d)$ entries, drawn once.

All of it is Gaussian, so that the part of the target that no parameters explain is
independent of the features: to SGD it is the noise of a label. What remains is least
squares on features with the covariance $W^T D W$, $D = \mathrm{diag}\,\lambda$. With
the singular value decomposition $D^{1/2} W = U S V^T$ and $y = D^{1/2} b$, its
eigenvalues are $S^2$, the minimiser has the component $\langle u_i, y \rangle / s_i$
along each eigenvector, and the loss there is $\|(I - U U^T) y\|^2 / 2$.

In numpy and float64, whatever JAX's precision is: the eigenvalues span many decades.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..._checks import as_float, count, known, positive
from ..._types import Key
from ...noise import AbstractNoise, Gaussian, WithGaussian


def check_model(
    alpha: Any, beta: Any, variables: Any, features: Any
) -> tuple[float, float, int, int]:
    """The numbers of a model, as Python's."""
    known(alpha=alpha, beta=beta)
    positive("alpha", alpha)
    if not np.isfinite(as_float("beta", beta)):
        raise ValueError(f"`beta` must be finite. Got {beta}.")
    # As they came: in JAX's single precision they would be rounded.
    numbers = float(alpha), float(beta)
    return *numbers, count("variables", variables), count("features", features)


def unexplained(least: Any, noise: AbstractNoise | None) -> Any:
    """The noise of a label whose unexplained part has half this variance."""
    std = np.sqrt(2 * float(least))
    return Gaussian(std) if noise is None else WithGaussian(noise, std)


class Draw(NamedTuple):
    """One draw of the features.

    - `eigenvalues`: shape `(m,)`, of the features' covariance, largest first.
    - `start`: shape `(m,)`, the norm of the minimiser along each eigenvector.
    - `irreducible`: the least loss.
    """

    eigenvalues: np.ndarray
    start: np.ndarray
    irreducible: float


def draw(alpha: float, beta: float, variables: int, features: int, key: Key) -> Draw:
    """The features of one matrix, which the key draws."""
    index = np.arange(1, variables + 1, dtype=float)
    scale = index**-alpha
    # In float32, so that both precisions of JAX have the same draw.
    W = np.asarray(jr.normal(key, (variables, features), jnp.float32), float)
    target = scale * index**-beta
    rows = np.column_stack([scale[:, None] * W / np.sqrt(features), target])
    # The triangular factor has the singular values of the features, in its last column
    # the target in the same directions, and in the corner what is left of it, with no
    # difference of numbers that are nearly equal.
    rows = np.asarray(np.linalg.qr(rows, mode="r"))
    vectors, sizes, _ = np.linalg.svd(rows[:, :features], full_matrices=False)
    along = vectors.T @ rows[:, features]
    kept = sizes > sizes[0] * max(variables, features) * np.finfo(float).eps
    left = np.sum(along[~kept] ** 2)
    if variables > features:
        left += rows[features, features] ** 2
    return Draw(sizes[kept] ** 2, np.abs(along[kept]) / sizes[kept], float(left) / 2)
