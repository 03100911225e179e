"""What one step of clipped gradient descent adds to its state."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._types import Params, PyTree, RealScalar, RealScalarLike, Schedule
from ..clip import AbstractClip
from ..problem import AbstractProblem
from ..transform import algorithm

# The parameters and the momentum, which is None where there is none.
State = tuple[Params, PyTree[Array]]


class Descent(eqx.Module):
    """Clipped gradient descent, step by step."""

    problem: AbstractProblem
    clip: AbstractClip
    lr: Schedule
    update: algorithm.Update

    def start(self) -> State:
        params = self.problem.init()
        if self.update.momentum is None:
            return params, None
        return params, jax.tree.map(jnp.zeros_like, params)

    def slope(self, params: Params) -> Params:
        """The gradient that is clipped."""
        slope, decay = jax.grad(self.problem.risk)(params), self.update.weight_decay
        if decay is not None and decay.clipped:
            return plus(slope, decay.rate, params)
        return slope

    def factor(self, params: Params, k: RealScalarLike) -> RealScalar:
        return self.clip.factor(optax.tree.norm(self.slope(params)), k)

    def increment(self, state: State, k: RealScalarLike) -> State:
        """What a step adds to the parameters and to the momentum."""
        params, momentum = state
        slope, decay = self.slope(params), self.update.weight_decay
        clipped = times(self.clip.factor(optax.tree.norm(slope), k), slope)
        moved, gained = clipped, None
        if self.update.momentum is not None:
            beta = self.update.momentum.coefficient(k)
            gained = plus(clipped, beta - 1, momentum)
            moved = jax.tree.map(jnp.add, momentum, gained)
            if self.update.momentum.nesterov:
                moved = plus(clipped, beta, moved)
        if decay is not None and not decay.clipped:
            moved = plus(moved, decay.rate, params)
        return times(-jnp.asarray(self.lr(k)), moved), gained


def times(scale: RealScalarLike, tree: Any) -> Any:
    """A multiple, each leaf in its own precision."""
    return jax.tree.map(lambda x: jnp.asarray(scale).astype(x.dtype) * x, tree)


def plus(first: Any, scale: RealScalarLike, second: Any) -> Any:
    """The first and a multiple of the second."""
    return jax.tree.map(jnp.add, first, times(scale, second))
