"""What the first call of each verb costs, and that the second one compiles nothing.

Each verb is called three times eagerly, with other numbers and keys of the same
structure: the cold call traces and compiles, the others only run. Times are wall-clock
seconds of one run in a fresh process, and the number of programs that XLA compiled in
each call is beside them. The import of jaxclip, which imports a name with its room when
it is first used, is timed beside that of diffrax, and so are two names and all of them;
each is the median of several fresh processes. A table is printed, added to
`results/bench/compile.jsonl`, and written as JSON where `--json` names a file.
`--quick` leaves out what compiles for long.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _bench import Bench, arguments

import jaxclip as jc

_COMPILED = "/jax/core/compile/backend_compile_duration"
DIM = 50


# What is timed: the import alone, that of two names that need no solver, and all.
IMPORTS = {
    "diffrax": "import diffrax",
    "jaxclip": "import jaxclip",
    "transform": "from jaxclip import HardClip, as_transform",
    "solve": "from jaxclip import solve",
    "everything": "from jaxclip import *",
}


class Compilations:
    """How many programs XLA has compiled in this process."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        del duration_secs, kwargs
        self.count += event == _COMPILED


def import_time(statement: str, processes: int) -> float:
    """The median of the seconds that an import takes in a fresh process."""
    code = (
        f"import time; start = time.perf_counter(); {statement};"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True)
        for _ in range(processes)
    ]
    return statistics.median(float(run.stdout) for run in runs)


# The functions that a user writes, made once


def bowl(x):
    return jnp.sum(x**2) / 2 + jnp.sum(jnp.cos(x))


def row_loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params) - y) ** 2 / 2


def row_gradient(params, batch):
    return jax.grad(lambda p: jnp.mean(jax.vmap(row_loss, (None, 0))(p, batch)))(params)


def network(params, x):
    return jnp.tanh(x @ params)


SPECTRUM = jc.Spectrum.power_law(DIM, 0.5)
SIMPLE = jc.LinearModel(SPECTRUM, jc.Gaussian(1.0), jnp.full(DIM, 0.1))


def final_risk(lr, threshold, key):
    clip = jc.HardClip(threshold)
    return jc.simulate(SIMPLE, clip, lr, steps=100, every=50, key=key).risk[-1]


# A call of each verb, with numbers that depend on `i`


def numbers(i: int, *shape: int) -> Any:
    return np.random.default_rng(i).normal(size=shape).astype(np.float32)


def rows(i: int) -> tuple[Any, Any]:
    return numbers(i, 64, 8), numbers(i + 1, 64)


def rate(i: int) -> float:
    return (0.3 + 0.01 * i) / float(SPECTRUM.trace)


def simulate(i: int, **settings: Any) -> Any:
    how = {"steps": 100, "every": 50, "key": jr.key(i)} | settings
    return jc.simulate(SIMPLE, jc.HardClip(3.0 + i), rate(i), **how)


def heavy(i: int) -> Any:
    noise = jc.StudentT(3.0, 1.0 + i)
    problem = jc.LinearModel(SPECTRUM, noise, jnp.full(DIM, 0.1))
    clip = jc.HardClip(3.0 + i)
    return jc.simulate(problem, clip, rate(i), steps=100, every=50, key=jr.key(i))


def gradient(i: int) -> Any:
    def end(threshold):
        clip, key = jc.HardClip(threshold), jr.key(i)
        return jc.simulate(SIMPLE, clip, rate(i), steps=100, every=50, key=key).risk[-1]

    return jax.grad(end)(3.0 + i)


def train(i: int) -> Any:
    optimiser = optax.chain(jc.as_transform(jc.HardClip(3.0 + i)), optax.sgd(rate(i)))
    return jc.train(SIMPLE, optimiser, steps=100, every=50, key=jr.key(i))


def spider(i: int) -> Any:
    clip, variant = jc.SpiderClip(1.0 + i, 1.0, 0.1), jc.algorithm.PeriodicSpider(4)
    optimiser = jc.Spider(clip, rate(i), variant, anchor_size=16, batch_size=4)
    return jc.run_spider(SIMPLE, optimiser, steps=20, key=jr.key(i))


def basins(i: int) -> Any:
    landscape = jc.Landscape(bowl, jnp.zeros(2))
    starts, minima = numbers(i, 100, 2), np.zeros((1, 2), np.float32)
    return jc.basins(landscape, jc.HardClip(1.0 + i), 0.1, starts, minima, steps=500)


