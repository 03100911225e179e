"""The risk of SGD by the risk ODE, tabulated over rates and thresholds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..noise import Empirical

# Risks and thresholds at which the coefficients are tabulated, and the components of
# the residuals' law in that: enough for a percent.
_RISKS, _THRESHOLDS, _ATOMS = 24, 48, 128
# Points of the integral between two thresholds: an even number.
_BETWEEN = 8


class MomentTable(eqx.Module):
    """The coefficients of the ODE, tabulated in the logarithms of risk and threshold.

    - `risks`, `thresholds`: evenly spaced logarithms; thresholds are on the residual.
    - `mu`, `second`: shape `(risks, thresholds)`; the last threshold does not act.
    """

    risks: Float[Array, " r"]
    thresholds: Float[Array, " c"]
    mu: Float[Array, "r c"]
    second: Float[Array, "r c"]

    @classmethod
    def of(cls, residuals: np.ndarray, start: float) -> "MomentTable":
        """The table of a noise whose law is that of the residuals.

        **Arguments:**

        - `residuals`: shape `(n,)`, in the unit of the target.
        - `start`: the excess risk at step 0, in its squared unit: the table reaches
            from a few times that down to where hardly a run gets.
        """
        std = float(np.std(residuals))
        noise = Empirical(jnp.asarray(residuals - np.mean(residuals)), _ATOMS)
        low = min(1e-6 * start, 1e-4 * std**2)
        risks = np.geomspace(low, 4 * max(start, std**2), _RISKS)
        most = 4 * max(np.abs(residuals).max(), 4 * np.sqrt(2 * risks[-1]))
        thresholds = np.geomspace(1e-2 * std, most, _THRESHOLDS)
        table = _tabulate(noise, jnp.asarray(risks), jnp.asarray(thresholds))
        return cls(*(jnp.log(jnp.asarray(v)) for v in (risks, thresholds)), *table)

    @property
    def _score(self) -> np.ndarray:
        """The logarithm of mu^2 / second; below all that it is ever worth looking at
        where no residual of the sample is as small as a threshold."""
        return np.log(np.maximum(np.asarray(self.mu**2 / self.second), 1e-30))

    def criterion(self, risk: float) -> np.ndarray:
        """The clipping-comparison criterion of each threshold at a risk: mu^2 / second
        in units of its value where no threshold acts."""
        score = self._score
        at = [np.interp(np.log(risk), np.asarray(self.risks), row) for row in score.T]
        return np.exp(np.array(at) - at[-1])

    def best(self, risk: np.ndarray) -> np.ndarray:
        """The threshold with the largest mu^2 / second at each risk, on the residual;
        infinite where no threshold is better than no clip."""
        score = self._score
        logs = np.asarray(self.thresholds)
        top = np.argmax(score, axis=1)
        inner = np.clip(top, 1, len(logs) - 2)
        rows = np.arange(len(score))
        left, middle, right = (score[rows, inner + k] for k in (-1, 0, 1))
        curve = np.minimum(left - 2 * middle + right, -1e-12)
        shift = np.clip(0.5 * (left - right) / curve, -1, 1)
        best = logs[inner] + shift * (logs[1] - logs[0])
        best = np.where(score[rows, top] > score[:, -1] + 1e-6, best, logs[-1])
        tiny = np.finfo(float).tiny
        found = np.interp(np.log(np.maximum(risk, tiny)), np.asarray(self.risks), best)
        return np.where(found > logs[-2], np.inf, np.exp(found))


@eqx.filter_jit
def _tabulate(noise: Empirical, risks, thresholds):
    r"""mu and second at every risk, for all thresholds at once.

    With $F$ the law of the residual's size, $\mu(c) = F(c)$, and second follows from
    $d\,\mathrm{second}/dc = 2 c (1 - \mu)$: one integral along the thresholds in place
    of a quadrature for each of them.
    """
    # Between two thresholds, and from 0 to the first, where mu is as good as constant.
    fine = jnp.concatenate(
        [
            jnp.linspace(a, b, _BETWEEN, endpoint=False)
            for a, b in zip(jnp.append(0.0, thresholds)[:-1], thresholds, strict=True)
        ]
        + [thresholds[-1:]]
    )

    def one(risk):
        stds = jnp.sqrt(2 * risk + noise.variances)
        means, stds = noise.means[None, :], stds[None, :]
        upper = jax.scipy.special.ndtr((fine[:, None] - means) / stds)
        lower = jax.scipy.special.ndtr((-fine[:, None] - means) / stds)
        outside = 1 - (upper - lower) @ noise.weights
        slope = 2 * fine * outside
        # Simpson's rule on each pair of intervals, so that the ends are thresholds.
        left, middle, right = slope[:-2:2], slope[1:-1:2], slope[2::2]
        pieces = (left + 4 * middle + right) * (fine[2::2] - fine[:-2:2]) / 6
        second = jnp.cumsum(pieces)[_BETWEEN // 2 - 1 :: _BETWEEN // 2]
        return 1 - outside[_BETWEEN::_BETWEEN], second

    return jax.lax.map(one, risks)
