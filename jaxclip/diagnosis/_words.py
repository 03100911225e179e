"""A diagnosis in words and as a figure."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .._picture import axes_for

if TYPE_CHECKING:
    from ._diagnosis import Diagnosis


def in_words(found: "Diagnosis") -> str:
    """The answers, and below them the numbers they come from."""
    if found.batch is None:
        return f"{_sentence(found)}\n{_numbers(found)}"
    parts = (found, found.batch)
    sentences = [*map(_sentence, parts), _comparison(found, found.batch)]
    numbers = [f"{_subject(part)}:\n{_numbers(part)}" for part in parts]
    return "\n\n".join(["\n".join(sentences), *numbers])


def _subject(found: "Diagnosis") -> str:
    if found.group == 1:
        return "Clipping per example"
    if found.group == found.batch_size:
        return f"Clipping per batch of {found.group}"
    return f"Clipping per group of {found.group}"


def _sentence(found: "Diagnosis") -> str:
    """What the criterion says of one way to clip."""
    if not found._resolved:
        return (
            "Cannot tell: the mean gradient is lost in the noise of this batch. "
            "Take a larger one."
        )
    value, error = (float(number[found._best]) for number in found.ccc)
    criterion = f"{value:.3f} (standard error {error:.2g})"
    threshold = f"{found.threshold:.3g}"
    if found.noise_multiplier is not None:
        noise = f"With noise of {found.noise_multiplier:.3g} times the threshold"
        return (
            f"{noise}, {threshold} is the best threshold: the clipping-comparison "
            "criterion, of a step with clip and noise against one with neither, is "
            f"{criterion}."
        )
    measured = (
        f"at the threshold {threshold} the clipping-comparison criterion is "
        f"{criterion}."
    )
    if found.helps:
        return f"{_subject(found)} helps now: {measured}"
    return f"{_subject(found)} is not seen to help now: {measured}"


def _comparison(found: "Diagnosis", batch: "Diagnosis") -> str:
    """Which of two ways to clip is better, if that can be told."""
    value, error = map(float, found.advantage or (np.nan, np.nan))
    if not (found._resolved and batch._resolved and np.isfinite(value)):
        return "Which of the two is better cannot be told from these examples."
    low, middle, high = np.exp([value - 2 * error, value, value + 2 * error])
    ratio = (
        f"each at its best threshold, the criterion per example is {middle:.3f} times "
        f"that per batch ({low:.3f} to {high:.3f} within two standard errors)."
    )
    if low > 1:
        return f"Per example is better than per batch: {ratio}"
    if high < 1:
        return f"Per batch is better than per example: {ratio}"
    return f"Which of the two is better cannot be told from these examples: {ratio}"


def _numbers(found: "Diagnosis") -> str:
    """The sample, and a table of the criteria."""
    norms = np.asarray(found.norms)
    low, middle, high = np.quantile(norms, [0, 0.5, 1])
    # In double precision, in which the square of a float32 does not vanish.
    unit = np.float64(norms.max())
    value, error = (float(number) * unit**2 for number in found._signal)
    what = "examples" if found.group == 1 else f"means of {found.group} examples"
    lines = [
        f"{len(norms)} {what}, gradient norms {low:.3g} to {high:.3g}, median "
        f"{middle:.3g}; squared mean gradient {value:.3g} (standard "
        f"error {error:.2g}), noise scale {found.noise_scale.value:.3g} "
        f"({found.noise_scale.error:.2g})",
        "",
        f"{'threshold':>10}{'clipped':>9}{'mu':>8}{'nu':>8}{'CSC':>16}{'CCC':>16}",
    ]
    for i, threshold in enumerate(np.asarray(found.thresholds)):
        clipped = np.mean(norms > threshold)
        pairs = (
            f"{e.value[i]:>8.3f} ± {e.error[i]:<5.3f}" for e in (found.csc, found.ccc)
        )
        lines.append(
            f"{threshold:>10.4g}{clipped:>9.1%}{found.mu.value[i]:>8.3f}"
            f"{found.nu.value[i]:>8.3f}{''.join(pairs)}"
            + "  <- best"
            * (i == int(found._best))
        )
    return "\n".join(lines)


def drawn(found: "Diagnosis", ax: Any, label: str | None) -> Any:
    """The axes with the curve of the criterion, or with those of both clips."""
    ax = axes_for(ax)
    # Below the line above, whose error names the extra.
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    xlabel = "threshold on the norm of an example's gradient"
    if found.group > 1:
        xlabel = f"threshold on the norm of the mean gradient of {found.group} examples"
    if found.batch is None:
        _curve(found, ax, label)
    else:
        xlabel = "threshold on the norm of what is clipped"
        before = "" if label is None else f"{label}, "
        _curve(found, ax, f"{before}per example")
        _curve(found.batch, ax, f"{before}per batch of {found.batch_size}")
        ax.legend()
    ax.axhline(1, color="black", lw=1)
    ax.set(xscale="log", xlabel=xlabel, ylabel="clipping-comparison criterion")
    # Within a decade or two matplotlib's own labels lie on top of each other.
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def _curve(found: "Diagnosis", ax: Any, label: str | None) -> None:
    (line,) = ax.plot(found.thresholds, found.ccc.value, label=label)
    band = (np.asarray(end) for end in found._band)
    ax.fill_between(found.thresholds, *band, color=line.get_color(), alpha=0.2, lw=0)
