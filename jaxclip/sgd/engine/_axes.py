r"""The axes of the eigenspaces that a run on Gaussian features depends on.

The symbols are those of `_lumped.py`, which says how a step uses them.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ..._numerics import safe_sqrt
from ..._random import chi_squared
from ..._types import Key, PyTree
from ...problem import AbstractGaussianLinear


class Draw(NamedTuple):
    r"""What is random in one step of `b` samples.

    With `m` eigenvalues and `n` axes, one or two for each of them:

    - `features`: shape `(b, n)`, $\sqrt{\lambda_j} u_j$, along the axes.
    - `target`: shape `(b,)`.
    - `triangle`: shape `(m, b, b)`, $\sqrt{\lambda_j} L_j$, for what is beside them.
    - `key`: draws the noise of the scope.
    """

    features: Float[Array, "b n"]
    target: Float[Array, " b"]
    triangle: Float[Array, "m b b"]
    key: Key


class Motion(NamedTuple):
    """What one step subtracts from the error.

    - `along`: shape `(n,)`, its component along each axis.
    - `beside`: shape `(m,)`, in each eigenspace the squared length of all the rest.
    """

    along: Float[Array, " n"]
    beside: Float[Array, " m"]


class Axes(eqx.Module):
    r"""The axes of each eigenspace that a run depends on, and what is beside them.

    - `problem`: the same problem on the axes alone.
    - `eigenvalues`: shape `(m,)`, $\lambda_j$.
    - `hidden`: shape `(m,)`, $n_j$: how many dimensions of each eigenspace are no axis.
    - `exists`: shape `(n,)`, which axes there are: in an eigenspace of one dimension a
        fixed axis leaves none for the rest of the error.
    - `fixed`: how many axes, the first ones, do not turn with the error.
    """

    problem: AbstractGaussianLinear
    eigenvalues: Float[Array, " m"]
    hidden: Int[Array, " m"]
    exists: Bool[Array, " n"]
    fixed: int = eqx.field(static=True)

    @classmethod
    def of(cls, problem: AbstractGaussianLinear) -> "Axes":
        lumped, spectrum = problem.lumped(), problem.spectrum
        blocks = spectrum.eigenvalues.size
        each = lumped.spectrum.dim // blocks
        fixed = lumped.spectrum.dim - blocks
        exists = jnp.concatenate([jnp.ones(fixed, bool), spectrum.multiplicity >= each])
        hidden = jnp.maximum(spectrum.multiplicity - each, 0)
        return cls(lumped, spectrum.eigenvalues, hidden, exists, fixed)

    def draw(
        self, stream: PyTree[Array], key: Key, step: Int[Array, ""], rows: int
    ) -> Draw:
        """What is random in a step of `rows` samples."""
        index = step * rows + jnp.arange(rows)
        A, y = jax.vmap(self.problem.example, (None, 0))(stream, index)
        triangle_key, noise_key = jr.split(jr.fold_in(key, step))
        root = jnp.sqrt(self.eigenvalues)[:, None, None]
        L = root * bartlett(triangle_key, self.hidden, rows)
        return Draw(jnp.where(self.exists[None, :], A, 0.0), y, L, noise_key)

    def change(self, r: Float[Array, " n"], motion: Motion) -> Float[Array, " n"]:
        r"""What a step adds to the components `r` of the error.

        On a fixed axis it is $-s$. A norm $r$ becomes $\sqrt{(r - s)^2 + q}$, with
        $s$ the motion along the error and $q$ the squared one beside it, which adds
        $(s (s - 2r) + q) / (\sqrt{(r - s)^2 + q} + r)$: of this less is lost to
        rounding than of the difference of two norms.
        """
        s, q = motion.along[self.fixed :], motion.beside
        turned = r[self.fixed :]
        both = safe_sqrt((turned - s) ** 2 + q) + turned
        both = jnp.where(both > 0, both, 1.0)
        grown = (s * (s - 2 * turned) + q) / both
        return jnp.concatenate([-motion.along[: self.fixed], grown])


def bartlett(
    key: Key, dims: Int[Array, " m"], rows: int
) -> Float[Array, "m {rows} {rows}"]:
    """Triangular L with L L' distributed like X X', X a matrix of standard normal
    numbers with `rows` rows and `dims[j]` columns, of which there may be fewer."""
    normal_key, square_key = jr.split(key)
    left = dims[:, None] - jnp.arange(rows)[None, :]
    diagonal = jnp.sqrt(chi_squared(square_key, left))
    L = diagonal[:, :, None] * jnp.eye(rows)[None]
    if rows == 1:
        return L
    # A column that X does not have is zero below the diagonal as on it.
    below = jnp.tril(jr.normal(normal_key, (dims.size, rows, rows)), -1)
    return L + jnp.where((left > 0)[:, None, :], below, 0.0)
