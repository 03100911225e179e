r"""The solution of the modes' equations over one step of the exponential integrator.

In the clock $d\tau = q\,dk$ a mode's decay is exact, and what drives it, $g / 2q$, is a
cubic in the clock through its values at four nodes. The coefficients `q` and `g` are
one number for all modes, or one for each, which then has a clock of its own.
"""

import math
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._types import RealScalarLike
from ...problem import Modes

# Gauss-Lobatto nodes on [0, 1]: with both ends among them the last node of one step is
# the first of the next, so that only three are new. Row i of `LAGRANGE` holds the
# coefficients, by power, of the polynomial that is 1 at node i and 0 at the others;
# `_INTEGRAL` those of its integral from 0 to c, over c.
NODES = np.array([0.0, (1 - 5**-0.5) / 2, (1 + 5**-0.5) / 2, 1.0])
LAGRANGE = np.linalg.inv(np.vander(NODES, increasing=True)).T
_INTEGRAL = LAGRANGE / np.arange(1, 5)


class Path(diffrax.AbstractLocalInterpolation):
    """The solution inside of one step.

    - `u0`, `eigenvalues`, `forcing`: shape `(n,)`, the modes at the step's start.
    - `descent`: shape `(4,)` or `(4, n)`, `q` at the nodes.
    - `drive`: of the same shape, `g / 2q` as a polynomial in the clock's share of the
        step.
    """

    # Variables of the class in diffrax's types, and fields here.
    t0: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    u0: Float[Array, " n"]
    eigenvalues: Float[Array, " n"]
    forcing: Float[Array, " n"]
    descent: Float[Array, "4 *n"]
    drive: Float[Array, "4 *n"]

    def clock(self, share: RealScalarLike) -> Float[Array, "*n"]:
        """The clock since the step's start, at a share of the step."""
        integral = share * jnp.sum(
            powers(share)[None, :] * _INTEGRAL.astype(self.u0.dtype), axis=1
        )
        return jnp.asarray(self.t1 - self.t0) * weighted(
            jnp.asarray(integral), self.descent
        )

    def state(self, share):
        elapsed, whole = self.clock(share), self.clock(1.0)
        decay, driven = propagate(self.eigenvalues, elapsed)
        x = divide(elapsed, whole, share)
        weights = self.drive * powers(x)
        return decay * self.u0 + self.forcing * jnp.sum(
            driven * columns(weights), axis=0
        )

    def evaluate(self, t0, t1=None, left=True):
        del left
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        return self.state((t0 - self.t0) / (self.t1 - self.t0))


class OverStep(NamedTuple):
    """The solution over a step, and what the estimate of its error asks.

    - `path`: the solution.
    - `cubic`: the cubic coefficient of what drives the modes, a polynomial in the
        clock's share of the step.
    - `node`: the clock's share at the first inner node.
    """

    path: Path
    cubic: Float[Array, "*n"]
    node: Float[Array, "*n"]


def path_over(
    modes: Modes,
    u0: Float[Array, " n"],
    t0: RealScalarLike,
    t1: RealScalarLike,
    q: Float[Array, "4 *n"],
    g: Float[Array, "4 *n"],
) -> OverStep:
    """The solution over a step with the coefficients `q` and `g` at its nodes."""
    # The clock needs only q; what drives the modes is a function of it.
    bare = Path(
        t0=t0,
        t1=t1,
        u0=u0,
        eigenvalues=modes.eigenvalues,
        forcing=modes.forcing,
        descent=q,
        drive=jnp.zeros_like(q),
    )
    nodes = NODES.astype(q.dtype)
    clock = jax.vmap(bare.clock)(nodes)
    # With a learning rate of 0 the clock stands still: any share is right.
    shares = nodes if q.ndim == 1 else nodes[:, None]
    x = divide(clock, clock[-1:], shares)
    drive, cubic = polynomial(x, divide(g, 2 * q, jnp.zeros_like(g)))
    path = eqx.tree_at(lambda path: path.drive, bare, drive)
    return OverStep(path, cubic, x[1])


def propagate(
    eigenvalues: Float[Array, " n"], elapsed: Float[Array, "*n"]
) -> tuple[Float[Array, " n"], Float[Array, "4 n"]]:
    r"""What a clock's advance by `elapsed` does to each mode: the factor
    $e^{-2\lambda\tau}$, and $\lambda \int_0^\tau e^{-2\lambda(\tau-s)} (s/\tau)^p ds$
    for $p = 0 \dots 3$."""
    z = 2 * eigenvalues * elapsed
    factorials = np.array([math.factorial(p) for p in range(4)], float)
    phi = _phi(z) * jnp.asarray(factorials, z.dtype)[:, None]
    return jnp.exp(-z), phi * (z / 2)[None, :]


def _phi(z: Float[Array, " n"]) -> Float[Array, "4 n"]:
    r"""$\varphi_1 \dots \varphi_4$ at $-z$, where
    $\varphi_{k+1}(-z) = (1/k! - \varphi_k(-z)) / z$."""
    # In two branches, since z may be anything from 0 to a stiff mode's thousands.
    small = z < 1.0
    # Where z is small the recurrence loses all digits; run down from a series it gains.
    near = jnp.where(small, z, 0.0)
    # phi_4 by its series, sum (-z)^n / (n + 4)!: 15 terms are exact to 1e-16 up to 1.
    series = jnp.zeros_like(z)
    for n in reversed(range(15)):
        series = series * -near + 1 / math.factorial(n + 4)
    down = [series]
    for k in (3, 2, 1):
        down.append(1 / math.factorial(k) - near * down[-1])
    far = jnp.where(small, 1.0, z)
    up = [-jnp.expm1(-far) / far]
    for k in (1, 2, 3):
        up.append((1 / math.factorial(k) - up[-1]) / far)
    return jnp.where(small[None, :], jnp.stack(down[::-1]), jnp.stack(up))


def columns(weights: Float[Array, "4 *n"]) -> Float[Array, "4 n"]:
    """Weights as they are multiplied with numbers of each mode: a column for all of
    them, or one for each."""
    return weights[:, None] if weights.ndim == 1 else weights


def weighted(
    weights: Float[Array, " 4"], values: Float[Array, "4 *n"]
) -> Float[Array, "*n"]:
    """The sum of the values with these weights."""
    weights = weights if values.ndim == 1 else weights[:, None]
    return jnp.sum(weights * values, axis=0)


def polynomial(x: Float[Array, "4 *n"], values: Float[Array, "4 *n"]):
    """The cubic through values at the nodes 0, x1, x2, 1, and its cubic coefficient."""
    # Newton's divided differences, of order 1 to 3, then expanded in powers of x. The
    # first node is at 0, which leaves out all terms with it.
    first = (values[1:] - values[:-1]) / jnp.diff(x, axis=0)
    second = (first[1:] - first[:-1]) / (x[2:] - x[:-2])
    third = (second[1] - second[0]) / (x[3] - x[0])
    linear = first[0] - second[0] * x[1] + third * x[1] * x[2]
    square = second[0] - third * (x[1] + x[2])
    return jnp.stack([values[0], linear, square, third]), third


def powers(x: Float[Array, "*n"] | RealScalarLike) -> Float[Array, "4 *n"]:
    """The powers 0 to 3, whose derivatives are finite at 0."""
    x = jnp.asarray(x)
    return jnp.stack([jnp.ones_like(x), x, x * x, x * x * x])


def divide(numerator, denominator, otherwise):
    """The ratio, and `otherwise` where it is by 0, as at a learning rate of 0."""
    some = denominator != 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), otherwise)
