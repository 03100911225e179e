"""The claims of `reproduce_clip_or_not.py` about whole runs: the limits of SGD.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import (
    BLUE,
    GREEN,
    ORANGE,
    Claim,
    Report,
    at_least,
    follows,
    near,
    of,
)

import jaxclip as jc


def limits(report: Report) -> list[Claim]:
    """The paper's first figure: SGD, homogenized SGD and the ODE together, with Cauchy
    noise, and with Gaussian noise beside the ODE of unclipped SGD."""
    spectrum = jc.Spectrum.power_law(500, 0.2)
    dimension, norm = float(spectrum.intrinsic_dimension), spectrum.feature_norm
    start, lr = jnp.full(500, 500**-0.5), 0.6 / dimension
    at = np.arange(0, 15 * dimension, 50)
    runs = 24 if report.quick else 100
    keys = jr.split(jr.key(report.seed), runs)
    cases = (
        ("Cauchy noise, clipped", jc.Cauchy(0.5), jc.HardClip(0.4 * norm), BLUE),
        ("Gaussian noise, clipped", jc.Gaussian(0.5), jc.HardClip(0.4 * norm), GREEN),
    )
    claims, figure = [], plt.figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for name, noise, clip, color in cases:
        problem = jc.LinearModel(spectrum, noise, start)
        sgd = _runs(problem, clip, lr, at, keys)
        ode = jc.solve(problem, clip, lr, steps=at)
        sde = _diffusion(report, problem, clip, lr, at, runs)
        report.save(f"limits {name}", step=at, sgd=sgd.risk, sde=sde.risk, ode=ode.risk)
        text = f"{name}: the mean of SGD is the ODE"
        claims.append(follows(text, sgd, ode, dimension))
        text = f"{name}: the mean of homogenized SGD is the ODE"
        claims.append(follows(text, sde, ode, dimension))
        sgd.plot(ax, color=color, label=f"{name}: SGD, 80% band")
        sde.plot(ax, color=color, ls=":", label="its SDE")
        ode.plot(ax, color="black", ls="--", lw=1, label="its ODE")
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), start)
    plain = jc.solve(problem, jc.Identity(), lr, steps=at)
    plain.plot(ax, color=ORANGE, ls="--", label="Gaussian noise, unclipped: ODE")
    ax.set(title="One step size, two noises", xscale="linear")
    ax.legend(fontsize=8)
    report.finish(figure, "limits")
    problem = jc.LinearModel(spectrum, jc.Cauchy(0.5), start)
    # A clip that never acts, of the type that is compiled already.
    wild = np.asarray(_runs(problem, jc.HardClip(1e300), lr, at, keys).risk)
    worse = np.mean(np.max(wild, axis=1) > 10 * wild[:, 0])
    text = "Cauchy noise, unclipped: share of runs that pass ten times their start"
    return of(
        "paper, figure 1",
        [*claims, at_least(text, worse, 0.95)],
    )


def _runs(problem: Any, clip: Any, lr: Any, at: np.ndarray, keys: Any) -> jc.Curve:
    """Runs of SGD, recorded at the evenly spaced steps `at`."""
    return _compiled_runs(problem, clip, lr, int(at[-1]), int(at[1]), keys)


@eqx.filter_jit
def _compiled_runs(
    problem: Any, clip: Any, lr: Any, steps: int, every: int, keys: Any
) -> jc.Curve:
    def one(key):
        return jc.simulate(problem, clip, lr, steps=steps, every=every, key=key)

    return jax.vmap(one)(keys)


def _diffusion(
    report: Report, problem: Any, clip: Any, lr: Any, at: Any, runs: int, dt: float = 10
) -> jc.Curve:
    """Runs of homogenized SGD."""

    def sde(key):
        limit = jc.HomogenizedSDE(dt=dt)
        return jc.solve(problem, clip, lr, steps=at, key=key, limit=limit)

    return jax.jit(jax.vmap(sde))(jr.split(jr.key(report.seed + 1), runs))


def single_runs(report: Report) -> list[Claim]:
    """The paper's theorem: with high probability the whole path of a run is within a
    power -1/2, nearly, of the intrinsic dimension from the ODE, for SGD and the SDE."""
    sizes = np.array([100, 400, 1600])
    clip_at, runs, distances = 0.7, 64, []
    for dim in sizes:
        problem = jc.LinearModel(
            jc.Spectrum.isotropic(int(dim)), jc.Cauchy(0.5), jnp.ones(1)
        )
        clip, lr = jc.HardClip(clip_at * dim**0.5), 0.5 / dim
        at = np.arange(0, 4 * dim + 1, dim // 25)

        def one(key, problem=problem, clip=clip, lr=lr, at=at):
            return jc.simulate(problem, clip, lr, steps=int(at[-1]), key=key,
                every=int(at[1]), engine=jc.Lumped()).risk  # fmt: skip

        sgd = jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs))
        sde = _diffusion(report, problem, clip, lr, at, runs, dt=float(dim) / 100)
        sde = sde.risk
        ode = jc.solve(problem, clip, lr, steps=at).risk
        distances.append([np.quantile(np.max(np.abs(risk - ode), axis=1), 0.9)
                          for risk in (sgd, sde)])  # fmt: skip
    report.save("single_runs", dimension=sizes, distance=distances)
    powers = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    return of(
        "paper, the theorem of the limit; isotropic features",
        [
            Claim("a run of SGD, 90% quantile of its largest distance from the ODE: "
                  "power of the dimension", float(powers[0]), -0.6, -0.4),
            Claim("... and of homogenized SGD", float(powers[1]), -0.6, -0.4),
        ],
    )  # fmt: skip


def stability(report: Report) -> list[Claim]:
    """Where the risk ends at a constant rate."""
    del report
    dim = 200
    start = jnp.array([2**0.5])
    problem = jc.LinearModel(jc.Spectrum.isotropic(dim), jc.Gaussian(1.0), start)
    at = jnp.array([0.0, 100.0 * dim])
    claims = []
    for rate in (0.5, 1.5):
        end = jc.solve(problem, jc.Identity(), rate / dim, steps=at)
        text = f"unclipped stationary risk b s^2 / (2 (2 - b)) at b = {rate}"
        claims.append(near(text, end.risk[-1], rate / (2 * (2 - rate)), 1e-6))
    clip = jc.HardClip(dim**0.5)
    for rate in (0.5, 3.0):
        end = jc.solve(problem, clip, rate / dim, steps=at).risk[-1]
        m = jc.moments(clip, problem.noise, end, dim**0.5)
        text = f"clipped: bounded, and R = (b / 4) second / mu, at b = {rate}"
        claims.append(near(text, end, float(rate / 4 * m.second / m.mu), 1e-6))
    text = "largest stable rate times trace, 200 Gaussian dimensions"
    stable = jc.stable_lr(problem) * dim
    claims.append(near(text, stable, 2 * dim / (dim + 2), 1e-9))
    return of("derived here", claims)


def widened(report: Report) -> list[Claim]:
    """By how much a clip widens the rates at which a step lowers the risk, counted over
    drawn gradients in 10000 dimensions, against the criterion mu / nu."""
    draws, dim, excess = 1_000_000 if report.quick else 4_000_000, 10_000, 1.0
    rng = np.random.default_rng(report.seed)
    claims = []
    for name, noise, threshold in (
        ("Gaussian", jc.Gaussian(3.0), 2.0),
        ("Rademacher-like", jc.noise.SparseSign(4.0, 0.2), 10.0),
        ("exponential (Laplace)", jc.Laplace(3.0), 2.0),
    ):
        # Along the error x - x*, and across it: all that the risk after a step needs.
        along = rng.normal(size=draws)
        square = along**2 + rng.chisquare(dim - 1, size=draws)
        signal = np.sqrt(2 * excess) * along
        residual = signal - np.asarray(noise.sample(jr.key(1), (draws,)))
        bound = threshold * np.sqrt(dim)
        factor = np.minimum(1, bound / np.abs(residual) / np.sqrt(square))
        # The risk falls at rates below the first sum over the second, times two.
        rates = [np.sum(f * residual * signal) / np.sum(f**2 * residual**2 * square)
                 for f in (factor, np.ones(draws))]  # fmt: skip
        m = jc.moments(jc.HardClip(threshold), noise, excess, 1.0)
        text = f"{name}: a clip times the largest rate that descends, over its CSC"
        claims.append(near(text, rates[0] / rates[1] / float(m.csc), 1.0, 0.01))
    return of("paper, the CSC", claims)
