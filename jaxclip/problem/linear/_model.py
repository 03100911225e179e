"""A linear model on features drawn afresh at every step: the paper's own setting."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import count, is_traced
from ..._types import Key, RealScalar
from ...noise import AbstractNoise, Empirical
from ._features import random_features
from ._gaussian import AbstractNoisyLinear, as_components, as_norms, spread
from ._loss import AbstractLoss, SquaredLoss
from ._minimiser import minimiser
from ._modes import Modes
from ._rows import Regression, as_table, decompose
from ._spectrum import Spectrum


class CompressedLinearModel(eqx.Module):
    """What the risk ODE needs of a [`jaxclip.LinearModel`][], in a few modes.

    Made by its `compress`. [`jaxclip.solve`][] takes it in place of the problem.

    **Fields:**

    - `modes`: twice as many [`jaxclip.problem.Modes`][] as the nodes asked for.
    - `noise`: the label noise.
    - `error`: the error of the compression; see `compress`.
    """

    modes: Modes
    noise: AbstractNoise
    error: Float[Array, ""]


class LinearModel(AbstractNoisyLinear):
    r"""A linear model on Gaussian features, one fresh sample after the other.

    Sample $k$ is a fresh $a_k \sim N(0, K)$ with the label
    $y_k = \langle a_k, x^* \rangle + \epsilon_k$. The loss is a function of the
    residual $\langle a_k, x \rangle - y_k$: half its square, so that SGD is streaming
    least squares, or another one for robust and for quantile regression. What is
    recorded is, for every loss, the excess risk of least squares $R(x) = (x - x^*)^T K
    (x - x^*) / 2$, so that losses can be compared: they have the same minimiser $x^*$
    ([`jaxclip.problem.AbstractNoisyLinear`][]). The limits of linear models and the
    criteria for clipping are those of the squared loss.

    Only the spectrum of $K$ and the size of the error in each eigenspace matter to the
    law of a run, so parameters are held in the eigenbasis and measured from the optimum
    ($x^* = 0$); the error of an eigenspace is spread evenly over its dimensions.

    **Arguments:**

    - `spectrum`: the eigenvalues of $K$, with multiplicities.
    - `noise`: the law of $\epsilon$.
    - `start`: shape `(m,)`, that of `spectrum.eigenvalues`: the norm of $x_0 - x^*$ in
        each eigenspace. Not negative, in the parameters' unit.
    - `loss`: of a prediction and a target: [`jaxclip.SquaredLoss`][] by default,
        [`jaxclip.HuberLoss`][], [`jaxclip.PinballLoss`][] or one of your own.
    - `optimum`: shape `(m,)`, the component of $x^*$ along $x_0 - x^*$ in each
        eigenspace, of either sign, in the parameters' unit; across it there is none.
        Weight decay pulls to $x = 0$, and nothing else asks where that is. By default
        the negative of `start`: a run that starts at zero.

    **Raises:**

    A `ValueError` where `start` or `optimum` has not one number for each eigenvalue, or
    `start` a negative one.
    """

    spectrum: Spectrum
    noise: AbstractNoise
    start: Float[Array, " m"]
    loss: AbstractLoss
    optimum: Float[Array, " m"]

    def __init__(
        self,
        spectrum: Spectrum,
        noise: AbstractNoise,
        start: Any,
        loss: AbstractLoss = SquaredLoss(),
        optimum: Any = None,
    ):
        self.spectrum = spectrum
        self.noise = noise
        self.start = as_norms("start", start, spectrum)
        self.loss = loss
        optimum = -self.start if optimum is None else optimum
        self.optimum = as_components("optimum", optimum, spectrum)

    @classmethod
    def from_data(
        cls,
        X: Any,
        y: Any,
        *,
        start: Any = None,
        features: int | None = None,
        key: Key | None = None,
    ) -> "LinearModel":
        r"""The problem that a data set poses, as the limits see it.

        The spectrum of the rows' covariance, the error of the start in its eigenbasis,
        and the law of the residuals of the least-squares solution. What is lost is all
        that is not Gaussian in the features, and that residuals may depend on them: to
        run on the rows themselves use [`jaxclip.Regression`][].

        **Arguments:**

        - `X`: shape `(n, d)`, the features; centre and scale them first.
        - `y`: shape `(n,)`, the targets.
        - `start`: shape `(d,)`, where SGD starts; zero by default.
        - `features`: if given, the number of random features $\tanh(X W)$ to use in
            place of the columns, as in section 5 of arXiv:2406.11733.
        - `key`: draws $W$, by [`jaxclip.problem.random_features`][].
        """
        if features is not None and key is not None:
            X = random_features(X, features, key=key)
        elif features is not None or key is not None:
            raise ValueError("`features` and `key` go together: give both or neither.")
        regression = Regression(X, y, start=start)
        if regression.X.dtype == jnp.float64:
            return cls.from_regression(regression)
        # All of it in float64, and cut to JAX's precision last.
        X, y = as_table(X, y)
        optimum = minimiser(SquaredLoss(), X, y)
        error = (0.0 if start is None else np.asarray(start, float)) - optimum
        spectrum, start, along = decompose(X, error, optimum)
        noise = Empirical(y - X @ optimum)
        return cls(spectrum, noise, start, optimum=along)

    @classmethod
    def from_regression(cls, regression: Regression) -> "LinearModel":
        """The problem that the limits see in one that runs on the rows of a table.

        **Arguments:**

        - `regression`: with the squared loss.

        **Raises:**

        A `ValueError` where it has another loss.
        """
        if not isinstance(regression.loss, SquaredLoss):
            raise ValueError(
                "`regression` must have the squared loss, which the limits are of. "
                f"Got a {type(regression.loss).__name__}; leave out its `loss`."
            )
        spectrum, start, along = regression.spectrum_and_error()
        return cls(spectrum, Empirical(regression.residuals), start, optimum=along)

    @property
    def modes(self) -> Modes:
        """The modes of the risk: one for each of the spectrum's eigenvalues."""
        spectrum, start = self.spectrum, self.start
        if is_traced(spectrum.eigenvalues) or is_traced(start):
            return Modes.of(spectrum, start)
        # Known numbers stay known under `jit`, so that they can be compressed.
        with jax.ensure_compile_time_eval():
            return Modes.of(spectrum, start)

    def origin(self) -> Float[Array, " d"]:
        """The weights that are zero, measured from the optimum."""
        return -spread(self.spectrum, self.optimum)

    def compress(
        self, nodes: int = 48, isotropic: bool = False
    ) -> CompressedLinearModel:
        r"""The problem with twice `nodes` modes in place of its eigenvalues.

        See [`jaxclip.problem.Modes.compress`][]. The error that is returned is that of
        the two functions of the clock $\tau = \int \gamma\mu\,dk$ through which the
        spectrum enters the risk, $\sum_j u_j e^{-2\lambda_j\tau}$ and
        $\sum_j f_j (1 - e^{-2\lambda_j\tau})$: the largest over all times, in parts
        of the start's risk and of the trace.

        **Arguments:**

        - `nodes`: for each of the two; 48 reach rounding for most spectra.
        - `isotropic`: whether it is to serve for the noise of DP-SGD, too, which takes
            half as many modes more.

        **Raises:**

        A `ValueError` where the loss is not the squared one, and where the spectrum or
        the start is traced.
        """
        need_squared_loss("compress", self)
        nodes, modes = count("nodes", nodes), self.modes
        if is_traced(modes.risk):
            raise ValueError(
                "`compress` needs numbers, and got traced ones: call it outside of "
                "`jit` and `grad`."
            )
        few = modes.compress(nodes, isotropic)
        error = jnp.asarray(few.difference(modes))
        return CompressedLinearModel(few, self.noise, error)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return self.loss.slope(prediction, target)


def need_squared_loss(what: str, problem: Any) -> LinearModel:
    """The problem, if it is one that the limits of linear models and the criteria know.

    **Arguments:**

    - `what`: the name of what needs it.
    """
    if isinstance(problem, LinearModel) and isinstance(problem.loss, SquaredLoss):
        return problem
    if isinstance(problem, LinearModel):
        got, instead = problem.loss, "leave out its `loss`"
    else:
        got = problem
        instead = (
            "for the rows of a table, estimate one with `LinearModel.from_data(X, y)`"
        )
    raise ValueError(
        f"`{what}` needs a `LinearModel` with the squared loss. Got a "
        f"{type(got).__name__}; {instead}."
    )
