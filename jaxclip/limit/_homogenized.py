"""The SDE of the parameters: homogenized clipped SGD."""

import itertools
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_traced, positive
from .._curve import Curve, finite_or_infinite
from .._types import Key, Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem, CompressedLeastSquares
from ._base import AbstractLimit, infinite_after_failure, need_least_squares
from ._moments import unchecked_moments


class HomogenizedSDE(AbstractLimit):
    r"""Homogenized clipped SGD: a diffusion with the same mean risk as SGD.

    $$dX = -\gamma \mu(R) K (X - x^*) dk
    + \gamma \sqrt{\mathrm{second}(R) K}\, dB_k.$$

    Section 3 of arXiv:2406.11733. Its mean curve is that of SGD; its scatter from run
    to run is its own, not SGD's.

    By default it is stepped with the coefficients frozen over a short interval, over
    which the equation is then solved exactly: stable at any step, weak order 1, and 20
    to 45 times faster on a CPU than a general solver.

    **Arguments:**

    - `dt`: the length of an interval, in SGD steps, 1 by default. Shorter ones are
        taken where a reported step falls inside of one.
    - `solver`: a diffrax solver of Itô SDEs, used with the fixed step `dt` in place of
        the scheme above.
    """

    dt: float = eqx.field(static=True, default=1.0)
    solver: diffrax.AbstractSolver | None = None

    def __check_init__(self):
        positive("dt", self.dt)

    def curve(
        self,
        problem: AbstractProblem | CompressedLeastSquares,
        clip: AbstractClip,
        lr: Schedule,
        *,
        steps: Float[Array, " s"],
        key: Key | None,
        adjoint: diffrax.AbstractAdjoint | None,
        throw: bool,
    ) -> Curve:
        problem = need_least_squares(self, problem)
        if key is None:
            raise ValueError(
                "`HomogenizedSDE` is random and needs a `key`, such as "
                "`jax.random.key(0)`."
            )
        eigenvalues = problem.spectrum.expand(problem.spectrum.eigenvalues)
        feature_norm = problem.spectrum.feature_norm

        def coefficients(step, x):
            """The rate of descent and the strength of the noise, per step."""
            excess = problem.risk(x)
            m = unchecked_moments(clip, problem.noise, excess, feature_norm, step)
            rate = lr(step)
            return rate * m.mu * eigenvalues, rate * jnp.sqrt(m.second * eigenvalues)

        x0 = problem.init()
        if self.solver is not None:
            xs = _diffrax(
                self.solver, self.dt, coefficients, x0, steps, key, adjoint, throw
            )
            risk = infinite_after_failure(jax.vmap(problem.risk)(xs))
            return Curve(steps, risk, xs[-1])

        if is_traced(steps):
            raise ValueError(
                "`steps` must be concrete for `HomogenizedSDE()`: they decide how many "
                "intervals there are. Close over them in place of passing them."
            )
        times, reported = grid(np.asarray(steps, float), self.dt)

        def body(x, xs):
            start, length, index = xs
            descent, noise = coefficients(start, x)
            # Frozen, this is an Ornstein-Uhlenbeck process: exact mean and variance.
            exponent = descent * length
            spread = noise * jnp.sqrt(length * _mean_decay(2 * exponent))
            normals = jr.normal(jr.fold_in(key, index), x.shape, x.dtype)
            x = x * jnp.exp(-exponent) + spread * normals
            return x, problem.risk(x)

        lengths = jnp.asarray(np.diff(times), x0.dtype)
        starts = jnp.asarray(times[:-1], x0.dtype)
        last, risk = jax.lax.scan(body, x0, (starts, lengths, jnp.arange(len(lengths))))
        risk = jnp.concatenate([problem.risk(x0)[None], risk])[reported]
        return Curve(steps, finite_or_infinite(risk), last)


def _diffrax(
    solver: diffrax.AbstractSolver,
    dt: float,
    coefficients,
    x0: Float[Array, " d"],
    steps: Float[Array, " s"],
    key: Key,
    adjoint: diffrax.AbstractAdjoint | None,
    throw: bool,
) -> Float[Array, "s d"]:
    """The states at the reported steps, by a general solver of SDEs."""
    if is_traced(steps):
        end, max_steps = jnp.maximum(steps[-1], dt), None
    else:
        end = max(float(np.asarray(steps)[-1]), dt)
        max_steps = math.ceil(end / dt) + 2
    # The tree's finest interval: below it the path is interpolated.
    path = diffrax.VirtualBrownianTree(0.0, end, tol=dt / 2, shape=x0.shape, key=key)
    drift = diffrax.ODETerm(lambda k, x, args: -coefficients(k, x)[0] * x)
    diffusion = diffrax.ControlTerm(
        lambda k, x, args: lx.DiagonalLinearOperator(coefficients(k, x)[1]), path
    )
    default = diffrax.RecursiveCheckpointAdjoint()
    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(drift, diffusion),
        solver,
        t0=0.0,
        t1=end,
        dt0=dt,
        y0=x0,
        saveat=diffrax.SaveAt(ts=steps),
        adjoint=default if adjoint is None else adjoint,
        max_steps=max_steps,
        throw=throw,
    )
    assert solution.ys is not None
    return solution.ys


def grid(steps: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Times that include the steps and are at most `dt` apart, and where the steps are
    among them."""
    edges = np.unique(np.concatenate([[0.0], steps]))
    pieces = [np.zeros(1)]
    for start, end in itertools.pairwise(edges):
        pieces.append(np.linspace(start, end, math.ceil((end - start) / dt) + 1)[1:])
    times = np.concatenate(pieces)
    return times, np.searchsorted(times, steps)


def _mean_decay(exponent: Float[Array, " d"]) -> Float[Array, " d"]:
    """(1 - exp(-x)) / x, which is 1 at 0."""
    small = jnp.abs(exponent) < 1e-8
    safe = jnp.where(small, 1.0, exponent)
    return jnp.where(small, 1.0, -jnp.expm1(-safe) / safe)
