"""How fast SGD is simulated, as ratios within one run of this script.

Named alternatives, all in float32 and jitted: the plain step of clipped SGD in a
`jax.lax.scan`, vmapped over settings with a key for each setting or with one key for
all; the same with an optax optimiser; and jaxclip's own `Direct()` engine. Times are
the best of several runs after compilation, and are also added to
`results/bench/simulate.jsonl`. `--quick` checks that everything runs and
agrees, on sizes too small to time.

The machine's own limit, in the same run: a block of T samples and H settings needs two
products of 2 T d H operations, one of 2 T^2 d for all settings, and T d random numbers
for all settings, so that per step, dimension and setting the limit is
4 / F + 2 T / (H F) + r / H with F the rate of products and r the time of a number.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _bench import Bench, arguments
from jaxtyping import Array

import jaxclip as jc
from jaxclip._random import normal


def plain(dim: int, steps: int) -> Callable[[Array, Array, Array], Array]:
    """Clipped SGD as one would write it: the final risk from learning rate, threshold
    and key."""

    def run(lr, threshold, key):
        def step(z, k):
            features_key, noise_key = jr.split(jr.fold_in(key, k))
            a = jr.normal(features_key, (dim,))
            gradient = (jnp.dot(a, z) - jr.normal(noise_key)) * a
            norm = jnp.linalg.norm(gradient)
            return z - lr * jnp.minimum(1.0, threshold / norm) * gradient, None

        z0 = jnp.ones(dim) / np.sqrt(dim)
        z, _ = jax.lax.scan(step, z0, jnp.arange(steps))
        return jnp.sum(z**2) / 2

    return run


def with_optax(dim: int, steps: int) -> Callable[[Array, Array, Array], Array]:
    """The same through optax's own transforms."""

    def run(lr, threshold, key):
        optimiser = optax.chain(
            optax.clip_by_global_norm(threshold), optax.scale_by_learning_rate(lr)
        )

        def step(carry, k):
            z, state = carry
            features_key, noise_key = jr.split(jr.fold_in(key, k))
            a = jr.normal(features_key, (dim,))
            gradient = (jnp.dot(a, z) - jr.normal(noise_key)) * a
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(z, updates), state), None

        z0 = jnp.ones(dim) / np.sqrt(dim)
        carry = (z0, optimiser.init(z0))
        (z, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
        return jnp.sum(jnp.square(jnp.asarray(z))) / 2

    return run


def ours(dim: int, steps: int, engine: Any) -> Callable[[Array, Array, Array], Array]:
    """The same through jaxclip."""
    spectrum = jc.Spectrum.isotropic(dim)
    problem = jc.LinearModel(spectrum, jc.Gaussian(1.0), jnp.ones(1))

    def run(lr, threshold, key):
        clip = jc.HardClip(threshold)
        settings = {"steps": steps, "every": steps, "key": key, "engine": engine}
        return jc.simulate(problem, clip, lr, **settings).risk[-1]

    return run


def timed(function: Callable[..., Array], *arguments: Array) -> tuple[float, Array]:
    """The best of three runs after compilation, in seconds, and the result."""
    compiled = jax.jit(function)
    result = jax.block_until_ready(compiled(*arguments))
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        best = min(best, time.perf_counter() - start)
    return best, result


def settings(dim: int, count: int) -> tuple[Array, Array]:
    """A grid of learning rates and thresholds, as two vectors."""
    side = max(1, round(count**0.5))
    lrs = jnp.linspace(0.1, 1.0, side) / dim
    thresholds = jnp.linspace(0.5, 3.0, count // side) * np.sqrt(dim)
    grid = jnp.meshgrid(lrs, thresholds)
    return grid[0].ravel(), grid[1].ravel()


@dataclass(frozen=True)
class Machine:
    """What the machine can do: float32 products, GFLOP/s, and ns for a normal number
    by the fastest generator known here."""

    products: float
    number: float

    @classmethod
    def measured(cls, quick: bool) -> "Machine":
        size, numbers = (128, 2**12) if quick else (2048, 2**22)
        matrix = jnp.ones((size, size))
        seconds, _ = timed(lambda m: m @ m, matrix)
        rate = 2 * size**3 / seconds / 1e9
        seconds, _ = timed(lambda key: normal(key, numbers), jr.key(0))
        return cls(rate, seconds / numbers * 1e9)

    def limit(self, block: int, count: int) -> float:
        """Nanoseconds per step, dimension and setting."""
        return (4 + 2 * block / count) / self.products + self.number / count


def compare(dim: int, count: int, machine: Machine, bench: Bench) -> None:
    """One block of the table: every way at one dimension and number of settings."""
    lrs, thresholds = settings(dim, count)
    key, keys = jr.key(0), jr.split(jr.key(0), count)
    # Enough steps for a tenth of a second or so of each; the unit is one step.
    long, short = (64, 16) if bench.quick else (2048, 256 if count > 1 else 2048)
    shared, each = (0, 0, None), (0, 0, 0)
    blocked = jc.Blocked(settings=count)
    ways = (
        ("jaxclip Blocked, one key", ours(dim, long, blocked), long, shared),
        ("jaxclip Direct, one key", ours(dim, short, jc.Direct()), short, shared),
        ("plain scan, one key", plain(dim, short), short, shared),
        ("optax scan, one key", with_optax(dim, short), short, shared),
        ("plain scan, a key each", plain(dim, short // 4), short // 4, each),
    )
    unit = dim * count * 1e-9
    first = None
    for name, function, steps, axes in ways:
        argument = keys if axes is each else key
        seconds, result = timed(jax.vmap(function, axes), lrs, thresholds, argument)
        assert result.shape == (count,)
        assert jnp.all(jnp.isfinite(result))
        cost = seconds / steps / unit
        first = cost if first is None else first
        print(f"{dim:>7,} {count:>9} {name:<26} {cost:>12.3f} {cost / first:>9.1f}x")
        bench.add("ways", dim=dim, settings=count, way=name, step_dim_setting_ns=cost)
    limit = machine.limit(blocked.block(dim), count)
    print(f"{dim:>7,} {count:>9} {'the machine: limit':<26} {limit:>12.3f} "
          f"{limit / (first or limit):>9.0%} reached\n")  # fmt: skip
    name = "the machine: limit"
    bench.add("ways", dim=dim, settings=count, way=name, step_dim_setting_ns=limit)


def lumped(bench: Bench) -> None:
    """The lumped engine, whose cost should not depend on the multiplicities."""
    steps = 64 if bench.quick else 200_000
    spectra = {
        "isotropic": [[10**3], [10**6], [10**9]],
        "three blocks": [[d // 10, d // 5, 7 * d // 10] for d in (10**3, 10**6, 10**9)],
    }
    print("microseconds per step of `Lumped()`; ratio to the first line of its kind")
    print(f"{'dim':>13} {'spectrum':<14} {'us':>8} {'ratio':>8}")
    for name, multiplicities in spectra.items():
        first = None
        for multiplicity in multiplicities:
            eigenvalues = np.linspace(1.0, 0.5, len(multiplicity))
            spectrum = jc.Spectrum(eigenvalues, multiplicity)
            run = lumped_risk(spectrum, steps)
            seconds, risk = timed(run, 0.5 / spectrum.trace, jr.key(0))
            assert jnp.isfinite(risk)
            cost = seconds / steps * 1e6
            first = cost if first is None else first
            print(f"{spectrum.dim:>13,} {name:<14} {cost:>8.2f} {cost / first:>7.2f}x")
            bench.add("lumped", dim=spectrum.dim, spectrum=name, step_us=cost)
    print()


def lumped_risk(spectrum: jc.Spectrum, steps: int) -> Callable[[Array, Array], Array]:
    """The final risk of one run of the lumped engine, from learning rate and key."""
    problem = jc.LinearModel(
        spectrum, jc.Gaussian(1.0), jnp.ones_like(spectrum.eigenvalues)
    )
    clip = jc.HardClip(spectrum.feature_norm)

    def run(lr, key):
        how: Any = {"steps": steps, "every": steps, "engine": jc.Lumped()}
        return jc.simulate(problem, clip, lr, key=key, **how).risk[-1]

    return run


def check_agreement() -> None:
    """The engines and the two scans follow the same equation on the same data."""
    lrs, thresholds = settings(20, 4)
    runs = [
        jax.vmap(function, (0, 0, None))(lrs, thresholds, jr.key(1))
        for function in (
            ours(20, 64, jc.Blocked(16)),
            ours(20, 64, jc.Direct()),
            plain(20, 64),
            with_optax(20, 64),
        )
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(runs[0], other, rtol=1e-4)


def main() -> None:
    given = arguments(__doc__, "small sizes, for CI").parse_args()
    quick = given.quick
    device, machine = jax.devices()[0], Machine.measured(quick)
    print(
        f"jax {jax.__version__}, {device.device_kind} x {len(jax.devices())}, "
        f"{os.cpu_count()} cores, {platform.machine()}; "
        f"{machine.products:.0f} GFLOP/s in float32 products, "
        f"{machine.number:.2f} ns a normal number\n"
    )
    bench = Bench("simulate", quick, given.out)
    bench.add(
        "machine", products_gflops=machine.products, normal_number_ns=machine.number
    )
    check_agreement()
    print("nanoseconds per step, dimension and setting; ratio to the first line")
    print(f"{'dim':>7} {'settings':>9} {'way':<26} {'ns':>12} {'ratio':>10}")
    sizes = [(20, 4)]
    if not quick:
        sizes = [(100, 256), (1000, 1), (1000, 16), (1000, 256), (10_000, 256)]
    for dim, count in sizes:
        compare(dim, count, machine, bench)
    lumped(bench)


if __name__ == "__main__":
    main()
