"""The policies that say how long a gradient shall be, not only how long it may be."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..._checks import check, fraction, nonnegative
from ..._schedule import as_schedule
from ..._types import Schedule, Step
from .._base import AbstractClip
from .._normalize import Rescale
from ._base import AbstractMaskedPolicy
from ._counted import mean_of


def _at_least_one(value: Any) -> Array:
    return check(
        nonnegative("max_raise", value, in_step=True),
        lambda x: x < 1,
        "`max_raise` must be at least 1.",
        in_step=True,
    )


def _below_one(name: str, value: Any) -> Array:
    return check(
        fraction(name, value, in_step=True),
        lambda x: x >= 1,
        f"`{name}` must be below 1: the first norm would never count.",
        in_step=True,
    )


class AGGC(AbstractMaskedPolicy):
    r"""Brings the norm into a band around its running mean: AGGC.

    $$c_t = \min\{\max\{n_t, L_t\}, U_t\}, \qquad L_t = \max\{n_{\min}, \alpha_t S_t\},
    \quad U_t = \beta_t S_t, \qquad S_{t+1} = \gamma S_t + (1 - \gamma) c_t.$$

    A norm above the band is shortened and one below it is raised, which is why the rule
    of this policy is [`jaxclip.clip.Rescale`][]; with `rule=HardClip` the gradient is
    only shortened. A band that is wide at first and narrow later is two schedules:

    ```python
    low = optax.linear_schedule(0.2, 0.8, transition_steps=300, transition_begin=400)
    high = optax.linear_schedule(2.0, 1.2, transition_steps=300, transition_begin=400)
    clip = jc.Adaptive(jc.policy.AGGC(low, high, min_norm=0.01, max_raise=1.1))
    ```

    Each group of parameters has a norm and a mean of its own. A group is a leaf under
    [`jaxclip.PerLeaf`][]; several leaves are one group in a part of
    `optax.partition`, where each label has a transform of its own.

    (Li, Wu & Chang 2026, arXiv:2601.11864. The mean is that of the norms as they come
    out, before this one, and the bounds cross in favour of the upper one: as in the
    authors' published code. There the mean starts at 0, from where it would hold
    gradients short; here it starts at the first norm that is not 0, which is left
    alone. The band's limits have no default, as none is known to be good in general.)

    **Arguments:**

    - `low`, `high`: $\alpha$ and $\beta$, dimensionless, the limits of the band in
        multiples of the mean: numbers, arrays or functions of the step. $\alpha = 0$
        raises nothing.
    - `decay`: $\gamma$, from 0 to 1.
    - `min_norm`: $n_{\min} \ge 0$, a length below which nothing is left, in the unit of
        the gradient's norm; the upper limit goes before it.
    - `max_raise`: the most that a gradient is multiplied by, at least 1; infinite by
        default. Without such a bound a group that has all but converged is moved along
        what noise is left of its gradient.
    """

    rule: ClassVar[Callable[[Any], AbstractClip]] = Rescale

    low: Schedule = eqx.field(converter=partial(as_schedule, name="low"))
    high: Schedule = eqx.field(converter=partial(as_schedule, name="high"))
    decay: Float[Array, ""] = eqx.field(
        converter=partial(fraction, "decay", in_step=True), default=0.98
    )
    min_norm: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "min_norm", in_step=True), default=0.0
    )
    max_raise: Float[Array, ""] = eqx.field(converter=_at_least_one, default=np.inf)

    def init(self, dtype: Any, index: Int[Array, ""]) -> Float[Array, ""]:
        del index
        # A mean of 0 is none: norms of 0 are left out of it.
        return jnp.zeros((), dtype)

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: Float[Array, ""],
        step: Step,
    ) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        lower = jnp.maximum(self.min_norm, self.low(step) * state)
        within = jnp.minimum(jnp.maximum(norms, lower), self.high(step) * state)
        some = norms > 0
        # Infinity times 0 is no number, under a `where` too.
        most = jnp.where(some, self.max_raise * jnp.where(some, norms, 1.0), 0.0)
        within = jnp.where(state > 0, jnp.minimum(within, most), norms)
        mean = mean_of(within, counted)
        after = self.decay * state + (1 - self.decay) * mean
        return within, jnp.where(state > 0, after, mean)


class NormMoments(NamedTuple):
    """What is known of the norms' two moments.

    - `mean`: the running mean, which starts at 0.
    - `root`: the root of the running mean square, which starts at 0.
    - `seen`: how many updates they hold.
    """

    mean: Float[Array, ""]
    root: Float[Array, ""]
    seen: Int[Array, ""]


class GradientStabilizer(AbstractMaskedPolicy):
    r"""Replaces the norm by a ratio of its running moments and keeps the direction.

    $$c_t = \frac{m_t / (1 - \gamma_1^t)}{\sqrt{v_t / (1 - \gamma_2^t)}}, \qquad
    m_t = \gamma_1 m_{t-1} + (1 - \gamma_1) n_t, \quad
    v_t = \gamma_2 v_{t-1} + (1 - \gamma_2) n_t^2$$

    (Huang et al. 2025, arXiv:2502.17055, whose first versions call it AdaGN). It is
    dimensionless and about 1: there is no threshold to choose, and a learning rate that
    was found for gradients of another size has to be found again, unless Adam follows.
    A steady norm comes out as 1, and after many updates a spike that dwarfs all before
    it as $(1 - \gamma_1) / \sqrt{1 - \gamma_2}$, 0.95 by default, however long it was.

    The paper normalises each matrix by its own norm, which is the scope
    [`jaxclip.PerLeaf`][]:

    ```python
    clip = jc.Adaptive(jc.policy.GradientStabilizer())
    optax.chain(jc.as_transform(clip, jc.PerLeaf()), optax.adam(1e-3))
    ```

    The rule of this policy is [`jaxclip.clip.Rescale`][]: another one would only
    shorten. The paper's constant in the denominator is left out, which is there against
    a division of 0 by 0: a zero gradient stays zero here and is not counted. Updates
    are counted for each part by itself.

    **Arguments:**

    - `decay`: $\gamma_1$, from 0 to below 1.
    - `square_decay`: $\gamma_2$, from 0 to below 1.
    """

    rule: ClassVar[Callable[[Any], AbstractClip]] = Rescale

    decay: Float[Array, ""] = eqx.field(
        converter=partial(_below_one, "decay"), default=0.7
    )
    square_decay: Float[Array, ""] = eqx.field(
        converter=partial(_below_one, "square_decay"), default=0.9
    )

    def init(self, dtype: Any, index: Int[Array, ""]) -> NormMoments:
        del index
        # Each its own array: a buffer can be donated once.
        zero, none = jnp.zeros((), dtype), jnp.zeros((), dtype)
        return NormMoments(zero, none, jnp.zeros((), jnp.int32))

    def threshold_of(
        self,
        norms: Float[Array, " n"],
        counted: Bool[Array, " n"],
        state: NormMoments,
        step: Step,
    ) -> tuple[Float[Array, ""], NormMoments]:
        del step
        seen = state.seen + 1
        mean = self.decay * state.mean + (1 - self.decay) * mean_of(norms, counted)
        # In a unit of their own size: the squares alone over- and underflow.
        unit = jnp.maximum(state.root, jnp.max(jnp.where(counted, norms, 0.0)))
        # Written so that a number that is none gives none.
        some = ~(unit <= 0)
        unit = jnp.where(some, unit, 1.0)
        square = mean_of((norms / unit) ** 2, counted)
        before = (state.root / unit) ** 2
        square = self.square_decay * before + (1 - self.square_decay) * square
        root = unit * jnp.sqrt(jnp.where(some, square, 1.0))
        ratio = mean / (1 - self.decay**seen) / root
        ratio = ratio * jnp.sqrt(1 - self.square_decay**seen)
        return jnp.where(some, ratio, 0.0), NormMoments(mean, root, seen)
