"""How a step of SGD is made of samples, beside its rule and its learning rate."""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ..._checks import as_float, check, count, nonnegative
from ..._repr import Shown
from ..._schedule import Constant, as_schedule
from ..._types import Params, PyTree, Schedule
from ...clip import AbstractClip
from .._as_transform import as_transform
from .._scope import AbstractScope, PerTree
from .._scope_example import PerExample


def _coefficient(value: Any) -> Schedule:
    schedule = as_schedule(value, "coefficient")
    if not isinstance(schedule, Constant):
        return schedule
    return Constant(
        check(
            schedule.value,
            lambda x: ~((x >= 0) & (x < 1)),
            "`coefficient` must be at least 0 and below 1: the share of the momentum "
            "that is kept from one step to the next.",
            in_step=True,
        )
    )


class Momentum(Shown):
    r"""Heavy-ball or Nesterov momentum, of the clipped gradient $\tilde g_k$.

    $$m_{k+1} = \beta_k m_k + \tilde g_k, \qquad x_{k+1} = x_k - \gamma_k m_{k+1},$$

    and with Nesterov's variant $x_{k+1} = x_k - \gamma_k (\tilde g_k + \beta_k
    m_{k+1})$: the conventions of `optax.trace` and `optax.sgd`. Polyak 1964,
    doi:10.1016/0041-5553(64)90137-5; Nesterov 1983.

    **Arguments:**

    - `coefficient`: $\beta$, at least 0 and below 1: a number or a function of the
        step.
    - `nesterov`: which of the two.

    **Raises:**

    A `ValueError` where a number is out of its range.
    """

    coefficient: Schedule = eqx.field(converter=_coefficient)
    nesterov: bool = eqx.field(static=True, default=False)


class WeightDecay(Shown):
    r"""Weight decay of the parameters, measured from their origin.

    Decoupled, it is no part of what is clipped and goes past the momentum, as in
    `optax.sgd` followed by `optax.add_decayed_weights` and in AdamW
    (arXiv:1711.05101): $x_{k+1} = x_k - \gamma_k (m_{k+1} + \delta x_k)$. With
    `clipped=True` it is the gradient of the ridge $\delta \|x\|^2 / 2$, which is added
    to that of each sample before it is clipped.

    **Arguments:**

    - `rate`: $\delta$, not negative, in the unit of a second derivative of the loss.
    - `clipped`: whether it is part of the gradient that is clipped.

    **Raises:**

    A `ValueError` where the rate is negative.
    """

    rate: Float[Array, ""] = eqx.field(
        converter=partial(nonnegative, "weight_decay", in_step=True)
    )
    clipped: bool = eqx.field(static=True, default=False)


