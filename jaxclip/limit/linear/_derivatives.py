r"""What the moments of a rule are near a risk and a trace, and its higher moments.

In many dimensions a limit sees $\mu$ and second at the present risk alone. To the first
order in one over the dimension it sees their derivatives, too: the risk scatters from
run to run, and the squared norm of the features around the covariance's trace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar, Step
from ...clip import AbstractClip, Identity, unchecked_moments
from ...noise import AbstractNoise

# A fourth moment of more than so many squared variances counts as infinite: that is
# what a quadrature makes of one.
_INFINITE = 1e8


class Local(NamedTuple):
    r"""A function of the risk $R$ and the trace $T$, and its derivatives there.

    - `value`: the function.
    - `risk`, `trace`: its first derivatives.
    - `risk_risk`, `risk_trace`, `trace_trace`: its second derivatives.
    """

    value: Float[Array, ""]
    risk: Float[Array, ""]
    trace: Float[Array, ""]
    risk_risk: Float[Array, ""]
    risk_trace: Float[Array, ""]
    trace_trace: Float[Array, ""]


def local_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalar,
    trace: RealScalar,
    step: Step,
) -> tuple[Local, Local]:
    """The moments `mu` and `second` of one sample, with their derivatives.

    By differences of the quadrature at nine points, all at once: its derivatives in
    JAX take as long to run, and an order of magnitude longer to compile.
    """
    zero = jnp.zeros_like(risk)
    if isinstance(clip, Identity):
        mu = Local(zero + 1, *(5 * [zero]))
        return mu, Local(2 * risk + noise.variance, zero + 2, *(4 * [zero]))
    # Where the error of the differences and that of rounding are alike.
    h = float(jnp.finfo(risk.dtype).eps) ** (1 / 6)
    shares = 1 + h * jnp.arange(-1, 2, dtype=risk.dtype)
    risks, traces = jnp.meshgrid(risk * shares, trace * shares, indexing="ij")

    def at(risk, trace):
        m = unchecked_moments(clip, noise, risk, jnp.sqrt(trace), step)
        return m.mu, m.second

    mu, second = jax.vmap(jax.vmap(at))(risks, traces)
    # At no risk it does not scatter either, and nothing asks for these derivatives.
    by_risk = jnp.where(risk > 0, 1 / (h * jnp.where(risk > 0, risk, 1.0)), 0.0)
    by_trace = 1 / (h * trace)
    return _differences(mu, by_risk, by_trace), _differences(second, by_risk, by_trace)


def risk_slopes(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalar,
    trace: RealScalar,
    step: Step,
) -> tuple[Local, Local]:
    """`local_moments` with the derivatives in the risk alone; the others are 0."""
    zero = jnp.zeros_like(risk)
    h = float(jnp.finfo(risk.dtype).eps) ** (1 / 6)
    by_risk = jnp.where(risk > 0, 1 / (h * jnp.where(risk > 0, risk, 1.0)), 0.0)

    def at(risk):
        m = unchecked_moments(clip, noise, risk, jnp.sqrt(trace), step)
        return m.mu, m.second

    def local(f):
        curved = (f[2] - f[1]) - (f[1] - f[0])
        first, second = (f[2] - f[0]) / 2 * by_risk, curved * by_risk**2
        return Local(f[1], first, zero, second, zero, zero)

    found = jax.vmap(at)(risk * (1 + h * jnp.arange(-1, 2, dtype=risk.dtype)))
    return local(found[0]), local(found[1])


def _differences(
    f: Float[Array, "3 3"], by_risk: RealScalar, by_trace: RealScalar
) -> Local:
    """Central differences of values at the corners, edges and middle of a square."""
    mixed = (f[2, 2] - f[2, 0]) - (f[0, 2] - f[0, 0])
    return Local(
        f[1, 1],
        (f[2, 1] - f[0, 1]) / 2 * by_risk,
        (f[1, 2] - f[1, 0]) / 2 * by_trace,
        ((f[2, 1] - f[1, 1]) - (f[1, 1] - f[0, 1])) * by_risk**2,
        mixed / 4 * by_risk * by_trace,
        ((f[1, 2] - f[1, 1]) - (f[1, 1] - f[1, 0])) * by_trace**2,
    )


class Higher(NamedTuple):
    r"""The higher moments of one sample, by which the risk of a run scatters.

    - `third`: $E (\psi^3)'$, in the label's squared unit.
    - `fourth`: $E \psi^4$, in its fourth power; 0 where it is infinite.
    - `infinite`: whether it is.
    """

    third: Float[Array, ""]
    fourth: Float[Array, ""]
    infinite: Array


def higher_moments(
    clip: AbstractClip,
    noise: AbstractNoise,
    risk: RealScalar,
    trace: RealScalar,
    step: Step,
) -> Higher:
    """The third and the fourth moment of a rule at a risk."""
    # Without signal and noise every residual is 0.
    some = 2 * risk + noise.variance > 0
    law = noise.residual(jnp.where(some, 2 * risk, 1.0))
    norm, unit = jnp.sqrt(trace), law.size
    kinks = [kink / norm for kink in clip.kinks(step)]

    def psi(residual):
        return residual * clip.factor(residual * norm, step) / unit

    third = unit**2 * law.slope(lambda w: unit * psi(w) ** 3, kinks)
    fourth, second = law.expect(lambda w: (psi(w) ** 4, psi(w) ** 2), kinks)
    infinite = ~(fourth <= _INFINITE * second**2)
    usual = some & ~infinite
    third, fourth = (jnp.where(usual, x, 0.0) for x in (third, unit**4 * fourth))
    return Higher(third, fourth, some & infinite)
