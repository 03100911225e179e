"""The hard family of `reproduce_spider_clip.py`, and runs on it.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxclip as jc

GAP = 2.0  # f(x0) - inf f, but for the wall; L0 = L1 = sigma = 1 throughout.


class HardFamily(eqx.Module):
    """A one-dimensional loss that is as slow as any (1, 1)-smooth one: a plateau around
    a parabola, whose slope is a multiple of eps, between two exponential walls."""

    eps: float
    multiple: float = 2.0

    @property
    def edge(self) -> float:
        """The slope of the plateau, and where it begins."""
        return self.multiple * self.eps

    @property
    def corner(self) -> float:
        """Where the plateau ends and the wall begins."""
        return GAP / self.edge

    def start(self, slope: float) -> float:
        """The point on the wall where the derivative is `slope`."""
        return self.corner + float(np.log1p(slope - self.edge))

    def value(self, x: Any) -> Any:
        """f(x)."""
        x, edge = jnp.abs(x), self.edge
        wall = jnp.maximum(x - self.corner, 0.0)
        flat = jnp.where(x < edge, x**2 / 2, edge * x - edge**2 / 2)
        return flat + jnp.expm1(wall) - wall

    def sample(self, x: Any, phase: Any) -> Any:
        """The loss on one sample, whose derivative is f' + sqrt(2) cos(x + phase)."""
        return self.value(x) + jnp.sqrt(2.0) * jnp.sin(x + phase)

    def online(self, slope: float = 5.0) -> jc.Online:
        """The loss with phases that are drawn afresh."""
        return jc.Online(self.sample, jnp.array(self.start(slope)), phase, self.value)

    def total(self, size: int) -> jc.FiniteSum:
        """The loss with evenly spaced phases, over which the noise sums to zero."""
        phases = 2 * np.pi * np.arange(size) / size
        return jc.FiniteSum(self.sample, jnp.array(self.start(5.0)), phases)


def phase(key: Any) -> Any:
    """A phase of the noise."""
    return jr.uniform(key, maxval=2 * jnp.pi)


class Path(eqx.Module):
    """A run of SPIDER, step by step: leading axes of runs and steps."""

    slope: Any
    evaluations: Any
    error: Any
    violations: Any


def follow(
    family: HardFamily, problem: Any, optimiser: jc.Spider, steps: int, keys: Any
) -> Path:
    """Runs SPIDER and holds every step against the descent inequality

    f(x_{k+1}) <= f(x_k) - eta |v|^2 / 8 + 3/4 eta |v - f'|^2 + eta eps^2 / 4."""
    derivative = jax.grad(family.value)

    def body(run, _):
        after = optimiser.step(problem, run)
        x, v = run.params, after.state.estimator
        rate = optimiser.lr(0) * optimiser.clip.factor(jnp.abs(v), 0)
        error = (v - derivative(x)) ** 2
        allowed = rate * (-(v**2) / 8 + 0.75 * error + family.eps**2 / 4)
        rise = family.value(after.params) - family.value(x)
        seen = Path(
            jnp.abs(derivative(after.params)),
            after.state.evaluations,
            error,
            # Rounding apart, which is that of the value of f.
            rise > allowed + 1e-13,
        )
        return after, seen

    def one(key):
        start = optimiser.init(problem, key)
        return jax.lax.scan(body, start, length=steps)[1]

    return jax.jit(jax.vmap(one))(keys)


def half_are_there(slope: Any, evaluations: Any, eps: float) -> float:
    """The sample gradients when first half of the runs have |f'| <= eps."""
    share = np.mean(np.asarray(slope) <= eps, axis=0)
    if not np.any(share >= 0.5):
        return np.inf
    return float(np.asarray(evaluations)[np.argmax(share >= 0.5)])


def exponent(x: Any, y: Any) -> float:
    """The slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def clipped_sgd(problem: Any, family: HardFamily, every: int, keys: Any) -> jc.Curve:
    """Clipped SGD at the rate eps^2, for 400 records."""

    def one(key):
        return jc.simulate(
            problem,
            jc.HardClip(2.0),
            family.eps**2,
            steps=400 * every,
            every=every,
            key=key,
            observe=lambda x: jnp.abs(jax.grad(family.value)(x)),
        )

    return jax.jit(jax.vmap(one))(keys)


def gap(family: HardFamily) -> float:
    """f(x0) - inf f."""
    return float(family.value(family.start(5.0)))
