"""The rule that attains the ceiling of all rules."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import positive
from .._schedule import as_schedule
from .._types import RealScalarLike, Schedule, Step
from ..noise import AbstractLaw, AbstractNoise, NormalMixture
from ._base import AbstractClip


class ScoreClip(AbstractClip):
    r"""The rule that no other beats: the posterior mean of the signal in a residual.

    $$\psi(w) = 2R\, s(w) = E[\text{signal} \mid w], \qquad s = -p' / p,$$

    with $p$ the density of the residual's size and the signal its part
    $\langle a, x - x^* \rangle$. By Tweedie's formula the two forms are one. Its
    clipping-comparison criterion is the Fisher information times the residual's
    variance, the ceiling of all rules; where the noise is skewed it is that of the
    noise with a random sign, since a rule sees a norm and no sign. Derived here.

    **Arguments:**

    - `noise`: the label noise.
    - `risk`: the excess risk $R$, positive, in the label's squared unit: a number, or a
        function of the step.
    - `feature_norm`: the square root of the trace of the features' covariance, in the
        features' unit.
    """

    noise: AbstractNoise
    risk: Schedule = eqx.field(converter=partial(as_schedule, name="risk"))
    feature_norm: Float[Array, ""] = eqx.field(
        converter=lambda value: positive("feature_norm", value, in_step=True)
    )

    def factor(
        self, norm: Float[Array, "..."] | RealScalarLike, step: Step
    ) -> Float[Array, "..."]:
        signal_variance = 2 * jnp.asarray(self.risk(step))
        law = self.noise.residual(signal_variance)

        def log_density(size):
            return jnp.logaddexp(law.log_density(size), law.log_density(-size))

        # The score vanishes at 0 like a multiple of the size: taken just beside. Where
        # no residual ever is, the density may underflow: the factor is held.
        least, most = 1e-4 * jnp.sqrt(signal_variance), jnp.max(law.panel_edges())

        def of(size):
            size = jnp.clip(size, least, most)
            return -signal_variance * jax.grad(log_density)(size) / size

        norm = jnp.asarray(norm)
        floating = jnp.issubdtype(norm.dtype, jnp.floating)
        # The law is worked out in its own precision, and a gradient keeps its own.
        size = norm.astype(self.feature_norm.dtype) / self.feature_norm
        factor = jnp.vectorize(of)(size)
        return factor.astype(norm.dtype) if floating else factor

    def kinks(self, step: Step) -> tuple[Float[Array, ""], ...]:
        law = self.noise.residual(2 * jnp.asarray(self.risk(step)))
        return tuple(edge * self.feature_norm for edge in _edges(law))


def _edges(law: AbstractLaw) -> tuple[Float[Array, ""], ...]:
    """Where panels must end so that they resolve the score, which is smooth but varies
    as fast as the density. The panels of a wide component do not resolve a narrow one,
    so they are split there too. A law that is no mixture has these edges already."""
    if not isinstance(law, NormalMixture):
        return ()
    # Where more than these are as narrow, each one's own panels are as fine.
    narrow = jnp.argsort(law.stds)[:4]
    narrowest = jax.tree.map(lambda leaf: leaf[narrow], law)
    return tuple(narrowest.panel_edges())
