"""The motion along a zero-loss set under Adam."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc
from helpers import finite_difference, mean_and_error

LABEL = jc.inject.Label(jc.Gaussian(0.3))
NONE = jc.Identity()


def product(w, x):
    return w[0] * w[1] * x


def diagonal(w, x):
    u, v = jnp.split(w, 2)
    return jnp.dot(u * v, x)


HYPERBOLA = jc.Interpolation(
    product, jnp.array([2.0, 0.5]), jnp.ones(1), jnp.ones(1), LABEL
)
X = jnp.array([[1.0, 0.8, 0.6, 1.2]])


def network(beta, spread, std=0.2):
    """The diagonal network on one row, that starts at `u v = beta`."""
    beta, spread = jnp.asarray(beta), jnp.asarray(spread)
    start = jnp.concatenate([jnp.sqrt(beta) * spread, jnp.sqrt(beta) / spread])
    label = jc.inject.Label(jc.Gaussian(std))
    return jc.Interpolation(diagonal, start, X, X @ beta, label)


def adam(problem, lr, steps, **how):
    limit = jc.limit.AdamZeroLossFlow(**how)
    return jc.solve(problem, NONE, lr, steps=jnp.asarray(steps, float), limit=limit)


def trained(problem, lr, b2, steps, key):
    """The ends of 64 runs."""

    def one(key):
        optimiser = optax.adam(lr, b2=b2)
        how = {"steps": steps, "every": steps, "key": key}
        return jc.train(problem, optimiser, **how).params

    # optax mixes types.
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(jax.jit(jax.vmap(one))(jr.split(key, 64)))


def test_the_hyperbola_has_a_closed_form():
    """`u - v` decays as `exp(-lr^2 k / 2)` where the squares are settled, whatever the
    noise: here they forget within 100 of 10^6 steps."""
    k = np.array([0.0, 3e5, 1e6])
    for std in (0.3, 3.0):
        label = jc.inject.Label(jc.Gaussian(std))
        problem = jc.Interpolation(
            product, jnp.array([2.0, 0.5]), jnp.ones(1), jnp.ones(1), label
        )
        path = adam(problem, 1e-3, k, b2=0.99, eps=0.0).path
        expected = 1.5 * np.exp(-1e-6 * k / 2)
        np.testing.assert_allclose(path[:, 0] - path[:, 1], expected, rtol=2e-4)
        np.testing.assert_allclose(path[:, 0] * path[:, 1], 1, rtol=1e-8)


def test_squares_that_forget_slowly_hold_the_motion_up():
    """With `1 - b2` of the order of `lr^2` they are those of where the parameters were.
    On the slow time it is a system of two numbers: `d = u - v` and the squares of the
    two gradients, `sigma^2 v^2` and `sigma^2 u^2`; here solved by small Euler steps."""
    lr, c, end, std = 0.01, 3.0, 1.0, 0.3
    u, v = 2.0, 0.5
    squares, count = np.array([v**2, u**2]), 40_000
    for i in range(count):
        # In slow time t = lr^2 k; the label's noise is left out of the squares.
        share = c / -np.expm1(-c * (i * end / count + lr**2))
        a, b = 1 / np.sqrt(squares)
        # Of A grad sum_j A_j G_jj^2 the part along the set, in the metric of A.
        push = np.array([a * 2 * u * b, b * 2 * v * a]) / 4
        normal, row = np.array([a * v, b * u]), np.array([v, u])
        push -= normal * (row @ push) / (row @ normal)
        squares = squares + end / count * share * (np.array([v**2, u**2]) - squares)
        u, v = np.array([u, v]) - end / count * push
    b2 = 1 - c * lr**2
    curve = adam(HYPERBOLA, lr, [0.0, end / lr**2], b2=b2, eps=0.0)
    np.testing.assert_allclose(curve.params, [u, v], rtol=1e-4)
    np.testing.assert_allclose(curve.reduced, std**2 * squares, rtol=1e-3)
    settled = 1.5 * np.exp(-end / 2)
    assert curve.params[0] - curve.params[1] > 1.005 * settled


@pytest.mark.optimised
def test_runs_of_adam_approach_it():
    """The mean of 64 runs of `optax.adam` on the diagonal network, at two rates: what
    is left of the error halves with the rate, and vanishes."""
    problem = network([0.6, 0.3, 0.4, 0.35], [1.6, 0.7, 1.2, 0.9])
    lrs, means, errors, flows = (0.02, 0.01), [], [], []
    for lr in lrs:
        steps, b2 = round(0.3 / lr**2), 1 - 4 * lr**2
        ends = trained(problem, lr, b2, steps, jr.key(0))
        u, v = np.split(ends, 2, axis=1)
        # Along the set: the difference of the two, which noise hardly moves.
        mean, error = mean_and_error(u - v)
        end = adam(problem, lr, [0.0, steps], b2=b2).params
        flows.append(np.asarray(end[:4] - end[4:]))
        means.append(mean)
        errors.append(error)
    np.testing.assert_allclose(flows[0], flows[1], rtol=1e-2)
    limit = 2 * means[1] - means[0]
    slack = 4 * np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    assert np.all(np.abs(limit - flows[1]) < slack + 0.01)
    start = problem.init()
    moved = flows[1] - np.asarray(start[:4] - start[4:])
    assert np.abs(moved).max() > 10 * slack.max()


def test_the_end_on_a_diagonal_network_is_sparse():
    """The least weighted `l_{1/2}` norm of the solutions is at a vertex, where label
    noise without Adam ends in the least `l_1` norm: here they differ."""
    beta = np.array([0.3, 0.3, 0.3, 0.8])
    problem = network(beta, np.full(4, 1.05))
    x, y = np.asarray(X[0]), float(X[0] @ beta)
    path = adam(problem, 0.01, np.linspace(0, 4e4, 9), b2=0.99, eps=3e-3).path
    found = np.asarray(path[:, :4] * path[:, 4:])
    np.testing.assert_allclose(found @ x, y, rtol=1e-8)
    norms = np.sum(np.sqrt(x[None] * np.abs(found)), axis=1)
    assert np.all(np.diff(norms) < 1e-6)
    end, vertex = found[-1], np.array([0, 0, 0, y / x[3]])
    np.testing.assert_allclose(end, vertex, atol=2e-3)
    sgd = jc.solve(
        problem, NONE, 0.01, steps=jnp.array([4e4]), limit=jc.ZeroLossFlow()
    ).params
    assert np.count_nonzero(np.asarray(sgd[:4] * sgd[4:]) > 0.05) > 1


@pytest.mark.optimised
def test_noise_on_the_faster_scale_is_followed_too():
    """The slope of a regularizer in the metric of Adam, against runs."""
    problem = jc.Interpolation(
        weighted,
        jnp.array([1.5, 0.2, 0.5]),
        jnp.ones(1),
        jnp.asarray([1.5 * 0.2 + 0.25]),
        jc.inject.DropConnect(jc.Rademacher(0.03)),
    )
    # Runs are off by the rate over the noise's size, and by the square of that size.
    lr, steps, b2 = 3e-5, 30_000, 0.9998
    flow = adam(problem, lr, [0.0, steps], b2=b2)

    mean, error = mean_and_error(trained(problem, lr, b2, steps, jr.key(1)))
    moved = np.abs(np.asarray(flow.params - flow.path[0]))
    assert np.all(np.abs(mean - flow.params) < 4 * error + 0.1 * moved.max())
    assert moved.max() > 20 * error.max()


def weighted(w, x):
    return (w[0] * w[1] + w[2] ** 2) * x


def test_matrix_free_and_derivatives():
    exact = adam(HYPERBOLA, 0.01, [0.0, 2e3]).params
    free = adam(HYPERBOLA, 0.01, [0.0, 2e3], matrix_free=True).params
    np.testing.assert_allclose(free, exact, rtol=1e-8)

    @jax.jit
    def end(lr):
        return adam(HYPERBOLA, lr, [0.0, 2e3], max_steps=64).params[0]

    expected = finite_difference(end, 0.01, 1e-5)
    assert float(jax.grad(end)(0.01)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": jc.HardClip(1.0)}, "`clip` must be Identity"),
        ({"momentum": 0.9}, "no equation for this `momentum`"),
        ({"start": jnp.array([2.0, 0.6])}, "must start on its zero-loss set"),
        ({"start": jnp.ones(2, jnp.float32)}, "jax_enable_x64"),
        ({"residual_clip": jc.HardClip(1.0)}, "`residual_clip` must be Identity"),
    ],
)
def test_what_it_does_not_know_is_refused(change, message):
    start = change.pop("start", jnp.array([2.0, 0.5]))
    inner = change.pop("residual_clip", NONE)
    problem = jc.Interpolation(
        product, start, jnp.ones(1), jnp.ones(1), LABEL, residual_clip=inner
    )
    how = {"clip": NONE, "lr": 0.1, "steps": [1.0]} | change
    with pytest.raises(Exception, match=message):
        jc.solve(problem, limit=jc.limit.AdamZeroLossFlow(), **how)
    with pytest.raises(ValueError, match="`b2` must"):
        jc.limit.AdamZeroLossFlow(b2=1.5)
