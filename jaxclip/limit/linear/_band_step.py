r"""One step of the exponential integrator of modes and their scatter.

In the clock $d\tau = q\,dk$ the decay of $S_{jk}$ is exact, at the rate $2 (\lambda_j +
\lambda_k)$, and what drives it is a cubic through its values at the nodes of a step. It
holds the row sums $r = S 1$ at these nodes, which solve a linear equation; it is
iterated. Derived here.
"""

from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._band import Scattered, ScatterEquation
from ._collocation import Collocation, State
from ._interpolation import NODES, Path, divide, polynomial, powers, propagate

# Each gains the length of a step over its number, as the terms of a series do.
_ITERATIONS = 6


class ScatteredPath(diffrax.AbstractLocalInterpolation):
    """The solution inside of one step.

    - `path`: that of the modes.
    - `covariance`: shape `(n, n)`, at the step's start.
    - `drive`: shape `(4, n, n)`, what drives it, as a polynomial in the clock's share.
    """

    # Variables of the class in diffrax's types, and fields here.
    t0: Any
    t1: Any
    path: Path
    covariance: Float[Array, "n n"]
    drive: Float[Array, "4 n n"]

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        share = (t0 - self.t0) / (self.t1 - self.t0)
        decay, driven = _over(self.path, share)
        covariance = decay * self.covariance + jnp.sum(driven * self.drive, axis=0)
        return Scattered(self.path.state(share), covariance)


class ScatteredModes(diffrax.AbstractAdaptiveSolver):
    """The exponential integrator of a `ScatterEquation`, which diffrax gets as `args`.

    The steps and their error are those of the modes; the covariance goes with them, at
    order 4 or more.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = ScatteredPath

    def order(self, terms: Any) -> int:
        del terms
        return 6

    def error_order(self, terms: Any) -> int:
        del terms
        return 4

    def init(self, terms, t0, t1, y0, args) -> State:
        del terms, t1
        return args.mean.at(t0, jnp.sum(y0.u))

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del terms
        mean = args.mean
        if made_jump is not False:
            solver_state = jax.lax.cond(
                made_jump, lambda: mean.at(t0, jnp.sum(y0.u)), lambda: solver_state
            )
        end = t0 + mean.reading.length(t0, t1)
        found = Collocation(mean, y0.u, t0, t1, end, solver_state).step()
        u, error, dense, state, result = found
        path = Path(t0=t0, t1=end, **dense)
        covariance, drive = _driven(args, path, y0.covariance, t1)
        dense = {"path": path, "covariance": y0.covariance, "drive": drive}
        error = Scattered(error, jnp.zeros_like(covariance))
        return Scattered(u, covariance), error, dense, state, result


def _over(path: Path, share: Any) -> tuple[Float[Array, "n n"], Float[Array, "4 n n"]]:
    """What the clock at a share of a step does to a covariance: the factor of each
    entry, and what each power of the clock's share has driven into it."""
    pairs = path.eigenvalues[:, None] + path.eigenvalues[None, :]
    elapsed, whole = path.clock(share), path.clock(1.0)
    decay, driven = propagate(pairs.ravel(), elapsed)
    x = powers(divide(elapsed, whole, share))
    driven = driven.reshape(4, *pairs.shape) / pairs[None] * x[:, None, None]
    return decay.reshape(pairs.shape), driven


def _driven(
    equation: ScatterEquation, path: Path, start: Float[Array, "n n"], t1: Any
) -> tuple[Float[Array, "n n"], Float[Array, "4 n n"]]:
    """The covariance at the end of a step, and what has driven it, as a polynomial."""
    shares = NODES.astype(start.dtype)
    states = jax.vmap(path.state)(shares)
    # Schedules are read before a jump at the end, not after it.
    steps = path.t0 + (t1 - path.t0) * shares
    push, added = jax.vmap(equation.source)(steps, states)
    # Per unit of the clock.
    per = divide(
        jnp.ones_like(path.descent), path.descent, jnp.zeros_like(path.descent)
    )
    push, added = push * per[:, None], added * per[:, None, None]
    clock = jax.vmap(path.clock)(shares)
    x = divide(clock, clock[-1], shares)
    # Row m: the polynomial that is 1 at node m and 0 at the others.
    basis = jax.vmap(lambda at: polynomial(x, at)[0])(jnp.eye(4, dtype=x.dtype))
    decay, driven = jax.vmap(lambda share: _over(path, share))(shares[1:])
    weights = jnp.einsum("ipjk,mp->imjk", driven, basis)
    fixed = jnp.sum(decay * start[None], axis=2)
    fixed += jnp.einsum("imjk,mjk->ij", weights, added)
    onto = jnp.einsum("imjk,mk->imj", weights, push)
    first = jnp.sum(start, axis=1)

    def improve(rows, _):
        moved = jnp.einsum("imjk,mk,mj->ij", weights, rows, push)
        moved += jnp.einsum("imj,mj->ij", onto, rows)
        return jnp.concatenate([first[None], fixed + moved]), None

    rows = jnp.broadcast_to(first, (4, len(first)))
    rows, _ = jax.lax.scan(improve, rows, None, length=_ITERATIONS)
    crossed = push[:, :, None] * rows[:, None, :]
    source = added + crossed + jnp.swapaxes(crossed, 1, 2)
    drive = jnp.einsum("mjk,mp->pjk", source, basis)
    return decay[-1] * start + jnp.sum(driven[-1] * drive, axis=0), drive
