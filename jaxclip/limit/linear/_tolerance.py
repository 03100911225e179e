"""How far a step of the risk ODE may be off: relative to the risk that is left."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class RelativeToSlower(diffrax.AbstractAdaptiveStepSizeController):
    r"""A step size controller whose error is relative, however far the risk has fallen.

    The error of mode $j$ is measured by $\sum_{\lambda_i \le \lambda_j} u_i$ at the end
    of the step: the modes that decay no faster. Whatever it is off by decays as it
    does, so that it never becomes a larger part of the risk; and one that is nothing
    beside slower ones costs no steps, as it would relative to itself. Derived here.

    **Arguments:**

    - `rtol`, `atol`, `norm`: those of `controller`, which has no absolute tolerance.
    - `controller`: decides on the step from the error so measured.
    - `eigenvalues`: shape `(n,)`, of the modes.
    """

    # Variables of the class in diffrax's types, and fields here.
    rtol: float  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: float  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: Callable[[Array], Array]
    controller: diffrax.PIDController
    eigenvalues: Float[Array, " n"]

    def wrap(self, direction):
        controller = self.controller.wrap(direction)
        return eqx.tree_at(lambda s: s.controller, self, controller)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if dt0 is None:
            # In which the risk would change by a hundredth; and a hundredth of a step
            # of SGD from no risk at all. What is too long is tried again shorter.
            change = jnp.max(jnp.abs(func(terms, t0, y0, args)))
            total = jnp.sum(jnp.abs(y0))
            some = (total > 0) & (change > 0) & (change < jnp.inf)
            share = jnp.where(some, total, 1.0) / jnp.where(some, change, 1.0)
            dt0 = (0.01 * share).astype(jnp.result_type(t0))
        return self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        scale = self.slower(jnp.abs(y1_candidate))
        assert y_error is not None  # every solver here estimates its error
        # Where there is next to nothing, the error is that of numbers that are not
        # representable.
        least = 1e3 * float(jnp.finfo(scale.dtype).tiny) / self.rtol
        relative = y_error / (scale + least)
        one = jnp.ones_like(y0)
        return self.controller.adapt_step_size(
            t0, t1, one, one, args, relative, error_order, controller_state
        )

    def slower(self, sizes: Float[Array, " n"]) -> Float[Array, " n"]:
        """For each mode, the sum over those that decay no faster."""
        order = jnp.argsort(self.eigenvalues)
        return jnp.zeros_like(sizes).at[order].set(jnp.cumsum(sizes[order]))


def relative_controller(
    eigenvalues: Float[Array, " n"], rtol: float
) -> RelativeToSlower:
    """The controller of the risk ODE at a relative tolerance."""
    controller = diffrax.PIDController(rtol=rtol, atol=0.0, norm=_largest)
    return RelativeToSlower(rtol, 0.0, _largest, controller, eigenvalues)


def _largest(errors: Float[Array, " n"]) -> Float[Array, ""]:
    # Not their mean square: in many modes the one that counts would go under.
    return jnp.max(jnp.abs(errors))
