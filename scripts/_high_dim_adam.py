"""The claims of the high-dimensional limits about Adam, RMSProp and AdaGrad.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _claims import Claim, Report, near, of

import jaxclip as jc

_DIMS = (100, 400, 1600)
# Adam on one eigenvalue in 250 dimensions without noise, at k / d = 1, 2 and 3.9: runs
# of other authors' code, whose start is not known.
_PUBLISHED = {
    (0.9, 0.95): (0.5637, 0.2685, 0.0454),
    (0.0, 0.9): (0.5878, 0.3018, 0.0553),
}


def adam(report: Report) -> list[Claim]:
    """Runs against their limit at three sizes, and published runs."""
    claims = []
    for name, clip, noise, kind in (
        ("Adam (0.9, 0.99), unclipped, Gaussian", np.inf, jc.Gaussian(0.5), "adam"),
        ("Adam (0.9, 0.99), clipped, Student", 0.7, jc.StudentT(3.0, 0.5), "adam"),
        ("RMSProp 0.9, clipped, Laplace", 0.7, jc.Laplace(1.0), "rmsprop"),
        ("AdaGrad, clipped, Student", 0.7, jc.StudentT(3.0, 0.5), "adagrad"),
    ):
        for shape in ("one eigenvalue", "power law"):
            off = [
                _deviation(report, d, shape, clip, noise, kind)
                for d in (_DIMS[:2] if report.quick else _DIMS)
            ]
            slope = np.polyfit(np.log(_DIMS[: len(off)]), np.log(off), 1)[0]
            low, high = (-0.8, -0.2) if report.quick else (-0.6, -0.4)
            text = f"{name}, {shape}: slope of a run's deviation in the dimension"
            claims.append(Claim(text, float(slope), low, high))
    return of("derived here", [*claims, *_published()])


def _deviation(
    report: Report, d: int, shape: str, c: float, noise: Any, kind: str
) -> float:
    """The mean over runs of the largest relative deviation from the limit."""
    power = 0.0 if shape == "one eigenvalue" else 0.3
    spectrum = jc.Spectrum(jnp.arange(1, d + 1.0) ** -power)
    start = jnp.full(d, jnp.sqrt(2 / spectrum.trace))
    problem = jc.LinearModel(spectrum, noise, start)
    norm = spectrum.feature_norm
    clip = jc.Identity() if np.isinf(c) else jc.HardClip(c * norm)
    # Moves of the same size beside the start at each size.
    lr = 0.5 / spectrum.trace
    optimiser, limit = {
        "adam": lambda: (optax.adam(lr, 0.9, 0.99), jc.limit.AdamODE(0.9, 0.99)),
        "rmsprop": lambda: (optax.adam(lr, 0.0, 0.9), jc.limit.AdamODE(0.0, 0.9)),
        "adagrad": lambda: (optax.adagrad(0.8, 5.0), jc.limit.AdagradODE(5.0)),
    }[kind]()
    chain = optax.chain(jc.as_transform(clip), optimiser)
    steps, every = 3 * d, d // 4

    @jax.jit
    def run(key):
        return jc.train(problem, chain, steps=steps, every=every, key=key).risk

    runs = 16 if report.quick else 64
    keys = jr.split(jr.key(report.seed), runs)
    risks = np.asarray(jax.lax.map(run, keys, batch_size=16))
    at = jnp.arange(0.0, steps + 1.0, every)
    rate = 0.8 if kind == "adagrad" else lr
    curve = np.asarray(jc.solve(problem, clip, rate, steps=at, limit=limit).risk)
    return float(np.mean(np.max(np.abs(risks / curve - 1), axis=1)))


def _published() -> list[Claim]:
    claims, steps = [], 250 * jnp.array([1.0, 2.0, 3.9])
    for (b1, b2), values in _PUBLISHED.items():
        # The start that fits their six numbers best.
        problem = jc.LinearModel(
            jc.Spectrum.isotropic(250), jc.Gaussian(1e-6), [np.sqrt(2 * 1.033)]
        )
        how = {"steps": steps, "limit": jc.limit.AdamODE(b1, b2)}
        curve = jc.solve(problem, jc.Identity(), 0.5 / 250, **how)
        for t, ours, theirs in zip((1, 2, 3.9), curve.risk, values, strict=True):
            text = f"Adam ({b1}, {b2}) in 250 dimensions, risk at k / d = {t}"
            claims.append(near(text, ours, theirs, 0.06))
    return of("published runs; their start, a risk of 1.033, is fitted", claims)
