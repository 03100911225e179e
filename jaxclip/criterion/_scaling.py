r"""Scaling laws: how the risk falls with what a run costs, and with what size of model.

The exponents of power-law random features are those of arXiv:2405.15074: the risk of
SGD at a constant rate is, up to constants, the sum of the least loss of $d$ features,
the gradient flow of the target's power law, that of its distortion by the features, and
the noise of SGD. Which two of them meet where compute is best spent makes the phases.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import as_float, check, known, positive

# Where, for little decay of the inputs, the noise of SGD takes over.
_NOISY = 1 - 2**-0.5


class ScalingLaw(NamedTuple):
    r"""The law of the best use of compute on power-law random features.

    With $f$ the features times the samples that a run takes:

    - `phase`: the name of the phase in arXiv:2405.15074, from `"Ia"` to `"IVb"`.
    - `size`: the exponent $\xi$ of the best number of features, $d \sim f^\xi$.
    - `risk`: the exponent $\eta$ of the loss there, $f^{\eta}$, negative.
    """

    phase: str
    size: float
    risk: float


def scaling_law(alpha: float, beta: float) -> ScalingLaw:
    r"""The phase of power-law random features, and its compute-optimal exponents.

    For SGD on one sample a step, at a constant rate that is stable for every number $d$
    of features: of order one over the features' trace, so that it falls like
    $d^{2\alpha - 1}$ where $\alpha < 1/2$. The variables are many: in proportion to the
    features or, for $\alpha > 1/2$, more. A batch of fixed size changes constants only.

    The phases are those of arXiv:2405.15074, and the exponents follow from its four
    terms, with the time $t$ of gradient flow, steps times rate: the flow's own
    $t^{-(2\alpha + 2\beta - 1) / 2\alpha}$, the least loss
    $d^{-2\alpha + \max(0, 1 - 2\beta)}$, for $\alpha, \beta > 1/2$ the features'
    distortion $d^{-1} t^{-1 + 1 / 2\alpha}$, and for $\alpha > 1/4$ the noise of SGD,
    the rate times $t^{-2 + 1 / 2\alpha}$. On a boundary between phases the formulas of
    both sides agree.

    **Arguments:**

    - `alpha`, `beta`: the decays of the inputs and of the target, as of
        [`jaxclip.Spectrum`][]'s `power_law_features`; `alpha` positive, and the sum of
        the two above 1/2, without which the target's variance grows with the variables.

    **Returns:**

    A [`jaxclip.criterion.ScalingLaw`][].

    **Raises:**

    A `ValueError` where the two are not what is said above, or traced.
    """
    known(alpha=alpha, beta=beta)
    positive("alpha", alpha)
    a, b = float(alpha), float(as_float("beta", beta))
    if not 0.5 < a + b < np.inf:
        raise ValueError(
            "`alpha + beta` must be above 1/2: below, the variance of the target grows "
            f"with the number of variables, and there is no law. Got {a} + {b}."
        )
    # Of the loss as a power of the steps, times -2 alpha, while gradient flow rules.
    flow = 2 * a + 2 * b - 1
    if a >= 0.5 and b <= 0.5:
        size = 1 / (2 * a + 1)
        return ScalingLaw("Ia", size, -flow * size)
    if a >= 0.5 and b <= a:
        return ScalingLaw("II", b / (a + b), -flow / (2 * (a + b)))
    if a >= 0.5:
        return ScalingLaw("III", 0.5, (1 - 4 * a) / (4 * a))
    if b <= 0.5:
        return ScalingLaw("Ib", 0.5, -flow / 2)
    if a <= 0.25:
        size = flow / (2 * (2 * b - 1 + a * (3 - 2 * b)))
        return ScalingLaw("Ic", size, -2 * a * size)
    if a <= _NOISY:
        spent = 2 * b - a - 2 * a * b
        return ScalingLaw("IVb", (b - a) / spent, -flow * (1 - 2 * a) / (2 * spent))
    return ScalingLaw("IVa", 0.5, -a)


class ComputeOptimal(NamedTuple):
    """The least risk that some runs reach with each of some amounts of compute.

    - `risk`: shape `(f,)`, in the unit of the runs' risk; infinite where no run
        reports before and after that amount.
    - `run`: shape `(f,)`, the index of the run that has it.
    - `exponent`: shape `(f,)`, the slope of that run's risk in its compute there, both
        as logarithms; NaN where the risk is infinite. It is that of the envelope of
        many runs, since at the minimum the risk does not change with the run.
    """

    risk: Float[Array, " f"]
    run: Int[Array, " f"]
    exponent: Float[Array, " f"]


def compute_optimal(cost: Any, risk: Any, compute: Any) -> ComputeOptimal:
    """The best of many runs for each amount of compute: their lower envelope.

    Runs of any kind, such as those of models of several sizes, with several batches and
    learning rates, from one call of `vmap` or `sweep`. Between two reports the
    logarithm of the risk is taken to be linear in that of the cost.

    **Arguments:**

    - `cost`: shape `(n, s)`, what each of `n` runs has spent at each report: positive
        and increasing along a run, in any unit, such as features times samples. A first
        report at step 0 has cost nothing and is left out.
    - `risk`: shape `(n, s)`, positive; infinite or NaN where a run has diverged. For a
        scaling law the whole loss: the least loss of each size is added to its risk.
    - `compute`: shape `(f,)`, the amounts to compare at, in the unit of the cost.

    **Returns:**

    A [`jaxclip.criterion.ComputeOptimal`][].

    **Raises:**

    A `ValueError` where the shapes do not fit, or a cost is not as it is said above.
    """
    cost, compute = positive("cost", cost), positive("compute", compute)
    risk = as_float("risk", risk)
    if cost.ndim != 2 or cost.shape[1] < 2 or risk.shape != cost.shape:
        raise ValueError(
            "`cost` and `risk` must be tables of one shape, with a row for each run "
            f"and two reports or more. Got shapes {cost.shape} and {risk.shape}."
        )
    if compute.ndim != 1:
        raise ValueError(f"`compute` must be a vector. Got shape {compute.shape}.")
    cost = check(
        cost,
        lambda c: ~(c[:, 1:] > c[:, :-1]),
        "`cost` must increase along every run.",
    )
    return _envelope(jnp.log(cost), jnp.log(risk), jnp.log(compute))


@eqx.filter_jit
def _envelope(
    cost: Float[Array, "n s"], risk: Float[Array, "n s"], compute: Float[Array, " f"]
) -> ComputeOptimal:
    """The same of logarithms."""

    def one(costs, risks):
        last = len(costs) - 2
        at = jnp.clip(jnp.searchsorted(costs, compute, side="right") - 1, 0, last)
        slope = (risks[at + 1] - risks[at]) / (costs[at + 1] - costs[at])
        value = risks[at] + slope * (compute - costs[at])
        reached = (compute >= costs[0]) & (compute <= costs[-1]) & jnp.isfinite(value)
        return jnp.where(reached, value, jnp.inf), slope

    values, slopes = jax.vmap(one)(cost, risk)
    run = jnp.argmin(values, axis=0)
    column = jnp.arange(len(compute))
    best = values[run, column]
    slope = jnp.where(jnp.isfinite(best), slopes[run, column], jnp.nan)
    return ComputeOptimal(jnp.exp(best), run, slope)
