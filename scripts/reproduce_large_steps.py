"""Claims about gradient descent with large steps, each with a verdict.

The paper is "Special Properties of Gradient Descent with Large Learning Rates"
(arXiv:2205.15142). Each line says whose statement it is: the paper's, as its abstract
has it; that of the theorem, whose wording and constants were not available and which is
derived here; or ours. The functions are our own, and so is all about clipping.

The paper's networks are a ResNet-18 without batch normalization and others on CIFAR-10
and CIFAR-100, where a large rate is essential for the best test accuracy, and a small
rate with each batch repeated does not reach it. Those data and machines are not at
hand. The nearest that was run is a network of 3,400 weights on the 8 x 8 digits of
scikit-learn. Trained on 200 of them it has the paper's gain in test accuracy, and
trained on 1000 it has not: see `generalisation`. The loss rises between the solutions
of a large and of a small rate there, but no barrier was found on the line from a
small-rate solution to where a large rate leads on from it.

Writes data and figures into `results/large_steps/`, and exits with an error where a
claim fails. `--quick` takes coarser diagrams and fewer runs, and leaves out the
networks, which notebook 09 has.
"""

import resource
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from _claims import Claim, Report, at_least, at_most, exactly, near, reproduce
from _large_steps_edge import edge
from _large_steps_network import generalisation, network
from _large_steps_noise import noise, split_variance, split_wells
from _two_wells import STEPS, WELLS, descend, inside, midpoints, share

import jaxclip as jc


def table(report: Report) -> list[Claim]:
    """Where 10001 starts on the line end, below and above the threshold 2/m = .1."""
    del report
    starts, claims = midpoints(10001), []
    rows = ((0.05, 7731), (0.09, 9016), (0.099, 9222), (0.101, 10001), (0.15, 10001))
    for lr, expected in rows:
        ends = np.asarray(descend(WELLS, lr, jnp.inf, starts))
        found = [int(np.sum(ends == i)) for i in (0, 1)]
        text = f"rate {lr}: of 10001 starts, those that end in the"
        claims.append(exactly(f"{text} global minimum (paper: all at a large rate; "
                              "counts derived)", found[0], expected, 2))  # fmt: skip
        claims.append(exactly(f"{text} local one (paper: a positive share at a small "
                              "one)", found[1], 10001 - expected, 2))  # fmt: skip
    return claims


def ball(dim: int, radius: float, number: int, seed: int) -> np.ndarray:
    """Starts at random in a ball around the spurious minimum."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(number, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    size = radius * rng.random((number, 1)) ** (1 / dim)
    return 3 * np.eye(dim)[0] + size * direction


def dimensions(report: Report) -> list[Claim]:
    """The threshold in several dimensions, with several curvatures, and smoothed."""
    number, claims = 300 if report.quick else 3000, []
    for dim in (2, 20) if report.quick else (2, 20, 200):
        wells, starts = jc.TwoWells(jnp.zeros(dim)), ball(dim, 0.25, number, dim)
        for lr, local in ((0.099, 1), (0.101, 0)):
            ends = descend(wells, lr, jnp.inf, starts)
            text = f"dimension {dim}, rate {lr} for a threshold of .1: share local"
            claims.append(exactly(f"{text} (theorem)", share(ends, 1), local))
    wells = jc.TwoWells(jnp.zeros(2), spurious_curvature=[8.0, 20.0])
    starts = ball(2, 0.2, number, 0)
    for factor, local in ((0.99, 1), (1.01, 0)):
        ends = descend(wells, factor * wells.escape_lr, jnp.inf, starts)
        text = f"curvatures 8 and 20, rate {factor} * 2/20: share local (derived)"
        claims.append(exactly(text, share(ends, 1), local))
    smooth = jc.TwoWells(jnp.zeros(1), smoothing=0.05)
    caught = [descend(smooth, lr, jnp.inf, midpoints(2000)) for lr in (0.103, 0.11)]
    claims += [
        at_least(
            "a smooth rim traps some starts just above the threshold (derived)",
            share(caught[0], -1),
            0.01,
        ),
        exactly("and none a tenth above it: share global", share(caught[1], 0), 1),
    ]
    return claims


def theorem(report: Report) -> list[Claim]:
    """How soon starts leave the ball, and that they do not return."""
    del report
    lr, starts = 0.105, inside(WELLS, 2000)
    radius = float(WELLS.basin_radius)
    farthest = float(WELLS.basin_centre[0]) + radius - 3
    bound = np.ceil(np.log(farthest / np.abs(starts[:, 0] - 3)) / np.log(lr * 20 - 1))
    first, left = outside(starts, lr, int(bound.max()))
    claims = [
        exactly("rate .105: share of the ball that leaves it (theorem)", left.mean(),
                1),
        at_most("steps until it does, over the bound log(r / distance) / log(lr m - 1) "
                "(theorem)", np.max(first / bound), 1),
    ]  # fmt: skip
    # A bound can be kept by far: what is seen is its rate.
    distance = np.geomspace(1e-12, 0.1, 200)
    for lr in (0.105, 0.12, 0.15):
        first, _ = outside(3 + distance[:, None], lr, 600)
        slope = np.polyfit(-np.log(distance), first, 1)[0]
        text = f"rate {lr}: steps per factor e of the distance, times log(lr m - 1)"
        claims.append(near(f"{text} (theorem)", slope * np.log(lr * 20 - 1), 1, 0.02))
    # a = 1, m = 10, rate .9: q (D + s r) = 1.1 < D - r = 2.
    wells = jc.TwoWells(jnp.zeros(1), spurious_curvature=10.0)
    r = float(wells.basin_centre[0] + wells.basin_radius) - 3
    ends = descend(wells, 0.9, jnp.inf, midpoints(10001))
    return [
        *claims,
        at_most("m = 10, rate .9: the condition of no return, q(D + sr) / (D - r)",
                0.1 * (3 + 8 * r) / (3 - r), 1),
        exactly("where it holds, all starts end in 0: share (theorem)", share(ends, 0),
                1),
    ]  # fmt: skip


@partial(jax.jit, static_argnums=2)
def outside(starts: Any, lr: Any, steps: int) -> Any:
    """The first step at which each start is outside of the ball, and whether it is."""

    def one(start):
        curve = jc.simulate(
            jc.TwoWells(start), jc.Identity(), lr, steps=steps, key=jr.key(0),
            observe=lambda x: jnp.abs(x - WELLS.basin_centre)[0] > WELLS.basin_radius,
        )  # fmt: skip
        return jnp.argmax(curve.observed), jnp.any(curve.observed)

    return jax.vmap(one)(starts)


def clip(report: Report) -> list[Claim]:
    """A second sharp threshold, in the clip's."""
    del report
    basin = inside(WELLS, 10001)
    # Less than the near rim's distance, .27: how many leave depends on the starts.
    close = 3 + midpoints(10001) / 20
    critical = float(WELLS.escape_clip(0.15))

    def leave(threshold, starts=basin):
        return share(descend(WELLS, 0.15, threshold, starts), 0)

    return [
        near("rate .15: the clip's threshold tau_c (derived, as all about clips)",
             critical, 2.69686, 1e-5),
        exactly("basin's share that leaves at .99 tau_c", leave(0.99 * critical), 0),
        at_least("at 1.03 tau_c", leave(1.03 * critical), 0.01),
        near("at 1.1 tau_c, of starts within .25 of the minimum",
             leave(1.1 * critical, close), 0.16, 0.02),
        exactly("at m r", leave(WELLS.certain_clip), 1),
    ]  # fmt: skip


