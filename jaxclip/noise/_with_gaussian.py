"""A label's noise, and normal noise that is added to it."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._checks import nonnegative
from .._types import Key, RealScalarLike
from ._base import AbstractNoise
from ._law import AbstractLaw


class WithGaussian(AbstractNoise):
    r"""The sum of a noise and of independent normal noise.

    So is the part of a target that linear features leave unexplained, where all is
    Gaussian but the noise of the label. A residual cannot tell the normal part from the
    signal, so that its law is that of `noise` alone with a signal whose variance is
    larger by `std` squared.

    **Arguments:**

    - `noise`: any noise.
    - `std`: the standard deviation of the normal part, in the unit of the label; 0
        adds nothing.
    """

    noise: AbstractNoise
    std: Float[Array, ""] = eqx.field(converter=partial(nonnegative, "std"))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        noise_key, normal_key = jr.split(key)
        draws = self.noise.sample(noise_key, shape)
        return draws + self.std * jr.normal(normal_key, shape, self.std.dtype)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.noise.variance + self.std**2

    def residual(self, signal_variance: RealScalarLike) -> AbstractLaw:
        return self.noise.residual(jnp.asarray(signal_variance) + self.std**2)
