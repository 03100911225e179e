"""From numbers to a sentence: whether to clip, how sure, and what would tell."""

from dataclasses import dataclass

import numpy as np

from ._measure import NORMAL, Gain

# A gain that is worth a threshold: smaller ones are not told apart from none.
MATERIAL = 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether to clip.

    - `decision`: "clip", "do not clip" or "cannot tell".
    - `sentence`: the decision with the measured difference and its 95% interval.
    - `reasons`: what explains it, and where the prediction differs and why.
    - `rows_needed`, `runs_needed`: where it cannot be told, about how many rows, or
        runs a split, would tell; None where it is not a matter of them.
    """

    decision: str
    sentence: str
    reasons: tuple[str, ...] = ()
    rows_needed: int | None = None
    runs_needed: int | None = None


def judge(gain: Gain, rows: int, runs: int) -> Verdict:
    """The verdict on the best with a clip against the best without.

    **Arguments:**

    - `gain`: what was measured.
    - `rows`, `runs`: how many rows there are, and runs in each split.
    """
    low, high = gain.interval
    size = f"{abs(gain.gain):.1%} {{}} (95% interval {_interval(gain)})"
    best = "on rows that it has not seen, the best SGD with a clip ends"
    if low > 0 and gain.gain >= MATERIAL:
        where = size.format("below that of the best without")
        return Verdict("clip", f"Clip: {best} with an excess risk {where}.")
    if high < MATERIAL:
        if gain.gain == 0.0 and gain.error == 0.0:
            return Verdict(
                "do not clip",
                "Do not clip: of all thresholds that were tried, none does better on "
                "rows that SGD has not seen than a threshold too large to act.",
            )
        how = size.format("lower" if gain.gain > 0 else "higher")
        return Verdict(
            "do not clip",
            f"Do not clip: {best} with an excess risk {how}, a gain of less than "
            f"{MATERIAL:.0%}.",
        )
    where = size.format("below" if gain.gain > 0 else "above")
    needed = _needed(gain, rows, runs)
    sentence = (
        f"Cannot tell: {best} with an excess risk {where} that of the best without, "
        f"which leaves open whether it gains {MATERIAL:.0%}. " + _would_tell(*needed)
    )
    return Verdict("cannot tell", sentence, (), *needed)


def _needed(gain: Gain, rows: int, runs: int) -> tuple[int | None, int | None]:
    """About how many rows, or runs a split, would decide, if the gain is as measured:
    errors fall with the root of their number."""
    if not np.isfinite(gain.error):
        return None, None
    # Either the interval leaves out no gain, or it leaves out a material one.
    wanted = max(
        gain.gain if gain.gain >= MATERIAL else 0.0, MATERIAL - gain.gain, 0.02
    )
    wanted = wanted / (1.1 * NORMAL)
    if gain.rows_error >= wanted * 0.9:
        return _round(rows * (gain.rows_error / (0.9 * wanted)) ** 2), None
    rest = np.sqrt(wanted**2 - gain.rows_error**2)
    return None, _round(runs * (gain.runs_error / rest) ** 2)


def _would_tell(rows: int | None, runs: int | None) -> str:
    if rows is not None:
        return (
            f"About {rows:,} rows would tell; more runs would not (the rows are the "
            "larger part of the error)."
        )
    if runs is not None:
        return f"About {runs:,} runs a split would tell: the option `runs`."
    return "Runs diverged at the best settings: a shorter run (`steps`) may tell."


def _round(value: float) -> int:
    """Up, to two digits."""
    unit = 10.0 ** max(np.floor(np.log10(max(value, 1.0))) - 1, 0.0)
    return int(np.ceil(value / unit) * unit)


def _interval(gain: Gain) -> str:
    # No clip gains more than all of the risk.
    low, high = gain.interval
    return f"{low:.0%} to {min(high, 1.0):.0%}"
