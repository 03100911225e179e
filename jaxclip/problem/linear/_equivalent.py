r"""Power-law random features: what all large draws of them have in common.

The deterministic equivalent of the model in `_power_law.py`, as quadratures of the two
measures of the eigenvalues that the risk depends on. In numpy and float64.
"""

from typing import NamedTuple

import numpy as np

# Terms of a sum over the variables that are added one by one; the rest is an integral
# in the logarithm of the index, by Gauss panels of about one unit each.
_HEAD, _PANEL = 4096, 16
# The ratio of neighbouring ridges. Nearer to 1 float64 no longer tells their resolvents
# apart: the smallest eigenvalue of the Gram matrix is 1e-12 of the largest.
_RATIO = 2.5
# Below this part of the largest, rounding shows in the masses.
_ROUNDING = 1e-12


class Equivalent(NamedTuple):
    """The deterministic equivalent: two measures of the eigenvalues.

    - `risk`, `forcing`: pairs of eigenvalues and masses, those of the risk at the start
        and of the covariance's trace; as of [`jaxclip.problem.Modes`][].
    - `irreducible`: the least loss.
    - `ridges`: how many resolvents were used.
    """

    risk: tuple[np.ndarray, np.ndarray]
    forcing: tuple[np.ndarray, np.ndarray]
    irreducible: float
    ridges: int


def equivalent(
    alpha: float,
    beta: float,
    variables: int,
    features: int,
    most: int,
) -> Equivalent:
    r"""What all draws of many features have in common, to about one over their number.

    With $\mathrm{df}(\kappa) = \sum_j \lambda_j / (\lambda_j + \kappa)$ the resolvent
    of $W^T D W$ at the ridge $\rho$ is that of $D$ at the ridge $\kappa$ for which

    $$\rho = \kappa\,(1 - \mathrm{df}(\kappa) / d),$$

    in that the trace's measure $f$ and the risk's measure $u$ of the eigenvalues have

    $$\int \frac{f(d\lambda)}{\lambda + \rho} = \mathrm{df}(\kappa), \qquad
    \int \frac{u(d\lambda)}{\lambda + \rho} = \frac{1}{2\rho} \sum_j \lambda_j b_j^2
    \left(\frac{\kappa}{\lambda_j + \kappa}
    - \frac{\kappa_0}{\lambda_j + \kappa_0}\right),$$

    where $\kappa_0$ is $\kappa$ at $\rho = 0$ and the second fraction the least loss
    (arXiv:2405.15074 solves the same fixed point at complex arguments). Each measure
    is replaced by its Gauss quadrature in the rational functions with poles at minus
    the ridges: it has these integrals and their derivatives in $\rho$, the total mass
    and the mean, and positive weights. No density is needed, and the cost depends
    neither on the variables nor on the features. The quadrature is derived here.

    **Arguments:**

    - `most`: how many ridges there may be; a measure has one node more than that.
    """
    index, weight = _indices(variables)
    lam = index ** (-2 * alpha)
    part = weight * lam * index ** (-2 * beta) / 2
    floor = _floor(lam, weight, variables, features)
    low, high = _range(lam, floor, alpha, variables, features)
    many = min(most, int(np.ceil(np.log(high / low) / np.log(_RATIO))) + 1)
    while True:
        ridges = np.geomspace(low, high, max(many, 2))
        shift = _shifts(ridges, floor, lam, weight, variables, features)
        try:
            return _quadratures(shift, floor, lam, weight, part, variables, features)
        except np.linalg.LinAlgError:
            # Resolvents outside of a narrow spectrum are not told apart.
            if many <= 2:
                raise
            many -= 1


