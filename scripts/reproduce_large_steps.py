"""Every claim about gradient descent with large steps that we test, with a verdict.

The claims are those of "Special Properties of Gradient Descent with Large Learning
Rates" (arXiv:2205.15142), on functions of our own, and what clipping does to them,
derived here. Writes data and figures into `results/large_steps/`, and exits with an
error where a claim fails. `--quick` takes coarser diagrams and fewer runs.

Not tested: the paper's own functions and constants, its deep networks on images, and
that a large rate makes them generalise better. On the small network here the loss rises
between the solutions of a large and of a small rate, but no barrier was found on the
line from a small-rate solution to where a large rate leads on from it.
"""

import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
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
    near,
    reproduce,
)
from sklearn.datasets import load_digits

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

WELLS = jc.TwoWells(jnp.zeros(1))
# The spurious minimum is nearly as low as the other, and its basin is wide.
NEAR_TIE = jc.TwoWells(jnp.zeros(1), height=0.05)
STEPS = 1500


def exactly(text: str, value: Any, expected: float, slack: float = 0.0) -> Claim:
    return Claim(text, float(value), expected - slack, expected + slack)


def midpoints(number: int) -> np.ndarray:
    """Starts that cover [-5, 5]."""
    return -5 + 10 * (np.arange(number)[:, None] + 0.5) / number


def inside(wells: jc.TwoWells, number: int) -> np.ndarray:
    """Starts that cover the ball around the spurious minimum, on the line."""
    centre, radius = float(wells.basin_centre[0]), float(wells.basin_radius)
    return centre + radius * (2 * (np.arange(number)[:, None] + 0.5) / number - 1)


def share(ends: Any, which: int) -> float:
    return float(np.mean(np.asarray(ends) == which))


@jax.jit
def descend(wells: jc.TwoWells, lr: Any, threshold: Any, starts: Any) -> Any:
    clip = jc.HardClip(threshold)
    return jc.basins(wells, clip, lr, starts, wells.minima, steps=STEPS)