def sweep(i: int) -> Any:
    axes: dict[str, Any] = {
        "lr": rate(i) * np.array([0.5, 1.0]),
        "threshold": 3.0 + i + np.arange(4.0),
    }
    axes["key"] = jr.split(jr.key(i), 2)
    return jc.sweep(final_risk, axes, progress=False).values


def unroll(i: int) -> Any:
    optimiser = optax.chain(jc.as_transform(jc.HardClip(1.0 + i)), optax.sgd(0.1 + i))
    batches = tuple(part.reshape(16, 4, *part.shape[1:]) for part in rows(i))
    return jc.unroll(row_gradient, numbers(i, 8), optimiser, batches)


def clipped_grad(i: int) -> Any:
    function = jc.clipped_grad(row_loss, jc.HardClip(1.0 + i), microbatch=16)
    return function(numbers(i, 8), rows(i))


def median(i: int) -> Any:
    transform, gradients = (
        jc.algorithm.geometric_median(eps=1e-6 * (1 + i)),
        numbers(i, 9, 8),
    )
    return transform.update(gradients, transform.init(gradients[0]))


QUICK: dict[str, Callable[[int], Any]] = {
    "simulate": simulate,
    "basins": basins,
    "tune": lambda i: jc.tune(bowl, numbers(i, 8), steps=10),
    "unroll": unroll,
    "diagnose": lambda i: jc.diagnose(row_loss, numbers(i, 8), rows(i)),
    "sharpness": lambda i: jc.curvature.sharpness(bowl, numbers(i, 8), key=jr.key(i)),
    "loss_barrier": lambda i: jc.curvature.loss_barrier(
        bowl, numbers(i, 8), numbers(i + 1, 8)
    ),
    "largest_curvature": lambda i: jc.curvature.largest_curvature(
        bowl, numbers(i, 8), key=jr.key(i)
    ),
    "tangent_kernel": lambda i: jc.curvature.tangent_kernel(
        network, numbers(i, 8), rows(i)[0]
    ),
    "stable_lr": lambda i: jc.stable_lr(SIMPLE),
    "clipped_grad": clipped_grad,
    "geometric_median": median,
}
LONG: dict[str, Callable[[int], Any]] = {
    "simulate, Student": heavy,
    "simulate, Direct": lambda i: simulate(i, engine=jc.Direct()),
    "simulate, Lumped": lambda i: simulate(i, engine=jc.Lumped()),
    "simulate, gradient": gradient,
    "train": train,
    "run_spider": spider,
    "sweep": sweep,
}


def measured(
    call: Callable[[int], Any], compilations: Compilations
) -> list[tuple[float, int]]:
    """Seconds and compilations of the first three calls."""
    found = []
    for i in range(3):
        before, start = compilations.count, time.perf_counter()
        jax.block_until_ready(eqx.filter(call(i), eqx.is_array))
        seconds = time.perf_counter() - start
        found.append((seconds, compilations.count - before))
    return found


def main() -> None:
    parser = arguments(__doc__, "a few verbs, for CI")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    given = parser.parse_args()
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} "
        f"cores, {platform.machine()}, Python {platform.python_version()}\n"
    )
    bench = Bench("compile", given.quick, given.out)
    processes = 1 if given.quick else 5
    imports = {what: import_time(code, processes) for what, code in IMPORTS.items()}
    bench.add("import", **{f"{what}_seconds": t for what, t in imports.items()})
    for what, seconds in imports.items():
        print(f"{IMPORTS[what]:<58} {seconds:.2f} s")
    print()
    table: dict[str, dict[str, tuple[float, ...]]] = {}
    compilations = Compilations()
    print(f"{'seconds of call':<22} {'first':>8} {'second':>8} {'third':>8} "
          f"{'compilations':>14}")  # fmt: skip
    for name, call in QUICK.items() if given.quick else (QUICK | LONG).items():
        seconds, counts = zip(*measured(call, compilations), strict=True)
        table[name] = {"seconds": seconds, "compilations": counts}
        first, second, third = seconds
        bench.add(
            "calls",
            call=name,
            first_seconds=first,
            second_seconds=second,
            third_seconds=third,
            first_compilations=counts[0],
            later_compilations=sum(counts[1:]),
        )
        times = " ".join(f"{each:>8.4f}" for each in seconds)
        print(f"{name:<22} {times} {', '.join(map(str, counts)):>14}", flush=True)
    if given.json is not None:
        about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        found = {"import": imports, "calls": table}
        given.json.write_text(json.dumps(about | found, indent=1))
    again = [name for name, call in table.items() if any(call["compilations"][1:])]
    if again:
        sys.exit(f"compiled again: {', '.join(again)}")


if __name__ == "__main__":
    main()
