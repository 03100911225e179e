r"""The coefficients of the limit of a generalised linear model, at one state.

A sample's gradient is $\psi(r, y)\, a$ with the clipped slope $\psi$ of the label $y$.
The prediction $r = \langle a, x \rangle$ and the signal $r^* = \langle a, x^* \rangle$
are normal together, so that by Stein's lemma, with the label's law $p(y | r^*)$,

$$E[\psi a] = K (A x + D x^*), \qquad A = \sum_y E[p\, \partial_r \psi], \quad
D = \sum_y E[\psi\, \partial_{r^*} p], \quad I = \sum_y E[p\, \psi^2].$$

They are those of $(A, D)' = B^{-1} E[\psi (r, r^*)']$ with the covariance $B$ of the
pair, and are finite where $B$ is singular: at $x = 0$, at $x^* = 0$ and along it. A
jump of the rule counts in $\partial_r \psi$.

Given $r$ the signal is normal, and the problem knows the mean of $p$ over it; what is
left is an integral over $r$, by a Gauss rule on panels that end at the kinks. Derived
here.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._numerics import safe_sqrt
from ..._types import RealScalar, Schedule, Step
from ...clip import AbstractClip, factor_at
from ...problem import AbstractGeneralisedLinear
from .._crossing import crossing

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# Edges of panels of a standard normal law.
_SIDES = np.array([1.25, 2.5, 4.0, 6.0, 9.5])
_SIDES = np.concatenate([-_SIDES[::-1], [0.0], _SIDES])
# The standard deviation of what is added to the prediction and to the signal, each by
# itself: their law then has a density at x = 0 too, and derivatives there are no 0 / 0.
# Its square is added to the coefficients at most; what rounding makes of a derivative
# is one over it.
_BLUR = {"float64": 1e-7, "float32": 1e-3}


class Pair(eqx.Module):
    r"""The covariances of the prediction and the signal.

    - `signal`, `cross`, `error`: $\mathrm{Var}\, r^*$, $\mathrm{Cov}(r^*, r - r^*)$ and
        $\mathrm{Var}(r - r^*)$.
    """

    signal: RealScalar
    cross: RealScalar
    error: RealScalar

    @property
    def predicted(self) -> RealScalar:
        """The variance of the prediction."""
        total = self.signal + 2 * self.cross + self.error
        return jnp.maximum(total, 0.0) + self._blur

    @property
    def lift(self) -> RealScalar:
        """How much the mean of the signal rises with the prediction, in standard
        deviations of the latter."""
        return (self.signal + self.cross) / jnp.sqrt(self.predicted)

    @property
    def left(self) -> RealScalar:
        """The variance of the signal that the prediction leaves."""
        # The determinant of the errors' covariance, which has kept its digits.
        blur, predicted = self._blur, self.predicted
        both = self.signal * self.error - self.cross**2
        return jnp.maximum(both + blur * self.signal, 0.0) / predicted + blur

    @property
    def _blur(self) -> RealScalar:
        return _BLUR[str(self.signal.dtype)] ** 2 * (1 + self.signal)


class Coefficients(NamedTuple):
    r"""The three numbers of the limit at one state.

    - `along`: $A$, the rate at which the error falls.
    - `drift`: $A + D$, the pull along $x^*$; without a clip it is 0 at $x = x^*$.
    - `second`: $I$, the mean square of the clipped slope.
    """

    along: RealScalar
    drift: RealScalar
    second: RealScalar


class Clipped(eqx.Module):
    """The coefficients of SGD with a rule and a rate, per step.

    - `problem`, `clip`, `lr`: what SGD runs on, the rule and the rate.
    - `batch_size`: how many samples, each clipped, a step is the mean of.
    """

    problem: AbstractGeneralisedLinear
    clip: AbstractClip
    lr: Schedule
    batch_size: int = eqx.field(static=True)

    def __call__(self, step: Step, pair: Pair) -> Coefficients:
        """At a step, with the rate in them."""
        rate = self.lr(step)
        labels, weights = self.problem.labels()
        parts = jax.vmap(lambda label: self._of(label, pair, step))(labels)
        along, drift, second = (jnp.dot(weights, part) for part in parts)
        share = rate**2 / self.batch_size
        return Coefficients(rate * along, rate * drift, share * second)

    def _of(self, label: RealScalar, pair: Pair, step: Step) -> Coefficients:
        """One label's part."""
        std, lift, left = jnp.sqrt(pair.predicted), pair.lift, pair.left
        points, jumps = self._kinks(label, step)
        edges = jax.lax.stop_gradient(self.problem.edges(label))
        near = [edges / std, edges / jnp.where(lift == 0, 1e-30, lift)]
        kinks = points / std
        z, width = _panels(jax.lax.stop_gradient(jnp.concatenate(near)), kinks)
        mass = width * _density(z)

        def psi(prediction):
            slope = self.problem.slope(prediction, label)
            norm = jnp.abs(slope) * self._feature_norm
            return slope * factor_at(self.clip, norm, step)

        def probability(mean):
            return self.problem.probability(label, mean, left)

        def with_rise(function, at):
            return jax.jvp(function, (at,), (jnp.ones_like(at),))

        value, rise = with_rise(jax.vmap(psi), std * z)
        p, p_rise = with_rise(jax.vmap(probability), lift * z)
        along = jnp.sum(mass * rise * p)
        # A kink that is far away has no density.
        at = jnp.clip(kinks, -2 * _SIDES[-1], 2 * _SIDES[-1])
        there = jumps * _density(at) * jax.vmap(probability)(lift * at) / std
        along = along + jnp.sum(there)
        drift = along + jnp.sum(mass * value * p_rise)
        return Coefficients(along, drift, jnp.sum(mass * value**2 * p))

    @property
    def _feature_norm(self) -> RealScalar:
        return self.problem.spectrum.feature_norm

    def _kinks(
        self, label: RealScalar, step: Step
    ) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """The predictions at which the clipped slope is not smooth, and its jumps."""
        norm = self._feature_norm
        kinks = [jnp.asarray(kink, norm.dtype) for kink in self.clip.kinks(step)]
        # A rule may jump where the slope passes 0, from one direction to the other.
        values = jnp.stack([0 * norm, *kinks, *(-kink for kink in kinks)]) / norm
        jumps = [self._jump(kink, step) for kink in kinks]
        tiny = jnp.asarray(float(jnp.finfo(norm.dtype).tiny) ** 0.5, norm.dtype)
        at_zero = 2 * self._kept(tiny, step)
        jumps = jnp.stack([at_zero, *jumps, *jumps]) / norm

        def slope(prediction):
            return self.problem.slope(prediction, label)

        one = jnp.ones_like(norm)
        points = jax.vmap(lambda value: crossing(slope, value, one))(values)
        some = jnp.isfinite(points)
        # One that is not reached splits nothing where the law has its centre.
        return jnp.where(some, points, 0.0), jnp.where(some, jumps, 0.0)

    def _jump(self, kink: RealScalar, step: Step) -> RealScalar:
        """By how much the length that is left of a gradient jumps at a norm."""
        eps = 8 * jnp.finfo(kink.dtype).eps
        finite = kink < jnp.inf
        kink = jnp.where(finite, kink, 1.0)
        below, above = (self._kept(kink * side, step) for side in (1 - eps, 1 + eps))
        # Less than this is the rounding of a rule that is continuous.
        some = jnp.abs(above - below) > 100 * eps * (jnp.abs(above) + jnp.abs(below))
        return jnp.where(finite & some, above - below, 0.0)

    def _kept(self, norm: RealScalar, step: Step) -> RealScalar:
        """The length that is left of a gradient."""
        return norm * self.clip.factor(norm, step)


