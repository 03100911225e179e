"""The reduction factors of a rule, against closed forms, identities and Monte Carlo."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import special, stats

import jaxclip as jc
from helpers import (
    CLIPS,
    NOISES,
    RESIDUALS,
    RULES,
    Redescending,
    Skewed,
    assert_within,
    mean_and_error,
)

X64 = jnp.result_type(float) == jnp.float64
# Over the many panels of a heavy tail everything runs for longer than it compiles.
HEAVY = {"student_t", "cauchy"}


# A program for each noise is most of what these tests take. The values of the public
# ones among these are in test_scales.py too, against a double integral, at any scale.
LATER = {"rademacher", "contaminated", "empirical", "uniform", "exponential", "cauchy"}
LATER |= {"triangular"}


def marked(name, *values):
    marks = [pytest.mark.optimised] if name in HEAVY else []
    marks += [pytest.mark.slow] if name in LATER else []
    return pytest.param(name, *values, marks=marks)


names = pytest.mark.parametrize("name", [marked(name) for name in NOISES])

# One compilation for each noise serves every test below: all the rules in one, as a
# number, and the derivatives in everything with the values.


class AnyRule(jc.AbstractClip):
    """The rule of `RULES` with this index."""

    index: jax.Array
    threshold: jax.Array

    def factor(self, norm, step):
        rules = [rule(self.threshold) for rule in RULES.values()]
        return jnp.stack([rule.factor(norm, step) for rule in rules])[self.index]

    def kinks(self, step):
        rules = [rule(self.threshold) for rule in RULES.values()]
        # An infinite kink is beyond the last panel, and splits none.
        rows = [[*map(jnp.asarray, rule.kinks(step)), *[jnp.inf] * 2] for rule in rules]
        table = jnp.stack([jnp.stack(list(map(jnp.asarray, row[:2]))) for row in rows])
        return tuple(table[self.index])


CHUNK = 40


@jax.jit
def _chunk(noise, indices, thresholds, excesses):
    def one(noise, index, threshold, excess):
        def both(noise, threshold, excess):
            m = jc.moments(AnyRule(index, threshold), noise, excess, 1.0)
            values = jnp.stack([m.mu, m.second])
            return values, values

        # The values along with the slopes: traced once.
        slopes, values = jax.jacrev(both, (0, 1, 2), has_aux=True)(
            noise, threshold, excess
        )
        return values, *slopes

    return jax.vmap(one)(noise, indices, thresholds, excesses)


def evaluate(noise, points, factors=None):
    """`[mu, second]` and their derivatives in the noise, the threshold and the excess.

    **Arguments:**

    - `points`: triples of a rule's name, a threshold and an excess risk.
    - `factors`: what each leaf of the noise is multiplied by, shape `(n, leaves)`.

    **Returns:**

    The values, shape `(n, 2)`; the derivatives, as a noise of `(n, 2, ...)`, and of
    shape `(n, 2)` twice.
    """
    rules, thresholds, excesses = zip(*points, strict=True)
    index = np.array([list(RULES).index(rule) for rule in rules])
    leaves, structure = jax.tree.flatten(noise)
    if factors is None:
        factors = np.ones((len(points), len(leaves)))
    noises = [
        np.multiply.outer(factors[:, i], leaf).astype(leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    columns = [*noises, index, np.array(thresholds, float), np.array(excesses, float)]
    parts = []
    for start in range(0, len(points), CHUNK):
        chunk = [column[start : start + CHUNK] for column in columns]
        # All of one size, so that there is one compilation.
        missing = CHUNK - len(chunk[0])
        chunk = [
            jnp.asarray(np.concatenate([x, x[:1].repeat(missing, 0)])) for x in chunk
        ]
        *moved, indices, c, excess = chunk
        parts.append(_chunk(jax.tree.unflatten(structure, moved), indices, c, excess))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(points)], *parts)


EXCESSES = np.array([1e-8, 1e-4, 1e-2, 1.0, 100.0])
THRESHOLDS = np.array([1e-3, 0.03, 0.3, 1.0, 3.0, 30.0, 1e3])
GRID = [(rule, c, excess) for rule in RULES for c in THRESHOLDS for excess in EXCESSES]
_cache = {}


def grid(name):
    """`evaluate` on the whole grid, once for each noise."""
    if name not in _cache:
        _cache[name] = evaluate(NOISES[name], GRID)
    return _cache[name]


def on_grid(name, rule):
    """The part of the grid of one rule: points and `(mu, second)`, with derivatives."""
    values, _, in_threshold, in_excess = grid(name)
    rows = [i for i, point in enumerate(GRID) if point[0] == rule]
    c, excess = np.array([GRID[i][1:] for i in rows]).T
    return c, excess, values[rows].T, in_threshold[rows].T, in_excess[rows].T


# Known numbers


@pytest.mark.float32
@pytest.mark.parametrize(
    ("name", "excess", "c", "mu", "second"),
    [
        ("gaussian", 0.5, 1, 0.520499877813, 0.641717298878),
        ("gaussian", 1e-6, 0.3, 0.235822615546, 0.0757661130879),
        marked("rademacher", 0.5, 1, 0.477249868052, 0.679365307249),
        marked("uniform", 0.01, 0.5, 0.288675134595, 0.201887477568),
        ("laplace", 0.5, 1, 0.546578464208, 0.620799613026),
        ("laplace", 1e-6, 0.3, 0.345747599644, 0.0681738143044),
        marked("exponential", 0.5, 1, 0.551098771987, 0.618350383304),
        marked("student_t", 0.5, 1, 0.469864981843, 0.677145355602),
        marked("cauchy", 2, 30, 0.978691811283, 41.040928443),
    ],
)
def test_known_values(name, excess, c, mu, second):
    values, *_ = evaluate(NOISES[name], [("hard", c, excess)])
    tolerance = 1e-9 if X64 else 3e-6
    np.testing.assert_allclose(values[0], [mu, second], rtol=tolerance)


# Closed forms of the hard clip, none of which the package has


def block(tau, c):
    """A normal residual."""
    q = c / tau
    mu = special.erf(q / np.sqrt(2))
    second = tau**2 * special.gammainc(1.5, q**2 / 2)
    return mu, second + c**2 * special.erfc(q / np.sqrt(2))


def conditional(noise, s, c):
    """A normal residual that is not centred."""
    beta, alpha = (c + noise) / s, (noise - c) / s
    flip = np.where(alpha > 0, -1.0, 1.0)
    m = flip * (special.ndtr(flip * beta) - special.ndtr(flip * alpha))
    phi_alpha, phi_beta = stats.norm.pdf(alpha), stats.norm.pdf(beta)
    second = s**2 * (m - (beta * phi_beta - alpha * phi_alpha))
    second -= 2 * s * noise * (phi_alpha - phi_beta)
    return m, second + noise**2 * m + c**2 * (1 - m)


def discrete(values, weights, stds=0.0):
    def moments(s, c):
        total = np.sqrt(s**2 + np.square(stds))
        mu, second = conditional(np.asarray(values), total, c)
        return np.sum(weights * mu), np.sum(weights * second)

    return moments


def uniform(s, c):
    A = np.sqrt(3)

    def J(u):
        return u * special.erf(u / np.sqrt(2)) + 2 * stats.norm.pdf(u)

    def K(u, sign):
        phi, erf = stats.norm.pdf(u), special.erf(u / np.sqrt(2))
        J1 = (u**2 + 1) * erf / 2 + u * phi
        J2 = (u**3 + 3 * u) / 6 * erf + (u**2 + 2) / 3 * phi
        return s**2 * (u * J1 - J2) - sign * A * s * J1

    mu = s / (2 * A) * (J((c + A) / s) - J((c - A) / s))
    upper = K((c + A) / s, 1) - K(A / s, 1)
    lower = K((c - A) / s, -1) - K(-A / s, -1)
    return mu, c**2 - s / A * (upper - lower)


def laplace(s, c):
    b = np.sqrt(0.5)
    E1 = np.exp(s**2 / (2 * b**2) - c / b + special.log_ndtr(c / s - s / b))
    E2 = np.exp(s**2 / (2 * b**2) + c / b + special.log_ndtr(-c / s - s / b))
    mu = 1 - 2 * (special.ndtr(-c / s) + (E1 - E2) / 2)
    return mu, block(s, c)[1] + mu - 2 * c * (E1 + E2) / (2 * b)


def exponential(s, c):
    def F(y):
        f = np.exp(s**2 / 2 + y + special.log_ndtr(-y / s - s))
        return special.ndtr(y / s) + f

    def I1(u):
        return u * special.ndtr(u) + stats.norm.pdf(u)

    def I2(u):
        return ((u**2 - 1) * special.ndtr(u) + u * stats.norm.pdf(u)) / 2

    plus, minus = c - 1, -c - 1
    mu = F(plus) - F(minus)
    A0 = s * (I1(plus / s) - I1(minus / s))
    A1 = s**2 * (I2(plus / s) - I2(minus / s)) + A0
    return mu, c**2 - 2 * (A1 + (c * F(plus) + c * F(minus) - A0 - mu))


def student(df):
    a = df / 2
    y = np.linspace(-80 / df, np.log(2 * (40 + df) / df) + 1.5, 801)
    log = a * np.log(a) - special.gammaln(a) + a * y - a * np.exp(y)
    weights = np.exp(log) * (y[1] - y[0])

    def moments(s, c):
        mu, second = block(np.sqrt(s**2 + np.exp(-y)), c)
        return np.sum(weights * mu), np.sum(weights * second)

    return moments


def averaged(law, breaks):
    """The conditional formula, integrated over a noise with a density."""
    nodes, weights = np.polynomial.legendre.leggauss(30)

    def moments(s, c):
        low, high = law.support()
        beside = s * np.linspace(-12, 12, 25)
        edges = [np.linspace(low, high, 9), breaks, beside - c, beside + c]
        edges = np.unique(np.clip(np.concatenate(edges), low, high))
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        e = middle[:, None] + half[:, None] * nodes
        mass = half[:, None] * weights * law.pdf(e)
        mu, second = conditional(e, s, c)
        return np.sum(mass * mu), np.sum(mass * second)

    return moments


SPARSE, SIZE = 0.8 / np.sqrt(0.2), np.sqrt(18 / 5.25)
triangular = stats.triang(0.2, loc=-SIZE, scale=2.5 * SIZE)
# Each with the power of the threshold of which it loses the digits.
CLOSED = {
    "gaussian": (lambda s, c: block(np.hypot(s, 1), c), 0),
    "rademacher": (discrete([-1, 1], [0.5, 0.5]), 2),
    "sparse_sign": (discrete([-SPARSE, 0, SPARSE], [0.1, 0.8, 0.1]), 2),
    "contaminated": (discrete([0, 0], [0.9, 0.1], [1, 10]), 2),
    "empirical": (discrete(RESIDUALS, np.full(7, 1 / 7)), 2),
    "skewed": (discrete(Skewed.means, Skewed.weights, Skewed.stds), 2),
    "uniform": (uniform, 3),
    "laplace": (laplace, 0),
    "exponential": (exponential, 2),
    "student_t": (student(3), 0),
    "cauchy": (student(1), 0),
    "triangular": (averaged(triangular, [-0.5 * SIZE]), 2),
}


@names
def test_closed_forms(name):
    closed, power = CLOSED[name]
    c, excess, (mu, second), _, _ = on_grid(name, "hard")
    s = np.sqrt(2 * excess)
    expected = np.array([closed(*at) for at in zip(s, c, strict=True)]).T
    lost = 1e-14 * (s + c + 1) ** power * (1 + s)
    keep = c > 1e-2 * s if name == "uniform" else c > 0
    assert_close(mu[keep], expected[0][keep], 1e-11, 1e-14 * (1 + s)[keep])
    assert_close(second[keep], expected[1][keep], 1e-11, lost[keep])


def assert_close(ours, expected, rtol, atol):
    error = np.abs(ours - expected)
    bound = rtol * np.abs(expected) + atol
    worst = np.argmax(error / bound)
    assert np.all(error <= bound), (ours[worst], expected[worst], bound[worst])


# Identities of the hard clip, at the scales where its closed forms lose their digits


@names
def test_derivatives_of_the_hard_clip(name):
    c, excess, (mu, _), in_threshold, in_excess = on_grid(name, "hard")

    @jax.jit
    def densities(c, excess):
        law = NOISES[name].residual(2 * excess)

        def density(w):
            return jnp.exp(law.log_density(w))

        return jnp.asarray([jax.value_and_grad(density)(w) for w in (c, -c)])

    (right, right_slope), (left, left_slope) = np.moveaxis(
        jax.vmap(densities)(jnp.asarray(c), jnp.asarray(excess)), 0, -1
    )
    # In the logarithms of the threshold and the excess, where rounding is of one size.
    assert_close(c * in_threshold[0], c * (right + left), 1e-9, 1e-12)
    assert_close(c * in_threshold[1], 2 * c**2 * (1 - mu), 1e-9, 1e-11 * (1 + c**2))
    # The density of the residual obeys the heat equation, with the excess for a time.
    heat = excess * (right_slope - left_slope)
    assert_close(excess * in_excess[0], heat, 1e-9, 1e-12 * (1 + excess))
    heat = excess * (2 * mu - 2 * c * (right + left))
    assert_close(excess * in_excess[1], heat, 1e-9, 1e-12 * (1 + excess))


def test_a_threshold_moves_mu():
    # By a Gauss-Hermite rule it would not: its nodes stay where they are, and the
    # derivative of a count of nodes is zero.
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights /= np.sum(weights)
    tau = np.sqrt(2)

    def hermite(c):
        return np.sum(weights * (np.abs(tau * nodes) < c))

    step = 1e-3
    assert hermite(1 + step) == hermite(1 - step)
    assert abs(hermite(1) - block(tau, 1)[0]) > 1e-2
    _, _, slope, _ = evaluate(NOISES["gaussian"], [("hard", 1, 0.5)])
    expected = 2 * stats.norm.pdf(1, 0, tau)
    np.testing.assert_allclose(slope[0, 0], expected, rtol=1e-12)


# Every noise and every rule


@pytest.mark.float32
@names
def test_nothing_is_nan(name):
    values, in_noise, in_threshold, in_excess = grid(name)
    infinite = np.isinf(values)
    for part in (values, in_threshold, in_excess, *jax.tree.leaves(in_noise)):
        assert not np.isnan(part).any()
    # Only what keeps a part of the largest gradients, where the noise has no variance.
    for (rule, _, _), (mu, second) in zip(GRID, infinite, strict=True):
        assert not mu
        assert second == (name == "cauchy" and rule in ("identity", "delta"))


@names
def test_derivatives_against_finite_differences(name):
    noise = NOISES[name]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(noise)]
    base = [(rule, 0.5, 0.1) for rule in RULES]
    values, in_noise, in_threshold, in_excess = evaluate(noise, base)
    exact = [0.5 * in_threshold, 0.1 * in_excess]
    for slope, leaf in zip(jax.tree.leaves(in_noise), leaves, strict=True):
        exact.append(np.sum(slope * leaf, axis=tuple(range(2, slope.ndim))))

    # In the logarithm of each number, to fourth order.
    step, stencil = 2e-3, np.array([-2, -1, 1, 2])
    points, factors = [], []
    for number in range(2 + len(leaves)):
        for shift in np.exp(step * stencil):
            moved = np.ones(2 + len(leaves))
            moved[number] = shift
            points += [(rule, moved[0] * c, moved[1] * r) for rule, c, r in base]
            factors += [moved[2:]] * len(base)
    values, *_ = evaluate(noise, points, np.array(factors))
    values = values.reshape(-1, 4, len(base), 2)
    keep = np.isfinite(values[0, 0])
    weights = np.array([1, -8, 8, -1]) / (12 * step)
    for number, slope in enumerate(exact):
        expected = np.tensordot(weights, values[number][:, keep], axes=1)
        np.testing.assert_allclose(slope[keep], expected, rtol=1e-6, atol=1e-9)


@names
def test_monte_carlo(name):
    # mu by Stein's identity, which is what it is for, and which knows of jumps:
    # E[psi(w) a] = mu K z is E[psi(w) Z] = mu s in one dimension.
    size, excess = 200_000, 0.5
    z = np.random.default_rng(12).standard_normal(size)
    noise = np.asarray(NOISES[name].sample(jr.key(13), (size,)))
    w = np.sqrt(2 * excess) * z - noise
    values, *_ = evaluate(NOISES[name], [(rule, 0.8, excess) for rule in RULES])
    for rule, (mu, second) in zip(RULES, values, strict=True):
        unbounded = rule in ("identity", "delta")
        psi = w * np.asarray(CLIPS[rule].factor(jnp.abs(jnp.asarray(w)), 0))
        if not (name == "cauchy" and unbounded):
            estimate = mean_and_error(psi * z / np.sqrt(2 * excess))
            assert_within(*estimate, mu, power=0.06)
        if not (name in ("student_t", "cauchy") and unbounded):
            assert_within(*mean_and_error(psi**2), second, power=0.05 * second)


@names
def test_the_rules_one_at_a_time(name):
    # `AnyRule` picks by a number; here they are as a user holds them.
    rule = list(RULES)[list(NOISES).index(name) % len(RULES)]
    m = moments(CLIPS[rule], NOISES[name], jnp.asarray(0.5), jnp.asarray(1.0))
    values, *_ = evaluate(NOISES[name], [(rule, 0.8, 0.5)])
    np.testing.assert_allclose([m.mu, m.second], values[0], rtol=1e-12)


# What else `moments` takes and gives


moments = jax.jit(jc.moments)


@names
def test_bounds(name):
    for rule in ("hard", "soft", "root_soft", "delta"):
        c, excess, (mu, second), _, _ = on_grid(name, rule)
        assert np.all((mu >= -1e-14) & (mu <= 1 + 1e-12))
        size = 2 * excess + float(NOISES[name].variance)
        assert np.all(second <= size * (1 + 1e-11))
        if rule != "delta":
            assert np.all(second <= c**2 * (1 + 1e-11))


@names
def test_no_clip_at_all(name):
    for rule in ("identity", "hard"):
        c, excess, (mu, second), _, _ = on_grid(name, rule)
        size = 2 * excess + float(NOISES[name].variance)
        # Light tails do not reach the largest threshold at all.
        keep = (c == 1e3) & (name not in HEAVY) if rule == "hard" else c > 0
        np.testing.assert_allclose(mu[keep], 1, rtol=2e-12)
        np.testing.assert_allclose(second[keep], size[keep], rtol=1e-11)


def test_the_feature_norm_scales_the_threshold():
    for rule in ("delta", "redescending"):
        one = moments(RULES[rule](0.8), NOISES["skewed"], 0.3, 1.0)
        other = moments(RULES[rule](0.8 * 7), NOISES["skewed"], 0.3, 7.0)
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_the_step_is_where_thresholds_are_evaluated():
    clip = jc.HardClip(jc.PiecewiseLinear(jnp.array([0, 10]), jnp.array([0.5, 2.0])))
    for step, c in [(0.0, 0.5), (5.0, 1.0), (7.5, 2**0.5), (10.0, 2.0)]:
        ours = moments(clip, NOISES["gaussian"], 0.5, 1.0, step)
        expected = block(np.sqrt(2), c)
        np.testing.assert_allclose((ours.mu, ours.second), expected, rtol=1e-12)


def test_infinite_variance():
    noise, excess, s = NOISES["cauchy"], 0.5, 1.0
    without = moments(jc.Identity(), noise, excess, 1.0)
    np.testing.assert_allclose(without.mu, 1, rtol=1e-12)
    assert without.second == without.variance == jnp.inf
    assert without.nu == 1
    np.testing.assert_allclose((without.csc, without.ccc), 1, rtol=1e-12)

    hard = moments(jc.HardClip(1.0), noise, excess, 1.0)
    np.testing.assert_allclose((hard.mu, hard.second), student(1)(s, 1.0), rtol=1e-11)
    assert hard.nu == 0
    assert hard.csc == hard.ccc == jnp.inf
    # Also where the threshold is very large.
    far = moments(jc.HardClip(1e10), noise, excess, 1.0)
    np.testing.assert_allclose(far.second, 4e10 / np.pi, rtol=1e-6)

    # The floor keeps a fifth of the largest: psi is delta w beyond c / delta.
    delta = moments(jc.DeltaClip(1.0, 0.2), noise, excess, 1.0)
    beyond = 1 - student(1)(s, 5.0)[0]
    np.testing.assert_allclose(delta.mu, hard.mu + 0.2 * beyond, rtol=1e-11)
    assert delta.second == jnp.inf
    np.testing.assert_allclose(delta.nu, 0.04, rtol=1e-12)
    np.testing.assert_allclose(delta.ccc, delta.mu**2 / 0.04, rtol=1e-12)


def test_criteria():
    m = moments(jc.HardClip(1.0), NOISES["laplace"], 0.5, 1.0)
    mu, second = laplace(1.0, 1.0)
    np.testing.assert_allclose(m.variance, 2, rtol=1e-14)
    np.testing.assert_allclose(m.nu, second / 2, rtol=1e-12)
    np.testing.assert_allclose(m.csc, 2 * mu / second, rtol=1e-12)
    np.testing.assert_allclose(m.ccc, 2 * mu**2 / second, rtol=1e-12)
    # Under normal noise no threshold beats none: mu^2 <= nu (Cauchy-Schwarz).
    _, excess, (mu, second), _, _ = on_grid("gaussian", "hard")
    assert np.all(mu**2 * (2 * excess + 1) / second <= 1 + 1e-12)


def test_jit_is_eager_and_vmap_is_a_loop():
    thresholds, excesses = jnp.array([0.2, 1.0, 5.0]), jnp.array([0.0, 1e-3, 2.0])

    def at(c, excess):
        return jc.moments(jc.HardClip(c), NOISES["exponential"], excess, 1.0)

    mapped = jax.jit(jax.vmap(at))(thresholds, excesses)
    compiled = jax.jit(at)
    for i in range(3):
        one = compiled(thresholds[i], excesses[i])
        np.testing.assert_allclose([x[i] for x in mapped], one, rtol=1e-12)
    eager = at(thresholds[1], excesses[1])
    np.testing.assert_allclose([x[1] for x in mapped], eager, rtol=1e-12)


def test_new_numbers_do_not_compile_again():
    traces = 0

    @jax.jit
    def criterion(clip, noise, excess):
        nonlocal traces
        traces += 1
        return jc.moments(clip, noise, excess, 1.0).ccc

    first = criterion(jc.DeltaClip(1.0, 0.1), jc.Contaminated(1.0, 5.0, 0.1), 0.5)
    second = criterion(jc.DeltaClip(2.0, 0.3), jc.Contaminated(0.5, 9.0, 0.2), 0.1)
    assert traces == 1
    assert first != second


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("gaussian", stats.norm()),
        ("laplace", stats.laplace(scale=np.sqrt(0.5))),
        ("uniform", stats.uniform(-np.sqrt(3), 2 * np.sqrt(3))),
        marked("exponential", stats.expon(loc=-1)),
        marked("triangular", triangular),
    ],
)
def test_no_excess_risk(name, law):
    # Only the noise is left.
    m = moments(CLIPS["hard"], NOISES[name], jnp.asarray(0.0), jnp.asarray(1.0))
    # The edges are as sharp as rounding lets them be.
    np.testing.assert_allclose(m.mu, law.cdf(0.8) - law.cdf(-0.8), rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "values", "weights"),
    [
        marked("rademacher", np.array([-1, 1]), 0.5),
        ("sparse_sign", SPARSE * np.array([-1, 0, 1]), np.array([0.1, 0.8, 0.1])),
        marked("empirical", RESIDUALS, 1 / 7),
    ],
)
def test_no_excess_risk_and_atoms(name, values, weights):
    # Which have no density.
    m = moments(CLIPS["hard"], NOISES[name], jnp.asarray(0.0), jnp.asarray(1.0))
    inside = np.abs(values) < 0.8
    np.testing.assert_allclose(m.mu, np.sum(weights * inside), atol=1e-6)
    expected = np.sum(weights * np.minimum(np.abs(values), 0.8) ** 2)
    np.testing.assert_allclose(m.second, expected, rtol=1e-6)


def test_neither_excess_risk_nor_noise():
    # Nothing is left to clip.
    m = jc.moments(jc.HardClip(1.0), jc.Gaussian(0.0), 0.0, 1.0)
    np.testing.assert_allclose((m.mu, m.second), (1, 0), atol=1e-12)


def test_bad_arguments_are_refused():
    clip, noise = jc.HardClip(1.0), jc.Gaussian(1.0)
    for excess, feature_norm, message in [
        (-0.1, 1.0, "`risk` must be non-negative"),
        (jnp.nan, 1.0, "`risk` must be non-negative"),
        (0.5, 0.0, "`feature_norm` must be positive"),
        (0.5, jnp.inf, "`feature_norm` must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            jc.moments(clip, noise, excess, feature_norm)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`risk`"):
        eqx.filter_jit(jc.moments)(clip, noise, jnp.asarray(-1.0), 1.0)


# A rule and a noise as a user writes them are in every list above; once more in the
# form of the text books.


def test_a_rule_of_ones_own():
    # Under a normal residual of variance 1: E psi' and E psi^2 for psi = w / (1 + w^2).
    m = jc.moments(Redescending(jnp.asarray(1.0)), jc.Gaussian(0.0), 0.5, 1.0)
    w = np.linspace(-12, 12, 200_001)
    density = stats.norm.pdf(w) * (w[1] - w[0])
    mu = np.sum(density * (1 - w**2) / (1 + w**2) ** 2)
    second = np.sum(density * w**2 / (1 + w**2) ** 2)
    np.testing.assert_allclose((m.mu, m.second), (mu, second), rtol=1e-10)
