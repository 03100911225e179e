"""The claims of `reproduce_high_dim.py` about losses beyond the squared one.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_most, near, of

import jaxclip as jc

# Eigenvalues and multiplicities in tenths of the dimension.
SPECTRA = {"isotropic": ([1.0], [10]), "blocks": ([1.0, 0.5, 0.25, 0.1], [1, 2, 3, 4])}
TIMES = np.array([0.5, 1.0, 2.0, 4.0])
DIMS = (100, 400, 1600)


def _settings(name: str, spectrum: Any) -> tuple[Any, Any, float]:
    """Problem, rule and rate times the intrinsic dimension."""
    share = jnp.sqrt(spectrum.multiplicity / spectrum.dim)
    norm = spectrum.feature_norm
    if name == "Huber, Student, clipped":
        noise, loss = jc.StudentT(3.0, 0.5), jc.HuberLoss(1.0)
        problem = jc.LinearModel(spectrum, noise, 1.4 * share, loss)
        return problem, jc.HardClip(0.6 * norm), 0.8
    if name == "pinball .3, exponential, clipped":
        problem = jc.LinearModel(
            spectrum, jc.Exponential(1.0), 1.4 * share, jc.PinballLoss(0.3)
        )
        return problem, jc.HardClip(0.5 * norm), 0.8
    if name == "logistic, clipped":
        return jc.Logistic(spectrum, 2.0 * share), jc.HardClip(0.3 * norm), 3.0
    return jc.Logistic(spectrum, 2.0 * share, 0.5 * share), jc.Identity(), 2.0


NAMES = (
    "Huber, Student, clipped",
    "pinball .3, exponential, clipped",
    "logistic, clipped",
    "logistic, unclipped",
)


def _error(report: Report, name: str, kind: str, dim: int) -> tuple[float, float]:
    """The root mean square deviation of one run from the limit in parts of the start's
    risk, and that of the mean of runs in its own standard errors and finite size."""
    eigenvalues, tenths = SPECTRA[kind]
    spectrum = jc.Spectrum(eigenvalues, np.array(tenths) * dim // 10)
    problem, clip, eta = _settings(name, spectrum)
    dimension = float(spectrum.intrinsic_dimension)
    lr, runs = eta / dimension, 100 if report.quick else 400
    every = round(0.5 * dimension)
    at = every * np.array([1, 2, 4, 8])

    def run(key):
        how: dict[str, Any] = dict(steps=8 * every, every=every, engine=jc.Lumped())
        return jc.simulate(problem, clip, lr, key=key, **how).risk

    keys = jr.split(jr.key(report.seed), runs)
    risk = np.asarray(jax.jit(jax.vmap(run))(keys))[:, [1, 2, 4, 8]]
    ode = np.asarray(jc.solve(problem, clip, lr, steps=at).risk)
    report.save(f"losses {name} {kind} {dim}", step=at, sgd=risk, ode=ode)
    start = float(problem.risk(problem.init()))
    single = np.sqrt(np.mean((risk - ode) ** 2)) / start
    allowed = 4 * risk.std(axis=0) / np.sqrt(runs) + 4 / dimension * start
    return single, float(np.max(np.abs(risk.mean(axis=0) - ode) / allowed))


def losses(report: Report) -> list[Claim]:
    """Runs with Huber, pinball and logistic losses, in growing dimension."""
    claims = []
    for name in NAMES:
        for kind in SPECTRA:
            errors, means = zip(
                *(_error(report, name, kind, dim) for dim in DIMS), strict=True
            )
            slope = np.polyfit(np.log(DIMS), np.log(errors), 1)[0]
            text = f"{name}, {kind}: the error of one run falls like d to the"
            claims.append(Claim(text, float(slope), -0.6, -0.4))
            text = f"{name}, {kind}: the mean of runs, over what is allowed"
            claims.append(at_most(text, max(means), 1.0))
    return of("derived here", claims)


def counts(report: Report) -> list[Claim]:
    """Poisson regression with a clip."""
    spectrum = jc.Spectrum.isotropic(400)
    problem = jc.problem.Poisson(spectrum, [0.8], [-0.2])
    clip, lr = jc.HardClip(1.5 * spectrum.feature_norm), 0.4 / 400

    def run(key):
        how: dict[str, Any] = dict(steps=1200, every=400, engine=jc.Lumped())
        return jc.simulate(problem, clip, lr, key=key, **how).risk

    runs = 100 if report.quick else 400
    risk = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(report.seed), runs)))
    limit = jc.limit.GeneralisedODE(rtol=1e-6)
    ode = jc.solve(problem, clip, lr, steps=np.arange(0, 1201, 400), limit=limit)
    text = "Poisson, clipped: the mean of runs at the end is the limit"
    return of("derived here", [near(text, risk.mean(0)[-1], float(ode.risk[-1]), 0.03)])
