r"""Collocation at Radau nodes for equations that are linear in what they follow.

A step of Radau's method IIA with five nodes is of order 9, and stiff parts are damped
by it however fast they are. Of a linear equation its nodes are a linear system, here
one small system for every mode: matrices have the shape `(t, t, n)` and vectors
`(t, n)`, with `t` nodes and `n` modes, or one for all of them. Source of the method:
Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.8.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import legendre

_STAGES = 5


def _right_nodes(count: int) -> np.ndarray:
    """The Radau nodes on [0, 1], whose last is the end."""
    difference = np.zeros(count + 1)
    difference[-2:] = -1.0, 1.0
    nodes = (np.sort(legendre.legroots(difference)) + 1) / 2
    nodes[-1] = 1.0
    return nodes


NODES = _right_nodes(_STAGES)
_POWERS = np.vander(NODES, increasing=True)
# Row i integrates the polynomial through values at the nodes from 0 to node i.
INTEGRALS = (
    NODES[:, None] ** np.arange(1, _STAGES + 1) / np.arange(1, _STAGES + 1)
) @ (np.linalg.inv(_POWERS))
# What the estimate of a step's error takes of the derivative at its start: the one real
# eigenvalue of `INTEGRALS`, as in the book.
FILTER = float(np.real(next(x for x in np.linalg.eigvals(INTEGRALS) if not x.imag)))
# A quadrature with that weight on the start, and of order 5, less the method's own.
_moments = 1 / np.arange(1, _STAGES + 1) - FILTER * (np.arange(_STAGES) == 0)
ESTIMATE = np.linalg.solve(_POWERS.T, _moments) - INTEGRALS[-1]
# By powers of the share of a step, the polynomial through the start and the nodes.
LAGRANGE = np.linalg.inv(np.vander(np.append(0.0, NODES), increasing=True)).T


def times(left: Float[Array, "t t #n"], right: Float[Array, "t t #n"]) -> Array:
    """The products of matrices, one for each mode."""
    return jnp.sum(left[:, :, None] * right[None], axis=1)


def apply(matrix: Float[Array, "t t #n"], vector: Float[Array, "t #n"]) -> Array:
    """The products of matrices with vectors, one for each mode."""
    return jnp.sum(matrix * vector[None], axis=1)


def inverse(matrix: Float[Array, "t t n"]) -> Float[Array, "t t n"]:
    """The inverses of matrices, one for each mode."""
    eye = jnp.broadcast_to(jnp.eye(len(matrix))[:, :, None], matrix.shape)
    return _eliminate(jnp.concatenate([matrix, eye.astype(matrix.dtype)], axis=1))


def _eliminate(rows: Float[Array, "t m n"]) -> Float[Array, "t k n"]:
    # A library would be called once for each mode. No pivots are needed: with the
    # method's weights the matrices are positive, since it is algebraically stable.
    for _ in range(len(rows)):
        # The first row is used up, and becomes the last; its column is left out.
        row = rows[0, 1:] / rows[0, 0][None]
        rest = rows[1:, 1:] - rows[1:, 0][:, None] * row[None]
        rows = jnp.concatenate([rest, row[None]], axis=0)
    return rows
