"""From numbers to a sentence: whether to clip, and how sure that is."""

from dataclasses import dataclass

from ._rows import RowsSearch

# A gain that is worth a threshold: smaller ones are not told apart from none.
MATERIAL = 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether to clip.

    - `decision`: "clip", "do not clip" or "cannot tell".
    - `sentence`: the decision with the measured difference.
    - `reasons`: why prediction and rows differ, where they do.
    """

    decision: str
    sentence: str
    reasons: tuple[str, ...]


def judge(
    found: RowsSearch,
    *,
    intrinsic_dimension: float,
    leverage: float,
    predicted: float,
    settles: float,
    ratio: float,
    wander: float,
) -> Verdict:
    """The verdict on a data set.

    It is the rows' own: the best constants with clipping against the best without, on
    keys that their search has not seen. The prediction only adds reasons.

    **Arguments:**

    - `found`: the search on the rows.
    - `leverage`: the largest stable rate for Gaussian features over that of the rows.
    - `predicted`: the predicted gain of clipping, as a fraction.
    - `settles`: the excess risk where the clipped run comes to rest, over the final
        risk without clipping.
    - `ratio`: the final risk of the clipped runs over the predicted one.
    - `wander`: the standard deviation of that final risk over runs, over its mean.
    """
    gain, error = found.difference, found.error
    measured = f"{abs(gain):.1%} {{}} (standard error {error:.1%})"
    low, high = gain - 2 * error, gain + 2 * error
    if low > 0 and gain >= MATERIAL:
        decision = "clip"
        sentence = "Clip: on the rows the best clipped SGD ends with a risk " + (
            measured.format("below that of the best unclipped SGD")
        )
    elif high < MATERIAL:
        decision = "do not clip"
        if abs(gain) < 5e-4:
            how = "the same risk"
        else:
            how = measured.format("less risk" if gain > 0 else "more risk")
        sentence = (
            f"Do not clip: on the rows the best clipped SGD ends with {how}, so that "
            f"it gains less than {MATERIAL:.0%}"
        )
    else:
        decision = "cannot tell"
        word = "below" if gain > 0 else "above"
        sentence = (
            "Cannot tell: on the rows the best clipped SGD ends "
            f"{measured.format(word + ' the best unclipped SGD')}, "
            f"which leaves open whether it gains {MATERIAL:.0%}"
        )
    agrees = (predicted >= MATERIAL) == (decision == "clip")
    reasons = [
        f"the risk ODE predicts a gain of {predicted:.1%}"
        + ("" if decision == "cannot tell" else " and agrees" * agrees)
        + " and the rows contradict it" * (not agrees and decision != "cannot tell")
    ]
    if settles > 0.3:
        reasons.append(
            "at this threshold clipped SGD does not settle at least squares (skewed "
            "residuals, or a size that depends on the features): the point where it "
            f"does has {settles:.2g} times the final risk of unclipped SGD"
        )
    if leverage > 1.5:
        reasons.append(
            "single rows are far longer than the rest: unclipped SGD is stable only up "
            f"to a learning rate {leverage:.2g} times smaller than Gaussian features "
            "allow, and clipping acts on those rows too"
        )
    if intrinsic_dimension < 20:
        reasons.append(
            f"the intrinsic dimension is only {intrinsic_dimension:.2g}, where the ODE "
            f"is no law of single runs: they scatter by {wander:.0%} around their mean"
        )
    if not 0.8 < ratio < 1.25:
        reasons.append(
            f"the clipped runs end at {ratio:.2g} times the risk that the ODE predicts "
            "for them"
        )
    return Verdict(decision, sentence + ".", tuple(reasons))
