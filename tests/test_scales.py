"""The moments at any ratio of signal, noise and threshold, and in any unit.

Against a double integral over the noise and the signal, which knows nothing of the
density of their sum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxclip as jc
from helpers import RESIDUALS, Redescending, Skewed, Skip

X64 = jnp.result_type(float) == jnp.float64
TOLERANCE = 1e-9 if X64 else 1e-4

# psi and its slope, as functions of the norm over the threshold, and its jump there.
RULES = {
    "hard": (lambda x: np.minimum(x, 1), lambda x: 1.0 * (x < 1), 0.0),
    "soft": (lambda x: x / (1 + x), lambda x: 1 / (1 + x) ** 2, 0.0),
    "redescending": (
        lambda x: x / (1 + x**2),
        lambda x: (1 - x) * (1 + x) / (1 + x**2) ** 2,
        0.0,
    ),
    "skip": (lambda x: x * (x < 1), lambda x: 1.0 * (x < 1), -1.0),
}


class AnyRule(jc.AbstractClip):
    """The rule of `RULES` with this index."""

    index: jax.Array
    threshold: jax.Array

    def factor(self, norm, step):
        c = self.threshold
        rules = [jc.HardClip(c), jc.SoftClip(c), Redescending(c), Skip(c)]
        return jnp.stack([rule.factor(norm, step) for rule in rules])[self.index]

    def kinks(self, step):
        return (self.threshold,)


# Each noise as a function of its scale, and what it is: its law, the points where the
# density is not smooth and how far it reaches; or values, their weights and widths.
NOISES = {
    "gaussian": (jc.Gaussian, ([0.0], [1.0], [1.0])),
    "rademacher": (jc.Rademacher, ([-1.0, 1.0], [0.5, 0.5], [0.0, 0.0])),
    "sparse_sign": (
        lambda x: jc.noise.SparseSign(x, 0.2),
        (5**0.5 * np.array([-1, 0, 1]), [0.1, 0.8, 0.1], np.zeros(3)),
    ),
    "contaminated": (
        lambda x: jc.Contaminated(x, 100 * x, 0.1),
        ([0.0, 0.0], [0.9, 0.1], [1.0, 100.0]),
    ),
    "empirical": (
        lambda x: jc.Empirical(x * RESIDUALS.astype(jnp.result_type(float))),
        (RESIDUALS, np.full(7, 1 / 7), np.zeros(7)),
    ),
    "skewed": (Skewed, (Skewed.means, Skewed.weights, Skewed.stds)),
    "uniform": (
        jc.Uniform,
        (stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)), [-np.sqrt(3), np.sqrt(3)], 2),
    ),
    "laplace": (jc.Laplace, (stats.laplace(scale=np.sqrt(0.5)), [0.0], 40)),
    "exponential": (jc.Exponential, (stats.expon(loc=-1), [-1.0], 50)),
    "student_t": (lambda x: jc.StudentT(3.0, x), (stats.t(3), [], 1e15)),
    "student_t_60": (lambda x: jc.StudentT(60.0, x), (stats.t(60), [], 1e3)),
    "cauchy": (lambda x: jc.Cauchy(x), (stats.cauchy(), [], 1e28)),
}

# The signal beside noise of scale 1, and thresholds in the signal and in the noise.
SIGNALS = [1e-12, 1e-8, 1e-4, 1e-2, 0.5, 30.0, 1e4, 1e8, 1e12]
FACTORS = [1e-12, 1e-6, 0.6, 3.0, 1e6, 1e12]
CASES = sorted(
    {
        (rule, s, factor * unit)
        for rule in RULES
        for s in SIGNALS
        for factor in FACTORS
        for unit in (s, 1.0)
        if 0.5e-12 * max(1, s) < factor * unit < 2e12 * max(1, s)
    }
)
# No grid of them all, which would take minutes: every eleventh meets each of the
# signals, of the thresholds and of the rules.
CASES = CASES[::11]
UNITS = [1.0, 1e-12, 1e6]


def phi(z):
    """The standard normal density: scipy's checks of its arguments take longer."""
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def gauss(edges, count=12):
    """Nodes and weights on the panels between sorted edges, along a last axis."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    half, middle = np.diff(edges) / 2, (edges[..., 1:] + edges[..., :-1]) / 2
    shape = (*edges.shape[:-1], -1)
    at = middle[..., None] + half[..., None] * nodes
    return at.reshape(shape), (half[..., None] * weights).reshape(shape)


def given_noise(rule, e, std, c):
    """`mu`, `second`, the terms of `mu` without their signs, given the noise `e`, shape
    `(n,)`, and a width of each."""
    psi, slope, jump = RULES[rule]
    e, std = np.broadcast_arrays(np.abs(e)[:, None], np.asarray(std)[..., None])
    # Where the residual -e + std z is at a kink, and close to 0 on the scale of the
    # threshold; as a distance from -e where the law is narrow, from 0 where it is not.
    origin = np.where(e > 100 * std, e, 0.0)
    near = 4.0 ** np.arange(-2, 16)
    kinks = np.concatenate([[-1, 0, 1], -near, near]) * c
    fixed = std * np.linspace(-10, 10, 13)
    points = np.concatenate([kinks + origin, origin - e + fixed], axis=1)
    low, high = origin - e - 10 * std, origin - e + 10 * std
    at, weight = gauss(np.sort(np.clip(points, low, high)))
    z = (at + (e - origin)) / std
    x = np.abs(at - origin) / c
    # On the side of the kink on which it is, when the noise has lost the signal.
    inside = (at > origin - c) & (at < origin + c)
    x = np.where(inside, np.minimum(x, 1 - 1e-15), np.maximum(x, 1 + 1e-15))
    weight = weight * phi(z) / std
    ends = phi((e - c) / std) + phi((e + c) / std)
    jumps = jump * c * np.sum(ends / std, axis=1)
    mu = np.sum(weight * slope(x), axis=1) + jumps
    size = np.sum(weight * np.abs(slope(x)), axis=1) + np.abs(jumps)
    return np.array([mu, c**2 * np.sum(weight * psi(x) ** 2, axis=1), size])


def reference(name, rule, s, c):
    law = NOISES[name][1]
    if isinstance(law[0], (list, np.ndarray)):
        values, weights, stds = (np.asarray(part, float) for part in law)
        return given_noise(rule, values, np.hypot(s, stds), c) @ weights
    law, breaks, reach = law
    # Around all points where the density or the mean over the signal varies, on every
    # scale between the smallest and the largest.
    around = [*breaks, 0.0, c, -c]
    scales = 4.0 ** np.arange(np.log(min(s, c, 1) * 1e-3) / np.log(4), 50)
    low, high = max(law.support()[0], -reach), min(law.support()[1], reach)
    steps = np.outer([s, 1.0], np.arange(1, 11)).ravel()
    scales = np.concatenate([scales, steps, [0.0]])
    edges = np.concatenate([[x - scales, x + scales] for x in around])
    edges = np.unique(np.clip(np.append(edges, [low, high]), low, high))
    e, weight = gauss(edges)
    keep = weight * law.pdf(e) > 0
    e, weight = e[keep], weight[keep]
    parts = [
        given_noise(rule, e[i : i + 500], np.full(len(e[i : i + 500]), s), c)
        @ (weight[i : i + 500] * law.pdf(e[i : i + 500]))
        for i in range(0, len(e), 500)
    ]
    return np.sum(parts, axis=0)


def _moments(make):
    def one(scale, index, c, excess):
        def both(scale, c, excess):
            m = jc.moments(AnyRule(index, c), make(scale), excess, 1.0)
            values = jnp.stack([m.mu, m.second])
            return values, values

        # The values along with the slopes: traced once.
        slopes, values = jax.jacfwd(both, (0, 1, 2), has_aux=True)(scale, c, excess)
        return values, jnp.stack(slopes, axis=1)

    return jax.jit(jax.vmap(one))


_cache = {}


def evaluate(name, unit):
    """`[mu, second]` of all cases, and their derivatives in the logarithms of the
    noise's scale, the threshold and the excess risk."""
    if name not in _cache:
        _cache[name] = _moments(NOISES[name][0])
    index = np.array([list(RULES).index(rule) for rule, _, _ in CASES])
    s, c = np.array([case[1:] for case in CASES]).T
    scale, c, excess = unit + 0 * s, unit * c, (unit * s) ** 2 / 2
    columns = [jnp.asarray(x) for x in (scale, index, c, excess)]
    values, slopes = (np.asarray(x, float) for x in _cache[name](*columns))
    return values, slopes * np.stack([scale, c, excess], axis=1)[:, None]


