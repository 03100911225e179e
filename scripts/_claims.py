"""What the `reproduce_*.py` scripts share: a claim, its verdict, and the run of all.

Not a program of its own.
"""

import argparse
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
    """Where the data and the figures of a paper's claims go, and how long to run."""

    folder: Path
    seed: int
    quick: bool

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
    """Checks every claim of the parts, prints them, and exits with an error where one
    fails. The `long` parts are left out in quick mode."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer runs, for CI")
    report = Report(Path("results") / folder, seed, parser.parse_args().quick)
    report.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"jax {jax.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, seed {seed}\n"
    )
    print(f"{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    failed = 0
    for part in (*parts, *(() if report.quick else long)):
        for claim in part(report):
            print(claim, flush=True)
            failed += not claim.holds
    print(f"\n{failed} claims fail. Data and figures: {report.folder}")
    sys.exit(failed > 0)
