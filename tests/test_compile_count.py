"""An eager call compiles once: other numbers and keys of equal structure do not.

Every verb that is not a limit or a criterion, on problems that compile quickly. What
is counted is all that XLA compiles, single operations on the host included.
"""

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optimistix as optx
import pytest

import jaxclip as jc

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """The names of what XLA has compiled since `clear`."""

    def __init__(self):
        self.names = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **others):
        del duration
        if event == _COMPILED:
            self.names.append(others.get("fun_name", ""))

    def clear(self):
        self.names.clear()


@pytest.fixture(scope="module")
def compilations():
    return Compilations()


# Limits and criteria, which are counted in a file of their own; what runs them.
LIMITS = {
    *("solve", "moments", "limit_map", "time_scale", "coordinate_moments"),
    *("best_clip", "heuristic", "max_ccc", "score", "ceiling"),
    *("fisher_information", "advise", "loss_moments"),
}


# The functions that users write, made once


def bowl(x):
    return jnp.sum(x**2) / 2 + jnp.sum(x) ** 4


def waves(x):
    return jnp.sum(jnp.cos(9 * x))


def row_loss(params, example):
    x, y = example
    return (jnp.dot(params["w"], x) - y) ** 2 / 2


def network(params, x):
    return jnp.tanh(jnp.dot(params["w"], x))


def row_gradient(params, batch):
    return jax.grad(lambda p: jnp.mean(jax.vmap(row_loss, (None, 0))(p, batch)))(params)


def falling(k):
    return jnp.where(k > 1, 0.05, 0.1)


def first_entry(x):
    return x[0]


@dataclasses.dataclass
class Falling:
    """A function of the step without a hash, as a mutable dataclass is."""

    start: float

    def __call__(self, k):
        return jnp.where(k > 1, 0.5, 1.0) * self.start


_FALLING = Falling(0.2)


# Numbers of equal structure, others for each `i`


def numbers(i, *shape):
    """Where `i` is traced, as for an exported program, so are they."""
    if isinstance(i, jax.core.Tracer):
        return jr.normal(jr.key(i), shape)
    return jnp.asarray(np.random.default_rng(i).normal(size=shape))


def weights(i):
    return {"w": numbers(i, 2)}


def rows(i, n=12):
    return numbers(i, n, 2), numbers(i + 50, n)


def table(i):
    """Rows and labels as a `Regression` takes them, which are never traced."""
    draw = np.random.default_rng(0 if isinstance(i, jax.core.Tracer) else i).normal
    return draw(size=(12, 2)), draw(size=12)


def landscape(i):
    return jc.Landscape(bowl, numbers(i, 2), noise=jc.Gaussian(0.1 + i))


def linear(i):
    spectrum = jc.Spectrum(jnp.array([1.0, 0.5 / (1 + i)]), np.array([2, 1]))
    return jc.LinearModel(spectrum, jc.Gaussian(1.0 + i), jnp.full(2, 0.1))


def knots(i, scale):
    return jc.PiecewiseLinear(np.array([0, 3]), scale * jnp.array([1.0 + i, 2.0]))


def simulate(i, clip, lr, problem=None, **settings):
    settings = {"steps": 4, "every": 2, "key": jr.key(i)} | settings
    problem = landscape(i) if problem is None else problem
    return jc.simulate(problem, clip, lr, **settings)


def train(i, optimiser):
    # Optax itself mixes an integer count with floats.
    with jax.numpy_dtype_promotion("standard"):
        return jc.train(landscape(i), optimiser, steps=4, every=2, key=jr.key(i))


def final_risk(lr, threshold, key):
    run = jc.simulate(landscape(0), jc.HardClip(threshold), lr, steps=2, key=key)
    return run.risk[-1]


def swept(i):
    axes = {"lr": jnp.array([0.1, 0.2 + i]), "threshold": jnp.array([1.0, 2.0 + i])}
    return jc.sweep(final_risk, axes | {"key": jr.split(jr.key(i), 2)}, progress=False)


def updated(transform, i, *shape, **extra):
    """Two updates of an optax transform, operation by operation."""
    params = {"a": numbers(i, 2, 3), "b": numbers(i + 1, 3)}
    grads = jax.tree.map(lambda x: numbers(i + 2, *shape, *x.shape), params)
    extra = {name: grads for name in extra}
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update(grads, state, params, **extra)
    return updates, state


