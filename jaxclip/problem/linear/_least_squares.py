"""Least squares on features drawn afresh at every step: the paper's own setting."""

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
from ._gaussian import AbstractNoisyLinear, as_norms
from ._loss import SquaredLoss
from ._minimiser import minimiser
from ._modes import Modes
from ._rows import Regression, as_table, decompose
from ._spectrum import Spectrum


class CompressedLeastSquares(eqx.Module):
    """What the risk ODE needs of a [`jaxclip.LeastSquares`][], in a few modes.

    Made by its `compress`. [`jaxclip.solve`][] takes it in place of the problem.

    **Fields:**

    - `modes`: twice as many [`jaxclip.Modes`][] as the nodes asked for.
    - `noise`: the label noise.
    - `error`: the error of the compression; see `compress`.
    """

    modes: Modes
    noise: AbstractNoise
    error: Float[Array, ""]


class LeastSquares(AbstractNoisyLinear):
    r"""Streaming least squares with Gaussian features.

    Sample $k$ is a fresh $a_k \sim N(0, K)$ with the label
    $y_k = \langle a_k, x^* \rangle + \epsilon_k$; the loss is half the squared
    residual, and the excess risk $R(x) = (x - x^*)^T K (x - x^*) / 2$.

    Only the spectrum of $K$ and the size of the error in each eigenspace matter to the
    law of a run, so parameters are held in the eigenbasis and measured from the optimum
    ($x^* = 0$); the error of an eigenspace is spread evenly over its dimensions.

    **Arguments:**

    - `spectrum`: the eigenvalues of $K$, with multiplicities.
    - `noise`: the law of $\epsilon$.
    - `error0`: shape `(m,)`, that of `spectrum.eigenvalues`: the norm of $x_0 - x^*$ in
        each eigenspace. Not negative, in the parameters' unit.
    """

    spectrum: Spectrum
    noise: AbstractNoise
    error0: Float[Array, " m"]

    def __init__(self, spectrum: Spectrum, noise: AbstractNoise, error0: Any):
        self.spectrum = spectrum
        self.noise = noise
        self.error0 = as_norms("error0", error0, spectrum)

    @classmethod
    def from_data(
        cls,
        X: Any,
        y: Any,
        *,
        start: Any = None,
        features: int | None = None,
        key: Key | None = None,
    ) -> "LeastSquares":
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
        - `key`: draws $W$, by [`jaxclip.random_features`][].
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
        spectrum, error0 = decompose(X, error)
        return cls(spectrum, Empirical(y - X @ optimum), error0)

    @classmethod
    def from_regression(cls, regression: Regression) -> "LeastSquares":
        """The problem that the limits see in one that runs on the rows of a table."""
        if not isinstance(regression.loss, SquaredLoss):
            raise ValueError(
                "`regression` must have the squared loss, which `LeastSquares` has. "
                f"Got a {type(regression.loss).__name__}; leave out its `loss`."
            )
        spectrum, error0 = regression.spectrum_and_error()
        return cls(spectrum, Empirical(regression.residuals), error0)

    @property
    def modes(self) -> Modes:
        """The modes of the risk: one for each of the spectrum's eigenvalues."""
        spectrum, error0 = self.spectrum, self.error0
        if is_traced(spectrum.eigenvalues) or is_traced(error0):
            return Modes.of(spectrum, error0)
        # Known numbers stay known under `jit`, so that they can be compressed.
        with jax.ensure_compile_time_eval():
            return Modes.of(spectrum, error0)

    def compress(self, nodes: int = 48) -> CompressedLeastSquares:
        r"""The problem with twice `nodes` modes in place of its eigenvalues.

        See [`jaxclip.Modes.compress`][]. The error that is returned is that of the
        two functions of the clock $\tau = \int \gamma\mu\,dk$ through which the
        spectrum enters the risk, $\sum_j u_j e^{-2\lambda_j\tau}$ and
        $\sum_j f_j (1 - e^{-2\lambda_j\tau})$: the largest over all times, in parts
        of the start's risk and of the trace.

        **Arguments:**

        - `nodes`: for each of the two; 48 reach rounding for most spectra.

        **Raises:**

        A `ValueError` where the spectrum or the start is traced.
        """
        nodes, modes = count("nodes", nodes), self.modes
        if is_traced(modes.risk):
            raise ValueError(
                "`compress` needs numbers, and got traced ones: call it outside of "
                "`jit` and `grad`."
            )
        few = modes.compress(nodes)
        error = jnp.asarray(few.difference(modes))
        return CompressedLeastSquares(few, self.noise, error)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return prediction - target