def diagrams(report: Report) -> list[Claim]:
    """The share of the basin that leaves it, over (rate, clip) and (rate, noise)."""
    side, number = (60, 64) if report.quick else (200, 256)
    lrs = jnp.linspace(0.04, 0.2, side, dtype=jnp.float32)
    thresholds = jnp.geomspace(0.7, 20, side, dtype=jnp.float32)
    stds = jnp.linspace(0.0, 12.0, side, dtype=jnp.float32)
    starts, key = inside(WELLS, number).astype(np.float32), jr.key(report.seed)

    def clipped(lr, threshold):
        return jnp.mean(descend(WELLS, lr, threshold, starts) == 0)

    def disturbed(lr, std):
        wells = jc.TwoWells(jnp.zeros(1), noise=jc.Gaussian(std))
        ends = jc.basins(wells, jc.Identity(), lr, starts, WELLS.minima,
                         steps=STEPS, noisy=200, key=key)  # fmt: skip
        return jnp.mean(ends == 0)

    by_clip, clip_time = timed(clipped, {"lr": lrs, "threshold": thresholds})
    by_noise, noise_time = timed(disturbed, {"lr": lrs, "std": stds})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    draw_diagrams(report, by_clip, by_noise)
    report.save("diagrams", lrs=lrs, thresholds=thresholds, stds=stds,
                by_clip=by_clip.values, by_noise=by_noise.values)  # fmt: skip
    high = np.flatnonzero(np.asarray(lrs) > 1.01 * float(WELLS.escape_lr))
    critical = np.asarray(WELLS.escape_clip(lrs[high]))[:, None]
    below = np.asarray(thresholds) < 0.99 * critical
    certain = np.asarray(thresholds) > 1.01 * float(WELLS.certain_clip)
    left = by_clip.values[high]
    size = f"{side} x {side} settings x {number} starts"
    return [
        exactly("below tau_c nothing leaves, at any rate: share", left[below].max(), 0),
        exactly("above 2/m and m r all leaves", left[:, certain].min(), 1),
        at_least("between the two: mean share", left[~below & ~certain].mean(), 0.1),
        at_most(f"seconds with compiling, rate x clip, {size}", clip_time, 60),
        at_most(f"seconds for rate x noise, {size}", noise_time, 60),
        at_most("largest memory of the process so far, GiB", memory, 2),
    ]


def timed(function: Any, axes: dict[str, Any]) -> tuple[jc.Sweep, float]:
    """A sweep of the share that leaves, and the seconds that it took."""
    began, units = time.perf_counter(), {"value": "share that leaves"}
    found = jc.sweep(function, axes, batch_size=64, units=units, progress=False)
    return found, time.perf_counter() - began


def draw_diagrams(report: Report, by_clip: jc.Sweep, by_noise: jc.Sweep) -> None:
    """Both diagrams, with the thresholds that are known exactly."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.3), layout="constrained")
    by_clip.plot(left, vmin=0, vmax=1)
    by_noise.plot(right, vmin=0, vmax=1)
    lrs = np.linspace(0.052, 0.2)
    left.plot(lrs, WELLS.escape_clip(lrs), "w", label=r"$\tau_c$: none leaves below")
    left.axhline(WELLS.certain_clip, color="white", ls="--", label=r"$m r$")
    for ax in (left, right):
        ax.axvline(WELLS.escape_lr, color="white", ls=":", label=r"$2/m$")
    left.set(xlabel="learning rate", ylabel="clip threshold")
    right.set(xlabel="learning rate", ylabel="noise of the gradient, 200 steps")
    left.legend(loc="upper right", facecolor="0.4", labelcolor="white")
    report.finish(figure, "diagrams")


if __name__ == "__main__":
    reproduce(
        __doc__ or "",
        "large_steps",
        2205,
        (table, dimensions, theorem, noise, split_variance, split_wells, clip,
         diagrams, edge),
        long=(network, generalisation),
    )  # fmt: skip
