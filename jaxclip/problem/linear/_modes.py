"""The risk of a linear model as a sum of modes, and the same risk with few of them."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._spectrum import Spectrum

# From this many eigenvalues on, they are first gathered into bins: two nodes in each of
# so many, evenly spaced in the logarithm.
_GATHER = 40_000
_BINS = 20_000


class Modes(eqx.Module):
    r"""The modes of the risk of a linear model: the parts that its eigenspaces hold.

    $$R = \sum_j u_j, \qquad \frac{du_j}{dk} = \lambda_j
    \left(-2 \gamma \mu\, u_j + \tfrac12 \gamma^2 \,\mathrm{second}\, f_j\right),$$

    with the learning rate $\gamma$ and the [`jaxclip.moments`][] $\mu$ and
    $\mathrm{second}$ of the rule at the risk $R$.

    - `eigenvalues`: shape `(n,)`, $\lambda_j$.
    - `risk`: shape `(n,)`, $u_j$ at step 0: $\lambda_j \|z_j\|^2 / 2$ with the error
        $z_j$ in the eigenspace, in the label's squared unit.
    - `forcing`: shape `(n,)`, $f_j = \lambda_j d_j$: the part of the covariance's trace
        that the mode carries, $d_j$ being the dimension of the eigenspace.
    - `dims`: shape `(n,)`, $d_j$: what the mode receives of a noise that is the same in
        all directions. None where that is not known.
    """

    eigenvalues: Float[Array, " n"]
    risk: Float[Array, " n"]
    forcing: Float[Array, " n"]
    dims: Float[Array, " n"] | None = None

    @classmethod
    def of(cls, spectrum: Spectrum, start: Float[Array, " n"]) -> "Modes":
        """One mode an eigenvalue, from the norm of the error in each eigenspace."""
        lam = spectrum.eigenvalues
        dims = spectrum.multiplicity.astype(lam.dtype)
        return cls(lam, lam * start**2 / 2, lam * dims, dims)

    @property
    def feature_norm(self) -> Float[Array, ""]:
        """The square root of the covariance's trace."""
        return jnp.sqrt(jnp.sum(self.forcing))

    def compress(self, nodes: int, isotropic: bool = False) -> "Modes":
        r"""Twice `nodes` modes with nearly the same risk at all times.

        The risk depends on the spectrum through two measures of $\log \lambda$ only,
        $\sum u_j \delta$ and $\sum f_j \delta$. Each is replaced by its Gauss
        quadrature, found by Lanczos' method with full reorthogonalisation. The risk at
        step 0 and the stationary one are exact at any number of nodes; in between 32
        nodes give six digits for power laws, and 48 in every case tried. Derived here.

        **Arguments:**

        - `nodes`: for each of the two measures.
        - `isotropic`: whether the modes are also to receive a noise that is the same in
            all directions, as that of DP-SGD is: by a third measure, $\sum d_j \delta$,
            and three times `nodes` modes.
        """
        log = np.log(np.asarray(self.eigenvalues, np.float64))
        measures = [self.risk, self.forcing]
        if isotropic:
            measures.append(self._need_dims())
        parts = []
        for i, weights in enumerate(measures):
            at, mass = gauss(log, np.asarray(weights, np.float64), nodes)
            columns = [np.zeros_like(mass)] * len(measures)
            columns[i] = mass
            parts.append((np.exp(at), *columns))
        dtype = self.eigenvalues.dtype
        arrays = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Modes(*(jnp.asarray(array, dtype) for array in arrays))

    def _need_dims(self) -> Float[Array, " n"]:
        if self.dims is None:
            raise ValueError("`isotropic` needs modes that have `dims`. Got none.")
        return self.dims

    def difference(self, other: "Modes") -> float:
        """The largest difference of the two functions of [`jaxclip.LinearModel`][]'s
        `compress`, over a fine grid of all times at which they change."""
        ours, theirs = self._measures(), other._measures()
        low = min(mode.min() for mode, _ in theirs)
        high = max(mode.max() for mode, _ in theirs)
        worst = 0.0
        for tau in np.geomspace(1e-4 / high, 30 / low, 200):
            for (at, mass), (other_at, other_mass) in zip(ours, theirs, strict=True):
                whole = other_mass.sum()
                mine = mass @ np.exp(-2 * tau * at)
                exact = other_mass @ np.exp(-2 * tau * other_at)
                worst = max(worst, abs(mine - exact) / whole if whole > 0 else 0.0)
        return float(worst)

    def _measures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points and weights of the start's measure and of the noise's, gathered."""
        log = np.log(np.asarray(self.eigenvalues, np.float64))
        measures = []
        for weights in (self.risk, self.forcing):
            points, mass = _few_points(log, np.asarray(weights, np.float64))
            measures.append((np.exp(points), mass))
        return measures


def gauss(x: np.ndarray, weights: np.ndarray, nodes: int) -> tuple[Any, Any]:
    """Nodes and weights of the Gauss quadrature of a discrete measure.

    Exact for polynomials of degree below twice the number of nodes; fewer nodes come
    back where the measure has fewer points.
    """
    x, weights = _few_points(x, weights)
    total = weights.sum()
    if len(x) == 0:
        return np.zeros(0), np.zeros(0)
    center, scale = (x.max() + x.min()) / 2, max((x.max() - x.min()) / 2, 1e-300)
    alpha, beta = _lanczos((x - center) / scale, np.sqrt(weights / total), nodes)
    matrix = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
    values, vectors = np.linalg.eigh(matrix)
    return center + scale * values, total * vectors[0] ** 2


def _few_points(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that weigh something, gathered into bins where they are many."""
    x, weights = x[weights > 0], weights[weights > 0]
    return _gathered(x, weights) if len(x) > _GATHER else (x, weights)