def start_of(problem: AbstractGeneralisedLinear) -> tuple[Array, Array, Array]:
    r"""Of each eigenspace, shape `(m,)`, its part of the three covariances of a
    [`Pair`][] at the start: signal, cross and error."""
    lam, optimum = problem.spectrum.eigenvalues, problem.optimum
    error = problem.start - optimum
    return lam * optimum**2, lam * optimum * error, lam * error**2


def reduced(
    problem: AbstractGeneralisedLinear, cross: Array, error: Array
) -> Float[Array, " n"]:
    """The components of the parameters along the optimum, and the norms of what is
    orthogonal to it, as [`jaxclip.Lumped`][] has them."""
    lam, optimum = problem.spectrum.eigenvalues, problem.optimum
    some = optimum > 0
    over = cross / lam / jnp.where(some, optimum, 1.0)
    along = jnp.where(some, over, 0.0)
    beside = safe_sqrt(error / lam - along**2)
    return jnp.concatenate([optimum + along, beside])


def _panels(
    edges: Float[Array, " e"], kinks: Float[Array, " k"]
) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
    """The nodes of a standard normal variable and the lengths that they stand for. The
    nodes move with the kinks, which makes derivatives in a threshold right."""
    sides = _SIDES.astype(edges.dtype)
    ends = jnp.concatenate([jnp.asarray(sides), edges, kinks])
    ends = jnp.sort(jnp.clip(ends, sides[0], sides[-1]))
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    z = middle[:, None] + half[:, None] * _NODES.astype(half.dtype)[None, :]
    width = half[:, None] * _WEIGHTS.astype(half.dtype)[None, :]
    return z.ravel(), width.ravel()


def _density(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
