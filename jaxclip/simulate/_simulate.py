"""The verbs that run SGD: `simulate` with a rule, `train` with an optax optimiser."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from .._checks import count
from .._curve import Curve
from .._schedule import check_rate
from .._types import Key, RealScalarLike, Schedule
from ..clip import AbstractClip
from ..problem import AbstractLinear, AbstractProblem
from ..transform import AbstractScope, PerExample, PerTree, as_transform
from ._blocked import run_blocked
from ._direct import run_optimiser
from ._loop import Observe


class AbstractEngine(eqx.Module):
    """A way to compute a run. All engines give the same run for the same key."""

    @abc.abstractmethod
    def run(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        *,
        scope: AbstractScope,
        steps: int,
        every: int,
        key: Key,
        batch_size: int,
        observe: Observe | None,
    ) -> Curve:
        """The run; the arguments are those of [`jaxclip.simulate`][], checked."""


class Direct(AbstractEngine):
    """One step at a time, for any problem and any rule.

    The step is that of the optax optimiser
    `chain(as_transform(clip, scope), scale_by_learning_rate(lr))`.
    """

    def run(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        *,
        scope: AbstractScope,
        **settings: Any,
    ) -> Curve:
        optimiser = optax.chain(
            as_transform(clip, scope), optax.scale_by_learning_rate(lr)
        )
        # A scope over examples reduces the batch itself, after clipping.
        reduce = (lambda g: g) if isinstance(scope, PerExample) else _mean
        return run_optimiser(problem, optimiser, reduce, **settings)


class Blocked(AbstractEngine):
    """Many steps at a time by matrix products, for linear models.

    The same trajectory as [`jaxclip.Direct`][] to rounding, several times faster, and
    much more so under a `vmap` over settings that share their key: the features and
    their Gram matrix are then made once for all settings. The memory of a block is
    `size * (d + size)` numbers, and a gradient keeps one set of parameters a block.

    **Arguments:**

    - `size`: samples in a block; blocks are cut at every recorded step. 64 suits few
        settings at once, 128 hundreds of them.
    """

    size: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        count("size", self.size)

    def run(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        *,
        scope: AbstractScope,
        **settings: Any,
    ) -> Curve:
        if not isinstance(problem, AbstractLinear):
            raise ValueError(
                "`Blocked()` needs a linear model, whose gradients are multiples of "
                f"the features. Got a {type(problem).__name__}; use `Direct()`."
            )
        return run_blocked(problem, clip, lr, scope=scope, size=self.size, **settings)


def simulate(
    problem: AbstractProblem,
    clip: AbstractClip,
    lr: RealScalarLike | Schedule,
    *,
    steps: int,
    every: int = 1,
    key: Key,
    engine: AbstractEngine | None = None,
    batch_size: int = 1,
    scope: AbstractScope = PerTree(),
    observe: Observe | None = None,
) -> Curve:
    r"""Runs stochastic gradient descent with clipping.

    $$x_{k+1} = x_k - \gamma_k\, f(\|g_k\|)\, g_k,$$

    with the rule's factor $f$ and the gradient $g_k$ of the loss on a fresh batch. It
    may be jitted, vmapped and differentiated in everything that is a number. Under a
    `vmap` over settings, hand all of them the same `key`: they then see the same data,
    so that differences between them are paired, and the data are made once.

    **Arguments:**

    - `problem`: what SGD runs on.
    - `clip`: the rule; `Identity()` for none.
    - `lr`: $\gamma_k$, per step: a number or a function of the step.
    - `steps`: how many steps.
    - `every`: record the risk every so many steps; it must divide `steps`.
    - `key`: determines the data and their order. The same key gives the same run,
        whatever the engine.
    - `engine`: `Direct()` or `Blocked(size)`. By default blocked for linear models.
    - `batch_size`: samples a step.
    - `scope`: `PerTree()` clips the gradient of a batch, `PerExample()` each sample's.
    - `observe`: a function of the parameters, recorded beside the risk.

    **Returns:**

    A [`jaxclip.Curve`][] that starts at step 0. A run that diverges has infinite risk
    from then on.

    **Raises:**

    A `ValueError` where an argument is misused; an error when the program runs where
    a traced learning rate is negative or NaN.
    """
    if not isinstance(clip, AbstractClip):
        raise ValueError(
            "`clip` must be a clipping rule, such as `HardClip(1.0)`, or `Identity()` "
            f"for none. Got {clip!r}."
        )
    scope = _with_noise(scope, key)
    steps, every, batch_size = _lengths(problem, steps, every, batch_size)
    lr = check_rate(lr, jnp.arange(0, steps, every))
    if engine is None:
        engine = Blocked() if isinstance(problem, AbstractLinear) else Direct()
    return engine.run(
        problem,
        clip,
        lr,
        scope=scope,
        steps=steps,
        every=every,
        key=key,
        batch_size=batch_size,
        observe=observe,
    )


def train(
    problem: AbstractProblem,
    optimiser: optax.GradientTransformation,
    *,
    steps: int,
    every: int = 1,
    key: Key,
    batch_size: int = 1,
    observe: Observe | None = None,
) -> Curve:
    """Runs any optax optimiser on a problem.

    On the same key it sees the same data as [`jaxclip.simulate`][].

    **Arguments:**

    - `problem`: what to train on.
    - `optimiser`: an optax optimiser; it is given the mean gradient of each batch.
    - `steps`, `every`, `key`, `batch_size`, `observe`: as in `simulate`.

    **Returns:**

    A [`jaxclip.Curve`][] that starts at step 0.
    """
    steps, every, batch_size = _lengths(problem, steps, every, batch_size)
    return run_optimiser(
        problem,
        optimiser,
        _mean,
        steps=steps,
        every=every,
        key=key,
        batch_size=batch_size,
        observe=observe,
    )


def _lengths(
    problem: AbstractProblem, steps: int, every: int, batch_size: int
) -> tuple[int, int, int]:
    if not isinstance(problem, AbstractProblem):
        raise ValueError(f"`problem` must be a jaxclip problem. Got {problem!r}.")
    steps, every = count("steps", steps), count("every", every)
    batch_size = count("batch_size", batch_size)
    if steps % every:
        nearest = max(steps // every, 1) * every
        raise ValueError(
            "`every` must divide `steps`, so that the last step is recorded. Got "
            f"steps={steps} and every={every}; take steps={nearest}, for example."
        )
    problem.check_length(steps * batch_size)
    return steps, every, batch_size


def _with_noise(scope: AbstractScope, key: Key) -> AbstractScope:
    """The scope, its noise drawn from the run's key."""
    if not isinstance(scope, PerTree | PerExample):
        raise ValueError(f"`scope` must be PerTree() or PerExample(). Got {scope!r}.")
    if not isinstance(scope, PerExample) or scope.noise_std is None:
        return scope
    if scope.key is not None:
        raise ValueError(
            "`scope` must have no `key` of its own here: its noise is drawn from the "
            "run's `key`, so that runs with several keys have noise of their own. "
            "Leave it out."
        )
    # Samples fold in their index; the last index there is, is nobody's.
    return PerExample(scope.reduce, scope.noise_std, jr.fold_in(key, 2**32 - 1))


def _mean(gradients):
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
