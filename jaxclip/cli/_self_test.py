"""The self-test of `jaxclip doctor`: each check against something independent."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from ..clip import HardClip
from ..limit import solve
from ..noise import Gaussian
from ..problem import Landscape, LinearModel, Spectrum
from ..sgd import simulate
from ..transform import as_transform, safe_norm


@dataclass(frozen=True)
class Check:
    """A check of the self-test.

    - `name`: what is compared with what.
    - `run`: returns what was measured; raises where something is wrong.
    - `advice`: what to do then.
    """

    name: str
    run: Callable[[], str]
    advice: str


def _simulation() -> str:
    """The mean of runs beside the equation that it converges to: two programs that have
    only the moments' formulas in common."""
    runs, dim = 48, 400
    problem = LinearModel(Spectrum.isotropic(dim), Gaussian(0.5), jnp.ones(1))
    clip, lr, steps = HardClip(1.5 * dim**0.5), 0.5 / dim, 200

    def final(key):
        return simulate(problem, clip, lr, steps=steps, every=steps, key=key).risk[-1]

    risks = np.asarray(jax.vmap(final)(jr.split(jr.key(0), runs)), np.float64)
    expected = float(solve(problem, clip, lr, steps=jnp.array([float(steps)])).risk[-1])
    # The equation is that of infinitely many dimensions: it is off by one over theirs.
    error = np.hypot(risks.std(ddof=1) / np.sqrt(runs), expected / dim)
    score = (risks.mean() - expected) / error
    detail = f"{risks.mean():.4f} and {expected:.4f}, {score:+.1f} standard errors"
    assert abs(score) <= 4, detail
    return detail


def _clip() -> str:
    """One gradient that is clipped and one that is not, on the default device."""
    small = {"w": jnp.arange(6.0).reshape(2, 3) / 10, "b": jnp.array([0.1, -0.2])}
    worst = 0.0
    for scale in (1.0, 100.0):
        gradient = jax.tree.map(lambda x, scale=scale: x * scale, small)
        ours, theirs = (
            jax.jit(transform.update)(gradient, transform.init(gradient))[0]
            for transform in (
                as_transform(HardClip(1.0)),
                optax.clip_by_global_norm(1.0),
            )
        )
        pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        worst = max(worst, *(float(jnp.max(jnp.abs(a - b))) for a, b in pairs))
    detail = f"largest difference {worst:.1e} on {jax.devices()[0].platform}"
    assert worst < 1e-6, detail
    return detail


def _norms() -> str:
    """Where the square of a number is beyond float32."""
    errors = []
    for size in (1e30, 1e-30):
        vector = np.array([3, 4], np.float32) * np.float32(size)
        norm = float(jax.jit(safe_norm)(jnp.asarray(vector)))
        errors.append(abs(norm / (5 * size) - 1))
    detail = f"relative errors {errors[0]:.1e} at 1e30, {errors[1]:.1e} at 1e-30"
    # Written so that NaN fails.
    assert max(errors) < 1e-6 and not np.isnan(errors).any(), detail
    return detail


def _compilations() -> str:
    """Another call with other numbers and keys, counted by what XLA compiles."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **others: str | int) -> None:
        del duration_secs, others
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    def loss(x):
        return jnp.sum(x**2) / 2

    def call(i: int) -> None:
        problem = Landscape(loss, jnp.array([1.0 + i, 2.0]))
        clip, key = HardClip(1.0 + i), jr.key(i)
        jax.block_until_ready(simulate(problem, clip, 0.1, steps=4, every=2, key=key))

    jax.monitoring.register_event_duration_secs_listener(listen)
    call(0)
    first = len(seen)
    call(1)
    second = len(seen) - first
    detail = f"{first} programs at the first call, {second} at the second"
    # None at the first either would mean that they are not seen.
    assert first > 0 and second == 0, detail
    return detail


CHECKS = (
    Check(
        "`simulate` against `solve`",
        _simulation,
        "Runs and their limit part. Install the versions that jaxclip asks for "
        "(`pip install -U jaxclip`); if they do, please report it with these lines.",
    ),
    Check(
        "a hard clip against optax",
        _clip,
        "The device computes something else: try `JAX_PLATFORMS=cpu jaxclip doctor`; "
        "if that passes, look to the driver and to jaxlib's version for the device.",
    ),
    Check(
        "float32 norms of huge and tiny gradients",
        _norms,
        "A flag may let XLA trade accuracy for speed: run without XLA_FLAGS, and "
        "without a lowered jax_default_matmul_precision.",
    ),
    Check(
        "the second call compiles nothing",
        _compilations,
        "Each call compiles again, which is slow and not wrong. Install the version of "
        "jax and equinox that jaxclip asks for, and unset JAX_DISABLE_JIT.",
    ),
)
