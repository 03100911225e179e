r"""What stands for the unknown best parameters: a fit whose errors are known.

The excess risk of parameters $x$ is $R(x) = (x - x^*)^T K (x - x^*) / 2$, and nobody
knows $x^*$, the least-squares solution on infinitely many rows. Measured from the
solution on the very rows that SGD was trained on, it leaves out what those rows taught
it that is not true of others; where residuals are heavy-tailed, that is most of it.

Here it is measured on rows that were held out. With $\tilde x$ fitted on the training
rows, one step of Newton's method over the held-out ones leads from it to an estimate of
$x^*$ whose errors are independent of $x$ and of $\tilde x$:

$$\hat R(x) = \tfrac12 (x - \tilde x)^T K (x - \tilde x) - (x - \tilde x)^T G + V,
\qquad G = \frac{1}{p} \operatorname{mean}_{i \text{ held out}} a_i \psi(e_i),
\qquad V = \frac{1}{2 n p^2} \operatorname{mean}_i a_i^T K^{-1} a_i\, \psi(e_i)^2,$$

with $e_i = y_i - \langle a_i, \tilde x \rangle$, $p$ the mean of $\psi'$, and $V$ the
expected excess risk of $\tilde x$ itself by the sandwich formula. With
$\psi(e) = e$ this is a difference of held-out squared losses, but for the covariance,
which is that of all rows. With $\psi$ cut at a threshold it is the distance to a Huber
fit on other rows: where residuals have outliers its variance is many times smaller,
but where they are skewed in a way that depends on the features, or have a size that
does, it aims beside $x^*$. The threshold is chosen to have the smallest mean squared
error. Derived here.
"""

from dataclasses import dataclass

import numpy as np

# Thresholds of the Huber fit, in robust standard deviations of the residuals.
_THRESHOLDS = (1.0, 2.0, 4.0, 8.0, np.inf)


@dataclass(frozen=True)
class Reference:
    """The estimating function that a table's excess risks are measured with.

    - `threshold`: where residuals are cut, in the unit of the target; infinite where
        they are not, and the reference is least squares.
    - `solution`: shape `(d,)`, its fit on all rows.
    - `covariance`: shape `(d, d)`, that of the features, over all rows.
    - `inverse`: its pseudoinverse.
    - `error`: the expected excess risk of `solution`.
    """

    threshold: float
    solution: np.ndarray
    covariance: np.ndarray
    inverse: np.ndarray
    error: float

    @classmethod
    def of(cls, X: np.ndarray, y: np.ndarray) -> "Reference":
        """The estimating function with the smallest estimated mean squared error on
        these rows, features of shape `(n, d)` and a target of shape `(n,)`."""
        covariance = X.T @ X / len(X)
        inverse = pseudoinverse(covariance)
        plain = fit(X, y, np.inf)
        residuals = y - X @ plain
        # The median of |Z| is 0.6745 for a normal Z: a scale that outliers do not move.
        scale = np.median(np.abs(residuals)) / 0.6745
        # A row pulls the fit towards itself, and its own residual down by 1 - leverage.
        # Beyond one half that is no small correction, and is not trusted.
        leverage = np.minimum(np.einsum("ni,ni->n", X @ inverse, X) / len(X), 0.5)
        # Coordinates in which the excess risk is half a sum of squares.
        unit, straight = X @ _root(inverse), _root(covariance)
        cuts = np.asarray(_THRESHOLDS) * (scale if scale > 0 else residuals.std())
        fits = [fit(X, y, cut, plain) for cut in cuts]
        # What each row moves each of the fits by.
        moves = [
            influence(y - X @ x, cut) / (1 - leverage)
            for x, cut in zip(fits, cuts, strict=True)
        ]

        def bias(i, j):
            """Coordinate by coordinate, since a bias often has one direction: the part
            of the distance of two fits that chance does not explain."""
            # Two fits differ by chance, too, by as much as the moves of their rows do:
            # what is beyond twice that variance is taken for a bias.
            square = ((fits[i] - fits[j]) @ straight) ** 2 / 2
            apart = (moves[i] - moves[j])[:, None]
            scatter = np.mean((unit * apart) ** 2, axis=0) / (2 * len(X))
            return np.sum(np.maximum(square - 2 * scatter, 0.0))

        # The sandwich formula: the variance of a fit is the mean square of what its
        # rows move it by, over their number.
        errors = [np.mean(np.sum(unit**2, axis=1) * m**2) / (2 * len(X)) for m in moves]
        last = len(cuts) - 1
        # A bias that is lost in the noise of least squares may show beside a fit whose
        # threshold is only a little larger (Lepski's method).
        totals = [
            errors[i] + max((bias(i, j) for j in range(i + 1, last + 1)), default=0.0)
            for i in range(last + 1)
        ]
        i = int(np.argmin(totals))
        return cls(float(cuts[i]), fits[i], covariance, inverse, float(errors[i]))


