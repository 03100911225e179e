"""When to clip: the criteria, their ceiling, and the schedules that they give."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

import jaxclip as jc
from helpers import CLIPS, assert_within, mean_and_error
from jaxclip._schedule import as_schedule
from jaxclip.criterion._knots import risk_knots, schedule_knots

EXCESS = np.array([1.0, 0.1, 0.01])
LAPLACE = jc.Laplace(1.0)
STUDENT = jc.StudentT(3.0, 1 / 3**0.5)


class Mixture(jc.AbstractNoise):
    """Three normal laws: noises of one type, which share their compiled programs."""

    weights: Any = eqx.field(converter=jnp.asarray)
    means: Any = eqx.field(converter=jnp.asarray)
    stds: Any = eqx.field(converter=jnp.asarray)

    def sample(self, key, shape=()):
        which, value = jr.split(key)
        index = jr.choice(which, 3, shape, p=self.weights)
        normal = jr.normal(value, shape, self.stds.dtype)
        return self.means[index] + self.stds[index] * normal

    @property
    def variance(self):
        return jnp.dot(self.weights, self.means**2 + self.stds**2)

    def residual(self, signal_variance):
        stds = jnp.sqrt(signal_variance + self.stds**2)
        return jc.noise.NormalMixture(self.weights, -self.means, stds)


L = 3.2**0.5
MIXTURES = {
    "gaussian": Mixture([0.3, 0.3, 0.4], np.zeros(3), np.ones(3)),
    "rademacher": Mixture([0.5, 0.25, 0.25], [-1.0, 1.0, 1.0], np.zeros(3)),
    "sparse_sign": Mixture([0.1, 0.8, 0.1], [-L, 0.0, L], np.zeros(3)),
    "contaminated": Mixture([0.9, 0.05, 0.05], np.zeros(3), [1.0, 10.0, 10.0]),
    "skewed": Mixture([0.7, 0.2, 0.1], [-0.6, 1.0, 2.2], [0.3, 0.1, 0.8]),
}
NOISES = MIXTURES | {
    "uniform": jc.Uniform(1.0),
    "laplace": LAPLACE,
    "student_t": STUDENT,
    "exponential": jc.Exponential(1.0),
    "cauchy": jc.Cauchy(0.5),
}

# The maximum of the criterion and where it is, at EXCESS, with a noise of variance 1.
TABLE = {
    "laplace": ((1.009436, 3.5918), (1.237185, 0.82675), (1.634972, 0.2319)),
    "student_t": ((1.078902, 3.1967), (1.520588, 0.97307), (1.895291, 0.57968)),
}
# The ceiling of the criterion over all rules, at an excess of 0.01.
CEILINGS = {
    "gaussian": (1.0, 1e-12),
    "rademacher": (51.0, 1e-9),
    "uniform": (3.76, 1e-3),
    "laplace": (1.63713, 1e-5),
    "student_t": (1.91829, 1e-5),
}


# Compiled once for all mixtures, the search for the best threshold runs for long.
optimised = pytest.mark.optimised


class Best(NamedTuple):
    threshold: jax.Array
    ccc: jax.Array


@eqx.filter_jit
def best_clips(noise, excess):
    """The best thresholds on the residual, and their criteria."""
    best = jax.vmap(lambda r: jc.best_clip(noise, r, 1.0))(excess)
    return Best(best.clip.threshold(0), best.ccc)


@eqx.filter_jit
def hard_moments(noise, excess, thresholds):
    """At every excess (rows) and every threshold on the residual (columns)."""

    def at(r):
        return jax.vmap(lambda c: jc.moments(jc.HardClip(c), noise, r, 1.0))(thresholds)

    return jax.vmap(at)(excess)


class Residual:
    """The law of a residual by scipy: its density, distribution function and kinks."""

    def __init__(self, name, excess):
        signal = np.sqrt(2 * excess)
        if name == "exponential":
            # The noise comes with a minus sign.
            law = scipy.stats.exponnorm(1 / signal, -1, signal)
            self.pdf, self.cdf = (lambda w: law.pdf(-w)), (lambda w: law.sf(-w))
            self.variance, self.centres = 2 * excess + 1, [1.0]
        elif name == "cauchy":
            self.pdf = lambda w: scipy.special.voigt_profile(w, signal, 0.5)
            self.cdf = lambda c: 0.5 + self.partial(np.ones_like, 0, c)
            self.variance, self.centres = np.inf, [0.0]
        else:
            noise = MIXTURES[name]
            weights, means = np.asarray(noise.weights), np.asarray(noise.means)
            stds = np.sqrt(noise.stds**2 + signal**2)
            law = scipy.stats.norm(means, stds)
            self.pdf = lambda w: np.sum(weights * law.pdf(w))
            self.cdf = lambda w: np.sum(weights * law.cdf(w))
            self.variance = np.sum(weights * (stds**2 + means**2))
            self.centres = sorted(set(means))

    def partial(self, function, low, high):
        """The integral of a function times the density."""
        points = [p for p in self.centres if low < p < high]
        points += [p for p in (-4.0, 4.0, -0.5, 0.5) if low < p < high]
        return scipy.integrate.quad(
            lambda w: function(w) * self.pdf(w), low, high, points=points, limit=200
        )[0]

    def moments(self, c):
        """Of a hard clip."""
        mu = self.cdf(c) - self.cdf(-c)
        return mu, self.partial(np.square, -c, c) + c**2 * (1 - mu)

    def efficiency(self, c):
        mu, second = self.moments(c)
        return mu**2 / second

    def mean_excess(self, c):
        """The probability of a norm above c, and the mean of w^2 - c^2 there."""
        far = c + 60 * np.sqrt(self.variance)
        sides = [(-far, -c), (c, far)]
        above = sum(self.partial(lambda w: w**2 - c**2, *side) for side in sides)
        tail = 1 - self.cdf(c) + self.cdf(-c)
        return tail, above / tail


# The best threshold


def slow(name: str) -> Any:
    """A smooth law more: another compilation of what `laplace` runs."""
    return pytest.param(name, marks=pytest.mark.slow)


@optimised
@pytest.mark.parametrize("name", ["gaussian", "rademacher", slow("uniform")])
def test_light_tails_never_benefit(name):
    # A gain of more than 1e-10 at any threshold would be reported.
    best = best_clips(NOISES[name], EXCESS)
    np.testing.assert_array_equal(best.ccc, 1)
    np.testing.assert_array_equal(best.threshold, np.inf)


@pytest.mark.parametrize("name", ["laplace", slow("student_t")])
def test_table_of_the_best_thresholds(name):
    best = best_clips(NOISES[name], EXCESS)
    ccc, threshold = np.array(TABLE[name]).T
    np.testing.assert_allclose(best.ccc, ccc, rtol=0, atol=6e-7)
    # Four or five digits are printed.
    np.testing.assert_allclose(best.threshold, threshold, rtol=3e-5)


@optimised
@pytest.mark.parametrize(
    "name", [slow("exponential"), "sparse_sign", "contaminated", slow("cauchy")]
)
def test_best_threshold_against_a_search_by_scipy(name):
    best = np.transpose(best_clips(NOISES[name], EXCESS))
    for excess, (threshold, ccc) in zip(EXCESS[1:], best[1:], strict=True):
        law = Residual(name, excess)
        grid = np.logspace(-2, 1.5, 30)
        values = [law.efficiency(c) for c in grid]
        top = int(np.argmax(values))
        found = scipy.optimize.minimize_scalar(
            lambda u, law=law: -law.efficiency(np.exp(u)),
            bounds=np.log([grid[top - 1], grid[top + 1]]),
            method="bounded",
            options={"xatol": 1e-9},
        )
        np.testing.assert_allclose(ccc, -found.fun * law.variance, rtol=1e-8)
        np.testing.assert_allclose(threshold, np.exp(found.x), rtol=1e-5)
        # The first-order condition, derived from the derivatives of mu and second.
        mu, second = law.moments(threshold)
        slope = second * (law.pdf(threshold) + law.pdf(-threshold))
        np.testing.assert_allclose(slope, threshold * mu * (1 - mu), rtol=1e-5)


@pytest.mark.parametrize("name", ["exponential", "sparse_sign"])
def test_criteria_are_statements_about_the_tail(name):
    # CSC > 1 where E[w^2 - c^2 | |w| > c] > V; CCC > 1 where it exceeds V (2 - p).
    excess, thresholds = np.array([0.3]), np.array([0.2, 0.6, 1.3, 1.8, 2.5, 4.0, 9.0])
    m = hard_moments(NOISES[name], excess, thresholds)
    law = Residual(name, excess[0])
    tails, means = np.transpose([law.mean_excess(c) for c in thresholds])
    np.testing.assert_allclose(m.mu[0], 1 - tails, rtol=1e-9)
    nu = 1 - tails * means / law.variance
    np.testing.assert_allclose(m.nu[0], nu, rtol=1e-7)
    csc, ccc = means > law.variance, means > law.variance * (2 - tails)
    # Where the tail is no part of a double, neither is what the criteria differ from 1.
    told = tails * means / law.variance > 1e-14
    np.testing.assert_array_equal((m.csc[0] > 1)[told], csc[told])
    np.testing.assert_array_equal((m.ccc[0] > 1)[told], ccc[told])
    assert told.sum() >= 6
    assert 0 < ccc.sum() < len(ccc) and ccc.sum() < csc.sum()


# The ceiling


@eqx.filter_jit
def efficiencies(noise, excess):
    """Of one rule of each kind, kinked, smooth, redescending and with a jump; and their
    ceiling."""
    clips = [CLIPS[kind] for kind in ("delta", "soft", "redescending", "skip")]

    def at(r):
        ms = [jc.moments(clip, noise, r, 1.0) for clip in clips]
        efficiency = jnp.stack([m.mu**2 / m.second for m in ms])
        return efficiency, jc.criterion.fisher_information(noise, r)

    return jax.vmap(at)(excess)


@pytest.mark.parametrize("name", [*MIXTURES, slow("cauchy"), slow("exponential")])
def test_no_rule_is_above_the_ceiling(name):
    efficiency, information = efficiencies(NOISES[name], EXCESS)
    assert np.all(np.isfinite(efficiency))
    assert np.all(efficiency <= information[:, None] * (1 + 1e-9))


@eqx.filter_jit
def score_moments(noise, excess, norms):
    def at(r):
        clip = jc.ScoreClip(noise, r, 3.0)
        m = jc.moments(clip, noise, r, 3.0)
        return (
            m.mu,
            m.second,
            jc.criterion.fisher_information(noise, r),
            clip.factor(norms, 0),
        )

    return jax.vmap(at)(excess)


@pytest.mark.parametrize(
    "name",
    [
        *("rademacher", "contaminated"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("sparse_sign", "uniform", "laplace", "student_t")
        ),
    ],
)
def test_the_score_attains_the_ceiling(name):
    norms = jnp.array([0.0, 1e-300, 1e-9, 1.0, 1e4, 1e9, 1e150])
    mu, second, information, factor = score_moments(NOISES[name], EXCESS, norms)
    np.testing.assert_allclose(mu**2 / second, information, rtol=1e-10)
    # On isotropic features the best learning rate is 2R mu / (second d) per step: here
    # one over the dimension.
    np.testing.assert_allclose(2 * EXCESS * mu / second, 1, rtol=1e-10)
    if name in CEILINGS:
        ceiling, rtol = CEILINGS[name]
        np.testing.assert_allclose(information[2] * 1.02, ceiling, rtol=rtol)
    # No gradient is so small or large that the rule has no answer.
    assert np.all(np.isfinite(factor))


@optimised
def test_the_score_of_skewed_noise_is_that_of_its_symmetrization():
    noise = MIXTURES["skewed"]
    mu, second, information, _ = score_moments(noise, EXCESS, jnp.ones(7))
    efficiency = mu[1] ** 2 / second[1]
    law = Residual("skewed", EXCESS[1])

    def folded(w):
        return (law.pdf(w) + law.pdf(-w)) / 2

    def square_score(w):
        slope = (folded(w + 1e-5) - folded(w - 1e-5)) / 2e-5
        return 2 * slope**2 / folded(w)

    expected = scipy.integrate.quad(square_score, 0, 12, points=[1, 2, 4], limit=200)[0]
    np.testing.assert_allclose(efficiency, expected, rtol=1e-7)
    # Above every hard clip, below what a rule that saw the sign would do.
    best = best_clips(noise, EXCESS).ccc[1] / law.variance
    assert 1.01 * best < efficiency < 0.99 * information[1]


@pytest.mark.parametrize(
    ("noise", "density"),
    [
        (LAPLACE, scipy.stats.laplace(0, 0.5**0.5)),
        (STUDENT, scipy.stats.t(3, 0, 3**-0.5)),
        (jc.Uniform(1.0), scipy.stats.uniform(-(3**0.5), 12**0.5)),
    ],
)
def test_tweedie(noise, density):
    # The score of the residual's density is the posterior mean of the signal in it.
    excess, norm = 0.2, 4.0
    prior = scipy.stats.norm(0, np.sqrt(2 * excess))
    residual = jnp.array([0.05, 0.4, 1.0, 1.7, 3.0, 5.0])

    def posterior_mean(w):
        # The signal is the residual plus the label's noise.
        points = [x for x in (w - 3**0.5, w, w + 3**0.5, 0.0) if abs(x) < 6]

        def moment(power):
            def integrand(x):
                return x**power * prior.pdf(x) * density.pdf(x - w)

            return scipy.integrate.quad(integrand, -6, 6, points=points)[0]

        return moment(1) / moment(0)

    psi = jax.jit(lambda w: w * jc.ScoreClip(noise, excess, norm).factor(w * norm, 0))(
        residual
    )
    expected = [posterior_mean(w) for w in np.asarray(residual)]
    np.testing.assert_allclose(psi, expected, rtol=1e-6)


# Schedules


def make_problem(noise, *, dim=30, exponent=0.0, excess=0.5):
    """Every eigenvalue by itself, so that every spectrum runs the same program."""
    spectrum = jc.Spectrum(np.arange(1, dim + 1) ** -exponent)
    start = np.full(dim, np.sqrt(2 * excess / float(spectrum.trace)))
    return jc.LinearModel(spectrum, noise, start)


SCHEDULED = 3000
REPORT = np.concatenate([[0, 1, 10, 40, 100, 200], np.linspace(300, SCHEDULED, 28)])


class Schedules(NamedTuple):
    """The risks on the max-CCC schedule and at the ceiling, with the same descent, and
    the schedule itself."""

    best: Any
    ceiling: Any
    threshold: Any
    descent: Any


def unclipped(problem, lr):
    """The risk of unclipped SGD by scipy: the ODE is linear."""
    eigenvalues = np.asarray(problem.spectrum.eigenvalues)

    def field(step, v):
        variance = 2 * eigenvalues @ v + float(problem.noise.variance)
        return eigenvalues * (-2 * lr * v + lr**2 * variance / 2)

    start = np.asarray(problem.start) ** 2 / 2
    return (
        eigenvalues
        @ scipy.integrate.solve_ivp(
            field,
            (0, REPORT[-1]),
            start,
            t_eval=REPORT,
            rtol=1e-9,
            atol=1e-12 * start[0],
        ).y
    )


@eqx.filter_jit
def schedules(problem, lr):
    clip, rate = jc.max_ccc(problem, lr, steps=SCHEDULED)
    best = jc.solve(problem, clip, rate, steps=REPORT).risk

    def at(step, risk):
        norm = problem.spectrum.feature_norm
        m = jc.moments(clip, problem.noise, risk, norm, step)
        return clip.threshold(step) / norm, rate(step) * m.mu

    # Far below its start a risk is within the solver's tolerance of zero, either side.
    best = jnp.maximum(best, 0.0)
    return Schedules(
        best,
        jc.ceiling(problem, lr, steps=REPORT).risk,
        *jax.vmap(at)(jnp.asarray(REPORT), best),
    )


@optimised
@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("excess", [5.0, 1e-4], ids=["falling", "climbing"])
@pytest.mark.parametrize(
    "name", ["contaminated", pytest.param("sparse_sign", marks=pytest.mark.slow)]
)
def test_max_ccc_is_never_worse_than_unclipped(name, excess, exponent):
    noise = MIXTURES[name]
    problem = make_problem(noise, exponent=exponent, excess=excess)
    lr = 0.6 / problem.spectrum.trace
    none = unclipped(problem, float(lr))
    best, ceiling, threshold, descent = schedules(problem, lr)
    # Tables and schedules are interpolated, and far below its start a risk is known to
    # few digits.
    assert np.all(best <= none * (1 + 1e-5))
    known = ceiling > 1e-8 * excess
    assert np.all(ceiling[known] <= best[known] * (1 + 1e-5))
    # At the end there is something to gain, from both.
    last = np.flatnonzero(known)[-1]
    assert best[last] < 0.95 * none[last] and ceiling[last] < 0.9999 * best[last]
    # The threshold is the best one all along, and the rate is compensated.
    some = np.flatnonzero(known)[[1, 5, -1]]
    expected = best_clips(noise, best[some]).threshold
    acts = np.isfinite(expected)
    np.testing.assert_allclose(threshold[some][acts], expected[acts], rtol=1e-2)
    assert np.all(threshold[some][~acts] > 1e3)
    # A percent, since where a threshold first acts the rate is between two knots.
    np.testing.assert_allclose(descent[known], lr, rtol=1e-2)


@eqx.filter_jit
def heuristic(problem, lr, kappa):
    """The risk, the threshold on the residual and the rate of descent."""
    clip, rate = jc.heuristic(problem, lr, kappa, steps=SCHEDULED)
    risk = jc.solve(problem, clip, rate, steps=REPORT).risk

    def at(step, risk):
        norm = problem.spectrum.feature_norm
        m = jc.moments(clip, problem.noise, risk, norm, step)
        return clip.threshold(step) / norm, rate(step) * m.mu

    return risk, *jax.vmap(at)(jnp.asarray(REPORT), risk)


@pytest.mark.slow
@pytest.mark.float32
def test_heuristic_is_a_multiple_of_the_residual_and_can_do_harm():
    problem = make_problem(LAPLACE, exponent=1.0, excess=5.0)
    lr = 0.6 / problem.spectrum.trace
    risk, threshold, descent = heuristic(problem, lr, jnp.asarray(0.7))
    np.testing.assert_allclose(threshold, 0.7 * jnp.sqrt(2 * risk + 1), rtol=3e-3)
    # The rate is compensated: one that is not would descend at half of it here.
    np.testing.assert_allclose(descent, lr, rtol=3e-3)
    none = unclipped(problem, float(lr))
    assert np.all(risk[2:5] > 1.02 * none[2:5]) and risk[-1] < 0.9 * none[-1]


def compensated(problem, lr, kappa):
    """The risk on the heuristic schedule by scipy: moments in closed form, of normal
    residuals given the noise."""
    lam, noise = np.asarray(problem.spectrum.eigenvalues), problem.noise

    def field(step, v):
        risk = lam @ v
        c, std = kappa * np.sqrt(2 * risk + float(noise.variance)), np.sqrt(2 * risk)
        low, high = (-c - noise.means) / std, (c - noise.means) / std
        cdf, pdf = scipy.stats.norm.cdf, scipy.stats.norm.pdf
        inside = cdf(high) - cdf(low)
        square = (noise.means**2 + std**2) * inside - std**2 * (
            high * pdf(high) - low * pdf(low)
        )
        square += 2 * std * noise.means * (pdf(low) - pdf(high))
        mu = noise.weights @ inside
        second = noise.weights @ (square + c**2 * (1 - inside))
        return lam * (-2 * lr * v + (lr / mu) ** 2 * second / 2)

    start = np.asarray(problem.start) ** 2 / 2
    run = scipy.integrate.solve_ivp(
        field, (0, REPORT[-1]), start, t_eval=REPORT, method="LSODA", rtol=1e-9,
        atol=1e-14,
    )  # fmt: skip
    return lam @ run.y


def test_heuristic_runs_at_the_compensated_rate():
    noise = MIXTURES["sparse_sign"]
    problem = make_problem(noise, exponent=1 / 6)
    lr = 0.4 / float(problem.spectrum.trace)
    ends = []
    for kappa in (0.2, 0.5, 3.0):
        risk, _, _ = heuristic(problem, jnp.asarray(lr), jnp.asarray(kappa))
        expected = compensated(problem, lr, kappa)
        np.testing.assert_allclose(risk, expected, rtol=2e-3)
        ends.append(float(risk[-1]))
    # A threshold that hardly acts leaves unclipped SGD.
    assert ends[0] < 0.4 * ends[1] < 0.4 * ends[2]
    np.testing.assert_allclose(ends[2], unclipped(problem, lr)[-1], rtol=0.02)


# The score rule as an algorithm


@eqx.filter_jit
def informations(noise, excess):
    return jax.vmap(lambda r: jc.criterion.fisher_information(noise, r))(excess)


def cramer_rao(problem, steps):
    """The risk in the limit of one pass on isotropic features, and its descent rate."""
    grid = np.logspace(-4, 1, 60)
    information = jax.jit(
        jax.vmap(lambda r: jc.criterion.fisher_information(problem.noise, r))
    )(grid)
    dim = problem.spectrum.dim

    def of(risk):
        return np.exp(np.interp(np.log(risk), np.log(grid), np.log(information)))

    risk = scipy.integrate.solve_ivp(
        lambda k, r: -2 * r**2 * of(r) / dim,
        (0, steps[-1]),
        [float(problem.risk(problem.init()))],
        t_eval=steps,
        rtol=1e-9,
    ).y[0]
    return risk, 2 * risk * of(risk) / dim


SCORED = np.linspace(0, 1000, 21)


@eqx.filter_jit
def scored(problem, lr, keys):
    """Of the score rule: its rate, ODE and ceiling, and runs of SGD."""
    clip, rate = jc.score(problem, lr, steps=1000)
    ode = jc.solve(problem, clip, rate, steps=SCORED).risk
    ceiling = jc.ceiling(problem, lr, steps=SCORED).risk
    runs = jax.vmap(
        lambda key: (
            jc.simulate(
                problem, clip, rate, steps=1000, every=50, key=key, engine=jc.Direct()
            ).risk
        )
    )(keys)
    return jax.vmap(rate)(SCORED), ode, ceiling, runs


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_sgd_with_the_score_rule_follows_its_limit(exponent):
    problem = make_problem(NOISES["contaminated"], dim=100, exponent=exponent)
    limit, descent = cramer_rao(problem, SCORED)
    if exponent:
        descent = 0 * descent + 0.4 / float(problem.spectrum.trace)
    lr = jc.PiecewiseLinear(SCORED, descent)
    rate, ode, ceiling, runs = scored(problem, lr, jr.split(jr.key(1), 48))
    # The rule and its rate are tabulated in the step.
    np.testing.assert_allclose(ode, ceiling, rtol=1e-3)
    mean, error = (x[1:] / ode[1:] for x in mean_and_error(runs))
    # The mean deviates by one over the intrinsic dimension.
    finite = 1 / float(problem.spectrum.intrinsic_dimension)
    assert_within(mean, error + finite / 4, 1, power=0.18)
    if not exponent:
        # With the best descent of all: one over the dimension is the best rate, for the
        # rule is its own schedule, and nothing in one pass is better.
        np.testing.assert_allclose(rate * problem.spectrum.dim, 1, rtol=5e-3)
        np.testing.assert_allclose(ode, limit, rtol=3e-3)
        assert np.all(mean * ode[1:] > limit[1:] * (1 - 3 * error))


# The largest stable learning rate


def mean_map(eigenvalues, multiplicity, lr):
    """One unclipped step on the mean of the squared errors, exact at every size."""
    stays = 1 - 2 * lr * eigenvalues + 2 * lr**2 * eigenvalues**2
    spread = lr**2 * np.outer(eigenvalues * multiplicity, eigenvalues)
    return np.diag(stays) + spread


@pytest.mark.parametrize(
    ("eigenvalues", "multiplicity"),
    [([1.0], [1]), ([2.0, 0.3], [1, 7]), ([1.0, 0.5, 0.25, 0.1], [5, 10, 15, 20])],
)
def test_stable_lr_of_gaussian_features(eigenvalues, multiplicity):
    spectrum = jc.Spectrum(eigenvalues, multiplicity)
    problem = jc.LinearModel(spectrum, LAPLACE, np.ones(len(eigenvalues)))
    lr = float(jc.stable_lr(problem))
    for factor, stable in [(1 - 1e-6, True), (1 + 1e-6, False)]:
        step = mean_map(np.array(eigenvalues), np.array(multiplicity), factor * lr)
        assert (np.max(np.abs(np.linalg.eigvals(step))) < 1) == stable
        error = np.linalg.matrix_power(step, 10**8) @ np.ones(len(eigenvalues))
        assert (np.max(error) < 1) == stable


def test_stable_lr_in_high_dimension():
    problem = jc.LinearModel(jc.Spectrum.isotropic(10**5), LAPLACE, jnp.ones(1))
    np.testing.assert_allclose(jc.stable_lr(problem), 2e-5, rtol=3e-5)


def stable_by_eigenvalues(rows):
    """Where the largest eigenvalue of the step on the second moment of the error, a
    linear map of all matrices, passes 1."""
    covariance, eye = rows.T @ rows / len(rows), np.eye(rows.shape[1])
    outer = np.einsum("ni,nj->nij", rows, rows).reshape(len(rows), -1)
    fourth = outer.T @ outer / len(rows)
    second = np.kron(covariance, eye) + np.kron(eye, covariance)

    def excess(lr):
        step = np.eye(len(fourth)) - lr * second + lr**2 * fourth
        return np.max(np.abs(np.linalg.eigvals(step))) - 1

    bounds = np.array([1e-4, 10]) / np.trace(covariance)
    return scipy.optimize.brentq(excess, *bounds, xtol=1e-30)


@pytest.mark.parametrize("df", [4, 1])
def test_stable_lr_of_rows_against_all_eigenvalues(df):
    rng = np.random.default_rng(5)
    rows = rng.standard_t(df, size=(60, 3)) @ rng.normal(size=(3, 3))
    problem = jc.Regression(rows, rng.normal(size=60))
    expected = stable_by_eigenvalues(rows)
    np.testing.assert_allclose(jc.stable_lr(problem), expected, rtol=1e-6)


def test_stable_lr_of_gaussian_rows_is_that_of_gaussian_features():
    rows = np.random.default_rng(6).normal(size=(100_000, 4)) * [1.0, 0.7, 0.5, 0.3]
    regression = jc.Regression(rows, rows[:, 0])
    problem = jc.LinearModel(
        jc.Spectrum.from_covariance(regression.covariance), LAPLACE, np.ones(4)
    )
    # Fourth moments of 1e5 rows are known to about a percent.
    np.testing.assert_allclose(
        jc.stable_lr(regression), jc.stable_lr(problem), rtol=0.02
    )


def test_heavy_rows_are_stable_only_at_smaller_rates():
    # Two rows in a hundred are ten times as long; the covariance knows only the mean.
    rng = np.random.default_rng(7)
    rows = (
        rng.normal(size=(2000, 5)) * np.where(np.arange(2000) % 50, 1.0, 10.0)[:, None]
    )
    regression = jc.Regression(rows, rng.normal(size=2000))
    gaussian = jc.stable_lr(jc.LinearModel.from_regression(regression))
    assert jc.stable_lr(regression) < 0.2 * gaussian


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: jc.best_clip(LAPLACE, -1.0, 1.0), "`risk` must be non-negative"),
        (lambda p: jc.best_clip(LAPLACE, np.nan, 1.0), "`risk` must be non-negative"),
        (
            lambda p: jc.criterion.fisher_information(LAPLACE, 0.0),
            "`risk` must be positive",
        ),
        (lambda p: jc.ScoreClip(LAPLACE, -1.0, 1.0), "`risk` must be non-negative"),
        (lambda p: jc.ScoreClip(LAPLACE, 1.0, 0.0), "`feature_norm` must be positive"),
        (lambda p: jc.max_ccc(p, 0.1, steps=0), "`steps` must be at least 1. Got 0"),
        (lambda p: jc.max_ccc(p, 0.1, steps=1.5), "`steps` must be a Python integer"),
        (lambda p: jc.max_ccc(p, -0.1, steps=9), "`lr` must be non-negative"),
        (lambda p: jc.score(p, 0.1, steps=0), "`steps` must be at least 1"),
        (lambda p: jc.heuristic(p, 0.1, 0.0, steps=9), "`kappa` must be positive"),
        (
            lambda p: jc.heuristic(
                eqx.tree_at(lambda q: q.noise, p, jc.Cauchy(1.0)), 0.1, 1.0, steps=9
            ),
            "`problem.noise.variance` must be positive and finite",
        ),
        (
            lambda p: jc.heuristic(
                make_problem(jc.Rademacher(1.0), excess=1e-3), 0.1, 0.5, steps=9
            ),
            "`kappa` must give a clipping-comparison criterion of at least 0.001",
        ),
        (lambda p: jc.heuristic(p, -0.1, 1.0, steps=9), "`lr` must be non-neg"),
        (lambda p: jc.heuristic(p, 0.1, 1.0, steps=0), "`steps` must be at least"),
        (
            lambda p: jc.max_ccc(
                jc.LinearModel(p.spectrum, jc.Gaussian(0.0), 0 * p.start),
                0.1,
                steps=9,
            ),
            "`problem.start` must be positive",
        ),
        (lambda p: jc.stable_lr("rows"), "must be a `LinearModel` or a `Regression`"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_problem(LAPLACE))


@pytest.mark.parametrize("verb", ["max_ccc", "heuristic", "ceiling", "score"])
@pytest.mark.usefixtures("without_type_checks")
def test_rows_are_refused_with_the_way_out(verb):
    rows = jc.Regression(np.eye(5)[:, :2], np.arange(5.0))
    arguments = {
        "heuristic": (0.1, 1.0),
    }.get(verb, (0.1,))
    steps = jnp.arange(3.0) if verb == "ceiling" else 3
    with pytest.raises(ValueError, match=r"`LinearModel\.from_data\(X, y\)`"):
        getattr(jc, verb)(rows, *arguments, steps=steps)


@pytest.mark.optimised
def test_a_threshold_that_jumps_is_handed_out_with_its_jump():
    """Between two knots at which the best threshold is another by a factor of 3 or more
    there is next to nothing: interpolated, a clip that does not act yet would be made
    up for by the rate. The knots beside are as far apart as ever."""
    spectrum = jc.Spectrum.isotropic(100)
    problem = jc.LinearModel(spectrum, jc.noise.SparseSign(1.0, 0.2), [3.0])
    clip, _ = jc.max_ccc(problem, 0.5 / spectrum.trace, steps=600)
    threshold = clip.threshold
    knots, values = np.asarray(threshold.knots), np.asarray(threshold.values)
    ratio = np.maximum(values[1:], values[:-1]) / np.minimum(values[1:], values[:-1])
    (jumps,) = np.nonzero(ratio > 3)
    assert len(jumps) > 0
    for jump in jumps:
        before, at, after = np.diff(knots)[jump - 1 : jump + 2]
        assert at < 0.02 * max(before, after)
        # The larger one is held up to there.
        falls = values[jump] > values[jump + 1]
        held = values[jump - 1 : jump + 1] if falls else values[jump + 1 : jump + 3]
        assert held[0] == held[1]


@pytest.mark.parametrize("steps", [1, 40, 10**6])
def test_schedules_are_tabulated_from_the_start_to_the_end(steps):
    """Nowhere more than 1/64 of the steps apart, nor, after the first 1e-5 of them, by
    more than a fifth of the step."""
    knots = np.asarray(schedule_knots(steps))
    assert knots[0] == 0 and knots[-1] == steps
    gaps = np.diff(knots)
    assert np.all(gaps > 0)
    assert np.all(gaps <= steps / 64 * (1 + 1e-12))
    assert knots[1] <= 1.01e-5 * steps
    assert np.all(gaps[1:] <= 0.21 * knots[1:-1])


def test_a_burst_of_the_rate_has_knots_of_its_own():
    """Evenly in what the rate sums up to: nine tenths of it in ten steps of 10000."""
    burst, steps = (7000, 7010), 10_000

    def lr(step):
        inside = (step >= burst[0]) & (step < burst[1])
        return jnp.where(inside, 9.0 * (steps - 10) / 10, 1.0) / steps

    knots = np.asarray(risk_knots(as_schedule(lr, "lr"), steps))
    assert knots[0] == 0 and knots[-1] == pytest.approx(steps, rel=1e-12)
    assert np.all(np.diff(knots) > 0)
    spent = np.concatenate([[0], np.cumsum([float(lr(k)) for k in range(steps)])])
    parts = np.diff(np.interp(knots, np.arange(steps + 1), spent)) / spent[-1]
    assert np.all(parts < 1.01 / 257)
    for jump in burst:
        assert np.min(np.abs(knots - jump)) < 1e-6
