"""Momentum in the limit and in runs: against other solvers and exact recursions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erfc, gammainc, log_ndtr, ndtr

import jaxclip as jc

LAM, DIM = np.array([1.0, 0.5, 0.25, 0.1]), np.array([50, 100, 150, 200])
N = float(LAM @ DIM)
BLOCKS = jc.LinearModel(jc.Spectrum(LAM, DIM), jc.Laplace(1.0), np.sqrt(2 * DIM / N))


def laplace(risk, c):
    """mu and second of a hard clip of residuals with Laplace noise of variance 1, in
    closed form (section 2 of the theory's sources)."""
    b, s = 0.5**0.5, np.sqrt(2 * risk)
    e1 = np.exp(s * s / 2 / b / b - c / b + log_ndtr(c / s - s / b))
    e2 = np.exp(s * s / 2 / b / b + c / b + log_ndtr(-c / s - s / b))
    mu, q = 1 - 2 * (ndtr(-c / s) + (e1 - e2) / 2), c / s
    gauss = s * s * gammainc(1.5, q * q / 2) + c * c * erfc(q / 2**0.5)
    return mu, gauss + mu - 2 * c * (e1 + e2) / 2 / b


def heavy_ball(theta, eta, c, times):
    """The equations in scaled time, t = k / N, of p = N lr m: another unit, another
    solver, and the closed form of the moments."""

    def rhs(t, y):
        a, b, q = y.reshape(3, -1)
        mu, second = laplace(LAM @ a / 2, c)
        return np.concatenate(
            [
                -2 * b,
                -q - theta * b + eta * mu * LAM * a,
                -2 * theta * q
                + 2 * eta * mu * LAM * b
                + eta**2 * LAM * DIM * second / N,
            ]
        )

    start = np.concatenate([2 * DIM / N, np.zeros(8)])
    how = {"method": "BDF", "rtol": 1e-10, "atol": 1e-12, "t_eval": times}
    return LAM @ solve_ivp(rhs, (0, times[-1]), start, **how).y[:4] / 2


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(0, 0, None))
def solved(beta, lr, steps):
    clip = jc.HardClip(0.7 * N**0.5)
    return jc.solve(BLOCKS, clip, lr, steps=steps, momentum=beta).risk


def test_both_scalings_follow_their_equations():
    # theta / N is forgotten in a step: the critical scaling with theta = 2, and
    # coefficients of .99, .9 and 0 that do not change with N.
    theta = np.array([2.0, 0.01 * N, 0.1 * N, N])
    eta = np.array([1.5, *0.5 * theta[1:]])
    times = np.array([0.5, 1, 2, 5, 10, 20])
    risk = solved(1 - theta / N, eta / N**2, N * times)
    for i in range(4):
        expected = heavy_ball(theta[i], eta[i], 0.7, times)
        np.testing.assert_allclose(risk[i], expected, rtol=3e-8)
    # The last is SGD at the rate that they amount to, up to one over N.
    sgd = jc.solve(BLOCKS, jc.HardClip(0.7 * N**0.5), 0.5 / N, steps=N * times).risk
    np.testing.assert_allclose(risk[2], sgd, rtol=0.02)
    assert np.max(np.abs(risk[2] / sgd - 1)) > 1e-3
    traces = solved._cached._cache_size()
    # Over a hundredth of the steps, which is soon done.
    solved(1 - 0.9 * theta / N, eta / N**2, N / 100 * times)
    assert solved._cached._cache_size() == traces


def exact(lam, dim, start, sigma, lr, beta, nesterov, steps):
    """The mean risk of unclipped runs, exact in every dimension, from the fourth
    moments of Gaussian features: a 2 x 2 matrix of second moments for each mode."""
    S = np.zeros((len(lam), 2, 2))
    S[:, 0, 0] = start**2
    T = np.array([[1.0, -lr * (beta**2 if nesterov else beta)], [0.0, beta]])
    V = np.array([-lr * ((1 + beta) if nesterov else 1.0), 1.0])
    risks = [lam @ S[:, 0, 0] / 2]
    for _ in range(steps):
        cross = lam[:, None] * S[:, 0]
        square = lam * dim * (2 * risks[-1] + sigma**2) + 2 * lam**2 * S[:, 0, 0]
        mixed = np.einsum("ab,jb,c->jac", T, cross, V)
        S = T @ S @ T.T + mixed + mixed.transpose(0, 2, 1)
        S = S + square[:, None, None] * np.outer(V, V)
        risks.append(lam @ S[:, 0, 0] / 2)
    return np.array(risks)


