"""A linear model on features drawn afresh at every step: the paper's own setting."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import count, is_traced
from ..._types import Key, RealScalar
from ...noise import AbstractNoise
from ._basis import as_basis, decompose_covariance, facing
from ._compressed import CompressedLinearModel
from ._estimate import Table, estimate, rows_of
from ._gaussian import as_components, as_norms
from ._loss import AbstractLoss, SquaredLoss, check_residual
from ._modes import Modes
from ._power_law import unexplained
from ._rows import Regression, principal_axes
from ._spectrum import Spectrum
from ._turned import AbstractTurnedLinear


class LinearModel(AbstractTurnedLinear):
    r"""A linear model on Gaussian features, one fresh sample after the other.

    Sample $k$ is a fresh $a_k \sim N(0, K)$ with the label
    $y_k = \langle a_k, x^* \rangle + \epsilon_k$. The loss is a function of the
    residual $\langle a_k, x \rangle - y_k$: half its square, so that SGD is streaming
    least squares, or another one for robust and for quantile regression. What is
    recorded is, for every loss, the excess risk of least squares $R(x) = (x - x^*)^T K
    (x - x^*) / 2$, so that losses can be compared: they have the same minimiser $x^*$
    ([`jaxclip.problem.AbstractNoisyLinear`][]). The limits of linear models take every
    [`jaxclip.problem.AbstractResidualLoss`][]; the schedules and bounds that follow
    from the criteria for clipping are those of the squared loss.

    To a rule that sees whole gradients, or any that does not change in a rotation, only
    the spectrum of $K$ and the size of the error in each eigenspace matter, so
    parameters are measured from the optimum ($x^* = 0$), and held in the eigenbasis
    unless there is a `basis`; the error of an eigenspace is spread evenly over its
    dimensions. Rules for each coordinate, and optimisers such as Adam, see more: what
    the coordinates are that they work in. It is the `basis` that says so.

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
    - `basis`: shape `(p, d)`, the eigenvectors of $K$ in the coordinates that the
        optimiser works in, one a column, in the order of the spectrum's dimensions, so
        that $K = Q\,\mathrm{diag}(\lambda)\,Q^T$; with `p > d` there are directions in
        which features do not vary. By default the eigenvectors are the coordinates, and
        $K$ is diagonal. `from_covariance` makes it from $K$ itself.

    **Raises:**

    A `ValueError` where `start` or `optimum` has not one number for each eigenvalue, or
    `start` a negative one, and where the columns of `basis` are not orthonormal.
    """

    spectrum: Spectrum
    noise: AbstractNoise
    start: Float[Array, " m"]
    loss: AbstractLoss
    optimum: Float[Array, " m"]
    basis: Float[Array, "p d"] | None

    def __init__(
        self,
        spectrum: Spectrum,
        noise: AbstractNoise,
        start: Any,
        loss: AbstractLoss = SquaredLoss(),
        optimum: Any = None,
        *,
        basis: Any = None,
    ):
        self.spectrum = spectrum
        self.noise = noise
        self.start = as_norms("start", start, spectrum)
        self.loss = loss
        optimum = -self.start if optimum is None else optimum
        self.optimum = as_components("optimum", optimum, spectrum)
        self.basis = as_basis(basis, spectrum)

    @classmethod
    def from_covariance(
        cls,
        covariance: Any,
        noise: AbstractNoise,
        start: Any,
        loss: AbstractLoss = SquaredLoss(),
    ) -> "LinearModel":
        r"""The problem of features with this covariance, in their own coordinates.

        **Arguments:**

        - `covariance`: shape `(p, p)`, $K$, symmetric and positive semidefinite.
            Eigenvalues of 0 are left out; known before tracing.
        - `noise`, `loss`: as of [`jaxclip.LinearModel`][].
        - `start`: shape `(p,)`, the error $x_0 - x^*$, in these coordinates. What of it
            is in no direction in which the features vary is left out.
        """
        spectrum, norms, basis = decompose_covariance(covariance, start)
        return cls(spectrum, noise, norms, loss, basis=basis)

    @classmethod
    def from_data(
        cls,
        X: Any,
        y: Any,
        *,
        start: Any = None,
        features: int | None = None,
        key: Key | None = None,
        columns: bool = False,
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
        - `columns`: whether parameters are those of the columns, as an optimiser on the
            table holds them, or components in the eigenbasis, the default.
        """
        table = estimate(X, y, start, features, key)
        return cls._of_rows(table, columns)

    @classmethod
    def from_regression(
        cls, regression: Regression, *, columns: bool = False
    ) -> "LinearModel":
        """The problem that the limits see in one that runs on the rows of a table.

        **Arguments:**

        - `regression`: with the squared loss.
        - `columns`: as of `from_data`.

        **Raises:**

        A `ValueError` where it has another loss.
        """
        return cls._of_rows(rows_of(regression), columns)

    @classmethod
    def _of_rows(cls, table: Table, columns: bool) -> "LinearModel":
        eigenvalues, vectors = principal_axes(table.X)
        basis, norms = facing(vectors.T, table.error)
        return cls(
            Spectrum(eigenvalues),
            table.noise,
            norms,
            optimum=table.optimum @ basis,
            basis=basis if columns else None,
        )

    @classmethod
    def power_law_features(
        cls,
        alpha: float,
        beta: float,
        variables: int,
        features: int,
        *,
        noise: AbstractNoise | None = None,
        key: Key,
    ) -> "LinearModel":
        r"""Least squares from 0 on power-law random features, one draw of them.

        The model of arXiv:2405.15074; see [`jaxclip.Spectrum`][]'s
        `power_law_features`. The part of the target that no parameters explain is
        normal and independent of the features, and with that a label noise of its own.
        The risk is what the loss exceeds its least value by, as for every linear model;
        that value is half the square of `noise.std`, the unexplained part's standard
        deviation.

        **Arguments:**

        - `alpha`, `beta`, `variables`, `features`: as of the spectrum.
        - `noise`: of the label beside the unexplained part; none by default.
        - `key`: draws the features.
        """
        spectrum, start, least = Spectrum.power_law_features(
            alpha, beta, variables, features, key=key
        )
        return cls(spectrum, unexplained(least, noise), start)

    @property
    def modes(self) -> Modes:
        """The modes of the risk: one for each of the spectrum's eigenvalues."""
        spectrum, start = self.spectrum, self.start
        if is_traced(spectrum.eigenvalues) or is_traced(start):
            return Modes.of(spectrum, start)
        # Known numbers stay known under `jit`, so that they can be compressed.
        with jax.ensure_compile_time_eval():
            return Modes.of(spectrum, start)

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

        A `ValueError` where the loss is not one of the residual, and where the spectrum
        or the start is traced.
        """
        check_residual("compress", self.loss)
        nodes, modes = count("nodes", nodes), self.modes
        if is_traced(modes.risk):
            raise ValueError(
                "`compress` needs numbers, and got traced ones: call it outside of "
                "`jit` and `grad`."
            )
        few = modes.compress(nodes, isotropic)
        error = jnp.asarray(few.difference(modes))
        return CompressedLinearModel(few, self.noise, error, self.loss)

    def slope(self, prediction: RealScalar, target: RealScalar) -> RealScalar:
        return self.loss.slope(prediction, target)
