"""What the `bench_*.py` scripts share: the table that their numbers are added to.

Not a program of its own. All measurements are read by
`pandas.read_json("results/bench/NAME.jsonl", lines=True)`; those of one part, which
have the same columns, are a table `results/bench/NAME-PART.csv` too.
"""

import argparse
import csv
import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Bench:
    """The file `results/bench/NAME.jsonl`, to which each measurement adds a line; those
    of a quick run go to a folder beside it, which is not kept.

    A line is a JSON object: when and where, and on which commit, it was measured, and
    the numbers. It is written at once, so that a script that is stopped has lost none.
    The lines of each part are written as a table of comma-separated values as well.

    - `out`: another folder for all of it, if any.
    """

    name: str
    quick: bool
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.out or Path("results") / "bench" / ("quick" if self.quick else "")

    def add(self, part: str, **numbers: Any) -> None:
        """Adds a line.

        **Arguments:**

        - `part`: which of the script's tables the line belongs to; the lines of one
            part have the same columns.
        - `numbers`: the columns, settings and measurements alike. The name of a
            measurement ends in its unit, such as `solve_seconds`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"date": now, **where(), "quick": self.quick, "part": part, **numbers}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps(line, default=_plain) + "\n")
        lines = map(json.loads, path.read_text().splitlines())
        table = [each for each in lines if each["part"] == part]
        # Of all measurements: an earlier version may have had other columns.
        columns = list(dict.fromkeys(name for each in table for name in each))
        file_name = f"{self.name}-{part}.csv"
        with (self.folder / file_name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


def arguments(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The arguments that all of these scripts take.

    **Arguments:**

    - `description`: what the script does.
    - `quick`: what `--quick` does.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, help="a folder for the numbers")
    return parser


@cache
def where() -> dict[str, Any]:
    """The machine and the code, which stay the same while a script runs."""
    return {
        "commit": _commit(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    """A number of numpy's or JAX's as Python's own."""
    return np.asarray(value).tolist()
