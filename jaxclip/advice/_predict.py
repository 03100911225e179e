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

from ._law import MomentTable
from ._reference import Reference
from ._runs import Settings

# Longer runs are solved with several steps at a time.
_MOST_STEPS = 4000
_RECORDS = 100


@dataclass(frozen=True)
class Prediction:
    """What the risk ODE says of one table and one length of run.

    - `law`: its coefficients, as a table over risks and thresholds.
    - `eigenvalues`: shape `(m,)`, of the features' covariance.
    - `start`: shape `(m,)`, the start's excess risk in each eigendirection, in units of
        the target's variance.
    - `feature_norm`: the root of the covariance's trace.
    - `steps`: the length of a run, in steps of one row each.
    """

    law: MomentTable
    eigenvalues: np.ndarray
    start: np.ndarray
    feature_norm: float
    steps: int

    @classmethod
    def of(
        cls, reference: Reference, residuals: np.ndarray, steps: int
    ) -> "Prediction":
        """The ODE of the rows: their spectrum, and the error of the start.

        **Arguments:**

        - `reference`: has the covariance, and stands for the best parameters.
        - `residuals`: shape `(n,)`, those of the reference.
        - `steps`: the length of a run.
        """
        values, vectors = np.linalg.eigh(reference.covariance)
        kept = values > 1e-10 * values[-1]
        error = reference.solution @ vectors[:, kept]
        start = values[kept] * error**2 / 2
        # A start at the solution has no risk, and no scale of its own.
        least = 1e-6 * float(np.var(residuals))
        law = MomentTable.of(residuals, max(float(start.sum()), least))
        norm = float(np.sqrt(values[kept].sum()))
        return cls(law, values[kept], start, norm, steps)

    def curves(
        self, settings: Settings, profile: np.ndarray | None = None
    ) -> np.ndarray:
        """Shape `(settings, records + 1)`: the risk of each, from step 0 on, of runs
        whose rows are all fresh.

        **Arguments:**

        - `settings`: the learning rates and thresholds.
        - `profile`: shape `(m,)`, the threshold over the run in units of that at its
            end, for those settings that follow one; constant by default.
        """
        return self._solve(settings, profile)[0]

    def on_rows(self, settings: Settings, profile: np.ndarray, rows: int) -> np.ndarray:
        r"""Shape `(settings,)`: the final risk of runs that draw from so many rows.

        Such runs tend to a fit of those rows, whose own excess risk is about
        $\mathrm{second} / (2 n \mu^2)$ for each direction that has been learnt.

        **Arguments:**

        - `settings`, `profile`: as of `curves`.
        - `rows`: how many rows the runs draw from.
        """
        risk, learnt = self._solve(settings, profile)
        return risk[:, -1] + learnt / rows

    def _solve(self, settings: Settings, profile: np.ndarray | None):
        profile = np.ones(_RECORDS + 1) if profile is None else profile
        stride = -(-self.steps // _MOST_STEPS)
        found = [
            _solve(
                self.law,
                jnp.asarray(self.eigenvalues),
                jnp.asarray(self.start),
                jax.tree.map(jnp.asarray, part),
                jnp.asarray(profile),
                jnp.asarray(self.feature_norm),
                self.steps,
                stride,
            )
            for part in settings.chunks()
        ]
        risk, learnt = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return risk[: len(settings)], learnt[: len(settings)]

    @property
    def at(self) -> np.ndarray:
        """The steps at which the curves are given."""
        return np.linspace(0, self.steps, _RECORDS + 1)


@eqx.filter_jit
def _solve(law, eigenvalues, start, settings, profile, norm, steps, stride):
    """The curves, and what the rows of a table add to their end, times their number."""
    count = -(-steps // stride)
    clip, rate = settings.schedules(profile, steps)

    def moments(risk, step):
        i = _place(jnp.log(risk), law.risks)
        j = _place(jnp.log(clip.threshold(step) / norm), law.thresholds)
        return _look_up(law.mu, i, j), jnp.exp(_look_up(jnp.log(law.second), i, j))

    def advance(state, k):
        u, learnt = state
        step = k * stride
        mu, second = moments(jnp.sum(u, axis=1), step)
        q = rate(step)
        decay = 2 * (q * mu)[:, None] * eigenvalues[None, :] * stride
        # (1 - exp(-x)) / x is 1 at a rate of 0.
        safe = jnp.where(decay > 1e-9, decay, 1.0)
        mean = jnp.where(decay > 1e-9, -jnp.expm1(-safe) / safe, 1.0)
        noise = (q**2 * second)[:, None]
        forced = noise * eigenvalues[None, :] ** 2 / 2 * stride
        u = u * jnp.exp(-decay) + forced * mean
        return (u, learnt + decay / 2), jnp.sum(u, axis=1)

    u = jnp.broadcast_to(start[None, :], (len(settings.lr), len(start)))
    (last, learnt), risk = jax.lax.scan(
        advance, (u, jnp.zeros_like(u)), jnp.arange(count)
    )
    mu, second = moments(jnp.sum(last, axis=1), steps)
    directions = jnp.sum(jnp.expm1(-learnt) ** 2, axis=1)
    risk = jnp.concatenate([jnp.sum(u, axis=1)[None], risk])
    at = jnp.linspace(0, count, _RECORDS + 1).round().astype(int)
    return risk[at].T, directions * second / (2 * mu**2)


def _place(value, grid):
    """The interval of an evenly spaced grid that holds a value, and where it is there;
    beyond the ends, the ends."""
    at = jnp.clip((value - grid[0]) / (grid[1] - grid[0]), 0.0, len(grid) - 1.0)
    i = jnp.minimum(at.astype(int), len(grid) - 2)
    return i, at - i.astype(at.dtype)


def _look_up(table, rows, columns):
    """Between the four nearest values of a table."""
    (i, x), (j, y) = rows, columns
    low = (1 - y) * table[i, j] + y * table[i, j + 1]
    high = (1 - y) * table[i + 1, j] + y * table[i + 1, j + 1]
    return (1 - x) * low + x * high


@dataclass(frozen=True)
class Guess:
    """Where the ODE has the best settings, and what else is worth knowing of them.

    - `unclipped`, `clipped`: the best setting without a clip and the best with one, of
        any rate and threshold, each as [`jaxclip.advice.Settings`][] of one entry.
    - `profile`: shape `(m,)`, the best threshold over the run in units of that at its
        end.
    - `gain`: by which fraction the clip makes the final excess risk lower, not
        negative.
    """

    unclipped: Settings
    clipped: Settings
    profile: np.ndarray
    gain: float


def guess(prediction: Prediction, largest_lr: float) -> Guess:
    """The best settings by the ODE, on a grid.

    **Arguments:**

    - `largest_lr`: no rate above it is considered without a clip: the ODE does not know
        that rows with heavy tails make unclipped SGD unstable.
    """
    norm, law = prediction.feature_norm, prediction.law
    lrs = 2.0 ** np.arange(-12, 1) / norm**2
    plain = Settings.grid(lrs, [np.inf], [0, 1], [0])
    risk = prediction.curves(plain)[:, -1]
    allowed = np.where(plain.lr <= max(largest_lr, lrs[0]), risk, np.inf)
    unclipped, lowest = plain[int(np.argmin(allowed))], float(np.min(allowed))
    best = float(law.best(np.array([lowest]))[0]) * norm
    acts = np.isfinite(best)
    if not acts:
        # None helps: the search begins where one begins to act.
        best = float(np.exp(law.thresholds[-1])) * norm / 16
    # A clip may make larger rates than these stable, if it is tight.
    lrs = np.append(lrs, lrs[-1] * 2.0 ** np.arange(1, 5))
    grid = Settings.grid(lrs, best * 2.0 ** np.arange(-3, 4), [0, 1], [0])
    curves = prediction.curves(grid)
    top = int(np.argmin(curves[:, -1]))
    clipped, reached = grid[top], float(curves[top, -1])
    profile = _profile(law.best(curves[top]))
    return Guess(unclipped, clipped, profile, max(0.0, 1 - reached / lowest))


def _profile(thresholds: np.ndarray) -> np.ndarray:
    """Thresholds over those at the end; where there is none, the largest there is."""
    finite = np.isfinite(thresholds)
    if not finite[-1]:
        return np.ones_like(thresholds)
    largest = thresholds[finite].max()
    return np.where(finite, thresholds, largest) / thresholds[-1]
