"""The claims of `reproduce_high_dim.py` about rules for each coordinate.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_most, of

import jaxclip as jc

EACH = jc.PerCoordinate()


def coordinates(report: Report) -> list[Claim]:
    """Value clips on a diagonal covariance, and signSGD on a full one."""
    claims = [*_value_clips(report), *_sizes(report), *_signs(report)]
    return of("derived here; signs on a full covariance: arXiv:2411.12135", claims)


def _value_clips(report: Report) -> list[Claim]:
    """Three thresholds on a diagonal covariance, against the mean of runs."""
    dim, runs = 400, 16 if report.quick else 64
    problem = _problem(dim, jc.Laplace(1.0))
    lr, steps = 0.4 / dim, 2 * dim
    claims = []
    for threshold in (0.05, 0.3, 1.5):
        clip = jc.HardClip(threshold)
        mean, _ = _mean(problem, clip, lr, steps, runs, report.seed)
        ode = float(_limit(problem, clip, lr, steps))
        text = f"value clip at {threshold}, d = {dim}: the limit over the mean of runs"
        claims.append(at_most(text + ", off by", abs(mean / ode - 1), 0.011))
    return claims


def _sizes(report: Report) -> list[Claim]:
    """How far one run is from the limit, by the dimension."""
    dims = np.array([100, 400] if report.quick else [100, 400, 1600])
    runs, claims = 32 if report.quick else 64, []
    for name, clip, noise, rate in (
        ("value clip, Laplace noise", jc.HardClip(0.3), jc.Laplace(1.0), 0.4),
        ("signs, Gaussian noise", jc.Normalize(), jc.Gaussian(1.0), 0.3),
        ("signs, t noise", jc.Normalize(), jc.StudentT(3.0, 0.6), 0.3),
    ):
        off = []
        for dim in dims:
            problem, lr, steps = _problem(int(dim), noise), rate / dim, int(dim)
            ode = float(_limit(problem, clip, lr, steps))
            risks = _risks(problem, clip, lr, steps, runs, report.seed)
            off.append(np.sqrt(np.mean((risks / ode - 1) ** 2)))
        slope = np.polyfit(np.log(dims), np.log(off), 1)[0]
        # A root mean square of n runs is known to one over the root of 2n.
        slack = 0.1 + 3 / np.sqrt(2 * runs) / np.log(dims[-1] / dims[0])
        text = f"{name}: a run's error falls with the dimension, its slope + 1/2"
        claims.append(at_most(text, abs(slope + 0.5), slack if report.quick else 0.1))
    return claims


def _signs(report: Report) -> list[Claim]:
    """signSGD in 300 dimensions, eigenvalues i^-0.3 in a random basis."""
    dim, runs = 300, 16 if report.quick else 64
    rng = np.random.default_rng(report.seed)
    Q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    K = Q @ np.diag(np.arange(1, dim + 1) ** -0.3) @ Q.T
    start = rng.standard_normal(dim) / np.sqrt(dim)
    problem = jc.LinearModel.from_covariance(K, jc.Gaussian(0.5), start)
    lr, steps = 0.5 / dim, 10 * dim
    mean, error = _mean(problem, jc.Normalize(), lr, steps, runs, report.seed)
    ode = float(_limit(problem, jc.Normalize(), lr, steps))
    report.save("signs", mean=mean, error=error, ode=ode)
    # The mean differs from the limit by a few parts in the dimension.
    allowed = 4 * error / ode + 6 / dim
    text = "signs on a full covariance, d = 300: the limit over the mean of runs"
    return [at_most(text + ", off by", abs(mean / ode - 1), allowed)]


def _problem(dim: int, noise: jc.AbstractNoise) -> jc.LinearModel:
    spectrum = jc.Spectrum.power_law(dim, 0.3)
    return jc.LinearModel(spectrum, noise, jnp.full(dim, dim**-0.5))


def _limit(problem: Any, clip: Any, lr: float, steps: int) -> Any:
    at = jnp.array([float(steps)])
    return jc.solve(problem, clip, lr, steps=at, scope=EACH).risk[0]


def _risks(
    problem: Any, clip: Any, lr: float, steps: int, runs: int, seed: int
) -> np.ndarray:
    def run(key):
        how = {"steps": steps, "every": steps, "key": key, "scope": EACH}
        return jc.simulate(problem, clip, lr, **how).risk[-1]

    return np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(seed), runs)))


def _mean(
    problem: Any, clip: Any, lr: float, steps: int, runs: int, seed: int
) -> tuple[float, float]:
    """The mean of runs at the last step, and its standard error."""
    risks = _risks(problem, clip, lr, steps, runs, seed)
    return float(risks.mean()), float(risks.std(ddof=1) / np.sqrt(runs))
