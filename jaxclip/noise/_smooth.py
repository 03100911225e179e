"""Noise whose residuals have a density in closed form: no mixture of normal laws."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._checks import positive
from .._types import Key, RealScalarLike
from ._base import AbstractNoise, relative_variance, unit_of
from ._panels import BOTH_SIDES, RATIOS
from ._residual_density import ExponentialDensity, LaplaceDensity, UniformDensity
from ._smooth_law import SmoothLaw, SteppedLaw, normal_edges

# Panel edges of an exponential tail, in its scale: beyond the last, 4e-18 of the mass.
_TAIL_EDGES = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 14.0, 19.0, 25.0, 32.0, 40.0])
# How far a normal law reaches, in standard deviations.
REACH = BOTH_SIDES[-1]


class Laplace(AbstractNoise):
    """Laplace (double exponential) noise.

    **Arguments:**

    - `std`: the standard deviation, in the unit of the label: sqrt(2) times the scale.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std / np.sqrt(2) * jr.laplace(key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SmoothLaw:
        unit, signal, std = in_units(signal_variance, self.std)
        # The variance of a Laplace law is twice its squared scale.
        scale = std / np.sqrt(2)
        tail = scale * _TAIL_EDGES
        # The peak at 0 is as wide as the signal; then come the noise's own tail and the
        # sum of both reaches, where either of the two may be the wider.
        edges = [normal_edges(signal), tail, tail[-1:] + REACH * signal]
        density = LaplaceDensity(signal, scale)
        return SmoothLaw(density, jnp.concatenate(edges), symmetric=True, unit=unit)


class Exponential(AbstractNoise):
    """Centred exponential noise: `std` times (E - 1) with a standard exponential E.

    It is skewed to the right.

    **Arguments:**

    - `std`: the standard deviation, which is the scale, in the unit of the label.
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.std * (jr.exponential(key, shape, self.std.dtype) - 1)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SteppedLaw:
        unit, signal, std = in_units(signal_variance, self.std)
        # The noise begins at -std by a step, where it is densest. A residual has the
        # noise with a minus sign: it ends at +std, over the width of the signal, and
        # has its long tail on the negative side.
        tail = std * _TAIL_EDGES
        edges = [normal_edges(signal), tail, tail[-1:] + REACH * signal, RATIOS]
        return SteppedLaw(
            ExponentialDensity(signal, std),
            centre=std,
            beside=signal * BOTH_SIDES,
            edges=jnp.concatenate(edges),
            unit=unit,
            symmetric=False,
        )


class Uniform(AbstractNoise):
    """Noise that is uniform on a symmetric interval.

    **Arguments:**

    - `std`: the standard deviation, in the unit of the label: half the interval's
        length over sqrt(3).
    """

    std: Float[Array, ""] = eqx.field(converter=partial(positive, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        half = np.sqrt(3) * self.std
        return half * jr.uniform(key, shape, self.std.dtype, -1.0, 1.0)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.std**2

    def residual(self, signal_variance: RealScalarLike) -> SteppedLaw:
        # Both ends of the interval are steps, and at the same norm. Between them the
        # density is flat, and only a rule can vary, towards norm 0.
        unit, signal, half = in_units(signal_variance, np.sqrt(3) * self.std)
        return SteppedLaw(
            UniformDensity(signal, half),
            centre=half,
            beside=signal * BOTH_SIDES,
            edges=jnp.asarray(RATIOS, unit.dtype),
            unit=unit,
            symmetric=True,
        )


def in_units(signal_variance: RealScalarLike, width: Float[Array, ""]):
    """The unit of a law, and the signal's standard deviation and the noise's width in
    it."""
    unit = unit_of(signal_variance, width)
    return unit, jnp.sqrt(relative_variance(signal_variance, unit)), width / unit
