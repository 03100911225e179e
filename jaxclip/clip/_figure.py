"""Pictures of rules and of policies: what they do to a gradient of some norm."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .._picture import BESIDE, axes_for, legend, named, need_one, right_axis, vector
from .._types import Step

if TYPE_CHECKING:
    from ._base import AbstractClip

# Where a rule is looked for, and how far beyond what was found it is drawn.
_SEARCH = np.geomspace(1e-15, 1e15, 601)
_BEYOND = 20.0
# A factor above this is no fraction, and needs a logarithmic axis.
_FRACTION = 1.5


def draw_rule(
    rule: "AbstractClip", ax: Any, step: Step, norms: Any, label: str | None
) -> Any:
    """What [`jaxclip.AbstractClip`][]'s `plot` returns."""
    need_one("rule", rule, _shapes(rule, step))
    kinks = _marks(rule, step)
    if norms is None:
        norms = np.geomspace(*_range(rule, step, list(kinks)), 401)
        # A kink is drawn as one.
        norms = np.union1d(norms, [x for x in kinks if norms[0] < x < norms[-1]])
    norms = vector("norms", norms)
    factor = _factor(rule, norms, step)
    ax = axes_for(ax)
    right = right_axis(ax, "norm after clipping (in the gradient's unit)")
    (line,) = ax.plot(norms, factor, label=named(label, "factor"))
    look = dict(color=line.get_color(), ls="--")
    right.plot(norms, norms * factor, label=named(label, "norm after clipping"), **look)
    _once(right, norms, norms, "norm before")
    for at, what in kinks.items():
        where = named(label, f"{what} {at:.4g}")
        ax.axvline(at, color=line.get_color(), ls=":", lw=1.2, label=where)
    ax.set(xscale="log", xlabel="norm before clipping (in the gradient's unit)")
    ax.set(ylabel="factor")
    if factor.max() > _FRACTION:
        ax.set(yscale="log")
    elif ax.get_yscale() == "linear":
        ax.set(ylim=(0.0, max(1.05, ax.get_ylim()[1])))
    # What is 0, as beyond the threshold of `SkipClip`, goes down to the end.
    right.set_yscale("log", nonpositive="clip")
    # Between the factor of small norms, above, and the norms that it leaves, below.
    legend(ax, right, loc="center left")
    return ax


def draw_replay(
    before: np.ndarray, after: np.ndarray, threshold: np.ndarray, ax: Any
) -> Any:
    """What [`jaxclip.Adaptive`][]'s `plot` returns: norms over updates, before and
    after clipping, and the threshold of each."""
    ax = axes_for(ax)
    updates = np.arange(len(before))
    known = before[np.isfinite(before)]
    clipped = np.mean(after[np.isfinite(before)] < known * (1 - 1e-6))
    ax.plot(updates, _drawable(before), **BESIDE, label="norm before")
    (line,) = ax.plot(updates, _drawable(after), lw=1.2,
                      label=f"norm after, {clipped:.0%} shortened")  # fmt: skip
    ax.plot(updates, _drawable(threshold), color=line.get_color(), ls="--", lw=2,
            label="threshold", zorder=3)  # fmt: skip
    ax.set(xlabel="update", ylabel="norm (in the gradient's unit)", yscale="log")
    legend(ax)
    return ax


def _shapes(rule: "AbstractClip", step: Step) -> dict[str, tuple[int, ...]]:
    """Of numbers that are single ones unless the rule is a batch."""
    shapes = {"its factor": jnp.shape(rule.factor(1.0, step))}
    kinks = enumerate(rule.kinks(step))
    return shapes | {f"kink {i} of it": jnp.shape(kink) for i, kink in kinks}


def _marks(rule: "AbstractClip", step: Step) -> dict[float, str]:
    """Norms to be marked, and what they are."""
    found = {float(kink): "kink at" for kink in rule.kinks(step)}
    threshold = getattr(rule, "threshold", None)
    if callable(threshold):
        found[float(np.asarray(threshold(step)))] = "threshold"
    return {at: what for at, what in found.items() if 0 < at < np.inf}


def _range(rule: "AbstractClip", step: Step, kinks: list[float]) -> tuple[float, float]:
    """The ends of the norms at which something happens: where there are kinks, or the
    factor goes over from a constant to a power."""
    factor = _factor(rule, _SEARCH, step)
    logs = np.log(np.where(factor > 0, factor, np.nan))
    slope = np.abs(np.diff(logs) / np.diff(np.log(_SEARCH)))
    bends = _SEARCH[:-1][(slope > 0.1) & (slope < 0.9)].tolist()
    places = [*bends, *kinks] or [1.0]
    return min(places) / _BEYOND, max(places) * _BEYOND


def _factor(rule: "AbstractClip", norms: np.ndarray, step: Step) -> np.ndarray:
    factor = np.asarray(rule.factor(jnp.asarray(norms), step), np.float64)
    if np.any(np.isnan(factor)):
        raise ValueError(
            "`plot` needs a rule whose factor is a number at every norm. Got NaN: the "
            f"rule {rule!r} holds a number that it does not allow."
        )
    return factor


def _once(ax: Any, x: np.ndarray, y: np.ndarray, label: str) -> None:
    """A line for comparison, if there is none yet."""
    if label not in [line.get_label() for line in ax.lines]:
        ax.plot(x, y, **BESIDE, ls=":", label=label)


def _drawable(values: np.ndarray) -> np.ndarray:
    """With gaps where a logarithmic axis has no place."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