# Mixtures of normal laws run one program: of wide ones and of atoms there is one each.
# Of the smooth laws there are two in test_moments.py, `test_closed_forms`, and what is
# infinite of a Cauchy law, `test_infinite_variance`.
SLOW = {"gaussian", "rademacher", "sparse_sign", "skewed"}
SLOW |= {"laplace", "student_t", "student_t_60", "cauchy"}


@pytest.mark.float32
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NOISES],
)
def test_moments_at_any_scale(name):
    exact = np.array([reference(name, *case) for case in CASES])
    mu, second, size = exact.T
    rule, s, c = (np.array(column) for column in zip(*CASES, strict=True))
    for unit in UNITS if X64 else UNITS[:1]:
        values, slopes = evaluate(name, unit)
        assert np.isfinite(values).all()
        assert np.isfinite(slopes).all()
        # Where the terms of mu cancel, of the terms: what the reference reaches.
        cancels = np.isin(rule, ["redescending", "skip"])
        lost = np.where(cancels, 5e-9 if X64 else 1e-5, 1e-12 if X64 else 1e-6) * size
        lost += (1e-14 if X64 else 1e-6) * c / (c + s + 1)
        error = np.abs(values[:, 0] - mu)
        worst = np.argmax(error / (TOLERANCE * np.abs(mu) + lost))
        assert np.all(error <= TOLERANCE * np.abs(mu) + lost), CASES[worst]
        # What is beyond ten standard deviations is in neither.
        fits = np.full(len(CASES), True)
        if not X64:
            # What float32 can hold, in the label's unit and beside the residual.
            fits = (second < 1e37) & (second / (s**2 + 1) > 1e-32)
        ours, right = values[fits, 1] / unit**2, second[fits]
        error = np.abs(ours - right) / (right + 1e-10 * c[fits] ** 2 * TOLERANCE)
        assert np.all(error <= TOLERANCE), (
            CASES[np.flatnonzero(fits)[np.argmax(error)]],
            error.max(),
        )
        # A change of units changes nothing, and so do the derivatives together.
        if X64:
            together = slopes @ np.array([1.0, 1.0, 2.0])
            np.testing.assert_allclose(together[:, 0], 0, atol=1e-9)
            together = together[:, 1] - 2 * values[:, 1]
            assert np.all(
                np.abs(together) <= 1e-8 * values[:, 1] + 1e-18 * (unit * c) ** 2
            )


