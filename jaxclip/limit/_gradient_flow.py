"""Gradient descent with an infinitely small rate."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float

from .._curve import Curve
from .._types import Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem
from ._base import (
    AbstractLimit,
    AnyProblem,
    Request,
    infinite_after_failure,
    raise_failure,
)
from ._reading import Reading
from ._watched import end_of, watched_solution
from ._watchful import Watchful

# What is said where the solver's steps shrink to nothing.
_STUCK = (
    "The solution cannot be continued: the solver's steps have shrunk to nothing, as "
    "they do where it diverges or becomes singular. Take a smaller learning rate, ask "
    "for earlier steps, or take `throw=False`, with which the risk is infinite from "
    "there on."
)


class GradientFlow(AbstractLimit):
    r"""Gradient descent in the limit of a small learning rate.

    $$\frac{dW}{dk} = -\gamma f(\|\nabla L(W)\|)\, \nabla L(W),$$

    with the rule's factor $f$. Its end point from $w$ is the limit map $\Phi(w)$ of
    arXiv:2404.12293: where noisy gradient descent arrives before it starts to move
    along the zero-loss set. [`jaxclip.limit.limit_map`][] finds it.

    **Arguments:**

    - `rtol`: the relative tolerance of the adaptive steps, dimensionless.
    - `max_steps`: how many steps the solver may take.
    """

    rtol: float = eqx.field(static=True, default=1e-10)
    max_steps: int = eqx.field(static=True, default=10**5)

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        if not isinstance(problem, AbstractProblem):
            raise ValueError(
                "`GradientFlow` needs a problem with parameters. Got a "
                f"{type(problem).__name__}."
            )

        request.need_only("GradientFlow", instead="a flow has none, leave it out")
        field = _Descent(problem, clip, lr)
        start = problem.init()
        how = request, self.rtol, self.max_steps
        return integrate(field, problem.risk, start, (clip, lr), *how)


class _Descent(eqx.Module):
    """The velocity of clipped gradient descent."""

    problem: AbstractProblem
    clip: AbstractClip
    lr: Schedule

    def __call__(self, k, w, reading):
        k = reading.at(k)
        slope = jax.grad(self.problem.risk)(w)
        factor = -self.lr(k) * self.clip.factor(optax.tree.norm(slope), k)
        return jax.tree.map(lambda g: (factor * g).astype(g.dtype), slope)


@eqx.filter_jit
def integrate(
    field: Any,
    risk: Callable[[Any], Float[Array, ""]],
    w0: Any,
    settings: Any,
    request: Request,
    rtol: float,
    max_steps: int,
) -> Curve:
    """The solution of an ODE of the parameters, recorded at some steps.

    `field` is called with the step, the parameters and the `Reading` of the schedules
    in `settings`. Compiled once for each structure of a field that is a module.
    """
    steps = request.steps
    reading = Reading.of(settings, end_of(steps))
    controller = diffrax.PIDController(rtol=rtol, atol=rtol / 100)
    ys, solution = watched_solution(
        field,
        w0,
        reading,
        request,
        Watchful(controller, reading),
        diffrax.Dopri8(),
        max_steps,
    )
    risks = infinite_after_failure(jax.vmap(risk)(ys))
    risks = raise_failure(risks, solution, _STUCK, request.throw)
    last = jax.tree.map(lambda leaf: leaf[-1], ys)
    return Curve(steps, risks, last, path=ys)
