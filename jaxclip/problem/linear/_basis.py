"""The coordinates that an optimiser works in, where they are not the eigenbasis."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import as_float, check, is_traced, known
from ..._numerics import exact_dot
from ._spectrum import Spectrum


def as_basis(value: Any, spectrum: Spectrum) -> Float[Array, "p d"] | None:
    """`value` as the eigenvectors of a covariance, one a column, or None."""
    if value is None:
        return None
    basis = as_float("basis", value)
    dim = spectrum.dim
    if basis.ndim != 2 or basis.shape[1] != dim or basis.shape[0] < dim:
        raise ValueError(
            "`basis` must be a matrix with an eigenvector in each of its "
            f"{dim} columns, one for each dimension of the spectrum, and at least as "
            f"many rows. Got shape {basis.shape}."
        )
    # Rounding adds up over a column: a matrix that was made in half precision and one
    # that is no basis at all are far apart.
    slack = 1e-2 if basis.dtype == jnp.float32 else 1e-6
    return check(
        basis,
        lambda b: ~(abs(b.T @ b - np.eye(dim, dtype=b.dtype)) <= slack),
        "`basis` must have orthonormal columns, `basis.T @ basis` the identity; take "
        "the `Q` of `numpy.linalg.qr`, or `LinearModel.from_covariance`.",
    )


def out_of_eigenbasis(
    basis: Float[Array, "p d"] | None, components: Float[Array, " d"]
) -> Float[Array, " p"]:
    """A vector in the optimiser's coordinates, from its components."""
    return components if basis is None else exact_dot(basis, components)


def into_eigenbasis(
    basis: Float[Array, "p d"] | None, vector: Float[Array, " p"]
) -> Float[Array, " d"]:
    """The components of a vector along the eigenvectors."""
    return vector if basis is None else exact_dot(vector, basis)


def facing(
    eigenvectors: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors, one a column, turned so that no component of the error is
    negative, and these components."""
    components = error @ eigenvectors
    turned = eigenvectors * np.where(components < 0, -1.0, 1.0)
    return turned, np.abs(components)


def decompose_covariance(
    covariance: Any, start: Any
) -> tuple[Spectrum, np.ndarray, np.ndarray]:
    """The spectrum of a covariance, the norms of the start in its eigenspaces, and the
    eigenvectors that face it. Eigenvalues of 0 are left out."""
    known(covariance=covariance, start=start)
    spectrum = Spectrum.from_covariance(covariance)
    matrix = np.asarray(covariance, float)
    start = np.asarray(start, float)
    if start.shape != matrix.shape[:1] or not np.all(np.isfinite(start)):
        raise ValueError(
            "`start` must be a finite vector with one number for each row of "
            f"`covariance`, {matrix.shape[0]}. Got shape {start.shape}."
        )
    _, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    # Largest first, as the spectrum has them, and no more than it has.
    basis, norms = facing(vectors[:, ::-1][:, : spectrum.dim], start)
    return spectrum, norms, basis


def is_diagonal(basis: Float[Array, "p d"] | None) -> bool:
    """Whether the eigenvectors are known to be the coordinates themselves, in any order
    and of either sign."""
    if basis is None:
        return True
    if is_traced(basis):
        return False
    sizes = np.abs(np.asarray(basis))
    tolerance = 8 * np.finfo(sizes.dtype).eps
    return bool(np.all(np.minimum(sizes, np.abs(sizes - 1)) <= tolerance))
