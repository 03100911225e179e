"""Rules for each coordinate: the basis, the coefficients, the limits, the criteria."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

import jaxclip as jc

coordinate_moments = jc.limit.coordinate_moments
LAM = np.array([1.0, 0.3, 0.05])
OF_EACH = {"scope": jc.PerCoordinate()}


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def turned(dim=12, noise=None, seed=0):
    """A problem whose covariance is not diagonal, with a start of both signs."""
    rng = np.random.default_rng(seed)
    Q = rotation(dim, seed)
    K = Q @ np.diag(np.arange(1, dim + 1) ** -0.8) @ Q.T
    noise = jc.Gaussian(0.5) if noise is None else noise
    return jc.LinearModel.from_covariance(K, noise, rng.standard_normal(dim)), K


# The basis


def test_a_covariance_is_kept_with_its_start():
    problem, K = turned()
    start = np.random.default_rng(0)
    start.standard_normal((12, 12))
    z = np.asarray(problem.init())
    np.testing.assert_allclose(problem.covariance, K, atol=1e-14)
    np.testing.assert_allclose(problem.risk(problem.init()), z @ K @ z / 2, rtol=1e-13)
    examples = jax.jit(jax.vmap(problem.example, (None, 0)))
    features, _ = examples(jr.key(3), jnp.arange(20_000))
    seen = np.asarray(features.T @ features) / len(features)
    error = np.sqrt((np.outer(np.diag(K), np.diag(K)) + K**2) / len(features))
    assert np.all(np.abs(seen - K) < 5 * error)


def test_a_singular_covariance_leaves_out_what_does_not_vary():
    half = rotation(6)[:, :3]
    start = np.arange(6.0)
    problem = jc.LinearModel.from_covariance(half @ half.T, jc.Gaussian(1.0), start)
    assert problem.basis.shape == (6, 3)
    np.testing.assert_allclose(problem.init(), half @ (half.T @ start), atol=1e-12)


@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked(), jc.Lumped()])
def test_a_clip_of_whole_gradients_does_not_see_the_basis(engine):
    problem, _ = turned()
    how = {"clip": jc.HardClip(1.0), "lr": 0.05, "steps": 40, "every": 20}
    how |= {"key": jr.key(1), "engine": engine}
    one = jc.simulate(problem, **how)
    other = jc.simulate(problem.in_eigenbasis(), **how)
    np.testing.assert_allclose(one.risk, other.risk, rtol=1e-12)
    if not isinstance(engine, jc.Lumped):
        expected = problem.from_eigenbasis(other.params)
        np.testing.assert_allclose(one.params, expected, atol=1e-12)


def test_the_diffusion_is_that_of_the_eigenbasis():
    problem, _ = turned()
    how = {"clip": jc.HardClip(1.0), "lr": 0.05, "steps": jnp.arange(0.0, 30.0, 10.0)}
    how |= {"limit": jc.HomogenizedSDE(), "key": jr.key(2)}
    one = jc.solve(problem, **how)
    other = jc.solve(problem.in_eigenbasis(), **how)
    np.testing.assert_allclose(one.risk, other.risk, rtol=1e-12)
    expected = problem.from_eigenbasis(other.params)
    np.testing.assert_allclose(one.params, expected, atol=1e-12)


def test_the_columns_of_a_table_are_its_own_basis():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 4))
    y = X @ rng.standard_normal(4) + rng.standard_normal(40)
    problem = jc.LinearModel.from_data(X, y, columns=True)
    np.testing.assert_allclose(problem.covariance, X.T @ X / 40, atol=1e-13)
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(problem.init(), -best, atol=1e-12)
    usual = jc.LinearModel.from_data(X, y)
    assert usual.basis is None
    np.testing.assert_allclose(usual.start, problem.start, atol=1e-13)


@pytest.mark.parametrize("basis", [np.ones((3, 3)), np.eye(2), np.eye(3)[:2], "Q"])
def test_what_is_no_basis_is_refused(basis):
    with pytest.raises(ValueError, match="basis"):
        jc.LinearModel(jc.Spectrum(LAM), jc.Gaussian(1.0), jnp.ones(3), basis=basis)


def test_a_start_of_another_length_is_refused():
    with pytest.raises(ValueError, match="start"):
        jc.LinearModel.from_covariance(np.eye(3), jc.Gaussian(1.0), np.ones(2))


# Runs


@pytest.mark.parametrize("examples", [False, True])
def test_simulate_is_the_optax_chain(examples):
    problem, _ = turned()
    how = {"steps": 30, "every": 10, "key": jr.key(4)}
    scope, size = jc.PerCoordinate(), 1
    if examples:
        scope, size = jc.PerExample(within=jc.PerCoordinate()), 3
    run = jc.simulate(
        problem, jc.HardClip(0.3), 0.05, scope=scope, batch_size=size, **how
    )
    if not examples:
        chain = optax.chain(optax.clip(0.3), optax.sgd(0.05))
        np.testing.assert_allclose(
            run.risk, jc.train(problem, chain, **how).risk, rtol=1e-13
        )
        return
    # By hand.
    x = problem.init()

    @jax.jit
    def gradients(x, index):
        sample = jax.vmap(problem.example, (None, 0))(jr.key(4), index)
        return jax.vmap(problem.gradient, (None, 0))(x, sample)

    for step in range(30):
        g = np.asarray(gradients(x, 3 * step + np.arange(3)))
        x = np.asarray(x) - 0.05 * np.mean(np.clip(g, -0.3, 0.3), axis=0)
    np.testing.assert_allclose(run.params, x, rtol=1e-12)


@pytest.mark.parametrize("engine", [jc.Blocked(), jc.Lumped()])
@pytest.mark.parametrize(
    "scope", [jc.PerCoordinate(), jc.PerExample(within=jc.PerCoordinate())]
)
def test_engines_of_whole_gradients_refuse_it(engine, scope):
    problem, _ = turned()
    with pytest.raises(ValueError, match="scope"):
        jc.simulate(
            problem,
            jc.HardClip(1.0),
            0.1,
            steps=1,
            key=jr.key(0),
            engine=engine,
            scope=scope,
        )


# Coefficients


def by_quadrature(factor, density, score, lam, kinks):
    """Drift and second moment by double integrals that know nothing of tables: outside
    over the feature, inside over the residual with the derivative of its density."""

    def inside(a, function):
        ends = sorted({0.0, *(min(kink / a, 60.0) for kink in kinks), 1.0, 5.0, 60.0})
        pieces = itertools.pairwise(ends)
        return sum(integrate.quad(function, *p, epsrel=1e-11)[0] for p in pieces)

    def psi(w, a):
        return w * a * factor(w * a)

    def drift(a):
        # E[a^2 psi'(w a)] = -a int psi(w a) p'(w) dw over both signs.
        own = inside(a, lambda w: psi(w, a) * score(w) * density(w) * 2)
        return a * own * stats.norm.pdf(a, scale=np.sqrt(lam))

    def second(a):
        own = inside(a, lambda w: psi(w, a) ** 2 * density(w) * 2)
        return own * stats.norm.pdf(a, scale=np.sqrt(lam))

    top = 9 * np.sqrt(lam)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    a, weights = (nodes + 1) / 2 * top, weights * top / 2
    return tuple(
        2 * sum(w * f(x) for x, w in zip(a, weights, strict=True))
        for f in (drift, second)
    )


def test_coefficients_are_double_integrals():
    clip, risk, std = jc.SoftClip(0.4), 0.5, 1.2
    tau = np.sqrt(2 * risk + std**2)
    m = coordinate_moments(clip, jc.Gaussian(std), risk, LAM)
    lam = LAM[1]

    def density(w):
        return stats.norm.pdf(w, scale=tau)

    def score(w):
        return w / tau**2

    drift, second = by_quadrature(lambda n: 0.4 / (0.4 + n), density, score, lam, ())
    np.testing.assert_allclose(lam * m.mu[1], drift, rtol=1e-7)
    np.testing.assert_allclose(lam * m.second[1], second, rtol=1e-7)


def hard_gaussian(c, tau, lam):
    """Of a hard clip and a Gaussian residual, by one integral over the feature."""

    def of_norm(z):
        q = c / (z * np.sqrt(lam) * tau)
        mu = special.erf(q / np.sqrt(2))
        square = special.gammainc(1.5, q * q / 2) + q * q * special.erfc(q / np.sqrt(2))
        return mu, tau**2 * square

    def mean(k):
        def weighed(z):
            return 2 * z * z * of_norm(z)[k] * stats.norm.pdf(z)

        return integrate.quad(weighed, 1e-12, 12, epsabs=1e-14, epsrel=1e-12)[0]

    return lam * mean(0), lam * mean(1)


@pytest.mark.parametrize("unit", [1.0, 1e-60, 1e60])
def test_a_hard_clip_at_every_scale(unit):
    lam = LAM * unit
    c, risk, std = 0.4 * unit, 0.5 * unit, np.sqrt(unit)
    m = coordinate_moments(jc.HardClip(c), jc.Gaussian(std), risk, lam)
    for i in range(3):
        drift, second = hard_gaussian(0.4, np.sqrt(2.0), LAM[i])
        np.testing.assert_allclose(m.mu[i], drift / LAM[i], rtol=1e-8)
        np.testing.assert_allclose(m.second[i] / unit, second / LAM[i], rtol=1e-8)


def test_many_eigenvalues_are_each_by_itself():
    lam = np.geomspace(1e-5, 1.0, 50)
    m = coordinate_moments(jc.HardClip(0.1), jc.StudentT(3.0, 1.0), 0.1, lam)
    for i in (0, 17, 49):
        one = coordinate_moments(
            jc.HardClip(0.1), jc.StudentT(3.0, 1.0), 0.1, lam[i : i + 1]
        )
        np.testing.assert_allclose(m.mu[i], one.mu[0], rtol=1e-7)
        np.testing.assert_allclose(m.second[i], one.second[0], rtol=1e-7)


@pytest.mark.parametrize("noise", [jc.Laplace(1.0), jc.Gaussian(1.0), jc.Cauchy(0.7)])
def test_the_sign_has_its_closed_form(noise):
    risk = 0.3
    m = coordinate_moments(jc.Normalize(0.0), noise, risk, LAM)
    if isinstance(noise, jc.Laplace):
        law = stats.laplace(scale=np.sqrt(0.5))
    elif isinstance(noise, jc.Cauchy):
        law = stats.cauchy(scale=0.7)
    else:
        law = stats.norm(scale=1.0)
    s = np.sqrt(2 * risk)
    density = integrate.quad(
        lambda x: law.pdf(x) * stats.norm.pdf(x, scale=s), -12, 12, points=[0.0]
    )[0]
    drift = 2 * density * np.sqrt(2 * LAM / np.pi)
    np.testing.assert_allclose(LAM * m.mu, drift, rtol=1e-7)
    np.testing.assert_allclose(LAM * m.second, np.ones(3), rtol=1e-8)


@pytest.mark.parametrize(
    "clip", [jc.SkipClip(0.8), jc.DeltaClip(0.3, 0.2), jc.RootSoftClip(0.5), jc.PSAC()]
)
def test_coefficients_agree_with_samples(clip):
    noise, risk, n = jc.Rademacher(0.6), 0.2, 400_000
    m = coordinate_moments(clip, noise, risk, LAM)
    rng = np.random.default_rng(5)
    w = np.sqrt(2 * risk) * (z := rng.standard_normal(n))
    w = w - 0.6 * rng.choice([-1.0, 1.0], n)
    a = np.sqrt(LAM)[:, None] * rng.standard_normal((3, n))
    g = w * a
    update = g * np.asarray(clip.factor(jnp.asarray(np.abs(g)), 0))
    # Stein's identity in the signal: E[a^2 psi'(w a)] = E[a psi(w a) z] / s.
    seen = a * update * z / np.sqrt(2 * risk)
    for values, expected in ((seen, LAM * m.mu), (update**2, LAM * m.second)):
        mean, error = values.mean(axis=1), values.std(axis=1) / np.sqrt(n)
        assert np.all(np.abs(mean - np.asarray(expected)) < 4.5 * error)


def test_moments_are_differentiable_in_a_threshold():
    def total(c):
        m = coordinate_moments(jc.HardClip(c), jc.Laplace(1.0), 0.2, LAM)
        return jnp.sum(m.mu) + jnp.sum(m.second)

    slope = jax.grad(total)(0.5)
    h = 1e-4
    np.testing.assert_allclose(slope, (total(0.5 + h) - total(0.5 - h)) / 2 / h, 1e-6)


def test_moments_refuse_what_is_none():
    with pytest.raises(ValueError, match="eigenvalues"):
        coordinate_moments(jc.HardClip(1.0), jc.Gaussian(1.0), 0.1, -LAM)
    with pytest.raises(ValueError, match="eigenvalues"):
        coordinate_moments(jc.HardClip(1.0), jc.Gaussian(1.0), 0.1, LAM[None])
    with pytest.raises(ValueError, match="risk"):
        coordinate_moments(jc.HardClip(1.0), jc.Gaussian(1.0), -0.1, LAM)


# Limits


def diagonal(noise=None, dims=(30, 50, 40)):
    spectrum = jc.Spectrum(LAM, dims)
    noise = jc.Gaussian(1.0) if noise is None else noise
    return jc.LinearModel(spectrum, noise, jnp.array([1.0, 0.5, 2.0]))


def by_scipy(problem, coefficients, lr, steps):
    """The ODE of the energies by another solver, from coefficients at each risk."""
    lam = np.asarray(problem.spectrum.eigenvalues)
    dims = np.asarray(problem.spectrum.multiplicity)

    def field(k, v):
        drift, second = coefficients(k, np.sum(lam * v))
        return -2 * lr * drift * v + lr**2 * second * dims / 2

    start = np.asarray(problem.start) ** 2 / 2
    how = {"rtol": 1e-10, "atol": 1e-13, "t_eval": steps, "method": "DOP853"}
    found = integrate.solve_ivp(field, (0.0, steps[-1]), start, **how)
    return lam @ found.y


STEPS = np.linspace(0.0, 200.0, 5)


def test_the_limit_of_a_value_clip():
    problem, c, lr = diagonal(), 0.3, 0.01
    cache = {}

    def coefficients(k, risk):
        tau = np.sqrt(2 * risk + 1.0)
        # The integrals are slow: at Chebyshev nodes in tau, once.
        if not cache:
            nodes = 1.5 + 0.6 * np.cos((np.arange(14) + 0.5) / 14 * np.pi)
            values = [[hard_gaussian(c, t, lam) for lam in LAM] for t in nodes]
            cache["fit"] = (
                np.polynomial.Chebyshev.fit(nodes, np.zeros(14), 13),
                np.polynomial.chebyshev.chebfit(
                    (nodes - 1.5) / 0.6, np.array(values).reshape(14, 6), 13
                ),
            )
        values = np.polynomial.chebyshev.chebval((tau - 1.5) / 0.6, cache["fit"][1])
        return tuple(values.reshape(3, 2).T)

    curve = jc.solve(problem, jc.HardClip(c), lr, steps=STEPS, **OF_EACH)
    np.testing.assert_allclose(
        curve.risk, by_scipy(problem, coefficients, lr, STEPS), rtol=3e-8
    )


def test_the_limit_of_signs():
    problem, lr = diagonal(), 0.003

    def coefficients(k, risk):
        density = 1 / np.sqrt(2 * np.pi * (2 * risk + 1.0))
        return 2 * density * np.sqrt(2 * LAM / np.pi), np.ones(3)

    curve = jc.solve(problem, jc.Normalize(0.0), lr, steps=STEPS, **OF_EACH)
    expected = by_scipy(problem, coefficients, lr, STEPS)
    np.testing.assert_allclose(curve.risk, expected, rtol=1e-8)
    # The default constant under the norm changes little.
    usual = jc.solve(problem, jc.Normalize(), lr, steps=STEPS, **OF_EACH)
    np.testing.assert_allclose(usual.risk, expected, rtol=1e-4)


def test_without_a_clip_it_is_the_risk_ode():
    problem = diagonal(jc.Gaussian(0.5))
    one = jc.solve(problem, jc.Identity(), 0.01, steps=STEPS, **OF_EACH)
    other = jc.solve(problem, jc.Identity(), 0.01, steps=STEPS)
    np.testing.assert_allclose(one.risk, other.risk, rtol=1e-8)


def test_a_wide_spectrum_is_solved_by_its_own_clocks():
    # Beyond a ratio of 100 by the exponential integrator, with a clock for each mode.
    spectrum = jc.Spectrum(np.geomspace(1e-4, 1.0, 20))
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.3), jnp.ones(20))
    how = {"clip": jc.HardClip(0.2), "lr": 0.05, "steps": STEPS, **OF_EACH}
    own = jc.solve(problem, **how)
    import diffrax

    limit = jc.limit.CoordinateODE(solver=diffrax.Tsit5(), rtol=1e-10)
    np.testing.assert_allclose(
        own.risk, jc.solve(problem, limit=limit, **how).risk, rtol=1e-7
    )


def test_schedules_are_honoured():
    problem = diagonal()
    half = STEPS[2]

    def threshold(k):
        return jnp.where(k < half, 0.3, 0.1)

    how = {"lr": 0.01, **OF_EACH}
    both = jc.solve(problem, jc.HardClip(threshold), steps=STEPS, **how)
    first = jc.solve(problem, jc.HardClip(0.3), steps=STEPS, **how)
    np.testing.assert_allclose(both.risk[:3], first.risk[:3], rtol=1e-8)
    # Half as far in as many steps: by the same program.
    middle = jc.solve(problem, jc.HardClip(0.3), steps=STEPS / 2, **how).reduced
    rest = jc.LinearModel(
        problem.spectrum, problem.noise, jnp.sqrt(2 * middle.risk / LAM)
    )
    second = jc.solve(rest, jc.HardClip(0.1), steps=STEPS / 2, **how)
    np.testing.assert_allclose(both.risk[2:], second.risk[::2], rtol=1e-7)


def test_the_limit_is_differentiable_in_a_threshold():
    problem = diagonal()

    # Values beside by the same program.
    @jax.jit
    @jax.value_and_grad
    def last(c):
        curve = jc.solve(problem, jc.HardClip(c), 0.01, steps=STEPS, **OF_EACH)
        return curve.risk[-1]

    h = 1e-4
    (below, _), (_, slope), (above, _) = map(last, (0.3 - h, 0.3, 0.3 + h))
    np.testing.assert_allclose(slope, (above - below) / 2 / h, 1e-5)


@pytest.mark.slow
def test_thresholds_are_mapped_and_compile_once():
    problem = diagonal()
    traces = 0

    def last(c, lr):
        nonlocal traces
        traces += 1
        return jc.solve(problem, jc.HardClip(c), lr, steps=STEPS, **OF_EACH).risk[-1]

    several = jax.jit(jax.vmap(last, (0, None)))
    values = several(jnp.array([0.1, 0.3]), 0.01)
    several(jnp.array([0.2, 0.4]), 0.02)
    assert traces == 1
    one = jc.solve(problem, jc.HardClip(0.3), 0.01, steps=STEPS, **OF_EACH).risk[-1]
    np.testing.assert_allclose(values[1], one, rtol=1e-7)


def test_batches_whose_examples_are_clipped():
    problem, B = diagonal(), 4
    within = jc.PerExample(within=jc.PerCoordinate())
    how = {"clip": jc.HardClip(0.3), "steps": STEPS}
    batch = jc.solve(problem, lr=0.02, batch_size=B, scope=within, **how)
    # A sum of as many is a mean at as many times the rate.
    total = jc.PerExample("sum", within=jc.PerCoordinate())
    summed = jc.solve(problem, lr=0.02 / B, batch_size=B, scope=total, **how)
    np.testing.assert_allclose(batch.risk, summed.risk, rtol=1e-8)
    # With a large batch only the drift is left.
    many = jc.solve(problem, lr=0.02, batch_size=10**9, scope=within, **how)
    assert batch.risk[-1] > many.risk[-1]


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 2, "scope": jc.PerCoordinate()},
        {"scope": jc.PerTree(), "limit": jc.limit.CoordinateODE()},
        {"momentum": 0.9, **OF_EACH},
        {"weight_decay": 0.1, **OF_EACH},
    ],
)
def test_what_has_no_equation_is_refused(given):
    with pytest.raises(ValueError, match="CoordinateODE"):
        jc.solve(diagonal(), jc.HardClip(1.0), 0.01, steps=STEPS, **given)


@pytest.mark.slow
def test_runs_follow_the_limit():
    # Isotropic enough that 64 runs tell a wrong coefficient.
    spectrum = jc.Spectrum(np.array([1.0, 0.25]), [100, 100])
    problem = jc.LinearModel(spectrum, jc.Laplace(1.0), jnp.array([1.0, 1.0]))
    how = {"clip": jc.HardClip(0.4), "lr": 0.01, **OF_EACH}

    def run(key):
        return jc.simulate(problem, steps=200, every=100, key=key, **how).risk[1:]

    risks = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(6), 64)))
    mean, error = risks.mean(axis=0), risks.std(axis=0) / 8
    curve = jc.solve(problem, steps=jnp.array([100.0, 200.0]), **how).risk
    # The mean differs from the limit by one over the dimension.
    assert np.all(np.abs(mean - curve) < 4 * error + mean / 125)


# Signs on a full covariance


def sign_by_matrices(K, z, std, lr, steps, length=1.0):
    """arXiv:2411.12135's limit as an ODE of the whole second-moment matrix."""
    root = np.sqrt(np.diag(K))
    A = K / root[:, None]
    noise = 2 / np.pi * np.arcsin(np.clip(K / np.outer(root, root), -1, 1))
    dim = len(K)

    def field(k, flat):
        M = flat.reshape(dim, dim)
        variance = np.sum(K * M) + std**2
        rate = lr * length * 2 / np.pi / np.sqrt(variance)
        change = -rate * (A @ M + M @ A.T) + (lr * length) ** 2 * noise
        return change.ravel()

    how = {"rtol": 1e-10, "atol": 1e-13, "t_eval": steps, "method": "DOP853"}
    start = np.outer(z, z).ravel()
    found = integrate.solve_ivp(field, (0.0, steps[-1]), start, **how)
    return K.ravel() @ found.y / 2