def _lanczos(x: np.ndarray, start: np.ndarray, nodes: int):
    """The Jacobi matrix of a measure: its diagonal, and the one beside it."""
    basis = np.empty((min(nodes, len(x)), len(x)))
    basis[0] = start
    alpha, beta = [], []
    for k in range(len(basis)):
        vector = x * basis[k]
        alpha.append(basis[k] @ vector)
        # Twice is enough: in one pass the basis loses its orthogonality.
        for _ in range(2):
            vector -= basis[: k + 1].T @ (basis[: k + 1] @ vector)
        norm = np.linalg.norm(vector)
        if k + 1 == len(basis) or norm < 1e-14:
            break
        beta.append(norm)
        basis[k + 1] = vector / norm
    return np.array(alpha), np.array(beta)


def _gathered(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The measure with the points of each bin replaced by two, which share its first
    four moments."""
    edges = np.linspace(x.min(), x.max(), _BINS + 1)
    width = edges[1] - edges[0]
    index = np.minimum(((x - edges[0]) / width).astype(int), _BINS - 1)
    offset = (x - edges[index]) / width - 0.5
    mass, *moments = (np.bincount(index, weights * offset**p, _BINS) for p in range(4))
    some = mass > 0
    mass, edges = mass[some], edges[:-1][some]
    m1, m2, m3 = (moment[some] / mass for moment in moments)
    variance = np.maximum(m2 - m1**2, 0.0)
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    # At the mean plus each root of s^2 - (third / variance) s - variance.
    skew = np.divide(third, variance, out=np.zeros_like(third), where=variance > 1e-24)
    root = np.sqrt(skew**2 / 4 + variance)
    high, low = skew / 2 + root, skew / 2 - root
    share = np.divide(-low, high - low, out=np.full_like(low, 0.5), where=root > 0)
    points = edges[:, None] + width * (0.5 + m1[:, None] + np.stack([high, low], 1))
    masses = mass[:, None] * np.stack([share, 1 - share], 1)
    kept = masses.ravel() > 0
    return points.ravel()[kept], masses.ravel()[kept]
