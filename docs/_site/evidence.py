"""Numbers that the repository states elsewhere, read from where it states them."""

import ast
import html
import re
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce_adaptive.py"
TASKS = ("linear model", "digits", "20% labels wrong", "40% labels wrong", "table")

# Test losses on the tasks, by the method. That of the known risk has the first alone.
Losses = dict[str, list[float]]


def adaptive_losses() -> Losses:
    """The table of `scripts/reproduce_adaptive.py`, which its docstring has."""
    text = ast.get_docstring(ast.parse(SCRIPT.read_text())) or ""
    lines = re.findall(r"^ {4}(\S.*?)((?:\s+\d\.\d{4})+)$", text, re.MULTILINE)
    return {name: [float(x) for x in cells.split()] for name, cells in lines}


def table_of(losses: Losses) -> str:
    """In HTML, the lowest of each column in bold, the known risk apart."""
    known = "known risk"
    rows = [row for name, row in losses.items() if name != known]
    lowest = [min(column) for column in zip(*rows, strict=True)]
    head = "".join(f'<th scope="col">{task}</th>' for task in ("method", *TASKS))
    body = ""
    for name, row in losses.items():
        cells = [f"{loss:.4f}" for loss in row]
        if name != known:
            cells = [
                f"<strong>{cell}</strong>" if loss == low else cell
                for cell, loss, low in zip(cells, row, lowest, strict=True)
            ]
        cells += [""] * (len(TASKS) - len(row))
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr><th scope="row">{html.escape(name)}</th>{line}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
