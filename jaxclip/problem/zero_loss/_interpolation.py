"""A model that can fit all of its data, under a noise that is injected into it."""

from functools import partial

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float

from ..._checks import as_float
from ..._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike, Step
from ...clip import AbstractClip, Identity
from .._parameters import as_parameters
from ._loss import AbstractNoisyProblem
from .inject import AbstractInjection
from .inject._fit import Fit, Model, check_data


class Interpolation(AbstractNoisyProblem):
    r"""Least squares of a model that can fit all of its data, under an injected noise.

    Without noise the loss is that of all $n$ examples,

    $$L(w) = \frac{1}{2n} \sum_{i=1}^{n} |f(w, x_i) - y_i|^2,$$

    and each step of SGD descends it with a noise that is drawn afresh, $\hat L(w,
    \eta)$. Which noise, and where it enters, is said by `injection`; the formulas are
    in the classes of `jaxclip.inject`.

    **Arguments:**

    - `model`: $f$, a function of the parameters and of one input, which returns a
        number or an array. It is held as structure. Split an equinox network by
        `equinox.partition` and put it together in the function.
    - `start`: the parameters at step 0, a pytree of arrays of floats.
    - `xs`: the inputs, a pytree of arrays with a leading axis of length `n`.
    - `ys`: the labels, shape `(n, ...)`, that of the model's outputs.
    - `injection`: the noise, such as `jaxclip.inject.Label(jaxclip.Gaussian(1.0))`.
    - `residual_clip`: a rule for each residual, before it is multiplied with the
        model's gradient: $\psi(r_i) = r_i f(|r_i|)$ takes the place of $r_i$. Its
        thresholds are numbers or arrays of the shape of all residuals, `(m,)`, in the
        unit of a label; a function of the step is taken at step 0. By default none.

    The clip that [`jaxclip.simulate`][] takes acts after it, on the whole gradient.

    **Raises:**

    A `ValueError` where `start` holds what is no array of floats, where the leading
    axes of `xs` and `ys` differ, and where the injection does not fit the rest, such as
    [`jaxclip.inject.Langevin`][] with a `residual_clip`.
    """

    model: Model = eqx.field(static=True)
    start: Params = eqx.field(converter=partial(as_parameters, "start"))
    xs: PyTree[Array]
    ys: Float[Array, "n ..."] = eqx.field(converter=partial(as_float, "ys"))
    injection: AbstractInjection
    residual_clip: AbstractClip = eqx.field(default=Identity(), kw_only=True)

    def __check_init__(self) -> None:
        check_data(self.xs, self.ys)
        if not isinstance(self.injection, AbstractInjection):
            raise ValueError(
                "`injection` must say where the noise enters, such as "
                f"`jaxclip.inject.Label(noise)`. Got {self.injection!r}."
            )
        self.injection.check(self.fit)

    @property
    def fit(self) -> Fit:
        """The model and its data, without the noise: what the injection sees."""
        return Fit(self.model, self.start, self.xs, self.ys, self.residual_clip)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.injection.shape(self.fit)

    @property
    def variance(self) -> Float[Array, ""]:
        return self.injection.variance(self.fit)

    @property
    def power(self) -> int:
        return self.injection.power

    @property
    def inner_clip(self) -> AbstractClip:
        return self.residual_clip

    def init(self) -> Params:
        return self.start

    def draw(self, key: Key) -> Float[Array, "..."]:
        return self.injection.draw(self.fit, key)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        return self.injection.residuals(self.fit, params)

    def loss(self, params: Params, noise: Float[Array, "..."]) -> RealScalar:
        return self.injection.loss(self.fit, params, noise)

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        return self.injection.example(self.fit, jr.fold_in(stream, index))

    def gradient(self, params: Params, example: Example) -> Params:
        return self.injection.gradient(self.fit, params, example)

    def diffusion(self, params: Params) -> Float[Array, "d noise"]:
        return self.injection.diffusion(self.fit, params)

    def drift(self, params: Params, clip: AbstractClip, step: Step) -> Params:
        return self.injection.drift(self.fit, params, clip, step)

    def check_clip(self, clip: AbstractClip) -> None:
        self.injection.check_clip(self.fit, clip)
