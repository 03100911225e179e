"""What `check_chain` returns: how the clips of a chain act, and what is wrong."""

import math
from typing import NamedTuple

import equinox as eqx


class Finding(NamedTuple):
    """Something that goes wrong in silence.

    - `kind`: what it is, one of those below.
    - `sentence`: what was measured, and what to do.

    | kind | what was measured |
    |---|---|
    | `"epsilon"` | The optimiser heeds no scale, but with the clip its updates nearly \
    vanish: the clip brings gradients below its epsilon. |
    | `"no effect"` | The clip changes gradients, and the updates are as without it: \
    before an optimiser that takes the sign, for example. |
    | `"idle"` | It acts on every step and leaves all gradients at one norm, which the \
    optimiser does not heed: the threshold's value does nothing. |
    | `"rate"` | It acts on every step, so that the threshold is a factor of the rate. |
    | `"never"` | It acts on nothing, not even on a spike: a threshold meant for \
    gradients behind Adam, for example. |
    | `"late guard"` | After one number that is not finite some updates are no numbers \
    or zero for good: it was in a state before it reached the guard. |
    | `"inner guard"` | A step that a guard leaves out moves the parameters. |
    """

    kind: str
    sentence: str


class ClipUse(NamedTuple):
    """How one clip of a chain acted on the gradients that it was checked with.

    - `name`: `"before"`, `"after"`, or the number of its monitor, `"monitor 0"`.
    - `acted`: the fraction of the steps on which it changed anything.
    - `change`: by how much it changed what it was given, relative to that, over all
        steps.
    - `constant`: whether everything that came out had the same norm, to a percent.
    - `on_spike`: whether it acted on a gradient that was made a million times as long.
    - `grows`: whether what it is given is longer where gradients are: not so the
        updates of Adam.
    - `behind`: whether it is `after`, or what it is given does not grow.
    """

    name: str
    acted: float
    change: float
    constant: bool
    on_spike: bool
    grows: bool
    behind: bool


class ChainCheck(eqx.Module):
    """How the clips and the optimiser of a chain go together.

    **Fields:**

    - `steps`: how many gradients it was checked with.
    - `scale`: how much the optimiser's updates, without the clip, change where all
        gradients are ten times as long, relative to them: 9 for SGD, 0 for an optimiser
        that does not heed the gradient's scale.
    - `effect`: how much the clip before the optimiser changes its updates, relative to
        those without it; of a whole chain, all clips of this library in it.
    - `shortening`: the updates' length with the clip over that without, the median over
        the steps. These three are NaN where the clips in a chain cannot be left out,
        as through `optax.MultiSteps`.
    - `clips`: a [`jaxclip.diagnosis.ClipUse`][] of each clip that could be watched.
    - `findings`: a [`jaxclip.diagnosis.Finding`][] of each thing that is wrong; empty
        if nothing was found.
    """

    steps: int
    scale: float
    effect: float
    shortening: float
    clips: tuple[ClipUse, ...]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [f"{f.kind}: {f.sentence}" for f in self.findings]
        lines = lines or [f"Nothing was found on {self.steps} gradients."]
        if not self.clips:
            lines.append(
                "No clip could be watched: give it as `before` or `after`, or wrap it "
                "in `monitor`."
            )
        for clip in self.clips:
            spike = "" if clip.on_spike else ", not on a spike either"
            acted = f"{clip.name}: acted on {clip.acted:.0%} of the steps{spike}"
            lines.append(f"{acted}; changed what it was given by {clip.change:.2g}")
        if math.isnan(self.effect):
            lines.append(
                "The clips could not be left out through what wraps them, so that "
                "their effect is not known: give a clip as `before`."
            )
            return "\n".join(lines)
        lines.append(
            f"gradients ten times as long change the updates by {self.scale:.2g}; "
            f"clips change them by {self.effect:.2g}, to {self.shortening:.2g} of "
            "their length"
        )
        return "\n".join(lines)
