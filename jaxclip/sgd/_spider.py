"""SPIDER on a problem: it takes both gradients of a step by itself."""

from functools import partial
from math import ceil, sqrt

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import count, positive
from .._schedule import as_schedule
from .._types import Key, Params, PyTree, Schedule
from ..clip import AbstractClip, SpiderClip
from ..problem import AbstractProblem, FiniteSum
from ..transform import algorithm
from .engine._direct import mean


class SpiderRun(eqx.Module):
    """What [`jaxclip.Spider`][] carries from step to step.

    **Fields:**

    - `params`: the parameters now.
    - `previous`: the parameters a step ago.
    - `state`: the [`jaxclip.algorithm.SpiderState`][]: the steps made, the estimator,
        and the count of sample gradients.
    - `stream`: what the problem's examples are drawn from.
    - `samples`: the index of the next sample.
    """

    params: Params
    previous: Params
    state: algorithm.SpiderState
    stream: PyTree[Array]
    samples: Int[Array, ""]


class Spider(eqx.Module):
    r"""Variance-reduced SGD with clipping, on any problem.

    $$x_{k+1} = x_k - \gamma_k\, f(\|v_k\|)\, v_k$$

    with the estimator $v_k$ of [`jaxclip.algorithm.spider`][], renewed from a large
    batch and carried on by small ones. `init` and `step` are pure functions that may be
    jitted, scanned and vmapped; [`jaxclip.run_spider`][] is the loop. The settings for
    which there is a guarantee are `Spider.online` and `Spider.finite_sum`.

    **Arguments:**

    - `clip`: the rule $f$, such as [`jaxclip.SpiderClip`][].
    - `lr`: $\gamma_k$, per step: a number or a function of the step.
    - `variant`: when the estimator is renewed. Under a `vmap` over keys a renewal at
        random is paid for at every step, since the runs renew at different ones.
    - `anchor_size`: the samples of a renewal; `None` takes the full gradient of a
        [`jaxclip.FiniteSum`][].
    - `batch_size`: the samples of any other step, which takes two gradients of each.
    """

    clip: AbstractClip
    lr: Schedule = eqx.field(converter=partial(as_schedule, name="lr"))
    variant: algorithm.AbstractSpiderVariant
    anchor_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    batch_size: int = eqx.field(static=True, default=1, kw_only=True)

    def __check_init__(self) -> None:
        count("batch_size", self.batch_size)
        if self.anchor_size is not None:
            count("anchor_size", self.anchor_size)

    @classmethod
    def online(cls, l0: float, l1: float, eps: float, std: float) -> "Spider":
        r"""The settings that are guaranteed to find a small gradient of an expectation.

        At a point of the run that is drawn at random
        $E \min(\|\nabla f\|, L_0 / L_1) \le 12\varepsilon$, after at most
        $64 \Delta L_0 \sigma \varepsilon^{-3} + \sigma^2\varepsilon^{-2}$ sample
        gradients with $\Delta = f(x_0) - \inf f$ (arXiv:2303.00883 has the orders; the
        constants are derived here). It is no bound on $E \|\nabla f\|$ itself, which
        the steep steps at the start may keep above it.

        $$S_1 = \lceil \sigma^2/\varepsilon^2 \rceil, \quad
        S_2 = \lceil 2\sigma/\varepsilon \rceil, \quad
        q = \max(1, \lfloor S_2/8 \rfloor).$$

        **Arguments:**

        - `l0`, `l1`, `eps`: those of [`jaxclip.SpiderClip`][], as plain numbers; the
            guarantee holds for $\varepsilon \le L_0/(8 L_1)$.
        - `std`: $\sigma$, the root of the mean squared distance of a sample gradient
            from the gradient, in its unit.
        """
        positive("std", std)
        positive("eps", eps)
        small = ceil(2 * std / eps)
        return cls._guaranteed(l0, l1, eps, small, ceil(std**2 / eps**2))

    @classmethod
    def finite_sum(cls, l0: float, l1: float, eps: float, size: int) -> "Spider":
        r"""The settings that are guaranteed to find a small gradient of a sum.

        As those of `Spider.online`, after at most
        $64 \Delta L_0 \sqrt{n} \varepsilon^{-2} + n$ sample gradients.

        $$S_2 = \lceil 2\sqrt{n} \rceil, \quad q = \max(1, \lfloor S_2/8 \rfloor),$$

        and the full gradient at each renewal.

        **Arguments:**

        - `l0`, `l1`, `eps`: as in `Spider.online`.
        - `size`: $n$, the number of terms of the sum.
        """
        return cls._guaranteed(l0, l1, eps, ceil(2 * sqrt(count("size", size))), None)

    @classmethod
    def _guaranteed(
        cls, l0: float, l1: float, eps: float, small: int, large: int | None
    ) -> "Spider":
        positive("l0", l0)
        clip, variant = (
            SpiderClip(l0, l1, eps),
            algorithm.PeriodicSpider(max(1, small // 8)),
        )
        return cls(clip, 0.5 / l0, variant, anchor_size=large, batch_size=small)

    def init(self, problem: AbstractProblem, key: Key) -> SpiderRun:
        """The state before the first step.

        **Arguments:**

        - `problem`: what to run on.
        - `key`: determines the data and their order.
        """
        params = problem.init()
        return SpiderRun(
            params=params,
            previous=params,
            state=self._transform(problem).init(params),  # pyright: ignore[reportArgumentType]  optax types states as any pytree
            stream=problem.stream(key),
            samples=jnp.zeros((), jnp.int32),
        )

    def step(self, problem: AbstractProblem, run: SpiderRun) -> SpiderRun:
        """The state after one more step."""
        anchor = self.variant.anchors(run.state.step)
        # A branch and no selection: outside of a `vmap` over renewals only one of the
        # two batches is paid for.
        new, old, samples = jax.lax.cond(
            anchor, partial(self._renew, problem), partial(self._follow, problem), run
        )
        moved, state = self._transform(problem).update(
            new, run.state, run.params, previous_gradient=old
        )
        rate = self.lr(run.state.step)

        def descend(x, v):
            return (x - jnp.asarray(rate).astype(v.dtype) * v).astype(x.dtype)

        params = jax.tree.map(descend, run.params, moved)
        return SpiderRun(params, run.params, state, run.stream, samples)  # pyright: ignore[reportArgumentType]  as above

    def _renew(self, problem: AbstractProblem, run: SpiderRun):
        if self.anchor_size is None:
            gradient = _as_sum(problem).full_gradient(run.params)
            return gradient, gradient, run.samples
        examples = _examples(problem, run, self.anchor_size)
        gradient = _mean_gradient(problem, run.params, examples)
        return gradient, gradient, run.samples + self.anchor_size

    def _follow(self, problem: AbstractProblem, run: SpiderRun):
        examples = _examples(problem, run, self.batch_size)
        new = _mean_gradient(problem, run.params, examples)
        old = _mean_gradient(problem, run.previous, examples)
        return new, old, run.samples + self.batch_size

    def _transform(self, problem: AbstractProblem):
        size = self.anchor_size
        size = _as_sum(problem).size if size is None else size
        return algorithm.spider(
            self.clip, self.variant, anchor_size=size, batch_size=self.batch_size
        )


def _as_sum(problem: AbstractProblem) -> FiniteSum:
    if not isinstance(problem, FiniteSum):
        raise ValueError(
            "`anchor_size=None` takes the full gradient, which only a `FiniteSum` has. "
            f"Got a {type(problem).__name__}; give `Spider` an `anchor_size`."
        )
    return problem


def _examples(problem: AbstractProblem, run: SpiderRun, size: int) -> PyTree[Array]:
    index = run.samples + jnp.arange(size, dtype=run.samples.dtype)
    return jax.vmap(problem.example, (None, 0))(run.stream, index)


def _mean_gradient(problem: AbstractProblem, params: Params, examples: PyTree[Array]):
    return mean(jax.vmap(problem.gradient, (None, 0))(params, examples))
