"""What a limit is, and what the limits share."""

import abc
from collections.abc import Collection

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._curve import Curve
from .._types import Key, RealScalar, Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem, CompressedLinearModel
from ..transform import algorithm
from ._watchful import DIVERGED

AnyProblem = AbstractProblem | CompressedLinearModel


class Request(eqx.Module):
    """What of a solution is asked for, and how it is found.

    **Arguments:**

    - `steps`: shape `(s,)`, the steps at which to report: floats that never fall.
    - `key`: for an SDE, determines its Brownian motion; or None.
    - `adjoint`: for an ODE, how diffrax differentiates the solution; or None.
    - `throw`: whether a failure is an error, or an infinite risk.
    - `update`: how a step is made of samples. A limit refuses what of it has no place
        in its equation, by `request.need_only`.
    - `std`: whether the standard deviation of the risk is asked for.
    """

    steps: Float[Array, " s"]
    key: Key | None = None
    adjoint: diffrax.AbstractAdjoint | None = None
    throw: bool = eqx.field(static=True, default=True)
    update: algorithm.Update = algorithm.Update()
    std: bool = eqx.field(static=True, default=False)

    def need_only(
        self, who: str, known: Collection[str] = (), instead: str = "leave it out"
    ) -> None:
        """Refuses what is asked for and not named here of the update, and `"std"`.

        **Arguments:**

        - `who`, `known`, `instead`: as of [`jaxclip.algorithm.Update`][]'s method.
        """
        self.update.need_only(who, known, instead)
        if self.std and "std" not in known:
            raise ValueError(
                f"`{who}` has no equation for the standard deviation of the risk, "
                f"`std=True`: {instead}."
            )


class AbstractLimit(eqx.Module):
    """A differential equation that SGD converges to.

    **An author must guarantee**, and the library does not check, that

    - `curve` is pure, and traceable in the numbers of the problem, the rule and the
        rate. It must be jitted inside where that pays: [`jaxclip.solve`][] is not;
    - the clock is that of SGD, one unit a step, and starts at step 0 whatever the first
        reported step is;
    - `lr` and the rule's thresholds are read as functions of the step, at fractions of
        a step too, and a jump between two steps is not missed;
    - what the limit does not hold for is refused by a `ValueError`: a problem without
        what it needs, a rule that it does not know, a missing `key`;
    - the curve's `step` is `request.steps`, and its `risk`, of the same shape, is in
        the unit of the problem's own risk, finite or infinite and never NaN;
    - a solver that fails raises where `request.throw` is true. Otherwise the risk is
        infinite from there on;
    - the randomness of an SDE comes from `request.key` alone.
    """

    @abc.abstractmethod
    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        """The curve; the arguments are those of [`jaxclip.solve`][], checked.

        **Arguments:**

        - `problem`, `clip`, `lr`: what SGD runs on, its rule, and its learning rate as
            a function of the step.
        - `request`: has the fields of a [`jaxclip.limit.Request`][].
        """


def precision(steps: Array) -> float:
    """The relative tolerance of a solver for a dtype."""
    return 1e-9 if steps.dtype == jnp.float64 else 1e-5


def infinite_after_failure(risk: Float[Array, " s"]) -> Float[Array, " s"]:
    """diffrax leaves inf where it did not arrive; NaN means the same."""
    return jnp.where(jax.lax.cummax(jnp.isnan(risk).astype(int)) > 0, jnp.inf, risk)


def infinite(scale: RealScalar) -> RealScalar:
    """The risk that counts as infinite, for a typical one: 10^61 times it in float64,
    and 10^23 times in float32. Where nothing moves at all, none is."""
    power = 0.2 if scale.dtype == jnp.float64 else 0.6
    bound = scale * jnp.finfo(scale.dtype).max ** power
    return jax.lax.stop_gradient(jnp.where(scale > 0, bound, jnp.inf))


def raise_failure(
    risk: Float[Array, " s"], solution: diffrax.Solution, diverged: str, throw: bool
) -> Float[Array, " s"]:
    """The risk, or an error that says how the solver failed; `diverged` where it grew
    beyond all bounds."""
    if not throw:
        return risk
    failed = solution.result == DIVERGED
    risk = eqx.error_if(risk, failed, diverged)
    other = diffrax.RESULTS.where(failed, diffrax.RESULTS.successful, solution.result)
    return other.error_if(risk, other != diffrax.RESULTS.successful)