def hard(i):
    return jc.as_transform(jc.HardClip(0.5 + i))


SIMULATE: dict[str, Callable[[int], Any]] = {
    "numbers": lambda i: simulate(i, jc.HardClip(1.0 + i), 0.1 / (1 + i)),
    "modules": lambda i: simulate(i, jc.SoftClip(knots(i, 1.0)), knots(i, 0.1)),
    "functions": lambda i: simulate(i, jc.HardClip(falling), falling),
    "without a hash": lambda i: simulate(i, jc.HardClip(1.0 + i), _FALLING),
    "observe": lambda i: simulate(i, jc.Identity(), 0.1, observe=first_entry),
    "examples": lambda i: simulate(
        *(i, jc.DeltaClip(1.0 + i, 0.1), 0.1),
        batch_size=2,
        scope=jc.PerExample(noise_std=0.1 + i),
    ),
    "Blocked": lambda i: simulate(i, jc.HardClip(1.0 + i), 0.1, linear(i)),
    "Lumped": lambda i: simulate(
        i, jc.HardClip(1.0 + i), 0.1, linear(i), engine=jc.Lumped()
    ),
    "rows": lambda i: simulate(i, jc.HardClip(1.0 + i), 0.1, jc.Regression(*table(i))),
    "vmap": lambda i: jax.vmap(lambda c: simulate(i, jc.HardClip(c), 0.1).risk)(
        jnp.array([1.0, 2.0 + i])
    ),
    "grad": lambda i: jax.grad(lambda c: simulate(i, jc.HardClip(c), 0.1).risk[-1])(
        jnp.asarray(0.1 + 0.1 * i)
    ),
}
TRAIN: dict[str, Callable[[int], Any]] = {
    "sgd": lambda i: train(i, optax.sgd(0.1 + i, momentum=0.5)),
    "adam": lambda i: train(i, optax.adamw(0.1 + i, b1=0.5)),
    "schedule": lambda i: train(
        i, optax.chain(hard(i), optax.sgd(optax.cosine_decay_schedule(0.1 + i, 10)))
    ),
    "function": lambda i: train(i, optax.sgd(falling)),
    "module": lambda i: train(i, optax.sgd(knots(i, 0.1))),
    "adaptive": lambda i: train(
        i,
        optax.chain(
            jc.as_transform(jc.Adaptive(jc.policy.QuantileDescent(0.5, 0.1 + i))),
            jc.monitor(hard(i)),
            optax.sgd(0.1),
        ),
    ),
}
OTHERS: dict[str, Callable[[int], Any]] = {
    "run_spider": lambda i: jc.run_spider(
        landscape(i),
        jc.Spider(
            *(
                jc.SpiderClip(1.0 + i, 1.0, 0.1),
                0.1 / (1 + i),
                jc.algorithm.PeriodicSpider(2),
            ),
            anchor_size=4,
        ),
        steps=4,
        key=jr.key(i),
    ),
    "basins": lambda i: jc.basins(
        *(landscape(i), jc.HardClip(1.0 + i), 0.1, numbers(i, 3, 2)),
        np.array([[0.0, 0.0], [9.0, 9.0]]) - 9 * i,
        steps=70,
        noisy=1,
        key=jr.key(i),
        tolerance=0.1 + i,
    ),
    "default_engine": lambda i: (jc.sgd.default_engine(linear(i)), i),
    "sweep": lambda i: swept(i).values,
    "tune": lambda i: jc.tune(bowl, numbers(i, 2), steps=3),
    "tune: optimistix": lambda i: jc.tune(
        bowl, numbers(i, 2), steps=2, optimiser=optx.NonlinearCG(1e-6, 1e-6)
    ),
    "tune: optax": lambda i: jc.tune(
        bowl, numbers(i, 2), steps=3, optimiser=optax.sgd(0.1 + 0.1 * i)
    ),
    "unroll": lambda i: jc.unroll(
        *(row_gradient, weights(i), optax.chain(hard(i), optax.sgd(0.1 + i))),
        jax.tree.map(lambda x: x.reshape(6, 2, *x.shape[1:]), rows(i)),
    ),
    "diagnose": lambda i: jc.diagnose(
        row_loss, weights(i), rows(i), thresholds=jnp.array([0.1, 1.0 + i])
    ),
    "check_chain": lambda i: vars(
        jc.diagnosis.check_chain(
            optax.adam(0.1 + i),
            weights(i),
            jax.tree.map(lambda x: numbers(i + 1, 5, *x.shape), weights(i)),
            before=hard(i),
            after=jc.skip_nonfinite(optax.scale(0.5 + i)),
        )
    ),
    "diagnose: batches": lambda i: jc.diagnose(
        row_loss, weights(i), rows(i, 18), batch_size=2
    ),
    "diagnose: groups": lambda i: jc.diagnose(
        row_loss, weights(i), rows(i, 16), batch_size=4, group=2
    ),
    "diagnose: noise": lambda i: jc.diagnose(
        row_loss, weights(i), rows(i), batch_size=2, noise_multiplier=0.5 + i
    ),
    "sharpness": lambda i: jc.curvature.sharpness(bowl, numbers(i, 2), key=jr.key(i)),
    "loss_barrier": lambda i: jc.curvature.loss_barrier(
        waves, numbers(i, 2), numbers(i + 1, 2)
    ),
    "largest_curvature": lambda i: jc.curvature.largest_curvature(
        bowl, numbers(i, 2), key=jr.key(i)
    ),
    "tangent_kernel": lambda i: jc.curvature.tangent_kernel(
        network, weights(i), rows(i)[0]
    ),
    "pl_violations": lambda i: (
        jc.curvature.pl_violations(
            *(jnp.array([1.0, 0.5 + i, 0.2]), jnp.array([1.0, 0.5, 0.2 + i])),
            *(jc.HardClip(1.0 + i), 0.1 + i),
            mu=0.1 + i,
            floor=0.2 + i,
        ),
        i,
    ),
    "hard_clip_floor": lambda i: jc.curvature.hard_clip_floor(
        1.0 + i, 1.0 + i, 0.1 + i, jnp.arange(3.0) / 9, largest=0.1 + i
    ),
    "stable_lr": lambda i: jc.stable_lr(linear(i)),
    "stable_lr: rows": lambda i: jc.stable_lr(jc.Regression(*table(i))),
    "random_features": lambda i: jc.problem.random_features(
        rows(i)[0], 3, key=jr.key(i)
    ),
    "spectrum": lambda i: (
        jc.Spectrum.power_law(4, 0.5 + i),
        jc.Spectrum.isotropic(4, 1.0 + i),
    ),
    "spectrum: data": lambda i: (
        jc.Spectrum.from_data(table(i)[0]),
        jc.Spectrum.from_covariance(np.eye(3) * (1 + i)),
    ),
    "spectrum: features": lambda i: (
        jc.Spectrum.power_law_features(1.0 + i, 0.5 + i, 9, 4, key=jr.key(i)),
        jc.problem.CompressedLinearModel.power_law_features(1.0 + i, 0.5, 9, 4),
    ),
    "scaling_law": lambda i: jc.criterion.scaling_law(0.5 + i, 0.5),
    "compute_optimal": lambda i: jc.criterion.compute_optimal(
        jnp.array([[1.0, 2.0 + i]]), jnp.array([[1.0, 0.5]]) + i, jnp.array([1.5 + i])
    ),
    "safe_norm": lambda i: jc.safe_norm(weights(i)),
    "clipped_grad": lambda i: jc.clipped_grad(row_loss, jc.HardClip(1.0 + i))(
        weights(i), rows(i)
    ),
    "clipped_value_and_grad": lambda i: jc.clipped_value_and_grad(
        row_loss, jc.HardClip(1.0 + i), passes=2
    )(weights(i), rows(i)),
    "clipped_grad: microbatches": lambda i: jc.clipped_grad(
        row_loss,
        jc.HardClip(1.0 + i),
        jc.PerExample(noise_std=0.1 + i, key=jr.key(i)),
        microbatch=4,
    )(weights(i), rows(i), step=i),
}
TRANSFORMS: dict[str, Callable[[int], Any]] = {
    "as_transform": lambda i: updated(hard(i), i),
    "as_transform: examples": lambda i: updated(
        jc.as_transform(
            jc.HardClip(1.0 + i), jc.PerExample(noise_std=0.1 + i, key=jr.key(i))
        ),
        *(i, 4),
    ),
    "as_transform: adaptive": lambda i: updated(
        jc.as_transform(jc.Adaptive(jc.policy.ZScore(2.0 / (1 + i)))), i
    ),
    "as_transform: criterion": lambda i: updated(
        jc.as_transform(jc.Adaptive(jc.policy.Criterion(errors=1.0 + i))), i
    ),
    "as_transform: AGGC": lambda i: updated(
        jc.as_transform(
            jc.Adaptive(jc.policy.AGGC(0.5 + i, 1.5 + i, decay=0.9 / (1 + i)))
        ),
        i,
    ),
    "as_transform: stabilised": lambda i: updated(
        jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer(0.7 / (1 + i)))), i
    ),
    "as_transform: units": lambda i: updated(
        jc.as_transform(jc.HardClip(0.1 + i), jc.PerUnit()), i
    ),
    "centered_clip": lambda i: updated(
        jc.algorithm.centered_clip(jc.HardClip(1.0 + i)), i, 4
    ),
    "geometric_median": lambda i: updated(
        jc.algorithm.geometric_median(eps=0.1 + i), i, 4
    ),
    "clip21": lambda i: updated(jc.algorithm.clip21(jc.HardClip(1.0 + i), 4), i, 4),
    "clipped_sstm": lambda i: updated(
        jc.algorithm.clipped_sstm(0.1 + i, jc.HardClip(1.0 + i)), i
    ),
    "error_feedback": lambda i: updated(jc.algorithm.error_feedback(hard(i)), i),
    "mixed_momentum": lambda i: updated(
        jc.algorithm.mixed_momentum(jc.HardClip(1.0 + i)), i
    ),
    "stable_adam": lambda i: updated(
        jc.algorithm.stable_adam(jc.HardClip(1.0 / (1 + i)), b2=0.9 / (1 + i)), i
    ),
    "monitor": lambda i: updated(jc.monitor(hard(i)), i),
    "clip_metrics": lambda i: jc.clip_metrics(updated(jc.monitor(hard(i)), i)[1]),
    "skip_spikes": lambda i: updated(
        jc.skip_spikes(optax.sgd(0.1 + i), jc.HardClip(50.0 + i)), i
    ),
    "skip_nonfinite": lambda i: updated(jc.skip_nonfinite(hard(i)), i),
    "zero_nonfinite": lambda i: updated(jc.zero_nonfinite(hard(i)), i),
    "spider": lambda i: updated(
        jc.algorithm.spider(
            *(jc.HardClip(1.0 + i), jc.algorithm.PeriodicSpider(2)),
            anchor_size=4,
            batch_size=2,
        ),
        i,
        previous_gradient=True,
    ),
}
CASES = {
    **{f"simulate: {name}": case for name, case in SIMULATE.items()},
    **{f"train: {name}": case for name, case in TRAIN.items()},
    **OTHERS,
    **TRANSFORMS,
}


