"""Where gradient descent ends up, over many starts."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._checks import as_float, count, nonnegative
from .._schedule import check_rate
from .._types import Key, Params, PyTree, RealScalar, RealScalarLike, Schedule, Step
from ..clip import AbstractClip, need_rule
from ..problem import AbstractLandscape
from ..transform import safe_norm

# The steps between two looks at whether a run has settled. Even, so that a run which
# jumps to and fro between two points is found at the same one.
_STRETCH = 64


def basins(
    landscape: AbstractLandscape,
    clip: AbstractClip,
    lr: RealScalarLike | Schedule,
    starts: PyTree[ArrayLike],
    minima: PyTree[ArrayLike],
    *,
    steps: int,
    noisy: int = 0,
    key: Key | None = None,
    tolerance: RealScalarLike = 1e-3,
    batch_size: int = 8192,
) -> Int[Array, " n"]:
    r"""Which minimum gradient descent with clipping ends in, from each of many starts.

    The step is that of [`jaxclip.simulate`][], $x - \gamma_k f(\|g\|)\, g$. It may be
    jitted, and vmapped over settings, which then share their noise: a phase diagram is

    ```python
    def to_global(lr, c):
        clip = jc.HardClip(c)
        return jnp.mean(jc.basins(wells, clip, lr, starts, minima, steps=1500) == 0)

    jc.sweep(to_global, {"lr": lrs, "c": thresholds}, batch_size=64).plot()
    ```

    A run is stopped once it has settled: it did not move away from a minimum within
    `tolerance` in 64 steps, or is where it was 64 steps before. With a rule or a rate
    that changes with the step all steps are made: a minimum may let the run go later.

    **Arguments:**

    - `landscape`: what to descend on; its own start is not used.
    - `clip`: the rule; `Identity()` for none.
    - `lr`: $\gamma_k$, per step: a number or a function of the step, counted from the
        first noisy one.
    - `starts`: as the landscape's start, each leaf with a leading axis of length `n`.
    - `minima`: the points to tell apart, with a leading axis of their own.
    - `steps`: how many steps are made without noise, and `noisy`: how many with the
        landscape's noise before them.
    - `key`: determines the noise, which is another one for each start.
    - `tolerance`: how close to a minimum a run has to end, in the parameters' unit.
    - `batch_size`: starts at once; each has a few sets of parameters in memory.

    **Returns:**

    Shape `(n,)`: the index of the nearest minimum, or -1 where none is so close.

    **Raises:**

    A `ValueError` where an argument is misused, as noisy steps without noise or `key`.
    """
    clip = need_rule(clip, "basins")
    tolerance = nonnegative("tolerance", tolerance)
    length = _Length.of(steps, noisy, batch_size)
    starts = jax.tree.map(partial(as_float, "starts"), starts)
    minima = jax.tree.map(partial(as_float, "minima"), minima)
    _need_noise(landscape, length, key)
    rate = check_rate(lr, jnp.arange(0, noisy + steps, _STRETCH))
    return _basins(landscape, clip, rate, starts, minima, key, tolerance, length)


class _Length(NamedTuple):
    """How many steps with and without noise, and how many starts at once."""

    steps: int
    noisy: int
    batch_size: int

    @classmethod
    def of(cls, steps: Any, noisy: Any, batch_size: Any) -> "_Length":
        return cls(
            count("steps", steps),
            count("noisy", noisy, least=0),
            count("batch_size", batch_size),
        )


def _need_noise(landscape: AbstractLandscape, length: _Length, key: Key | None) -> None:
    if length.noisy and (landscape.noise is None or key is None):
        raise ValueError(
            "`noisy` steps need a landscape with noise and a `key` to draw it from. "
            f"Got noise={landscape.noise!r} and key={key!r}."
        )


# All numbers are arguments: the program is compiled once for all of them.
@eqx.filter_jit
def _basins(
    landscape: AbstractLandscape,
    clip: AbstractClip,
    rate: Schedule,
    starts: PyTree[Array],
    minima: PyTree[Array],
    key: Key | None,
    tolerance: RealScalar,
    length: _Length,
) -> Int[Array, " n"]:
    steps, noisy, batch_size = length
    descent = _Descent(landscape, clip, rate)

    def one(indexed):
        params, index = indexed
        if noisy and key is not None:
            stream = landscape.stream(jr.fold_in(key, index))
            disturbed = partial(descent.disturbed, stream)
            params = jax.lax.fori_loop(0, noisy, disturbed, params)
        if descent.changes:
            params = jax.lax.fori_loop(noisy, noisy + steps, descent.clean, params)
        else:
            stretches, rest = divmod(steps, _STRETCH)
            params = jax.lax.fori_loop(0, rest, descent.clean, params)
            params = _settle(descent.clean, params, minima, stretches, tolerance)
        distances = _distances(params, minima)
        nearest = jnp.argmin(distances)
        return jnp.where(distances[nearest] <= tolerance, nearest, -1)

    size = len(jax.tree.leaves(starts)[0])
    return jax.lax.map(one, (starts, jnp.arange(size)), batch_size=batch_size)


# Compared by identity: JAX's loops hash the methods they are given; arrays have none.
@dataclasses.dataclass(frozen=True, eq=False)
class _Descent:
    """Clipped steps down a landscape."""

    landscape: AbstractLandscape
    clip: AbstractClip
    rate: Schedule

    def clean(self, k: Step, params: Params) -> Params:
        """The parameters after step `k`, without noise."""
        return self._step(k, params, self.landscape.slope(params))

    def disturbed(self, stream: PyTree[Array], k: Step, params: Params) -> Params:
        """The parameters after step `k`, with the noise of that step."""
        noise = self.landscape.example(stream, k)
        return self._step(k, params, self.landscape.gradient(params, noise))

    @property
    def changes(self) -> bool:
        """Whether the rule or the rate makes any use of the step.

        Both are functions that a user wrote, so that nothing but the program that JAX
        makes of them tells: whether its input for the step is read anywhere.
        """
        program = jax.make_jaxpr(partial(self._factor, jnp.zeros(())))(0).jaxpr
        used = [*program.outvars, *(v for line in program.eqns for v in line.invars)]
        return any(v is program.invars[0] for v in used)

    def _step(self, k: Step, params: Params, slope: Params) -> Params:
        factor = self._factor(safe_norm(slope), k)
        return jax.tree.map(lambda x, g: x - factor.astype(x.dtype) * g, params, slope)

    def _factor(self, norm: RealScalar, k: Step) -> RealScalar:
        factor = self.clip.factor(norm, k)
        return jnp.asarray(self.rate(k)).astype(factor.dtype) * factor


def _distances(params: Params, minima: PyTree[Array]) -> Float[Array, " k"]:
    """From the parameters to each of the minima."""

    def distance(minimum):
        return safe_norm(
            jax.tree.map(lambda x, y: x - y.astype(x.dtype), params, minimum)
        )

    return jax.vmap(distance)(minima)


class _Stretch(NamedTuple):
    """A run after some stretches of `_STRETCH` steps.

    - `done`: how many stretches.
    - `params`: where it is.
    - `distances`: shape `(k,)`, from there to each of the minima.
    - `settled`: whether more steps would not change the minimum that it ends in.
    """

    done: Any
    params: Params
    distances: Float[Array, " k"]
    settled: Bool[Array, ""]


def _settle(
    step: Any,
    params: Params,
    minima: PyTree[Array],
    stretches: int,
    tolerance: RealScalarLike,
) -> Params:
    """The parameters after so many stretches of steps, or once they have settled.

    Steps without noise are one map, the same each time. So a run has settled where

    - it was close to a minimum a stretch ago and is no farther now: the minimum holds
        it, since it would have moved away from an unstable one;
    - it is where it was a stretch ago, and repeats itself for ever;
    - it has diverged, and is nowhere.
    """

    def going(run: _Stretch):
        return (run.done < stretches) & ~run.settled

    def stretch(run: _Stretch):
        moved = jax.lax.fori_loop(0, _STRETCH, step, run.params)
        now = _distances(moved, minima)
        held = jnp.any((run.distances <= tolerance) & (now <= run.distances))
        lost = ~jnp.any(jnp.isfinite(now))
        same = jax.tree.map(lambda x, y: jnp.all(x == y), run.params, moved)
        repeats = jnp.all(jnp.stack(jax.tree.leaves(same)))
        return _Stretch(run.done + 1, moved, now, held | lost | repeats)

    start = _Stretch(0, params, _distances(params, minima), jnp.asarray(False))
    return jax.lax.while_loop(going, stretch, start).params
