r"""SGD on a linear model, many steps at a time.

Every sample gradient is a number times the sample's features, so that after $j$ steps
of a block with features $A$ (one row a sample) the parameters are $z - A^T C$, with the
rows of $C$ not yet done equal to 0, and the next prediction is
$(A z)_j - (A A^T C)_j$. The steps therefore need $A z$ and $A A^T$, two matrix
products, and then only numbers of the block. Algebraically it is the same trajectory.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._checks import count
from ..._curve import Curve
from ..._numerics import exact_dot, safe_sqrt
from ..._types import Schedule
from ...clip import AbstractClip
from ...problem import AbstractLinear, AbstractProblem
from ...transform import AbstractScope, PerExample, PerTree
from .._loop import Run, record
from ._base import AbstractEngine

_TILE = 16


def run_blocked(
    problem: AbstractLinear,
    clip: AbstractClip,
    lr: Schedule,
    run: Run,
    size: int,
) -> Curve:
    """Clipped SGD in blocks of about `size` samples."""
    stream, batch_size, scope = problem.stream(run.key), run.batch_size, run.scope
    blocks, tiles, tile = _plan(run.every, max(1, size // batch_size), batch_size)
    length = tiles * tile

    # Without the checkpoint a reverse pass would keep the features of every block.
    @jax.checkpoint
    def block(params, first, end):
        step = first + jnp.arange(length)
        index = first * batch_size + jnp.arange(length * batch_size)
        # Padded steps draw a sample that exists and then do not use it.
        index = jnp.minimum(index, end * batch_size - 1)
        A, y = jax.vmap(problem.example, (None, 0))(stream, index)
        # Without the barrier XLA draws the features again inside of each product.
        A = jax.lax.optimization_barrier(A)
        product = exact_dot(A, params)
        gram = exact_dot(A, A.T)
        rates = jnp.where(step < end, _rates(lr, step), 0.0)
        noise = step_noise(scope, params, step)
        if noise is not None:
            noise = rates[:, None] * noise
            product = product - _earlier(A, noise)
            params = params - jnp.sum(noise, axis=0)

        def coefficients(prediction, target, own_gram, k, rate):
            """C for one step: what of each row of its batch is subtracted."""
            slope = jax.vmap(problem.slope)(prediction, target)
            return rate * clipped(clip, scope, slope, own_gram, k)

        C = _solve_block(
            product, gram, y, step, rates, coefficients, (tiles, tile, batch_size)
        )
        return params - exact_dot(C, A)

    def advance(params, first):
        def body(params, i):
            return block(params, first + i * length, first + run.every), None

        return jax.lax.scan(body, params, jnp.arange(blocks))[0]

    return record(problem, run, advance, problem.init(), params_of=lambda x: x)


def _solve_block(product, gram, y, step, rates, coefficients, shape):
    """The coefficients of a block's rows, left-looking in tiles.

    Between tiles a matrix product brings a tile's predictions up to date; inside of
    one, the steps are written out, so that a batch of settings runs through the tile
    in one pass.
    """
    tiles, tile, batch = shape
    rows = tile * batch

    def body(carry, xs):
        C, start = carry
        prediction, target, tile_gram, k, rate = xs
        prediction = prediction - exact_dot(tile_gram, C)
        own = jax.lax.dynamic_slice_in_dim(tile_gram, start, rows, axis=1)
        done = []
        for j in range(tile):
            mine = slice(j * batch, (j + 1) * batch)
            now = prediction[mine]
            for i, c in enumerate(done):
                earlier = own[mine, i * batch : (i + 1) * batch]
                now = now - jnp.sum(earlier * c[None, :], axis=1)
            done.append(coefficients(now, target[mine], own[mine, mine], k[j], rate[j]))
        C = jax.lax.dynamic_update_slice_in_dim(C, jnp.concatenate(done), start, axis=0)
        return (C, start + rows), None

    xs = (
        product.reshape(tiles, rows),
        y.reshape(tiles, rows),
        gram.reshape(tiles, rows, -1),
        step.reshape(tiles, tile),
        rates.reshape(tiles, tile),
    )
    (C, _), _ = jax.lax.scan(body, (jnp.zeros_like(product), 0), xs)
    return C


def clipped(
    clip: AbstractClip,
    scope: AbstractScope,
    slope: Float[Array, " b"],
    gram: Float[Array, "b b"],
    step: Array,
) -> Float[Array, " b"]:
    """What a clipped batch gradient is in terms of the batch's features."""
    if isinstance(scope, PerExample):
        norms = jnp.abs(slope) * jnp.sqrt(jnp.diagonal(gram))
        return scope.share(len(slope)) * slope * clip.factor(norms, step)
    if isinstance(scope, PerTree):
        mean = slope / len(slope)
        square = jnp.sum(mean * jnp.sum(gram * mean[None, :], axis=1))
        return mean * clip.factor(safe_sqrt(square), step)
    raise ValueError(
        "This engine clips over the tree (`PerTree()`) or per example "
        f"(`PerExample()`). Got {scope!r}; use `engine=Direct()` for it."
    )


