r"""What the risk ODE says of a table: which settings to look at, and what they reach.

$$\frac{dv_j}{dk} = -2 \gamma \mu \lambda_j v_j
+ \tfrac12 \gamma^2\, \mathrm{second}\, \lambda_j,$$

with the coefficients tabulated once over risks and thresholds, and many settings solved
side by side, a step of SGD at a time: over one step the coefficients are constant and
the decay is exact.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..problem import Empirical
from ._reference import Reference
from ._runs import Settings

# Risks and thresholds at which the coefficients are tabulated, and the components of
# the residuals' law in that: enough for a percent.
_RISKS, _THRESHOLDS, _ATOMS = 24, 48, 128
# Points of the integral between two thresholds: an even number.
_BETWEEN = 8
# Longer runs are solved with several steps at a time.
_MOST_STEPS = 4000
_RECORDS = 100


class Law(eqx.Module):
    """The coefficients of the ODE, tabulated in the logarithms of risk and threshold.

    - `risks`, `thresholds`: evenly spaced logarithms; thresholds are on the residual.
    - `mu`, `second`: shape `(risks, thresholds)`; the last threshold does not act.
    - `information`: shape `(risks,)`, the Fisher information of the residual.
    """

    risks: Float[Array, " r"]
    thresholds: Float[Array, " c"]
    mu: Float[Array, "r c"]
    second: Float[Array, "r c"]
    information: Float[Array, " r"]

    @classmethod
    def of(cls, residuals: np.ndarray, start: float) -> "Law":
        """That of residuals, for risks from that of the start down."""
        std = float(np.std(residuals))
        # Smoothed as a kernel estimate of its density would be: the score of a law of
        # atoms is a matter of the sample, not of what it is a sample of.
        width = 1.06 * min(std, 1.5 * _middle(residuals)) * len(residuals) ** -0.2
        noise = Empirical(jnp.asarray(residuals - np.mean(residuals)), _ATOMS)
        low = min(1e-6 * start, 1e-4 * std**2)
        risks = np.geomspace(low, 4 * max(start, std**2), _RISKS)
        most = 4 * max(np.abs(residuals).max(), 4 * np.sqrt(2 * risks[-1]))
        thresholds = np.geomspace(1e-2 * std, most, _THRESHOLDS)
        table = _tabulate(noise, jnp.asarray(risks), jnp.asarray(thresholds), width)
        return cls(*(jnp.log(jnp.asarray(v)) for v in (risks, thresholds)), *table)

    def criterion(self, risk: float) -> np.ndarray:
        """The clipping-comparison criterion of each threshold at a risk: mu^2 / second
        in units of its value where no threshold acts."""
        score = np.log(np.asarray(self.mu**2 / self.second))
        at = [np.interp(np.log(risk), np.asarray(self.risks), row) for row in score.T]
        return np.exp(np.array(at) - at[-1])

    def best(self, risk: np.ndarray) -> np.ndarray:
        """The threshold with the largest mu^2 / second at each risk, on the residual;
        infinite where none beats none."""
        score = np.log(np.asarray(self.mu**2 / self.second))
        logs = np.asarray(self.thresholds)
        top = np.argmax(score, axis=1)
        inner = np.clip(top, 1, len(logs) - 2)
        rows = np.arange(len(score))
        left, middle, right = (score[rows, inner + k] for k in (-1, 0, 1))
        curve = np.minimum(left - 2 * middle + right, -1e-12)
        shift = np.clip(0.5 * (left - right) / curve, -1, 1)
        best = logs[inner] + shift * (logs[1] - logs[0])
        best = np.where(score[rows, top] > score[:, -1] + 1e-6, best, logs[-1])
        found = np.interp(np.log(risk), np.asarray(self.risks), best)
        return np.where(found > logs[-2], np.inf, np.exp(found))


def _middle(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low) / 1.35


@eqx.filter_jit
def _tabulate(noise: Empirical, risks, thresholds, width):
    r"""mu, second and the Fisher information at every risk, for all thresholds at once.

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
        upper = jax.scipy.stats.norm.cdf((fine[:, None] - noise.means) / stds)
        lower = jax.scipy.stats.norm.cdf((-fine[:, None] - noise.means) / stds)
        outside = 1 - (upper - lower) @ noise.weights
        slope = 2 * fine * outside
        # Simpson's rule on each pair of intervals, so that the ends are thresholds.
        left, middle, right = slope[:-2:2], slope[1:-1:2], slope[2::2]
        pieces = (left + 4 * middle + right) * (fine[2::2] - fine[:-2:2]) / 6
        second = jnp.cumsum(pieces)[_BETWEEN // 2 - 1 :: _BETWEEN // 2]
        return 1 - outside[_BETWEEN::_BETWEEN], second, information(risk)

    def information(risk):
        stds = jnp.sqrt(2 * risk + noise.variances + width**2)
        size = jnp.append(-fine[::-1], fine[1:])
        z = (size[:, None] - noise.means) / stds
        parts = noise.weights * jnp.exp(-(z**2) / 2) / stds
        density = jnp.sum(parts, axis=1)
        slope = jnp.sum(-z / stds * parts, axis=1)
        square = jnp.where(density > 1e-30, slope**2 / jnp.maximum(density, 1e-30), 0.0)
        return jnp.trapezoid(square, size) / np.sqrt(2 * np.pi)

    return jax.lax.map(one, risks)


@dataclass(frozen=True)
class Prediction:
    """What the ODE says of one table and one length of run.

    - `law`: its coefficients; `eigenvalues`: shape `(m,)`, of the covariance.
    - `start`: shape `(m,)`, the start's excess risk in each eigendirection.
    - `feature_norm`: the root of the covariance's trace.
    - `steps`: the length of a run.
    """

    law: Law
    eigenvalues: np.ndarray
    start: np.ndarray
    feature_norm: float
    steps: int

    @classmethod
    def of(
        cls, reference: Reference, residuals: np.ndarray, steps: int
    ) -> "Prediction":
        values, vectors = np.linalg.eigh(reference.covariance)
        kept = values > 1e-10 * values[-1]
        error = reference.solution @ vectors[:, kept]
        start = values[kept] * error**2 / 2
        # A start at the solution has no risk, and no scale of its own.
        least = 1e-6 * float(np.var(residuals))
        law = Law.of(residuals, max(float(start.sum()), least))
        norm = float(np.sqrt(values[kept].sum()))
        return cls(law, values[kept], start, norm, steps)

    def curves(
        self, settings: Settings, profile: np.ndarray | None = None, best: bool = False
    ) -> np.ndarray:
        """Shape `(settings, records + 1)`: the risk of each, from step 0 on.

        **Arguments:**

        - `profile`: what a threshold that follows one follows.
        - `best`: the rule is the best of all, the score of the residuals' law, and
            `lr` its rate of descent.
        """
        profile = np.ones(2) if profile is None else profile
        stride = -(-self.steps // _MOST_STEPS)
        return np.asarray(
            _solve(
                self.law,
                jnp.asarray(self.eigenvalues),
                jnp.asarray(self.start),
                jax.tree.map(jnp.asarray, settings),
                jnp.asarray(profile),
                jnp.asarray(self.feature_norm),
                jnp.asarray(best),
                self.steps,
                stride,
            )
        )

    @property
    def at(self) -> np.ndarray:
        """The steps at which the curves are given."""
        return np.linspace(0, self.steps, _RECORDS + 1)


@eqx.filter_jit
def _solve(law, eigenvalues, start, settings, profile, norm, best, steps, stride):
    count = -(-steps // stride)
    clip, rate = settings.schedules(profile, steps)
    spacing = law.thresholds[1] - law.thresholds[0]
    gap = law.risks[1] - law.risks[0]

    def look_up(table, i, share_i, j, share_j):
        """Between the four nearest values of a table, for every setting."""
        low = (1 - share_j) * table[i, j] + share_j * table[i, j + 1]
        high = (1 - share_j) * table[i + 1, j] + share_j * table[i + 1, j + 1]
        return (1 - share_i) * low + share_i * high

    def place(value, first, gap, size):
        at = jnp.clip((value - first) / gap, 0.0, size - 1.0)
        i = jnp.minimum(at.astype(int), size - 2)
        return i, at - i

    def advance(u, k):
        risk = jnp.sum(u, axis=1)
        step = k * stride
        q = rate(step)
        cut = jnp.log(clip.threshold(step) / norm)
        i = place(jnp.log(risk), law.risks[0], gap, len(law.risks))
        j = place(cut, law.thresholds[0], spacing, len(law.thresholds))
        mu = jnp.where(best, 1.0, look_up(law.mu, *i, *j))
        second = jnp.exp(look_up(jnp.log(law.second), *i, *j))
        top = jnp.log(law.information)
        score = jnp.exp(-(1 - i[1]) * top[i[0]] - i[1] * top[i[0] + 1])
        noise = q**2 * jnp.where(best, score, second)
        decay = 2 * (q * mu)[:, None] * eigenvalues[None, :] * stride
        # (1 - exp(-x)) / x is 1 at a rate of 0.
        safe = jnp.where(decay > 1e-9, decay, 1.0)
        mean = jnp.where(decay > 1e-9, -jnp.expm1(-safe) / safe, 1.0)
        forced = noise[:, None] * eigenvalues[None, :] ** 2 / 2 * stride
        u = u * jnp.exp(-decay) + forced * mean
        return u, jnp.sum(u, axis=1)

    u = jnp.broadcast_to(start[None, :], (len(settings.lr), len(start)))
    _, risk = jax.lax.scan(advance, u, jnp.arange(count))
    risk = jnp.concatenate([jnp.sum(u, axis=1)[None], risk])
    at = jnp.linspace(0, count, _RECORDS + 1).round().astype(int)
    return risk[at].T


@dataclass(frozen=True)
class Guess:
    """Where the ODE has the best settings, and what else is worth knowing of them.

    - `unclipped`, `clipped`: the best of 1 setting each, of any rate and threshold.
    - `profile`: of the best threshold over the run, 1 at its end.
    - `gain`: what the clip gains.
    - `ceiling`: the final risk of the best of all rules, at its best constant or
        linearly decaying rate.
    """

    unclipped: Settings
    clipped: Settings
    profile: np.ndarray
    gain: float
    ceiling: float


def guess(prediction: Prediction, largest_lr: float) -> Guess:
    """The best settings by the ODE, on a grid.

    **Arguments:**

    - `largest_lr`: no rate above it is considered without a clip: the ODE does not know
        that rows with heavy tails make unclipped SGD unstable.
    """
    norm, law = prediction.feature_norm, prediction.law
    gaussian = 1 / norm**2
    lrs = gaussian * 2.0 ** np.arange(-12, 1)
    plain = Settings.grid(lrs, [np.inf], [0, 1], [0])
    risk = prediction.curves(plain)[:, -1]
    allowed = np.where(plain.lr <= max(largest_lr, lrs[0]), risk, np.inf)
    unclipped = plain[int(np.argmin(allowed))]
    lowest = float(np.min(allowed))
    best = law.best(np.array([max(lowest, 1e-12)]))[0] * norm
    if not np.isfinite(best):
        best = 1.5 * np.exp(float(law.thresholds[len(law.thresholds) // 2])) * norm
        acts = False
    else:
        acts = True
    cuts = best * 2.0 ** np.arange(-3, 4)
    grid = Settings.grid(lrs, cuts, [0, 1], [0])
    curves = prediction.curves(grid)
    top = int(np.argmin(curves[:, -1]))
    clipped, reached = grid[top], float(curves[top, -1])
    profile = _profile(law.best(np.maximum(curves[top], 1e-12))) if acts else np.ones(2)
    ceiling = float(prediction.curves(plain, best=True)[:, -1].min())
    return Guess(unclipped, clipped, profile, 1 - min(reached / lowest, 1.0), ceiling)


def _profile(thresholds: np.ndarray) -> np.ndarray:
    """Thresholds over those at the end; where there is none, the largest there is."""
    finite = np.isfinite(thresholds)
    if not finite[-1]:
        return np.ones(2)
    largest = thresholds[finite].max()
    return np.where(finite, thresholds, largest) / thresholds[-1]
