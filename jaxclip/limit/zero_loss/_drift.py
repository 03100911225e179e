"""Which way noise pushes along the zero-loss set, where it pushes deterministically."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import check
from ..._types import Step
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise, Gaussian
from ...problem import AbstractNoisyModel, AbstractNoisyProblem, LabelNoise, Minibatch
from ._clipped_covariance import clipped_covariance
from ._label_drift import Drift, label_drift, of_noise, per_residual, sees_one
from ._set import ZeroLossSet


def slow_drift(manifold: ZeroLossSet, clip: AbstractClip) -> tuple[int, Drift]:
    r"""The power $p$ and the velocity $v$ of $dW/dk = \gamma^p P v(W)$.

    Unclipped, $v = -\sigma^2 \nabla \mathrm{Reg}$ with $p = 1$; for label noise
    $v = -\tfrac{c}{4} \sigma^2 \nabla \mathrm{tr} H$ with $p = 2$ (Section 2 of
    arXiv:2404.12293). With a clip of the residuals or of the whole gradient, derived
    here.
    """
    problem = manifold.problem
    if isinstance(problem, LabelNoise):
        return 2, label_drift(manifold, problem, clip)
    if isinstance(problem, AbstractNoisyModel):
        return 1, lambda w, k: _model_drift(manifold, problem, clip, w, k)

    def regularizer(w):
        return problem.regularizer(manifold.unravel(w))

    return 1, lambda w, k: -problem.variance * jax.grad(regularizer)(w)


def _model_drift(
    manifold: ZeroLossSet,
    problem: AbstractNoisyModel,
    clip: AbstractClip,
    w: Float[Array, " d"],
    k: Step,
) -> Float[Array, " d"]:
    r"""$-\nabla \tfrac{1}{2n} \sum_{ijl} \rho_i M_{jl} c_{ij} c_{il}$, where $\rho$ and
    $M$ stay as they are at the point.

    Unclipped, $\rho_i = 1$ and $M = \sigma^2 I$. A clip of the residuals, of standard
    deviation $\sigma |c_i|$, makes $\rho_i = E\,\psi'$, by Stein's lemma. A clip of the
    gradient, which on the set is $G \eta$ to first order, makes
    $M = E\,\eta \eta^T f(|G \eta|)$.
    """

    def sensitivities(w):
        return problem.sensitivities(manifold.unravel(w))

    c, pull = jax.vjp(sensitivities, w)
    if not isinstance(clip, Identity):
        g = problem.diffusion(manifold.unravel(w))
        std = jnp.sqrt(problem.variance)
        pushed = c @ clipped_covariance(g.T @ g, clip, k, std, power=1)
    elif not isinstance(problem.residual_clip, Identity):
        std = jnp.sqrt(problem.variance * jnp.sum(c**2, axis=1))
        rho = jax.vmap(lambda clip, std: of_noise(clip, Gaussian(std)).mu)(
            per_residual(problem.residual_clip, len(c)), std
        )
        pushed = problem.variance * rho[:, None] * c
    else:
        pushed = problem.variance * c
    return -pull(pushed / problem.size)[0]


def check_clip(problem: AbstractNoisyProblem, clip: AbstractClip) -> None:
    """Refuses clips whose motion is not known."""
    model = problem if isinstance(problem, AbstractNoisyModel) else None
    inner = Identity() if model is None else model.residual_clip
    whole = not isinstance(clip, Identity)
    if (not whole and isinstance(inner, Identity)) or isinstance(problem, Minibatch):
        return
    if model is None:
        raise ValueError(
            "`clip` must be Identity() for `ZeroLossFlow` on a "
            f"{type(problem).__name__}, whose motion with a clip is not known. Got "
            f"{clip!r}."
        )
    if whole and not isinstance(inner, Identity):
        raise ValueError(
            "`ZeroLossFlow` knows a `clip` of the whole gradient or a `residual_clip`, "
            f"not both. Got {clip!r} and {inner!r}; drop one of them."
        )
    label = isinstance(problem, LabelNoise)
    if label and (sees_one(problem) or not whole):
        _need_even(model.noise)
    elif label and problem.batch is not None:
        raise ValueError(
            "`clip` of a gradient needs `batch=1`, for one output an example, or all "
            f"of the examples (`batch=None`). Got batch={problem.batch}."
        )
    elif not isinstance(model.noise, Gaussian):
        name = "clip" if whole else "residual_clip"
        raise ValueError(
            f"`{name}` needs Gaussian noise here: the limit is known by Stein's lemma. "
            f"Got {type(model.noise).__name__}; take `Gaussian(std)`."
        )


def _need_even(noise: AbstractNoise) -> None:
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