def leaves(result):
    """The numbers of a result; keys as their data."""
    found = [leaf for leaf in jax.tree.leaves(result) if eqx.is_array_like(leaf)]
    return [np.asarray(jax.block_until_ready(leaf)) for leaf in found]


# What these hold of this package's transforms: a type checker makes functions anew.
UNCHECKED = ("train: schedule", "train: adaptive", "unroll", "check_chain")


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNCHECKED])
def test_a_second_call_compiles_nothing(name, compilations):
    call = CASES[name]
    first = leaves(call(0))
    compilations.clear()
    second, again = leaves(call(1)), leaves(call(0))
    assert compilations.names == []
    # Nor are numbers compiled in: each call has the results of its own.
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = zip(first, second, strict=True)
    assert any(not np.array_equal(one, other) for one, other in pairs)


def test_without_type_checks():
    """In a process of its own, as users run it: without x64, and without the checks
    that pytest puts around every function of the package."""
    code = (
        "import sys, test_compile_count as t; seen = t.Compilations();"
        "[t.test_a_second_call_compiles_nothing(name, seen) for name in sys.argv[1:]]"
    )
    names = *UNCHECKED, "train: adam", "simulate: modules"
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


_OF_LIMITS = ("limit_map", "time_scale", "coordinate_moments", "loss_moments")


