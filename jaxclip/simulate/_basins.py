"""Where gradient descent ends up, over many starts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._checks import as_float, count, nonnegative
from .._types import Key, Params, RealScalarLike
from ..clip import AbstractClip
from ..clip._adaptive import need_rule
from ..problem import AbstractLandscape
from ..transform import safe_norm

# The steps between two looks at whether a run has settled. Even, so that a run which
# jumps to and fro between two points is found at the same one.
_STRETCH = 64


def basins(
    landscape: AbstractLandscape,
    clip: AbstractClip,
    lr: RealScalarLike,
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

    The step is that of [`jaxclip.simulate`][], $x - \gamma f(\|g\|)\, g$. It may be
    jitted, and vmapped over settings, which then share their noise: a phase diagram is

    ```python
    @jax.jit
    def diagram(lrs, thresholds):
        def to_global(setting):
            lr, threshold = setting
            ends = jc.basins(wells, jc.HardClip(threshold), lr, starts, wells.minima,
                             steps=1500)
            return jnp.mean(ends == 0)
        return jax.lax.map(to_global, (lrs, thresholds), batch_size=32)
    ```

    A run is left alone once it has settled, so that it costs the steps that the slowest
    of its batch needs: it came no farther from a minimum while it was within
    `tolerance` of it for 64 steps, or it is where it was 64 steps before.

    **Arguments:**

    - `landscape`: what to descend on; its own start is not used.
    - `clip`: the rule; `Identity()` for none. Its threshold is that of step 0.
    - `lr`: $\gamma$, per step, one number.
    - `starts`: as the landscape's start, with a leading axis of length `n`.
    - `minima`: the points to tell apart, with a leading axis too.
    - `steps`: how many steps, without noise.
    - `noisy`: how many steps with the landscape's noise are made before these.
    - `key`: determines the noise, which is another one for each start.
    - `tolerance`: how close to a minimum a run has to end, in the parameters' unit.
    - `batch_size`: starts that run together. The memory is that of a few sets of
        parameters for each of them and for each setting that a `vmap` runs over.

    **Returns:**

    Shape `(n,)`: the index of the nearest minimum, or -1 where none is so close.

    **Raises:**

    A `ValueError` where the noise has no `key`, there are noisy steps without a noise,
    or another argument is misused.
    """
    clip = need_rule(clip, "basins")
    lr, tolerance = nonnegative("lr", lr), nonnegative("tolerance", tolerance)
    steps, noisy = count("steps", steps), count("noisy", noisy, least=0)
    batch_size = count("batch_size", batch_size)
    starts = jax.tree.map(partial(as_float, "starts"), starts)
    minima = jax.tree.map(partial(as_float, "minima"), minima)
    if noisy and (landscape.noise is None or key is None):
        raise ValueError(
            "`noisy` steps need a landscape with noise and a `key` to draw it from. "
            f"Got noise={landscape.noise!r} and key={key!r}."
        )

    def step(params, slope):
        factor = lr * clip.factor(safe_norm(slope), 0)
        return jax.tree.map(lambda x, g: x - factor.astype(x.dtype) * g, params, slope)

    def clean(_, params):
        return step(params, landscape.slope(params))

    def disturbed(k, state):
        params, stream = state
        noise = landscape.example(stream, k)
        return step(params, landscape.gradient(params, noise)), stream

    def one(indexed):
        params, index = indexed
        if noisy and key is not None:
            stream = landscape.stream(jr.fold_in(key, index))
            params, _ = jax.lax.fori_loop(0, noisy, disturbed, (params, stream))
        params = jax.lax.fori_loop(0, steps % _STRETCH, clean, params)
        params = _settle(clean, params, minima, steps // _STRETCH, tolerance)
        distances = _distances(params, minima)
        nearest = jnp.argmin(distances)
        return jnp.where(distances[nearest] <= tolerance, nearest, -1)

    size = len(jax.tree.leaves(starts)[0])
    return jax.lax.map(one, (starts, jnp.arange(size)), batch_size=batch_size)


def _distances(params: Params, minima: PyTree[Array]) -> Float[Array, " k"]:
    """From the parameters to each of the minima."""

    def distance(minimum):
        return safe_norm(
            jax.tree.map(lambda x, y: x - y.astype(x.dtype), params, minimum)
        )

    return jax.vmap(distance)(minima)


def _settle(
    step: Any,
    params: Params,
    minima: PyTree[Array],
    stretches: int,
    tolerance: RealScalarLike,
) -> Params:
    """The parameters after so many stretches of steps, or once they have settled.

    Steps without noise are one map, the same each time. What is where it was a stretch
    ago repeats itself for ever. What was close to a minimum a stretch ago and is no
    farther now is held by it: from an unstable one it would have moved away.
    """

    def going(state):
        done, _, _, settled = state
        return (done < stretches) & ~settled

    def stretch(state):
        done, params, before, _ = state
        moved = jax.lax.fori_loop(0, _STRETCH, step, params)
        now = _distances(moved, minima)
        held = jnp.any((before <= tolerance) & (now <= before))
        # What has diverged is nowhere, and stays there.
        lost = ~jnp.any(jnp.isfinite(now))
        same = jax.tree.map(lambda x, y: jnp.all(x == y), params, moved)
        repeats = jnp.all(jnp.stack(jax.tree.leaves(same)))
        return done + 1, moved, now, held | lost | repeats

    state = (0, params, _distances(params, minima), jnp.asarray(False))
    return jax.lax.while_loop(going, stretch, state)[1]
