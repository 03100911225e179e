"""What `diagnose` returns: the criteria of clipping with their errors."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._words import drawn, in_words

# A criterion is told from 1, and the mean gradient from 0, by this many errors.
_SURE = 2.0


class Estimate(NamedTuple):
    """A number estimated from a sample, `value`, and its standard error, `error`, of
    the same shape."""

    value: Float[Array, "..."]
    error: Float[Array, "..."]


class Diagnosis(eqx.Module):
    r"""What clipping does to SGD now, for each threshold of a grid.

    **Fields:**

    - `thresholds`: shape `(t,)`, in the unit of the gradient's norm, increasing.
    - `norms`: shape `(b,)`, of each gradient that is clipped: of an example, or of the
        mean of a group of them.
    - `signal`: $\|E g\|^2$, the squared norm of the mean gradient. Without a signal of
        several standard errors the batch is too small for an answer. In float32 it is 0
        where the norm is below 1e-19; no answer is taken from it.
    - `noise_scale`: $\operatorname{tr} \operatorname{Cov}(g) / \|E g\|^2$, the gradient
        noise scale (McCandlish et al. 2018, arXiv:1812.06162): in a batch of so many
        examples the noise of the mean gradient is as large as the mean. Dimensionless.
    - `mu`: shape `(t,)`, how much of the descent is left, dimensionless.
    - `nu`: shape `(t,)`, how much of the second moment is left, dimensionless.
    - `csc`: `mu / nu`, shape `(t,)`. Above 1, clipping widens the range of stable
        learning rates.
    - `ccc`: `mu^2 / nu`, shape `(t,)`. Above 1, clipped SGD at its best learning rate
        beats unclipped SGD at its own, now.
    - `batch_size`, `group`: how many examples a step averages, and how many of them are
        clipped as one.
    - `noise_multiplier`: of the noise that `nu` has beside the clip, or `None`.
    - `batch`: the diagnosis of clipping the mean of `batch_size` examples, from the
        same examples and against the same step without a clip; or `None`.
    - `advantage`: the logarithm of the best `ccc` over the best one of `batch`, and its
        error, which is that of the difference: what both have in common cancels. The
        largest of several estimates is a little too large, on either side.

    `signal` to `ccc` are pairs `(value, error)`. Inner products of means are estimated
    from two half-batches, averaged over every way to split the batch in two: that is
    the sum over all pairs of different examples, or groups. The errors are the
    jackknife's, which leaves out each example or group in turn.
    """

    thresholds: Float[Array, " t"]
    norms: Float[Array, " b"]
    # In the unit of the largest norm, squared: in float32 a square under- or overflows.
    _signal: Estimate
    noise_scale: Estimate
    mu: Estimate
    nu: Estimate
    csc: Estimate
    ccc: Estimate
    batch_size: int = eqx.field(static=True)
    group: int = eqx.field(static=True)
    noise_multiplier: Float[Array, ""] | None
    batch: "Diagnosis | None" = None
    advantage: Estimate | None = None

    @property
    def signal(self) -> Estimate:
        """The squared norm of the mean gradient, in the gradient's unit squared."""
        unit = jnp.max(self.norms, axis=-1)
        return Estimate(*(number * unit * unit for number in self._signal))

    @property
    def threshold(self) -> Float[Array, ""]:
        """The threshold of the grid with the largest criterion, helpful or not.

        Where the criterion is flat, others are as good for the next step. Over a whole
        training the smaller of them were better where it was measured (labels in part
        wrong), so that this is not the largest that the errors allow.
        """
        return self.thresholds[self._best]

    @property
    def helps(self) -> Bool[Array, ""]:
        """Whether the criterion there is above 1 by more than two standard errors of
        its logarithm, and the mean gradient above 0."""
        above = (self._band[0] > 1) & (self.mu.value > 0)
        return above[self._best] & self._resolved

    @property
    def _band(self) -> tuple[Float[Array, " t"], Float[Array, " t"]]:
        """Two standard errors on either side of the criterion."""
        # Of the logarithm: a ratio's own error grows with the ratio, so that the
        # largest would be told from 1 last.
        factor = jnp.exp(_SURE * self.ccc.error / self.ccc.value)
        return self.ccc.value / factor, self.ccc.value * factor

    @property
    def _best(self) -> Any:
        # With a negative mu the clipped step climbs, which the square in it hides.
        return jnp.argmax(jnp.where(self.mu.value > 0, self.ccc.value, 0.0))

    @property
    def _resolved(self) -> Bool[Array, ""]:
        return self._signal.value > _SURE * self._signal.error

    def __str__(self) -> str:
        return in_words(self)

    def plot(self, ax: Any = None, *, label: str | None = None) -> Any:
        """Draws the clipping-comparison criterion against the threshold, with a band of
        two standard errors on either side; where there is a diagnosis of batches, its
        curve beside it. Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `label`: the name of the curve in a legend.

        **Returns:**

        The axes.
        """
        return drawn(self, ax, label)
