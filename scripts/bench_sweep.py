"""What a sweep costs beside the runs that it makes, and what it survives.

Three measurements, each with its bound, which the script fails on:

- overhead: the whole time of a sweep into a store, tracing, compilation and writing
  included, over the sum of the times of its blocks alone, measured in the same run;
- memory: the peak of a process whose table is far larger than a chunk, over that of a
  process with a few chunks of the same size;
- kills: a sweep that is killed at random moments and run again ends with the same
  bits as one that is not, and computes no finished chunk twice.

Devices that are faked on one host share its cores, so that there is nothing to measure
of scaling here; the tests check that tables are the same on many of them. The numbers
are also added to `results/bench/sweep.jsonl`. `--quick` is for CI: small sizes, one
kill, and no bound on the overhead.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _bench import Bench, arguments

import jaxclip as jc


def case(quick: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The final risk over learning rates, thresholds and seeds: 65,536 runs of 10,000
    steps in 1,000 dimensions."""
    dim, side, seeds, steps = (20, 8, 2, 100) if quick else (1000, 64, 16, 10_000)
    spectrum = jc.Spectrum.isotropic(dim)
    problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), jnp.ones(1))

    def final(lr, threshold, key):
        clip, engine = jc.HardClip(threshold), jc.Blocked(settings=side**2)
        settings = {"steps": steps, "every": steps, "key": key, "engine": engine}
        return jc.simulate(problem, clip, lr, **settings).risk[-1]

    axes = {
        "lr": jnp.geomspace(0.01, 1, side) / dim,
        "threshold": jnp.geomspace(0.1, 10, side) * dim**0.5,
        "key": jr.split(jr.key(0), seeds),
    }
    return final, axes


def overhead(bench: Bench, folder: Path) -> None:
    """The time of a sweep over that of its blocks."""
    final, axes = case(bench.quick)
    start = time.perf_counter()
    run = jc.sweep(final, axes, store=folder / "overhead")
    total = time.perf_counter() - start
    blocks = run.attrs["seconds"]
    points = np.prod([len(axis) for axis in axes.values()])
    print(
        f"overhead: {points:,} runs in {total:.1f} s, of which {blocks:.1f} s in "
        f"blocks; ratio {total / blocks:.2f}"
    )
    again = time.perf_counter()
    jc.sweep(final, axes, store=folder / "overhead")
    reading = time.perf_counter() - again
    print(f"          {reading:.1f} s to read it when finished")
    bench.add(
        "overhead",
        points=points,
        total_seconds=total,
        blocks_seconds=blocks,
        reading_seconds=reading,
    )
    check_points(final, axes, run.values)
    assert bench.quick or total <= 1.5 * blocks


def check_points(final: Callable[..., Any], axes: dict[str, Any], values: Any) -> None:
    """Two points of the table, run alone."""
    alone = jax.jit(final)
    for place in ((1, 5, 0), (6, 2, 1)):
        given = zip(axes.items(), place, strict=True)
        risk = alone(**{name: axis[i] for (name, axis), i in given})
        np.testing.assert_allclose(values[place], risk, rtol=1e-3)


LARGE = """
import pathlib, resource, sys
import jax.numpy as jnp
import jaxclip as jc

points, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None

def fn(x):
    return jnp.sin(x + jnp.arange(size, dtype=x.dtype))

axes = {"x": jnp.arange(float(points))}
jc.sweep(fn, axes, batch_size=4, store=store, progress=False)
status = pathlib.Path("/proc/self/status")
if status.exists():
    # Linux counts the process that this one was started from into `ru_maxrss`.
    peaks = [l for l in status.read_text().splitlines() if l.startswith("VmHWM")]
    print(1024 * int(peaks[0].split()[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on a Mac
"""


def memory(bench: Bench, folder: Path) -> None:
    """The peak of a large table over that of a few of its chunks: with a store, and as
    a control without one, which holds the table."""
    # Numbers a point, of four bytes each; four points a chunk.
    size, points = (250_000, 100) if bench.quick else (1_000_000, 250)
    peaks = []
    for count, name in ((8, "few"), (points, "many"), (points, "")):
        words = [str(count), str(size), str(folder / name) if name else ""]
        done = subprocess.run(
            [sys.executable, "-c", LARGE, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    full, chunk = 4 * size * points / 1e6, 16 * size / 1e6
    few, stored, held = (peak / 1e6 for peak in peaks)
    print(
        f"memory:   table of {full:.0f} MB in chunks of {chunk:.0f} MB; peak "
        f"{stored:.0f} MB with a store, {held:.0f} MB without, {few:.0f} MB for two "
        "chunks"
    )
    bench.add(
        "memory",
        table_mb=full,
        chunk_mb=chunk,
        stored_peak_mb=stored,
        held_peak_mb=held,
        two_chunks_peak_mb=few,
    )
    assert stored - few < full / 4 < held - few


KILLED = """
import sys
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
import jaxclip as jc

def fn(x, key):
    walk = lambda i, z: jnp.sin(z + jr.normal(jr.fold_in(key, i)))
    return jax.lax.fori_loop(0, int(sys.argv[2]), walk, x)

axes = {"x": jnp.linspace(0, 1, 64), "key": jr.split(jr.key(0), 8)}
run = jc.sweep(fn, axes, batch_size=4, store=sys.argv[1], progress=False)
np.save(sys.argv[1] + ".npy", run.values)
"""


def kills(bench: Bench, folder: Path) -> None:
    """A sweep that is killed and run again, against one that is not."""
    steps, times, chance = "100000", 1 if bench.quick else 5, random.Random(0)

    def start(name: str) -> subprocess.Popen:
        words = [str(folder / name), steps]
        return subprocess.Popen([sys.executable, "-c", KILLED, *words])

    assert start("whole").wait() == 0
    done, finished = folder / "killed" / "done", {}
    for _ in range(times):
        with start("killed") as process:
            until = len(finished) + chance.randint(0, 20)
            while len(unchanged(done, finished)) < until:
                time.sleep(0.001)
            # Somewhere in a chunk: while it is computed, written or recorded.
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        finished = unchanged(done, finished)
        print(f"kills:    killed with {len(finished)} of 128 chunks finished")
    assert start("killed").wait() == 0
    unchanged(done, finished)
    np.testing.assert_array_equal(
        np.load(folder / "killed.npy").view(np.uint32),
        np.load(folder / "whole.npy").view(np.uint32),
    )
    print(f"          after {times} the same bits, and no chunk was computed twice")
    bench.add("kills", kills=times, finished_at_last_kill=len(finished), chunks=128)


def unchanged(done: Path, before: dict[str, int]) -> dict[str, int]:
    """When each record was written: those that were there are as they were."""
    found = [f for f in done.glob("*") if f.suffix != ".part"]
    now = {f.name: f.stat().st_mtime_ns for f in found}
    assert before.items() <= now.items()
    return now


def main() -> None:
    given = arguments(__doc__, "small sizes, for CI").parse_args()
    quick = given.quick
    bench, device = Bench("sweep", quick, given.out), jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind} x {len(jax.devices())}, "
        f"{os.cpu_count()} cores\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for measure in (overhead, memory, kills):
            measure(bench, Path(folder))


if __name__ == "__main__":
    main()