@dataclass(frozen=True)
class Split:
    """Rows to train on, rows to measure on, and what the measuring needs of both.

    - `train`, `test`: row numbers.
    - `solution`: shape `(d,)`, the reference's fit on the training rows.
    - `error`: its own expected excess risk.
    - `pull`: shape `(n_test,)`, what each held-out row says of the fit's error.
    """

    train: np.ndarray
    test: np.ndarray
    solution: np.ndarray
    error: float
    pull: np.ndarray

    @classmethod
    def of(
        cls,
        reference: Reference,
        X: np.ndarray,
        y: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
    ) -> "Split":
        A, b = X[train], y[train]
        x = fit(A, b, reference.threshold, reference.solution)
        residuals = b - A @ x
        inverse = reference.inverse
        leverage = np.einsum("ni,ni->n", A @ inverse, A) / len(A)
        moves = influence(residuals, reference.threshold)
        moves = moves / (1 - np.minimum(leverage, 0.5))
        error = float(np.mean(leverage * moves**2) / 2)
        held_out = y[test] - X[test] @ x
        return cls(train, test, x, error, influence(held_out, reference.threshold))

    def distance(self, reference: Reference, params: np.ndarray) -> np.ndarray:
        """Half the squared distance of each of the parameters, shape `(..., d)`, to the
        training rows' fit; infinite where they are not finite."""
        finite = np.isfinite(params).all(axis=-1)
        apart = np.where(np.expand_dims(finite, -1), params, 0.0) - self.solution
        with np.errstate(over="ignore", invalid="ignore"):
            square = np.sum(apart @ reference.covariance * apart, axis=-1) / 2
        return np.where(finite & np.isfinite(square), square, np.inf)

    def excess(
        self, reference: Reference, X: np.ndarray, params: np.ndarray
    ) -> np.ndarray:
        """The excess risk of each of the parameters, shape `(..., d)`."""
        square = self.distance(reference, params)
        finite = np.isfinite(square)
        apart = np.where(np.expand_dims(finite, -1), params, 0.0) - self.solution
        gradient = X[self.test].T @ self.pull / len(self.test)
        return square - apart @ gradient + self.error

    def by_row(self, X: np.ndarray, params: np.ndarray) -> np.ndarray:
        """The part of the excess risk that each held-out row adds at mean parameters of
        shape `(d,)` or `(s, d)`: shape `(n_test,)` or `(n_test, s)`."""
        pull = self.pull if params.ndim == 1 else self.pull[:, None]
        return -(X[self.test] @ (params - self.solution).T) * pull


def influence(residuals: np.ndarray, threshold: float) -> np.ndarray:
    """psi / mean psi' of the Huber function, at each residual."""
    if np.isinf(threshold):
        return residuals
    inside = np.abs(residuals) <= threshold
    return np.clip(residuals, -threshold, threshold) / max(inside.mean(), 1e-3)


def fit(
    X: np.ndarray, y: np.ndarray, threshold: float, start: np.ndarray | None = None
) -> np.ndarray:
    """The minimiser of the mean Huber loss, by Newton's method on the rows inside of
    the threshold; least squares where it is infinite."""
    inverse = pseudoinverse(X.T @ X / len(X))
    x = inverse @ (X.T @ y / len(X))
    if np.isinf(threshold):
        return x
    x = x if start is None else start
    for _ in range(100):
        residuals = y - X @ x
        inside = np.abs(residuals) <= threshold
        cut = np.clip(residuals, -threshold, threshold)
        # The Hessian of the mean Huber loss is at most the covariance, so that a step
        # with the covariance for it goes down always; divided by the share of the rows
        # inside the threshold, which is about the ratio of the two, it is Newton's. The
        # floor keeps it from going too far where few rows are inside.
        step = inverse @ (X.T @ cut / len(X))
        x = x + step / max(float(inside.mean()), 0.5)
        if np.linalg.norm(step) <= 1e-6 * (np.linalg.norm(x) + 1e-12):
            break
    return x


def pseudoinverse(matrix: np.ndarray) -> np.ndarray:
    """Of a covariance, without the directions that rounding cannot tell from none."""
    return np.linalg.pinv(matrix, rcond=1e-10 * len(matrix), hermitian=True)


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def rest(reference: Reference, X: np.ndarray, y: np.ndarray, threshold: float) -> float:
    r"""The excess risk of the point where clipped SGD with a small rate comes to rest.

    It is where the mean clipped gradient vanishes, the minimum of a Huber loss with the
    threshold $c / \|a_i\|$ on row $i$; on skewed or heteroscedastic residuals that is
    not the least-squares solution. By iteratively reweighted least squares. Derived
    here.

    **Arguments:**

    - `threshold`: on the gradient's norm, positive.
    """
    tiny = np.finfo(float).tiny
    norms = np.maximum(np.linalg.norm(X, axis=1), tiny)
    x = reference.solution
    for _ in range(200):
        residuals = np.maximum(np.abs(y - X @ x), tiny)
        # The factor of the clip, which is what a Huber loss weighs a row by.
        weights = np.minimum(1.0, threshold / (norms * residuals))
        hessian = (X.T * weights) @ X / len(X)
        new = pseudoinverse(hessian) @ (X.T @ (weights * y) / len(X))
        moved = np.linalg.norm(new - x)
        x = new
        if moved <= 1e-7 * (1e-12 + np.linalg.norm(x)):
            break
    error = x - reference.solution
    return float(error @ reference.covariance @ error / 2)
