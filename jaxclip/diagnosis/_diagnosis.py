"""What `diagnose` returns: the criteria with their errors, in words and as a figure."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# A criterion is told from 1, and the mean gradient from 0, by this many errors.
_SURE = 2.0


class Estimate(NamedTuple):
    """A number estimated from a sample, `value`, and its standard error, `error`, of
    the same shape."""

    value: Float[Array, "..."]
    error: Float[Array, "..."]


class Diagnosis(eqx.Module):
    r"""What clipping per example does to SGD now, for each threshold of a grid.

    **Fields:**

    - `thresholds`: shape `(t,)`, in the unit of the gradient's norm, increasing.
    - `norms`: shape `(b,)`, the gradient norm of each example.
    - `signal`: $\|E g\|^2$, the squared norm of the mean gradient. Without a signal of
        several standard errors the batch is too small for an answer.
    - `noise_scale`: $\operatorname{tr} \operatorname{Cov}(g) / \|E g\|^2$, the gradient
        noise scale (McCandlish et al. 2018, arXiv:1812.06162): in a batch of so many
        examples the noise of the mean gradient is as large as the mean. Dimensionless.
    - `mu`: shape `(t,)`, how much of the descent is left, dimensionless.
    - `nu`: shape `(t,)`, how much of the second moment is left, dimensionless.
    - `csc`: `mu / nu`, shape `(t,)`. Above 1, clipping widens the range of stable
        learning rates.
    - `ccc`: `mu^2 / nu`, shape `(t,)`. Above 1, clipped SGD at its best learning rate
        beats unclipped SGD at its own, now.

    All but the first two are pairs `(value, error)`. Inner products of means are
    estimated from two half-batches, averaged over every way to split the batch in two:
    that is the sum over all pairs of different examples. The errors are the
    jackknife's, which leaves out each example in turn.
    """

    thresholds: Float[Array, " t"]
    norms: Float[Array, " b"]
    signal: Estimate
    noise_scale: Estimate
    mu: Estimate
    nu: Estimate
    csc: Estimate
    ccc: Estimate

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
        return (self._band[0][self._best] > 1) & self._resolved

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
        return self.signal.value > _SURE * self.signal.error

    def __str__(self) -> str:
        norms = np.asarray(self.norms)
        low, middle, high = np.quantile(norms, [0, 0.5, 1])
        lines = [
            self._sentence(),
            f"{len(norms)} examples, gradient norms {low:.3g} to {high:.3g}, median "
            f"{middle:.3g}; squared mean gradient {self.signal.value:.3g} (standard "
            f"error {self.signal.error:.2g}), noise scale {self.noise_scale.value:.3g} "
            f"({self.noise_scale.error:.2g})",
            "",
            f"{'threshold':>10}{'clipped':>9}{'mu':>8}{'nu':>8}{'CSC':>16}{'CCC':>16}",
        ]
        for i, threshold in enumerate(np.asarray(self.thresholds)):
            clipped = np.mean(norms > threshold)
            pairs = (
                f"{e.value[i]:>8.3f} ± {e.error[i]:<5.3f}" for e in (self.csc, self.ccc)
            )
            lines.append(
                f"{threshold:>10.4g}{clipped:>9.1%}{self.mu.value[i]:>8.3f}"
                f"{self.nu.value[i]:>8.3f}{''.join(pairs)}"
                + "  <- best"
                * (i == int(self._best))
            )
        return "\n".join(lines)

    def _sentence(self) -> str:
        if not self._resolved:
            return (
                "Cannot tell: the mean gradient is lost in the noise of this batch. "
                "Take a larger one."
            )
        value, error = (float(number[self._best]) for number in self.ccc)
        measured = (
            f"at the threshold {self.threshold:.3g} the clipping-comparison criterion "
            f"is {value:.3f} (standard error {error:.2g})."
        )
        if self.helps:
            return f"Clipping per example helps now: {measured}"
        return f"Clipping per example is not seen to help now: {measured}"

    def plot(self, ax: Any = None, *, label: str | None = None) -> Any:
        """Draws the clipping-comparison criterion against the threshold, with a band of
        two standard errors on either side. Needs the extra `cli`.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `label`: the name of the curve in a legend.

        **Returns:**

        The axes.
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        if ax is None:
            _, ax = plt.subplots()
        (line,) = ax.plot(self.thresholds, self.ccc.value, label=label)
        band = (np.asarray(end) for end in self._band)
        ax.fill_between(self.thresholds, *band, color=line.get_color(), alpha=0.2, lw=0)
        ax.axhline(1, color="black", lw=1)
        ax.set(
            xscale="log",
            xlabel="threshold on the norm of an example's gradient",
            ylabel="clipping-comparison criterion",
        )
        # Within a decade or two matplotlib's own labels lie on top of each other.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        return ax
