"""Every claim of the theory of regularized clipping that we test, with a verdict.

Regularized clipping (delta-GClip, arXiv:2404.08624) on wide networks, where its
guarantee holds, and on networks as people train them. Writes data and figures into
`results/delta_gclip/`, and exits with an error where a claim fails. `--quick` takes
narrower networks, fewer steps and fewer seeds, and leaves out the convolutional one.

What is found on networks as people train them: no algorithm of five wins, on a fully
connected network at one rate as on a convolutional one, each at its own best rate. With
the paper's delta of 1e-3 the floor never fires, and the run is that of GClip.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, ORANGE, Claim, Report, at_least, at_most, reproduce
from _delta_gclip_digits import REGIMES, conv, mlp, regimes
from sklearn.datasets import load_digits

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

DELTA = 0.25


def whitened_digits() -> tuple[Any, Any]:
    """48 digits in 32 whitened dimensions, each of norm sqrt(32), odd against even."""
    digits: Any = load_digits()
    pixels = digits.data[:48] - digits.data[:48].mean(axis=0)
    left, _, _ = np.linalg.svd(pixels, full_matrices=False)
    rows = left[:, :32]
    rows *= 32**0.5 / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, np.where(digits.target[:48] % 2, 1.0, -1.0)


class Wide(eqx.Module):
    """The wide network's problem, its learning rate, and the threshold on it. Numbers
    may be traced, so that several seeds share one compilation."""

    problem: jc.FiniteSum
    lr: Any
    threshold: Any
    X: Any

    def __init__(self, width: int, key: Any):
        self.X, y = whitened_digits()

        def loss(network, data):
            return jnp.sum((jax.vmap(network)(data[0]) - data[1]) ** 2) / 2

        first, direction = jr.split(key)
        network = jc.WideNetwork([32, width, width, 1], key=first)
        # The whole set is one example: every step is one of gradient descent.
        self.problem = jc.FiniteSum(loss, network, (self.X[None], y[None]))
        curvature = jc.largest_curvature(
            self.problem.mean_loss, network, key=direction, iterations=50
        )
        self.lr = 1 / (1.1 * curvature)
        slope = self.problem.full_gradient(network)
        self.threshold = 1e-3 * DELTA * jc.safe_norm(slope)

    def norm(self, network: Any) -> Any:
        """The gradient's norm."""
        return jc.safe_norm(self.problem.full_gradient(network))

    def spectrum(self, network: Any) -> Any:
        """The smallest and the largest eigenvalue of the tangent kernel."""
        kernel = jc.tangent_kernel(lambda w, x: w(x), network, self.X)
        return jnp.linalg.eigvalsh(kernel)[jnp.array([0, -1])]

    def run(self, clip: Any, steps: int, every: int, observe: Any) -> jc.Curve:
        """Clipped gradient descent."""
        # A closure, since what is observed is structure, and a method holds arrays.
        return jc.simulate(self.problem, clip, self.lr, steps=steps, every=every,
            key=jr.key(0), observe=lambda network: observe(network))  # fmt: skip