def _quadratures(
    shift, floor: float, lam, weight, part, variables: int, features: int
) -> Equivalent:
    """The quadratures from the resolvents at the ridges `floor + shift`."""
    ridge, slope = _ridge(shift, floor, lam, weight, variables, features)
    kappa = floor + shift[:, None]

    df = np.sum(weight * lam / (lam + kappa), axis=1)
    df_slope = -np.sum(weight * lam / (lam + kappa) ** 2, axis=1) / slope
    trace = np.sum(weight * lam)
    square = np.sum(weight * lam**2) + trace**2 / features
    forcing = _gauss(ridge, df, df_slope, trace, square)

    # The difference of the two fractions, as a product.
    loss = shift * np.sum(part * lam / ((lam + kappa) * (lam + floor)), axis=1) / ridge
    loss_slope = np.sum(part * lam / (lam + kappa) ** 2, axis=1) / slope
    whole, first = np.sum(part * lam / (lam + floor)), np.sum(part * lam)
    risk = _gauss(ridge, loss, (loss_slope - loss) / ridge, whole, first)
    least = float(np.sum(part * floor / (lam + floor)))
    return Equivalent(risk, forcing, least, len(ridge))


def _indices(variables: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of variables, and weights, by which smooth sums over all are sums."""
    head = np.arange(1, min(variables, _HEAD) + 1, dtype=float)
    if variables <= _HEAD:
        return head, np.ones_like(head)
    # By the midpoint rule backwards: each term is an integral over a unit interval.
    low, high = np.log(_HEAD + 0.5), np.log(variables + 0.5)
    nodes, weights = np.polynomial.legendre.leggauss(_PANEL)
    edges = np.linspace(low, high, int(np.ceil(high - low)) + 1)
    half = (edges[1] - edges[0]) / 2
    tail = np.exp((edges[:-1, None] + half * (1 + nodes)).ravel())
    weights = np.tile(half * weights, len(edges) - 1) * tail
    return (
        np.concatenate([head, tail]),
        np.concatenate([np.ones_like(head), weights]),
    )


def _floor(lam, weight, variables: int, features: int) -> float:
    """The ridge of the variables where the features have none: df is their number."""
    if variables <= features:
        return 0.0
    low, high = np.log(lam[-1]) - 40, np.log(np.sum(weight * lam) / features)
    for _ in range(80):
        middle = (low + high) / 2
        many = np.sum(weight * lam / (lam + np.exp(middle))) > features
        low, high = (middle, high) if many else (low, middle)
    return float(np.exp((low + high) / 2))


def _range(lam, floor: float, alpha: float, variables: int, features: int):
    """Ridges well below the smallest eigenvalue of the features, and above all."""
    if floor > 0:
        # The mean of the inverse eigenvalues, which for a power law is about so many
        # times smaller than the largest of them.
        return floor / (2 * alpha + 1) / 30, 3 * lam[0]
    # The edge of Marchenko and Pastur's law; not zero where that one is.
    edge = max(1 - np.sqrt(variables / features), 0.01) ** 2
    return lam[-1] * edge / 30, 3 * lam[0]


def _ridge(shift, floor, lam, weight, variables, features):
    """The features' ridge where that of the variables is `floor + shift`, and its
    derivative; as sums of positive terms, since both may be far below one."""
    shift = shift[:, None]
    kappa = floor + shift
    gap = max(1 - variables / features, 0.0)
    inner = weight * lam / ((lam + kappa) * (lam + floor))
    left = gap + np.sum(shift * inner, axis=1) / features
    slope = np.sum(weight * kappa * lam / (lam + kappa) ** 2, axis=1) / features
    return kappa[:, 0] * left, left + slope


def _shifts(ridges, floor, lam, weight, variables, features) -> np.ndarray:
    """The shifts at which the features' ridge is about each of these, from a table: the
    ridge is then computed from the shift, so that the table's error does not matter."""
    top = 10 * (ridges[-1] + np.sum(weight * lam) / features)
    table = np.geomspace(1e-4 * ridges[0], top, 600)
    values, _ = _ridge(table, floor, lam, weight, variables, features)
    return np.exp(np.interp(np.log(ridges), np.log(values), np.log(table)))


def _gauss(ridge, value, slope, total, first) -> tuple[np.ndarray, np.ndarray]:
    r"""Gauss nodes and weights of a measure $m$ in 1 and the $1 / (\lambda + \rho_i)$.

    The eigenvalues of multiplication by $\lambda$ on their span: both Gram matrices
    follow from $G(\rho) = \int m(d\lambda) / (\lambda + \rho)$ by divided differences.

    **Arguments:**

    - `ridge`: shape `(n,)`, $\rho_i$, apart from each other.
    - `value`, `slope`: shape `(n,)`, $G$ and its derivative there.
    - `total`, `first`: the measure's mass, and its integral of $\lambda$.
    """
    apart = ridge[:, None] - ridge[None, :]
    np.fill_diagonal(apart, 1.0)
    inner = -(value[:, None] - value[None, :]) / apart
    np.fill_diagonal(inner, -slope)
    # lambda / (lambda + rho_i) = 1 - rho_i / (lambda + rho_i).
    product = ridge * value
    moved = (product[:, None] - product[None, :]) / apart
    np.fill_diagonal(moved, value + ridge * slope)
    # The constant last: then what is small comes before what is large in both.
    gram = np.block([[inner, value[:, None]], [value[None, :], np.array([[total]])]])
    rest = total - product
    moved = np.block([[moved, rest[:, None]], [rest[None, :], np.array([[first]])]])
    gram_scale, moved_scale = np.sqrt(np.diag(gram)), np.sqrt(np.diag(moved))
    scaled = gram / gram_scale / gram_scale[:, None]
    sizes = np.linalg.eigvalsh(scaled)
    if not sizes[0] > _ROUNDING * sizes[-1]:
        raise np.linalg.LinAlgError
    lower = np.linalg.cholesky(scaled)
    root = np.linalg.cholesky(moved / moved_scale / moved_scale[:, None])
    root *= (moved_scale / gram_scale)[:, None]
    nodes = _singular_values(np.linalg.solve(lower, root)) ** 2
    # One over the square of all orthonormal functions there: no small difference.
    at = np.vstack([1 / (nodes + ridge[:, None]), np.ones_like(nodes)])
    at = np.linalg.solve(lower, at / gram_scale[:, None])
    return nodes, 1 / np.sum(at**2, axis=0)


def _singular_values(rows: np.ndarray) -> np.ndarray:
    """Singular values of a matrix whose rows grow, the smallest to all digits too.

    By Jacobi's rotations of pairs of rows (Demmel and Veselic 1992,
    doi:10.1137/0613074): other methods have an error of the largest one's rounding.
    """
    count = len(rows) + len(rows) % 2
    table = np.zeros((count, rows.shape[1]))
    table[: len(rows)] = rows
    order = np.arange(count)
    for _ in range(40):
        worst = 0.0
        for _ in range(count - 1):
            # All rows meet in pairs: the first stays, the others go round.
            p, q = order[: count // 2], order[count // 2 :][::-1]
            x, y = table[p], table[q]
            a, b, c = np.sum(x * x, 1), np.sum(y * y, 1), np.sum(x * y, 1)
            size = np.sqrt(a * b)
            turn = np.abs(c) > 1e-15 * size
            worst = max(worst, np.max(np.abs(c) / np.where(size > 0, size, 1.0)))
            zeta = (b - a) / np.where(turn, 2 * c, 1.0)
            sign = np.where(zeta < 0, -1.0, 1.0)
            tangent = np.where(turn, sign / (np.abs(zeta) + np.hypot(1.0, zeta)), 0.0)
            cosine = 1 / np.hypot(1.0, tangent)
            sine = tangent * cosine
            table[p] = cosine[:, None] * x - sine[:, None] * y
            table[q] = sine[:, None] * x + cosine[:, None] * y
            order[1:] = np.roll(order[1:], 1)
        if worst < 1e-14:
            break
    sizes = np.linalg.norm(table, axis=1)
    return np.sort(sizes)[count - len(rows) :]
