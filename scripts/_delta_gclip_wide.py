"""Regularized clipping on wide networks: a part of `reproduce_delta_gclip.py`.

Not a program of its own.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, ORANGE, Claim, Report, at_least, at_most
from sklearn.datasets import load_digits

import jaxclip as jc

DELTA = 0.25
REGIMES = ("gradient descent", "constant length", "floor")


def regimes(clip: jc.DeltaClip, norms: Any) -> np.ndarray:
    """Which of the three regimes each gradient norm is in."""
    return np.searchsorted(np.array(clip.kinks(0)), np.asarray(norms))


def whitened_digits() -> tuple[Any, Any]:
    """48 digits in 32 whitened dimensions, each of norm sqrt(32), odd against even."""
    digits: Any = load_digits()
    pixels = digits.data[:48] - digits.data[:48].mean(axis=0)
    left, _, _ = np.linalg.svd(pixels, full_matrices=False)
    rows = left[:, :32]
    rows *= 32**0.5 / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows, np.where(digits.target[:48] % 2, 1.0, -1.0)


class Wide(eqx.Module):
    """The problem of a network with some hidden layers of one width, and a learning
    rate below one over the curvature at the start, by a factor. Numbers may be traced,
    so that several seeds share one compilation."""

    problem: jc.FiniteSum
    lr: Any
    first_norm: Any
    X: Any

    def __init__(self, width: int, key: Any, hidden: int = 2, factor: float = 1.1):
        self.X, y = whitened_digits()

        def loss(network, data):
            return jnp.sum((jax.vmap(network)(data[0]) - data[1]) ** 2) / 2

        first, direction = jr.split(key)
        network = jc.curvature.WideNetwork([32, *[width] * hidden, 1], key=first)
        # The whole set is one example: every step is one of gradient descent.
        self.problem = jc.FiniteSum(loss, network, (self.X[None], y[None]))
        curvature = jc.curvature.largest_curvature(
            self.problem.mean_loss, network, key=direction, iterations=50
        )
        self.lr = 1 / (factor * curvature)
        self.first_norm = self.norm(network)

    def clip(self, share: float, delta: float) -> jc.DeltaClip:
        """With a threshold that is a share of the first gradient's norm."""
        return jc.DeltaClip(share * self.first_norm, delta)

    def norm(self, network: Any) -> Any:
        """The gradient's norm."""
        return jc.safe_norm(self.problem.full_gradient(network))

    def kernel(self, network: Any) -> Any:
        return jc.curvature.tangent_kernel(lambda w, x: w(x), network, self.X)

    def geometry(self, network: Any) -> Any:
        """The smallest and the largest eigenvalue of the tangent kernel, and the
        largest of the Hessian."""
        ends = jnp.linalg.eigvalsh(self.kernel(network))[jnp.array([0, -1])]
        loss = self.problem.mean_loss
        sharp = jc.curvature.sharpness(loss, network, key=jr.key(1), iterations=15)
        return jnp.append(ends, sharp)

    def run(self, clip: Any, steps: int, every: int, observe: Any) -> jc.Curve:
        """Clipped gradient descent."""
        # A closure, since what is observed is structure, and a method holds arrays.
        return jc.simulate(self.problem, clip, self.lr, steps=steps, every=every,
            key=jr.key(0), observe=lambda network: observe(network))  # fmt: skip


class Path(NamedTuple):
    """A run: the gradient's norm at every step, and `Wide.geometry` at some."""

    wide: Wide
    clip: jc.DeltaClip
    curve: jc.Curve
    geometry: Any

    @property
    def mu(self) -> Any:
        """Known before the run, so that the run can break what follows from it."""
        return self.geometry[0, 0] / 2

    def violations(self, floor: Any) -> jc.curvature.PLViolations:
        return jc.curvature.pl_violations(
            self.curve.risk,
            self.curve.observed,
            self.clip,
            self.wide.lr,
            mu=self.mu,
            floor=floor,
        )

    def below(self, share: float = 1e-10) -> Any:
        """The first step with a loss of that share of the start's."""
        steps = np.flatnonzero(self.curve.risk < share * self.curve.risk[0])
        return steps[0] if len(steps) else np.inf


