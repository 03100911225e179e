"""The claims of a `reproduce_*.py` script on the page of its paper.

The cheap ones are run by the build; all of them are shown where the script has left its
table.
"""

import csv
import html
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


class Checked:
    """The claims of some parts of a script, in its quick form.

    `saved` has the arrays that those parts wrote, by the name of their file.

    **Arguments:**

    - `script`: the script's name without `reproduce_` and `.py`.
    - `seed`: of the script.
    - `parts`: names of functions, as `module.function`.
    """

    def __init__(self, script: str, seed: int, *parts: str):
        self.script = script
        shared = _module("_claims")
        self.claims: list[Any] = []
        with tempfile.TemporaryDirectory() as folder:
            report = shared.Report(Path(folder), seed, True)
            for part in parts:
                module, function = part.split(".")
                self.claims += getattr(_module(module), function)(report)
            files = Path(folder).glob("*.npz")
            self.saved = {path.stem: _arrays(path) for path in files}
        failed = [claim.text for claim in self.claims if not claim.holds]
        if failed:
            raise AssertionError(f"claims fail: {failed}")

    def table(self) -> str:
        """What was checked just now, and below it what the script says of all."""
        rows = [
            (claim.text, claim.source, claim.value, claim.low, claim.high, "holds")
            for claim in self.claims
        ]
        return _table(rows) + _all_claims(self.script)


def _module(name: str) -> ModuleType:
    folder = str(ROOT / "scripts")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _table(rows: list[tuple[Any, ...]]) -> str:
    """Claims as HTML: whose each is, our number, what is wanted, and the verdict."""
    words = "claim", "ours", "wanted", "verdict"
    head = "".join(f'<th scope="col">{word}</th>' for word in words)
    body = []
    for text, source, value, low, high, verdict in rows:
        whose = f" <em>({html.escape(source)})</em>" if source else ""
        cells = (html.escape(text) + whose, _number(value), _range(low, high), verdict)
        body.append("".join(f"<td>{cell}</td>" for cell in cells))
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _number(value: Any) -> str:
    return f"{float(value):.6g}"


def _range(low: Any, high: Any) -> str:
    low, high = float(low), float(high)
    if low == high:
        return _number(low)
    if low == -float("inf"):
        return f"at most {_number(high)}"
    if high == float("inf"):
        return f"at least {_number(low)}"
    return f"{_number(low)} to {_number(high)}"


def _all_claims(script: str) -> str:
    """All claims from the script's own table, or how to get them."""
    command = f"python scripts/reproduce_{script}.py"
    path = ROOT / "results" / script / "claims.csv"
    if not path.exists():
        return (
            "<p>These are the cheap ones, in the script's quick form, run by this "
            f"build. All of them: <code>{command}</code>.</p>"
        )
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = ("claim", "source", "value", "low", "high", "verdict")
    rows = [tuple(line[name] for name in names) for line in lines]
    return (
        f"<details><summary>All {len(rows)} claims, as <code>{command}</code> left them"
        f"</summary>{_table(rows)}</details>"
    )
