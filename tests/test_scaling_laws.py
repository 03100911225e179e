"""Power-law random features against the model itself, and laws against long solutions.

The model itself is the matrix of features in numpy, with the loss as its definition has
it; the deterministic equivalent is compared with draws, and the exponents with the
minimum over sizes of the four terms that they come from.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import assert_within
from jaxclip.problem import CompressedLinearModel
from jaxclip.problem.linear._equivalent import _indices

equivalent = CompressedLinearModel.power_law_features
ALPHA, BETA, V, D = 0.8, 0.6, 40, 12


def model(alpha, beta, variables, features, key):
    """Scales of the inputs, target and matrix, by their definitions."""
    index = np.arange(1, variables + 1)
    W = np.asarray(jr.normal(key, (variables, features), jnp.float32), float)
    return index**-alpha, index**-beta, W / features**0.5


def loss(params, scale, b, W):
    return np.sum(scale**2 * (W @ params - b) ** 2) / 2


# One draw


@pytest.mark.float32
def test_both_precisions_have_one_draw():
    found = jc.Spectrum.power_law_features(ALPHA, BETA, V, D, key=jr.key(3))
    scale, _, W = model(ALPHA, BETA, V, D, jr.key(3))
    values = np.linalg.eigvalsh(W.T @ np.diag(scale**2) @ W)[::-1]
    np.testing.assert_allclose(found.spectrum.eigenvalues, values, rtol=1e-5)


@pytest.mark.parametrize("variables, features", [(40, 12), (12, 40), (20, 20)])
def test_a_draw_is_the_model(variables, features):
    key = jr.key(3)
    spectrum, start, least = jc.Spectrum.power_law_features(
        ALPHA, BETA, variables, features, key=key
    )
    scale, b, W = model(ALPHA, BETA, variables, features, key)
    covariance = W.T @ np.diag(scale**2) @ W
    values, vectors = np.linalg.eigh(covariance)
    some = min(variables, features)
    np.testing.assert_allclose(spectrum.eigenvalues, values[::-1][:some], rtol=1e-7)
    best = np.linalg.lstsq(scale[:, None] * W, scale * b, rcond=None)[0]
    np.testing.assert_allclose(start, abs(vectors.T @ best)[::-1][:some], rtol=1e-6)
    # A difference of losses, which rounding leaves 1e-16 of.
    np.testing.assert_allclose(least, loss(best, scale, b, W), rtol=1e-9, atol=1e-15)
    assert variables > features or least == 0


def test_the_risk_is_the_loss_above_its_least_value(getkey):
    """At any parameters, which are held in the eigenbasis, relative to the minimum."""
    key = getkey()
    problem = jc.LinearModel.power_law_features(ALPHA, BETA, V, D, key=key)
    scale, b, W = model(ALPHA, BETA, V, D, key)
    vectors = np.linalg.eigh(W.T @ np.diag(scale**2) @ W)[1][:, ::-1]
    best = np.linalg.lstsq(scale[:, None] * W, scale * b, rcond=None)[0]
    least = float(problem.noise.variance) / 2
    for params in np.random.default_rng(1).standard_normal((4, D)):
        risk = problem.risk(jnp.asarray(vectors.T @ (params - best)))
        np.testing.assert_allclose(risk + least, loss(params, scale, b, W), rtol=1e-9)
    start = problem.risk(problem.init())
    np.testing.assert_allclose(start + least, loss(np.zeros(D), scale, b, W), rtol=1e-9)


@pytest.mark.parametrize("noise", [None, jc.StudentT(2.5, 0.2)])
def test_runs_of_the_model_itself(noise):
    """SGD on the inputs of the model, in numpy, against `simulate` and `solve`."""
    key, runs, steps = jr.key(11), 4000, 60
    problem = jc.LinearModel.power_law_features(0.6, 0.4, 30, 8, noise=noise, key=key)
    lr = 0.3 / float(problem.spectrum.trace)
    threshold = 0.8 * float(problem.spectrum.feature_norm)
    scale, b, W = model(0.6, 0.4, 30, 8, key)
    rng = np.random.default_rng(5)
    params = np.zeros((runs, 8))
    for _ in range(steps):
        x = scale * rng.standard_normal((runs, 30))
        features = x @ W
        target = x @ b
        if noise is not None:
            target = target + 0.2 * rng.standard_t(2.5, runs)
        gradient = (np.sum(features * params, 1) - target)[:, None] * features
        norm = np.linalg.norm(gradient, axis=1, keepdims=True)
        params -= lr * gradient * np.minimum(1, threshold / norm)
    best = np.linalg.lstsq(scale[:, None] * W, scale * b, rcond=None)[0]
    covariance = W.T @ np.diag(scale**2) @ W
    ours = np.einsum("ri,ij,rj->r", params - best, covariance, params - best) / 2

    def risk(key):
        run = jc.simulate(
            problem, jc.HardClip(threshold), lr, steps=steps, every=steps, key=key
        )
        return run.risk[-1]

    theirs = jax.jit(jax.vmap(risk))(jr.split(jr.key(2), runs))
    error = np.hypot(ours.std(), np.std(theirs)) / runs**0.5
    assert_within(np.mean(theirs), ours.mean(), error)


def exact_means(draws, scale, steps):
    """Mean risks of SGD with one sample a step, at rates of `scale` over the trace: the
    exact recursion of section 1.5 of docs/theory.md, of which the limit leaves out a
    term that counts at an intrinsic dimension of 1.6."""
    lam = np.stack([x.spectrum.eigenvalues for x in draws])
    risk = lam * np.stack([x.start for x in draws]) ** 2 / 2
    noise = 2 * np.stack([x.irreducible_risk for x in draws])
    moved = scale * lam / lam.sum(axis=1, keepdims=True)
    kept, means = 1 - 2 * moved + 2 * moved**2, []
    for step in range(steps[-1] + 1):
        total = risk.sum(axis=1)
        if step in steps:
            means.append(total)
        risk = risk * kept + moved**2 * (total + noise / 2)[:, None]
    return np.stack(means, axis=1)


def test_draws_scatter_about_the_published_curve():
    """One sample a step at half over the trace, as the authors' program runs it: the
    excess risk on one draw. Others differ from it by tens of percent."""
    published = [0.0608, 0.00399, 3.45e-4, 1.30e-4, 5.34e-5]
    draws = [
        jc.Spectrum.power_law_features(1.0, 0.7, 1200, 300, key=key)
        for key in jr.split(jr.key(1), 5)
    ]
    logs = np.log(exact_means(draws, 0.5, [10, 100, 1000, 5000, 19000]))
    scatter = logs.std(axis=0, ddof=1)
    assert np.all(abs(np.log(published) - logs.mean(axis=0)) < 2.5 * scatter)
    # So narrow that half the rate would be seen.
    assert np.all(scatter < 0.3)


# The deterministic equivalent


def averages(tau, draws):
    """Means over draws of what the risk sees of the spectrum, and standard errors."""
    decay = [np.exp(-2 * np.outer(tau, s.eigenvalues)) for s, _, _ in draws]
    risk = [
        e @ (s.eigenvalues * z**2 / 2)
        for e, (s, z, _) in zip(decay, draws, strict=True)
    ]
    force = [e @ x.spectrum.eigenvalues for e, x in zip(decay, draws, strict=True)]
    return [
        (np.mean(x, axis=0), np.std(x, axis=0) / len(draws) ** 0.5)
        for x in (np.stack(risk), np.stack(force))
    ]


@pytest.mark.parametrize(
    "alpha, beta, variables, features",
    [
        (1.0, 0.7, 200, 50),
        (0.4, 0.8, 150, 50),
        (0.6, 0.3, 40, 90),
        (1.5, 0.2, 60, 50),
    ],
)
def test_the_equivalent_is_the_mean_of_draws(alpha, beta, variables, features):
    numbers = alpha, beta, variables, features
    draws = [
        jc.Spectrum.power_law_features(*numbers, key=key)
        for key in jr.split(jr.key(0), 24)
    ]
    problem = equivalent(*numbers)
    modes = problem.modes
    slowest = 1 / np.mean([s.eigenvalues[-1] for s, _, _ in draws])
    tau = np.geomspace(0.1, slowest / 5, 7)
    decay = np.exp(-2 * np.outer(tau, modes.eigenvalues))
    for ours, (mean, error) in zip(
        (decay @ modes.risk, decay @ modes.forcing), averages(tau, draws), strict=True
    ):
        # Five standard errors, since fourteen are looked at, and the equivalent's own
        # error of about one over the features.
        assert np.all(abs(ours - mean) < 5 * error + 2 / features * mean)
    least = [least for _, _, least in draws]
    std = np.std(least) / 24**0.5
    ours = float(problem.noise.variance) / 2
    assert abs(ours - np.mean(least)) <= 5 * std + 2 / features * ours


def test_a_few_nodes_have_the_moments_of_the_equivalent():
    """Mass and mean, and positive masses, at any number of nodes; to what is left of
    float64 where the resolvents are nearly dependent."""
    index = np.arange(1, 401.0)
    lam, b = index**-2.0, index**-0.7
    for nodes in (4, 8, 48):
        problem = equivalent(1.0, 0.7, 400, 100, nodes=nodes)
        modes = problem.modes
        assert modes.eigenvalues.shape == (2 * nodes,)
        assert np.all(modes.eigenvalues > 0)
        assert np.all(modes.risk >= 0) and np.all(modes.forcing >= 0)
        np.testing.assert_allclose(modes.forcing.sum(), lam.sum(), rtol=1e-6)
        square = np.sum(lam**2) + lam.sum() ** 2 / 100
        np.testing.assert_allclose(modes.forcing @ modes.eigenvalues, square, rtol=1e-6)
        whole = modes.risk.sum() + problem.noise.variance / 2
        np.testing.assert_allclose(whole, lam @ b**2 / 2, rtol=1e-6)
        first = lam**2 @ b**2 / 2
        np.testing.assert_allclose(modes.risk @ modes.eigenvalues, first, rtol=1e-6)


def test_the_error_is_above_that_of_the_nodes():
    numbers = 0.9, 0.5, 4000, 1000
    fine = equivalent(*numbers).modes
    for nodes in (6, 9, 12):
        some = equivalent(*numbers, nodes=nodes)
        assert some.modes.difference(fine) < float(some.error) < 0.5
    assert equivalent(*numbers).error < 1e-4


@pytest.mark.parametrize("variables, features", [(1, 1), (3, 2), (2, 9), (30, 30)])
def test_few_variables_have_an_equivalent(variables, features):
    """Whose spectra are narrow, so that many resolvents would be one."""
    problem = equivalent(0.7, 0.5, variables, features)
    assert np.all(problem.modes.eigenvalues > 0) and float(problem.error) < 0.2
    lam = np.arange(1, variables + 1.0) ** -1.4
    np.testing.assert_allclose(problem.modes.forcing.sum(), lam.sum(), rtol=1e-5)


def test_eigenvalues_over_many_decades():
    """At 10^9 features the smallest are far below the rounding of the largest."""
    for alpha in (0.7, 1.0, 1.5):
        problem = equivalent(alpha, 0.7, 4 * 10**9, 10**9)
        modes = problem.modes
        assert np.all(modes.eigenvalues > 0) and np.all(modes.forcing >= 0)
        assert problem.error < 1e-3
        # The number of features is the trace's measure over the eigenvalue.
        count = np.sum(modes.forcing / modes.eigenvalues)
        np.testing.assert_allclose(count, 1e9, rtol=1e-3)
        # And of the smallest eigenvalues there is one law for all sizes.
        few = equivalent(alpha, 0.7, 4000, 1000).modes
        scaled = np.min(modes.eigenvalues) * 1e9 ** (2 * alpha)
        expected = np.min(few.eigenvalues) * 1e3 ** (2 * alpha)
        np.testing.assert_allclose(scaled, expected, rtol=0.1)


def test_sums_over_many_variables():
    """Beyond some thousands they are integrals: against the sums themselves."""
    for variables in (4097, 50_000):
        index, weight = _indices(variables)
        every = np.arange(1, variables + 1.0)
        for ridge in (1e-9, 1e-3):
            for power in (0.7, 2.4):
                ours = weight @ (index**-power / (index**-power + ridge))
                exact = np.sum(every**-power / (every**-power + ridge))
                np.testing.assert_allclose(ours, exact, rtol=1e-9)


# Laws


def four_terms(alpha, beta):
    """Exponents of size and steps of the four terms, by the scalings of the paper; and
    the least of their largest over all splits of the compute."""
    rate = min(0.0, 2 * alpha - 1)
    terms = [
        (0.0, -(2 * alpha + 2 * beta - 1) / (2 * alpha)),
        (-2 * alpha + max(0.0, 1 - 2 * beta), 0.0),
    ]
    if alpha > 0.5 and beta > 0.5:
        terms.append((-1.0, -1 + 1 / (2 * alpha)))
    if alpha > 0.25:
        terms.append((rate, -2 + 1 / (2 * alpha)))
    # Of log risk in log f: the time is the steps times the rate, d^rate.
    lines = [(size + time * rate, time) for size, time in terms]

    def largest(x):
        return max(size * x + time * (1 - x) for size, time in lines)

    corners = [
        (q[1] - p[1]) / ((p[0] - p[1]) - (q[0] - q[1]))
        for p, q in itertools.combinations(lines, 2)
        if (p[0] - p[1]) != (q[0] - q[1])
    ]
    x = min((x for x in corners if 0 <= x <= 1), key=largest)
    return x, largest(x)


POINTS = {
    "Ia": (0.8, 0.25),
    "Ib": (0.4, 0.3),
    "Ic": (0.2, 0.9),
    "II": (0.9, 0.7),
    "III": (0.8, 1.2),
    "IVa": (0.4, 1.2),
    "IVb": (0.27, 1.1),
}


@pytest.mark.parametrize("phase", POINTS)
def test_the_exponents_are_those_of_the_four_terms(phase):
    law = jc.criterion.scaling_law(*POINTS[phase])
    assert law.phase == phase
    np.testing.assert_allclose(law[1:], four_terms(*POINTS[phase]), rtol=1e-12)


def test_the_exponents_of_the_whole_plane():
    rng = np.random.default_rng(0)
    for alpha, beta in rng.uniform(0.05, 2.0, (400, 2)):
        if alpha + beta > 0.51:
            law = jc.criterion.scaling_law(alpha, beta)
            np.testing.assert_allclose(law[1:], four_terms(alpha, beta), rtol=1e-9)


def curves(alpha, beta, sizes, steps, ratio=4):
    """Cost and loss of SGD at half over the trace, of models of many sizes at once."""
    models = [equivalent(alpha, beta, ratio * d, d) for d in sizes]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)

    def one(problem):
        lr = 0.5 / problem.modes.feature_norm**2
        # A wide spectrum, which the limit cannot see where it is traced.
        limit = jc.RiskODE(solver=jc.limit.ExponentialModes(), rtol=1e-6)
        curve = jc.solve(problem, jc.Identity(), lr, steps=steps, limit=limit)
        return curve.risk + problem.noise.variance / 2

    risk = eqx.filter_jit(jax.vmap(one))(models)
    return np.asarray(sizes)[:, None] * np.asarray(steps)[None, :], risk


# Where the powers have taken over: with little decay of the inputs at large sizes only.
SETTINGS = {
    "Ia": ((1e3, 1e5), (1e3, 1e7), (1e7, 1e9)),
    "II": ((1e3, 1e5), (1e3, 1e6), (1e7, 1e9)),
    "III": ((1e3, 3e6), (1e2, 1e7), (1e8, 1e10)),
    "IVa": ((1e6, 1e8), (1e5, 1e8), (1e12, 1e14)),
}


def measured(phase, count):
    sizes, steps, compute = SETTINGS[phase]
    sizes = np.round(np.geomspace(*sizes, count)).astype(int).tolist()
    cost, risk = curves(*POINTS[phase], sizes, jnp.geomspace(*steps, 40))
    compute = jnp.geomspace(*compute, 40)
    best = jc.criterion.compute_optimal(cost, risk, compute)
    at = np.log(compute)
    return (
        np.polyfit(at, np.log(best.risk), 1)[0],
        np.polyfit(at, np.log(np.asarray(sizes)[best.run]), 1)[0],
        np.mean(best.exponent),
    )


@pytest.mark.optimised
def test_the_measured_exponent_of_a_phase():
    law = jc.criterion.scaling_law(*POINTS["Ia"])
    risk, size, slope = measured("Ia", 6)
    assert abs(risk - law.risk) < 0.02 and abs(slope - law.risk) < 0.02
    assert abs(size - law.size) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("phase", SETTINGS)
def test_the_measured_exponents_of_the_four_phases(phase):
    law = jc.criterion.scaling_law(*POINTS[phase])
    risk, size, slope = measured(phase, 24)
    assert abs(risk - law.risk) < 0.02 and abs(slope - law.risk) < 0.02
    # Sizes are 2 to 4 to a factor of ten apart.
    assert abs(size - law.size) < 0.05


def test_the_envelope_of_known_curves():
    """Of a + b over the cost, whose envelope is a power: the tangent's slope too."""
    size = np.geomspace(1.0, 1e4, 400)[:, None]
    steps = np.geomspace(1.0, 1e6, 300)[None, :]
    cost, risk = size * steps, size**-1.0 + steps**-0.5
    compute = np.geomspace(1e3, 1e6, 20)
    best = jc.criterion.compute_optimal(cost, risk, compute)
    # At the minimum 1 / d = sqrt(d / f) / 2, where the sum is three times the first.
    exact = 3 * (4 * compute) ** (-1 / 3)
    np.testing.assert_allclose(best.risk, exact, rtol=1e-3)
    np.testing.assert_allclose(best.exponent, -1 / 3, atol=0.02)
    np.testing.assert_allclose(size[best.run, 0], (4 * compute) ** (1 / 3), rtol=0.1)


