"""Noise in the labels."""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float

from ...._checks import count
from ...._types import Example, Key, Params, Step
from ....clip import AbstractClip
from ....noise import AbstractNoise
from ._fit import Fit
from ._known_clips import need_even, need_gaussian, need_one_clip
from ._label_drift import LabelStep, label_drift
from ._residual import AbstractResidualInjection


class Label(AbstractResidualInjection):
    r"""Noise added to the labels, afresh at every step.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i |f(w, x_i) - y_i - \eta_i|^2, \qquad
    \Sigma = c H, \quad c = 1/n \text{ or } 1/b.$$

    with the covariance $\sigma^2 \Sigma$ of the gradient on the zero-loss set and the
    Hessian $H$ of the loss there. Its regularizer is constant; on the slower scale, of
    the squared learning rate, it moves gradient descent by
    $-\tfrac{c}{4} P \nabla \mathrm{tr} H$, where $P$ projects on the tangent space of
    the set (Section 2 of arXiv:2404.12293).

    **Arguments:**

    - `noise`: the law of each $\eta_i$, in the unit of a label.
    - `batch_size`: $b$, how many examples a step sees, drawn with replacement, each
        with noise of its own; by default it sees all of them.

    **Raises:**

    A `ValueError` where `batch_size` is no positive Python integer.
    """

    noise: AbstractNoise
    batch_size: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.batch_size is not None:
            count("batch_size", self.batch_size)

    def shape(self, fit: Fit) -> tuple[int, ...]:
        return (fit.ys.size,)

    def noisy_residuals(
        self, fit: Fit, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        return fit.residuals(params) - noise

    def example(self, fit: Fit, key: Key) -> Example:
        if self.batch_size is None:
            return self.draw(fit, key)
        rows, noise = jr.split(key)
        outputs = fit.ys.size // fit.size
        drawn = self.noise.sample(noise, (self.batch_size * outputs,))
        return jr.randint(rows, (self.batch_size,), 0, fit.size), drawn

    def gradient(self, fit: Fit, params: Params, example: Example) -> Params:
        if self.batch_size is None:
            some, noise = fit, example
        else:
            rows, noise = example
            some = fit.take(rows)
        return some.gradient(lambda w: some.residuals(w) - noise, params)

    def diffusion(self, fit: Fit, params: Params) -> Float[Array, "d noise"]:
        # The derivative of the loss in the noise, and a batch of b examples has the
        # covariance of noise that is n/b times as large.
        scale = (fit.size / self._seen(fit)) ** 0.5
        return -fit.jacobian(params).T / fit.size * scale

    @property
    def power(self) -> int:
        return 2

    def drift(self, fit: Fit, params: Params, clip: AbstractClip, step: Step) -> Params:
        return label_drift(self._step(fit, clip, step), params)

    def check_clip(self, fit: Fit, clip: AbstractClip) -> None:
        clips = need_one_clip(fit, clip)
        if clips is None:
            return
        if clips == "residual_clip" or self._step(fit, clip, 0).sees_one:
            need_even(self.noise)
        elif self.batch_size is not None:
            raise ValueError(
                "`clip` of a gradient needs `batch_size=1`, for one output an example, "
                "or all of the examples (`batch_size=None`). Got "
                f"batch_size={self.batch_size}."
            )
        else:
            need_gaussian(self.noise, clips)

    def _seen(self, fit: Fit) -> int:
        """How many examples a step sees."""
        return fit.size if self.batch_size is None else self.batch_size

    def _step(self, fit: Fit, clip: AbstractClip, step: Step) -> LabelStep:
        return LabelStep(fit, self.noise, self._seen(fit), clip, step)
