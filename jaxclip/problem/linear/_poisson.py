"""Poisson regression on Gaussian features, and its excess risk in closed form."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from ..._types import Key, RealScalar
from ._gaussian import along_optimum
from ._generalised import AbstractGeneralisedLinear
from ._modes import gauss
from ._spectrum import Spectrum

# Counts that are summed one by one; then blocks of counts, each four times as long as
# the one before, with so many nodes in each, up to 4e6.
_SINGLE, _BLOCKS, _NODES = 16, 9, 9
# Distances from the logarithm of a count: the probability of a large one is narrow, and
# a rule may be as narrow there.
_BESIDE = 4.0 * 0.4 ** np.arange(11)
# A trapezoid rule for a function that is nearly normal, with a longer tail below.
_STEP = 0.6
_AT = _STEP * np.arange(-19, 15)


class Poisson(AbstractGeneralisedLinear):
    r"""Streaming Poisson regression with Gaussian features and the logarithmic link.

    Sample $k$ is a fresh $a_k \sim N(0, K)$ with a count of mean
    $e^{\langle a_k, x^* \rangle}$; the loss is the negative log likelihood
    $e^r - y r$ at the prediction $r = \langle a_k, x \rangle$. The excess risk is the
    expected loss less that at $x^*$, in nats: with $W = \mathrm{Var}\, r^*$ and
    $u = \mathrm{Cov}(r^*, r - r^*) + \mathrm{Var}(r - r^*) / 2$,

    $$e^{W/2} (e^u - 1 - \mathrm{Cov}(r^*, r - r^*)).$$

    Derived here. The slope $e^r - y$ has a heavy tail, which is what a clip is for: a
    run without one leaves at a large prediction, at any rate. Parameters are held as by
    [`jaxclip.Logistic`][].

    ```python
    problem = jc.problem.Poisson(jc.Spectrum.isotropic(100), optimum=[0.7])
    ```

    **Arguments:**

    - `spectrum`: the eigenvalues of $K$, with multiplicities.
    - `optimum`: shape `(m,)`, the norm of $x^*$ in each eigenspace. Not negative. The
        limit sums over counts up to 4e6: its coefficients are right to 1e-8 for a
        standard deviation of the signal up to 1, and to 1e-5 up to 1.7.
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
        return jnp.exp(prediction) - target

    def draw(self, key: Key, signal: RealScalar) -> RealScalar:
        return jr.poisson(key, jnp.exp(signal)).astype(signal.dtype)

    def labels(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        counts, weights = _counts()
        return jnp.asarray(counts, float), jnp.asarray(weights, float)

    def probability(
        self, label: RealScalar, mean: RealScalar, variance: RealScalar
    ) -> RealScalar:
        std = jnp.sqrt(variance)
        at, width = jax.lax.stop_gradient(_peak(label, mean, variance))
        z = (at + width * _AT.astype(at.dtype) - mean) / std
        # The nodes move with the law of the signal, whose own density is then constant.
        signal = mean + std * jax.lax.stop_gradient(z)
        log = label * signal - jnp.exp(signal) - gammaln(label + 1)
        density = jnp.exp(log - jax.lax.stop_gradient(z) ** 2 / 2)
        share = jax.lax.stop_gradient(width / std) * _STEP / np.sqrt(2 * np.pi)
        return share * jnp.sum(density)

    def edges(self, label: RealScalar) -> Float[Array, " k"]:
        beside = np.concatenate([-_BESIDE, [0.0], _BESIDE[::-1]])
        return jnp.log(jnp.maximum(label, 0.5)) + jnp.asarray(beside, label.dtype)

    def excess_risk(
        self, signal: RealScalar, cross: RealScalar, error: RealScalar
    ) -> RealScalar:
        u = cross + error / 2
        return jnp.exp(signal / 2) * (_beyond_linear(u) + error / 2)


def _peak(
    label: RealScalar, mean: RealScalar, variance: RealScalar
) -> tuple[RealScalar, RealScalar]:
    r"""Where a count's probability times the signal's density is largest, and how wide
    it is there.

    The signal there solves $y - e^u = (u - m) / v$; with $w = v e^u$ it is
    $w + \log w = a$ for $a = \log v + m + v y$, which Newton's method in $\log w$
    solves from either side.
    """
    log_variance = jnp.log(variance)
    a = log_variance + mean + variance * label
    large = a > 1
    log_w = jnp.where(large, jnp.log(jnp.where(large, a, 1.0)), a)
    for _ in range(5):
        w = jnp.exp(log_w)
        log_w = log_w - (log_w + w - a) / (1 + w)
    at = log_w - log_variance
    return at, 1 / jnp.sqrt(jnp.exp(at) + 1 / variance)


def _beyond_linear(u: RealScalar) -> RealScalar:
    """e^u - 1 - u, to all digits at small u too."""
    small = jnp.abs(u) < 0.5
    near = jnp.where(small, u, 0.0)
    series = jnp.zeros_like(u)
    for k in range(14, 1, -1):
        series = (1 + series) * near / k
    return jnp.where(small, series * near, jnp.expm1(u) - u)


@lru_cache
def _counts() -> tuple[np.ndarray, np.ndarray]:
    """Counts and weights of a sum over all counts of what is smooth in their logarithm:
    the Gauss quadrature of the counts in each block."""
    counts, weights = [np.arange(_SINGLE)], [np.ones(_SINGLE)]
    first = _SINGLE
    for _ in range(_BLOCKS):
        block = np.arange(first, 4 * first, dtype=float)
        # A long block is no different from its integral, cell by cell.
        step = max(1, len(block) // 20_000)
        middle = block[: len(block) // step * step].reshape(-1, step).mean(axis=1)
        log, mass = gauss(np.log(middle), np.full(len(middle), float(step)), _NODES)
        counts.append(np.exp(log))
        weights.append(mass)
        first *= 4
    return np.concatenate(counts), np.concatenate(weights)