def test_runs_that_diverge_or_do_not_reach():
    cost = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    risk = np.array([[1.0, np.inf, np.nan], [3.0, 2.0, 1.0]])
    best = jc.criterion.compute_optimal(cost, risk, [0.5, 1.0, 2.0, 3.0, 4.5])
    np.testing.assert_array_equal(
        np.isinf(best.risk), [True, False, False, False, True]
    )
    np.testing.assert_array_equal(np.isnan(best.exponent), np.isinf(best.risk))
    np.testing.assert_array_equal(best.run[2:4], 1)
    np.testing.assert_allclose(best.risk[2], 2.0)


# Misuse


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: equivalent(0.0, 1.0, 9, 3),
            "`alpha` must",
        ),
        (
            lambda: equivalent(1.0, np.nan, 9, 3),
            "`beta` mu",
        ),
        (
            lambda: equivalent(1.0, 1.0, 0, 3),
            "`variables`",
        ),
        (
            lambda: equivalent(1.0, 1.0, 9, 0),
            "`features` m",
        ),
        (
            lambda: equivalent(1.0, 1.0, 9, 3, nodes=3),
            "`nodes` must be at least 4",
        ),
        (
            lambda: jax.jit(lambda a: equivalent(a, 1.0, 9, 3))(1.0),
            "`alpha` must be known",
        ),
        (
            lambda: jax.jit(
                lambda key: jc.Spectrum.power_law_features(1.0, 1.0, 9, 3, key=key)
            )(jr.key(0)),
            "`key` must be known",
        ),
        (lambda: jc.criterion.scaling_law(0.2, 0.2), "above 1/2"),
        (lambda: jc.criterion.scaling_law(-1.0, 2.0), "`alpha` must"),
        (
            lambda: jc.criterion.compute_optimal([1.0], [1.0], [1.0]),
            "a row for each",
        ),
        (
            lambda: jc.criterion.compute_optimal([[1.0, 1.0]], [[1.0, 1.0]], [1.0]),
            "`cost` must increase",
        ),
        (
            lambda: jc.criterion.compute_optimal([[0.0, 1.0]], [[1.0, 1.0]], [1.0]),
            "`cost` must be positive",
        ),
    ],
)
def test_misuse(call, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        call()
