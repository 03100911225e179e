"""Weight decay and the noise of DP-SGD, in the limit and in runs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp
from scipy.special import exp1
from scipy.stats import norm

import jaxclip as jc
from jaxclip.clip import mean_factor

LAM, DIM = np.array([1.0, 0.5, 0.25, 0.1]), np.array([50, 100, 150, 200])
N = float(LAM @ DIM)
START = np.sqrt(2 * DIM / N)
# Not where a run starts at zero: along the error in some modes, against it in others.
OPTIMUM = np.array([0.6, -1.0, 0.3, -2.0])
BLOCKS = jc.LinearModel(jc.Spectrum(LAM, DIM), jc.Gaussian(1.0), START, optimum=OPTIMUM)
CLIP = jc.HardClip(0.7 * N**0.5)


def gaussian(risk, c):
    """mu, second and the mean factor of a hard clip, noise of variance 1, in closed
    form: the last has the integral of a normal density over its argument."""
    tau = np.sqrt(2 * risk + 1)
    q = c / tau
    mu = 2 * norm.cdf(q) - 1
    second = tau**2 * (mu - 2 * q * norm.pdf(q)) + c**2 * (1 - mu)
    return mu, second, mu + q * exp1(q**2 / 2) / np.sqrt(2 * np.pi)


def second_moments(lr, theta, delta, sigma, ends, *, nesterov=False, clipped=False):
    """The risk at the ends from matrices of second moments of (error, momentum,
    optimum), one for each mode: $S' = F S + S F^T + G$. `theta` is None without
    momentum."""
    drag = 0.0 if clipped else lr * delta

    def rhs(_, y):
        S = y.reshape(4, 3, 3)
        mu, second, factor = gaussian(LAM @ S[:, 0, 0] / 2, 0.7)
        ridge = delta * factor if clipped else 0.0
        carry, kick, lost = lr, 0.0, theta
        if theta is None:
            carry, kick, lost = 0.0, lr, 1.0
        elif nesterov:
            carry, kick = lr * (1 - (1 - theta) * theta), lr * (1 - theta)
        out = []
        for lam, dim, one in zip(LAM, DIM, S, strict=True):
            h = mu * lam + ridge
            F = np.array(
                [[-kick * h - drag, -carry, -kick * ridge - drag], [h, -lost, ridge],
                 [0, 0, 0]]
            )  # fmt: skip
            push = np.array([-kick, 1.0, 0.0])
            noise = (second * lam + sigma**2) * dim * np.outer(push, push)
            out.append(F @ one + one @ F.T + noise)
        return np.stack(out).ravel()

    S = np.zeros((4, 3, 3))
    S[:, 0, 0], S[:, 2, 2] = START**2, OPTIMUM**2
    S[:, 0, 2] = S[:, 2, 0] = START * OPTIMUM
    how = {"method": "BDF", "rtol": 1e-9, "atol": 1e-11, "t_eval": ends}
    path = solve_ivp(rhs, (0, ends[-1]), S.ravel(), **how).y
    return LAM @ path.reshape(4, 3, 3, -1)[:, 0, 0] / 2


ENDS = N * np.array([0.5, 2, 8])
NOISY = jc.PerExample(noise_std=0.3)


def test_all_of_it_at_once():
    momentum = jc.algorithm.Momentum(0.9, nesterov=True)
    how = {"momentum": momentum, "scope": NOISY, "steps": ENDS}
    risk = jc.solve(BLOCKS, CLIP, 0.05 / N, weight_decay=0.3, **how).risk
    args = (0.05 / N, 0.1, 0.3, 0.3, ENDS)
    expected = second_moments(*args, nesterov=True)
    np.testing.assert_allclose(risk, expected, rtol=1e-6)
    # And each of its parts can be seen.
    for change in ({"nesterov": False}, {"clipped": True, "nesterov": True}):
        other = second_moments(*args[:-1], ENDS[:1], **change)
        assert np.max(np.abs(other / expected[:1] - 1)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("theta", [None, 0.1, 2 / N])
def test_decay(theta, clipped):
    lr = 0.5 / N if theta is None else 0.5 / N * theta
    decay = jc.algorithm.WeightDecay(0.3, clipped)
    if theta == 2 / N:
        # A decoupled decay does not go through the momentum.
        decay = jc.algorithm.WeightDecay(0.3 if clipped else 20.0, clipped)
    momentum = None if theta is None else 1 - theta
    risk = jc.solve(
        BLOCKS, CLIP, lr, steps=ENDS, momentum=momentum, weight_decay=decay
    ).risk
    rate = float(decay.rate)
    expected = second_moments(lr, theta, rate, 0.0, ENDS, clipped=clipped)
    np.testing.assert_allclose(risk, expected, rtol=1e-6)


@pytest.mark.slow
def test_noise_alone_is_known_in_closed_form():
    # Without a clip the isotropic noise adds to each mode what an Ornstein-Uhlenbeck
    # process has: of an isotropic spectrum the stationary risk is known.
    problem = jc.LinearModel(jc.Spectrum.isotropic(400), jc.Gaussian(1.0), [1.0])
    lr, s = 0.4 / 400, 0.5
    risk = jc.solve(
        problem, jc.Identity(), lr, steps=[0.0, 40000.0],
        scope=jc.PerExample(noise_std=s),
    ).risk[-1]  # fmt: skip
    b = lr * 400
    np.testing.assert_allclose(risk, b * (1 + s**2) / (2 * (2 - b)), rtol=1e-7)


@pytest.mark.slow
def test_a_compressed_spectrum_takes_the_noise():
    spectrum = jc.Spectrum.power_law(600, 1.0)
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.5), np.full(600, 0.1))
    few = problem.compress(isotropic=True)
    assert len(few.modes.eigenvalues) == 3 * 48
    lr, scope = 0.3 / float(spectrum.trace), jc.PerExample(noise_std=0.1)
    how = {"steps": np.array([10.0, 300.0, 10000.0]), "scope": scope}
    risk = jc.solve(few, jc.Identity(), lr, **how).risk
    lam, rate, time = np.asarray(spectrum.eigenvalues), lr, how["steps"]

    def rhs(_, v):
        noise = lam * (2 * lam @ v + 0.25) + 0.01
        return -2 * rate * lam * v + rate**2 * noise / 2

    path = solve_ivp(rhs, (0, 10000), np.full(600, 0.005), "BDF", time, rtol=1e-9,
                     atol=1e-13)  # fmt: skip
    np.testing.assert_allclose(risk, lam @ path.y, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`problem.compress\(isotropic=True\)`"):
        jc.solve(problem.compress(), jc.Identity(), lr, **how)
    with pytest.raises(ValueError, match="Pass what was compressed"):
        jc.solve(few, jc.Identity(), lr, steps=[1.0], weight_decay=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("clipped", [False, True])
def test_runs_decay_to_the_true_origin(clipped):
    decay = jc.algorithm.WeightDecay(0.5, clipped)
    how = {"weight_decay": decay, "momentum": 0.8, "scope": NOISY}
    lr, steps = 0.06 / N, int(4 * N)

    def run(key):
        return jc.simulate(
            BLOCKS, CLIP, lr, steps=steps, every=steps, key=key, **how
        ).risk[-1]

    risks = jax.jit(jax.vmap(run))(jr.split(jr.key(0), 64))
    risk = jc.solve(BLOCKS, CLIP, lr, steps=[float(steps)], **how).risk[-1]
    error = risks.std(ddof=1) / 8
    # The mean of runs differs from the limit by about one over N, here 1 / 157.
    assert abs(risks.mean() - risk) < 4 * error + 2 / N * risk
    start = jc.LinearModel(BLOCKS.spectrum, BLOCKS.noise, START)
    other = jc.solve(start, CLIP, lr, steps=[float(steps)], **how).risk[-1]
    assert abs(risks.mean() - other) > 8 * error


def test_the_origin_of_rows_is_that_of_their_model():
    # The columns differ in size and sign; the model's origin, turned back from its
    # eigenbasis, has the distance to the start and the risk that zero weights have.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3)) * np.array([1.0, 0.5, 2.0])
    y = X @ np.array([1.0, -2.0, 0.5]) + rng.normal(size=80)
    start = np.array([2.0, 1.0, -1.0])
    rows = jc.Regression(X, y, start=start)
    model = jc.LinearModel.from_data(X, y, start=start)
    origin = model.origin()
    np.testing.assert_allclose(model.risk(origin), rows.risk(jnp.zeros(3)), rtol=1e-9)
    distance = np.linalg.norm(model.init() - origin)
    np.testing.assert_allclose(distance, np.linalg.norm(start), rtol=1e-9)
    # By default SGD starts at zero weights.
    zero = jc.LinearModel.from_data(X, y)
    np.testing.assert_allclose(zero.origin(), zero.init(), rtol=1e-9)
    plain = jc.LinearModel(model.spectrum, model.noise, model.start)
    np.testing.assert_array_equal(plain.origin(), plain.init())
    with pytest.raises(ValueError, match="`optimum` must have one number for each"):
        jc.LinearModel(model.spectrum, model.noise, model.start, optimum=[1.0])


def test_a_run_on_rows_is_that_of_optax():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    rows, how = jc.Regression(X, y), {"steps": 30, "every": 30, "key": jr.key(1)}
    run = jc.simulate(rows, jc.Identity(), 0.05, weight_decay=0.2, **how)
    link = optax.add_decayed_weights(0.2)
    other = jc.train(rows, optax.chain(link, optax.sgd(0.05)), **how)
    np.testing.assert_allclose(run.params, other.params, rtol=1e-10)


def test_the_mean_factor():
    for risk in (0.01, 0.5):
        got = mean_factor(jc.HardClip(1.4), jc.Gaussian(1.0), risk, 2.0, 0)
        np.testing.assert_allclose(got, gaussian(risk, 0.7)[2], rtol=1e-9)
    # A floor is kept of the largest, whatever the noise.
    got = mean_factor(jc.DeltaClip(1e-3, 0.25), jc.Cauchy(1.0), 0.5, 2.0, 0)
    np.testing.assert_allclose(got, 0.25, atol=1e-3)
