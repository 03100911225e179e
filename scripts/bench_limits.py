"""How fast the risk ODE is solved, as ratios within one run of this script.

The problem is a spectrum of up to a million different eigenvalues, clipped SGD with
Gaussian noise, recorded from a hundredth of a step per dimension to a thousand. Named
alternatives: explicit Euler in numpy over all eigenvalues, and full solves over all
eigenvalues by diffrax, with Tsitouras' 5/4 method and with the same exponential
integrator. Then what it costs to look at every step of a schedule, and what the first
eager call of each verb takes. Every number is also added to
`results/bench/limits.jsonl`. `--quick` checks that everything runs and agrees.
"""

import os
import platform
import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from _bench import Bench, arguments

import jaxclip as jc

jax.config.update("jax_enable_x64", True)
C, ETA = 1.5, 0.7


def spectra(dim: int) -> dict[str, np.ndarray]:
    """Eigenvalues of mean 1: power laws, Marchenko-Pastur, log-normal with spikes."""
    index = np.arange(1, dim + 1)
    bulk = np.exp(np.random.default_rng(0).standard_normal(dim))
    bulk[:3] = [100.0, 200.0, 500.0]
    families = {f"i^-{a}": index**-a for a in (0.5, 1.0, 1.5)}
    law = jc.Spectrum.marchenko_pastur(dim, 0.5)
    families |= {"Marchenko-Pastur": np.asarray(law.eigenvalues), "spikes": bulk}
    return {name: lam / lam.mean() for name, lam in families.items()}


def problem_of(lam: np.ndarray) -> jc.LinearModel:
    dim = len(lam)
    start = jnp.full(dim, dim**-0.5)
    return jc.LinearModel(jc.Spectrum(lam), jc.Gaussian(1.0), start)


def solution(ode: jc.RiskODE, steps: np.ndarray) -> Any:
    """The risk as a compiled function of modes, threshold and rate."""

    @jax.jit
    def risk(compressed, threshold, lr):
        clip = jc.HardClip(threshold)
        return jc.solve(compressed, clip, lr, steps=jnp.asarray(steps), limit=ode).risk

    return risk


def timed(function: Any, *arguments: Any, runs: int = 3) -> tuple[float, Any]:
    """The best of several runs of the compiled function, in seconds, and the result."""
    compiled = function.lower(*arguments).compile()
    best, result = np.inf, None
    for _ in range(runs):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        best = min(best, time.perf_counter() - start)
    return best, result


def euler(lam: np.ndarray, ends: np.ndarray, budget: float) -> tuple[float, int, float]:
    """Explicit Euler in numpy, as the paper's authors do it: seconds for each of its
    steps, how many steps it needs to be stable and to reach the end, and an estimate of
    the whole time from those that fit into the budget."""
    dim = len(lam)
    v, lr = np.full(dim, 0.5 / dim), ETA / dim
    # Half of what is stable for the largest eigenvalue.
    step = 0.5 / (lr * lam.max())
    needed, done, start = int(ends[-1] / step) + 1, 0, time.perf_counter()
    while time.perf_counter() - start < budget and done < needed:
        risk = lam @ v
        s = np.sqrt(2 * risk + 1)
        mu = scipy.special.erf(C / s / 2**0.5)
        tail = 2 * scipy.special.ndtr(-C / s)
        density = np.exp(-((C / s) ** 2) / 2) / (2 * np.pi) ** 0.5
        second = s**2 * (1 - tail - 2 * C / s * density) + C**2 * tail
        v = v + step * lam * (-2 * lr * mu * v + lr**2 * second / 2)
        done += 1
    each = (time.perf_counter() - start) / done
    return each, needed, each * needed