@pytest.mark.float32
@pytest.mark.parametrize("signal", [1e-12, 1e-3])
def test_a_kink_at_an_atom(signal):
    # Half of the residuals beside an atom are on either side of a threshold there, also
    # where they are all of the atom's size but for rounding.
    noise, delta = jc.Rademacher(1.0), 0.25
    for clip, mu in [
        (jc.HardClip(1.0), 0.5),
        (jc.DeltaClip(1.0, delta), 0.5),
        (jc.DeltaClip(delta, delta), delta / 2),
        (jc.SkipClip(1.0), None),
    ]:
        ours = jc.moments(clip, noise, signal**2 / 2, 1.0).mu
        # The jump counts with the density there, once for each of the two atoms.
        mu = 0.5 - 1 / np.sqrt(2 * np.pi) / signal if mu is None else mu
        assert float(ours) == pytest.approx(mu, rel=TOLERANCE)
    slope = jax.grad(
        lambda c: jc.moments(jc.HardClip(c), noise, signal**2 / 2, 1.0).mu
    )(1.0)
    assert float(slope) == pytest.approx(1 / np.sqrt(2 * np.pi) / signal, rel=TOLERANCE)


# The risk's ODE, however far the risk falls or rises


LAM, DIMS = np.array([1.0, 0.5, 0.1]), np.array([10, 20, 30])
STEPS = np.array([0.0, 10.0, 100.0, 1000.0, 4000.0])


