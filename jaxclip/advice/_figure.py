"""The figure of an advice: will clipping help, why, and with what settings."""

from typing import Any

import numpy as np

from ._report import NAMES

# Okabe and Ito's palette, which colour-blind readers can tell apart.
CLIPPED, UNCLIPPED, GREY = "#0072B2", "#D55E00", "#555555"


def advice_figure(advice: Any, title: str = "") -> Any:
    """What [`jaxclip.Advice`][]'s `figure` returns."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(12, 8.2), layout=layout)
    axes = figure.subplots(2, 2)
    decision = advice.verdict.decision
    heading = f"{title}: {decision}" if title else decision.capitalize()
    gain = advice.gain.gain
    low, high = advice.gain.interval
    figure.suptitle(
        f"{heading} (excess risk {abs(gain):.0%} {'lower' if gain >= 0 else 'higher'} "
        f"with a clip, 95% interval {low:.0%} to {min(high, 1.0):.0%})",
        fontsize=14,
        fontweight="bold",
    )
    _risk(axes[0, 0], advice)
    _kinds(axes[0, 1], advice)
    _criterion(axes[1, 0], advice)
    _residuals(axes[1, 1], advice)
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _risk(ax: Any, advice: Any) -> None:
    pairs = [("no clip", UNCLIPPED, advice.baseline_runs, advice.baseline)]
    best = advice.outcomes["scheduled"].recipe
    if best.clips:
        pairs.append(("clip", CLIPPED, advice.clipped_runs, best))
    for name, color, runs, setting in pairs:
        label = f"{name}: SGD, rows not seen, 80% band"
        low, high = np.quantile(runs, [0.1, 0.9], axis=0, method="nearest")
        ax.plot(advice.step, runs.mean(axis=0), color=color, lw=2, label=label)
        ax.fill_between(advice.step, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(
            advice.prediction.at,
            advice.predicted(setting),
            color=color,
            ls="--",
            lw=1.5,
            label=f"{name}: predicted (ODE)",
        )
    ax.set(
        title="What training will do",
        xlabel="SGD step (one row each)",
        ylabel="excess risk (target variance = 1)",
        yscale="log",
    )
    ax.legend(fontsize=8)


def _kinds(ax: Any, advice: Any) -> None:
    """What the best setting of each kind reaches, predicted and measured."""
    from matplotlib.ticker import NullFormatter

    names = list(NAMES)
    for height, name in zip(range(len(names), 0, -1), names, strict=True):
        outcome = advice.outcomes[name]
        color = CLIPPED if outcome.recipe.clips else UNCLIPPED
        ax.plot(
            [outcome.low, outcome.high],
            [height, height],
            color=color,
            lw=6,
            alpha=0.25,
            solid_capstyle="round",
        )
        ax.plot(outcome.risk, height, "o", color=color, ms=9)
        ax.plot(outcome.predicted, height, "x", color=GREY, ms=8, mew=2)
    ax.plot([], [], "o", color=GREY, label="on rows not seen, mean and 80% of runs")
    ax.plot([], [], "x", color=GREY, mew=2, label="predicted (ODE)")
    ax.set(
        title="The best of each kind",
        xlabel="excess risk at the end",
        xscale="log",
        ylim=(0.4, len(names) + 0.6),
    )
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(names), 0, -1), [NAMES[name] for name in names])
    ax.legend(fontsize=8, loc="lower right")


def _criterion(ax: Any, advice: Any) -> None:
    """The criterion against the threshold, at the first and the last risk of a run."""
    law, norm = advice.prediction.law, advice.prediction.feature_norm
    curve = advice.predicted(advice.outcomes["scheduled"].recipe)
    thresholds = np.exp(np.asarray(law.thresholds)) * norm
    risks = {
        "at the start": (float(curve[0]), GREY, "--"),
        "at the end": (float(curve[-1]), CLIPPED, "-"),
    }
    for name, (risk, color, style) in risks.items():
        label = f"{name} (excess risk {risk:.2g})"
        ax.plot(
            thresholds, law.criterion(risk), color=color, ls=style, lw=2, label=label
        )
    ax.axhline(1, color="black", lw=1)
    best = advice.outcomes["scheduled"].recipe
    if best.clips:
        ends = best.threshold_at(np.array([0.0, best.steps]))
        label = f"best on the rows: {ends[1]:.3g}"
        if ends[0] != ends[1]:
            label = f"best on the rows: {ends[0]:.3g} to {ends[1]:.3g}"
            ax.axvspan(*sorted(ends), color=CLIPPED, alpha=0.12, lw=0)
        ax.axvline(ends[1], color=CLIPPED, ls=":", lw=1.5, label=label)
    ax.set(
        title="Where clipping helps: above the line at 1",
        xlabel="threshold on the gradient's norm",
        ylabel="clipping-comparison criterion",
        xscale="log",
    )
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8)


def _residuals(ax: Any, advice: Any) -> None:
    values = np.asarray(advice.residual_values)
    std = values.std()
    z = values / std
    edge = max(4.0, float(np.abs(z).max()))
    ax.hist(
        z,
        bins=np.linspace(-edge, edge, 81),
        density=True,
        color=CLIPPED,
        alpha=0.6,
        label="residuals",
    )
    x = np.linspace(-edge, edge, 400)
    normal = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    floor = 0.3 / len(z) / (edge / 40)
    ax.plot(x, np.where(normal > floor, normal, np.nan), color="black", label="normal")
    law = advice.residuals
    ax.set(
        title=f"The noise: excess kurtosis {law.excess_kurtosis:.2g}, "
        f"skewness {law.skewness:.2g}",
        xlabel=f"residual (standard deviations of {std:.3g})",
        ylabel="density",
        yscale="log",
    )
    ax.set_ylim(bottom=floor)
    ax.legend(fontsize=8)
