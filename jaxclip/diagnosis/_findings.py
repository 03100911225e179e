"""What is wrong with the clips of a chain, from what was measured of it."""

from typing import Any, NamedTuple

import numpy as np

from ._chain import ClipUse, Finding

# Below this a difference of updates, relative to them, counts as none.
_NONE = 0.01
# A clip has changed gradients where it changed their length by more than this.
_SOME = 0.05
# Updates are taken to stall where they are less than this of those without a clip.
_STALLED = 0.5


class Updates(NamedTuple):
    """What was measured of an optimiser's updates: of the whole, and of each leaf.

    - `names`: of the leaves, behind an empty one for the whole. All vectors are in this
        order.
    - `scale`, `effect`: as in `ChainCheck`, NaN where they are not known.
    - `length`: the `shortening` there.
    - `clipped_scale`: as `scale`, but of the clipped gradients; `None` where those are
        not known.
    """

    names: list[str]
    scale: np.ndarray
    effect: np.ndarray
    length: np.ndarray
    clipped_scale: Any


def findings_of_clips(
    clips: tuple[ClipUse, ...], updates: Updates
) -> tuple[Finding, ...]:
    """What is wrong with the clips.

    **Arguments:**

    - `clips`: as in `ChainCheck`.
    - `updates`: what was measured of the updates.
    """
    found = []
    worst = _stalled_leaf(clips, updates)
    if worst is not None:
        found.append(_epsilon(updates, worst))
    heedless = bool(np.all(updates.scale < _NONE))
    # Which clips `effect` is that of: all others are on both sides of the comparison.
    before = {clip.name for clip in clips} & {"before"}
    known = not np.isnan(updates.effect[0])
    left_out = (before or {clip.name for clip in clips}) if known else set()
    for clip in clips:
        always = clip.acted == 1 and clip.constant
        if clip.acted == 0 and not clip.on_spike:
            found.append(_never(clip))
        elif clip.behind and always:
            found.append(_rate(clip, "so that all updates have one length"))
        elif clip.behind or clip.name not in left_out or worst is not None:
            continue
        elif clip.change > _SOME and np.all(updates.effect < _NONE):
            found.append(_no_effect(clip, updates.effect[0]))
        elif always and heedless:
            found.append(_idle(clip, updates.scale[0]))
        elif always:
            found.append(_rate(clip, "so that all gradients have one length"))
    return tuple(found)


def _stalled_leaf(clips: tuple[ClipUse, ...], updates: Updates) -> int | None:
    """The leaf whose updates a clip has shortened most, without a cause but epsilon."""
    if any(clip.behind and clip.acted for clip in clips if clip.name != "after"):
        return None
    stalled = (updates.scale < _NONE) & (updates.length < _STALLED)
    if updates.clipped_scale is not None:
        # Where the clipped gradients are known it is measured that size is the cause.
        stalled &= updates.clipped_scale > _NONE
    if not np.any(stalled):
        return None
    return int(np.argmin(np.where(stalled, updates.length, np.inf)))


def _epsilon(updates: Updates, leaf: int) -> Finding:
    shortening, clipped_scale = updates.length[leaf], updates.clipped_scale
    where = f" of `{updates.names[leaf]}`" if updates.names[leaf] else ""
    measured = (
        "which a clip that is not watched may also do to the updates themselves"
        if clipped_scale is None
        else "and clipped gradients ten times as long change its updates by "
        f"{clipped_scale[leaf]:.2g}"
    )
    return Finding(
        "epsilon",
        "The optimiser does not heed the scale of gradients as they come, but its "
        f"updates{where} are {shortening:.2g} of their length with the clip, "
        f"{measured}: the clip brings gradients below the optimiser's epsilon, and "
        "training stalls. Raise the threshold, or lower epsilon.",
    )


def _never(clip: ClipUse) -> Finding:
    what = (
        "what it is given does not grow with the gradient, as the updates of this "
        "optimiser do not. A threshold meant for gradients belongs before it."
        if not clip.grows
        else "its threshold is out of reach, or another clip stands before it."
    )
    return Finding(
        "never",
        f"The clip `{clip.name}` acts on no step, not even where a gradient is a "
        f"million times as long: {what}",
    )


def _no_effect(clip: ClipUse, effect: float) -> Finding:
    return Finding(
        "no effect",
        f"The clip `{clip.name}` changes the gradients by {clip.change:.2g} and the "
        f"updates by {effect:.2g}: what stands behind it undoes it, as an optimiser "
        "does that divides by the gradient's size. Clip its updates, or leave the clip "
        "out.",
    )


def _idle(clip: ClipUse, scale: float) -> Finding:
    return Finding(
        "idle",
        f"The clip `{clip.name}` acts on every step and leaves all gradients at one "
        "norm, which the optimiser does not heed (gradients ten times as long change "
        f"its updates by {scale:.2g}): the threshold's value does nothing, and the "
        "clip normalises. Raise the threshold until it acts on some steps.",
    )


def _rate(clip: ClipUse, where: str) -> Finding:
    return Finding(
        "rate",
        f"The clip `{clip.name}` acts on every step, {where}, which is the threshold: "
        "it is a factor of the learning rate. Raise the threshold until it acts on "
        "some steps, or tune the two as one.",
    )