@pytest.mark.parametrize("clip", [jc.Normalize(), jc.clip.Rescale(2.0)])
def test_signs_on_a_full_covariance(clip):
    problem, K = turned()
    z = np.asarray(problem.init())
    curve = jc.solve(problem, clip, 0.01, steps=STEPS, **OF_EACH)
    length = 2.0 if isinstance(clip, jc.clip.Rescale) else 1.0
    expected = sign_by_matrices(K, z, 0.5, 0.01, STEPS, length)
    np.testing.assert_allclose(curve.risk, expected, rtol=1e-7)


@pytest.mark.slow
def test_both_ways_to_solve_a_diagonal_covariance_agree():
    lam = np.arange(1, 9) ** -0.7
    z = np.linspace(-1.0, 2.0, 8)
    spectrum = jc.Spectrum(lam)
    own = jc.LinearModel(spectrum, jc.Laplace(1.0), np.abs(z))
    # A rotation of two axes by nothing that rounding could hide, and by nothing.
    eps = 1e-9
    Q = np.eye(8)
    Q[:2, :2] = [[np.cos(eps), -np.sin(eps)], [np.sin(eps), np.cos(eps)]]
    full = jc.LinearModel(spectrum, jc.Laplace(1.0), np.abs(z), basis=Q)
    how = {"clip": jc.Normalize(0.0), "lr": 0.01, "steps": STEPS, **OF_EACH}
    np.testing.assert_allclose(
        jc.solve(full, **how).risk, jc.solve(own, **how).risk, rtol=1e-7
    )
    # Axes that change their places are no rotation to a rule for each of them.
    turned_axes = jc.LinearModel(
        spectrum, jc.Laplace(1.0), np.abs(z), basis=-np.eye(8)[::-1]
    )
    how["clip"] = jc.HardClip(0.2)
    np.testing.assert_allclose(
        jc.solve(turned_axes, **how).risk, jc.solve(own, **how).risk, rtol=1e-12
    )


