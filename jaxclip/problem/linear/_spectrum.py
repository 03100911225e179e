"""The eigenvalues of a feature covariance, which is all that SGD on it depends on."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._checks import as_float, check, count, is_traced, known
from ..._types import Key, RealScalarLike
from ._power_law import check_model, draw

# Numbers of a table that are read at once.
_BLOCK = 2**22


class Spectrum(eqx.Module):
    r"""The eigenvalues of a covariance $K$ of features, with their multiplicities.

    **Arguments:**

    - `eigenvalues`: shape `(m,)`, positive, in the features' squared unit.
    - `multiplicity`: shape `(m,)`, positive integers, known before tracing: they decide
        the dimension. 1 each by default.

    **Raises:**

    A `ValueError` where the shapes differ, an eigenvalue is not positive and finite, or
    a multiplicity is not a positive integer.
    """

    eigenvalues: Float[Array, " m"]
    multiplicity: Int[Array, " m"]
    dim: int = eqx.field(static=True)

    def __init__(self, eigenvalues: Any, multiplicity: Any = None):
        eigenvalues = as_float("eigenvalues", eigenvalues)
        if eigenvalues.ndim != 1 or eigenvalues.size == 0:
            raise ValueError(
                "`eigenvalues` must be a vector with at least one entry. "
                f"Got shape {eigenvalues.shape}."
            )
        if multiplicity is None:
            multiplicity = np.ones(eigenvalues.shape, int)
        elif is_traced(multiplicity):
            raise ValueError(
                "`multiplicity` must be known before tracing: it decides the dimension."
                " Make the spectrum outside of `jit`, or close over the multiplicities."
            )
        given = np.asarray(multiplicity)
        if given.shape != eigenvalues.shape:
            raise ValueError(
                "`multiplicity` must have the shape of `eigenvalues`, "
                f"{eigenvalues.shape}. Got {given.shape}."
            )
        whole = np.issubdtype(given.dtype, np.number) and np.all(given == given // 1)
        if not whole or not np.all(given >= 1):
            raise ValueError(f"`multiplicity` must be positive integers. Got {given}.")
        # In float32 mode they are counted in 32 bits, and would wrap around.
        largest = jnp.iinfo(jnp.result_type(int)).max
        if np.any(given > largest):
            raise ValueError(
                f"`multiplicity` must be at most {largest} in this precision. Got "
                f"{given}; set `jax_enable_x64` for more."
            )
        self.eigenvalues = check(
            eigenvalues,
            lambda x: ~((x > 0) & (x < np.inf)),
            "`eigenvalues` must be positive and finite; leave out directions in which "
            "the features do not vary.",
        )
        self.multiplicity = jnp.asarray(given.astype(np.int64))
        self.dim = int(given.sum())

    @classmethod
    def isotropic(cls, dim: int, eigenvalue: RealScalarLike = 1.0) -> "Spectrum":
        """One eigenvalue in all of `dim` dimensions."""
        dim = count("dim", dim)
        return cls(jnp.atleast_1d(as_float("eigenvalue", eigenvalue)), np.array([dim]))

    @classmethod
    def power_law(cls, dim: int, exponent: RealScalarLike) -> "Spectrum":
        r"""Eigenvalues $\lambda_j = j^{-\text{exponent}}$, $j = 1 \dots$ `dim`."""
        dim = count("dim", dim)
        index = jnp.arange(1, dim + 1, dtype=jnp.result_type(float))
        return cls(index ** -as_float("exponent", exponent))

    @classmethod
    def power_law_features(
        cls, alpha: float, beta: float, variables: int, features: int, *, key: Key
    ) -> "PowerLawFeatures":
        r"""The power-law random features of arXiv:2405.15074, one draw of them.

        Inputs are $x \in R^v$ with independent $x_j \sim N(0, j^{-2\alpha})$, targets
        $\langle x, b \rangle$ with $b_j = j^{-\beta}$, and features $W^T x$ with
        independent $N(0, 1/d)$ entries of $W \in R^{v \times d}$. Their covariance is
        $W^T D W$ with $D = \mathrm{diag}\, j^{-2\alpha}$. On the host: $10^4$ variables
        and $10^3$ features take seconds. For what all large draws have in common see
        [`jaxclip.problem.CompressedLinearModel`][].

        **Arguments:**

        - `alpha`, `beta`: the decays of inputs and target; `alpha` is positive.
        - `variables`, `features`: $v$ and $d$.
        - `key`: draws $W$.

        **Returns:**

        A [`jaxclip.problem.PowerLawFeatures`][].

        **Raises:**

        A `ValueError` where a number is not what is said above, or traced.
        """
        known(key=key)
        found = draw(*check_model(alpha, beta, variables, features), key)
        dtype = jnp.result_type(float)
        start, least = (jnp.asarray(x, dtype) for x in (found.start, found.irreducible))
        return PowerLawFeatures(cls(found.eigenvalues), start, least)

    @classmethod
    def marchenko_pastur(cls, dim: int, ratio: RealScalarLike) -> "Spectrum":
        r"""The quantiles of the Marchenko-Pastur law, scaled to a largest of 1.

        The spectrum of the sample covariance of isotropic data with `dim` features and
        `dim / ratio` rows, in the limit of many of both. Derived: the distribution
        function is integrated by the trapezoid rule in an angle that removes the square
        roots at both edges.

        **Arguments:**

        - `dim`: how many eigenvalues.
        - `ratio`: features per row, in (0, 1).
        """
        known(ratio=ratio)
        dim, ratio = count("dim", dim), float(ratio)
        if not 0 < ratio < 1:
            raise ValueError(
                "`ratio` must be in (0, 1): with more features than rows the law has an"
                f" atom at 0. Got {ratio}."
            )
        low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
        angle = np.linspace(0, np.pi, 20 * dim + 2001)
        value = (high + low) / 2 - (high - low) / 2 * np.cos(angle)
        density = np.sin(angle) ** 2 / value
        mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        quantile = np.interp((np.arange(dim) + 0.5) / dim, mass / mass[-1], value)
        return cls(quantile[::-1] / high)

    @classmethod
    def from_covariance(cls, covariance: Any) -> "Spectrum":
        """The eigenvalues of a covariance matrix, largest first.

        Those below the largest times the matrix's rounding error are left out.

        **Arguments:**

        - `covariance`: shape `(d, d)`, symmetric and positive semidefinite.
        """
        known(covariance=covariance)
        matrix = np.asarray(covariance, dtype=float)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(
                f"`covariance` must be a square matrix. Got shape {matrix.shape}."
            )
        size = np.abs(matrix).max()
        if not np.isfinite(size) or not np.allclose(matrix, matrix.T, atol=1e-6 * size):
            raise ValueError("`covariance` must be finite and symmetric.")
        eigenvalues = np.linalg.eigvalsh(matrix)[::-1]
        noise = eigenvalues[0] * len(matrix) * np.finfo(float).eps
        if eigenvalues[-1] < -max(noise, 1e-6 * size) or eigenvalues[0] <= 0:
            raise ValueError(
                "`covariance` must be positive semidefinite and not zero. Its "
                f"eigenvalues run from {eigenvalues[-1]:.3g} to {eigenvalues[0]:.3g}."
            )
        return cls(eigenvalues[eigenvalues > noise])

    @classmethod
    def from_data(cls, X: Any) -> "Spectrum":
        r"""The eigenvalues of $K = X^T X / n$, the second moments of rows.

        A tall table is read some rows at a time and a wide one some columns at a time,
        so that `X` may be a `numpy.memmap` that does not fit into memory. What is held
        at once is four square matrices with $\min(n, d)$ rows and 32 MB of the table,
        in float64. A wide table has at most $n$ eigenvalues that are not zero; zeros
        are left out.

        **Arguments:**

        - `X`: shape `(n, d)`, the features, as they are: centre and scale them first.
        """
        known(X=X)
        X = X if hasattr(X, "shape") else np.asarray(X)
        if len(X.shape) != 2 or 0 in X.shape:
            raise ValueError(
                f"`X` must be a matrix with a row for each sample. Got shape {X.shape}."
            )
        short, long = sorted(X.shape)
        tall = X.shape[0] == long
        gram, block = np.zeros((short, short)), max(1, _BLOCK // short)
        for start in range(0, long, block):
            part = slice(start, start + block)
            part = np.asarray(X[part].T if tall else X[:, part], float)
            if not np.all(np.isfinite(part)):
                raise ValueError(
                    "`X` must be finite: some of its numbers are NaN or infinite. Fill "
                    "them in or leave their rows out."
                )
            gram += part @ part.T
        if not gram.any():
            raise ValueError("`X` must have a column that is not zero.")
        # The product in the other order, X X' / n, has the same eigenvalues but zeros.
        return cls.from_covariance(gram / X.shape[0])

    @property
    def trace(self) -> Float[Array, ""]:
        """The covariance's trace: the mean squared norm of the features, in the square
        of their unit."""
        return jnp.sum(self.eigenvalues * self.multiplicity.astype(float))

    @property
    def feature_norm(self) -> Float[Array, ""]:
        """The square root of the trace, about the norm of the features where they are
        many: a clip of the gradient's norm at this times c is a clip of the residual at
        c."""
        return jnp.sqrt(self.trace)

    @property
    def intrinsic_dimension(self) -> Float[Array, ""]:
        """The trace over the largest eigenvalue: how many directions count. One run
        follows its ODE to one over this number's square root."""
        return self.trace / jnp.max(self.eigenvalues)

    def expand(self, values: Float[Array, " m"]) -> Float[Array, " d"]:
        """One number an eigenspace to one number a dimension, shape `(dim,)`."""
        return jnp.repeat(values, self.multiplicity, total_repeat_length=self.dim)


class PowerLawFeatures(NamedTuple):
    """Power-law random features, as SGD that starts at 0 sees them.

    - `spectrum`: of the features' covariance.
    - `start`: shape `(m,)`, the minimiser's size along each eigenvector.
    - `irreducible_risk`: the least loss.
    """

    spectrum: Spectrum
    start: Float[Array, " m"]
    irreducible_risk: Float[Array, ""]
