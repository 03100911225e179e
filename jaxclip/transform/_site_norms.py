r"""The norm of the gradient of one layer's weights, from what goes in and comes back.

A layer that multiplies its input $a_t$ at each of $T$ positions by the same weights has
the gradient $G = \sum_t a_t b_t^T$, with the cotangents $b_t$ of its output. Its norm

$$\|G\|^2 = \sum_{t, s} (a_t \cdot a_s) (b_t \cdot b_s)$$

needs no matrix of the weights' shape: `||a|| ||b||` for one position (Goodfellow 2015,
arXiv:1510.01799), the product of two matrices of $T^2$ numbers for few positions (Li et
al. 2022, arXiv:2110.05679). For many the matrix itself is smaller, and is taken. Where
positions nearly cancel, a sum of products has the rounding of its terms.

Everything here is for one example; the caller maps over a batch.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode
from jaxtyping import Array, Float

from .._numerics import exact_einsum
from ._program import Op, Program
from ._sums import root_power


def has_formula(code: Program, op: Op, position: int) -> bool:
    """Whether `site_norm` knows the operation with weights at this operand."""
    kinds = [code.types[index] for index in (*op.inputs, *op.outputs)]
    if any(jnp.issubdtype(kind.dtype, jnp.complexfloating) for kind in kinds):
        return False
    if op.name == "dot_general":
        return not any(op.params["dimension_numbers"][1])
    if op.name == "conv_general_dilated":
        groups = op.params["feature_group_count"] * op.params["batch_group_count"]
        return position == 1 and groups == 1
    if op.name == "gather":
        return position == 0 and _takes_rows(op, kinds[0], kinds[-1])
    return op.name == "dynamic_slice" and position == 0


def site_norm(
    code: Program, op: Op, position: int, others: Sequence[Array], back: Array
) -> Float[Array, ""]:
    """The norm of the gradient of the weights of one operation.

    **Arguments:**

    - `op`, `position`: an operation with its weights at that operand.
    - `others`: the other operands.
    - `back`: the cotangent of the output.
    """
    # Squares of squares are summed below, and would overflow at the fourth root.
    back, size = _scaled(back)
    if op.name == "dynamic_slice":
        return jnp.sqrt(jnp.sum(back**2)) * size * size
    (other,) = others
    if op.name == "gather":
        rows = _of_rows(op, code.types[op.inputs[0]].shape[0], other, back)
        return rows * size * size
    other, length = _scaled(other)
    if op.name == "dot_general":
        summed = op.params["dimension_numbers"][0][1 - position]
        kept = [axis for axis in range(other.ndim) if axis not in summed]
        positions = math.prod(other.shape[axis] for axis in kept)
        pieces = [jnp.transpose(other, (*kept, *summed)).reshape(positions, -1)]
        # The axes of the left operand come first in the output.
        first = position == 1
        b = back.reshape(positions, -1) if first else back.reshape(-1, positions).T
    else:
        pieces = _patches(op, code.types[op.inputs[1]].shape, other, back.shape)
        _, _, (batch, feature, *spatial) = op.params["dimension_numbers"]
        b = jnp.transpose(back, (batch, *spatial, feature))
        b = b.reshape(-1, b.shape[-1])
    # One by one: a product of scales may be out of range where the norm is not.
    return _of_products(pieces, b) * size * length * size * length


def _of_products(
    pieces: Sequence[Float[Array, "t c"]], b: Float[Array, "t o"]
) -> Float[Array, ""]:
    """The norm of the matrices `a.T @ b` of some pieces `a`, taken together."""
    positions, columns = pieces[0].shape[0], sum(a.shape[1] for a in pieces)
    if positions == 1:
        square = sum(jnp.sum(a**2) for a in pieces) * jnp.sum(b**2)
    elif positions * (columns + b.shape[1]) < columns * b.shape[1]:
        grams = [exact_einsum("tc,sc->ts", a, a) for a in pieces]
        square = jnp.sum(sum(grams[1:], grams[0]) * exact_einsum("to,so->ts", b, b))
    else:
        squares = [jnp.sum(exact_einsum("tc,to->co", a, b) ** 2) for a in pieces]
        square = sum(squares[1:], squares[0])
    # Rounding can leave less than nothing of pairs that cancel.
    return jnp.sqrt(jnp.maximum(square, 0))


def _of_rows(op: Op, length: int, indices: Array, back: Array) -> Float[Array, ""]:
    """Of a table whose rows were taken: cotangents of the same row are added."""
    rows = indices[..., 0].reshape(-1)
    back = back.reshape(rows.shape[0], -1)
    if op.params["mode"] == GatherScatterMode.CLIP:
        rows = jnp.clip(rows, 0, length - 1)
    inside = (rows >= 0) & (rows < length)
    same = (rows[:, None] == rows[None, :]) & inside[:, None]
    pairs = exact_einsum("to,so->ts", back, back)
    square = jnp.sum(jnp.where(same, pairs, jnp.zeros_like(pairs)))
    return jnp.sqrt(jnp.maximum(square, 0))


def _takes_rows(op: Op, table: Any, out: Any) -> bool:
    """Whether a `gather` is `table[indices]`, for indices of any shape."""
    dims, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    # Slices of one row under `vmap` start at further indices, which are clipped to 0.
    clips = op.params["mode"] == GatherScatterMode.CLIP
    first = dims.start_index_map[:1] == (0,)
    return (
        first
        and (len(dims.start_index_map) == 1 or clips)
        and dims.collapsed_slice_dims in ((), (0,))
        and not dims.operand_batching_dims
        and tuple(sizes) == (1, *table.shape[1:])
        # The columns last, behind the axes of the indices.
        and dims.offset_dims == tuple(range(out.ndim - len(dims.offset_dims), out.ndim))
    )


def _patches(
    op: Op, kernel: tuple[int, ...], x: Array, out: tuple[int, ...]
) -> list[Float[Array, "t c"]]:
    """What each entry of a convolution's kernel is multiplied by: a piece for each
    place in the kernel, with a row for each place of the output."""
    (batch, feature, *spatial), (_, _, *places), (_, _, *outer) = op.params[
        "dimension_numbers"
    ]
    x = jnp.transpose(x, (batch, *spatial, feature))
    dilated = op.params["lhs_dilation"]
    config = [
        (*edges, step - 1)
        for edges, step in zip(op.params["padding"], dilated, strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    strides, steps = op.params["window_strides"], op.params["rhs_dilation"]
    sizes = [out[axis] for axis in outer]
    pieces = []
    for place in itertools.product(*(range(kernel[axis]) for axis in places)):
        start = [i * step for i, step in zip(place, steps, strict=True)]
        stop = [
            i + (size - 1) * stride + 1
            for i, size, stride in zip(start, sizes, strides, strict=True)
        ]
        piece = jax.lax.slice(
            x,
            (0, *start, 0),
            (x.shape[0], *stop, x.shape[-1]),
            (1, *strides, 1),
        )
        pieces.append(piece.reshape(-1, x.shape[-1]))
    return pieces


def _scaled(numbers: Array) -> tuple[Array, Float[Array, ""]]:
    """The numbers in float32 or better over the square of a power of two, which is
    about their largest modulus, and that power."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(numbers.dtype, jnp.float32)
    numbers = numbers.astype(dtype)
    largest = jnp.max(jnp.abs(numbers), initial=0.0)
    usable = (largest > 0) & jnp.isfinite(largest)
    half = root_power(jnp.where(usable, largest, jnp.ones_like(largest)))
    return numbers * (1 / half) * (1 / half), half