@eqx.filter_jit
def descend(wide: Wide, clip: jc.DeltaClip, steps: int) -> Path:
    curve = wide.run(clip, steps, 1, wide.norm)
    seen = wide.run(clip, steps, steps // 20, wide.geometry)
    return Path(wide, clip, curve, seen.observed)


def guarantee(name: str, path: Path) -> list[Claim]:
    """What section 5 of docs/theory.md says of delta-GClip on one network."""
    curve, broken = path.curve, path.violations(DELTA)
    kernel, sharp = path.geometry[:, 0], path.geometry[:, 2]
    above = curve.risk > np.finfo(float).eps * curve.risk[0]
    ratio = jnp.where(above, curve.observed**2 / (2 * path.mu * curve.risk), jnp.inf)
    return [
        at_most(f"{name}: first step with L / L0 < 1e-10 (paper, abstract: delta-GClip "
                "converges to a global minimum; the number is ours)", path.below(),
                1000),
        # What PL* rests on (Liu, Zhu and Belkin): it can fail, and does on a narrow
        # network. The smallest eigenvalue on the path itself could not.
        at_least(f"{name}: smallest eigenvalue of the kernel on the path over that at "
                 "w0 (theorem's condition, as we derive it: one half)",
                 kernel.min() / kernel[0], 0.5),
        at_least(f"{name}: smallest ||grad||^2 / (2 mu L) at any step, mu from w0 "
                 "(PL* inequality)", ratio.min(), 1),
        at_most(f"{name}: learning rate times the largest curvature on the path "
                "(theorem's condition)", path.wide.lr * sharp.max(), 1),
        at_most(f"{name}: steps above (1 - lr delta mu)^t L0, mu from w0", broken.rate,
                0),
        at_most(f"{name}: steps with less descent than h ||grad||^2 / 2",
                broken.descent, 0),
        at_most(f"{name}: steps with a path longer than 2 sqrt(2 L0 / mu), mu from w0",
                broken.path, 0),
    ]  # fmt: skip


def wide_network(report: Report) -> list[Claim]:
    """A wide network, where the guarantee of delta-GClip holds and can be counted."""
    width, steps = (128, 1000) if report.quick else (512, 2000)
    wide, small = Wide(width, jr.key(report.seed)), 1e-3 * DELTA
    ours = descend(wide, wide.clip(small, DELTA), steps)
    theirs = descend(wide, wide.clip(small, 0.0), steps)
    # A hard clip that is less tight, whose run ends within the steps.
    looser = descend(wide, wide.clip(0.03, 0.0), steps)
    curve = theirs.curve
    bound = jc.curvature.hard_clip_floor(
        curve.risk[0],
        small * wide.first_norm,
        wide.lr,
        curve.step.astype(float),
        largest=theirs.geometry[:, 1].max(),
    )
    regime = regimes(ours.clip, ours.curve.observed[:-1])
    report.save("wide", delta=ours.curve.risk, hard=curve.risk, bound=bound,
                looser=looser.curve.risk, regime=regime, geometry=ours.geometry,
                geometry_hard=theirs.geometry)  # fmt: skip
    rate = 1 - wide.lr * DELTA * ours.mu
    draw_wide(report, ours.curve, curve, looser.curve, bound, rate)
    name = f"width {width}"
    return [
        *guarantee(name, ours),
        at_least(f"{name}: GClip's L / L0 at the end (ours: the floor is what makes "
                 "the difference)", curve.risk[-1] / curve.risk[0], 0.4),
        at_least(f"{name}: GClip's loss over its lower bound, smallest (derived here)",
                 jnp.min(curve.risk / bound), 1 - 1e-12),
        at_most(f"{name}: ... and at the end, where a tight bound is 1",
                curve.risk[-1] / bound[-1], 1.5),
        # The honest contrast: with its threshold over the largest norm as a floor.
        at_most(f"{name}: GClip converges too, threshold .03 ||g0||: first step with "
                "L / L0 < 1e-10 (derived here)", looser.below(), steps),
        at_most(f"{name}: ... steps above its own rate, delta .03 (derived here)",
                looser.violations(0.03).rate, 0),
        *(at_least(f"{name}: steps in the regime '{which}'", np.sum(regime == i), 1)
          for i, which in enumerate(REGIMES)),
    ]  # fmt: skip


def draw_wide(report: Report, ours: Any, theirs: Any, looser: Any, bound: Any,
              rate: Any) -> None:  # fmt: skip
    """The loss of all on a logarithmic axis, and its root on a linear one."""
    start = ours.risk[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, scale in ((left, lambda x: x), (right, np.sqrt)):
        ax.plot(ours.step, scale(ours.risk / start), color=BLUE, label="delta-GClip")
        ax.plot(theirs.step, scale(theirs.risk / start), color=ORANGE, label="GClip")
        ax.plot(looser.step, scale(looser.risk / start), color=ORANGE, ls="-.", lw=1,
                label="GClip, threshold 120 times larger")  # fmt: skip
        ax.set(xlabel="step of gradient descent")
    rates = float(rate) ** np.asarray(ours.step, float)
    left.plot(ours.step, rates, color=BLUE, ls="--", label="guaranteed from the start")
    left.set(yscale="log", ylim=(1e-16, 2), ylabel="loss over its start",
             title="The floor keeps the rate geometric")  # fmt: skip
    right.plot(theirs.step, np.sqrt(bound / start), color=ORANGE, ls=":",
               label="lower bound of GClip")  # fmt: skip
    right.set(ylabel="root of that", title="GClip is linear in the root while it clips")
    left.legend()
    right.legend()
    report.finish(figure, "wide")
