"""The laws of a batch at all values of the risk, made once."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._numerics import lagrange
from ..._types import RealScalar, RealScalarLike
from .._base import AbstractNoise
from .._mixture import Gaussian
from ._law import BatchLaw, law_at
from ._prior import prior_of

# How many laws a table has, and how many of them one value is interpolated from.
_LAWS, _NEAR = 96, 8


class Near(NamedTuple):
    """What belongs to values of the risk beside a given one, and the weights with which
    the numbers that are computed from each make what belongs to the given one.

    - `laws`: a [`jaxclip.noise.batch.BatchLaw`][] with a leading axis, or what was
        computed from such.
    - `weights`: shape `(n,)`, with the sum 1.
    """

    laws: Any
    weights: Float[Array, " n"]


class BatchLaws(eqx.Module):
    """The laws of the norm of a batch's residuals, for each value of the risk.

    - `first`, `spacing`: of the logarithms of the signal's variances.
    - `laws`: with a leading axis; or numbers that were computed from each of them.
    """

    first: Float[Array, ""]
    spacing: Float[Array, ""]
    laws: Any

    def near(self, signal_variance: RealScalarLike) -> Near:
        """By Lagrange's interpolation in the logarithm; beyond an end, that there."""
        tiny = jnp.finfo(self.first.dtype).tiny
        place = jnp.log(jnp.maximum(jnp.asarray(signal_variance), tiny)) - self.first
        place = jnp.clip(place / self.spacing, 0.0, _LAWS - 1.0)
        start = jnp.clip(place.astype(int) - _NEAR // 2 + 1, 0, _LAWS - _NEAR)
        laws = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, _NEAR), self.laws
        )
        return Near(laws, lagrange(place - start.astype(place.dtype), _NEAR))


class NormalLaws(eqx.Module):
    """The same for normal noise: one law, of a norm of 1 a sample.

    - `variance`: of the noise.
    """

    variance: Float[Array, ""]
    law: BatchLaw

    def near(self, signal_variance: RealScalarLike) -> Near:
        total = jnp.asarray(signal_variance) + self.variance
        # The root has no derivative where nothing is random.
        some = total > 0
        std = jnp.where(some, jnp.sqrt(jnp.where(some, total, 1.0)), 1.0)
        law = self.law.scaled(std)
        law = jax.tree.map(lambda leaf: leaf[None], law)
        return Near(law, jnp.ones_like(std)[None])


@eqx.filter_jit
def batch_laws(
    noise: AbstractNoise, batch_size: int, low: RealScalar, high: RealScalar
) -> BatchLaws | NormalLaws:
    """The laws of a batch of 2 or more.

    **Arguments:**

    - `noise`, `batch_size`: of each sample, and how many there are.
    - `low`, `high`: the range of the risk, positive.
    """
    prior = prior_of(noise, batch_size)
    if isinstance(noise, Gaussian):
        one = jnp.ones_like(noise.std)
        unit = eqx.tree_at(lambda of: of.variance, prior, 0 * one)
        return NormalLaws(noise.std**2, law_at(unit, batch_size, one))
    logs = jnp.linspace(jnp.log(2 * low), jnp.log(2 * high), _LAWS)

    def at(log_variance):
        return law_at(prior, batch_size, jnp.exp(log_variance))

    laws = jax.lax.map(at, logs)
    return BatchLaws(logs[0], (logs[-1] - logs[0]) / (_LAWS - 1), laws)


def batch_law(noise: AbstractNoise, batch_size: int, risk: RealScalarLike) -> Near:
    """The law at one value of the risk, as what is near it."""
    risk = jnp.asarray(risk)
    prior = prior_of(noise, batch_size)
    law = law_at(prior, batch_size, 2 * risk)
    return Near(jax.tree.map(lambda leaf: leaf[None], law), jnp.ones_like(risk)[None])
