"""What clipping costs beside optax's own, as ratios within one run of this script.

Three claims, each with the number and a verdict, and an error at the end where one
fails: a jitted training step with `as_transform(HardClip(1.0))` takes at most 1.1 times
the same step with `optax.clip_by_global_norm(1.0)`, over trees of many sizes; so does
the clip of a tree that is sharded over a mesh of four (simulated) devices; clipping per
example takes at most 1.1 times `optax.per_example_global_norm_clip`, and `clipped_grad`
holds no more gradients at a time than its `microbatch`, by the compiler's own count of
the memory.

A step is that of a linear model for each leaf, with its gradient by two matrix
products. Two ways are timed in turns, and the median of the ratios of neighbours is
reported, so that what else the machine does hits both. The numbers are also added to
`results/bench/transforms.jsonl`. `--quick` checks small sizes
against a loose bound: a shared machine cannot time them.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _bench import Bench, arguments
from _claims import Claim, at_most
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxclip as jc

# For the trees that are sharded; the others are on one of them.
jax.config.update("jax_num_cpu_devices", 4)

# Parameters, leaves, and how many pairs of runs.
SIZES = [
    *((10**3, leaves, 300) for leaves in (1, 100, 1000)),
    *((10**6, leaves, 60) for leaves in (1, 100, 1000)),
    *((3 * 10**7, leaves, 12) for leaves in (1, 100, 1000)),
]
QUICK_SIZES = [(10**3, 1, 100), (10**3, 100, 60), (10**5, 10, 60)]


def training_step(
    transform: optax.GradientTransformation, leaves: int, size: int
) -> tuple[Callable[..., Any], Any]:
    """A compiled step of SGD with the transform before it, and what it starts from."""
    rows = max(d for d in range(1, int(size**0.5) + 1) if size % d == 0)
    keys = jr.split(jr.key(0), 2 * leaves)
    params = [jr.normal(k, (rows, size // rows)) for k in keys[:leaves]]
    batch = [jr.normal(k, (32, rows)) for k in keys[leaves:]]
    optimiser = optax.chain(transform, optax.sgd(1e-3))

    def loss(params, batch):
        terms = [jnp.sum((x @ w - 1) ** 2) for w, x in zip(params, batch, strict=True)]
        return jnp.sum(jnp.stack(terms))

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    start = params, optimiser.init(params), batch
    return jax.jit(step, donate_argnums=(0, 1)).lower(*start).compile(), start


def seconds_of_step(step: Callable[..., Any], start: Any) -> Iterator[float]:
    """The times of one step after another."""
    params, state, batch = start
    while True:
        begin = time.perf_counter()
        params, state, value = jax.block_until_ready(step(params, state, batch))
        yield time.perf_counter() - begin
        assert jnp.isfinite(value)


def seconds_of(function: Callable[..., Any], *arguments: Any) -> Iterator[float]:
    """The times of one call after another, after compilation."""
    compiled = jax.jit(function).lower(*arguments).compile()
    while True:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        yield time.perf_counter() - begin


def compare(ours: Iterator[float], theirs: Iterator[float], pairs: int) -> np.ndarray:
    """Median seconds of each, and the median of the ratios of neighbours."""
    for _ in range(2):
        for way in (ours, theirs):
            next(way)
    times = np.empty((pairs, 2))
    for i in range(pairs):
        # Each goes first every second time: the first finds colder caches.
        for j in (0, 1) if i % 2 else (1, 0):
            times[i, j] = next((ours, theirs)[j])
    medians = np.median(times, axis=0)
    return np.array([*medians, np.median(times[:, 0] / times[:, 1])])


def whole_tree(bench: Bench) -> list[Claim]:
    print(
        f"{'numbers':>11} {'leaves':>7} {'optax ms':>9} {'jaxclip ms':>11} {'ratio':>6}"
    )
    claims = []
    for numbers, leaves, pairs in QUICK_SIZES if bench.quick else SIZES:
        ways = (jc.as_transform(jc.HardClip(1.0)), optax.clip_by_global_norm(1.0))
        steps = [training_step(way, leaves, numbers // leaves) for way in ways]
        ours, theirs = (seconds_of_step(*step) for step in steps)
        mine, other, ratio = compare(ours, theirs, pairs)
        print(f"{numbers:>11,} {leaves:>7} {other * 1e3:>9.3f} {mine * 1e3:>11.3f} "
              f"{ratio:>6.3f}", flush=True)  # fmt: skip
        bench.add(
            "whole_tree",
            numbers=numbers,
            leaves=leaves,
            jaxclip_seconds=mine,
            optax_seconds=other,
            ratio=ratio,
        )
        text = f"a step of {numbers:,} numbers in {leaves} leaves, over optax's"
        claims.append(at_most(text, ratio, 2.0 if bench.quick else 1.1))
    return claims


def sharded(bench: Bench) -> list[Claim]:
    """Gradients that lie on four devices, each leaf in another way."""
    print("\n    numbers  leaves  optax ms  jaxclip ms  ratio, on four devices")
    claims = []
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = [P("data", None), P(None, "model"), P("data", "model"), P()]
    sizes = [(10**6, 4, 60), (10**6, 100, 60), (3 * 10**7, 20, 20)]
    for numbers, leaves, pairs in [(10**5, 8, 60)] if bench.quick else sizes:
        width = int((numbers / leaves) ** 0.5) // 4 * 4
        gradient = [
            jax.device_put(
                jr.normal(jr.key(i), (width, width)),
                NamedSharding(mesh, specs[i % len(specs)]),
            )
            for i in range(leaves)
        ]
        ways = jc.as_transform(jc.HardClip(1.0)), optax.clip_by_global_norm(1.0)
        ours, theirs = (
            seconds_of(lambda g, way=way: way.update(g, way.init(g))[0], gradient)
            for way in ways
        )
        mine, other, ratio = compare(ours, theirs, pairs)
        print(f"{numbers:>11,} {leaves:>7} {other * 1e3:>9.3f} {mine * 1e3:>11.3f} "
              f"{ratio:>6.3f}", flush=True)  # fmt: skip
        bench.add(
            "sharded",
            numbers=numbers,
            leaves=leaves,
            jaxclip_seconds=mine,
            optax_seconds=other,
            ratio=ratio,
        )
        text = f"{numbers:,} numbers in {leaves} leaves on 4 devices, over optax's"
        claims.append(at_most(text, ratio, 2.0 if bench.quick else 1.1))
    return claims


def per_example(bench: Bench) -> list[Claim]:
    """Gradients of a batch that are there already: value and time."""
    print("\n   examples   numbers  optax ms  jaxclip ms  ratio")
    claims = []
    sizes = [(256, 10**4, 60), (64, 10**6, 12)]
    sizes = [(32, 10**3, 60)] if bench.quick else sizes
    for examples, numbers, pairs in sizes:
        keys = jr.split(jr.key(1), 4)
        gradient = [jr.normal(k, (examples, numbers // 4)) for k in keys]
        transform = jc.as_transform(jc.HardClip(1.0), jc.PerExample("sum"))
        state = transform.init(gradient)

        def ours(gradient, transform=transform, state=state):
            return transform.update(gradient, state)[0]

        def theirs(gradient):
            return optax.per_example_global_norm_clip(gradient, 1.0)[0]

        results = jax.tree.leaves(ours(gradient)), jax.tree.leaves(theirs(gradient))
        for mine, other in zip(*results, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
        times = seconds_of(ours, gradient), seconds_of(theirs, gradient)
        mine, other, ratio = compare(*times, pairs)
        print(f"{examples:>11,} {numbers:>9,} {other * 1e3:>9.3f} {mine * 1e3:>11.3f} "
              f"{ratio:>6.3f}", flush=True)  # fmt: skip
        bench.add(
            "per_example",
            examples=examples,
            numbers=numbers,
            jaxclip_seconds=mine,
            optax_seconds=other,
            ratio=ratio,
        )
        text = f"{examples} examples of {numbers:,} numbers, over optax's"
        claims.append(at_most(text, ratio, 2.0 if bench.quick else 1.1))
    return claims


def memory(bench: Bench) -> list[Claim]:
    """What `clipped_grad` needs beside its arguments and its result, in gradients of
    one example: the compiler's count, which it allocates."""
    width, examples = (64, 64) if bench.quick else (512, 256)
    params = jr.normal(jr.key(2), (width, width))
    batch = jr.normal(jr.key(3), (examples, width))

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params) ** 2)

    print(f"\n{'microbatch':>11} {'gradients held':>15}  of {examples} examples")
    claims = []
    for microbatch in (None, 64, 16, 4):
        gradient = jc.clipped_grad(loss, jc.HardClip(1.0), microbatch=microbatch)
        compiled = jax.jit(gradient).lower(params, batch).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        held = analysis.temp_size_in_bytes / params.nbytes
        print(f"{microbatch or examples:>11} {held:>15.1f}")
        bench.add("memory", microbatch=microbatch or examples, gradients_held=held)
        # One more for the sum that is carried, and the activations.
        bound = 1.02 * (microbatch or examples) + 2
        text = f"gradients held at a time by microbatches of {microbatch or examples}"
        claims.append(at_most(text, held, bound))
    return claims


def main() -> None:
    given = arguments(__doc__, "small sizes, for CI").parse_args()
    quick = given.quick
    bench, device = Bench("transforms", quick, given.out), jax.devices()[0]
    print(
        f"jax {jax.__version__}, optax {optax.__version__}, {device.device_kind}, "
        f"{os.cpu_count()} cores, {platform.machine()}, float32\n"
    )
    claims = [*whole_tree(bench), *sharded(bench), *per_example(bench)]
    claims += memory(bench)
    print(f"\n{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    for claim in claims:
        print(claim)
    failed = sum(not claim.holds for claim in claims)
    print(f"\n{failed} claims fail.")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
