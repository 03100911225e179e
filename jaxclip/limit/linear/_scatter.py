r"""How the risk of one run scatters around its mean: what a step adds to the scatter.

One step changes $u_j = \lambda_j \|z_j\|^2 / 2$ by

$$X_j = -\gamma \lambda_j \langle \bar g_j, z_j \rangle
+ \tfrac12 \gamma^2 \lambda_j \|\bar g_j\|^2,$$

where $\bar g$ is the mean of $B$ clipped gradients $\psi(w) a$. In many dimensions
$\|a_j\|^2$ is its mean $f_j = \lambda_j d_j$, and with Stein's identity the covariance
of $X$ is a diagonal and a matrix of rank two. Derived here.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..._checks import is_traced
from ..._types import RealScalar, Schedule
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise
from ...problem import CompressedLinearModel, LinearModel, Modes
from ...transform import PerTree, algorithm
from .._loss_moments import need_samples
from ._derivatives import Higher, Local, higher_moments, risk_slopes

# The covariance is a matrix: more modes than this are compressed, to so many nodes for
# each of two measures.
_MANY, _NODES = 64, 32


class Increments(NamedTuple):
    r"""The covariance of a step's increments,
    $\mathrm{diag}(\delta\, \lambda_j^2 u_j) + \alpha x x^T + \beta (x y^T + y x^T)
    + \kappa y y^T$ with $x_j = \lambda_j u_j$ and $y_j = \lambda_j f_j$.

    - `diagonal`, `start`, `mixed`, `noise`: $\delta$, $\alpha$, $\beta$, $\kappa$, per
        step.
    """

    diagonal: RealScalar
    start: RealScalar
    mixed: RealScalar
    noise: RealScalar

    @classmethod
    def of(
        cls, mu: RealScalar, second: Local, higher: Higher, rate: RealScalar, batch: int
    ) -> "Increments":
        """For a batch of samples, each of them clipped.

        **Arguments:**

        - `mu`, `second`, `higher`: the moments of one sample.
        - `rate`, `batch`: the learning rate and the number of samples.
        """
        share = rate**2 / batch
        return cls(
            2 * share * second.value,
            4 * share * (second.risk - mu**2),
            -share * (rate / batch) * (higher.third - mu * second.value),
            share * (rate / batch) ** 2 * (higher.fourth - second.value**2) / 4,
        )

    def matrix(
        self,
        modes: Modes,
        u: Float[Array, " n"],
        left: Float[Array, " n"] | None = None,
    ) -> Float[Array, "n n"]:
        """The covariance where the modes hold the risk `u`.

        **Arguments:**

        - `left`: what the mean step leaves of the error in each mode: what the scatter
            of the same step is along. 1 by default, as in the limit of small steps.
        """
        left = jnp.ones_like(u) if left is None else left
        x, y = modes.eigenvalues * u * left, modes.eigenvalues * modes.forcing
        diagonal = jnp.diag(self.diagonal * modes.eigenvalues * x * left)
        by_x, by_y = self.start * x + self.mixed * y, self.mixed * x + self.noise * y
        return diagonal + jnp.outer(by_x, x) + jnp.outer(by_y, y)


class Response(NamedTuple):
    """What the scatter needs to know at a step and a risk.

    - `descent`, `noise`: the derivatives of `q` and `g` in the risk.
    - `increments`: the covariance of what one step adds.
    """

    descent: RealScalar
    noise: RealScalar
    increments: Increments


class ResponseOfSamples(eqx.Module):
    """The response of SGD with a rule that clips each sample, and a rate.

    - `trace`: that of the features' covariance.
    - `batch`: how many samples a step has.
    """

    clip: AbstractClip
    noise: AbstractNoise
    trace: RealScalar
    lr: Schedule
    batch: int = eqx.field(static=True)

    def __call__(self, step: RealScalar, risk: RealScalar) -> Response:
        of, rate = (self.clip, self.noise, risk, self.trace, step), self.lr(step)
        mu, second = risk_slopes(*of)
        higher = higher_moments(*of)
        increments = Increments.of(mu.value, second, higher, rate, self.batch)
        return Response(rate * mu.risk, rate**2 * second.risk / self.batch, increments)

    def infinite(self, step: RealScalar, risk: RealScalar) -> Bool[Array, ""]:
        """Whether a step's increments have no variance."""
        of = self.clip, self.noise, risk, self.trace, step
        return higher_moments(*of).infinite & (self.lr(step) != 0)


def scatter_modes(problem: LinearModel | CompressedLinearModel) -> Modes:
    """The modes of a problem whose covariance is followed, few where they are known."""
    modes = problem.modes
    few = len(modes.eigenvalues) <= _MANY
    if few or is_traced(modes.eigenvalues) or is_traced(modes.risk):
        return modes
    return modes.compress(_NODES)


def need_each_sample(who: str, clip: AbstractClip, update: algorithm.Update) -> None:
    """Refuses a batch that is clipped as one, and noise on the step.

    **Arguments:**

    - `who`: what knows neither, as the sentence names it.
    """
    update.need_only(who, ("batch_size", "scope"))
    # Without a clip it is all the same what is taken together.
    if not (isinstance(clip, Identity) and isinstance(update.scope, PerTree)):
        need_samples(who, update)


def spread_of_norms(
    modes: Modes, second: RealScalar, fourth: RealScalar, rate: RealScalar, batch: int
) -> Float[Array, " n"]:
    r"""What is added to the diagonal of the covariance where a mode has few dimensions,
    or the batch as many samples as there are dimensions: there $\|\bar g_j\|^2$ has a
    scatter of its own, of the relative variance $2 / d_j$."""
    own = fourth / batch**3 + (1 - 1 / batch) * (second / batch) ** 2
    return rate**4 / 2 * own * modes.eigenvalues**3 * modes.forcing