@pytest.mark.parametrize("nesterov", [False, True])
def test_runs_have_the_exact_mean(nesterov):
    lam, dim, start = np.array([1.0, 0.3]), np.array([4, 8]), np.array([1.0, 2.0])
    problem = jc.LinearModel(jc.Spectrum(lam, dim), jc.Gaussian(0.5), start)
    momentum = jc.algorithm.Momentum(0.8, nesterov)

    def run(key):
        how = {"steps": 60, "every": 20, "key": key, "momentum": momentum}
        return jc.simulate(problem, jc.Identity(), 0.012, **how).risk

    risk = jax.jit(jax.vmap(run))(jr.split(jr.key(0), 4096))
    error = risk.std(axis=0, ddof=1) / 64
    mean = exact(lam, dim, start, 0.5, 0.012, 0.8, nesterov, 60)[::20]
    other = exact(lam, dim, start, 0.5, 0.012, 0.8, not nesterov, 60)[::20]
    assert np.all(np.abs(risk.mean(axis=0) - mean) <= 4 * error + 1e-12)
    # The runs are enough to tell one from the other.
    assert np.any(np.abs(risk.mean(axis=0) - other) > 5 * error)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_run_is_that_of_optax(nesterov):
    problem = jc.LinearModel(jc.Spectrum.isotropic(5), jc.Gaussian(0.5), [1.0])
    momentum = jc.algorithm.Momentum(0.7, nesterov)
    how = {"steps": 30, "every": 10, "key": jr.key(1)}
    run = jc.simulate(problem, jc.Identity(), 0.05, momentum=momentum, **how)
    other = jc.train(problem, optax.sgd(0.05, 0.7, nesterov), **how)
    np.testing.assert_allclose(run.params, other.params, rtol=1e-10)


def test_the_blocked_and_lumped_engines_say_who_can():
    problem = jc.LinearModel(jc.Spectrum.isotropic(5), jc.Gaussian(0.5), [1.0])
    for engine in (jc.Blocked(), jc.Lumped()):
        with pytest.raises(ValueError, match=r"`momentum`.*Direct\(\)"):
            jc.simulate(
                problem, jc.Identity(), 0.1, steps=2, key=jr.key(0), momentum=0.9,
                engine=engine,
            )  # fmt: skip


@pytest.mark.slow
def test_the_equation_of_nesterov_is_right_to_the_next_order():
    # The mean over runs differs from the equation by one over N; the difference of the
    # two kinds of momentum is itself of that order, and the equation has it.
    def curves(nesterov, size):
        lam, dim = np.array([1.0, 0.2]), np.array([size, size])
        n, start = 1.2 * size, np.sqrt(np.array([1.0, 1.0]))
        problem = jc.LinearModel(jc.Spectrum(lam, dim), jc.Gaussian(0.5), start)
        lr, count = 0.05 * 0.6 / n, int(12 * n)
        steps = jnp.linspace(0, count, 7)
        momentum = jc.algorithm.Momentum(0.95, nesterov)
        risk = jc.solve(problem, jc.Identity(), lr, steps=steps, momentum=momentum).risk
        mean = exact(lam, dim, start, 0.5, lr, 0.95, nesterov, count)
        return risk, mean[np.asarray(steps, int)]

    worst = []
    for size in (50, 200):
        (ball, mean), (other, other_mean) = curves(False, size), curves(True, size)
        gap, wanted = other / ball - 1, other_mean / mean - 1
        worst.append(np.max(np.abs(ball / mean - 1)))
        assert np.max(np.abs(wanted)) > 1e-4
        np.testing.assert_allclose(gap, wanted, atol=0.2 * np.max(np.abs(wanted)))
    assert worst[1] < 0.35 * worst[0]


