"""What clipping per example costs beside a plain gradient, in time and in memory.

Three models: an MLP, a transformer of four layers and a convolutional network, each
with a batch of 64 examples. Timed are the gradient of a batch without clipping; optax's
way, `per_example_global_norm_clip` on the gradients of all examples; `clipped_grad` in
one pass and in two; with the threshold that `policy.Criterion` chooses; and
jax-privacy's, where it is installed. Four claims for each model: two passes take at
most 2.5 times the plain gradient, need less memory than optax's way by the compiler's
count, and have the same numbers to 1e-5; and a threshold that chooses itself costs at
most 1.3 times one that is fixed.

All ways are timed in turns, and the median of the ratios of neighbours is reported, so
that what else the machine does hits all of them. Memory is what the compiled program
allocates beside its arguments and its result. The numbers are also added to
`results/bench/per_example.jsonl`. `--quick` times narrower models a few times: its
bounds are loose, since a shared machine cannot time them.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _bench import Bench, arguments
from _bench_models import Model, convolutions, mlp, transformer
from _claims import Claim, at_most

import jaxclip as jc

EXAMPLES, THRESHOLD = 64, 0.5
CLIP = jc.HardClip(THRESHOLD)
CRITERION = "one pass, Criterion"
# Seconds after which a model has been timed often enough.
_LONG = 120


def ways(model: Model) -> dict[str, Callable[..., Any]]:
    """Functions of the parameters and a batch, the plain gradient first."""

    def plain(params: Any, batch: Any) -> Any:
        def mean(params: Any) -> jax.Array:
            return jnp.mean(jax.vmap(model.loss, (None, 0))(params, batch))

        return jax.grad(mean)(params)

    def of_optax(params: Any, batch: Any) -> Any:
        each = jax.vmap(jax.grad(model.loss), (None, 0))(params, batch)
        total, _ = optax.per_example_global_norm_clip(each, THRESHOLD)
        return jax.tree.map(lambda leaf: leaf / EXAMPLES, total)

    chosen = jc.clipped_grad(model.loss, jc.Adaptive(jc.policy.Criterion()))

    def with_criterion(params: Any, batch: Any) -> Any:
        return chosen(params, batch, state=chosen.init(params))

    found = {
        "plain": plain,
        "optax": of_optax,
        "one pass": jc.clipped_grad(model.loss, CLIP),
        "one pass, 8 at a time": jc.clipped_grad(model.loss, CLIP, microbatch=8),
        CRITERION: with_criterion,
        "two passes": jc.clipped_grad(model.loss, CLIP, passes=2),
        "two passes, 8 at a time": jc.clipped_grad(
            model.loss, CLIP, passes=2, microbatch=8
        ),
    }
    return found | of_jax_privacy(model)


def of_jax_privacy(model: Model) -> dict[str, Callable[..., Any]]:
    try:
        clipping = import_module("jax_privacy.clipping")
    except ImportError:
        return {}
    gradient = clipping.clipped_grad(
        model.loss,
        l2_clip_norm=THRESHOLD,
        batch_argnums=1,
        keep_batch_dim=False,
        normalize_by=EXAMPLES,
    )
    return {"jax-privacy": gradient}


def compare(
    compiled: dict[str, Callable[..., Any]], model: Model, rounds: int
) -> dict[str, np.ndarray]:
    """The seconds of each way in each round: in the first ones only, or in one, where
    it takes long."""
    times: dict[str, list[float]] = {name: [] for name in compiled}
    start = time.perf_counter()
    for i in range(-1, rounds):
        if i > 2 and time.perf_counter() - start > _LONG:
            break
        slow = {name for name, each in times.items() if sum(each) > _LONG / 8}
        # Another one first in each round: what runs first finds colder caches.
        names = list(compiled)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if name in slow:
                continue
            begin = time.perf_counter()
            jax.block_until_ready(compiled[name](model.params, model.batch))
            if i >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: np.array(seconds) for name, seconds in times.items()}


def measure(bench: Bench, name: str, model: Model, rounds: int) -> list[Claim]:
    compiled = {
        way: jax.jit(function).lower(model.params, model.batch).compile()
        for way, function in ways(model).items()
    }
    right = compiled["optax"](model.params, model.batch)
    seconds = compare(compiled, model, rounds)
    megabytes, ratios, errors = {}, {}, {}
    numbers = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(f"\n{name}: {numbers:,} parameters")
    print(f"{'':>26} {'ms':>8} {'ratio':>6} {'MB':>8} {'error':>8}")
    for way, program in compiled.items():
        analysis = program.memory_analysis()
        assert analysis is not None
        megabytes[way] = analysis.temp_size_in_bytes / 1e6
        pairs = zip(seconds[way], seconds["plain"], strict=False)
        ratios[way] = float(np.median([mine / plain for mine, plain in pairs]))
        # Those that clip at the same threshold.
        if way not in ("plain", CRITERION):
            errors[way] = difference(program(model.params, model.batch), right)
        error = f"{errors[way]:.1e}" if way in errors else ""
        print(f"{way:>26} {np.median(seconds[way]) * 1e3:>8.1f} {ratios[way]:>6.2f} "
              f"{megabytes[way]:>8.1f} {error:>8}", flush=True)  # fmt: skip
        bench.add(
            "per_example",
            model=name,
            way=way,
            examples=EXAMPLES,
            numbers=numbers,
            seconds=np.median(seconds[way]),
            ratio=ratios[way],
            megabytes=megabytes[way],
            error=errors.get(way),
        )
    two = "two passes"
    less = megabytes[two] / megabytes["optax"]
    pairs = zip(seconds[CRITERION], seconds["one pass"], strict=False)
    cost = float(np.median([mine / fixed for mine, fixed in pairs]))
    return [
        at_most(f"{name}: two passes over a plain gradient", ratios[two],
                6.0 if bench.quick else 2.5),
        at_most(f"{name}: memory of two passes over optax's", less, 1.0),
        at_most(f"{name}: two passes against optax's numbers", errors[two], 1e-5),
        at_most(f"{name}: Criterion over a fixed threshold, in one pass", cost,
                4.0 if bench.quick else 1.3),
    ]  # fmt: skip


def difference(tree: Any, other: Any) -> float:
    """The largest difference, over the largest number."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    gaps = [float(jnp.max(jnp.abs(a - b))) for a, b in pairs]
    return max(gaps) / max(float(jnp.max(jnp.abs(b))) for b in jax.tree.leaves(other))


def main() -> None:
    given = arguments(__doc__, "narrow models, for CI").parse_args()
    quick = given.quick
    bench, device = Bench("per_example", quick, given.out), jax.devices()[0]
    print(
        f"jax {jax.__version__}, optax {optax.__version__}, {device.device_kind}, "
        f"{os.cpu_count()} cores, {platform.machine()}, float32"
    )
    if not of_jax_privacy(mlp(1)):
        print("jax-privacy is not installed (pip install jax-privacy): left out")
    rounds = 3 if quick else 15
    models = {
        "MLP": mlp(EXAMPLES, 128 if quick else 1024),
        "transformer": transformer(EXAMPLES, *((64, 16) if quick else (256, 64))),
        "convolutions": convolutions(EXAMPLES, 16 if quick else 32),
    }
    claims = []
    for name, model in models.items():
        claims += measure(bench, name, model, rounds)
    print(f"\n{'verdict':<8}{'ours':>11}  {'wanted':<26} claim")
    for claim in claims:
        print(claim)
    failed = sum(not claim.holds for claim in claims)
    print(f"\n{failed} claims fail.")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
