"""The figure of an advice: will clipping help, why, and with what settings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..clip import HardClip
from ..limit import moments

# Okabe and Ito's palette, which colour-blind readers can tell apart.
CLIPPED, UNCLIPPED, CEILING, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"


def advice_figure(advice: Any, title: str = "") -> Any:
    """What [`jaxclip.Advice`][]'s `figure` returns."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(12, 8.2), layout=layout)
    axes = figure.subplots(2, 2)
    decision = advice.verdict.decision
    heading = f"{title}: {decision}" if title else decision.capitalize()
    gain, error = advice.search.difference, advice.search.error
    figure.suptitle(
        f"{heading} (risk {abs(gain):.0%} {'lower' if gain > 0 else 'higher'} with "
        f"clipping, standard error {error:.0%})",
        fontsize=14,
        fontweight="bold",
    )
    _risk(axes[0, 0], advice)
    _criterion(axes[0, 1], advice)
    _residuals(axes[1, 0], advice)
    _schedule(axes[1, 1], advice)
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _risk(ax: Any, advice: Any) -> None:
    pairs = (
        ("no clip", UNCLIPPED, advice.unclipped_runs, advice.baseline),
        ("clip", CLIPPED, advice.clipped_runs, advice.recommended),
    )
    for name, color, runs, setting in pairs:
        runs.plot(ax, color=color, lw=2, label=f"{name}: SGD on the rows, 80% band")
        curve = setting.predicted
        ax.plot(
            curve.step,
            curve.risk,
            color=color,
            ls="--",
            lw=1.5,
            label=f"{name}: predicted (ODE)",
        )
    ceiling = advice.prediction.ceiling
    ax.plot(
        ceiling.step, ceiling.risk, color=CEILING, ls=":", label="ceiling of any rule"
    )
    ax.set(
        title="What training will do",
        xlabel="SGD step (one row each)",
        ylabel="excess risk (target variance = 1)",
        xscale="linear",
    )
    ax.legend(fontsize=8)


def _criterion(ax: Any, advice: Any) -> None:
    """max CCC and thresholds, at the first and the smallest risk of the run."""
    noise, norm = advice.problem.noise, advice.problem.spectrum.feature_norm
    std = float(advice.residuals.std)
    thresholds = jnp.asarray(np.geomspace(0.05, 20, 60)) * std
    scheduled = np.asarray(advice.prediction.scheduled.predicted.risk)
    risks = {
        "at the start": (float(scheduled[0]), GREY, "--"),
        "at the end": (float(scheduled.min()), CLIPPED, "-"),
    }
    for name, (risk, color, style) in risks.items():
        ccc = jax.lax.map(
            lambda c, risk=risk: moments(HardClip(c), noise, risk, 1.0).ccc, thresholds
        )
        label = f"{name} (excess risk {risk:.2g})"
        ax.plot(thresholds * norm, ccc, color=color, ls=style, lw=2, label=label)
    ax.axhline(1, color="black", lw=1)
    ax.axvline(
        advice.search.threshold,
        color=CLIPPED,
        ls=":",
        lw=1.5,
        label=f"best on the rows: {advice.search.threshold:.3g}",
    )
    ax.set(
        title="Where clipping helps: above the line at 1",
        xlabel="threshold on the gradient's norm",
        ylabel="clipping-comparison criterion",
        xscale="log",
    )
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8)


def _residuals(ax: Any, advice: Any) -> None:
    values = np.asarray(advice.regression.residuals)
    std = values.std()
    z = values / std
    edge = max(4.0, float(np.abs(z).max()))
    ax.hist(
        z,
        bins=np.linspace(-edge, edge, 81),
        density=True,
        color=CLIPPED,
        alpha=0.6,
        label="residuals of least squares",
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


def _schedule(ax: Any, advice: Any) -> None:
    scheduled, steps = advice.prediction.scheduled, advice.recommended.predicted.step
    thresholds = np.array([float(scheduled.clip.threshold(k)) for k in steps])
    rates = np.array([float(scheduled.lr(k)) for k in steps])
    norm = float(advice.problem.spectrum.feature_norm)
    # Beyond any residual a threshold stands for none.
    largest = np.abs(np.asarray(advice.regression.residuals)).max() * norm * 3
    shown = np.where(thresholds < largest, thresholds, np.nan)
    handles = []
    if np.isfinite(shown).any():
        handles += ax.plot(steps, shown, color=CLIPPED, lw=2, label="threshold (left)")
    else:
        ax.text(
            0.5, 0.6, "no threshold", transform=ax.transAxes, ha="center", color=CLIPPED
        )
    right = ax.twinx()
    handles += right.plot(
        steps, rates, color=UNCLIPPED, ls="--", lw=2, label="learning rate (right)"
    )
    ax.set(
        title="The schedule of the best threshold",
        xlabel="SGD step (one row each)",
        ylabel="threshold on the gradient's norm",
    )
    ax.set_ylim(bottom=0)
    right.set(ylabel="learning rate, per step")
    right.set_ylim(bottom=0)
    right.spines[["top"]].set_visible(False)
    ax.legend(handles=handles, fontsize=8, loc="center right")
