"""Runs of clipped SGD on some of the rows of a table, for many settings at once."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from .._types import Example, Params, PyTree, RealScalar, RealScalarLike, Schedule, Step
from ..clip import HardClip
from ..problem import AbstractLinear
from ..sgd import Blocked, simulate

# Settings in one call: a program is compiled for each number of them, so there is one.
WIDTH = 64
# A run whose parameters are as large as this, where all columns have a standard
# deviation of 1, has diverged.
_DIVERGED = 1e30


class SomeRows(AbstractLinear):
    """Least squares on the first `count` of the rows in `order`, with replacement.

    All tables of rows of one size share one compiled program, however many rows they
    train on.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    order: Int[Array, " n"]
    count: Int[Array, ""]

    def init(self) -> Params:
        return jnp.zeros_like(self.X[0])

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        row = self.order[jr.randint(jr.fold_in(stream, index), (), 0, self.count)]
        return self.X[row], self.y[row]

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return prediction - target

    def risk(self, params: Params) -> RealScalar:
        # Measured on other rows, outside; here it only tells whether a run diverged.
        return jnp.sum(params**2)


class Decay(eqx.Module):
    """A learning rate that is constant, or falls along a line to 0 at the end."""

    lr: Float[Array, "..."]
    decays: Float[Array, "..."]
    steps: Float[Array, ""]

    def __call__(self, step: Step) -> Float[Array, "..."]:
        passed = jnp.asarray(step, self.steps.dtype) / self.steps
        return self.lr * (1 - self.decays * passed)


class Profile(eqx.Module):
    """A threshold that is constant, or follows a profile that is 1 at the end."""

    threshold: Float[Array, "..."]
    follows: Float[Array, "..."]
    profile: Float[Array, " m"]
    steps: Float[Array, ""]

    def __call__(self, step: Step) -> Float[Array, "..."]:
        last = len(self.profile) - 1
        at = jnp.asarray(step, self.profile.dtype) / self.steps * last
        i = jnp.clip(at.astype(int), 0, last - 1)
        share = jnp.clip(at - i.astype(at.dtype), 0.0, 1.0)
        value = (1 - share) * self.profile[i] + share * self.profile[i + 1]
        return self.threshold * (1 + self.follows * (value - 1))


class Settings(eqx.Module):
    """Learning rates and thresholds, with how they change over a run.

    - `lr`: shape `(s,)`, per step; `decays`: 1 where it falls along a line to 0 at the
        end of the run, 0 where it is constant.
    - `threshold`: shape `(s,)`, on the gradient's norm, infinite for none; `follows`: 1
        where it follows the profile of the best predicted one, 0 where it is constant.
    """

    lr: Any
    threshold: Any
    decays: Any
    follows: Any

    @classmethod
    def grid(cls, lrs: Any, thresholds: Any, decays: Any, follows: Any) -> "Settings":
        """Every combination of some values of each of the four, as long vectors."""
        axes = np.meshgrid(lrs, thresholds, decays, follows, indexing="ij")
        return cls(*(np.ravel(axis).astype(float) for axis in axes))

    @classmethod
    def join(cls, parts: Iterable["Settings"]) -> "Settings":
        """All of the settings, one part after the other."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def __len__(self) -> int:
        return len(self.lr)

    def __getitem__(self, index: Any) -> "Settings":
        return jax.tree.map(lambda leaf: np.atleast_1d(leaf[index]), self)

    def chunks(self) -> list["Settings"]:
        """The settings 64 at a time, the last 64 filled up with copies of the first: a
        program is compiled for each number of settings, so there is one number."""
        extra = np.zeros(-len(self) % WIDTH, int)
        order = np.append(np.arange(len(self)), extra)
        return [self[part] for part in order.reshape(-1, WIDTH)]

    def schedules(self, profile: Any, steps: int) -> tuple[HardClip, Schedule]:
        """The rule and the learning rate, as functions of the step.

        **Arguments:**

        - `profile`: shape `(m,)`, the threshold over the run in units of that at its
            end, for the settings that follow one.
        - `steps`: the length of the run.
        """
        dtype = jnp.result_type(float)
        profile, end = jnp.asarray(profile, dtype), jnp.asarray(steps, dtype)
        threshold = Profile(self.threshold, self.follows, profile, end)
        return HardClip(threshold), Decay(self.lr, self.decays, end)


def final_params(
    rows: SomeRows,
    settings: Settings,
    profile: Any,
    keys: Any,
    steps: int,
    records: int,
) -> np.ndarray:
    """Where runs are at `records` evenly spaced steps, the last one included.

    All settings of one key see the same rows in the same order.

    **Returns:**

    Shape `(keys, settings, records, d)`, in float64; not finite where a run diverged.
    """
    parts = []
    dtype = rows.X.dtype
    for part in settings.chunks():
        part = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), part)
        found = _params(rows, part, jnp.asarray(profile, dtype), keys, steps, records)
        parts.append(np.asarray(found, float))
    found = np.concatenate(parts, axis=1)[:, : len(settings)]
    # Before its square is no number any more.
    return np.where(np.abs(found) < _DIVERGED, found, np.inf)


# The rows travel as an argument: as a constant they would be compiled in.
@eqx.filter_jit
def _params(
    rows: SomeRows, settings: Settings, profile, keys: Any, steps: int, records: int
) -> Float[Array, "keys settings records d"]:
    engine, every = Blocked(settings=WIDTH), steps // records

    def one(key, setting):
        clip, lr = setting.schedules(profile, steps)
        curve = simulate(
            rows,
            clip,
            lr,
            steps=steps,
            every=every,
            key=key,
            engine=engine,
            observe=lambda x: x,
        )
        return curve.observed[1:]

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, settings)
