"""How many small faults in the code do the tests see?

    python .ci/mutate.py                            # every room below, 10 mutants each
    python .ci/mutate.py clip limit --sample 30 --seed 1
    python .ci/mutate.py --map folder --log mutants.jsonl    # keeps both; goes on later

Changes one operator or number of the sources at a time (by cosmic-ray's operators), in
a clone of the last commit, and runs the tests on each. Prints the mutants that survive
and the share that died; CONTRIBUTING.md has the last one measured.

A mutant is shown to the tests that execute its statement, as a run of them under
coverage said, until the first fails. Where all pass, to all tests of their files: JAX
traces a function once for many tests, so coverage may have named only the first. What
takes longer than `--budget` is left out, and so the score is one from below. The map of
lines to tests takes as long as the tests; `--map` keeps it.
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import difflib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
ROOMS = ("advice", "clip", "criterion", "diagnosis", "limit", "noise", "sgd")
ROOMS += ("transform", "tuning")
# They take what has no such operator: the mutant dies where it is first imported or
# traced, and proves nothing. A decorator is often a `jit`, and the same without it.
_IDLE = ("BitOr", "BitXor", "Shift", "_BitAnd", "_Not", "_Invert", "RemoveDecorator")
# Without `--dist=no`, pytest-cov keeps no contexts.
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-n0", "--dist=no")


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """One change: the `occurrence`-th place of a file that an operator can change."""

    path: str
    line: int
    column: int
    operator: str
    occurrence: int

    def source(self, original: str) -> str | None:
        """The changed file, or `None` where it is no Python, or the same."""
        changed = mutate_code(original, get_operator(self.operator)(), self.occurrence)
        with contextlib.suppress(SyntaxError):
            if ast.dump(ast.parse(changed)) != ast.dump(ast.parse(original)):
                return changed
        return None


def mutants(clone: Path, room: str) -> list[Mutant]:
    """Every change of a room's files."""
    found = []
    for file in sorted((clone / "jaxclip" / room).rglob("*.py")):
        path, tree = str(file.relative_to(clone)), get_ast(file.read_text("utf-8"))
        for name in operator_names():
            kind = get_operator(name)
            if not kind.arguments() and not any(word in name for word in _IDLE):
                places = map(kind().mutation_positions, ast_nodes(tree))
                starts = [start for start, _ in itertools.chain(*places)]
                found += [Mutant(path, *at, name, i) for i, at in enumerate(starts)]
    return found


def sample(clone: Path, room: str, count: int, seed: int) -> list[Mutant]:
    """Random places, and one change of each: else a product counted six times."""
    places = collections.defaultdict(list)
    for mutant in mutants(clone, room):
        places[mutant.path, mutant.line, mutant.column].append(mutant)
    rng = random.Random(f"{room} {seed}")
    order = sorted(places)
    rng.shuffle(order)
    drawn = (rng.choice(places[place]) for place in order)
    valid = (one for one in drawn if one.source((clone / one.path).read_text("utf-8")))
    return list(itertools.islice(valid, count))


class Map:
    """Which tests execute a line, and how long each takes."""

    def __init__(self, folder: Path) -> None:
        self._data = CoverageData(str(folder / "coverage"))
        self._data.read()
        files = self._data.measured_files()
        self._files = {file[file.rindex("/jaxclip/") + 1 :]: file for file in files}
        self.seconds: dict[str, float] = {}
        for case in ElementTree.parse(folder / "times.xml").iter("testcase"):
            if case.find("skipped") is None:
                file = case.attrib["classname"].replace(".", "/")
                name = f"{file}.py::{case.attrib['name']}"
                self.seconds[name] = float(case.attrib["time"])

    def tests(self, mutant: Mutant, source: str) -> set[str]:
        """The tests of the smallest piece of code around it that a test executes."""
        file = self._files.get(mutant.path)
        contexts = self._data.contexts_by_lineno(file) if file else {}
        for piece in around(ast.parse(source), mutant.line):
            said = itertools.chain(*(contexts.get(line, ()) for line in piece))
            names = {context.rpartition("|")[0] for context in said}
            if tests := names & self.seconds.keys():
                return tests
        return set()


def around(tree: ast.Module, line: int) -> Iterator[range]:
    """The lines of the statements around one, the smallest first."""
    pieces = [
        (node.lineno, node.end_lineno or node.lineno, node)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt | ast.ExceptHandler)
    ]
    holding = [piece for piece in pieces if piece[0] <= line <= piece[1]]
    for start, end, node in sorted(holding, key=lambda piece: piece[1] - piece[0]):
        body = getattr(node, "body", None)
        if body and line < body[0].lineno:
            yield range(start, body[0].lineno)
        yield range(start, end + 1)
    yield range(1, 1 + max((end for _, end, _ in pieces), default=0))


