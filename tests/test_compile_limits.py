"""Limits and criteria are compiled once: an eager call with other numbers, and an equal
structure, compiles nothing."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what is compiled inside."""
    seen: list[str] = []

    class Count(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Finished XLA compilation"):
                seen.append(message.split(" of ")[-1].split(" in ")[0])

    logger, handler = logging.getLogger("jax"), Count()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with jax.log_compiles():
            yield seen
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class Decay(eqx.Module):
    """A schedule as a user would write it."""

    start: Any = eqx.field(converter=jnp.asarray)

    def __call__(self, step):
        return self.start / (1 + step / 50)


_COSINE = optax.cosine_decay_schedule(0.02, 1000)
_STEPS = np.array([[0.0, 50.0, 100.0], [0.0, 70.0, 90.0]])
IDENTITY = jc.Identity()
_KNOTS = jnp.array([0.0, 60.0])
# A basis whose axes are none of the coordinates.
_TURNED = jnp.asarray(np.linalg.qr(np.vander(np.linspace(1.0, 2.0, 6)))[0])


def _problem(i: int) -> jc.LinearModel:
    spectrum = jc.Spectrum.power_law(6, 0.5)
    return jc.LinearModel(spectrum, jc.Laplace(1.0 + i), jnp.full(6, 0.1 + i))


def _gaussian(i: int) -> jc.LinearModel:
    """With a noise that compiles in less time."""
    return eqx.tree_at(lambda p: p.noise, _problem(i), jc.Gaussian(0.5 + i))


def _steps(i):
    """In which a number may be traced, and by which nothing is compiled."""
    return _STEPS[0] + i * (_STEPS[1] - _STEPS[0])


def _linear(w, x):
    return jnp.dot(w, x)


def _waves(x):
    return jnp.sum(jnp.cos(x))


def _noisy(i: int) -> jc.Interpolation:
    """On its zero-loss set from the start."""
    xs = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]])
    start = jnp.array([1.0, 0.5, 0.2 + i])
    return jc.Interpolation(
        _linear, start, xs, xs @ start, jc.inject.Label(jc.Gaussian(0.1 + i))
    )


def _rate(kind: str, i: int) -> Any:
    return {
        "number": 0.02 + i / 100,
        "module": Decay(0.02 + i / 100),
        "lines": jc.PiecewiseLinear(_KNOTS, jnp.array([0.02, 0.01 + i / 100])),
        "function": _COSINE,
    }[kind]


def _solve(limit: jc.limit.AbstractLimit, kind: str = "number"):
    def call(i):
        lr = _rate(kind, i)
        return jc.solve(
            _problem(i),
            jc.HardClip(3.0 + i),
            lr,
            steps=_steps(i),
            key=jr.key(i),
            limit=limit,
        )

    return call