class Update(eqx.Module):
    """How a step is made of samples: the same for what runs and for what is solved.

    **Arguments:**

    - `batch_size`: samples a step.
    - `scope`: which gradients have a norm: [`jaxclip.PerTree`][] clips that of a batch,
        [`jaxclip.PerExample`][] each sample's.
    - `momentum`: a [`jaxclip.algorithm.Momentum`][], the coefficient of a heavy ball,
        or None.
    - `weight_decay`: a [`jaxclip.algorithm.WeightDecay`][], the rate of a decoupled
        one, or None.

    **Raises:**

    A `ValueError` where one of them is misused.
    """

    batch_size: int = eqx.field(static=True)
    scope: AbstractScope
    momentum: Momentum | None
    weight_decay: WeightDecay | None

    def __init__(
        self,
        batch_size: int = 1,
        scope: AbstractScope = PerTree(),
        momentum: Any = None,
        weight_decay: Any = None,
    ):
        if not isinstance(scope, AbstractScope):
            raise ValueError(
                f"`scope` must be one such as PerTree() or PerExample(). Got {scope}."
            )
        if isinstance(scope, PerExample) and scope.denominator is not None:
            raise ValueError(
                f"`scope` must have no `denominator` here, where all batches have "
                f"one size. Got {scope.denominator}; leave it out."
            )
        self.batch_size = count("batch_size", batch_size)
        self.scope = scope
        self.momentum = _one_of(Momentum, "momentum", momentum)
        self.weight_decay = _one_of(WeightDecay, "weight_decay", weight_decay)

    def optimiser(
        self, clip: AbstractClip, lr: Schedule, origin: Params | None = None
    ) -> optax.GradientTransformation:
        """The optax optimiser of these steps.

        It is given the gradients of each example, along a leading axis, where the scope
        is over examples, and their mean elsewhere.

        **Arguments:**

        - `clip`, `lr`: the rule, and the learning rate as a function of the step.
        - `origin`: where the weights decay to, of their structure; zero by default.
        """
        links: list[optax.GradientTransformation] = [as_transform(clip, self.scope)]
        if self.momentum is not None:
            links.append(_momentum(self.momentum))
        decay = self.weight_decay
        if decay is not None:
            leading = decay.clipped and isinstance(self.scope, PerExample)
            link = _decay(decay.rate, origin, leading)
            links.insert(0 if decay.clipped else len(links), link)
        return optax.chain(*links, optax.scale_by_learning_rate(lr))

    def need_only(
        self, who: str, known: Collection[str] = (), instead: str = "leave it out"
    ) -> None:
        """Refuses all of this that is not the default one and not named here.

        **Arguments:**

        - `who`: what has no formula for the rest, as the sentence names it.
        - `known`: the names of the fields that it does know.
        - `instead`: what to do.

        **Raises:**

        A `ValueError` that names the argument.
        """
        usual = {
            "batch_size": self.batch_size == 1,
            "scope": isinstance(self.scope, PerTree),
            "momentum": self.momentum is None,
            "weight_decay": self.weight_decay is None,
        }
        for name, plain in usual.items():
            if not plain and name not in known:
                raise ValueError(
                    f"`{who}` has no equation for this `{name}`: {instead}. Got "
                    f"{getattr(self, name)!r}."
                )


def _one_of(kind: Any, name: str, value: Any) -> Any:
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, eqx.Module) and not callable(value):
        raise ValueError(
            f"`{name}` must be a number or a `jaxclip.algorithm.{kind.__name__}`. Got "
            f"{value!r}."
        )
    return kind(value if callable(value) else as_float(name, value))


class MomentumState(NamedTuple):
    """The state of the momentum's transform.

    - `made`: how many steps were made.
    - `momentum`: the sum $m_k$, of the structure of the parameters.
    """

    made: Int[Array, ""]
    momentum: PyTree[Array]


def _momentum(momentum: Momentum) -> optax.GradientTransformation:
    # optax.trace with a coefficient that may be a function of the step.
    def init(params: Params) -> MomentumState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return MomentumState(jnp.zeros((), jnp.int32), zeros)

    def update(updates, state, params=None):
        del params
        beta = momentum.coefficient(state.made)

        def add(m, g):
            # A rate of float32 beside gradients of bfloat16.
            with jax.numpy_dtype_promotion("standard"):
                return (g + beta * m).astype(g.dtype)

        total = jax.tree.map(add, state.momentum, updates)
        moved = jax.tree.map(add, total, updates) if momentum.nesterov else total
        steps = jnp.asarray(optax.safe_increment(state.made))
        return moved, MomentumState(steps, total)

    return optax.GradientTransformation(init, update)


def _decay(
    rate: Float[Array, ""], origin: Params | None, leading: bool
) -> optax.GradientTransformation:
    """Adds `rate` times the parameters, to each of a leading axis of examples where
    there is one."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "Weight decay needs the parameters: pass them to `update`."
            )
        from_origin = params
        if origin is not None:
            from_origin = jax.tree.map(jnp.subtract, params, origin)

        def add(g, x):
            with jax.numpy_dtype_promotion("standard"):
                pull = rate * (x[None] if leading else x)
                return (g + pull).astype(g.dtype)

        return jax.tree.map(add, updates, from_origin), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
