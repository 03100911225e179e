"""What the `bench_*.py` scripts share: the table that their numbers are added to.

Not a program of its own. A table is read by
`pandas.read_json("results/bench/NAME.jsonl", lines=True)`.
"""

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
    """

    name: str
    quick: bool

    def add(self, part: str, **numbers: Any) -> None:
        """Adds a line.

        **Arguments:**

        - `part`: which of the script's tables the line belongs to; the lines of one
            part have the same columns.
        - `numbers`: the columns, settings and measurements alike. The name of a
            measurement ends in its unit, such as `solve_seconds`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"date": now, **_where(), "quick": self.quick, "part": part, **numbers}
        folder = Path("results") / "bench" / ("quick" if self.quick else "")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps(line, default=_plain) + "\n")


@cache
def _where() -> dict[str, Any]:
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