CALLS: dict[str, Callable[[int], Any]] = {
    "RiskODE": _solve(jc.RiskODE()),
    "RiskODE, module": _solve(jc.RiskODE(), "module"),
    "RiskODE, function": _solve(jc.RiskODE(), "function"),
    "RiskODE, lines": _solve(jc.RiskODE(), "lines"),
    "RiskODE, std": lambda i: jc.solve(
        _gaussian(i), jc.HardClip(3.0 + i), 0.02 + i / 100, steps=_steps(i), std=True
    ),
    # How many steps are made is structure, as in a run.
    "RiskRecursion": lambda i: jc.solve(
        _gaussian(i),
        jc.HardClip(3.0 + i),
        0.02 + i / 100,
        steps=_STEPS[0],
        limit=jc.limit.RiskRecursion(),
    ),
    "MomentumODE": lambda i: jc.solve(
        _problem(i),
        jc.HardClip(3.0 + i),
        _rate("number", i),
        steps=_steps(i),
        momentum=0.5 + i / 10,
        weight_decay=0.1 + i,
    ),
    "AdamODE": lambda i: _solve(jc.limit.AdamODE(0.5 + i / 8, 0.9))(i),
    "AdamODE, moments": lambda i: jc.limit.AdamODE(0.5, 0.9 + i / 99).moments(
        jc.HardClip(1.0 + i), jc.Laplace(1.0 + i), 0.1 + i, 2.0
    ),
    "GeneralisedODE": lambda i: jc.solve(
        jc.Logistic(jc.Spectrum.isotropic(20), [1.0 + i]),
        jc.HardClip(3.0 + i),
        _rate("number", i),
        steps=_steps(i),
    ),
    "loss_moments": lambda i: jc.limit.loss_moments(
        jc.HardClip(1.0 + i), jc.HuberLoss(1.0 + i), jc.Laplace(1.0 + i), 0.1, 2.0
    ),
    "AdagradODE": lambda i: _solve(jc.limit.AdagradODE(0.1 + i))(i),
    "GradientFlow": _solve(jc.GradientFlow()),
    "CoordinateODE": lambda i: jc.solve(
        _problem(i),
        jc.HardClip(3.0 + i),
        _rate("number", i),
        steps=_steps(i),
        scope=jc.PerCoordinate(),
    ),
    "CoordinateODE, signs": lambda i: jc.solve(
        eqx.tree_at(
            lambda p: p.basis, _problem(i), _TURNED, is_leaf=lambda x: x is None
        ),
        jc.Normalize(),
        _rate("number", i),
        steps=_steps(i),
        scope=jc.PerCoordinate(),
    ),
    "coordinate_moments": lambda i: jc.limit.coordinate_moments(
        jc.HardClip(1.0 + i), jc.Laplace(1.0 + i), 0.1, jnp.array([1.0, 0.5])
    ),
    "EdgeFlow": lambda i: jc.solve(
        jc.Landscape(_waves, jnp.array([1.0 + i, 2.0])),
        jc.HardClip(3.0 + i),
        _rate("number", i),
        steps=_steps(i),
        limit=jc.EdgeFlow(),
    ),
    "AdamZeroLossFlow": lambda i: jc.solve(
        _noisy(i),
        IDENTITY,
        _rate("number", i),
        steps=_steps(i),
        limit=jc.limit.AdamZeroLossFlow(b2=0.9 + i / 100),
    ),
    # How many intervals there are is structure, as the number of steps of a run is.
    "HomogenizedSDE": lambda i: jc.solve(
        _problem(i),
        jc.HardClip(3.0 + i),
        _rate("number", i),
        steps=_STEPS[0],
        key=jr.key(i),
        limit=jc.HomogenizedSDE(),
    ),
    "HomogenizedSDE, function": lambda i: jc.solve(
        _problem(i),
        jc.HardClip(_COSINE),
        _COSINE,
        steps=_STEPS[0],
        key=jr.key(i),
        limit=jc.HomogenizedSDE(),
    ),
    "ceiling": lambda i: jc.ceiling(_problem(i), _rate("number", i), steps=_steps(i)),
    "fisher_information": lambda i: jc.criterion.fisher_information(
        jc.Laplace(1.0 + i), 0.1 + i
    ),
    "best_clip": lambda i: jc.best_clip(jc.Laplace(1.0 + i), 0.1 + i, 1.0 + i),
    "moments": lambda i: jc.moments(
        jc.HardClip(1.0 + i), jc.Laplace(1.0 + i), 0.1, 2.0
    ),
    "max_ccc": lambda i: jc.max_ccc(_problem(i), _rate("number", i), steps=100),
    "heuristic": lambda i: jc.heuristic(
        _problem(i), _rate("number", i), 1.0 + i, steps=100
    ),
    "ZeroLossFlow": lambda i: jc.solve(
        _noisy(i),
        IDENTITY,
        _rate("number", i),
        steps=_steps(i),
        limit=jc.ZeroLossFlow(),
    ),
    "ZeroLossSDE": lambda i: jc.solve(
        _noisy(i),
        IDENTITY,
        _rate("module", i),
        steps=np.array([0.0, 5.0]),
        key=jr.key(i),
        limit=jc.ZeroLossSDE(),
    ),
    "limit_map": lambda i: jc.limit.limit_map(
        _noisy(i), jnp.array([1.0, 0.2, 0.3 + i])
    ),
    "time_scale": lambda i: jc.limit.time_scale(_noisy(i)).push,
    "stable_lr": lambda i: jc.stable_lr(_problem(i)),
    "score": lambda i: jc.score(_problem(i), _rate("number", i), steps=100),
}
# What is compiled for long, and takes the same ways as the others.
_SLOW = {
    "RiskODE, std",
    *("RiskODE, lines", "RiskODE, module", "RiskODE, function"),
    *("score", "max_ccc", "heuristic", "MomentumODE"),
    *("AdagradODE", "CoordinateODE, signs", "HomogenizedSDE, function"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in CALLS],
)
def test_a_second_call_compiles_nothing(name):
    call = CALLS[name]
    with compilations() as first:
        jax.block_until_ready(jax.tree.leaves(call(0)))
    with compilations() as second:
        jax.block_until_ready(jax.tree.leaves(call(1)))
    assert not second, second
    # What was compiled by a test before is not compiled again.
    del first


def test_compilations_are_seen():
    """The test above can fail."""
    ones = jnp.ones(3)
    with compilations() as seen:
        jax.jit(lambda x: x + 1)(ones)
    assert len(seen) == 1
