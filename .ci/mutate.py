"""How many small faults in the code do the tests see?

    python .ci/mutate.py                     # every room below, 12 mutants each
    python .ci/mutate.py clip limit --sample 30

Changes the sources of a room, one operator or number at a time (cosmic-ray), in a
clone of the last commit, and runs the room's tests on each. Prints the mutants that
survive and the share that died; CONTRIBUTING.md has the last one measured. Takes
minutes a mutant.
"""

import argparse
import collections
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parents[1]
TESTS = {
    "clip": "clip policies moments registry scales",
    "transform": "transform scopes monitor algorithms optax_own registry",
    "limit": "limit modes schedules zero_loss registry",
    "sgd": "simulate lumped losses spider large_steps registry",
    "criterion": "criteria compile_limits schedules",
}
# `|` in an annotation is no sum: such mutants die at import, and prove nothing.
_IDLE = ("BitOr", "ExceptionReplacer", "RemoveDecorator")
CONFIG = """
[cosmic-ray]
module-path = "jaxclip/{room}"
timeout = 1200.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def sample(database: Path, count: int, seed: int) -> None:
    """Marks all but some of the mutants as left out."""
    with use_db(database, WorkDB.Mode.open) as work:
        items = [
            item
            for item in work.pending_work_items
            if not any(word in item.mutations[0].operator_name for word in _IDLE)
        ]
        kept = random.Random(seed).sample(items, min(count, len(items)))
        ids = {item.job_id for item in kept}
        for item in list(work.pending_work_items):
            if item.job_id not in ids:
                left_out = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
                work.set_result(item.job_id, left_out)


def report(database: Path) -> collections.Counter:
    """Prints what survived, and counts the outcomes."""
    counts: collections.Counter = collections.Counter()
    with use_db(database, WorkDB.Mode.open) as work:
        for _, result in work.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                continue
            counts[result.test_outcome] += 1
            if result.test_outcome == TestOutcome.SURVIVED:
                print(f"survived:\n{result.diff}", flush=True)
    return counts


def mutate(room: str, clone: Path, count: int, seed: int) -> collections.Counter:
    tests = " ".join(f"tests/test_{name}.py" for name in TESTS[room].split())
    config, database = clone / f"{room}.toml", clone / f"{room}.sqlite"
    config.write_text(CONFIG.format(room=room, tests=tests, python=sys.executable))
    run = [sys.executable, "-m", "cosmic_ray.cli"]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(clone / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(clone),
    }

    def call(*arguments: str) -> None:
        subprocess.run(
            [*run, *arguments], cwd=clone, env={**os.environ, **cache}, check=True
        )

    call("init", config.name, database.name)
    sample(database, count, seed)
    call("exec", config.name, database.name)
    return report(database)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(TESTS)}; all of them")
    parser.add_argument("--sample", type=int, default=12, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "jaxclip"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        for room in arguments.rooms or TESTS:
            counts = mutate(room, clone, arguments.sample, arguments.seed)
            killed, size = counts[TestOutcome.KILLED], sum(counts.values())
            print(f"{room}: {killed} of {size} died", flush=True)
            total += counts
    killed, size = total[TestOutcome.KILLED], sum(total.values())
    print(f"all: {killed} of {size} died, {killed / max(size, 1):.0%}")


if __name__ == "__main__":
    main()
