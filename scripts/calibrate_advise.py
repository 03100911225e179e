"""Is what `jaxclip.advise` says true? On tables whose truth is known, many times over.

Tables are drawn from eight laws of noise, with Gaussian and with heavy-tailed features,
in three sizes. Each is given to `advise`. The truth is then found without it: SGD is
run at the settings that it names, on the table's own rows, and the excess risk is
worked out from the true coefficients; and a fine grid of settings is run in the same
way, for the best that could have been recommended.

    python scripts/calibrate_advise.py            # all of it: hours
    python scripts/calibrate_advise.py --quick    # a few tables, for CI

Prints a row for each law, features and size, then the claims with their verdicts, and
exits with an error where one fails. In `results/calibrate_advise/`, `tables.csv` has a
line a table and `claims.csv` one a claim.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_least, at_most

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

FOLDER = Path("results") / "calibrate_advise"
SIZES = ((500, 10), (4000, 10), (2000, 60))
# Runs that a true risk is the mean of: of the settings named, and of the grid's.
NAMED_RUNS, GRID_RUNS = 64, 8

Law = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _skewed(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.exponential(size=size) - 1


LAWS: dict[str, Law] = {
    "gaussian": lambda rng, X: rng.standard_normal(len(X)),
    "uniform": lambda rng, X: rng.uniform(-np.sqrt(3), np.sqrt(3), len(X)),
    "laplace": lambda rng, X: rng.laplace(size=len(X)) / np.sqrt(2),
    "t3": lambda rng, X: rng.standard_t(3, len(X)),
    "5% outliers": lambda rng, X: (
        np.where(rng.uniform(size=len(X)) < 0.05, 10, 1) * rng.standard_normal(len(X))
    ),
    "skewed": lambda rng, X: _skewed(rng, len(X)),
    "heteroscedastic": lambda rng, X: (
        np.exp(0.7 * rng.standard_normal(len(X))) * rng.standard_normal(len(X))
    ),
    # Skewed, and of a size that depends on a feature: a tight clip settles elsewhere.
    "dependent": lambda rng, X: np.exp(0.5 * X[:, 0]) * _skewed(rng, len(X)),
}
# Independent columns of variance 1.
FEATURES = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    "heavy": lambda rng, shape: rng.standard_t(5, shape) * np.sqrt(3 / 5),
}


@dataclass(frozen=True)
class Row:
    """What was said of one table, and what is true of it."""

    law: str
    features: str
    rows: int
    columns: int
    seed: int
    decision: str
    gain: float
    low: float
    high: float
    true_gain: float
    ratio: float
    seconds: float

    @property
    def covered(self) -> bool:
        # The true gain is itself a mean over runs, known to a percent.
        return self.low - 0.01 <= self.true_gain <= self.high + 0.01


def draw(law: str, features: str, shape: tuple[int, int], seed: int):
    """A table and its true coefficients."""
    rng = np.random.default_rng([seed, *shape, *map(ord, law + features)])
    X = FEATURES[features](rng, shape)
    coefficients = rng.standard_normal(shape[1]) / np.sqrt(shape[1])
    return X, X @ coefficients + LAWS[law](rng, X), coefficients


class Truth:
    """True excess risks of runs on the rows of one table."""

    def __init__(self, X: np.ndarray, y: np.ndarray, coefficients: np.ndarray):
        self.scale, self.spread = y.std(), X.std(axis=0)
        self.rows = jc.Regression(
            (X - X.mean(axis=0)) / self.spread, (y - y.mean()) / self.scale
        )
        self.coefficients = coefficients

    def __call__(self, params: np.ndarray) -> np.ndarray:
        """Half the squared distance to the true coefficients, in the target's variance:
        the columns are independent, with variance 1."""
        error = np.asarray(params) * self.scale / self.spread - self.coefficients
        with np.errstate(over="ignore", invalid="ignore"):
            risk = np.sum(error**2, axis=-1) / 2 / self.scale**2
        return np.where(np.isfinite(risk), risk, np.inf)

    def of(self, setting, key) -> float:
        """The mean true risk of runs at a setting that `advise` named."""
        at = np.arange(setting.steps)
        cut = setting.threshold_at(at) if setting.clips else np.full(len(at), np.inf)
        return self.on_schedule(setting.rate_at(at), cut, key)

    def on_schedule(self, rates: np.ndarray, cuts: np.ndarray, key) -> float:
        """The same for a rate and a threshold at every step."""
        keys, steps = jr.split(key, NAMED_RUNS), len(rates)
        params = _runs(self.rows, jnp.asarray(rates), jnp.asarray(cuts), keys, steps)
        return float(self(params).mean())

    def best(self, steps: int, key) -> float:
        """The smallest mean true risk over a fine grid of rates and thresholds, in runs
        other than those by which it was found the smallest."""
        norm = float(np.sqrt(self.rows.X.shape[1]))
        size = float(np.median(np.abs(np.asarray(self.rows.residuals))))
        lrs = np.geomspace(2.0**-11, 2.0**-1, 21) / norm**2
        cuts = np.append(size * norm * np.geomspace(0.25, 32, 15), np.inf)
        keys = jr.split(key, GRID_RUNS)
        risks = [
            self(_grid(self.rows, jnp.asarray(lrs), jnp.asarray(cuts), d, keys, steps))
            for d in (0.0, 1.0)
        ]
        mean = np.mean(risks, axis=1)
        falls, i, j = np.unravel_index(np.argmin(mean), mean.shape)
        rates = lrs[i] * (1 - falls * np.arange(steps) / steps)
        fresh = jr.fold_in(key, 1)
        return self.on_schedule(rates, np.full(steps, cuts[j]), fresh)


class Read(eqx.Module):
    """A schedule that is read from a vector of its values."""

    values: jax.Array

    def __call__(self, step):
        return self.values[jnp.asarray(step, int)]


@eqx.filter_jit
def _runs(rows, rates, cuts, keys, steps):
    def one(key):
        clip, lr = jc.HardClip(Read(cuts)), Read(rates)
        run = jc.simulate(rows, clip, lr, steps=steps, every=steps, key=key)
        return run.params

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _grid(rows, lrs, cuts, decays, keys, steps):
    engine = jc.Blocked(settings=lrs.size * cuts.size)

    def one(key, lr, cut):
        return jc.simulate(
            rows,
            jc.HardClip(cut),
            lambda k: lr * (1 - decays * k / steps),
            steps=steps,
            every=steps,
            key=key,
            engine=engine,
        ).params

    settings = jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None))
    return jax.vmap(settings, (0, None, None))(keys, lrs, cuts)


def check(law: str, features: str, shape: tuple[int, int], seed: int) -> Row:
    X, y, coefficients = draw(law, features, shape, seed)
    start = time.perf_counter()
    advice = jc.advise(X, y, key=jr.key(seed), progress=False)
    seconds = time.perf_counter() - start
    truth, key = Truth(X, y, coefficients), jr.key(1000 + seed)
    plain = truth.of(advice.outcomes["unclipped"].recipe, key)
    clipped = truth.of(advice.outcomes["scheduled"].recipe, key)
    named = truth.of(advice.recommended, key)
    low, high = advice.gain.interval
    return Row(
        law,
        features,
        *shape,
        seed,
        advice.verdict.decision,
        advice.gain.gain,
        low,
        high,
        1 - clipped / plain,
        named / truth.best(advice.steps, jr.fold_in(key, 1)),
        seconds,
    )


def summary(rows: list[Row]) -> list[Claim]:
    """The claims, each over all tables that it is about."""

    def share(what, of) -> float:
        of = list(of)
        return 100 * sum(map(what, of)) / max(len(of), 1)

    middle = [row for row in rows if (row.rows, row.columns) == (4000, 10)]
    ratios = [row.ratio for row in rows]
    return [
        at_most(
            '"clip" where the true gain is below 0, of 100 tables',
            share(lambda r: r.decision == "clip" and r.true_gain < 0, rows),
            2,
        ),
        at_most(
            '"do not clip" where the true gain is above 20%, of 100 tables',
            share(lambda r: r.decision == "do not clip" and r.true_gain > 0.2, rows),
            5,
        ),
        at_least(
            "95% intervals that cover the true gain, of 100",
            share(lambda r: r.covered, rows),
            90,
        ),
        at_most(
            "true risk of the recommended setting over the best of a fine grid, median",
            np.median(ratios),
            1.25,
        ),
        # On 500 rows this fails: neither the risk on rows held out nor the ODE, nor any
        # mixture of them that was tried, picks within 2 on every table.
        at_most("the same, the largest", np.max(ratios), 2),
        at_most(
            '"cannot tell" at 4000 x 10, of 100 tables',
            share(lambda r: r.decision == "cannot tell", middle),
            100 / 3,
        ),
    ]


def cells(quick: bool):
    """Law, features, size and the number of tables."""
    if quick:
        for law in ("gaussian", "t3", "5% outliers"):
            yield law, "Gaussian", (500, 10), 2
        return
    for shape in SIZES:
        for features in FEATURES:
            for law in LAWS:
                yield law, features, shape, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few tables, for CI")
    parser.add_argument("--tables", type=int, help="of each kind, in place of 12")
    parser.add_argument("--out", type=Path, help="a folder for all that is written")
    arguments = parser.parse_args()
    folder = arguments.out or FOLDER / ("quick" if arguments.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    names = [field.name for field in fields(Row)]
    head = f"{'noise':<16}{'features':<10}{'rows':>6}{'cols':>5}  clip/not/?"
    print(f"{head}  true gain  covered  risk/best: median, largest  seconds")
    with (folder / "tables.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for law, features, shape, count in cells(arguments.quick):
            cell = []
            for seed in range(arguments.tables or count):
                cell.append(check(law, features, shape, seed))
                writer.writerow(asdict(cell[-1]))
                file.flush()
            rows += cell
            print(_line(cell), flush=True)
    print(f"\n{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    claims = summary(rows)
    for claim in claims:
        print(claim)
    Report(folder, 0, arguments.quick).write(claims)
    failed = sum(not claim.holds for claim in claims)
    largest = max(rows, key=lambda row: row.ratio)
    print(
        f"\nThe largest ratio is {largest.ratio:.2f}: {largest.law}, {largest.features}"
    )
    print(f"\n{len(rows)} tables; {failed} claims fail. A line a table: {folder}")
    sys.exit(failed > 0)


def _line(cell: list[Row]) -> str:
    first = cell[0]
    counts = "/".join(
        str(sum(row.decision == decision for row in cell))
        for decision in ("clip", "do not clip", "cannot tell")
    )
    ratios = [row.ratio for row in cell]
    return (
        f"{first.law:<16}{first.features:<10}{first.rows:>6}{first.columns:>5}"
        f"  {counts:<10}  {np.mean([row.true_gain for row in cell]):>9.1%}"
        f"  {sum(row.covered for row in cell):>4}/{len(cell):<2}"
        f"  {np.median(ratios):>17.2f}, {max(ratios):<7.2f}"
        f"  {np.mean([row.seconds for row in cell]):>7.1f}"
    )


if __name__ == "__main__":
    main()
