"""Clipping relative to the weights, a unit at a time: AGC."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import positive
from .._types import PyTree
from ._norm import safe_norm
from ._scope import AbstractScope, times

# The axes that lead into one unit, by the rank of a leaf: those of weights of shape
# (in, out) and (in, heads, out), and of kernels of convolutions in two and three
# dimensions.
_INTO_A_UNIT = {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}


class PerUnit(AbstractScope):
    r"""The gradient of one unit's weights, relative to the weights: AGC.

    $$n_i = \frac{\|g_i\|}{\max(\|w_i\|, \varepsilon)},$$

    so that `HardClip(0.01)` keeps the gradient below a hundredth of the weight's norm
    (Brock et al. 2021, arXiv:2102.06171), as `optax.adaptive_grad_clip(0.01)` does. The
    weights into a unit are those along the first axis of a matrix, all but the last of
    the kernel of a convolution, and all of a vector. The transform's `update` needs the
    parameters.

    **Arguments:**

    - `eps`: $\varepsilon > 0$, the least norm that weights are taken to have, in their
        unit: weights that start at zero could not move without it.
    - `axis`: the axes of each leaf that lead into one unit, where those above are not
        the ones.
    """

    eps: Float[Array, ""] = eqx.field(converter=partial(positive, "eps"), default=1e-3)
    axis: int | tuple[int, ...] | None = eqx.field(static=True, default=None)

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        if params is None:
            raise ValueError(
                "`PerUnit` clips relative to the parameters and was given none. Call "
                "`update(updates, state, params)`."
            )

        def relative(gradient, weight):
            if jnp.shape(gradient) != jnp.shape(weight):
                raise ValueError(
                    "`PerUnit` needs a gradient of the parameters' shapes. Got "
                    f"{jnp.shape(gradient)} and {jnp.shape(weight)}."
                )
            norm, size = self._norm(gradient), self._norm(weight)
            return norm / jnp.maximum(size, self.eps.astype(size.dtype)).astype(
                norm.dtype
            )

        return jax.tree.map(relative, updates, params)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)

    def _norm(self, leaf: Array) -> Float[Array, "..."]:
        """The norms of the units, with an axis of length 1 for each that is summed."""
        leaf = jnp.asarray(leaf)
        summed = self._axes(leaf)
        kept = [axis for axis in range(leaf.ndim) if axis not in summed]
        # The summed axes last, beneath one `vmap` for each that is kept.
        norm = safe_norm
        for _ in kept:
            norm = jax.vmap(norm)
        norms = norm(jnp.transpose(leaf, (*kept, *summed)))
        return jnp.expand_dims(norms, summed)

    def _axes(self, leaf: Array) -> tuple[int, ...]:
        if self.axis is not None:
            axes = (self.axis,) if isinstance(self.axis, int) else self.axis
            return tuple(sorted(axis % leaf.ndim for axis in axes))
        if jnp.squeeze(leaf).ndim <= 1:
            return tuple(range(leaf.ndim))
        if leaf.ndim not in _INTO_A_UNIT:
            raise ValueError(
                "`PerUnit` knows which axes lead into a unit for up to 5 of them. Got "
                f"a leaf of shape {leaf.shape}; say which by `axis`."
            )
        return _INTO_A_UNIT[leaf.ndim]