def compare(name: str, lam: np.ndarray, bench: Bench) -> None:
    """One spectrum: compression, the compressed solve, and the full ones."""
    dim = len(lam)
    problem = problem_of(lam)
    steps = dim * np.array([0.01, 1, 10, 100, 1000])
    settings = jnp.asarray(C * dim**0.5), jnp.asarray(ETA / dim)
    start = time.perf_counter()
    few = problem.compress()
    compression = time.perf_counter() - start
    solve = solution(jc.RiskODE(), steps)
    fast, risk = timed(solve, few, *settings)
    line = f"{name:<17}{dim:>9,} {compression:>9.3f} {1e3 * fast:>9.1f}"
    every = jc.problem.CompressedLinearModel(
        problem.modes, problem.noise, jnp.zeros(())
    )
    seconds, exact = timed(solve, every, *settings, runs=1)
    error = float(jnp.max(jnp.abs(risk / exact - 1)))
    assert error < 1e-6, (name, error)
    line += f" {seconds:>9.2f} {seconds / fast:>8.0f}x {error:>8.0e}"
    explicit = None
    if not bench.quick:
        # Its steps are all alike: some of them tell how long all take.
        _, _, explicit = euler(lam, steps, 5.0)
        line += f" {explicit:>9.0f} {explicit / fast:>8.0f}x"
    print(line, flush=True)
    bench.add(
        "spectra",
        spectrum=name,
        dim=dim,
        compression_seconds=compression,
        modes_seconds=fast,
        all_seconds=seconds,
        euler_seconds=explicit,
        relative_error=error,
    )


def largest(dim: int, bench: Bench) -> None:
    """A million eigenvalues: both solves over a hundredth of the horizon, since the
    full one takes minutes otherwise."""
    problem = problem_of(spectra(dim)["i^-0.5"])
    steps = dim * np.array([0.01, 1, 10])
    settings = jnp.asarray(C * dim**0.5), jnp.asarray(ETA / dim)
    start = time.perf_counter()
    few = problem.compress()
    compression = time.perf_counter() - start
    fast, risk = timed(solution(jc.RiskODE(), steps), few, *settings)
    every = jc.problem.CompressedLinearModel(
        problem.modes, problem.noise, jnp.zeros(())
    )
    tsit = solution(jc.RiskODE(diffrax.Tsit5(), rtol=1e-8), steps)
    full, exact = timed(tsit, every, *settings, runs=1)
    error = float(jnp.max(jnp.abs(risk / exact - 1)))
    assert error < 1e-6, error
    print(
        f"\n{dim:,} eigenvalues i^-0.5, up to 10 steps a dimension: compression "
        f"{compression:.1f} s, 96 modes {1e3 * fast:.1f} ms, all of them by Tsit5 "
        f"{full:.1f} s, {full / fast:.0f} times; difference {error:.0e}"
    )
    bench.add(
        "largest",
        dim=dim,
        compression_seconds=compression,
        modes_seconds=fast,
        tsit5_seconds=full,
        relative_error=error,
    )


def gradient(dim: int, bench: Bench) -> None:
    """The gradient in a schedule of 16 knots, in forward solves."""
    few = problem_of(spectra(dim)["i^-1.5"]).compress()
    steps = jnp.asarray(dim * np.array([0.0, 100.0]))
    knots = jnp.linspace(0.0, 100.0 * dim, 16)

    def final(log_values):
        lr = jc.PiecewiseLinear(knots, jnp.exp(log_values))
        clip = jc.HardClip(C * dim**0.5)
        return jc.solve(few, clip, lr, steps=steps).risk[-1]

    at = jnp.log(jnp.full(16, ETA / dim)) + 0.1 * jnp.sin(jnp.arange(16.0))
    forward, _ = timed(jax.jit(final), at)
    backward, _ = timed(jax.jit(jax.value_and_grad(final)), at)
    print(
        f"\nvalue and gradient in 16 knots: {1e3 * backward:.0f} ms, the value alone "
        f"{1e3 * forward:.0f} ms: {backward / forward:.1f} forward solves"
    )
    bench.add("gradient", dim=dim, value_seconds=forward, gradient_seconds=backward)


