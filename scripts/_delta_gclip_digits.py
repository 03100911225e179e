"""The practical comparison of `reproduce_delta_gclip.py`. Not a program of its own."""

from dataclasses import dataclass
from typing import Any

import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
from _claims import BLUE, GREEN, ORANGE, PINK, Claim, Report, at_least, at_most
from _digits import ConvNetwork, train_all, wide_network

import jaxclip as jc

REGIMES = ("gradient descent", "constant length", "floor")
NAMES = ("delta-GClip, delta 0.25", "delta-GClip, delta 1e-3", "GClip", "SGD", "Adam")
DELTAS = np.array([0.25, 1e-3, 0, 0], np.float32)


@dataclass(frozen=True)
class Outcome:
    """Of each algorithm and seed: the norms and losses of all steps, and the accuracy
    on the test rows. A run at an unstable rate has no finite loss."""

    norms: np.ndarray
    losses: np.ndarray
    accuracy: np.ndarray

    @property
    def final_loss(self) -> np.ndarray:
        """The mean loss of the last tenth of the steps, over seeds too."""
        last = self.losses[..., -(self.losses.shape[-1] // 10) :]
        return np.nan_to_num(last.mean(axis=(-2, -1)), nan=np.inf)

    @property
    def error(self) -> np.ndarray:
        """The standard error of the mean accuracy."""
        return self.accuracy.std(axis=-1, ddof=1) / self.accuracy.shape[-1] ** 0.5


def regimes(clip: jc.DeltaClip, norms: Any) -> np.ndarray:
    """Which of the three regimes each gradient norm is in."""
    return np.searchsorted(np.array(clip.kinks(0)), np.asarray(norms))


def clipped(setting: Any) -> optax.GradientTransformation:
    """Clipped SGD with a rate, a threshold and a floor."""
    rate, threshold, delta = setting
    clip = jc.DeltaClip(threshold, delta)
    return optax.chain(jc.as_transform(clip), optax.sgd(rate))


def compare(start: Any, threshold: float, rates: Any, keys: Any, steps: int) -> Outcome:
    """The five algorithms at each of their rates, shape `(5, r)`: the first axes of
    what is returned."""
    rates = np.asarray(rates, np.float32)
    thresholds = np.array([threshold] * 3 + [np.inf], np.float32)
    settings = [np.broadcast_to(x[:, None], rates[:4].shape).ravel()
                for x in (thresholds, DELTAS)]  # fmt: skip
    some = train_all(start, clipped, (rates[:4].ravel(), *settings), keys, steps)
    adam = train_all(start, optax.adam, rates[4], keys, steps)
    both = (np.concatenate(pair) for pair in zip(some, adam, strict=True))
    return Outcome(*(x.reshape(*rates.shape, *x.shape[1:]) for x in both))


def mlp(report: Report) -> list[Claim]:
    """A fully connected network, at rates that serve it well."""
    seeds, steps = (4, 600) if report.quick else (10, 2000)
    keys, rates = jr.split(jr.key(report.seed), seeds), np.array([16] * 4 + [3e-3])
    outcome = compare(wide_network, 0.02, rates[:, None], keys, steps)
    return judge(report, "MLP", 0.02, rates, outcome, 0.93)


def conv(report: Report) -> list[Claim]:
    """A convolutional network, each algorithm at the rate of its lowest training loss,
    found with other seeds. The threshold is that of the paper's ResNet."""
    tried = 0.4 * 2.0 ** np.arange(5) * np.array([1, 1, 1, 1, 0.005])[:, None]
    tuning = jr.split(jr.key(report.seed + 1), 2)
    loss = compare(ConvNetwork, 0.25, tried, tuning, 500).final_loss
    rates = tried[np.arange(5), loss.argmin(axis=1)]
    keys = jr.split(jr.key(report.seed), 8)
    outcome = compare(ConvNetwork, 0.25, rates[:, None], keys, 1000)
    return judge(report, "conv", 0.25, rates, outcome, 0.93)


def judge(
    report: Report, name: str, threshold: float, rates: Any, outcome: Any, least: float
) -> list[Claim]:
    """The accuracies, and how often each regime was seen, on one network."""
    norms, losses, accuracy = (
        outcome.norms,
        outcome.losses[:, 0],
        outcome.accuracy[:, 0],
    )
    clips = [jc.DeltaClip(threshold, float(delta)) for delta in DELTAS[:2]]
    shares = [np.bincount(regimes(clip, x).ravel(), minlength=3) / x.size
              for clip, x in zip(clips, norms[:2], strict=True)]  # fmt: skip
    report.save(name, rates=rates, losses=losses, accuracy=accuracy, regimes=shares)
    draw(report, name, losses, accuracy)
    each = zip(NAMES, rates, accuracy.mean(axis=1), outcome.error[:, 0], strict=True)
    claims = [
        *(at_least(f"{name}: test accuracy of {who}, rate {rate:g}, +- {error:.4f}",
                   value, least) for who, rate, value, error in each),
        *(at_least(f"{name}, delta 0.25: share of steps in '{which}'", share, 1e-3)
          for which, share in zip(REGIMES, shares[0], strict=True)),
        # So an ablation over such deltas would compare equal algorithms.
        at_most(f"{name}, delta 1e-3: share of steps at the floor", shares[1][2], 0),
        at_most(f"{name}, delta 1e-3: largest difference of a loss from GClip's",
                np.max(np.abs(losses[1] - losses[2])), 0),
    ]  # fmt: skip
    if not report.quick:
        text = f"{name}: no winner: best mean accuracy over worst, standard errors"
        claims.append(at_most(text, lead(accuracy), 3))
    return claims


def lead(accuracy: np.ndarray) -> float:
    """The best mean over the worst, in standard errors. Seeds are paired: they share
    their batches and, on one network, their start."""
    mean = accuracy.mean(axis=1)
    gap = accuracy[mean.argmax()] - accuracy[mean.argmin()]
    return float(gap.mean() / (gap.std(ddof=1) / len(gap) ** 0.5))


def draw(report: Report, name: str, losses: Any, accuracy: Any) -> None:
    """The training loss, a mean over seeds and over 20 steps."""
    figure, ax = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
    smooth = losses.reshape(*losses.shape[:2], -1, 20).mean(axis=(1, 3))
    at = 20 * np.arange(smooth.shape[1]) + 10
    for who, values, right, color, style in zip(
        NAMES, smooth, accuracy.mean(axis=1), (BLUE, PINK, ORANGE, GREEN, "black"),
        ("-", "-", "--", "-", "-"), strict=True):  # fmt: skip
        label = f"{who}: test accuracy {right:.3f}"
        ax.semilogy(at, values, color=color, ls=style, label=label)
    ax.set(xlabel="step", ylabel="training loss (cross entropy, nats)",
           title=f"Digits, {name}, {accuracy.shape[1]} seeds")  # fmt: skip
    ax.legend()
    report.finish(figure, name)