def test_every_verb_is_counted():
    modules = jc, jc.algorithm, jc.curvature, jc.inject, jc.policy
    names = [
        (name, getattr(module, name)) for module in modules for name in dir(module)
    ]
    names += [(n, getattr(jc.limit, n)) for n in _OF_LIMITS]
    names += [("random_features", jc.problem.random_features)]
    names += [("check_chain", jc.diagnosis.check_chain)]
    names += [("fisher_information", jc.criterion.fisher_information)]
    public = {n for n, value in names if inspect.isfunction(value) and n[0] != "_"}
    counted = {name.split(":")[0] for name in CASES}
    assert public - LIMITS - counted == set(), "in no list: count its compilations"
    assert LIMITS - public == set(), "no longer public"


def test_a_compilation_is_seen(compilations):
    """What the test above would count: new shapes, and functions made anew."""
    jc.curvature.sharpness(bowl, numbers(0, 2), key=jr.key(0))
    compilations.clear()
    jc.curvature.sharpness(lambda x: bowl(x), numbers(0, 2), key=jr.key(0))
    assert compilations.names
    compilations.clear()
    jnp.arange(7919.0) + 1
    assert compilations.names


# Two that are equal must compute the same


def quadratic(x):
    return jnp.sum(x**2) / 2


def constant(rate):
    return lambda k: rate


