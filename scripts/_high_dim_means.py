"""The claims of `reproduce_high_dim.py` about finite dimensions: means and bands.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_most, near, of

import jaxclip as jc

_RECURSION = jc.limit.RiskRecursion()


def means(report: Report) -> list[Claim]:
    """The mean over runs in few dimensions, and the scatter of single runs in many."""
    parts = (_exact, _corrected, _bands, _diffusion)
    return of("derived here", [claim for part in parts for claim in part(report)])


@eqx.filter_jit
def _many(
    problem: Any, clip: Any, lr: Any, steps: int, every: int, keys: Any, update: Any
):
    """Runs with the law of SGD, at a cost that does not grow with the dimension."""
    how: dict[str, Any] = {"steps": steps, "every": every, "engine": jc.Lumped()}
    how |= {"batch_size": update.batch_size, "scope": update.scope}
    return jax.vmap(lambda k: jc.simulate(problem, clip, lr, key=k, **how))(keys).risk


def _exact(report: Report) -> list[Claim]:
    """Unclipped minibatches at an intrinsic dimension of 1.6."""
    spectrum = jc.Spectrum([1.0, 0.3], [1, 2])
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), [1.0, 1.0])
    count = 10_000
    claims = []
    for batch in (1, 4):
        update = jc.algorithm.Update(batch)
        keys = jr.split(jr.key(report.seed + batch), count)
        runs = np.asarray(_many(problem, jc.Identity(), 0.2, 40, 20, keys, update))
        steps = jnp.array([0.0, 20.0, 40.0])
        how: dict[str, Any] = {"steps": steps, "batch_size": batch}
        found = jc.solve(problem, jc.Identity(), 0.2, limit=_RECURSION, **how).risk
        error = runs.std(axis=0) / count**0.5
        worst = np.max(np.abs(runs.mean(axis=0) - found)[1:] / error[1:])
        text = f"unclipped, N = 1.6, batch {batch}: errors between runs and recursion"
        claims.append(at_most(text, worst, 4.0))
    return claims


def _corrected(report: Report) -> list[Claim]:
    """Clipped runs in 8 to 64 dimensions: how the error of the mean falls."""
    count, dims = (20_000, (8, 16)) if report.quick else (200_000, (8, 16, 32))
    update, claims, left = jc.algorithm.Update(), [], []
    for dim in dims:
        spectrum = jc.Spectrum.isotropic(dim)
        problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), [2**0.5])
        clip, lr = jc.HardClip(spectrum.feature_norm), 0.5 / dim
        runs = []
        for part in jr.split(jr.key(report.seed), count // 10_000):
            keys = jr.split(jr.fold_in(part, dim), 10_000)
            runs.append(_many(problem, clip, lr, 4 * dim, 4 * dim, keys, update)[:, -1])
        runs = np.concatenate(runs)
        how: dict[str, Any] = {"steps": [0.0, 4.0 * dim]}
        risks = [
            float(jc.solve(problem, clip, lr, limit=limit, **how).risk[-1])
            for limit in (_RECURSION, jc.limit.RiskRecursion(corrected=False))
        ]
        mean, error = runs.mean(), runs.std() / count**0.5
        left.append([abs(risk / mean - 1) for risk in risks] + [error / mean])
        text = f"clipped, {dim} dimensions: what the correction leaves of the error"
        claims.append(at_most(text, left[-1][0] / left[-1][1], 0.35))
    report.save("means", dims=np.array(dims), left=np.array(left))
    return claims


def _bands(report: Report) -> list[Claim]:
    """The standard deviation of runs, on two spectra with three noises."""
    dims, count = ((100,), 1000) if report.quick else ((100, 400, 1600), 4000)
    noises = {
        "Gaussian": jc.Gaussian(1.0),
        "Laplace": jc.Laplace(1.0),
        "Student": jc.StudentT(3.0, 1.0),
    }
    update, claims = jc.algorithm.Update(), []
    for name, noise in noises.items():
        for kind in ("isotropic", "four blocks"):
            for dim in dims:
                problem = _problem(kind, dim, noise)
                scale = float(problem.spectrum.trace)
                clip, lr = jc.HardClip(scale**0.5), 0.5 / scale
                every = round(float(problem.spectrum.intrinsic_dimension))
                keys = jr.split(jr.key(report.seed), count)
                runs = _many(problem, clip, lr, 2 * every, every, keys, update)
                curve = jc.solve(
                    problem, clip, lr, steps=[0.0, every, 2.0 * every], std=True
                )
                assert curve.std is not None
                ratio = float(jnp.std(runs[:, -1]) / curve.std[-1])
                text = f"{name}, {kind}, d = {dim}: scatter of runs over the band's"
                # Four errors, and one over the intrinsic dimension.
                claims.append(
                    near(text, ratio, 1.0, 4 / (2 * count) ** 0.5 + 2 / every)
                )
    return claims


def _diffusion(report: Report) -> list[Claim]:
    """The SDE has the mean of SGD, and more scatter."""
    dim, count = 200, 500 if report.quick else 2000
    problem = _problem("isotropic", dim, jc.Gaussian(1.0))
    clip, steps = jc.HardClip(dim**0.5), dim * np.array([0.0, 0.5, 1, 2, 4])

    def run(key):
        how: dict[str, Any] = {"steps": steps, "limit": jc.HomogenizedSDE()}
        return jc.solve(problem, clip, 0.5 / dim, key=key, **how).risk

    runs = jax.vmap(run)(jr.split(jr.key(report.seed), count))
    curve = jc.solve(problem, clip, 0.5 / dim, steps=steps, std=True)
    assert curve.std is not None
    ratio = np.asarray((jnp.std(runs, axis=0) / curve.std)[1:])
    # Of the two variances of section 1.4 of the theory.
    expected = np.sqrt(
        np.array([0.13625, 0.20786, 0.23119, 0.12972])
        / np.array([0.09004, 0.13965, 0.16066, 0.09648])
    )
    slack = 4 / (2 * count) ** 0.5 + 2 / dim
    return [
        near(f"scatter of the SDE over SGD's band, t = {t}", value, wanted, slack)
        for t, value, wanted in zip((0.5, 1, 2, 4), ratio, expected, strict=True)
    ]


def _problem(kind: str, dim: int, noise: Any) -> jc.LinearModel:
    if kind == "isotropic":
        spectrum = jc.Spectrum.isotropic(dim)
    else:
        shares = np.array([0.1, 0.2, 0.3, 0.4]) * dim
        spectrum = jc.Spectrum([1.0, 0.5, 0.25, 0.1], shares.round().astype(int))
    start = jnp.sqrt(2 * spectrum.multiplicity / spectrum.trace)
    return jc.LinearModel(spectrum, noise, start)
