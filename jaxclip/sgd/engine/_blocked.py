r"""SGD on a linear model, many steps at a time.

Every sample gradient is a number times the sample's features, so that after $j$ steps
of a block with features $A$ (one row a sample) the parameters are $z - A^T C$, with the
rows of $C$ not yet done equal to 0, and the next prediction is
$(A z)_j - (A A^T C)_j$. The steps therefore need $A z$ and $A A^T$, two matrix
products, and then only numbers of the block. Algebraically it is the same trajectory.
What is left of a block is solved in `_tiles.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._checks import count
from ..._curve import Curve
from ..._numerics import exact_dot
from ..._types import Schedule
from ...clip import AbstractClip
from ...problem import AbstractLinear, AbstractProblem
from ...transform import AbstractScope, PerExample
from .._loop import Run, record
from ._base import AbstractEngine, need_whole_gradients
from ._tiles import Block, Coefficients, plan_of, solve


def run_blocked(
    problem: AbstractLinear,
    clip: AbstractClip,
    lr: Schedule,
    run: Run,
    size: int,
) -> Curve:
    """Clipped SGD in blocks of about `size` samples."""
    stream, batch, scope = problem.stream(run.key), run.batch_size, run.scope
    plan = plan_of(run.every, max(1, size // batch), batch)
    coefficients = Coefficients(problem, clip, scope)

    # Without the checkpoint a reverse pass would keep the features of every block.
    @jax.checkpoint
    def block(params, first, end):
        step = first + jnp.arange(plan.length)
        index = first * batch + jnp.arange(plan.length * batch)
        # Padded steps draw a sample that exists and then do not use it.
        index = jnp.minimum(index, end * batch - 1)
        A, y = jax.vmap(problem.example, (None, 0))(stream, index)
        # Without the barrier XLA draws the features again inside of each product.
        A = jax.lax.optimization_barrier(A)
        prediction, gram = exact_dot(A, params), exact_dot(A, A.T)
        rate = jnp.where(step < end, _rates(lr, step), 0.0)
        noise = step_noise(scope, params, step)
        if noise is not None:
            # What the scope adds does not depend on the parameters: all of it is
            # subtracted at the end, and from each prediction what came before it.
            noise = rate[:, None] * noise
            prediction = prediction - _earlier(A, noise)
            params = params - jnp.sum(noise, axis=0)
        C = solve(Block(prediction, y, gram, step, rate), coefficients, plan)
        return params - exact_dot(C, A)

    def advance(params, first):
        def body(params, i):
            return block(params, first + i * plan.length, first + run.every), None

        return jax.lax.scan(body, params, jnp.arange(plan.blocks))[0]

    return record(problem, run, advance, problem.init(), params_of=lambda x: x)


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
        known, direct = ("batch_size", "scope"), "use `engine=Direct()`"
        run.update.need_only("Blocked()", known, direct)
        need_whole_gradients("Blocked()", run.scope)
        size = self.block(problem.init().size)
        return run_blocked(problem, clip, lr, run, size)
