"""The largest learning rate at which unclipped SGD is stable."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import known
from .._schedule import Constant
from .._types import RealScalar, RealScalarLike
from ..problem import LinearModel, Regression, SquaredLoss
from ..transform import algorithm


def stable_lr(
    problem: LinearModel | Regression,
    *,
    batch_size: int = 1,
    momentum: algorithm.Momentum | RealScalarLike | None = None,
) -> RealScalar:
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
    off. A clipped run is bounded at every learning rate.

    A batch of $B$ samples has $E[a a^T Z a a^T] / B + (1 - 1/B) K Z K$ in the place of
    the fourth moments, and with a heavy ball of the coefficient $\beta$ the second
    moments of error and momentum are fixed together. For Gaussian features

    $$\sum_j \frac{d_j \gamma \lambda_j / B}{2 (1 - \beta) - \gamma \lambda_j
    \big(1 + \frac1B - \frac{2 \beta}{1 + \beta}\big)} = 1 .$$

    Without momentum and with one eigenvalue $\lambda$ that is
    $2 / (\lambda + (\mathrm{Tr} K + \lambda) / B)$. Derived here.

    **Arguments:**

    - `problem`: a `LinearModel` or a `Regression` (its rows), of the squared loss.
    - `batch_size`: samples a step, drawn with replacement.
    - `momentum`: a [`jaxclip.algorithm.Momentum`][] or the coefficient of one, constant
        and without Nesterov's variant; for a `LinearModel` alone.

    **Returns:**

    A learning rate, per step.

    **Raises:**

    A `ValueError` for any other problem or momentum, and a traced `Regression`.
    """
    update = algorithm.Update(batch_size, momentum=momentum)
    beta = _coefficient(update.momentum, problem)
    if isinstance(problem, LinearModel) and isinstance(problem.loss, SquaredLoss):
        spectrum = problem.spectrum
        eigenvalues, multiplicity = spectrum.eigenvalues, spectrum.multiplicity
        share = jnp.asarray(1 / update.batch_size, eigenvalues.dtype)
        return _gaussian(eigenvalues, jnp.asarray(multiplicity), share, beta)
    if isinstance(problem, Regression) and isinstance(problem.loss, SquaredLoss):
        known(problem=problem)
        return _rows(problem, update.batch_size)
    raise ValueError(
        "`problem` must be a `LinearModel` or a `Regression`, with the squared loss. "
        f"Got a {type(problem).__name__}."
    )


def _coefficient(momentum: algorithm.Momentum | None, problem: object) -> RealScalar:
    if momentum is None:
        return jnp.zeros(())
    if momentum.nesterov or not isinstance(momentum.coefficient, Constant):
        raise ValueError(
            "`stable_lr` knows heavy-ball momentum with one coefficient: no schedule, "
            f"and not Nesterov's. Got {momentum!r}."
        )
    if not isinstance(problem, LinearModel):
        raise ValueError(
            "`stable_lr` knows momentum on a `LinearModel` alone. Got a "
            f"{type(problem).__name__}; leave `momentum` out."
        )
    return momentum.coefficient.value


@jax.jit
def _gaussian(
    eigenvalues: Array, multiplicity: Array, share: RealScalar, beta: RealScalar
) -> RealScalar:
    multiplicity = multiplicity.astype(eigenvalues.dtype)
    # For Gaussian features a batch has (1 + 1/B) KZK + K Tr(KZ) / B. With a, b and c
    # the second moments of an error's component, of it with its momentum, of that, and
    # T = sum_j lambda_j d_j a_j, one step with the gradient g has
    #   E z m' = beta b + lambda a,   E g^2 = (1 + 1/B) lambda^2 a + lambda T / B,
    #   c' = beta^2 c + 2 beta lambda b + E g^2,   b' = E z m' - rate c',
    #   a' = a - 2 rate E z m' + rate^2 c'.
    # Fixed, a_j = rate T / B over what is below; put into T this is growth(rate) = 0.
    slowed = 1 + share - 2 * beta / (1 + beta)

    def growth(rate):
        scaled = rate * eigenvalues
        room = 2 * (1 - beta) - scaled * slowed
        return jnp.sum(share * scaled * multiplicity / room) - 1

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        stable = growth(middle) < 0
        return jnp.where(stable, middle, low), jnp.where(stable, high, middle)

    # Where the room of the largest eigenvalue is used up the sum is infinite, at 0 it
    # is 0, and in between it rises: halving finds the one root, to the last digit long
    # before the end.
    top = 2 * (1 - beta) / (slowed * jnp.max(eigenvalues))
    low, high = jax.lax.fori_loop(0, 100, halve, (jnp.zeros_like(top), top))
    return (low + high) / 2


def _rows(problem: Regression, batch_size: int, iterations: int = 200) -> RealScalar:
    """By power iteration on Z -> L^-1 E[a a'Za a'], L(Z) = KZ + ZK, both of which map
    positive semidefinite matrices to such: the largest eigenvalue is simple."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(problem.covariance, float))
    # No row has a part along the others, and L cannot be inverted there.
    kept = eigenvalues > eigenvalues[-1] * len(eigenvalues) * 1e-12
    rows = np.asarray(problem.X, float) @ vectors[:, kept]
    kept_values = eigenvalues[kept]
    sums = kept_values[:, None] + kept_values[None, :]
    # In the eigenbasis L multiplies each entry of Z by a sum of two eigenvalues. The
    # identity is positive definite, so that it has a part along the eigenvector sought.
    Z, rate, previous = np.eye(kept.sum()), np.inf, 0.0
    for _ in range(iterations):
        weights = np.einsum("ni,ni->n", rows @ Z, rows)
        mapped = (rows.T * weights) @ rows / len(rows) / batch_size
        # Of two different samples of a batch.
        mapped += (1 - 1 / batch_size) * kept_values * Z * kept_values[:, None]
        Z = mapped / sums
        # The map takes the fixed Z to Z / rate, and Z has norm 1.
        rate, previous = 1 / np.linalg.norm(Z), rate
        Z = Z * rate
        if abs(rate - previous) < 1e-9 * rate:
            break
    return jnp.asarray(rate)
