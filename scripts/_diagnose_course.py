"""What `reproduce_diagnose.py` says of the criteria along a training, and draws of it.

Not a program of its own.
"""

from typing import Any

import jax
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_least, at_most
from _diagnose_path import BATCH, Point, along, models, pooled, save

# Where a training is stopped.
STOPS = (0, 10, 30, 100, 300, 1000)


def path(report: Report) -> list[Claim]:
    """The criteria along the training of three networks."""
    stops, runs = ((0, 1000), 1) if report.quick else (STOPS, 2)
    keys = jr.split(jr.key(report.seed), runs)
    found: dict[str, list[list[Point]]] = {}
    with jax.enable_x64(False):
        for model in models()[: 1 if report.quick else None]:
            found[model.name] = [along(model, stops, key) for key in keys]
    save(report.folder / "path.csv", found)
    draw_path(report, found)
    return judge_path(found, report.quick)


def judge_path(found: dict[str, list[list[Point]]], quick: bool) -> list[Claim]:
    """What a user may conclude, with what was found for each network."""
    claims, logs, errors = [], [], []
    for name, trainings in found.items():
        ccc, error = pooled(trainings, "ccc")
        early = np.array([point.step <= 100 for point in trainings[0]])
        away = np.abs(ccc[early] - 1).max()
        text = f"{name}, until step 100: how far the criterion is from 1 (no reason)"
        claims.append(at_most(text, away, 0.05))
        if name.startswith("transformer"):
            text = "... nor later: the largest criterion of clipping examples"
            claims.append(at_most(text, ccc.max(), 1.05))
            continue
        text = "... its examples nearly all learnt: criterion of clipping examples"
        claims.append(at_least(text, ccc[-1], 1.2))
        logs.append(np.log(ccc[-1]))
        errors.append(error[-1])
    if not quick:
        above = np.sum(logs) / np.sqrt(np.sum(np.square(errors)))
        claims.append(at_least("... both networks: above 1, in errors", above, 2))
    return claims


def draw_path(report: Report, found: dict[str, list[list[Point]]]) -> None:
    """The criterion and the noise scale against the step, with two errors."""
    how: Any = dict(figsize=(4.4 * len(found), 6), squeeze=False, sharex=True)
    figure, axes = plt.subplots(2, len(found), layout="constrained", **how)
    for column, (name, trainings) in zip(axes.T, found.items(), strict=True):
        steps = np.array([point.step for point in trainings[0]])
        for ax, which, color, word in (
            (column[0], "ccc", BLUE, "each example clipped"),
            (column[0], "batch_ccc", ORANGE, "mean of 16 clipped"),
            (column[1], "noise_scale", GREEN, "noise scale"),
        ):
            value, error = pooled(trainings, which)
            band = np.exp(2 * error)
            ax.plot(steps, value, "o-", color=color, ms=3, label=word)
            ax.fill_between(steps, value / band, value * band, color=color, alpha=0.2,
                            lw=0)  # fmt: skip
        column[0].axhline(1, color="black", lw=1)
        column[0].set(title=name, yscale="log", ylim=(0.7, 9))
        ticks = [1, 2, 4, 8]
        column[0].set_yticks(ticks, [str(tick) for tick in ticks])
        column[0].set_yticks([], minor=True)
        column[1].axhline(BATCH, color="black", lw=1)
        column[1].set(yscale="log", ylim=(2, 3000))
        column[1].set_xscale("symlog", linthresh=10)
        column[1].set_xlim(-1.5, 1.6 * steps[-1])  # room for the first and last loss
        column[1].set_xlabel("step of training without a clip")
        losses = np.mean([[p.loss for p in points] for points in trainings], axis=0)
        for step, loss in zip(steps, losses, strict=True):
            column[1].text(step, 2.3, f"{loss:.2g}", fontsize=7, ha="center")
    axes[0, 0].set_ylabel("criterion (CCC), two errors")
    axes[1, 0].set_ylabel("gradient noise scale (line: the batch;\nbelow: the loss)")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    report.finish(figure, "path")