@jax.jit
def curves(rule, std, starts):
    """The curves from these risks, spread evenly over the modes."""

    def one(start):
        start = jnp.sqrt(2 * start / len(LAM) / jnp.asarray(LAM, start.dtype))
        problem = jc.LinearModel(jc.Spectrum(LAM, DIMS), jc.Gaussian(std), start)
        steps = jnp.asarray(STEPS, start.dtype)
        return jc.solve(problem, rule, 0.02, steps=steps).risk

    return jax.vmap(one)(starts)


def unclipped(start, std):
    """The same without a clip, a linear equation, by its eigenvectors."""
    lr, forcing = 0.02, LAM * DIMS
    drive = lr**2 * LAM * forcing
    rates, vectors = np.linalg.eig(np.diag(-2 * lr * LAM) + drive[:, None])
    inverse = np.linalg.inv(vectors)
    from_start = inverse @ np.full(len(LAM), start / len(LAM))
    from_noise = inverse @ (drive * std**2 / 2)
    at = STEPS[:, None] * rates
    modes = np.exp(at) * from_start + np.expm1(at) / rates * from_noise
    return np.sum(modes @ vectors.T, axis=1)


@pytest.mark.float32
def test_a_curve_is_right_however_far_the_risk_falls():
    starts = np.array([1e-10, 1.0, 1e6, 1e8, 1e12])
    ours = curves(jc.Identity(), jnp.asarray(1.0), jnp.asarray(starts))
    exact = [unclipped(start, 1.0) for start in starts]
    np.testing.assert_allclose(ours, exact, rtol=1e-7 if X64 else 2e-4)


@pytest.mark.float32
def test_a_curve_does_not_depend_on_the_unit():
    ours = []
    for unit in (1.0, 1e-6, 1e6):
        rule = jc.HardClip(jnp.asarray(3.0 * unit))
        starts = jnp.asarray(np.array([5.0, 1e4]) * unit**2)
        ours.append(curves(rule, jnp.asarray(unit), starts) / unit**2)
    for curve in ours[1:]:
        np.testing.assert_allclose(curve, ours[0], rtol=1e-7 if X64 else 2e-4)
    # And it is clipped: without, the risk falls faster.
    free = curves(jc.Identity(), jnp.asarray(1.0), jnp.asarray([5.0, 1e4]))
    assert np.all(ours[0][1] > 1.5 * free[1][2])


@pytest.mark.float32
@pytest.mark.parametrize("ratio", [1e-10, 1e-5, 1e5, 1e10])
def test_fisher_information_at_any_ratio(ratio):
    # A narrow noise leaves the normal signal's; a narrow signal that of the noise,
    # where it is finite, or of a step that is as sharp as the signal.
    for make, limit in [
        (jc.Laplace, 2.0),
        (lambda x: jc.StudentT(3.0, x), 4 / 6),
        (jc.Rademacher, np.inf),
    ]:
        ours = float(jc.criterion.fisher_information(make(1.0), ratio**2 / 2))
        expected = 1 / ratio**2 if ratio > 1 or limit == np.inf else limit
        assert ours == pytest.approx(
            expected, rel=2 * min(ratio, 1 / ratio) + TOLERANCE
        )
    # Of the uniform noise: of the density phi(z), over Phi(z), at each of both edges.
    if ratio < 1:
        z = np.linspace(-12, 8, 20_001)
        edge = np.sum(stats.norm.pdf(z) ** 2 / stats.norm.cdf(z)) * (z[1] - z[0])
        ours = float(jc.criterion.fisher_information(jc.Uniform(1.0), ratio**2 / 2))
        assert ours == pytest.approx(edge / np.sqrt(3) / ratio, rel=TOLERANCE)
