"""The zero-loss set of a problem: its tangent space, and the way back to it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..._numerics import exact_dot
from ..._types import Params, RealScalarLike, Step
from ...clip import AbstractClip
from ...problem import AbstractNoisyProblem

# Jacobians with more entries than this are never formed.
_LARGEST_EXACT = 10**6


class ZeroLossSet(eqx.Module):
    r"""The zeros of a problem's residuals $r(w)$, in flat parameters.

    With the Jacobian $J$ of the residuals and the tangent kernel $K = J J^T$ the
    tangent space has the projection $P = I - J^T K^{-1} J$.

    **Fields:**

    - `problem`: whose residuals.
    - `structure`, `leaves`: of the problem's own parameters.
    - `matrix_free`: whether $K^{-1}$ is applied by conjugate gradients, with products
        by `jvp` and `vjp`, in place of a factorisation.
    """

    problem: AbstractNoisyProblem
    structure: Any = eqx.field(static=True)
    leaves: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    matrix_free: bool = eqx.field(static=True)

    def unravel(self, w: Float[Array, " d"]) -> Params:
        """Flat parameters as the problem's own. Not the function that `ravel_pytree`
        returns: each of those is a new one, for which all would be compiled again."""
        ends = np.cumsum([leaf.size for leaf in self.leaves])[:-1]
        parts = zip(jnp.split(w, ends), self.leaves, strict=True)
        return self.structure.unflatten(
            [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts]
        )

    def residuals(self, w: Float[Array, " d"]) -> Float[Array, " m"]:
        """The residuals, zero on the set."""
        return self.problem.residuals(self.unravel(w))

    def loss(self, w: Float[Array, " d"]) -> Float[Array, ""]:
        """The loss without noise."""
        return self.problem.risk(self.unravel(w))

    def drift(
        self, w: Float[Array, " d"], clip: AbstractClip, step: Step
    ) -> Float[Array, " d"]:
        """Which way the problem's noise pushes, of which the part along the set counts:
        the problem's own `drift`, whose pace is the rate to the power `power`."""
        return ravel_pytree(self.problem.drift(self.unravel(w), clip, step))[0]

    def jacobian(self, w: Float[Array, " d"]) -> Float[Array, "m d"]:
        """The Jacobian of the residuals."""
        return jax.jacrev(self.residuals)(w)

    def correct(
        self,
        w: Float[Array, " d"],
        v: Float[Array, " d"],
        pull: RealScalarLike,
        scale: RealScalarLike | Float[Array, " d"] = 1.0,
    ) -> Float[Array, " d"]:
        r"""$P v - p\, A J^T K^{-1} r$: the part of a velocity along the set, and a pull
        towards it of the rate $p$, with one solution of a linear system for both.

        With a diagonal `scale` $A$ the normal directions are those of a preconditioned
        descent, $A J^T$, the kernel is $K = J A J^T$ and $P = I - A J^T K^{-1} J$."""
        # P v - p A J' K^-1 r = v - A J' z with K z = J v + p r: one system for both.
        if self.matrix_free:
            # `along` is J and `across` its transpose, each the cost of a few residuals.
            r, along = jax.linearize(self.residuals, w)
            across = jax.vjp(self.residuals, w)[1]
            kernel = lx.FunctionLinearOperator(
                lambda z: along(scale * across(z)[0]),
                jax.eval_shape(lambda: r),
                lx.positive_semidefinite_tag,
            )
            # Twice as exact as the integrator, whose steps are judged by the result.
            solver = lx.CG(rtol=1e-12, atol=1e-14, max_steps=20 * len(r) + 100)
            z = lx.linear_solve(kernel, along(v) + pull * r, solver).value
            return v - scale * across(z)[0]
        r, jacobian = self.residuals(w), self.jacobian(w)
        # K is symmetric, and positive where the residuals are independent.
        normal = jnp.broadcast_to(scale, w.shape)[:, None] * jacobian.T
        factor = jsp.linalg.cho_factor(exact_dot(jacobian, normal))
        return v - normal @ jsp.linalg.cho_solve(factor, jacobian @ v + pull * r)

    def project(
        self, w: Float[Array, " d"], v: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """The part of a vector along the set."""
        return self.correct(w, v, 0.0)

    def retract(self, w: Float[Array, " d"], times: int) -> Float[Array, " d"]:
        """So many Gauss-Newton steps towards the set, each of which squares the
        distance to it."""

        def step(_, w):
            return w + self.correct(w, jnp.zeros_like(w), 1.0)

        return jax.lax.fori_loop(0, times, step, w)

    def regularity(self, w: Float[Array, " d"]) -> Float[Array, ""]:
        """The tangent kernel's smallest eigenvalue over its largest; 1 where it is not
        formed, and conjugate gradients fail by name where it is singular."""
        if self.matrix_free:
            return jnp.ones((), w.dtype)
        jacobian = self.jacobian(w)
        eigenvalues = jnp.linalg.eigvalsh(exact_dot(jacobian, jacobian.T))
        return eigenvalues[0] / eigenvalues[-1]


def zero_loss_set(
    problem: AbstractNoisyProblem, matrix_free: bool | None = None
) -> tuple[ZeroLossSet, Float[Array, " d"]]:
    """The zero-loss set of a problem and its parameters at step 0, flat, checked."""
    params = problem.init()
    w, _ = ravel_pytree(params)
    if w.dtype != jnp.float64:
        raise ValueError(
            "`start` must be in float64: the motion along a zero-loss set is of the "
            f"size of what {w.dtype} rounds away. Got {w.dtype}; call "
            '`jax.config.update("jax_enable_x64", True)` first.'
        )
    m = jax.eval_shape(problem.residuals, params).shape[0]
    if w.size <= m:
        raise ValueError(
            "`problem` must have more parameters than residuals: otherwise its "
            "zero-loss set has dimension 0, and there is nothing to move along. Got "
            f"{w.size} parameters and {m} residuals; take a larger model or fewer data."
        )
    free = w.size * m > _LARGEST_EXACT if matrix_free is None else matrix_free
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return ZeroLossSet(problem, structure, shapes, free), w


def need_noisy(name: str, problem: Any) -> AbstractNoisyProblem:
    """The problem, if its noise can move it along a zero-loss set."""
    if isinstance(problem, AbstractNoisyProblem):
        return problem
    raise ValueError(
        f"`{name}` needs a problem with a zero-loss set, such as "
        f"`Interpolation`. Got a {type(problem).__name__}."
    )