def wide_network(report: Report) -> list[Claim]:
    """A wide network, where the guarantee of delta-GClip holds and can be counted."""
    width, steps = (128, 1000) if report.quick else (512, 2000)
    wide = Wide(width, jr.key(report.seed))
    clips = jc.DeltaClip(wide.threshold, DELTA), jc.DeltaClip(wide.threshold, 0.0)

    @eqx.filter_jit
    def descend(wide, clip):
        each = wide.run(clip, steps, 1, wide.norm)
        return each, wide.run(clip, steps, steps // 20, wide.spectrum).observed

    (ours, on_ours), (theirs, on_theirs) = (descend(wide, clip) for clip in clips)
    mu, hard = on_ours[:, 0].min(), jc.HardClip(wide.threshold)
    share = np.asarray(ours.risk / ours.risk[0])
    below = np.flatnonzero(share < 1e-10)
    broken = jc.pl_violations(ours.risk, ours.observed, clips[0], wide.lr,
                              mu=mu, floor=DELTA)  # fmt: skip
    bound = jc.hard_clip_floor(theirs.risk[0], wide.threshold, wide.lr,
                               theirs.step.astype(float),
                               largest=on_theirs[:, 1].max())  # fmt: skip
    # A hard clip has a floor too on a given path: its threshold over the largest norm.
    contrast = jc.pl_violations(
        theirs.risk, theirs.observed, hard, wide.lr, mu=on_theirs[:, 0].min(),
        floor=wide.threshold / theirs.observed.max())  # fmt: skip
    regime = regimes(clips[0], ours.observed[:-1])
    report.save("wide", delta=ours.risk, hard=theirs.risk, bound=bound, regime=regime,
                kernel=on_ours, kernel_hard=on_theirs)  # fmt: skip
    draw_wide(report, ours, theirs, bound, 1 - wide.lr * DELTA * mu)
    name = f"width {width}"
    return [
        at_most(f"{name}: first step with L / L0 < 1e-10",
                below[0] if len(below) else np.inf, 1000),
        at_most(f"{name}: violations of the PL inequality", broken.inequality, 0),
        at_most(f"{name}: violations of the rate bound", broken.rate, 0),
        at_most(f"{name}: violations of descent", broken.descent, 0),
        at_most(f"{name}: violations of the path bound", broken.path, 0),
        at_least(f"{name}: GClip's L / L0 at the end",
                 theirs.risk[-1] / theirs.risk[0], 0.4),
        at_least(f"{name}: GClip's loss over its lower bound, smallest",
                 jnp.min(theirs.risk / bound), 1 - 1e-12),
        at_most(f"{name}: GClip breaks its own, slower geometric rate",
                contrast.rate, 0),
        *(at_least(f"{name}: steps in the regime '{which}'", np.sum(regime == i), 1)
          for i, which in enumerate(REGIMES)),
    ]  # fmt: skip


def draw_wide(
    report: Report, ours: jc.Curve, theirs: jc.Curve, bound: Any, rate: Any
) -> None:
    """The loss of both on a logarithmic axis, and its root on a linear one."""
    start = ours.risk[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, scale in ((left, lambda x: x), (right, np.sqrt)):
        ax.plot(ours.step, scale(ours.risk / start), color=BLUE, label="delta-GClip")
        ax.plot(theirs.step, scale(theirs.risk / start), color=ORANGE, label="GClip")
        ax.set(xlabel="step of gradient descent")
    rates = float(rate) ** np.asarray(ours.step, float)
    left.plot(ours.step, rates, color=BLUE, ls="--", label="its guaranteed rate")
    left.set(yscale="log", ylim=(1e-16, 2), ylabel="loss over its start",
             title="The floor keeps the rate geometric")  # fmt: skip
    right.plot(theirs.step, np.sqrt(bound / start), color=ORANGE, ls=":",
               label="lower bound of GClip")  # fmt: skip
    right.set(ylabel="root of that", title="GClip is linear in the root while it clips")
    left.legend()
    right.legend()
    report.finish(figure, "wide")


def drift(report: Report) -> list[Claim]:
    """The tangent kernel moves the less the wider the network is."""
    widths = [64, 128, 256] if report.quick else [64, 128, 256, 512, 1024]
    keys = jr.split(jr.key(report.seed), 4 if report.quick else 3)

    def moves(key, width):
        wide = Wide(width, key)
        clip = jc.DeltaClip(wide.threshold, DELTA)
        smallest = wide.run(clip, 150, 50, wide.spectrum).observed[:, 0]
        return jnp.max(jnp.abs(smallest / smallest[0] - 1))

    # One seed after the other: the kernels of all at once would fill the memory.
    each = [np.asarray(jax.lax.map(lambda k, m=m: moves(k, m), keys)) for m in widths]
    moved = [float(seeds.mean()) for seeds in each]
    report.save("drift", width=widths, drift=moved)
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.loglog(widths, moved, color=BLUE, marker="o")
    ax.set(xlabel="width of the network", ylabel="relative drift of the smallest "
           "eigenvalue", title="Wider networks keep their kernel")  # fmt: skip
    report.finish(figure, "drift")
    return [
        at_most(f"drift of lambda_min, width {after} over {before}", ratio, 1)
        for before, after, ratio in zip(
            widths[:-1], widths[1:], np.divide(moved[1:], moved[:-1]), strict=True
        )
    ]


def stochastic(report: Report) -> list[Claim]:
    """The bias when factor and direction come from one batch, and the level at which
    noise of bounded size stops the descent."""
    noisy = jnp.array([1.0 + 5, 1.0 - 5])
    claims = []
    for delta, drift in ((0.1, 0.0), (0.5, 0.5)):
        factor = jc.DeltaClip(1.0, delta).factor(jnp.abs(noisy), 0)
        text = f"gradient 1, noise +-5, threshold 1, delta {delta}: drift"
        claims.append(Claim(text, float(jnp.mean(factor * noisy)), drift - 1e-12,
                            drift + 1e-12))  # fmt: skip
    curvatures, size = jnp.array([0.05, 0.3, 1.0]), 0.1

    def value(x):
        return jnp.sum(curvatures * x**2) / 2

    def loss(x, error):
        # The error of the gradient is the example itself.
        return value(x) + error @ x

    def at_random(key):
        direction = jr.normal(key, (3,))
        return size * direction / jnp.linalg.norm(direction)

    def outwards(key):
        del key
        return jnp.array([-size, 0, 0])

    level = size**2 / (2 * DELTA * curvatures[0])
    for name, draw in (("at random", at_random), ("along the worst", outwards)):
        problem = jc.Online(loss, jnp.array([4.0, -3.0, 2.0]), draw, value)
        clip, key = jc.DeltaClip(0.02, DELTA), jr.key(report.seed)
        curve = jc.simulate(problem, clip, 1.0, steps=8000, key=key)
        text = f"errors of one size {name}: highest late loss over its bound"
        claims.append(at_most(text, jnp.max(curve.risk[4000:]) / level, 1))
    return claims


if __name__ == "__main__":
    reproduce(
        str(__doc__).splitlines()[0],
        "delta_gclip",
        7,
        [wide_network, drift, stochastic, mlp],
        long=[conv],
    )