def step_noise(
    scope: AbstractScope, params: Float[Array, " d"], step: Int[Array, " t"]
) -> Float[Array, "t d"] | None:
    """What the scope adds to the clipped gradient at each step; None if nothing."""
    if not isinstance(scope, PerExample) or scope.noise_std is None:
        return None
    return jax.vmap(scope.perturb, (None, 0))(jnp.zeros_like(params), step)


def _earlier(A: Float[Array, "n d"], noise: Float[Array, "t d"]) -> Float[Array, " n"]:
    """What the noise of the steps before its own has moved each sample's prediction."""
    moved = exact_dot(A, noise.T)
    own = jnp.repeat(jnp.arange(len(noise)), len(A) // len(noise))
    before = jnp.arange(len(noise))[None, :] < own[:, None]
    return jnp.sum(jnp.where(before, moved, 0.0), axis=1)


def _rates(lr: Schedule, step: Array) -> Float[Array, " t"]:
    return jax.vmap(lambda k: jnp.asarray(lr(k)))(step)


def _plan(every: int, size: int, batch_size: int) -> tuple[int, int, int]:
    """Blocks between two records, tiles in a block and steps in a tile.

    Blocks are cut evenly; of the tiles' sizes the one that pads least is taken.
    """
    blocks = -(-every // size)
    steps = -(-every // blocks)
    most = max(1, _TILE // batch_size)
    candidates = range(max(1, most // 2), most + 1)
    tile = min(candidates, key=lambda t: (-(-steps // t) * t, -t))
    return blocks, -(-steps // tile), tile


class Blocked(AbstractEngine):
    """Many steps at a time by matrix products, for linear models.

    The same trajectory as [`jaxclip.Direct`][] to rounding, several times faster, and
    much more so under a `vmap` over settings that share their key: the features and
    their Gram matrix are then made once for all settings. The memory of a block is
    `size * (d + size)` numbers, and a gradient keeps one set of parameters a block.

    **Arguments:**

    - `size`: samples in a block; blocks are cut at every recorded step. By default
        128 where at least 64 settings share them in more than 100 dimensions, and 64
        otherwise: a longer block makes larger products, but its Gram matrix costs
        `size / settings` of them.
    - `settings`: how many settings a `vmap` around the run holds, which the run itself
        cannot see. It changes the default of `size` and nothing else.
    """

    size: int | None = eqx.field(static=True, default=None)
    settings: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        count("settings", self.settings)
        if self.size is not None:
            count("size", self.size)

    def block(self, dim: int) -> int:
        """The samples in a block of a problem in `dim` dimensions."""
        if self.size is not None:
            return self.size
        return 128 if self.settings >= 64 and dim > 100 else 64

    def compute(
        self, problem: AbstractProblem, clip: AbstractClip, lr: Schedule, run: Run
    ) -> Curve:
        if not isinstance(problem, AbstractLinear):
            raise ValueError(
                "`Blocked()` needs a linear model, whose gradients are multiples of "
                f"the features. Got a {type(problem).__name__}; use `Direct()`."
            )
        size = self.block(problem.init().size)
        return run_blocked(problem, clip, lr, run, size)
