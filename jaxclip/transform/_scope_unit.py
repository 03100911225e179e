"""Clipping relative to the weights, a unit at a time: AGC."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import positive
from .._types import PyTree
from ._norm import norms, reals
from ._scope import AbstractScope, times
from ._sums import AxisName

Axes: TypeAlias = int | tuple[int, ...]

# The axes that lead into one unit, by the rank of a leaf: those of weights of shape
# (in, out) and (in, heads, out), and of kernels of convolutions in two and three
# dimensions.
_INTO_A_UNIT = {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}


class PerUnit(AbstractScope):
    r"""The norm of the gradient of each unit's weights, relative to theirs: AGC.

    $$n_i = \frac{\|g_i\|}{\max(\|w_i\|, \varepsilon)},$$

    so that `HardClip(0.01)` keeps the gradient below a hundredth of the weight's norm
    (Brock et al. 2021, arXiv:2102.06171), as `optax.adaptive_grad_clip(0.01)` does. The
    weights into a unit are those along the first axis of a matrix, all but the last of
    the kernel of a convolution, and all of a vector: flax's layout. The transform's
    `update` needs the parameters.

    ```python
    jaxclip.PerUnit(unit=0)  # equinox, torch: (out, in) and (out, in, height, width)
    jaxclip.PerUnit(axis=lambda path, leaf: 0 if "embedding" in path else None)
    ```

    **Arguments:**

    - `eps`: $\varepsilon > 0$, the least norm that weights are taken to have, in their
        unit: weights that start at zero could not move without it.
    - `axis`: the axes of a leaf that lead into one unit, where those above are not the
        ones: a number or a tuple, of which a leaf of fewer axes has only some, and a
        vector, which is one unit then, may have none; or a function of a leaf's path,
        as `jax.tree_util.keystr` writes it, and of the leaf, which returns one of
        these, or `None` for those above.
    - `unit`: the axis along which the units lie, in place of `axis`: all others lead
        into one. A vector is one unit as a whole.
    - `axis_name`: as of [`jaxclip.PerTree`][]: inside of `jax.shard_map`, the mesh axes
        over which each device holds a part of the weights into each unit.

    **Raises:**

    A `ValueError` where both `axis` and `unit` are given, where the parameters are
    missing or of another shape, or where a leaf has none of the axes.
    """

    eps: Float[Array, ""] = eqx.field(
        converter=partial(positive, "eps", in_step=True), default=1e-3
    )
    axis: Axes | Callable[[str, Any], Axes | None] | None = eqx.field(
        static=True, default=None
    )
    unit: int | None = eqx.field(static=True, default=None)
    axis_name: AxisName = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.axis is not None and self.unit is not None:
            raise ValueError(
                "`axis` names the axes into a unit and `unit` the one along which the "
                f"units lie: give one of them. Got axis={self.axis!r} and "
                f"unit={self.unit!r}."
            )

    def norms(
        self, updates: PyTree[Array], params: PyTree[Array] | None
    ) -> PyTree[Float[Array, "..."]]:
        if params is None:
            raise ValueError(
                "`PerUnit` clips relative to the parameters and was given none. Call "
                "`update(updates, state, params)`."
            )

        def relative(path, gradient, weight):
            if jnp.shape(gradient) != jnp.shape(weight):
                raise ValueError(
                    "`PerUnit` needs a gradient of the parameters' shapes. Got "
                    f"{jnp.shape(gradient)} and {jnp.shape(weight)}."
                )
            axes = self._axes(jax.tree_util.keystr(path), jnp.asarray(weight))
            norm, size = (self._norm(leaf, axes) for leaf in (gradient, weight))
            return norm / jnp.maximum(size, self.eps.astype(size.dtype)).astype(
                norm.dtype
            )

        return jax.tree.map_with_path(relative, updates, params)

    def multiply(
        self, updates: PyTree[Array], factors: PyTree[Float[Array, "..."]]
    ) -> PyTree[Array]:
        return jax.tree.map(times, updates, factors)

    def _norm(self, leaf: Array, axes: tuple[int, ...]) -> Float[Array, "..."]:
        """The norms of the units, with an axis of length 1 for each that is summed."""
        leaf = jnp.asarray(leaf)
        kept = [axis for axis in range(leaf.ndim) if axis not in axes]
        with jax.numpy_dtype_promotion("standard"):
            parts = [jnp.transpose(part, (*kept, *axes)) for part in reals(leaf)]
            return jnp.expand_dims(norms(parts, len(kept), self.axis_name), axes)

    def _axes(self, path: str, leaf: Array) -> tuple[int, ...]:
        """The axes that lead into a unit, of a leaf at a path."""
        axis = self.axis(path, leaf) if callable(self.axis) else self.axis
        rank = leaf.ndim
        if axis is not None:
            axes = (axis,) if isinstance(axis, int) else axis
            # A tuple may name those of a kernel, of which a matrix has fewer.
            here = [a % rank for a in axes if -rank <= a < rank]
            if not here and rank > 1:
                raise ValueError(
                    f"`PerUnit` needs an axis of every leaf. Got axis={axis!r} for a "
                    f"leaf of shape {leaf.shape} at {path}."
                )
            return tuple(sorted(set(here))) or tuple(range(rank))
        if jnp.squeeze(leaf).ndim <= 1:
            return tuple(range(rank))
        if self.unit is not None:
            if not -rank <= self.unit < rank:
                raise ValueError(
                    f"`PerUnit` needs a leaf with the axis of units. Got "
                    f"unit={self.unit} and a leaf of shape {leaf.shape} at {path}."
                )
            return tuple(a for a in range(rank) if a != self.unit % rank)
        if rank not in _INTO_A_UNIT:
            raise ValueError(
                "`PerUnit` knows which axes lead into a unit for up to 5 of them. Got "
                f"a leaf of shape {leaf.shape} at {path}; say which by `axis` or "
                "`unit`."
            )
        return _INTO_A_UNIT[rank]
