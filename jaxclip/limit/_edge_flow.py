"""Gradient descent at the edge of stability: its centre, and what it oscillates by."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import nonnegative
from .._curve import Curve
from .._types import PyTree, RealScalar, Schedule
from ..clip import AbstractClip
from ..problem import AbstractLandscape, AbstractProblem, FiniteSum
from ._base import AbstractLimit, AnyProblem, Request
from ._gradient_flow import integrate
from ._increments import Descent, State, plus, times
from ._reading import Reading


class Oscillation(eqx.Module):
    r"""What gradient descent oscillates by, in [`jaxclip.EdgeFlow`][].

    **Fields:**

    - `vector`: $d$, a pytree of the structure of the parameters and in their unit, with
        a leading axis of steps. The parameters alternate between $c + d$ and $c - d$.
    - `factor`: the mean of the rule's factor $f$ at these two points, dimensionless,
        shape `(s,)`. Where descent is at the edge of stability, the sharpness times the
        learning rate times this number is close to 2.

    Leading axes are those of a `vmap`.
    """

    vector: PyTree[Any]
    factor: Float[Array, "*batch s"]


def _seed(value: Any) -> Float[Array, ""] | None:
    return None if value is None else nonnegative("seed", value)


class EdgeFlow(AbstractLimit):
    r"""Clipped gradient descent at the edge of stability, averaged over oscillations.

    With a rate above 2 over the sharpness descent does not settle in a valley: it jumps
    from one side to the other, and moves on along it. Here the steps
    $x_{k+1} = x_k - \gamma G(x_k)$, $G = f(\|\nabla L\|) \nabla L$ with the rule's
    factor $f$, are taken apart as $x_k = c_k + (-1)^k d_k$, in a centre $c$ and an
    oscillation $d$. The steps are exactly those of

    $$c_{k+1} = c_k - \tfrac{\gamma}{2} (G_+ + G_-), \qquad
    d_{k+1} = -d_k + \tfrac{\gamma}{2} (G_+ - G_-), \qquad G_\pm = G(c_k \pm d_k),$$

    which vary slowly where $x_k$ does not: the curvature $\lambda$ multiplies an
    oscillation along it by $\gamma f \lambda - 1$, which is 1 at the edge, where
    $\gamma f \lambda = 2$. The flow is what this recursion is a step of, of length 1:
    with $y = (c, d)$ and the increments $V(y) = y_{k+1} - y_k$,

    $$\frac{dy}{dk} = V(y - \tfrac12 V(y - \tfrac23 V(y)))
    = V - \tfrac12 DV\, V + \tfrac13 DV\, DV\, V + \dots,$$

    whose solutions the recursion follows with an error of second order in $V$, and what
    grows or decays in a step by $1 + v$ grows by $\log(1 + v)$ up to the fourth power
    of $v$. A clip lets the sharpness rise to 2 over the rate times the mean of $f$.

    Derived here, in section 7.1 of `docs/theory.md`. The idea of a flow for the centre
    is that of central flows (arXiv:2410.24206), and that of two points that of rod
    flows (arXiv:2602.01480) and of edge flows (arXiv:2606.18080); none of them has a
    clip.

    It holds where descent alternates between two points that move slowly. It does not
    where it has a longer period or is chaotic, far beyond the edge, nor within the few
    steps of a burst. It costs tens of gradients a step, more than descent itself: it is
    for what it shows, and for what can be derived from it.

    `Curve.risk` is the mean of the risk at $c \pm d$, and that of the start at step 0;
    `Curve.params` and `Curve.path` are the centre, and `Curve.observed` is the
    [`jaxclip.limit.Oscillation`][]. Momentum oscillates as parameters do.

    **Arguments:**

    - `seed`: what an oscillation grows from, relative to the parameters: by default
        their rounding, as that of descent does.
    - `order`: 2, or 1 for $dy/dk = V(y)$, of first order, in a fraction of the time.
    - `rtol`: the relative tolerance of the adaptive steps.
    - `max_steps`: how many steps the solver may take.

    **Raises:**

    A `ValueError` where a step sees samples: take `problem.whole()` of a
    [`jaxclip.FiniteSum`][], or a landscape without noise.

    **Example:**

    ```python
    valley = jc.Landscape(lambda x: (x[0] * x[1] - 1.0) ** 2 / 2, jnp.array([3.0, 0.4]))
    steps = jnp.array([0.0, 50.0, 200.0])
    flow = jc.solve(valley, jc.HardClip(0.5), 0.3, steps=steps, limit=jc.EdgeFlow())
    flow.risk, flow.params, flow.observed.vector[-1]
    ```
    """

    seed: Float[Array, ""] | None = eqx.field(converter=_seed, default=None)
    order: int = eqx.field(static=True, default=2)
    rtol: float = eqx.field(static=True, default=1e-5)
    max_steps: int = eqx.field(static=True, default=10**6)

    def __check_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"`order` must be 1 or 2. Got {self.order!r}.")

    def curve(
        self, problem: AnyProblem, clip: AbstractClip, lr: Schedule, request: Request
    ) -> Curve:
        request.need_only(
            "EdgeFlow",
            ("momentum", "weight_decay"),
            "each of its steps sees the gradient of the whole loss, clipped as one",
        )
        descent = Descent(_need_whole(problem), clip, lr, request.update)
        return _solution(_Pair(descent, self.seed, self.order), self, request)


def _need_whole(problem: AnyProblem) -> AbstractProblem:
    """The problem, if all of its gradients are that of the risk."""
    if isinstance(problem, FiniteSum) and problem.size == 1:
        return problem
    if isinstance(problem, AbstractLandscape) and problem.noise is None:
        return problem
    raise ValueError(
        "`problem` must be one of which each step of `EdgeFlow` sees all: take "
        "`problem.whole()` of a FiniteSum, or a landscape without noise, such as "
        "`Landscape(problem.risk, problem.init())`. Got a "
        f"{type(problem).__name__} of minibatches or with noise."
    )


class _Pair(eqx.Module):
    """The velocity of the centre and of the oscillation."""

    descent: Descent
    seed: Float[Array, ""] | None
    order: int = eqx.field(static=True)

    def __call__(self, k, y, reading: Reading):
        k = reading.at(k)
        step = partial(self._step, k)
        first = step(y)
        if self.order == 1:
            return first
        # A derivative in place of the inner calls would do to the same order, and make
        # an oscillation die out that quadruples.
        return step(plus(y, -0.5, step(plus(y, -2 / 3, first))))

    def _step(self, k, y):
        """What the recursion adds to both in a step."""
        centre, apart = y
        above = self.descent.increment(plus(centre, 1, apart), k)
        below = self.descent.increment(plus(centre, -1, apart), k)
        drift = times(0.5, plus(above, 1, below))
        half = times(0.5, plus(above, -1, below))
        grown = plus(times(-2, apart), -1, half)
        return drift, jax.tree.map(self._seeded, grown, centre)

    def _seeded(self, velocity: Array, of: Array) -> Array:
        """With what rounding adds to an oscillation in a step."""
        eps = jnp.finfo(of.dtype).eps
        seed = jnp.asarray(eps if self.seed is None else self.seed)
        return velocity + seed.astype(of.dtype) * of

    def start(self) -> tuple[State, State]:
        """The second difference of the first steps is all of an oscillation, and next
        to nothing of a slow movement."""
        state = self.descent.start()
        first = self.descent.increment(state, 0)
        second = self.descent.increment(plus(state, 1, first), 1)
        apart = times(0.25, plus(second, -1, first))
        return plus(state, -1, apart), apart

    def risk(self, y: tuple[State, State]) -> RealScalar:
        centre, apart = y
        risk = self.descent.problem.risk
        above, below = plus(centre, 1, apart)[0], plus(centre, -1, apart)[0]
        return (risk(above) + risk(below)) / 2

    def factor(self, y: tuple[State, State], k: RealScalar) -> RealScalar:
        centre, apart = y
        factor = self.descent.factor
        above, below = plus(centre, 1, apart)[0], plus(centre, -1, apart)[0]
        return (factor(above, k) + factor(below, k)) / 2


@eqx.filter_jit
def _solution(pair: _Pair, limit: EdgeFlow, request: Request) -> Curve:
    descent, steps = pair.descent, request.steps
    settings = descent.clip, descent.lr, descent.update
    how = request, limit.rtol, limit.max_steps
    found = integrate(pair, pair.risk, pair.start(), settings, *how)
    # Before the first step there is nothing to average.
    start = descent.problem.risk(descent.problem.init())
    risk = jnp.where(steps > 0, found.risk, start.astype(found.risk.dtype))
    centre, apart = found.path[0][0], found.path[1][0]
    oscillation = Oscillation(apart, jax.vmap(pair.factor)(found.path, steps))
    return Curve(steps, risk, found.params[0][0], oscillation, path=centre)