def table(report: Report) -> list[Claim]:
    """Where 10001 starts on the line end, below and above the threshold 2/m = .1."""
    del report
    starts, claims = midpoints(10001), []
    rows = ((0.05, 7731), (0.09, 9016), (0.099, 9222), (0.101, 10001), (0.15, 10001))
    for lr, expected in rows:
        ends = np.asarray(descend(WELLS, lr, jnp.inf, starts))
        found = [int(np.sum(ends == i)) for i in (0, 1)]
        text = f"rate {lr}: starts that end in the "
        claims.append(exactly(text + "global minimum", found[0], expected, 2))
        claims.append(exactly(text + "local one", found[1], 10001 - expected, 2))
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
    for dim in (2, 20):
        wells, starts = jc.TwoWells(jnp.zeros(dim)), ball(dim, 0.25, number, dim)
        for lr, local in ((0.099, 1), (0.101, 0)):
            ends = descend(wells, lr, jnp.inf, starts)
            text = f"dimension {dim}, rate {lr}: share that ends in the local minimum"
            claims.append(exactly(text, share(ends, 1), local))
    wells = jc.TwoWells(jnp.zeros(2), spurious_curvature=[8.0, 20.0])
    starts = ball(2, 0.2, number, 0)
    for factor, local in ((0.99, 1), (1.01, 0)):
        ends = descend(wells, factor * wells.escape_lr, jnp.inf, starts)
        text = f"curvatures 8 and 20, rate {factor} * 2/20: share that stays local"
        claims.append(exactly(text, share(ends, 1), local))
    smooth = jc.TwoWells(jnp.zeros(1), smoothing=0.05)
    caught = [descend(smooth, lr, jnp.inf, midpoints(2000)) for lr in (0.103, 0.11)]
    claims += [
        at_least(
            "a smooth rim traps some starts in a 2-cycle just above the threshold",
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
    centre, radius = WELLS.basin_centre, WELLS.basin_radius
    farthest = float(centre[0] + radius) - 3
    bound = np.ceil(np.log(farthest / np.abs(starts[:, 0] - 3)) / np.log(lr * 20 - 1))
    steps = int(bound.max())

    @jax.jit
    @jax.vmap
    def outside(start):
        curve = jc.simulate(
            jc.TwoWells(start), jc.Identity(), lr, steps=steps, key=jr.key(0),
            observe=lambda x: jnp.abs(x - centre)[0] > radius,
        )  # fmt: skip
        return jnp.argmax(curve.observed), jnp.any(curve.observed)

    first, left = outside(starts)
    # a = 1, m = 10, rate .9: q (D + s r) = 1.1 < D - r = 2.
    wells = jc.TwoWells(jnp.zeros(1), spurious_curvature=10.0)
    r = float(wells.basin_centre[0] + wells.basin_radius) - 3
    ends = descend(wells, 0.9, jnp.inf, midpoints(10001))
    return [
        exactly("rate .105: share of the ball that leaves it", jnp.mean(left), 1),
        at_most(
            "steps until it does, over the bound log(r / distance) / log(lr m - 1)",
            np.max(np.asarray(first) / bound),
            1,
        ),
        at_most(
            "m = 10, rate .9: the condition of no return, q(D + sr) / (D - r)",
            0.1 * (3 + 8 * r) / (3 - r),
            1,
        ),
        exactly("where it holds, all starts end in 0: share", share(ends, 0), 1),
    ]


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
        at_most(text + "uniform noise", uniform.max(), 0.9),
        at_most(text + "Gaussian noise", gaussian.max(), 0.95),
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
    runs, claims = 20_000 if report.quick else 200_000, []

    def last(times, rate):
        def one(key):
            # lam (x - xi)^2 / 2 with lam = 1 and xi of variance 1.
            parabola = jc.Landscape(
                lambda x: x**2 / 2, jnp.zeros(()), noise=jc.Gaussian(1.0)
            )
            split, steps = jc.Repeated(parabola, times), 30 * times
            return jc.simulate(
                split, jc.Identity(), rate / times, steps=steps, every=steps, key=key
            ).params

        return jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs))

    for times, rate in ((1, 1.5), (2, 1.5), (4, 1.5), (3, 4.5)):
        r = (1 - rate / times) ** times
        text = f"variance after splitting in {times}, rate times curvature {rate}"
        value = np.var(np.asarray(last(times, rate)))
        claims.append(near(text, value, (1 - r) / (1 + r), 0.05))
    grown = np.var(np.asarray(last(2, 4.5)))
    text = "split in 2 at 4.5, where |r| = 1.56: it diverges, variance above"
    return [*claims, at_least(text, grown, 1e6)]


def split_wells(report: Report) -> list[Claim]:
    """The near tie at rate .15, whole and split, with the noise and then without."""
    starts = midpoints(512 if report.quick else 4096)
    keys = jr.split(jr.key(report.seed), len(starts))

    def to_global(times, std):
        lr, steps = 0.15 / times, 500 * times

        def one(start, key):
            wells = jc.TwoWells(start, height=0.05, noise=jc.Gaussian(std))
            return jc.simulate(
                jc.Repeated(wells, times), jc.Identity(), lr, steps=steps, every=steps,
                key=key,
            ).params  # fmt: skip

        ends = jax.jit(jax.vmap(one))(starts, keys)
        return share(descend(NEAR_TIE, lr, jnp.inf, ends), 0)

    claims = []
    for std in (1.0, 4.0):
        whole = to_global(1, std)
        most = max(to_global(times, std) for times in (3, 5))
        claims += [
            exactly(f"noise {std}, rate .15: share global", whole, 1),
            at_most(f"noise {std}, split in 3 or 5: share global", most, 0.8),
        ]
    return claims


def clip(report: Report) -> list[Claim]:
    """A second sharp threshold, in the clip's."""
    starts = inside(WELLS, 10001)
    critical = float(WELLS.escape_clip(0.15))
    del report

    def leave(threshold):
        return share(descend(WELLS, 0.15, threshold, starts), 0)

    return [
        near("rate .15: the threshold tau_c", critical, 2.69686, 1e-5),
        exactly("basin's share that leaves at .99 tau_c", leave(0.99 * critical), 0),
        at_least("at 1.03 tau_c", leave(1.03 * critical), 0.01),
        near("at 1.1 tau_c", leave(1.1 * critical), 0.16, 0.1),
        exactly("at m r", leave(WELLS.certain_clip), 1),
    ]