def test_signs_on_a_full_covariance_follow_runs():
    problem, _ = turned(100, jc.Gaussian(1.0), seed=3)
    how = {"clip": jc.Normalize(), "lr": 0.01, **OF_EACH}

    def run(key):
        return jc.simulate(problem, steps=200, every=100, key=key, **how).risk[1:]

    risks = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(7), 64)))
    mean, error = risks.mean(axis=0), risks.std(axis=0) / 8
    curve = jc.solve(problem, steps=jnp.array([100.0, 200.0]), **how).risk
    assert np.all(np.abs(mean - curve) < 4 * error + mean / 25)


def test_other_rules_on_a_full_covariance_are_refused():
    problem, _ = turned()
    with pytest.raises(ValueError, match="basis"):
        jc.solve(problem, jc.HardClip(1.0), 0.01, steps=STEPS, **OF_EACH)
    noisy = jc.PerExample(noise_std=0.1, within=jc.PerCoordinate())
    with pytest.raises(ValueError, match="noise_std"):
        jc.solve(problem, jc.Normalize(), 0.01, steps=STEPS, scope=noisy)


# Criteria


@pytest.mark.parametrize(
    "noise",
    [jc.Laplace(1.0), pytest.param(jc.StudentT(3.0, 1.0), marks=pytest.mark.slow)],
)
def test_one_coordinate_gains_no_more_than_the_best_clip_of_gradients(noise):
    risk = 0.05
    best = jc.best_clip(noise, risk, 1.0).ccc
    for c in (0.0, 0.1, 0.5, 2.0):
        clip = jc.clip.Rescale(1.0) if c == 0 else jc.HardClip(c)
        m = coordinate_moments(clip, noise, risk, LAM)
        assert np.all(m.ccc <= best * (1 + 1e-9))