def schedules(bench: Bench) -> None:
    """What it costs to look at every step of a schedule: against the same cosine as a
    piecewise linear schedule, of which only the knots are looked at."""
    problem = jc.LinearModel(jc.Spectrum.isotropic(100), jc.Gaussian(1.0), np.ones(1))
    clip, rate = jc.HardClip(10.0), 0.004
    print("\nevery step of a cosine, in solutions with 60 knots on it in its place")
    for end in (1_000, 10_000, 100_000):
        # The same run over more steps.
        peak = rate * 1_000 / end
        cosine = optax.cosine_decay_schedule(peak, end, 0.01)
        knots = jnp.linspace(0.0, end, 60)
        lines = jc.PiecewiseLinear(knots, jax.vmap(cosine)(knots))
        seconds = []
        for lr in (lines, cosine):
            steps = jnp.array([0.0, end])

            @jax.jit
            def risk(scale, lr=lr, steps=steps):
                ode = jc.RiskODE()
                rule = jc.HardClip(clip.threshold(0) * scale)
                return jc.solve(problem, rule, lr, steps=steps, limit=ode).risk

            seconds.append(timed(risk, 1.0, runs=1 if bench.quick else 7)[0])
        print(
            f"{end:>9,} steps: {1e3 * seconds[1]:.1f} ms, {1e3 * seconds[0]:.1f} ms: "
            f"{seconds[1] / seconds[0]:.2f} times"
        )
        lines_seconds, cosine_seconds = seconds
        bench.add(
            "schedules",
            steps=end,
            lines_seconds=lines_seconds,
            cosine_seconds=cosine_seconds,
        )


def verbs(bench: Bench) -> None:
    """The first eager call of each verb, which compiles, and the second."""
    noise = jc.Gaussian(1.0) if bench.quick else jc.StudentT(3.0, 1.0)
    spectrum = jc.Spectrum.power_law(50, 0.5)
    problem = jc.LinearModel(spectrum, noise, np.full(50, 0.1))
    clip, lr, steps = jc.HardClip(4.0), 0.01, np.array([0.0, 1000.0])
    calls = {
        "solve": lambda: jc.solve(problem, clip, lr, steps=steps),
        "best_clip": lambda: jc.best_clip(noise, 0.1, 1.0),
        "ceiling": lambda: jc.ceiling(problem, lr, steps=steps),
        "max_ccc": lambda: jc.max_ccc(problem, lr, steps=1000),
        "heuristic": lambda: jc.heuristic(problem, lr, 2.0, steps=1000),
        "score": lambda: jc.score(problem, lr, steps=1000),
    }
    print(f"\nseconds of an eager call with {type(noise).__name__} noise")
    print(f"{'verb':<16}{'first':>8}{'second':>9}")
    for name, call in calls.items():
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(jax.tree.leaves(call()))
            seconds.append(time.perf_counter() - start)
        first, second = seconds
        print(f"{name:<16}{first:>8.2f}{second:>9.3f}", flush=True)
        bench.add("verbs", call=name, first_seconds=first, second_seconds=second)


def main() -> None:
    given = arguments(__doc__, "small sizes, for CI").parse_args()
    quick = given.quick
    bench, device = Bench("limits", quick, given.out), jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.device_kind} x {len(jax.devices())}, "
        f"{os.cpu_count()} cores, {platform.machine()}, float64\n"
    )
    print("compression in seconds, once a spectrum; then the solve with 96 modes in")
    print("milliseconds; the other solves in seconds and as multiples of it")
    print(f"{'spectrum':<17}{'dim':>9} {'compress':>9} {'96 modes':>9} {'all':>9}"
          f" {'ratio':>9} {'error':>8} {'Euler':>9} {'ratio':>9}")  # fmt: skip
    dim = 2_000 if quick else 100_000
    # Every spectrum is compiled for itself.
    for name, lam in list(spectra(dim).items())[: 1 if quick else None]:
        compare(name, lam, bench)
    largest(2 * dim if quick else 10 * dim, bench)
    gradient(dim, bench)
    schedules(bench)
    verbs(bench)


if __name__ == "__main__":
    main()
