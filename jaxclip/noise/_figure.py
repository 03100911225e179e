"""Pictures of noises: the density and the tail, or the probability of each value."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._picture import BESIDE, axes_for, legend, named, need_one, right_axis
from ._law import AbstractLaw
from ._normal_mixture import NormalMixture

if TYPE_CHECKING:
    from ._base import AbstractNoise

# How far a picture reaches, in standard deviations, or in sizes where there are none.
_REACH, _REACH_WITHOUT = 6.0, 20.0
# What is smaller than this is rounding, of a density in units of the largest.
_LEAST = 1e-14
# A component that is narrower than this, in units of the law's size, is one value.
_ATOM = 1e-9


def draw_noise(noise: "AbstractNoise", ax: Any, label: str | None) -> Any:
    """What [`jaxclip.AbstractNoise`][]'s `plot` returns."""
    need_one("noise", noise, {"`variance`": jnp.shape(noise.variance)})
    # Without a signal a residual is the noise with a minus sign.
    law = noise.residual(0.0)
    variance = float(noise.variance)
    if not isinstance(law, NormalMixture):
        return _density(law, variance, ax, label)
    need_one("noise", noise, {"a row of its values": law.means.shape[:-1]})
    if variance == 0 or np.any(np.asarray(law.stds) <= _ATOM * float(law.size)):
        return _stems(law, variance, ax, label)
    return _density(law, variance, ax, label)


def _density(law: AbstractLaw, variance: float, ax: Any, label: str | None) -> Any:
    spread = np.sqrt(variance) if 0 < variance < np.inf else None
    reach = _REACH_WITHOUT * float(law.size) if spread is None else _REACH * spread
    x = _places(law, reach)
    density, tail = (np.asarray(y, np.float64) for y in _curves(law, jnp.asarray(x)))
    ax = axes_for(ax)
    right = right_axis(ax, "probability of what is farther out")
    (line,) = ax.plot(x, _seen(density, density.max()), label=named(label, "density"))
    right.plot(x, _seen(tail, 1.0), color=line.get_color(), ls="--",
               label=named(label, "probability of what is farther out"))  # fmt: skip
    if spread is not None:
        normal = np.exp(-((x / spread) ** 2) / 2) / (np.sqrt(2 * np.pi) * spread)
        ax.plot(x, normal, **BESIDE, ls=":",
                label=named(label, "normal density of this variance"))  # fmt: skip
    ax.set(xlabel="noise (in the label's unit)", yscale="log")
    ax.set(ylabel="density (per unit of the label)")
    # As many decades to the right as to the left: tails of one kind look alike.
    low, high = ax.get_ylim()
    right.set(yscale="log", ylim=(low / high, 1.0))
    legend(ax, right, loc="lower center")
    return ax


def _stems(law: NormalMixture, variance: float, ax: Any, label: str | None) -> Any:
    """Of a law with values that have a probability: a stem on each. A component beside
    them that has a width, such as a bin of an empirical law, is at its mean."""
    weights = np.asarray(law.weights, np.float64)
    values, which = np.unique(-np.asarray(law.means, np.float64), return_inverse=True)
    probabilities = np.bincount(which.ravel(), weights)
    some = probabilities > 0
    ax = axes_for(ax)
    color = ax.plot([], [])[0].get_color()
    stems = ax.stem(values[some], probabilities[some], basefmt=" ",
                    label=named(label, "probability"))  # fmt: skip
    stems.markerline.set_color(color)
    stems.stemlines.set_color(color)
    what = named(label, "one standard deviation")
    for side in (-1, 1) if variance > 0 else ():
        at = side * np.sqrt(variance)
        ax.axvline(at, **BESIDE, ls=":", label=what if side > 0 else None)
    ax.set(xlabel="noise (in the label's unit)", ylabel="probability")
    ax.set(ylim=(0.0, max(1.05 * probabilities.max(), ax.get_ylim()[1])))
    legend(ax)
    return ax


def _places(law: AbstractLaw, reach: float) -> np.ndarray:
    """Where to draw: evenly, and on both sides of each place where the density may
    fall, which would be drawn as a slope."""
    edges = np.asarray(law.panel_edges(), np.float64)
    edges = np.concatenate([edges * (1 + shift) for shift in (-1e-6, 0.0, 1e-6)])
    at = np.concatenate([np.linspace(-reach, reach, 401), edges, -edges])
    return np.unique(at[np.abs(at) <= reach])


@eqx.filter_jit
def _curves(
    law: AbstractLaw, x: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The density of the noise, and the probability of what is on the far side of each
    place, seen from 0."""

    def tail(x):
        # A residual is minus the noise.
        w = -x
        return law.expect_signed(
            lambda u: jnp.where(jnp.where(w > 0, u > w, u < w), 1.0, 0.0), (w,)
        )

    return jnp.exp(jax.vmap(law.log_density)(-x)), jax.vmap(tail)(x)


def _seen(values: np.ndarray, largest: float) -> np.ndarray:
    """With gaps where there is nothing but rounding."""
    return np.where(values > _LEAST * largest, values, np.nan)