def test_a_sign_keeps_two_over_pi_of_what_the_sign_of_a_residual_does():
    risk, noise = 0.05, jc.Laplace(1.0)
    whole = jc.moments(jc.clip.Rescale(1.0), noise, risk, 1.0).ccc
    each = coordinate_moments(jc.clip.Rescale(1.0), noise, risk, LAM).ccc
    np.testing.assert_allclose(each, 2 / np.pi * whole, rtol=1e-7)


def test_gaussian_noise_costs_a_sign_four_over_pi_squared():
    each = coordinate_moments(jc.clip.Rescale(1.0), jc.Gaussian(1.0), 0.5, LAM).ccc
    np.testing.assert_allclose(each, 4 / np.pi**2, rtol=1e-7)


def best_fall(drift, second, lam, energy, dims):
    """How fast the risk falls at the best rate: the maximum over it of
    2 lr sum(lam D v) - lr^2 sum(lam S d) / 2."""
    return 2 * np.sum(lam * drift * energy) ** 2 / np.sum(lam * second * dims)


@pytest.mark.parametrize("late", [False, True])
def test_when_signs_beat_sgd(late):
    # The preconditioner pays where small eigenvalues hold the error, and costs where
    # the error is even; the noise's part is the efficiency of one coordinate.
    lam = np.arange(1, 41) ** -1.0
    dims = np.ones(40)
    energy = 1e-3 / lam if late else 1e-3 * np.ones(40)
    risk, noise = float(lam @ energy), jc.Gaussian(1.0)
    sgd = best_fall(lam, lam * (2 * risk + 1), lam, energy, dims)
    m = coordinate_moments(jc.Normalize(0.0), noise, risk, lam)
    sign = best_fall(lam * m.mu, lam * m.second, lam, energy, dims)
    shape = (lam**1.5 @ energy) ** 2 * np.sum(lam**2)
    shape /= (lam**2 @ energy) ** 2 * np.sum(lam)
    np.testing.assert_allclose(sign / sgd, 4 / np.pi**2 * shape, rtol=1e-7)
    assert (shape > 1) == late


