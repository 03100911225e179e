"""Refusals of clips with which the motion along a zero-loss set is not known."""

import jax
import jax.numpy as jnp

from ...._checks import check
from ....clip import AbstractClip, Identity
from ....noise import AbstractNoise, Gaussian
from ._fit import Fit


def need_no_clip(clip: AbstractClip, owner: str) -> None:
    """Refuses any clip of the gradient; `owner` is the class that does not know it."""
    if not isinstance(clip, Identity):
        raise ValueError(
            f"`clip` must be Identity() for `ZeroLossFlow` on a {owner}, whose motion "
            f"with a clip is not known. Got {clip!r}."
        )


def need_one_clip(fit: Fit, clip: AbstractClip) -> str | None:
    """The name of the argument that clips: `clip`, `residual_clip` or none of them.
    Both together are refused."""
    inner, outer = fit.residual_clip, clip
    if isinstance(outer, Identity):
        return None if isinstance(inner, Identity) else "residual_clip"
    if isinstance(inner, Identity):
        return "clip"
    raise ValueError(
        "`ZeroLossFlow` knows a `clip` of the whole gradient or a `residual_clip`, "
        f"not both. Got {outer!r} and {inner!r}; drop one of them."
    )


def need_gaussian(noise: AbstractNoise, clips: str) -> None:
    """Refuses other noise, where the argument named `clips` is given."""
    if not isinstance(noise, Gaussian):
        raise ValueError(
            f"`{clips}` needs Gaussian noise here: the limit is known by Stein's lemma."
            f" Got {type(noise).__name__}; take `Gaussian(std)`."
        )


def need_even(noise: AbstractNoise) -> None:
    """Refuses noise whose clipped mean is not zero."""
    law = noise.residual(0.0)
    at = law.panel_edges()
    right, left = (jnp.exp(jax.vmap(law.log_density)(x)) for x in (at, -at))
    check(
        jnp.max(jnp.abs(right - left)) / jnp.max(right),
        lambda gap: ~(gap < 1e-6),
        "`noise` must be symmetric where residuals are clipped: otherwise the clip "
        "gives it a mean, and moves the zero-loss set itself. The relative difference "
        "of its density at opposite points must be 0.",
    )