def last_params(optimiser, steps=3):
    problem = jc.Landscape(quadratic, jnp.array([1.0, -2.0]))
    return jc.train(problem, optimiser, steps=steps, key=jr.key(0)).params


def decaying(decay):
    """An optimiser that decides by a Python number, and is not optax's."""

    def update(updates, state, params=None):
        del params
        factor = 0.5 if decay > 0.3 else 0.25
        return jax.tree.map(lambda g: -factor * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@pytest.mark.float32
def test_each_optimiser_has_numbers_of_its_own():
    start = np.array([1.0, -2.0])
    for rate in (0.1, 0.25):
        expected = start * (1 - rate) ** 3
        # A number, and functions of one code: with a default argument, with a closure.
        rates = (rate, lambda k, r=rate: r, constant(rate))
        for each in rates:
            result = last_params(optax.sgd(each))
            np.testing.assert_allclose(result, expected, rtol=1e-5)
    for decay, factor in ((0.2, 0.75), (0.4, 0.5)):
        result = last_params(decaying(decay))
        np.testing.assert_allclose(result, start * factor**3, rtol=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize(
    "optimiser",
    [
        # `optax.apply_if_finite` and `optax.masked` hold transforms in closures.
        optax.apply_if_finite(optax.adam(0.1), 2),
        optax.masked(optax.sgd(0.1, momentum=0.9), True),
        # What the monitor asks for is an attribute of the clip's `update`.
        optax.chain(jc.monitor(jc.as_transform(jc.HardClip(1.0))), optax.adam(0.1)),
        jc.skip_nonfinite(optax.adagrad(0.1)),
        # A number decides what is computed.
        optax.chain(optax.clip_by_global_norm(1.0), optax.lion(0.1)),
    ],
    ids=["apply_if_finite", "masked", "monitor", "skip_nonfinite", "lion"],
)
def test_an_optimiser_taken_apart_is_the_same(optimiser):
    """Against a loop in Python, with the optimiser as it came."""
    with jax.numpy_dtype_promotion("standard"):
        result = last_params(optimiser)
        params = jnp.array([1.0, -2.0])
        state = optimiser.init(params)
        for _ in range(3):
            updates, state = optimiser.update(params, state, params)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(result, params, rtol=1e-4)


def test_what_an_optimiser_decides_by_a_number():
    """Of an optimiser that would be taken apart, since it says that it is ours."""
    made = dict(__name__="jaxclip.of_a_test", optax=optax, jax=jax)
    exec(inspect.getsource(decaying), made)
    for decay, factor in ((0.2, 0.75), (0.4, 0.5)):
        result = last_params(made["decaying"](decay))
        np.testing.assert_allclose(result, [factor**3, -2 * factor**3], rtol=1e-12)


def test_a_sweep_sees_what_has_changed():
    """Its function is the same object, and reads a name that is not."""
    outside = {"scale": 1.0, "table": np.ones(3)}

    def read(x):
        return x * outside["scale"] + jnp.asarray(outside["table"])[0]

    def values():
        return jc.sweep(read, {"x": jnp.arange(2.0)}, progress=False).values

    np.testing.assert_array_equal(values(), [1.0, 2.0])
    outside["scale"] = 3.0
    np.testing.assert_array_equal(values(), [1.0, 4.0])
    outside["table"] = np.full(3, 5.0)
    np.testing.assert_array_equal(values(), [5.0, 8.0])
