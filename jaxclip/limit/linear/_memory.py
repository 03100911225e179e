r"""The modes of a linear model under momentum, weight decay and isotropic noise.

For the error $z$, the momentum $m$ and what a clipped gradient does on average,
$U_j = h_j z_j + s x^*_j$ with $h_j = \mu \lambda_j + s$, in steps,

$$dz = -\rho\, m\,dk - \kappa\, (U\,dk + d\xi) - D (z + x^*)\, dk, \qquad
dm = -\theta\, m\,dk + U\,dk + d\xi .$$

What is followed of mode $j$ is $E \|z_j\|^2$, $E \langle z_j, m_j \rangle$ and
$E \|m_j\|^2$, and with a decay also $E \langle z_j, x^*_j \rangle$ and
$E \langle m_j, x^*_j \rangle$, each times $\lambda_j / 2$, so that the first is a part
of the risk. The system is linear but for the risk in its coefficients. Derived here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._types import RealScalar
from ...problem import Modes
from .._reading import Reading
from ._memory_system import Parts, System
from ._radau import apply


class Forces(NamedTuple):
    r"""What moves the modes, per step: a number each, or one for each node.

    - `carry`: $\rho$, by how much the momentum moves the parameters.
    - `kick`: $\kappa$, by how much the clipped gradient moves them by itself; None
        where it never does.
    - `forget`: $\theta$, how much of the momentum is lost.
    - `slope`: $\mu$.
    - `pull`: $s$, the part that a ridge has in the clipped gradient.
    - `decay`: $D$, that of a decoupled decay in the step.
    - `second`: the variance of $\xi$ along the features, and `isotropic`: in every
        direction.
    """

    carry: Array
    kick: Array | None
    forget: Array
    slope: Array
    pull: Array
    decay: Array
    second: Array
    isotropic: Array


class MemoryEquation(eqx.Module):
    """The equation: a vector field, and the parts that it is made of.

    What is followed has the shape `(rows, n)`: the risk of each mode, two rows more
    with `memory`, and with an `origin` one or two for the means along it.

    - `modes`: the [`jaxclip.problem.Modes`][].
    - `origin`: shape `(n,)`, the risk of each mode at the origin of a decay; or None.
    - `forces`: a function of a step and an excess risk that returns [`Forces`][].
    - `reading`: at which times schedules are read.
    - `memory`: whether there is momentum.
    """

    modes: Modes
    origin: Float[Array, " n"] | None
    forces: Callable[[RealScalar, RealScalar], Forces]
    reading: Reading
    memory: bool = eqx.field(static=True)

    def at(self, step: Any, risk: Any) -> Forces:
        """What moves the modes at a step and an excess risk."""
        # A trial step may pass zero by its tolerance, where no law is defined.
        return self.forces(self.reading.at(step), jnp.maximum(risk, 0.0))

    def __call__(self, step: Any, y: Any) -> Any:
        return self.rates(y, self.at(step, jnp.sum(y[0])))

    def rates(self, y: Float[Array, "rows n"], forces: Forces) -> Array:
        """The derivative of what is followed, with these forces."""
        f = self.parts(*jax.tree.map(lambda x: x[None], forces))
        carry, kick, forget, pull, h, both, pushed, drive = (x[0] for x in f)
        u, b, q, p, r = self._all_rows(y)
        o = jnp.zeros_like(u) if self.origin is None else self.origin
        derivative = (
            kick**2 * drive - 2 * (both * u + carry * b + pushed * p),
            h * u + pull * p - (forget + both) * b - carry * q - pushed * r
            - kick * drive,
            drive + 2 * (h * b + pull * r - forget * q),
            -carry * r - both * p - pushed * o,
            h * p + pull * o - forget * r,
        )  # fmt: skip
        return jnp.stack([derivative[i] for i in self._kept])

    def system(self, forces: Forces, integrals: Float[Array, "t t"]) -> System:
        """The linear system of a step's nodes with these forces at them; row $i$ of the
        matrix integrates, from values at the nodes, to node $i$."""
        means = self.origin is not None
        return System.of(self.parts(*forces), integrals[:, :, None], self.memory, means)

    def path(
        self, system: System, y0: Float[Array, "rows n"]
    ) -> Float[Array, "rows t n"]:
        """What is followed at the nodes of a step."""
        f = system.f
        none = jnp.zeros_like(f.drive)
        o = none if self.origin is None else self.origin[None]
        driven = (
            f.kick**2 * f.drive,
            -f.kick * f.drive,
            f.drive,
            -f.pushed * o,
            f.pull * o,
        )
        rows = [
            y0[i][None] + apply(system.integral, driven[row])
            for i, row in enumerate(self._kept)
        ]
        return system.respond(jnp.stack(rows))

    def parts(
        self, carry, kick, forget, slope, pull, decay, second, isotropic
    ) -> Parts:
        """The coefficients of each mode from the fields of [`Forces`][], shape
        `(t,)`."""

        def column(x):
            return x[:, None]

        modes, no = self.modes, jnp.zeros_like(carry)
        stiff = column(slope) * modes.eigenvalues[None] + column(pull)
        # Of one column, and one matrix serves all modes, where nothing kicks.
        both = column(decay)
        if kick is not None:
            both = column(kick) * stiff + both
        kicked = no if kick is None else kick
        noise = column(second) * modes.forcing[None]
        if modes.dims is not None:
            noise = noise + column(isotropic) * modes.dims[None]
        return Parts(
            column(carry),
            column(kicked),
            column(forget),
            column(pull),
            stiff,
            both,
            column(kicked * pull + decay),
            modes.eigenvalues[None] * noise / 2,
        )

    @property
    def _kept(self) -> list[int]:
        rows = [0, 1, 2] if self.memory else [0]
        if self.origin is not None:
            rows += [3, 4] if self.memory else [3]
        return rows

    def _all_rows(self, y: Float[Array, "rows n"]) -> list[Array]:
        rows = [jnp.zeros_like(y[0])] * 5
        for i, row in zip(self._kept, y, strict=True):
            rows[i] = row
        return rows