# Precision, devices


@pytest.mark.float32
def test_a_hard_clip_in_either_precision():
    m = coordinate_moments(jc.HardClip(0.4), jc.Gaussian(1.0), 0.5, jnp.asarray(LAM))
    for i, lam in enumerate(LAM):
        drift, second = hard_gaussian(0.4, np.sqrt(2.0), lam)
        np.testing.assert_allclose(m.mu[i], drift / lam, rtol=3e-5)
        np.testing.assert_allclose(m.second[i], second / lam, rtol=3e-5)


def test_an_infinite_threshold_and_one_of_zero():
    noise = jc.Gaussian(1.0)
    none = coordinate_moments(jc.HardClip(np.inf), noise, 0.5, LAM)
    np.testing.assert_allclose(none.mu, 1.0, rtol=1e-9)
    np.testing.assert_allclose(none.second, 2.0, rtol=1e-9)
    all_of_it = coordinate_moments(jc.HardClip(0.0), noise, 0.5, LAM)
    np.testing.assert_allclose(all_of_it.mu, 0.0, atol=1e-12)
    np.testing.assert_allclose(all_of_it.second, 0.0, atol=1e-12)


def test_a_run_on_a_sharded_problem():
    problem, _ = turned(16)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None))
    split = eqx.tree_at(
        lambda p: p.basis, problem, jax.device_put(problem.basis, spread)
    )
    how = {"clip": jc.HardClip(0.3), "lr": 0.05, "steps": 20, "every": 10}
    how |= {"key": jr.key(8), **OF_EACH}
    np.testing.assert_allclose(
        jc.simulate(split, **how).risk, jc.simulate(problem, **how).risk, rtol=1e-12
    )
