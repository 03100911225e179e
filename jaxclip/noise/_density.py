"""Integrals over a residual whose density is given by its logarithm."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import PyTree, RealScalarLike
from ._law import Function
from ._panels import Panels


@runtime_checkable
class Density(Protocol):
    """What is integrated: the logarithm of a density at the sum of two numbers, all of
    it in a unit that is its `size`, and whether it is even."""

    @property
    def size(self) -> Float[Array, ""]: ...

    @property
    def symmetric(self) -> bool: ...

    def at(self, base: Array, offset: Array) -> Array: ...


def expect_of(law: Density, panels: Panels, function: Function) -> PyTree[Array]:
    """The expectation of a function of the norm."""
    log_density = jax.vmap(partial(log_folded, law))(panels.base, panels.offset)
    values = jax.vmap(function)(law.size * panels.norm)
    mass = _mass(log_density, panels)
    return jax.tree.map(lambda value: jnp.tensordot(mass, value, axes=1), values)


def slope_of(law: Density, panels: Panels, function: Function) -> Float[Array, ""]:
    """The expected slope of an odd function, given at norms."""
    # E psi' = -int psi p', with no boundary term at 0, where psi is 0.
    log_density, slope = _with_slope(law, panels)
    psi = jax.vmap(function)(law.size * panels.norm)
    return -jnp.sum(_mass(log_density, panels) * slope * psi) / law.size


def norms_of(kinks: Sequence[RealScalarLike]) -> list[Array]:
    """The norms at which a function of the residual is not smooth."""
    return [jnp.abs(jnp.asarray(kink)) for kink in kinks]


def expect_signed_of(law: Density, panels: Panels, function: Function) -> PyTree[Array]:
    """The expectation of a function of the residual."""
    sides = []
    for sign in (1.0, -1.0):
        log_density = _one_side(law, panels, sign)[0]
        mass = _mass(log_density, panels)
        values = jax.vmap(function)(sign * law.size * panels.norm)
        sides.append(
            jax.tree.map(lambda v, m=mass: jnp.tensordot(m, v, axes=1), values)
        )
    return jax.tree.map(jnp.add, *sides)


def slope_signed_of(
    law: Density,
    panels: Panels,
    function: Function,
    centre: RealScalarLike,
) -> Float[Array, ""]:
    """The expected slope of a function of the residual.

    **Arguments:**

    - `centre`: the norm, in units, at which the density may fall steeply.
    """
    # E psi' = -int psi p' over the whole line. What is taken off psi on each side, its
    # level at `centre`, comes back as that level times the density at 0.
    zero = jnp.zeros_like(law.size)
    at_zero = jnp.exp(law.at(zero, zero)) / law.size
    total = jnp.zeros_like(law.size)
    for sign in (1.0, -1.0):
        log_density, slope = _one_side(law, panels, sign)
        level = function(sign * law.size * centre)
        psi = jax.vmap(function)(sign * law.size * panels.norm) - level
        part = -jnp.sum(_mass(log_density, panels) * slope * psi) / law.size
        total = total + sign * (part + level * at_zero)
    return total


def _one_side(law: Density, panels: Panels, sign: float) -> tuple[Array, Array]:
    """The logarithm of the density on one side of 0, and its derivative outwards."""

    def along(offset):
        return jax.vmap(law.at)(sign * panels.base, sign * offset)

    return jax.jvp(along, (panels.offset,), (jnp.ones_like(panels.offset),))


def _mass(log_density: Float[Array, " q"], panels: Panels) -> Float[Array, " q"]:
    """The probability of each node. The density of a heavy tail far out is below all
    that float32 can hold; times the norm it is not."""
    norm = jnp.where(panels.norm > 0, panels.norm, 1.0)
    # It cancels, and so would the two terms of its derivative.
    norm = jax.lax.stop_gradient(norm)
    return jnp.exp(log_density + jnp.log(norm)) * (panels.width / norm)


def information_of(law: Density, panels: Panels) -> Float[Array, ""]:
    """The mean square of the score."""

    # Each side by itself: the square of the score of the norm, which mixes both, is
    # less. That a slope is taken against the sign does not matter to its square.
    def part(sign):
        def log_density(base, offset):
            return law.at(sign * base, sign * offset)

        def both(base, offset):
            return jax.value_and_grad(log_density, argnums=1)(base, offset)

        log, slope = jax.vmap(both)(panels.base, panels.offset)
        return jnp.sum(_mass(log, panels) * slope**2)

    total = 2 * part(1.0) if law.symmetric else part(1.0) + part(-1.0)
    return total / law.size / law.size


def log_folded(law: Density, base, offset) -> Float[Array, ""]:
    """The logarithm of the density of the norm, at a sum."""
    if law.symmetric:
        return law.at(base, offset) + np.log(2)
    return jnp.logaddexp(law.at(base, offset), law.at(-base, -offset))


def _with_slope(law: Density, panels: Panels) -> tuple[Array, Array]:
    """The same, and its derivative."""

    def along(offset):
        return jax.vmap(partial(log_folded, law))(panels.base, offset)

    return jax.jvp(along, (panels.offset,), (jnp.ones_like(panels.offset),))
