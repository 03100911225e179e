"""What SGD does on the rows of a table, where no limit is assumed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._curve import Curve
from .._types import Key, Schedule
from ..clip import AbstractClip, HardClip
from ..problem import Regression
from ..simulate import Blocked, simulate

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class RowsSearch:
    """The best constants found on the rows, and what clipping changes there.

    The settings are selected on one half of the keys and judged on the other, paired,
    so that `difference` is not flattered by the search.

    - `lrs`, `thresholds`: the grid that was searched; the last threshold is infinite.
    - `risk`: shape `(lrs, thresholds)`, the mean final risk over all keys.
    - `lr`, `threshold`: the best clipped setting; `lr_unclipped`: the best without.
    - `difference`: the final risk without clipping minus that with it, over the former.
    - `error`: its standard error over keys.
    """

    lrs: np.ndarray
    thresholds: np.ndarray
    risk: np.ndarray
    lr: float
    threshold: float
    lr_unclipped: float
    difference: float
    error: float


def run(
    problem: Regression,
    clip: AbstractClip,
    lr: Schedule,
    *,
    steps: int,
    every: int,
    keys: Array,
    progress: Progress,
    label: str,
    chunk: int = 8,
) -> Curve:
    """Runs of one setting, one for each key, a few at a time so as to show progress."""
    chunks = [keys[i : i + chunk] for i in range(0, len(keys), chunk)]
    curves = [
        jax.block_until_ready(_runs(problem, clip, lr, part, steps, every))
        for part in progress(chunks, label)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *curves)


def search(
    problem: Regression,
    rates: Sequence[float],
    thresholds: Sequence[float],
    *,
    steps: int,
    every: int,
    key: Key,
    progress: Progress,
    keys: int = 32,
) -> RowsSearch:
    """Constant learning rates and thresholds around a guess, on the rows themselves.

    All settings of one key see the same rows in the same order.

    **Arguments:**

    - `rates`: learning rates that the grid covers, with a factor of 8 on either side.
    - `thresholds`: thresholds that it covers, from an eighth to four times; and none.
    """
    lrs = _doubling(min(rates) / 8, max(rates) * 8)
    clips = np.append(_doubling(min(thresholds) / 8, max(thresholds) * 4), np.inf)
    label = "search on the rows"
    grid = jnp.asarray(lrs), jnp.asarray(clips)
    risk = np.stack(
        [
            np.asarray(_final_risks(problem, *grid, k, steps, every))
            for k in progress(jr.split(key, keys), label)
        ]
    )
    # A setting that diverges on any key is out.
    risk = np.where(np.isfinite(risk).all(axis=0), risk, np.inf)
    selection, held_out = risk[::2].mean(axis=0), risk[1::2]
    best = np.unravel_index(np.argmin(selection[:, :-1]), selection[:, :-1].shape)
    plain = int(np.argmin(selection[:, -1]))
    unclipped, clipped = held_out[:, plain, -1], held_out[:, best[0], best[1]]
    scale = unclipped.mean()
    paired = (unclipped - clipped) / scale
    return RowsSearch(
        lrs=lrs,
        thresholds=clips,
        risk=risk.mean(axis=0),
        lr=float(lrs[best[0]]),
        threshold=float(clips[best[1]]),
        lr_unclipped=float(lrs[plain]),
        difference=float(paired.mean()),
        error=float(paired.std(ddof=1) / np.sqrt(len(paired))),
    )


def _doubling(low: float, high: float) -> np.ndarray:
    """From `low` to at least `high` by factors of 2."""
    return low * 2.0 ** np.arange(np.ceil(np.log2(high / low)) + 1)


# The rows travel as an argument: as a constant they would be compiled in.
@eqx.filter_jit
def _runs(problem, clip, lr, keys, steps: int, every: int) -> Curve:
    def one(key):
        return simulate(problem, clip, lr, steps=steps, every=every, key=key)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _final_risks(problem, lrs, thresholds, key, steps: int, every: int) -> Array:
    """The final risk for each learning rate (rows) and threshold (columns)."""
    engine = Blocked(settings=lrs.size * thresholds.size)

    def one(lr, threshold):
        clip = HardClip(threshold)
        return final_risk(
            simulate(
                problem, clip, lr, steps=steps, every=every, key=key, engine=engine
            )
        )

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(lrs, thresholds)


def final_risk(curve: Curve) -> Float[Array, "..."]:
    """The mean risk over the last tenth of the records, which wanders less than the
    last one."""
    tail = max(1, curve.risk.shape[-1] // 10)
    return jnp.mean(curve.risk[..., -tail:], axis=-1)


def settles_at(problem: Regression, threshold: float) -> float:
    r"""The excess risk of the point where clipped SGD with a small rate comes to rest.

    It is where the mean clipped gradient vanishes, the minimum of a Huber loss with the
    threshold $c / \|a_i\|$ on row $i$; on skewed or heteroscedastic residuals that is
    not the least-squares solution. By iteratively reweighted least squares. Derived
    here.

    **Arguments:**

    - `threshold`: on the gradient's norm, positive.
    """
    X, y = np.asarray(problem.X, float), np.asarray(problem.y, float)
    norms = np.maximum(np.linalg.norm(X, axis=1), np.finfo(float).tiny)
    x = np.asarray(problem.optimum, float)
    for _ in range(500):
        residuals = np.maximum(np.abs(y - X @ x), np.finfo(float).tiny)
        root = np.sqrt(np.minimum(1.0, threshold / (norms * residuals)))
        new = np.linalg.lstsq(X * root[:, None], y * root, rcond=None)[0]
        moved = np.linalg.norm(new - x) / (1e-12 + np.linalg.norm(new))
        x = new
        if moved < 1e-9:
            break
    error = x - np.asarray(problem.optimum, float)
    return float(error @ np.asarray(problem.covariance, float) @ error / 2)
