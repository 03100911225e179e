r"""The steps of a block, which are left with a few numbers of each of its samples.

Three steps with one sample each, $p = A z$ and $G = A A^T$: with $c(w)$ for the rate
times the clipped slope of the loss at a prediction $w$,

$$C_1 = c(p_1), \qquad C_2 = c(p_2 - G_{21} C_1), \qquad
C_3 = c(p_3 - G_{31} C_1 - G_{32} C_2),$$

and the parameters end at $z - A^T C$. It is the forward substitution of a triangular
system with a function $c$ in place of a division.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._numerics import exact_dot, safe_sqrt
from ...clip import AbstractClip
from ...problem import AbstractLinear
from ...transform import AbstractScope, PerExample, PerTree

# Samples of a tile: with more of them the steps that are written out take long to
# compile, with fewer the products are small.
_TILE = 16


class Plan(NamedTuple):
    """How the steps between two records are cut.

    - `blocks`: so many blocks, one after the other.
    - `tiles`: the tiles of a block, brought up to date by a matrix product each.
    - `tile`: the steps of a tile, written out one by one.
    - `batch`: the samples of a step.
    """

    blocks: int
    tiles: int
    tile: int
    batch: int

    @property
    def length(self) -> int:
        """The steps of a block, those that are padded included."""
        return self.tiles * self.tile

    @property
    def rows(self) -> int:
        """The samples of a tile."""
        return self.tile * self.batch


class Block(NamedTuple):
    """What the steps of a block need, in the order of its samples.

    With `n` samples in `k` steps:

    - `prediction`: shape `(n,)`, $A z$: of the parameters at the start of the block.
    - `target`: shape `(n,)`.
    - `gram`: shape `(n, n)`, $A A^T$.
    - `step`: shape `(k,)`, the index of each step, and `rate`: shape `(k,)`, its
        learning rate, 0 for a step that is padded.

    It may stand for a tile or one step of the block, too. Of one step, `step` and
    `rate` are numbers.
    """

    prediction: Float[Array, " n"]
    target: Float[Array, " n"]
    gram: Float[Array, "n n"]
    step: Int[Array, " k"]
    rate: Float[Array, " k"]


class Coefficients(eqx.Module):
    """What one step subtracts, as a multiple of each sample's features."""

    problem: AbstractLinear
    clip: AbstractClip
    scope: AbstractScope

    def __call__(self, one: Block) -> Float[Array, " b"]:
        """The rows of $C$ of one step, from the predictions at its start."""
        slope = jax.vmap(self.problem.slope)(one.prediction, one.target)
        return one.rate * clipped(self.clip, self.scope, slope, one.gram, one.step)


def plan_of(every: int, steps: int, batch: int) -> Plan:
    """Blocks of at most so many `steps`, between records that are `every` steps apart.

    Blocks are cut evenly; of the tiles' sizes the one that pads least is taken.
    """
    blocks = -(-every // steps)
    steps = -(-every // blocks)
    most = max(1, _TILE // batch)
    candidates = range(max(1, most // 2), most + 1)
    # Of sizes that pad as little the largest: fewer products.
    tile = min(candidates, key=lambda t: (-(-steps // t) * t, -t))
    return Plan(blocks, -(-steps // tile), tile, batch)


def solve(block: Block, coefficients: Coefficients, plan: Plan) -> Float[Array, " n"]:
    """The coefficients $C$ of a block's samples, tile by tile from the first one on."""
    tiles, rows = plan.tiles, plan.rows

    def body(state, tile):
        C, start = state
        # All that the tiles before have moved this one's predictions by. The rows of C
        # that are not yet known are 0, so that one product of a fixed shape does.
        prediction = tile.prediction - exact_dot(tile.gram, C)
        own = jax.lax.dynamic_slice_in_dim(tile.gram, start, rows, axis=1)
        found = _tile(tile._replace(prediction=prediction, gram=own), coefficients)
        C = jax.lax.dynamic_update_slice_in_dim(C, found, start, axis=0)
        return (C, start + rows), None

    tiled = Block(
        prediction=block.prediction.reshape(tiles, rows),
        target=block.target.reshape(tiles, rows),
        gram=block.gram.reshape(tiles, rows, -1),
        step=block.step.reshape(tiles, -1),
        rate=block.rate.reshape(tiles, -1),
    )
    (C, _), _ = jax.lax.scan(body, (jnp.zeros_like(block.prediction), 0), tiled)
    return C


def _tile(tile: Block, coefficients: Coefficients) -> Float[Array, " n"]:
    """The coefficients of one tile's samples, whose Gram matrix is square.

    The steps are written out in Python: a batch of settings then runs through the tile
    in one pass, without a loop around every few numbers.
    """
    batch = len(tile.target) // len(tile.step)
    done: list[Float[Array, " b"]] = []
    for j in range(len(tile.step)):
        mine = slice(j * batch, (j + 1) * batch)
        now = tile.prediction[mine]
        for i, c in enumerate(done):
            moved = tile.gram[mine, i * batch : (i + 1) * batch] * c[None, :]
            now = now - jnp.sum(moved, axis=1)
        gram = tile.gram[mine, mine]
        one = Block(now, tile.target[mine], gram, tile.step[j], tile.rate[j])
        done.append(coefficients(one))
    return jnp.concatenate(done)


def clipped(
    clip: AbstractClip,
    scope: AbstractScope,
    slope: Float[Array, " b"],
    gram: Float[Array, "b b"],
    step: Array,
) -> Float[Array, " b"]:
    """What a clipped batch gradient is in terms of the batch's features.

    **Arguments:**

    - `slope`: shape `(b,)`, the slope of the loss of each sample: its gradient is so
        many times its features.
    - `gram`: shape `(b, b)`, the products of the features with each other.
    - `step`: where the thresholds are taken.

    **Returns:**

    Shape `(b,)`: the clipped gradient is so many times each sample's features.
    """
    if isinstance(scope, PerExample):
        # |slope * a| for each sample, whose squared length is on the diagonal.
        norms = jnp.abs(slope) * jnp.sqrt(jnp.diagonal(gram))
        return scope.share(len(slope)) * slope * clip.factor(norms, step)
    if isinstance(scope, PerTree):
        # The squared length of the mean gradient, a quadratic form in the Gram matrix.
        mean = slope / len(slope)
        square = jnp.sum(mean * jnp.sum(gram * mean[None, :], axis=1))
        return mean * clip.factor(safe_sqrt(square), step)
    raise ValueError(
        "This engine clips over the tree (`PerTree()`) or per example "
        f"(`PerExample()`). Got {scope!r}; use `engine=Direct()` for it."
    )