def grid(first: Any, second: Any, function: Any) -> tuple[np.ndarray, float]:
    """A function over two settings in one jitted call, and the seconds that it took."""
    pairs = [x.ravel() for x in jnp.meshgrid(first, second)]

    @jax.jit
    def diagram(pairs):
        return jax.lax.map(lambda pair: function(*pair), pairs, batch_size=64)

    began = time.perf_counter()
    values = np.asarray(diagram(pairs)).reshape(len(second), len(first))
    return values, time.perf_counter() - began


def diagrams(report: Report) -> list[Claim]:
    """The share of the basin that leaves it, over (rate, clip) and (rate, noise)."""
    side, number = (60, 64) if report.quick else (200, 256)
    single = jnp.float32
    lrs = jnp.linspace(0.04, 0.2, side, dtype=single)
    thresholds = jnp.geomspace(0.7, 20, side, dtype=single)
    stds = jnp.linspace(0.0, 12.0, side, dtype=single)
    starts, key = inside(WELLS, number).astype(np.float32), jr.key(report.seed)

    def clipped(lr, threshold):
        ends = jc.basins(WELLS, jc.HardClip(threshold), lr, starts, WELLS.minima,
                         steps=STEPS)  # fmt: skip
        return jnp.mean(ends == 0)

    def disturbed(lr, std):
        wells = jc.TwoWells(jnp.zeros(1), noise=jc.Gaussian(std))
        ends = jc.basins(wells, jc.Identity(), lr, starts, WELLS.minima,
                         steps=STEPS, noisy=200, key=key)  # fmt: skip
        return jnp.mean(ends == 0)

    by_clip, clip_time = grid(lrs, thresholds, clipped)
    by_noise, noise_time = grid(lrs, stds, disturbed)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report.save("diagrams", lrs=lrs, thresholds=thresholds, stds=stds,
                by_clip=by_clip, by_noise=by_noise)  # fmt: skip
    critical = np.where(lrs > 0.05, np.asarray(WELLS.escape_clip(lrs)), np.inf)
    draw_diagrams(report, (lrs, thresholds, stds), (by_clip, by_noise), critical)
    high = np.asarray(lrs) > 1.01 * float(WELLS.escape_lr)
    below = np.asarray(thresholds)[:, None] < 0.99 * critical
    certain = np.asarray(thresholds)[:, None] > 1.01 * float(WELLS.certain_clip)
    between = ~below & ~certain & high
    size = f"{side} x {side} settings x {number} starts"
    return [
        exactly("below tau_c nothing leaves, at any rate: share",
                by_clip[below & high].max(), 0),
        exactly("above 2/m and m r all leaves", by_clip[certain & high].min(), 1),
        at_least("between the two: mean share", by_clip[between].mean(), 0.1),
        at_most(f"seconds with compiling, rate x clip, {size}", clip_time, 60),
        at_most(f"seconds for rate x noise, {size}", noise_time, 60),
        at_most("largest memory of the process so far, GiB", memory, 2),
    ]  # fmt: skip


def draw_diagrams(
    report: Report, axes: Any, values: tuple[np.ndarray, np.ndarray], critical: Any
) -> None:
    lrs, thresholds, stds = axes
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.3), layout="constrained", sharex=True
    )
    left.pcolormesh(lrs, thresholds, values[0], vmin=0, vmax=1, rasterized=True)
    left.plot(lrs, critical, color="white", label=r"$\tau_c$: none leaves below")
    left.axhline(WELLS.certain_clip, color="white", ls="--", label=r"$m r$")
    left.axvline(WELLS.escape_lr, color="white", ls=":", label=r"$2/m$")
    left.set(yscale="log", ylim=(thresholds[0], thresholds[-1]),
             xlabel="learning rate", ylabel="clip threshold")  # fmt: skip
    left.legend(loc="upper right", facecolor="0.4", labelcolor="white")
    mesh = right.pcolormesh(lrs, stds, values[1], vmin=0, vmax=1, rasterized=True)
    right.axvline(WELLS.escape_lr, color="white", ls=":")
    right.set(xlabel="learning rate", ylabel="noise of the gradient, 200 steps")
    figure.colorbar(mesh, ax=right, label="share of the basin that leaves it")
    report.finish(figure, "diagrams")


