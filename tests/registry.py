"""One example, or more, of every public class that has a family.

A rule, a noise, a loss, a scope, a policy, a problem, an injection, a limit, an engine
or a variant of SPIDER that is public must be here: `test_registry.py` looks for what is
missing, and runs the properties of its family on everything that is here.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxclip as jc

_KEY = jr.key(7)
_SPECTRUM = jc.Spectrum([1.0, 0.3], [2, 3])
_LINEAR = jc.LinearModel(_SPECTRUM, jc.Laplace(0.5), [1.0, 2.0])
_X = np.random.default_rng(0).standard_normal((20, 3))
_Y = _X @ np.array([1.0, -0.5, 0.2]) + np.random.default_rng(1).laplace(size=20)


def _squared(params, example):
    x, y = example
    return jnp.sum((x @ params - y) ** 2) / 2


def _draw(key):
    x_key, y_key = jr.split(key)
    x = jr.normal(x_key, (3,))
    return x, jnp.sum(x) + jr.normal(y_key)


def _net(w, x):
    """A model of four parameters, without any symmetry."""
    return jnp.sin(w[0] * x[0] + w[1]) * w[2] + w[3] ** 2 * x[1] + 0.3 * w[0] * w[3]


def _dropped(w, x, scale):
    return _net(w * jnp.concatenate([jnp.ones(2), scale]), x)


_INPUTS = jnp.array([[0.5, -1.0], [1.5, 0.3]])
_W = jnp.array([0.7, -0.4, 1.1, 0.8])
_FIT = (_W, _INPUTS, jnp.stack([_net(_W, x) for x in _INPUTS]))

RULES: dict[str, jc.AbstractClip] = {
    "Identity": jc.Identity(),
    "HardClip": jc.HardClip(0.8),
    "SoftClip": jc.SoftClip(0.8),
    "RootSoftClip": jc.RootSoftClip(0.8),
    "DeltaClip": jc.DeltaClip(0.8, 0.2),
    "Normalize": jc.Normalize(0.3),
    "AutoS": jc.AutoS(0.1),
    "PSAC": jc.PSAC(0.1),
    "Rescale": jc.clip.Rescale(0.8),
    "SkipClip": jc.SkipClip(0.8),
    "SpiderClip": jc.SpiderClip(2.0, 1.5, 0.25),
    "ScoreClip": jc.ScoreClip(jc.Laplace(0.7), 0.2, 1.3),
}

NOISES: dict[str, jc.AbstractNoise] = {
    "Gaussian": jc.Gaussian(1.0),
    "Rademacher": jc.Rademacher(1.0),
    "SparseSign": jc.noise.SparseSign(0.8, 0.2),
    "Contaminated": jc.Contaminated(1.0, 10.0, 0.1),
    "Empirical": jc.Empirical(np.array([-1.9, -0.7, -0.4, 0.1, 0.3, 1.1, 1.5])),
    "Uniform": jc.Uniform(1.0),
    "Laplace": jc.Laplace(1.0),
    "Exponential": jc.Exponential(1.0),
    "StudentT": jc.StudentT(3.0, 1.0),
    "Cauchy": jc.Cauchy(1.0),
    "Mask": jc.noise.Mask(0.6),
    "WithGaussian": jc.noise.WithGaussian(jc.StudentT(3.0, 0.6), 0.5),
}

LOSSES: dict[str, jc.problem.AbstractLoss] = {
    "SquaredLoss": jc.SquaredLoss(),
    "HuberLoss": jc.HuberLoss(0.7),
    "PinballLoss": jc.PinballLoss(0.3),
    "LogisticLoss": jc.LogisticLoss(),
}

SCOPES: dict[str, jc.transform.AbstractScope] = {
    "PerTree": jc.PerTree(),
    "PerLeaf": jc.PerLeaf(),
    "PerLeafRMS": jc.transform.PerLeafRMS(),
    "PerLeafShare": jc.transform.PerLeafShare(),
    "PerUnit": jc.PerUnit(),
    "PerCoordinate": jc.PerCoordinate(),
    "PerExample": jc.PerExample(),
}

POLICIES: dict[str, jc.policy.AbstractPolicy] = {
    "Percentile": jc.policy.Percentile(30.0, window=16),
    "QuantileDescent": jc.policy.QuantileDescent(0.7, lr=0.1, initial=1.0),
    "ZScore": jc.policy.ZScore(1.5, decay=0.9, max_norm=4.0, warmup=5),
    "AdaGC": jc.policy.AdaGC(1.1, decay=0.9, warmup=5),
    "SecondMoment": jc.policy.SecondMoment(4.0, decay=0.9),
    "AGGC": jc.policy.AGGC(0.8, 1.2, decay=0.9, min_norm=0.1, max_raise=3.0),
    "GradientStabilizer": jc.policy.GradientStabilizer(0.8, square_decay=0.9),
    "RandomThreshold": jc.policy.RandomThreshold(1.0, beta=0.5, key=_KEY),
    "Criterion": jc.policy.Criterion(window=64),
}
# Those that see norms alone, and may have a threshold for each part of a gradient.
POLICIES_OF_NORMS = {
    name: policy
    for name, policy in POLICIES.items()
    if not isinstance(policy, jc.policy.AbstractDirectedPolicy)
}

INJECTIONS: dict[str, jc.Interpolation] = {
    "Label": jc.Interpolation(_net, *_FIT, jc.inject.Label(jc.Gaussian(0.3))),
    "Dropout": jc.Interpolation(
        _dropped, *_FIT, jc.inject.Dropout(jc.noise.Mask(0.9), units=2)
    ),
    "DropConnect": jc.Interpolation(
        _net, *_FIT, jc.inject.DropConnect(jc.Rademacher(0.3))
    ),
    "AntiCorrelated": jc.Interpolation(
        _net, *_FIT, jc.inject.AntiCorrelated(jc.Uniform(0.3))
    ),
    "Langevin": jc.Interpolation(_net, *_FIT, jc.inject.Langevin(jc.Gaussian(0.3))),
    "Minibatch": jc.Interpolation(_net, *_FIT, jc.inject.Minibatch()),
}

PROBLEMS: dict[str, jc.AbstractProblem] = {
    "LinearModel": _LINEAR,
    "Logistic": jc.Logistic(_SPECTRUM, [1.0, 0.6], [-0.4, 0.5]),
    "Poisson": jc.problem.Poisson(_SPECTRUM, [0.5, 0.3], [-0.2, 0.3]),
    "Regression": jc.Regression(_X, _Y),
    "FiniteSum": jc.FiniteSum(_squared, jnp.zeros(3), (_X, _Y)),
    "Online": jc.Online(
        _squared, jnp.zeros(3), _draw, risk=lambda p: jnp.sum((p - 1) ** 2) / 2
    ),
    "Repeated": jc.Repeated(_LINEAR, 2),
    "Landscape": jc.Landscape(lambda x: jnp.sum(jnp.cos(x)) + 3, jnp.ones(3)),
    "TwoWells": jc.TwoWells(jnp.array([3.0, 0.5])),
    "Interpolation": INJECTIONS["Label"],
    "NoisyLoss": jc.problem.NoisyLoss(
        lambda w, e: (_net(w, _INPUTS[0]) * (1 + e[0] * w[1]) - 0.5) ** 2,
        lambda w: _net(w, _INPUTS[0])[None] - 0.5,
        _W,
        jc.Laplace(0.3),
        shape=(1,),
    ),
}

# With a problem that each is for.
LIMITS: dict[str, tuple[jc.limit.AbstractLimit, jc.AbstractProblem]] = {
    "RiskODE": (jc.RiskODE(), _LINEAR),
    "RiskRecursion": (jc.limit.RiskRecursion(), _LINEAR),
    "MomentumODE": (jc.limit.MomentumODE(), _LINEAR),
    "AdamODE": (jc.limit.AdamODE(0.5, 0.9), _LINEAR),
    "AdagradODE": (jc.limit.AdagradODE(), _LINEAR),
    "GeneralisedODE": (jc.limit.GeneralisedODE(), PROBLEMS["Logistic"]),
    "HomogenizedSDE": (jc.HomogenizedSDE(), _LINEAR),
    "CoordinateODE": (jc.limit.CoordinateODE(), _LINEAR),
    "EdgeFlow": (jc.EdgeFlow(), PROBLEMS["Landscape"]),
    "AdamZeroLossFlow": (jc.limit.AdamZeroLossFlow(), INJECTIONS["Label"]),
    "GradientFlow": (jc.GradientFlow(), PROBLEMS["FiniteSum"]),
    "ZeroLossFlow": (jc.ZeroLossFlow(), INJECTIONS["DropConnect"]),
    "ZeroLossSDE": (jc.ZeroLossSDE(), INJECTIONS["Langevin"]),
}

ENGINES: dict[str, jc.sgd.AbstractEngine] = {
    "Direct": jc.Direct(),
    "Blocked": jc.Blocked(),
    "Lumped": jc.Lumped(),
}

VARIANTS: dict[str, jc.algorithm.AbstractSpiderVariant] = {
    "PeriodicSpider": jc.algorithm.PeriodicSpider(3),
    "AuthorsSpider": jc.algorithm.AuthorsSpider(0.3, _KEY),
}

FAMILIES: dict[type, dict[str, Any]] = {
    jc.AbstractClip: RULES,
    jc.AbstractNoise: NOISES,
    jc.problem.AbstractLoss: LOSSES,
    jc.transform.AbstractScope: SCOPES,
    jc.policy.AbstractPolicy: POLICIES,
    jc.policy.AbstractDirectedPolicy: {"Criterion": POLICIES["Criterion"]},
    jc.inject.AbstractInjection: INJECTIONS,
    jc.AbstractProblem: PROBLEMS,
    jc.limit.AbstractLimit: LIMITS,
    jc.sgd.AbstractEngine: ENGINES,
    jc.algorithm.AbstractSpiderVariant: VARIANTS,
}


def public_classes() -> Iterator[type]:
    """Every class that a user can reach: flat, in a namespace, or at a room's door."""
    rooms = ("advice", "algorithm", "clip", "criterion", "curvature", "diagnosis")
    rooms += ("grid", "inject", "limit", "noise", "policy", "problem", "sgd")
    rooms += ("transform", "tuning")
    modules = [jc, *(getattr(jc, room) for room in rooms)]
    names = [(module, name) for module in modules for name in dir(module)]
    values = {getattr(module, name) for module, name in names if name[0] != "_"
              and inspect.isclass(getattr(module, name))}  # fmt: skip
    yield from sorted(values, key=lambda value: value.__name__)
