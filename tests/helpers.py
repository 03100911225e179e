"""The lists that tests are parametrised over, and how their numbers are judged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.special import erfc
from jaxtyping import Array, Float

import jaxclip as jc


class Redescending(jc.AbstractClip):
    """A rule as a user would write it: large gradients count for less and less."""

    threshold: Array

    def factor(self, norm, step):
        return 1 / (1 + (norm / self.threshold) ** 2)

    def kinks(self, step):
        return ()


class Skip(jc.AbstractClip):
    """A rule as a user would write it whose psi jumps: no step for a large gradient."""

    threshold: Array

    def factor(self, norm, step):
        return jnp.where(norm > self.threshold, 0.0, 1.0)

    def kinks(self, step):
        return (self.threshold,)


class Triangular(jc.AbstractNoise):
    """A noise as a user would write it: a triangular density, not symmetric."""

    std: Array

    corners = np.array([-1.0, -0.5, 1.5])  # of mean 0

    @property
    def size(self):
        """What the corners are multiplied with."""
        return self.std / np.sqrt(5.25 / 18)

    def sample(self, key, shape=()):
        low, mode, high = self.corners
        u = jr.uniform(key, shape, self.std.dtype)
        rising = low + jnp.sqrt(u * (high - low) * (mode - low))
        falling = high - jnp.sqrt((1 - u) * (high - low) * (high - mode))
        return self.size * jnp.where(u * (high - low) < mode - low, rising, falling)

    @property
    def variance(self):
        return self.std**2

    def residual(self, signal_variance):
        low, mode, high = self.corners
        # At no signal the corners are very narrow in place of sharp.
        floor = jnp.finfo(self.std.dtype).eps ** 1.28 * self.variance
        signal = jnp.sqrt(signal_variance + floor)
        # The label's noise enters a residual with a minus sign.
        corners = -self.size * self.corners
        # The slopes on either side of the mode, and what they jump by at each corner.
        left, right = 2 / (high - low) / (mode - low), 2 / (high - low) / (high - mode)
        jumps = np.array([left, -left - right, right]) / self.size**2

        def log_density(residual):
            w = residual / self.size
            triangle = jnp.minimum(right * (w + high), left * (-low - w)) / self.size
            x = jnp.abs(residual - corners) / signal
            smoothing = jnp.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
            smoothing -= x * erfc(x / np.sqrt(2)) / 2
            density = jnp.maximum(triangle, 0) + signal * jnp.sum(jumps * smoothing)
            # In the far tail only rounding is left of the sum; the square of the
            # floor must not underflow, or a second derivative is 0 times infinity.
            return jnp.log(jnp.maximum(density, jnp.finfo(x.dtype).tiny ** 0.3))

        beside = np.array([-9.5, -6, -4, -2.5, -1.25, 0, 1.25, 2.5, 4, 6, 9.5])
        edges = jnp.concatenate([corner + signal * beside for corner in corners])
        return jc.noise.SmoothLaw(log_density, edges)


class Skewed(jc.AbstractNoise):
    """A noise as a user would write it: a narrow and a wide normal law side by side."""

    std: Array

    weights = np.array([0.7, 0.3])
    means = np.array([-0.6, 1.4])
    stds = np.array([0.3, 0.8])

    def sample(self, key, shape=()):
        which, value = jr.split(key)
        index = jr.bernoulli(which, self.weights[1], shape).astype(int)
        means, stds = jnp.asarray(self.means), jnp.asarray(self.stds)
        normal = jr.normal(value, shape, self.std.dtype)
        return self.std * (means[index] + stds[index] * normal)

    @property
    def variance(self):
        return self.std**2 * np.sum(self.weights * (self.means**2 + self.stds**2))

    def residual(self, signal_variance):
        variances = signal_variance + (self.std * self.stds) ** 2
        weights, means = jnp.asarray(self.weights), -self.std * self.means
        return jc.noise.NormalMixture(weights, means, jnp.sqrt(variances))


# Seven residuals, not symmetric, as a data set would leave them.
RESIDUALS = np.array([-1.9, -0.7, -0.4, 0.1, 0.3, 1.1, 1.5])

# Each rule as a function of its threshold, so that a test can put a grid through one
# compilation; and one instance of each, its kinks inside the bulk of every noise.
RULES: dict[str, Callable[[Any], jc.AbstractClip]] = {
    "identity": lambda c: jc.Identity(),
    "hard": jc.HardClip,
    "soft": jc.SoftClip,
    "root_soft": jc.RootSoftClip,
    "delta": lambda c: jc.DeltaClip(c, 0.2),
    "normalize": jc.Normalize,
    "redescending": lambda c: Redescending(jnp.asarray(c)),
    "skip": lambda c: Skip(jnp.asarray(c)),
}
CLIPS: dict[str, jc.AbstractClip] = {
    name: rule(jnp.asarray(0.8)) for name, rule in RULES.items()
}

NOISES: dict[str, jc.AbstractNoise] = {
    "gaussian": jc.Gaussian(1.0),
    "rademacher": jc.Rademacher(1.0),
    "sparse_sign": jc.noise.SparseSign(0.8, 0.2),
    "contaminated": jc.Contaminated(1.0, 10.0, 0.1),
    "empirical": jc.Empirical(RESIDUALS),
    "uniform": jc.Uniform(1.0),
    "laplace": jc.Laplace(1.0),
    "exponential": jc.Exponential(1.0),
    "student_t": jc.StudentT(3.0, 1.0),
    "cauchy": jc.Cauchy(1.0),
    "triangular": Triangular(jnp.asarray(1.0)),
    "skewed": Skewed(jnp.asarray(1.0)),
}

all_clips = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS.keys())
all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
all_noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())


def assert_within(
    estimate: Any,
    standard_error: Any,
    expected: Any,
    *,
    k: float = 4.0,
    power: float | None = None,
) -> None:
    """Asserts that an estimate is its expectation up to `k` standard errors.

    **Arguments:**

    - `estimate`, `standard_error`, `expected`: numbers or arrays of the same shape.
    - `power`: if given, `k` standard errors must be less than this: an error of that
        size would have been seen.
    """
    estimate, expected = np.asarray(estimate), np.asarray(expected)
    bound = k * np.asarray(standard_error)
    if power is not None:
        assert np.all(bound < power), f"no power: {k} standard errors are {bound}"
    distance = np.abs(estimate - expected)
    assert np.all(distance <= bound), (
        f"{estimate} is {distance / bound * k} standard errors from {expected}"
    )


def mean_and_error(samples: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mean over independent samples along an axis, and its standard error."""
    samples = np.asarray(samples, np.float64)
    size = samples.shape[axis]
    return samples.mean(axis), samples.std(axis, ddof=1) / np.sqrt(size)