@pytest.mark.slow
def test_derivatives_and_jumps():
    clip, steps = jc.HardClip(0.7 * N**0.5), jnp.array([5 * N])

    def last(beta, early, late):
        lr = Jump(early, late, 2 * N)
        curve = jc.solve(BLOCKS, clip, lr, steps=steps, momentum=Jump(beta, 0.8, N))
        return jnp.log(curve.risk[-1])

    at = (jnp.array(0.95), jnp.array(0.05 / N), jnp.array(0.02 / N))
    slopes = jax.jit(jax.grad(last, (0, 1, 2)))(*at)
    value = jax.jit(last)
    for i, slope in enumerate(slopes):
        step = 1e-4 * at[i]
        up, down = (value(*at[:i], at[i] + s * step, *at[i + 1 :]) for s in (1, -1))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-5)
    # The jumps are not stepped over: in pieces it is the same.
    expected = pieces([(N, 0.95, 0.05 / N), (N, 0.8, 0.05 / N), (3 * N, 0.8, 0.02 / N)])
    np.testing.assert_allclose(value(*at), np.log(expected), atol=1e-7)


class Jump(eqx.Module):
    """One number before a step, and another from there on."""

    before: jax.Array | float
    after: jax.Array | float
    step: float

    def __call__(self, k):
        return jnp.where(k < np.ceil(self.step), self.before, self.after)


def pieces(parts):
    """The heavy ball with constants over pieces of whole steps, one after the other."""
    y, now, at = np.concatenate([2 * DIM / N, np.zeros(8)]), 0.0, 0.0
    for length, beta, lr in parts:
        now += length
        end = np.ceil(now) if now < 5 * N else now

        def rhs(t, y, lr=lr, theta=1 - beta):
            a, b, q = y.reshape(3, -1)
            mu, second = laplace(LAM @ a / 2, 0.7)
            da, db = -2 * lr * b, -lr * q - theta * b + mu * LAM * a
            dq = -2 * theta * q + 2 * mu * LAM * b + LAM * DIM * second
            return np.concatenate([da, db, dq])

        how = {"method": "BDF", "rtol": 1e-10, "atol": 1e-13}
        y, at = solve_ivp(rhs, (at, end), y, **how).y[:, -1], end
    return LAM @ y[:4] / 2


@pytest.mark.float32
@pytest.mark.slow
def test_in_float32():
    times = np.array([0.5, 2.0, 10.0])
    clip, steps = jc.HardClip(0.7 * N**0.5), jnp.asarray(N * times)
    risk = jc.solve(BLOCKS, clip, 0.05 / N, steps=steps, momentum=0.9).risk
    assert risk.dtype == jnp.result_type(float)
    # Solved in float64 by scipy, whatever the precision here.
    expected = heavy_ball(0.1 * N, 0.05 * N, 0.7, times)
    np.testing.assert_allclose(risk, expected, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_wide_spectrum_and_nothing_but_risk(beta):
    # 2000 eigenvalues over three decades, compressed; no noise, so that the risk falls
    # by orders of magnitude and every digit is of what is left.
    spectrum = jc.Spectrum.power_law(2000, 1.0)
    problem = jc.LinearModel(spectrum, jc.Gaussian(0.0), np.full(2000, 0.1))
    lr, steps = 0.2 / float(spectrum.trace), np.array([0.0, 100.0, 10000.0, 100000.0])
    how = {"clip": jc.Identity(), "steps": steps}
    risk = jc.solve(problem, lr=lr * (1 - beta), momentum=beta, **how).risk
    sgd = jc.solve(problem, lr=lr, **how).risk
    np.testing.assert_allclose(risk, sgd, rtol=0.1 if beta else 0.2)
    assert risk[-1] < 1e-2 * risk[0]
    # Each eigenvalue's risk without the noise of the samples, which adds a tenth or so.
    lam = np.asarray(spectrum.eigenvalues)
    flow = np.exp(-2 * lr * steps[:, None] * lam) @ lam * 0.1**2 / 2
    assert np.all((risk > 0.999 * flow) & (risk < 1.3 * flow))
    with pytest.raises(RuntimeError, match="grows beyond all bounds"):
        jc.solve(problem, lr=100 * lr * (1 - beta), momentum=beta, **how)
