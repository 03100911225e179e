"""Logistic regression on Gaussian features, and its excess risk in closed form."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.nn import sigmoid
from jaxtyping import Array, Float

from ..._numerics import safe_sqrt
from ..._types import Key, RealScalar
from ._gaussian import along_optimum
from ._generalised import AbstractGeneralisedLinear
from ._logistic_normal import logistic_normal
from ._loss import LogisticLoss
from ._spectrum import Spectrum

# Predictions between which the slope, which falls like e^-|r|, falls to a tenth or so;
# beyond the last there is nothing left that a rule could see.
_EDGES = np.array([1.2, 2.4, 4.0, 6.0, 8.0, 10.5, 13.0, 16.0, 19.0, 23.0, 27.0, 32.0])


class Logistic(AbstractGeneralisedLinear):
    r"""Streaming logistic regression with Gaussian features.

    Sample $k$ is a fresh $a_k \sim N(0, K)$ with a label that is 1 with probability
    $1 / (1 + e^{-\langle a_k, x^* \rangle})$ and 0 else; the loss is the negative log
    likelihood. The excess risk is the expected loss less that at $x^*$, in nats
    ([`jaxclip.LogisticLoss`][]).

    Parameters are held in the eigenbasis of $K$. The optimum, and a start along it, are
    spread evenly over the dimensions of each eigenspace.

    **Arguments:**

    - `spectrum`: the eigenvalues of $K$, with multiplicities.
    - `optimum`: shape `(m,)`, the norm of $x^*$ in each eigenspace. Not negative.
    - `start`: shape `(m,)`, the component of $x_0$ along $x^*$ in each eigenspace, of
        either sign; zero by default.
    """

    spectrum: Spectrum
    optimum: Float[Array, " m"]
    start: Float[Array, " m"]

    def __init__(self, spectrum: Spectrum, optimum: Any, start: Any = None):
        self.spectrum = spectrum
        self.optimum, self.start = along_optimum(optimum, start, spectrum)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return LogisticLoss().slope(prediction, target)

    def draw(self, key: Key, signal: RealScalar) -> RealScalar:
        return jr.bernoulli(key, sigmoid(signal)).astype(signal.dtype)

    def labels(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        return jnp.array([0.0, 1.0]), jnp.ones(2)

    def probability(
        self, label: RealScalar, mean: RealScalar, variance: RealScalar
    ) -> RealScalar:
        return logistic_normal((2 * label - 1) * mean, variance)

    def edges(self, label: RealScalar) -> Float[Array, " k"]:
        # The slope falls exponentially to both sides, and a rule acts on its size.
        del label
        return jnp.asarray(np.concatenate([-_EDGES[::-1], [0.0], _EDGES]), float)

    def excess_risk(
        self, signal: RealScalar, cross: RealScalar, error: RealScalar
    ) -> RealScalar:
        return excess_log_loss(signal, cross, error)


def excess_log_loss(
    signal: RealScalar, cross: RealScalar, error: RealScalar
) -> RealScalar:
    r"""The expected log loss at $x$ less that at $x^*$, in nats.

    With $s^* = \langle a, x^* \rangle$, $\delta = \langle a, x - x^* \rangle$ and
    $s_t = s^* + t \delta$, Taylor's formula with its remainder gives

    $$E[\ell(s^* + \delta) - \ell(s^*)]
    = \int_0^1 (1 - t)\, E[\delta^2 \sigma'(s_t)]\, dt,$$

    whose term of first order vanishes since $E[y \mid a] = \sigma(s^*)$. Given $s_t$,
    $\delta$ is normal about its regression on $s_t$, so that with
    $V = \mathrm{Var}\, s_t$ and $q = \mathrm{Cov}(\delta, s_t)^2 / V$

    $$E[\delta^2 \sigma'(s_t)] = (\mathrm{Var}\, \delta - q)\, E \sigma'(\sqrt V Z)
    + q\, E[Z^2 \sigma'(\sqrt V Z)].$$

    Nothing is subtracted that is nearly equal, so the risk is as accurate next to the
    optimum as the parameters are. Far from it the integrand in $t$ is too narrow, and
    by Stein's lemma, $E[\sigma(s^*) s] = \mathrm{Cov}(s, s^*) E \sigma'(s^*)$,

    $$E \log(1 + e^s) - E \log(1 + e^{s^*})
    - \mathrm{Cov}(s^*, \delta)\, E \sigma'(s^*).$$

    Derived here.

    **Arguments:**

    - `signal`, `cross`, `error`: $\mathrm{Var}\, s^*$, $\mathrm{Cov}(s^*, \delta)$ and
        $\mathrm{Var}\, \delta$.
    """
    near = error < 4
    taylor = _taylor(signal, cross, jnp.where(near, error, 1.0))
    ends = jnp.stack([signal, jnp.maximum(signal + 2 * cross + error, 0.0)])
    before, after = _log_partition(ends)
    flat, _ = _curvatures(ends[:1])
    return jnp.where(near, taylor, after - before - cross * flat[0])


def _taylor(signal: RealScalar, cross: RealScalar, error: RealScalar) -> RealScalar:
    """The integral over t."""
    t, weights = _legendre(24, 1.0, signal.dtype)
    covariance = cross + t * error
    variance = signal + t * (cross + covariance)
    # Where both vanish so does q; and rounding must not lift it above Var(delta).
    some = variance > 0
    explained = jnp.where(some, covariance**2 / jnp.where(some, variance, 1.0), 0.0)
    explained = jnp.minimum(explained, error)
    flat, squared = _curvatures(jnp.where(some, variance, 0.0))
    inside = (error - explained) * flat + explained * squared
    return jnp.sum(weights * (1 - t) * inside)


def _curvatures(
    variance: Float[Array, " t"],
) -> tuple[Float[Array, " t"], Float[Array, " t"]]:
    r"""$E \sigma'(\sqrt V Z)$ and $E[Z^2 \sigma'(\sqrt V Z)]$."""
    _, z, s, weights = _half_line(variance)
    terms = weights * sigmoid(s) * sigmoid(-s)
    return jnp.sum(terms, axis=1), jnp.sum(terms * z**2, axis=1)


def _log_partition(variance: Float[Array, " t"]) -> Float[Array, " t"]:
    r"""$E \log(1 + e^{\sqrt V Z})$: of the positive part and of the smooth rest."""
    std, _, s, weights = _half_line(variance)
    return std / np.sqrt(2 * np.pi) + jnp.sum(weights * jnp.log1p(jnp.exp(-s)), axis=1)


def _half_line(
    variance: Float[Array, " t"],
) -> tuple[Array, Array, Array, Array]:
    r"""$\sqrt V$, nodes $Z$ and $\sqrt V Z$, and weights, for even functions of $Z$.

    In the variable in which the normal density and functions of the width of
    $\sigma'$ are both no narrower than one: Gauss-Hermite nodes would be too far apart
    for a large V.
    """
    std = safe_sqrt(variance)
    u, weights = _legendre(80, 40.0, variance.dtype)
    scale = 1 / (1 + std)
    z = scale[:, None] * u[None, :]
    density = np.sqrt(2 / np.pi) * jnp.exp(-(z**2) / 2) * scale[:, None]
    return std, z, std[:, None] * z, weights[None, :] * density


def _legendre(count: int, end: float, dtype) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, end]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1) / 2 * end, weights / 2 * end
    return jnp.asarray(nodes, dtype), jnp.asarray(weights, dtype)
