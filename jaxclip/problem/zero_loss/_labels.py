"""Noise in the labels, and in the choice of a batch."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PyTree

from ..._checks import as_float, count
from ..._types import Example, Key, Params, RealScalar, RealScalarLike
from ...clip import AbstractClip, Identity
from ...noise import AbstractNoise
from .._parameters import as_parameters
from ._loss import AbstractNoisyProblem
from ._model import AbstractNoisyModel, Model, check_data, clipped, misfit


class LabelNoise(AbstractNoisyModel):
    r"""Noise added to the labels, afresh at every step.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i |f(w, x_i) - y_i - \eta_i|^2, \qquad
    \Sigma = c H, \quad c = 1/n \text{ or } 1/b.$$

    Its regularizer is constant; on the slower scale it moves gradient descent by
    $-\tfrac{c}{4} P \nabla \mathrm{tr} H$ (Section 2 of arXiv:2404.12293).

    **Arguments:**

    - `batch`: $b$, how many examples a step sees, drawn with replacement, each with
        noise of its own; by default it sees all of them.

    The others are those of [`jaxclip.AbstractNoisyModel`][].
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    noise: AbstractNoise
    batch: int | None = eqx.field(static=True, default=None, kw_only=True)
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self):
        check_data(self.xs, self.ys)
        if self.batch is not None:
            count("batch", self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.ys.size,)

    @property
    def seen(self) -> int:
        """How many examples a step sees."""
        return self.size if self.batch is None else self.batch

    def noisy_residuals(
        self, params: Params, noise: Float[Array, "..."]
    ) -> Float[Array, " m"]:
        return misfit(self.model, params, self.xs, self.ys) - noise

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        key = jr.fold_in(stream, index)
        if self.batch is None:
            return self.draw(key)
        rows, noise = jr.split(key)
        outputs = self.ys.size // self.size
        drawn = self.noise.sample(noise, (self.batch * outputs,))
        return jr.randint(rows, (self.batch,), 0, self.size), drawn

    def gradient(self, params: Params, example: Example) -> Params:
        if self.batch is None:
            rows, noise = jnp.arange(self.size), example
        else:
            rows, noise = example
        clip = rows_of(self.residual_clip, rows, self.ys)
        return rows_gradient(self, params, rows, noise, clip)

    def diffusion(self, params: Params) -> Float[Array, "d noise"]:
        # A batch of b examples has the covariance of noise that is n/b times as large.
        whole = AbstractNoisyProblem.diffusion(self, params)
        return whole * (self.size / self.seen) ** 0.5


class Minibatch(AbstractNoisyProblem):
    r"""A few of the examples at every step, and no other noise.

    $$\hat L(w, \eta) = \frac{1}{2n} \sum_i (1 + \eta_i) |f(w, x_i) - y_i|^2,$$

    where $1 + \eta_i$ is $n/b$ times how often a batch of $b$ draws example $i$. At a
    solution every example's gradient is zero, and so is this noise: each point of the
    zero-loss set is fixed, on both scales of time.

    **Arguments:**

    - `batch`: $b$, how many examples a step sees, drawn with replacement.

    The others are those of [`jaxclip.AbstractNoisyModel`][], without `noise`.
    """

    model: Model = eqx.field(static=True)
    params0: Params = eqx.field(converter=partial(as_parameters, "params0"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=lambda y: as_float("ys", y))
    batch: int = eqx.field(static=True, default=1, kw_only=True)
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self):
        check_data(self.xs, self.ys)
        count("batch", self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ys),)

    @property
    def variance(self) -> Float[Array, ""]:
        return jnp.asarray((len(self.ys) - 1) / self.batch)

    def init(self) -> Params:
        return self.params0

    def draw(self, key: Key) -> Float[Array, "..."]:
        n = len(self.ys)
        rows = jr.randint(key, (self.batch,), 0, n)
        return jnp.zeros(n).at[rows].add(n / self.batch) - 1

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return misfit(self.model, params, self.xs, self.ys)

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        squares = self.residuals(params).reshape(len(self.ys), -1) ** 2
        return jnp.sum((1 + noise) * jnp.sum(squares, 1)) / (2 * len(self.ys))

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        key = jr.fold_in(stream, index)
        return jr.randint(key, (self.batch,), 0, len(self.ys))

    def gradient(self, params: Params, example: Example) -> Params:
        clip = rows_of(self.residual_clip, example, self.ys)
        return rows_gradient(self, params, example, jnp.zeros(()), clip)


def rows_gradient(
    problem: LabelNoise | Minibatch,
    params: Params,
    rows: Int[Array, " b"],
    noise: Float[Array, "..."],
    clip: AbstractClip,
) -> Params:
    """The gradient of the examples of a batch, their residuals less `noise` clipped."""
    xs, ys = jax.tree.map(lambda leaf: leaf[rows], (problem.xs, problem.ys))
    residuals, pull = jax.vjp(lambda w: misfit(problem.model, w, xs, ys), params)
    return pull(clipped(residuals - noise, clip) / len(rows))[0]


def rows_of(
    clip: AbstractClip, rows: Int[Array, " b"], ys: Float[Array, "n ..."]
) -> AbstractClip:
    """The rule of the residuals of some of the examples."""

    def pick(leaf):
        whole = jnp.shape(leaf) == (ys.size,) and ys.size > 1
        return leaf.reshape(len(ys), -1)[rows].reshape(-1) if whole else leaf

    return jax.tree.map(pick, clip)