def digits() -> tuple[Any, Any]:
    """1000 digits, centred and scaled to a root mean square of 1, and their classes."""
    data: Any = load_digits()
    pixels = data.data - data.data.mean(axis=0)
    rows = np.random.default_rng(0).permutation(len(pixels))[:1000]
    X = (pixels / np.sqrt(np.mean(pixels**2)))[rows]
    return X.astype(np.float32), np.eye(10, dtype=np.float32)[data.target[rows]]


def squared_loss(network: Any, example: Any) -> Any:
    x, y = example
    return jnp.sum((network(x) - y) ** 2) / 2


def network(report: Report) -> list[Claim]:
    """A small network at a large rate, a small one, and a small one with each batch
    repeated, all for the same number of steps times rate."""
    steps, lr, times, batch = 800 if report.quick else 3200, 12.0, 16, 32
    # A short run has not come to rest.
    least = 1.05 if report.quick else 1.2
    start = jc.WideNetwork([64, 32, 32, 10], key=jr.key(report.seed))
    start = jax.tree.map(lambda w: w.astype(jnp.float32), start)
    problem = jc.FiniteSum(squared_loss, start, digits())
    mean_loss, key = problem.mean_loss, jr.key(report.seed)

    def sharp(network):
        return jc.sharpness(mean_loss, network, key=key, iterations=15)

    def run(problem, lr, steps):
        def simulated(problem):
            return jc.simulate(
                problem, jc.Identity(), lr, steps=steps, every=steps // 8, key=key,
                batch_size=batch, observe=sharp,
            )  # fmt: skip

        return jax.jit(simulated)(problem)

    runs = {
        "large rate": run(problem, lr, steps),
        "small rate": run(problem, lr / times, steps * times),
        "small rate, batches repeated": run(
            jc.Repeated(problem, times, batch), lr / times, steps * times
        ),
    }
    large, small, repeated = runs.values()
    following = run(jc.FiniteSum(squared_loss, small.params, digits()), lr, steps)
    barrier = jax.jit(lambda x, y: jc.loss_barrier(mean_loss, x, y))
    away = float(barrier(large.params, small.params))
    beside = float(barrier(small.params, repeated.params))
    report.save("network", **{name: c.observed for name, c in runs.items()})
    draw_network(report, runs, lr)
    return [
        at_most("large rate: sharpness over 2 / rate at the end",
                large.observed[-1] * lr / 2, 1),
        at_least("small rate: its sharpness over 2 / large rate",
                 small.observed[-1] * lr / 2, least),
        at_least("small rate, batches repeated: the same",
                 repeated.observed[-1] * lr / 2, least),
        at_most("from the small rate's solution at the large one: sharpness, of that",
                following.observed[-1] / small.observed[-1], 0.9),
        at_least("barrier from the large-rate solution to the small-rate one", away,
                 1e-3),
        at_most("barrier from repeated batches to the small rate, over that",
                beside / away, 0.5),
    ]  # fmt: skip


def draw_network(report: Report, runs: dict[str, jc.Curve], lr: float) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", sharex=True
    )
    for (name, curve), color in zip(runs.items(), (ORANGE, BLUE, GREEN), strict=True):
        at = np.linspace(0, 1, len(curve.step))
        left.plot(at, curve.risk, "o-", color=color, label=name)
        right.plot(at, curve.observed, "o-", color=color)
    left.set(yscale="log", xlabel="share of the run", ylabel="mean loss")
    right.axhline(2 / lr, color="0.4", ls="--", label="2 / large rate")
    right.set(xlabel="share of the run", ylabel="sharpness")
    left.legend()
    right.legend()
    report.finish(figure, "network")


if __name__ == "__main__":
    reproduce(
        __doc__ or "",
        "large_steps",
        2205,
        (table, dimensions, theorem, noise, split_variance, split_wells, clip,
         diagrams, network),
    )  # fmt: skip
