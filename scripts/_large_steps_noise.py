"""Whether noise is a substitute for large steps: a part of `reproduce_large_steps.py`.

Not a program of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import (
    BLUE,
    GREEN,
    ORANGE,
    SKY,
    Claim,
    Report,
    at_least,
    at_most,
    exactly,
    near,
)
from _two_wells import NEAR_TIE, STEPS, WELLS, descend, midpoints, share

import jaxclip as jc


def noise(report: Report) -> list[Claim]:
    """Noise of any size with a small step, against a large step without noise.

    Gaussian noise of the best size comes above .9, bounded noise does not. With more
    steps the best size of Gaussian noise is smaller and its share larger: what is found
    here is found within 20,000 steps, and not for ever.
    """
    starts, key = midpoints(768 if report.quick else 2048), jr.key(report.seed)
    sizes = np.array([1, 2, 4, 5, 6, 6.5, 7, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100.0])
    sizes = sizes[::3] if report.quick else sizes

    def over_sizes(law, height):
        @jax.jit
        @jax.vmap
        def to_global(std):
            wells = jc.TwoWells(jnp.zeros(1), height=height, noise=law(std))
            ends = jc.basins(wells, jc.Identity(), 0.02, starts, wells.minima,
                             steps=STEPS, noisy=20_000, key=key)  # fmt: skip
            return jnp.mean(ends == 0)

        return np.asarray(to_global(sizes))

    uniform, gaussian = (over_sizes(law, 0.05) for law in (jc.Uniform, jc.Gaussian))
    higher = over_sizes(jc.Gaussian, 3.0)
    large = share(descend(NEAR_TIE, 0.15, jnp.inf, starts), 0)
    report.save("noise", sizes=sizes, uniform=uniform, gaussian=gaussian, higher=higher)
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    ax.plot(sizes, uniform, "o-", color=BLUE, label="near tie, uniform noise")
    ax.plot(sizes, gaussian, "^-", color=SKY, label="near tie, Gaussian noise")
    ax.plot(sizes, higher, "s-", color=GREEN, label="height 3, Gaussian noise")
    ax.axhline(large, color=ORANGE, label="near tie, rate 0.15 without noise")
    ax.set(xscale="symlog", xlabel="standard deviation of the gradient's noise",
           ylabel="share that ends in the global minimum",
           title="Rate 0.02")  # fmt: skip
    ax.legend()
    report.finish(figure, "noise")
    text = "near tie, rate .02: best share global over sizes of "
    return [
        # The claim is of bounded noise. Gaussian noise now and then leaps over a rim
        # that bounded noise of the same size does not reach.
        near(text + "bounded noise, by theory .84", uniform.max(), 0.84, 0.05),
        at_most(text + "bounded noise: stays below .9", uniform.max(), 0.9),
        Claim(text + "Gaussian noise: above that", float(gaussian.max()), 0.9, 0.96),
        exactly("near tie, rate .15 without noise: share global", large, 1),
        at_least("height 3: moderate noise does work at rate .02", higher.max(), 0.99),
        *bounded_noise(report),
    ]


def bounded_noise(report: Report) -> list[Claim]:
    """Noise of a length below m r never leaves; a tenth above it does."""
    reach, claims = float(WELLS.certain_clip), []
    steps = 2000 if report.quick else 20_000
    for factor in (0.99, 1.1):
        wells = jc.TwoWells(jnp.full(1, 3.0), noise=jc.Rademacher(factor * reach))

        def leaves(key, wells=wells):
            curve = jc.simulate(wells, jc.Identity(), 0.05, steps=steps, key=key,
                observe=lambda x: jnp.abs(x - wells.basin_centre)[0])  # fmt: skip
            return jnp.max(curve.observed) > wells.basin_radius

        left = jax.jit(jax.vmap(leaves))(jr.split(jr.key(report.seed), 64))
        text = f"rate 1/m, noise of length {factor} m r: share that leaves the basin"
        claims.append(exactly(text, jnp.mean(left), float(factor > 1)))
    return claims


def split_variance(report: Report) -> list[Claim]:
    """Steps of one `times`-th, several on each batch: what is left of the noise."""
    keys = jr.split(jr.key(report.seed), 20_000 if report.quick else 200_000)
    # lam (x - xi)^2 / 2 with lam = 1 and xi of variance 1.
    parabola = jc.Landscape(lambda x: x**2 / 2, jnp.zeros(()), noise=jc.Gaussian(1.0))

    def variance(times, rate):
        split = jc.Repeated(parabola, times)
        end = jax.vmap(lambda key: last(split, rate / times, 30 * times, key))
        return np.var(np.asarray(jax.jit(end)(keys)))

    claims = []
    for times, rate in ((1, 1.5), (2, 1.5), (4, 1.5), (3, 4.5)):
        r = (1 - rate / times) ** times
        text = f"variance after splitting in {times}, rate times curvature {rate}"
        claims.append(near(text, variance(times, rate), (1 - r) / (1 + r), 0.05))
    text = "split in 2 at 4.5, where |r| = 1.56: it diverges, variance above"
    return [*claims, at_least(text, variance(2, 4.5), 1e6)]


def split_wells(report: Report) -> list[Claim]:
    """The near tie at rate .15, whole and split, with the noise and then without."""
    starts = midpoints(512 if report.quick else 4096)
    keys = jr.split(jr.key(report.seed), len(starts))

    def to_global(times, std):
        def one(start, key):
            wells = jc.TwoWells(start, height=0.05, noise=jc.Gaussian(std))
            return last(jc.Repeated(wells, times), 0.15 / times, 500 * times, key)

        ends = jax.jit(jax.vmap(one))(starts, keys)
        return share(descend(NEAR_TIE, 0.15 / times, jnp.inf, ends), 0)

    claims = []
    for std in (1.0, 4.0):
        most = max(to_global(times, std) for times in (3, 5))
        claims += [
            exactly(f"noise {std}, rate .15: share global", to_global(1, std), 1),
            at_most(f"noise {std}, split in 3 or 5: share global", most, 0.8),
        ]
    return claims


def last(problem: Any, lr: float, steps: int, key: Any) -> Any:
    """The parameters at the end of one run without a clip."""
    run = jc.simulate(problem, jc.Identity(), lr, steps=steps, every=steps, key=key)
    return run.params
