"""What the `reproduce_*.py` scripts share: a claim, its verdict, and the run of all.

Not a program of its own.
"""

import argparse
import csv
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _bench import where

import jaxclip as jc

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"


@dataclass(frozen=True)
class Claim:
    """A statement, our number for it, and where that number has to lie.

    `source` says whose statement it is: a place in the paper; or that it is weaker than
    the paper's, and how; or that it is derived here.
    """

    text: str
    value: float
    low: float
    high: float
    source: str = ""

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        wanted = f"[{self.low:.6g}, {self.high:.6g}]"
        verdict = "holds" if self.holds else "FAILS"
        source = f" ({self.source})" if self.source else ""
        return f"{verdict}  {self.value:>12.6g}  {wanted:<26} {self.text}{source}"


def of(source: str, claims: Sequence[Claim]) -> list[Claim]:
    """The claims, with a source for those that name none."""
    return [claim if claim.source else replace(claim, source=source)
            for claim in claims]  # fmt: skip


def near(text: str, value: Any, expected: float, relative: float) -> Claim:
    half = abs(expected) * relative
    return Claim(text, float(value), expected - half, expected + half)


def exactly(text: str, value: Any, expected: float, slack: float = 0.0) -> Claim:
    return Claim(text, float(value), expected - slack, expected + slack)


def at_most(text: str, value: Any, bound: float) -> Claim:
    return Claim(text, float(value), -np.inf, float(bound))


def at_least(text: str, value: Any, bound: float) -> Claim:
    return Claim(text, float(value), float(bound), np.inf)


def follows(text: str, runs: Any, ode: Any, dimension: float) -> Claim:
    """Whether the mean of the runs is the ODE's curve, at every recorded step: within
    four standard errors and the mean's own finite-size deviation, of order one over the
    intrinsic dimension. The value is the largest deviation over what is allowed."""
    risk = np.asarray(runs.risk)
    error = risk.std(axis=0, ddof=1) / np.sqrt(len(risk))
    allowed = 4 * error + 4 / dimension * np.asarray(ode.risk)
    deviation = np.abs(risk.mean(axis=0) - np.asarray(ode.risk))
    return at_most(text, np.max(deviation / allowed), 1.0)


@dataclass(frozen=True)
class Report:
    """Where the data and the figures of a paper's claims go, and how long to run.

    Beside them is `claims.csv`, with a line for each claim: the claim, our number, the
    ends of where it has to lie, the verdict, and whose claim it is; and in each line
    the commit, the machine and the versions, so that tables of several runs join.
    """

    folder: Path
    seed: int
    quick: bool

    def write(self, claims: Sequence[Claim]) -> None:
        """Writes the table of the claims that have been checked so far."""
        lines = [
            {
                "claim": claim.text,
                "number": claim.value,
                "low": claim.low,
                "high": claim.high,
                "verdict": "holds" if claim.holds else "fails",
                "source": claim.source,
                "seed": self.seed,
                "quick": self.quick,
                **where(),
            }
            for claim in claims
        ]
        path = self.folder / "claims.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, lines[0] if lines else (), lineterminator="\n")
            table.writeheader()
            table.writerows(lines)

    def save(self, name: str, **arrays: Any) -> None:
        data: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
        np.savez(self.folder / f"{name}.npz", **data)

    def finish(self, figure: Any, name: str) -> None:
        for ax in figure.axes:
            ax.grid(alpha=0.25)
        figure.savefig(self.folder / f"{name}.png", dpi=120)
        plt.close(figure)

    def simulate_many(
        self, problem: Any, clip: Any, lr: Any, at: np.ndarray, runs: int
    ) -> jc.Curve:
        """Runs with a key each, recorded at the evenly spaced steps `at`."""
        every, steps = int(at[1] - at[0]), int(at[-1])

        def one(key):
            return jc.simulate(problem, clip, lr, steps=steps, every=every, key=key)

        return jax.jit(jax.vmap(one))(jr.split(jr.key(self.seed), runs))


# Some claims, checked.
Part = Callable[[Report], list[Claim]]


def reproduce(
    description: str,
    folder: str,
    seed: int,
    parts: Sequence[Part],
    long: Sequence[Part] = (),
) -> None:
    """Checks every claim of the parts, prints them and writes them down, and exits with
    an error where one fails. The `long` parts are left out in quick mode, whose numbers
    go to a folder of their own, lest they take the place of whole results."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer runs, for CI")
    parser.add_argument("--out", type=Path, help="a folder for all that is written")
    given = parser.parse_args()
    place = Path("results") / folder / ("quick" if given.quick else "")
    report = Report(given.out or place, seed, given.quick)
    report.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"jax {jax.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, seed {seed}\n"
    )
    print(f"{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    claims: list[Claim] = []
    for part in (*parts, *(() if report.quick else long)):
        for claim in part(report):
            print(claim, flush=True)
            claims.append(claim)
        # Part by part: a script that is stopped has lost none.
        report.write(claims)
    failed = sum(not claim.holds for claim in claims)
    print(f"\n{failed} claims fail. Table, data and figures: {report.folder}")
    sys.exit(failed > 0)