def make_map(clone: Path, folder: Path, tests: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--cov=jaxclip", "--cov-context=test", "--cov-report=")
    command = [*_PYTEST, *options, f"--junitxml={folder.resolve() / 'times.xml'}"]
    environment = {**os.environ, "COVERAGE_FILE": str(folder.resolve() / "coverage")}
    subprocess.run([*command, *tests], cwd=clone, env=environment, check=True)


def ordered(tests: set[str], seconds: dict[str, float], budget: float) -> list[str]:
    """The quickest first, a file at a time for its fixtures, within the budget."""
    files = collections.defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        files[test.partition("::")[0]].append(test)
    quickest = sorted(files.values(), key=lambda file: sum(map(seconds.get, file)))
    order = list(itertools.chain(*quickest))
    ends = itertools.accumulate(seconds[test] for test in order)
    return [test for test, end in zip(order, ends, strict=True) if end <= budget]


def run(clone: Path, tests: list[str], limit: float) -> str:
    """The first test that fails, "time" where they do not end, or "" if all pass."""
    (clone / "tests.txt").write_text("\n".join(tests), "utf-8")
    command = [*_PYTEST, "-x", "--tb=no", "@tests.txt"]
    how = {"capture_output": True, "text": True, "timeout": limit}
    try:
        done = subprocess.run(command, cwd=clone, **how)
    except subprocess.TimeoutExpired:
        return "time"
    if not done.returncode:
        return ""
    said = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR "))]
    return said[0] if said else f"exit status {done.returncode}"


def judge(clone: Path, mutant: Mutant, where: Map, budget: float) -> dict:
    """Shows a mutant to its tests: what killed it, or "", how it differs, how long."""
    file, start = clone / mutant.path, time.perf_counter()
    original = file.read_text("utf-8")
    changed = mutant.source(original) or ""
    near = where.tests(mutant, original)
    files = {test.partition("::")[0] for test in near}
    beside = {test for test in where.seconds if test.partition("::")[0] in files} - near
    count, killer = 0, ""
    try:
        file.write_text(changed, "utf-8")
        for tests in (near, beside):
            order = ordered(tests, where.seconds, budget)
            if order and not killer:
                spent = sum(where.seconds[test] for test in order)
                killer = run(clone, order, 120 + 5 * spent)
                count += len(order)
    finally:
        file.write_text(original, "utf-8")
    lines = difflib.ndiff(original.splitlines(), changed.splitlines())
    diff = "\n".join(line for line in lines if line[0] in "+-")
    took = round(time.perf_counter() - start)
    return {"killer": killer, "tests": count, "seconds": took, "diff": diff}


def judge_all(clone: Path, where: Map, given: argparse.Namespace, log: Path) -> float:
    """The share that died of the rooms' samples; not again of what the log has."""
    log.touch()
    done = {one["mutant"]: one for one in map(json.loads, log.read_text().splitlines())}
    total = collections.Counter()
    for room in given.rooms:
        counts = collections.Counter()
        for mutant in sample(clone, room, given.sample, given.seed):
            one = done.get(repr(mutant), {"room": room, "mutant": repr(mutant)})
            if "killer" not in one:
                one |= judge(clone, mutant, where, given.budget)
                with log.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            counts["died" if one["killer"] else "survived"] += 1
            if not one["killer"]:
                place = f"{mutant.path}:{mutant.line}\n{one['diff']}"
                print(f"survived {one['tests']} tests: {place}", flush=True)
        print(f"{room}: {counts['died']} of {counts.total()} died", flush=True)
        total += counts
    share = total["died"] / max(total.total(), 1)
    print(f"all: {total['died']} of {total.total()} died, {share:.0%}")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rooms", nargs="*", default=ROOMS, help="all, if none is given")
    parser.add_argument("--sample", type=int, default=10, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=300, help="seconds of tests")
    parser.add_argument(
        "--least", type=float, default=0.0, help="fail at a lower share"
    )
    parser.add_argument("--map", type=Path, help="a folder that keeps the map")
    parser.add_argument("--tests", nargs="*", default=[], help="files, for the map")
    parser.add_argument("--log", type=Path, help="a file that keeps what was judged")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        # What is compiled, also of mutants, is found by the next one.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
        os.environ["PYTHONPATH"] = str(clone)
        folder = given.map or Path(scratch) / "map"
        if not (folder / "times.xml").exists():
            make_map(clone, folder, given.tests)
        log = given.log or Path(scratch) / "log"
        sys.exit(judge_all(clone, Map(folder), given, log) < given.least)


if __name__ == "__main__":
    main()
