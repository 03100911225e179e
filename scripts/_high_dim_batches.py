"""The claims of `reproduce_high_dim.py` about batches: their limit, clipped per example
and as a whole, and what a clip of a batch is worth.

Not a program of its own.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_least, at_most, of

import jaxclip as jc
from jaxclip.noise import SparseSign

DIMENSIONS = (100, 400, 1600)
SIZE, RATE = 8, 1.0
# Shares of the dimension with each eigenvalue.
SPECTRA = {
    "one eigenvalue": ((1.0, 1.0),),
    "four eigenvalues": ((1.0, 0.1), (0.5, 0.2), (0.25, 0.3), (0.1, 0.4)),
}
NOISES = {
    "Gaussian": jc.Gaussian(1.0),
    "sparse sign": SparseSign(1.0, 0.2),
    "Laplace": jc.Laplace(1.0),
}
# Of the mean of a batch, and of each example.
THRESHOLDS = {"batch": 0.3, "examples": 1.0, "none": jnp.inf}


def batches(report: Report) -> list[Claim]:
    """Single runs follow the ODE like one over the root of the dimension, and their
    mean follows it more closely."""
    claims = []
    for spectrum in SPECTRA:
        for noise in NOISES:
            for kind in THRESHOLDS:
                claims += _converges(report, spectrum, noise, kind)
    return of("derived here", claims + _worth())


def _converges(report: Report, shape: str, noise: str, kind: str) -> list[Claim]:
    runs = 40 if report.quick else 200
    single, means, floors = [], [], []
    for d in DIMENSIONS:
        risk, ode = _both(report, shape, noise, kind, d, runs)
        error = risk / ode - 1
        single.append(np.sqrt(np.mean(error**2)))
        means.append(np.sqrt(np.mean(error.mean(axis=0) ** 2)))
        floors.append(np.mean(error.std(axis=0)) / np.sqrt(runs))
    slope = np.polyfit(np.log(DIMENSIONS), np.log(single), 1)[0]
    name = f"{shape}, {noise} noise, clip of {kind}"
    report.save(f"batches {name}", single=single, mean=means, floor=floors)
    # A slope from three dimensions is uncertain with few runs.
    slack = 0.12 if report.quick else 0.1
    return [
        Claim(f"{name}: a run's error in d", slope, -0.5 - slack, -0.5 + slack),
        at_most(
            f"{name}: the mean's error falls from d = 100 to 1600",
            means[-1] / (means[0] + 3 * floors[-1]),
            1.0,
        ),
    ]


def _both(report: Report, shape: str, noise: str, kind: str, d: int, runs: int):
    """Runs and the ODE at the same steps."""
    eigenvalues, shares = zip(*SPECTRA[shape], strict=True)
    counts = [round(share * d) for share in shares]
    spectrum = jc.Spectrum(jnp.array(eigenvalues), counts)
    start = jnp.sqrt(2 * jnp.array(counts) / float(spectrum.trace))
    problem = jc.LinearModel(spectrum, NOISES[noise], start)
    clip = jc.HardClip(THRESHOLDS[kind] * spectrum.feature_norm)
    scope = jc.PerExample() if kind == "examples" else jc.PerTree()
    steps, every, lr = 2 * d, d // 2, RATE / float(spectrum.trace)
    how = {"batch_size": SIZE, "scope": scope}

    def one(key):
        setting = problem, clip, lr
        run = {"steps": steps, "every": every, "engine": jc.Lumped(), "key": key}
        return jc.simulate(*setting, **run, **how).risk[1:]

    risk = jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs))
    at = every * np.arange(1.0, 5.0)
    ode = jc.solve(problem, clip, lr, steps=at, **how)
    return np.asarray(risk), np.asarray(ode.risk)


def _worth() -> list[Claim]:
    """What the best clip of a batch gains over none, and what it loses beside the best
    clip of examples, at a risk of 0.01."""
    risk, claims = 0.01, []
    for name, noise in (
        ("t3", jc.StudentT(3.0, 3**-0.5)),
        ("Cauchy", jc.Cauchy(1.0)),
    ):
        one = jc.best_clip(noise, risk, 1.0)
        best = jc.moments(one.clip, noise, risk, 1.0)
        cccs, shares = [], []
        for size in (4, 16, 64):
            found = jc.best_clip(noise, risk, 1.0, batch_size=size)
            m = jc.moments(found.clip, noise, risk, 1.0, batch_size=size)
            ours = float(m.mu**2 / m.second) / size
            cccs.append(float(found.ccc))
            shares.append(ours / float(best.mu**2 / best.second))
        text = (
            f"{name} noise: what a batch's clip keeps of the gain falls with the batch"
        )
        claims.append(at_least(text, -np.max(np.diff(shares)), 0.0))
        claims.append(
            at_most(f"{name} noise: and is less than all of it", shares[0], 1)
        )
        if name == "t3":
            text = "t3 noise: the clip of a batch of 64 still gains"
            claims.append(at_least(text, cccs[-1], 1.02))
    return claims
