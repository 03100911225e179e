"""The schedule of the best of all rules."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._checks import count
from .._schedule import PiecewiseLinear, Ratio, check_rate
from .._types import RealScalarLike, Schedule
from ..clip import ScoreClip, unchecked_moments
from ..limit import clips_mean
from ..problem import LinearModel
from ..transform import AbstractScope, PerTree
from ._ceiling import ceiling
from ._knots import schedule_knots
from ._schedules import need_update
from ._setting import Setting


def score(
    problem: LinearModel,
    lr: RealScalarLike | Schedule,
    *,
    steps: int,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
) -> Setting:
    r"""The schedule of the best rule: the score of the residual's law at every step.

    The learning rate is compensated, $\gamma_k / \mu$, so that the descent is that of
    unclipped SGD with $\gamma_k$ and the noise is the smallest that any rule leaves.

    **Arguments:**

    - `problem`: what SGD runs on; symmetric noise, or the ceiling is not met.
    - `lr`: the learning rate of the unclipped run, per step.
    - `steps`: the length of the run.
    - `batch_size`, `scope`: as in [`jaxclip.simulate`][]; a batch with
        `scope=PerExample()`, whose ceiling that of the mean's clip does not reach.

    **Returns:**

    A [`jaxclip.criterion.Setting`][]: the rule and its learning rate, functions of the
    step, for `simulate` and `solve`.

    **Raises:**

    A `ValueError` where an argument is misused, and for a clip of a batch's mean.
    """
    if clips_mean(need_update("score", batch_size, scope)):
        raise ValueError(
            "`score` is a rule for examples: take `scope=PerExample()`, which loses "
            f"least. Got `batch_size={batch_size}` with {scope!r}."
        )
    knots = schedule_knots(count("steps", steps))
    risk = ceiling(problem, lr, steps=knots, batch_size=batch_size).risk
    clip = ScoreClip(
        problem.noise, PiecewiseLinear(knots, risk), problem.spectrum.feature_norm
    )

    mus = _mus(clip, knots)
    return Setting(clip, Ratio(check_rate(lr, knots), PiecewiseLinear(knots, mus)))


@eqx.filter_jit
def _mus(clip: ScoreClip, knots: Float[Array, " k"]) -> Float[Array, " k"]:
    """How much of the descent the rule leaves, at the knots."""

    def mu(step):
        risk = clip.risk(step)
        return unchecked_moments(clip, clip.noise, risk, clip.feature_norm, step).mu

    return jax.lax.map(mu, knots)
