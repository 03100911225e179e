"""The largest learning rate at which unclipped SGD is stable."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import known
from .._types import RealScalar
from ..problem import LinearModel, Regression, SquaredLoss


def stable_lr(problem: LinearModel | Regression) -> RealScalar:
    r"""The learning rate above which unclipped SGD diverges in mean square.

    One step with features $a$ maps the error's second moment $Z = E[z z^T]$ to
    $Z - \gamma (K Z + Z K) + \gamma^2 E[a a^T Z a a^T]$, a positive map, so that at the
    threshold some positive semidefinite $Z$ is fixed:

    $$\gamma\, E[a a^T Z a a^T] = K Z + Z K.$$

    For Gaussian features the right $\gamma$ solves
    $\sum_j \gamma \lambda_j d_j / (2 (1 - \gamma \lambda_j)) = 1$, about
    $2 / \mathrm{Tr} K$ in high dimension. For the rows of a table the fourth moments
    are those of the rows: heavy-tailed features are stable only at far smaller rates
    than their covariance suggests, since it is the norm of single rows that throws SGD
    off. Derived here. A clipped run is bounded at every learning rate.

    **Arguments:**

    - `problem`: a `LinearModel` (Gaussian features) or a `Regression` (its rows),
        either with the squared loss.

    **Returns:**

    A learning rate, per step, for one sample a step.

    **Raises:**

    A `ValueError` for any other problem, and for a `Regression` that is traced.
    """
    if isinstance(problem, LinearModel) and isinstance(problem.loss, SquaredLoss):
        spectrum = problem.spectrum
        return _gaussian(spectrum.eigenvalues, jnp.asarray(spectrum.multiplicity))
    if isinstance(problem, Regression) and isinstance(problem.loss, SquaredLoss):
        known(problem=problem)
        return _rows(problem)
    raise ValueError(
        "`problem` must be a `LinearModel` or a `Regression`, with the squared loss. "
        f"Got a {type(problem).__name__}."
    )


@jax.jit
def _gaussian(eigenvalues: Array, multiplicity: Array) -> RealScalar:
    multiplicity = multiplicity.astype(eigenvalues.dtype)

    # For Gaussian features E[a a' Z a a'] = 2 KZK + K Tr(KZ). A multiple c_j of the
    # identity in each eigenspace solves the docstring's equation with
    # c_j = rate T / (2 (1 - rate lambda_j)), where T = sum_j lambda_j d_j c_j; put into
    # T itself this is growth(rate) = 0.
    def growth(rate):
        scaled = rate * eigenvalues
        return jnp.sum(scaled * multiplicity / (2 * (1 - scaled))) - 1

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        stable = growth(middle) < 0
        return jnp.where(stable, middle, low), jnp.where(stable, high, middle)

    # At 1 / (largest eigenvalue) the sum is infinite, at 0 it is 0, and in between it
    # rises: halving finds the one root, to the last digit long before the end.
    top = 1 / jnp.max(eigenvalues)
    low, high = jax.lax.fori_loop(0, 100, halve, (jnp.zeros_like(top), top))
    return (low + high) / 2


def _rows(problem: Regression, iterations: int = 200) -> RealScalar:
    """By power iteration on Z -> L^-1 E[a a'Za a'], L(Z) = KZ + ZK, both of which map
    positive semidefinite matrices to such: the largest eigenvalue is simple."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(problem.covariance, float))
    # No row has a part along the others, and L cannot be inverted there.
    kept = eigenvalues > eigenvalues[-1] * len(eigenvalues) * 1e-12
    rows = np.asarray(problem.X, float) @ vectors[:, kept]
    sums = eigenvalues[kept][:, None] + eigenvalues[kept][None, :]
    # In the eigenbasis L multiplies each entry of Z by a sum of two eigenvalues. The
    # identity is positive definite, so that it has a part along the eigenvector sought.
    Z, rate, previous = np.eye(kept.sum()), np.inf, 0.0
    for _ in range(iterations):
        weights = np.einsum("ni,ni->n", rows @ Z, rows)
        Z = (rows.T * weights) @ rows / len(rows) / sums
        # The map takes the fixed Z to Z / rate, and Z has norm 1.
        rate, previous = 1 / np.linalg.norm(Z), rate
        Z = Z * rate
        if abs(rate - previous) < 1e-9 * rate:
            break
    return jnp.asarray(rate)
