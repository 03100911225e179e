"""The point of the zero-loss set at which gradient descent ends."""

import warnings
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..._checks import check, is_traced
from ..._types import Params
from ...problem import AbstractNoisyProblem
from ._set import ZeroLossSet, zero_loss_set

# A start whose residuals are below this is on the set, up to Gauss-Newton steps, which
# move it by about as much.
_ON_THE_SET = 1e-8
# What the flow may leave to those steps.
_REACHED = 1e-4
# Below this, relative to the largest eigenvalue, the tangent kernel counts as singular.
_SINGULAR = 1e-12
_RETRACTIONS = 8


def bring(manifold: ZeroLossSet, w: Float[Array, " d"]) -> Float[Array, " d"]:
    r"""The limit map $\Phi(w)$; said so where the start is not on the set already.

    **Raises:**

    An error where the gradient flow ends at a loss that is not zero, or where the
    tangent kernel is singular.
    """
    residual, loss = _distance(manifold, w)
    if not is_traced(residual) and residual > _ON_THE_SET:
        warnings.warn(
            f"The start is not on the zero-loss set: its loss is {float(loss):.3g}. It "
            "is brought there by the gradient flow, which takes no steps of the clock.",
            stacklevel=4,
        )
    return end_of_flow(manifold, w)


def need_on_the_set(
    who: str, manifold: ZeroLossSet, w: Float[Array, " d"]
) -> Float[Array, " d"]:
    """The start, if its residuals are zero; to rounding on the set."""
    residual, _ = _distance(manifold, w)
    residual = check(
        residual,
        lambda r: ~(r < _REACHED),
        f"`problem` must start on its zero-loss set for `{who}`: take the parameters "
        "that `limit_map(problem, params)` returns, or those of a run without noise. "
        "The largest residual must be zero.",
    )
    return jnp.where(residual < _REACHED, _retracted(manifold, w), jnp.nan)


@eqx.filter_jit
def _retracted(manifold: ZeroLossSet, w: Float[Array, " d"]) -> Float[Array, " d"]:
    return manifold.retract(w, _RETRACTIONS)


def end_of_flow(
    manifold: ZeroLossSet, w: Float[Array, " d"], rtol: float = 1e-11
) -> Float[Array, " d"]:
    r"""The limit map $\Phi(w)$."""
    w, left, ratio = _descend(manifold, w, rtol)
    left = check(
        left,
        lambda r: ~(r < _REACHED),
        "`problem` must be able to reach zero loss: the gradient flow from `start` "
        "ended at residuals that are not zero. Take a larger model or another start.",
    )
    ratio = check(
        ratio,
        lambda ratio: ~(ratio > _SINGULAR),
        "`problem` must have independent residuals on its zero-loss set: the tangent "
        "kernel there is singular, and its smallest eigenvalue over the largest must "
        f"be above {_SINGULAR}. Leave out examples that repeat each other, or start "
        "elsewhere.",
    )
    return jnp.where((left >= 0) & (ratio > 0), w, jnp.nan)


@eqx.filter_jit
def _distance(
    manifold: ZeroLossSet, w: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest residual, and the loss."""
    return jnp.max(jnp.abs(manifold.residuals(w))), manifold.loss(w)


@eqx.filter_jit
def _descend(
    manifold: ZeroLossSet, w: Float[Array, " d"], rtol: float
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""]]:
    """The end of the gradient flow, and then Gauss-Newton steps: the flow approaches
    the set exponentially, and they square the little that is left. With the largest
    residual before them, and how regular the tangent kernel is."""

    # Two ends: on the set, or at a critical point of positive loss, where the flow may
    # go on for ever. Which of them it was is told by the residual that is left.
    def arrived(t, y, args, **kwargs):
        del t, args, kwargs
        return jnp.max(jnp.abs(manifold.residuals(y))) < _ON_THE_SET

    def stuck(t, y, args, **kwargs):
        del t, args, kwargs
        return jnp.max(jnp.abs(jax.grad(manifold.loss)(y))) < 1e-14

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -jax.grad(manifold.loss)(y)),
        diffrax.Dopri8(),
        t0=0.0,
        t1=jnp.inf,
        dt0=None,
        y0=w,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 100),
        event=diffrax.Event([arrived, stuck]),
        max_steps=10**5,
        throw=False,
    )
    assert solution.ys is not None
    w = solution.ys[-1]
    left, ratio = _distance(manifold, w)[0], manifold.regularity(w)
    # With a singular kernel a Gauss-Newton step may lead anywhere.
    regular = (left < _REACHED) & (ratio > _SINGULAR)
    retract = partial(manifold.retract, times=_RETRACTIONS)
    return jax.lax.cond(regular, retract, lambda w: w, w), left, ratio


def limit_map(
    problem: AbstractNoisyProblem, params: Params, *, matrix_free: bool | None = None
) -> Params:
    r"""The end of the gradient flow of the loss without noise, $\Phi(w)$.

    $$\Phi(w) = \lim_{t \to \infty} W(t), \qquad W' = -\nabla L(W), \quad W(0) = w.$$

    On the zero-loss set its derivative is the projection on the tangent space.

    **Arguments:**

    - `problem`: whose loss.
    - `params`: $w$, of the structure of the problem's own parameters.
    - `matrix_free`: as in [`jaxclip.ZeroLossFlow`][].

    **Returns:**

    Parameters of zero loss, to rounding.

    **Raises:**

    A `ValueError` where the parameters are not in float64, or there are no more of them
    than residuals; an error where the flow ends at a loss that is not zero, or where
    the tangent kernel is singular.
    """
    manifold, _ = zero_loss_set(problem, matrix_free)
    return manifold.unravel(end_of_flow(manifold, ravel_pytree(params)[0]))