def finite_difference(
    function: Callable[[Any], Any], at: Any, step: Any
) -> Float[Array, "..."]:
    """The derivative of a function that works elementwise, to fourth order."""
    near = function(at + step) - function(at - step)
    far = function(at + 2 * step) - function(at - 2 * step)
    return (8 * near - far) / (12 * step)


def one_sided_difference(
    function: Callable[[Any], Any], at: Any, step: Any
) -> Float[Array, "..."]:
    """The derivative towards the sign of `step`, to second order."""
    near, far = function(at + step) - function(at), function(at + 2 * step)
    return (4 * near - (far - function(at))) / (2 * step)


class OneNoise(jc.AbstractNoise):
    """One noise of a list: all of them on the same features, under a `vmap`."""

    index: Array
    choices: tuple[jc.AbstractNoise, ...]

    def sample(self, key, shape=()):
        draws = [lambda key, n=noise: n.sample(key, shape) for noise in self.choices]
        return jax.lax.switch(self.index, draws, key)

    @property
    def variance(self):
        raise NotImplementedError

    def residual(self, signal_variance):
        raise NotImplementedError


def asked_settings(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Any:
    """The settings that the command `jaxclip sweep` would run."""
    from jaxclip.cli import _main

    asked = []

    def run(settings, store):
        asked.append(settings)
        raise ValueError("asked")

    monkeypatch.setattr(_main, "run_sweep", run)
    with pytest.raises(SystemExit, match="asked"):
        _main.main(words)
    return asked[0]
