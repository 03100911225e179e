"""The motion of noisy gradient descent along the zero-loss set."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.optimize

import jaxclip as jc
from helpers import assert_within, mean_and_error
from jaxclip.limit._solve import own_limit
from jaxclip.limit.zero_loss._sde import limit_map_curvature
from jaxclip.limit.zero_loss._set import zero_loss_set

NONE = jc.Identity()
XS = jnp.array([[0.5, -1.0], [1.5, 0.3]])


def net(w, x):
    """A model without any symmetry, of four parameters."""
    return jnp.sin(w[0] * x[0] + w[1]) * w[2] + w[3] ** 2 * x[1] + 0.3 * w[0] * w[3]


W = jnp.array([0.7, -0.4, 1.1, 0.8])
YS = jax.vmap(net, (None, 0))(W, XS)
LABEL = jc.Interpolation(net, W, XS, YS, jc.inject.Label(jc.Gaussian(1.0)))


solve = eqx.filter_jit(jc.solve)


# The limit map and its derivatives


@pytest.fixture(scope="module")
def differences():
    """First and second derivatives of the limit map, from its values alone."""
    h = 0.02
    pairs = [(i, j) for i in range(4) for j in range(i, 4)]
    eye = np.eye(4)
    shifts = [s * h * (eye[i] + eye[j]) for i, j in pairs for s in (-2, -1, 0, 1, 2)]
    ends = jax.jit(jax.vmap(lambda w: jc.limit.limit_map(LABEL, w)))(
        W[None] + np.array(shifts)
    )
    f = np.asarray(ends).reshape(len(pairs), 5, 4)
    first = (8 * (f[:, 3] - f[:, 1]) - (f[:, 4] - f[:, 0])) / (12 * h)
    second = -f[:, 0] + 16 * f[:, 1] - 30 * f[:, 2] + 16 * f[:, 3] - f[:, 4]
    along = dict(zip(pairs, second / (12 * h**2), strict=True))
    # Along a sum of two directions, from which the mixed derivative follows.
    hess = np.zeros((4, 4, 4))
    for i, j in pairs:
        twice = along[i, j] - (along[i, i] + along[j, j]) / 4
        hess[i, j] = hess[j, i] = along[i, i] / 4 if i == j else twice / 2
    slopes = {i: first[pairs.index((i, i))] / 2 for i in range(4)}
    return np.stack([slopes[i] for i in range(4)], axis=1), hess


def test_the_limit_map_projects(differences):
    manifold, w = zero_loss_set(LABEL)
    projection = jax.vmap(manifold.project, (None, 0), 1)(w, jnp.eye(4))
    np.testing.assert_allclose(differences[0], projection, atol=1e-5)


def test_the_curvature_of_the_limit_map(differences):
    """Each of its entries: normal, mixed and tangent noise alike."""
    manifold, w = zero_loss_set(LABEL)

    def entry(i, j):
        e = jnp.eye(4)
        return limit_map_curvature(
            manifold, w, (jnp.outer(e[i], e[j]) + jnp.outer(e[j], e[i])) / 2
        )

    i, j = np.meshgrid(range(4), range(4), indexing="ij")
    ours = jax.jit(jax.vmap(entry))(i.ravel(), j.ravel()).reshape(4, 4, 4)
    assert np.abs(ours).max() > 0.3
    np.testing.assert_allclose(ours, differences[1], atol=1e-4)


@pytest.mark.parametrize("batch", [None, 1])
def test_label_noise_drifts_by_the_curvature(batch):
    """The drift from the trace of H against that from the full second derivative."""
    problem = jc.Interpolation(
        net, W, XS, YS, jc.inject.Label(jc.Gaussian(1.0), batch_size=batch)
    )
    manifold, w = zero_loss_set(problem)
    assert problem.power == 2

    @jax.jit
    def both(w):
        g = problem.diffusion(w)
        full = limit_map_curvature(manifold, w, g @ g.T) / 2
        return full, manifold.project(w, manifold.drift(w, NONE, 0))

    np.testing.assert_allclose(*both(w), atol=1e-12)


def test_gradient_flow_runs_to_the_limit_map():
    problem = jc.Interpolation(net, W + 0.1, XS, YS, jc.inject.Label(jc.Gaussian(1.0)))
    steps = jnp.array([0.0, 1.0, 3000.0])
    curve = solve(problem, NONE, 0.5, steps=steps, limit=jc.GradientFlow())
    end = jax.jit(jc.limit.limit_map)(problem, W + 0.1)
    np.testing.assert_allclose(curve.params, end, atol=1e-8)
    # A clip slows it down and leaves its path.
    slow = solve(problem, jc.HardClip(1e-3), 0.5, steps=steps, limit=jc.GradientFlow())
    assert slow.risk[1] > curve.risk[1]
    np.testing.assert_allclose(slow.params, curve.params, atol=1e-8)


# Closed forms


def product(w, x):
    return w[0] * w[1] * x


PRODUCT = jnp.array([2.0, 0.5]), jnp.ones(1), jnp.ones(1)


def invariant(w):
    return w[..., 0] ** 2 - w[..., 1] ** 2


def test_the_product_under_label_noise():
    std, lr = 0.7, 0.1
    problem = jc.Interpolation(product, *PRODUCT, jc.inject.Label(jc.Gaussian(std)))
    steps = jnp.linspace(0, 1 / (lr * std) ** 2, 5)
    curve = solve(problem, NONE, lr, steps=steps, limit=jc.ZeroLossFlow())
    np.testing.assert_allclose(curve.params, [1.380070341, 0.724600747], atol=1e-8)
    expected = 3.75 * np.exp(-((lr * std) ** 2) * steps)
    np.testing.assert_allclose(invariant(curve.path), expected, rtol=1e-9)
    assert np.max(curve.risk) < 1e-18


def test_the_product_under_noise_of_its_parameters():
    problem = jc.Interpolation(
        product, *PRODUCT, jc.inject.AntiCorrelated(jc.Gaussian(0.7))
    )
    steps = jnp.linspace(0, 20, 5)
    curve = solve(problem, NONE, 0.1, steps=steps, limit=jc.ZeroLossFlow())
    expected = 3.75 * np.exp(-2 * 0.1 * 0.49 * steps)
    np.testing.assert_allclose(invariant(curve.path), expected, rtol=1e-9)


def circle(w, x, scale):
    return x * jnp.sum(w**2 * scale)


ANGLE = 0.3
CIRCLE = jnp.array([np.cos(ANGLE), np.sin(ANGLE)]), jnp.ones(1), jnp.ones(1)


def test_the_circle_under_dropout():
    problem = jc.Interpolation(
        circle, *CIRCLE, jc.inject.Dropout(jc.noise.Mask(0.8), units=2)
    )
    steps = jnp.linspace(0, 30, 4)
    curve = solve(problem, NONE, 0.1, steps=steps, limit=jc.ZeroLossFlow())
    u, v = curve.path.T
    expected = np.tan(2 * ANGLE) * np.exp(2 * 0.1 * 0.25 * steps)
    np.testing.assert_allclose(np.tan(2 * np.arctan2(v, u)), expected, rtol=1e-9)


# The diagonal network


ROW, COLUMN = np.meshgrid(np.arange(1, 4), np.arange(1, 9), indexing="ij")
X = jnp.asarray(
    np.cos(1.3 * ROW * COLUMN + 0.7 * ROW) + 0.5 * np.sin(0.9 * ROW + 2.1 * COLUMN)
)
Y = X @ jnp.array([0, 1.0, 0, 0, -0.5, 0, 0, 0])
KAPPA = np.sum(np.asarray(X) ** 2, axis=0)


def diagonal(w, x, scale=1.0):
    return jnp.sum(x * w[0] * w[1] * scale)


def _start():
    """Eight Gauss-Newton retractions of a given point, in numpy."""
    j = np.arange(1, 9)
    w = np.concatenate([1 + 0.3 * np.cos(j), 0.2 * np.sin(2 * j)])
    x, y = np.asarray(X), np.asarray(Y)
    for _ in range(8):
        u, v = w[:8], w[8:]
        jacobian = np.concatenate([x * v, x * u], axis=1)
        w = w - np.linalg.pinv(jacobian) @ (x @ (u * v) - y)
    return jnp.asarray(w.reshape(2, 8))


START = _start()
AFTER_3 = [0.921353779, 0.658411039, 0.669053376, 0.641343442, 1.059511382]
AFTER_3 += [1.035204911, 1.114345130, 0.780774370]
RIDGE = [-0.079995624, 0.384176236, -0.533461756, -0.459050740, -0.506814719]
RIDGE += [0.215106839, 0.361536268, -0.131593725]


@pytest.fixture(scope="module")
def labelled():
    problem = jc.Interpolation(diagonal, START, X, Y, jc.inject.Label(jc.Gaussian(1.0)))
    steps = jnp.array([0.0, 1.0, 3.0, 600.0])

    @eqx.filter_jit
    def run(limit):
        return jc.solve(problem, NONE, 1.0, steps=steps, limit=limit)

    return run


def test_the_diagonal_network_under_label_noise(labelled):
    path = labelled(jc.ZeroLossFlow()).path
    np.testing.assert_allclose(path[2][0], AFTER_3, atol=1e-8)
    trace = [np.sum(KAPPA * np.sum(w**2, axis=0)) / 36 for w in np.asarray(path)]
    assert trace[0] == pytest.approx(0.377180511, abs=1e-9)
    assert trace[2] == pytest.approx(0.296011938, abs=1e-9)
    # A_j decays at its own rate, c kappa_j / n with c = 1/n.
    a = np.asarray(path[:, 0] ** 2 - path[:, 1] ** 2)
    expected = a[0] * np.exp(-KAPPA / 9 * np.array([0, 1, 3])[:, None])
    np.testing.assert_allclose(a[:3], expected, atol=1e-9)


def test_label_noise_selects_weighted_l1(labelled):
    beta = np.prod(labelled(jc.ZeroLossFlow()).params, axis=0)
    x, cost = np.asarray(X), np.concatenate([KAPPA, KAPPA])
    best = scipy.optimize.linprog(cost, A_eq=np.concatenate([x, -x], 1), b_eq=Y)
    np.testing.assert_allclose(beta, best.x[:8] - best.x[8:], atol=1e-5)


def test_matrix_free_is_exact(labelled):
    exact, free = labelled(jc.ZeroLossFlow()), labelled(jc.ZeroLossFlow(True))
    np.testing.assert_allclose(free.path[:3], exact.path[:3], atol=1e-9)


def test_dropout_selects_weighted_l2():
    problem = jc.Interpolation(
        diagonal, START, X, Y, jc.inject.Dropout(jc.Gaussian(1.0), units=8)
    )
    steps = jnp.array([0.0, 0.3, 3.0, 300.0])
    curve = solve(problem, NONE, 1.0, steps=steps, limit=jc.ZeroLossFlow())
    a = np.asarray(curve.path[:, 0] ** 2 - curve.path[:, 1] ** 2)
    np.testing.assert_allclose(a, np.broadcast_to(a[0], a.shape), atol=1e-9)
    beta = np.prod(curve.params, axis=0)
    np.testing.assert_allclose(beta, RIDGE, atol=1e-8)
    x = np.asarray(X) / KAPPA
    np.testing.assert_allclose(
        beta, x.T @ np.linalg.solve(x @ np.asarray(X).T, Y), atol=1e-9
    )


# Clips of the residuals, and of the whole gradient


@eqx.filter_jit
def along(problem, clip, w=W):
    """The velocity along the set at a point of it."""
    manifold, _ = zero_loss_set(problem)
    return manifold.project(w, manifold.drift(w, clip, 0))


# The trapezoidal rule, which is exact to rounding for what is smooth and decays.
NODES = np.linspace(-10, 10, 401)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()


def pairs(std):
    """Nodes and weights for two normal numbers."""
    # None of them at 0, where a norm has no derivative.
    nodes, weights = NODES[4::8], WEIGHTS[4::8]
    e = std * np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    return jnp.asarray(e), jnp.outer(weights, weights).ravel() / weights.sum() ** 2


def test_alike_clips_multiply_slow_time():
    """By the second moment over the variance; the first derivative cancels."""
    for threshold, expected in ((1.0, 0.51606), (0.5, 0.18513)):
        problem = jc.Interpolation(
            product,
            *PRODUCT,
            jc.inject.Label(jc.Gaussian(1.0)),
            residual_clip=jc.HardClip(threshold),
        )
        ours, whole = (along(p, NONE, PRODUCT[0]) for p in (problem, _unclipped()))
        np.testing.assert_allclose(ours / whole, expected, atol=5e-6)


@pytest.mark.parametrize(
    "noise",
    [jc.Cauchy(1.0), pytest.param(jc.Gaussian(0.0), marks=pytest.mark.slow)],
)
def test_clipped_noise_needs_no_variance(noise):
    """A(t) = A(0) exp(-lr^2 k E psi^2) under Cauchy noise, by quadrature; and at rest
    without noise."""
    second = scipy.integrate.quad(
        lambda x: 2 * min(x, 0.5) ** 2 / (np.pi * (1 + x**2)), 0, np.inf, epsabs=1e-12
    )[0]
    rate = second if isinstance(noise, jc.Cauchy) else 0.0
    problem = jc.Interpolation(
        product, *PRODUCT, jc.inject.Label(noise), residual_clip=jc.HardClip(0.5)
    )
    curve = solve(problem, NONE, 0.1, steps=jnp.array([300.0]), limit=jc.ZeroLossFlow())
    expected = 3.75 * np.exp(-0.01 * 300 * rate)
    np.testing.assert_allclose(invariant(curve.params), expected, rtol=1e-8)


def _unclipped():
    return jc.Interpolation(product, *PRODUCT, jc.inject.Label(jc.Gaussian(1.0)))


@pytest.mark.slow
def test_unequal_clips_by_the_general_formula():
    """Against the second derivatives of the mean gradient, by quadrature over the
    noise, and scipy's Lyapunov equation."""
    thresholds = jnp.array([0.4, 1.5])
    clip = jc.RootSoftClip(thresholds)
    problem = jc.Interpolation(
        net, W, XS, YS, jc.inject.Label(jc.Gaussian(1.0)), residual_clip=clip
    )
    nodes, weights = jnp.asarray(NODES), jnp.asarray(WEIGHTS)

    def mean_gradient(w):
        r = (problem.residuals(w)[:, None] - nodes[None]) / thresholds[:, None]
        psi = jnp.sum(thresholds[:, None] * r / jnp.sqrt(1 + r**2) * weights[None], 1)
        return psi @ jax.jacobian(problem.residuals)(w) / 2

    j = np.asarray(jax.jacobian(problem.residuals)(W))
    r = np.asarray(nodes)[None] / np.asarray(thresholds)[:, None]
    s2 = (
        np.sum(np.asarray(weights) * r**2 / (1 + r**2), 1) * np.asarray(thresholds) ** 2
    )
    a = np.asarray(jax.jacobian(mean_gradient)(W))
    normal = np.linalg.svd(j, full_matrices=False)[2].T
    sigma = normal.T @ (j.T * s2) @ j @ normal / 4
    inner = scipy.linalg.solve_continuous_lyapunov(normal.T @ a @ normal, sigma)
    v = normal @ inner @ normal.T
    curvature = jax.jit(jax.hessian(mean_gradient))(W)
    manifold, w = zero_loss_set(problem)
    expected = manifold.project(w, -jnp.sum(curvature * v[None], (1, 2)) / 2)
    ours = along(problem, NONE)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)
    # The two ways agree where all thresholds are alike.
    same = [
        eqx.tree_at(lambda p: p.residual_clip.threshold.value, problem, value)
        for value in (jnp.array([0.4, 0.4]), jnp.asarray(0.4))
    ]
    np.testing.assert_allclose(*(along(p, NONE) for p in same), atol=1e-9)


def test_a_clip_of_the_gradient_by_the_general_formula():
    """Against -P D^2 F[V] / 2 with the mean clipped gradient F by quadrature over the
    noise of both labels, all of its second derivatives, and scipy's Lyapunov equation.
    """
    clip = jc.RootSoftClip(0.3)
    e, p = pairs(1.0)

    def clipped(w):
        g = (LABEL.residuals(w)[None] - e) @ jax.jacobian(LABEL.residuals)(w) / 2
        return g * clip.factor(jnp.linalg.norm(g, axis=1), 0)[:, None]

    @jax.jit
    def by_quadrature(w):
        def mean(w):
            return p @ clipped(w)

        g = clipped(w)
        return (
            mean(w),
            jax.jacobian(mean)(w),
            jax.hessian(mean)(w),
            g.T @ (p[:, None] * g),
        )

    f, a, curvature, sigma = map(np.asarray, by_quadrature(W))
    np.testing.assert_allclose(f, 0, atol=1e-12)
    j = np.asarray(jax.jacobian(LABEL.residuals)(W))
    normal = np.linalg.svd(j, full_matrices=False)[2].T
    inner = scipy.linalg.solve_continuous_lyapunov(
        normal.T @ a @ normal, normal.T @ sigma @ normal
    )
    v = normal @ inner @ normal.T
    manifold, w = zero_loss_set(LABEL)
    expected = manifold.project(w, -jnp.sum(curvature * v[None], (1, 2)) / 2)
    ours, whole = along(LABEL, clip), along(LABEL, NONE)
    assert np.abs(expected - whole).max() > 0.3 * np.abs(whole).max()
    np.testing.assert_allclose(ours, expected, atol=0.01 * np.abs(expected).max())


def test_one_example_at_a_time():
    """A clip of its gradient is one of its residual."""
    single = jc.Interpolation(
        net, W, XS, YS, jc.inject.Label(jc.Laplace(1.0), batch_size=1)
    )
    norms = jnp.linalg.norm(jax.jacobian(single.residuals)(W), axis=1)
    inner = jc.Interpolation(
        *(net, W, XS, YS, jc.inject.Label(jc.Laplace(1.0), batch_size=1)),
        residual_clip=jc.HardClip(0.7 / norms),
    )
    np.testing.assert_allclose(
        along(single, jc.HardClip(0.7)), along(inner, NONE), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        along(single, jc.HardClip(1e9)), along(single, NONE), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("whole", [False, True])
def test_a_clip_in_dropout(whole):
    """Against the mean clipped gradient, by quadrature over the noise of both units."""
    std = 1e-3
    clip = jc.RootSoftClip(0.8 * std)
    inner, outer = (NONE, clip) if whole else (clip, NONE)
    problem = jc.Interpolation(
        circle,
        *CIRCLE,
        jc.inject.Dropout(jc.Gaussian(std), units=2),
        residual_clip=inner,
    )
    e, p = pairs(std)

    def step(noise):
        g = problem.gradient(CIRCLE[0], noise)
        return g * outer.factor(jnp.linalg.norm(g), 0)

    mean = p @ jax.jit(jax.vmap(step))(e)
    expected = zero_loss_set(problem)[0].project(CIRCLE[0], -mean)
    ours = along(problem, outer, CIRCLE[0])
    assert np.abs(expected).max() > 0.1 * std**2
    np.testing.assert_allclose(ours, expected, rtol=4e-3)


@pytest.mark.slow
def test_runs_with_a_clip_of_the_gradient():
    """Their mean against the flow, extrapolated from two rates."""
    clip = jc.HardClip(0.3)
    flow = solve(LABEL, clip, 1.0, steps=np.array([1.0]), limit=jc.ZeroLossFlow())
    whole = solve(LABEL, NONE, 1.0, steps=np.array([1.0]), limit=jc.ZeroLossFlow())

    def run(lr, key):
        steps = round(1 / lr**2)
        return jc.simulate(LABEL, clip, lr, steps=steps, every=steps, key=key).params

    keys = jr.split(jr.key(0), 8192)
    ends = [jax.jit(jax.vmap(lambda k, lr=lr: run(lr, k)))(keys) for lr in (0.1, 0.05)]
    mean, error = mean_and_error(2 * ends[1] - ends[0])
    assert np.abs(flow.params - whole.params).max() > 10 * error.max()
    assert_within(mean, error, flow.params)


@pytest.mark.slow
def test_derivatives_of_the_flow():
    """In the rate, the noise and the threshold: the slow time is a product of them."""
    moments = eqx.filter_jit(jc.moments)

    def end(rate, std, threshold):
        problem = jc.Interpolation(
            product,
            *PRODUCT,
            jc.inject.Label(jc.Gaussian(std)),
            residual_clip=jc.HardClip(threshold),
        )
        curve = jc.solve(
            problem, NONE, rate, steps=jnp.array([50.0]), limit=jc.ZeroLossFlow()
        )
        return invariant(curve.params)

    def expected(rate, std, threshold):
        clip, noise = jc.HardClip(threshold), jc.Gaussian(std)
        return 3.75 * jnp.exp(-(rate**2) * 50 * moments(clip, noise, 0.0, 1.0).second)

    at, all_of_them = (jnp.array(0.1), jnp.array(0.7), jnp.array(0.5)), (0, 1, 2)
    theirs = jax.grad(expected, all_of_them)(*at)
    ours = jax.jit(jax.grad(end, all_of_them))(*at)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


# The scales of time, and the diffusion


def test_time_scales():
    noise = jc.Gaussian(0.1)
    anti = jc.Interpolation(net, W, XS, YS, jc.inject.AntiCorrelated(noise))
    langevin = jc.Interpolation(net, W, XS, YS, jc.inject.Langevin(noise))
    connect = jc.Interpolation(product, *PRODUCT, jc.inject.DropConnect(noise))
    problems = [LABEL, anti, langevin, connect]
    scales = [jc.limit.time_scale(problem) for problem in problems]
    assert [scale.power for scale in scales] == [2, 1, 2, 2]
    flow, sde = jc.ZeroLossFlow, jc.ZeroLossSDE
    assert [type(scale.limit) for scale in scales] == [flow, flow, sde, sde]
    assert scales[3].push < 1e-12 and scales[1].push > 1e-3


def test_the_scale_of_time_is_not_read_off_one_point():
    """Where the model starts the regularizer is stationary along the set of w0 w1 = 1,
    and beside it not: noise in the weights does push."""
    problem = jc.Interpolation(
        lambda w, x: w[0] * w[1] * x,
        jnp.ones(2),
        jnp.ones(1),
        jnp.ones(1),
        jc.inject.AntiCorrelated(jc.Gaussian(0.1)),
    )
    manifold, w = zero_loss_set(problem)
    slope = jax.grad(lambda w: problem.regularizer(manifold.unravel(w)))(w)
    np.testing.assert_allclose(manifold.project(w, slope), 0, atol=1e-12)
    scale = jc.limit.time_scale(problem)
    assert scale.power == 1 and scale.push > 1e-3
    assert isinstance(scale.limit, jc.ZeroLossFlow)


def test_the_size_of_the_noise_is_a_clock():
    """A thousandth of the noise and a million times the steps: the same motion, at the
    same cost. A pull towards the set at a pace of its own would be stiff."""

    def end(std, steps):
        label = jc.inject.Label(jc.Gaussian(std))
        problem = jc.Interpolation(net, W, XS, YS, label)
        limit = jc.ZeroLossFlow(max_steps=2000)
        return solve(problem, NONE, 0.1, steps=[0.0, steps], limit=limit).params

    fast, slow = end(1.0, 300.0), end(1e-3, 3e8)
    np.testing.assert_allclose(slow, fast, rtol=1e-8)
    assert np.abs(fast - W).max() > 1e-2


class FirstFactor(jc.inject.AbstractInjection):
    """Noise in the first of the two factors of `product`, as a user would write it."""

    noise: jc.AbstractNoise

    def shape(self, fit):
        return (1,)

    def variance(self, fit):
        return self.noise.variance

    def draw(self, fit, key):
        return self.noise.sample(key, (1,))

    def loss(self, fit, params, noise):
        moved = params + jnp.append(noise, 0.0)
        return jnp.sum(fit.residuals(moved) ** 2) / (2 * fit.size)


class FirstFactorInResiduals(jc.inject.AbstractResidualInjection):
    """The same noise, with all that is known of noise in residuals."""

    noise: jc.AbstractNoise

    def shape(self, fit):
        return (1,)

    def noisy_residuals(self, fit, params, noise):
        return fit.residuals(params + jnp.append(noise, 0.0))


@pytest.mark.parametrize(
    "injection",
    [FirstFactor, pytest.param(FirstFactorInResiduals, marks=pytest.mark.slow)],
)
def test_an_injection_of_a_users_own(injection):
    """On u v = 1 the regularizer is v^2 / 2, so that u' = u / (u^4 + 1) in the slow
    time: u^4 / 4 + log u grows at the rate 1."""
    std, lr, steps = 0.1, 0.02, 1500
    start = jnp.array([0.8, 1.25])
    noise = injection(jc.Gaussian(std))
    problem = jc.Interpolation(product, start, *PRODUCT[1:], noise)
    scale = jc.limit.time_scale(problem)
    assert scale.power == 1 and isinstance(scale.limit, jc.ZeroLossFlow)

    curve = solve(problem, NONE, lr, steps=np.array([steps]), limit=scale.limit)
    u, v = curve.params

    def clock(u):
        return u**4 / 4 + np.log(u)

    assert clock(u) - clock(0.8) == pytest.approx(lr * std**2 * steps, rel=1e-9)
    assert u * v == pytest.approx(1.0, rel=1e-12)

    @jax.jit
    @jax.vmap
    def run(key):
        every = {"steps": steps, "every": steps}
        return jc.simulate(problem, NONE, lr, key=key, **every).params

    # The error of the limit is of the order of the rate and of the variance.
    mean, error = mean_and_error(run(jr.split(jr.key(0), 1024))[:, 0])
    assert u - 0.8 > 0.1
    assert_within(mean, error + 0.002, float(u), power=0.02)


def test_langevin_on_a_circle():
    """Uniform on it, where the Hessian's determinant is constant: Brownian motion."""
    problem = jc.Interpolation(
        lambda w, x: x * jnp.sum(w**2) / 2,
        *(jnp.array([1.0, 0.0]), jnp.ones(1), jnp.full(1, 0.5)),
        jc.inject.Langevin(jc.Gaussian(0.1)),
    )
    steps, lr = np.array([0.0, 400.0, 800.0]), 0.1

    @jax.jit
    def run(key):
        limit = jc.ZeroLossSDE(dt=50.0)
        return jc.solve(problem, NONE, lr, steps=steps, key=key, limit=limit)

    curves = jax.vmap(run)(jr.split(jr.key(0), 2000))
    assert np.max(curves.risk) < 1e-8
    mean, error = mean_and_error(curves.path[:, 1:, 0])
    # E cos(B_t) = exp(-t / 2) with t = lr^2 sigma^2 k; and the scheme's own error.
    expected = np.exp(-((lr * 0.1) ** 2) * steps[1:] / 2)
    assert_within(mean, error + 1e-4, expected, power=0.01)


@pytest.mark.slow
def test_a_problem_has_a_limit_of_its_own():
    steps = np.array([0.0, 20.0])
    ours = jax.jit(lambda: jc.solve(LABEL, NONE, 0.1, steps=steps))()
    theirs = solve(LABEL, NONE, 0.1, steps=steps, limit=jc.ZeroLossFlow())
    np.testing.assert_allclose(ours.params, theirs.params, rtol=1e-9)
    linear = jc.LinearModel(jc.Spectrum.isotropic(4), jc.Gaussian(1.0), jnp.ones(1))
    assert isinstance(own_limit(linear), jc.RiskODE)
    assert isinstance(own_limit(linear.compress(1)), jc.RiskODE)


def test_minibatches_do_not_move():
    problem = jc.Interpolation(net, W, XS, YS, jc.inject.Minibatch())
    steps = np.array([0.0, 50.0, 100.0])
    flow = solve(problem, NONE, 0.1, steps=steps, limit=jc.ZeroLossFlow())
    sgd = jc.simulate(problem, NONE, 0.1, steps=100, key=jr.key(0))
    for curve in (flow, sgd):
        np.testing.assert_allclose(curve.params, W, atol=1e-8)


def test_a_start_off_the_set_is_brought_to_it_and_said():
    problem = jc.Interpolation(product, *PRODUCT, jc.inject.Label(jc.Gaussian(1.0)))
    off = eqx.tree_at(lambda p: p.start, problem, jnp.array([2.0, 1.0]))
    with pytest.warns(UserWarning, match="not on the zero-loss set: its loss is 0.5"):
        curve = jc.solve(off, NONE, 0.1, steps=np.zeros(1), limit=jc.ZeroLossFlow())
    # The flow conserves the difference of the squares.
    assert invariant(curve.params) == pytest.approx(3.0, rel=1e-9)
    assert curve.risk[0] < 1e-28


def test_what_cannot_be_reached_is_an_error_under_jit():
    start = jnp.ones(2)
    problem = _label(lambda w, x: x * jnp.sum(w**2), start, y=-1.0)
    with pytest.raises(RuntimeError, match="able to reach zero loss"):
        jax.block_until_ready(jax.jit(jc.limit.limit_map)(problem, start))


@pytest.mark.slow
def test_an_equinox_network_without_its_jacobian():
    model = eqx.nn.MLP(2, "scalar", 16, 1, jnp.tanh, key=jr.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(arrays, x):
        return eqx.combine(arrays, static)(x)

    ys = jax.vmap(apply, (None, 0))(arrays, XS)
    problem = jc.Interpolation(apply, arrays, XS, ys, jc.inject.Label(jc.Gaussian(1.0)))
    steps = jnp.array([0.0, 100.0])
    runs = [
        solve(problem, NONE, 0.1, steps=steps, limit=jc.ZeroLossFlow(free))
        for free in (False, True)
    ]
    ends = [jax.flatten_util.ravel_pytree(curve.params)[0] for curve in runs]
    start = jax.flatten_util.ravel_pytree(arrays)[0]
    assert jnp.linalg.norm(ends[0] - start) > 0.01
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-9)
    assert jax.tree.structure(runs[1].params) == jax.tree.structure(arrays)


# Schedules


class Table(eqx.Module):
    """A number for each step, as SGD reads it."""

    values: jax.Array

    def __call__(self, step):
        last = len(self.values) - 1
        return self.values[jnp.clip(jnp.floor(step), 0, last).astype(int)]


def _bursts(quiet, loud):
    at = np.arange(100)
    return np.where((at == 37) | ((at >= 60) & (at < 65)), loud, quiet)


_LABEL = pytest.param("label", marks=pytest.mark.slow)


@pytest.mark.parametrize("limit", ["gradient", _LABEL, "weights"])
def test_the_flows_see_every_jump_of_the_rate(limit):
    """They are a flow at a constant rate on another clock."""
    labels = jc.Interpolation(
        net, W + 0.1 * (limit == "gradient"), XS, YS, jc.inject.Label(jc.Gaussian(1.0))
    )
    how, problem, power = {
        "gradient": (jc.GradientFlow(), labels, 1),
        "label": (jc.ZeroLossFlow(), labels, 2),
        "weights": (
            jc.ZeroLossFlow(),
            jc.Interpolation(
                net, W, XS, YS, jc.inject.AntiCorrelated(jc.Gaussian(1.0))
            ),
            1,
        ),
    }[limit]
    rates = _bursts(1e-3, 0.3)
    spent = np.append(0, np.cumsum(rates**power))[[30, 62, 100]]
    ours = solve(
        problem, NONE, Table(jnp.asarray(rates)), steps=[30.0, 62.0, 100], limit=how
    )
    constant = solve(problem, NONE, 1.0, steps=spent, limit=how)
    np.testing.assert_allclose(ours.path, constant.path, rtol=1e-7)
    assert np.abs(ours.path[-1] - ours.path[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["gradient", _LABEL])
def test_the_flows_see_every_jump_of_a_threshold(name):
    """As a run that is stopped at each jump, and goes on with the next threshold."""
    limit = {"gradient": jc.GradientFlow(), "label": jc.ZeroLossFlow()}[name]
    thresholds = _bursts(0.02, 3.0)
    edges = np.flatnonzero(np.diff(thresholds, prepend=0, append=0))
    w = W + 0.1 * (name == "gradient")

    def problem(w):
        return jc.Interpolation(net, w, XS, YS, jc.inject.Label(jc.Gaussian(1.0)))

    rule = jc.HardClip(Table(jnp.asarray(thresholds)))
    ours = solve(problem(w), rule, 0.2, steps=[0.0, 100.0], limit=limit).params
    for start, end in itertools.pairwise(edges):
        rule = jc.HardClip(thresholds[start])
        steps = np.array([0.0, end - start])
        w = solve(problem(w), rule, 0.2, steps=steps, limit=limit).params
    np.testing.assert_allclose(ours, w, rtol=1e-7)
    never = solve(
        problem(W), jc.HardClip(0.02), 0.2, steps=[0.0, 100.0], limit=limit
    ).params
    assert np.abs(ours - never).max() > 1e-3


def test_the_diffusion_sees_every_step_of_the_rate():
    """Its clock in an interval is the sum of the squared rates of the steps in it."""
    problem = jc.Interpolation(
        net, W, XS, YS, jc.inject.AntiCorrelated(jc.Gaussian(1.0))
    )
    rates = _bursts(1e-2, 0.2)
    even = np.sqrt(np.mean(rates.reshape(10, 10) ** 2, axis=1)).repeat(10)
    ours, same, other = (
        jc.solve(
            problem, NONE, Table(jnp.asarray(lr)),
            steps=np.array([30.0, 100.0]), key=jr.key(5), limit=jc.ZeroLossSDE(dt=10.0),
        ).path
        for lr in (rates, even, np.full(100, 1e-2))
    )  # fmt: skip
    np.testing.assert_allclose(ours, same, rtol=1e-12)
    assert np.abs(ours - other).max() > 1e-3


# Errors


def _solve(problem, limit=None, clip=None, key=None):
    limit = jc.ZeroLossFlow() if limit is None else limit
    clip = NONE if clip is None else clip
    return jc.solve(
        problem, clip, 0.1, steps=np.array([0.0, 1.0]), key=key, limit=limit
    )


def _label(model, params, n=1, y=1.0):
    xs = jnp.ones(n, params.dtype)
    return jc.Interpolation(
        model, params, xs, y * xs, jc.inject.Label(jc.Gaussian(1.0))
    )


CLIP = jc.HardClip(1.0)


def _noisy(noise=jc.Gaussian(1.0), batch=None, **kwargs):  # noqa: B008
    return jc.Interpolation(net, W, XS, YS, jc.inject.Label(noise, batch), **kwargs)


def _dropped(noise, clip):
    return jc.Interpolation(
        circle, *CIRCLE, jc.inject.Dropout(noise, units=2), residual_clip=clip
    )


def _gradient_noise():
    return jc.Interpolation(net, W, XS, YS, jc.inject.Langevin(jc.Gaussian(1.0)))


def _twice():
    return _label(lambda w, x: jnp.sum(w) * x, jnp.full(3, 1 / 3), n=2)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _solve(_label(product, jnp.ones(2, jnp.float32))), "jax_enable_x64"),
        (lambda: _solve(_label(product, jnp.ones(2), n=2)), "dimension 0.*2 param"),
        (lambda: _solve(_twice()), "tangent kernel there is singular"),
        (lambda: _solve(_label(lambda w, x: x * jnp.sum(w**2), jnp.ones(2), y=-1.0)),
         "able to reach zero loss"),
        (lambda: _solve(_gradient_noise(), clip=CLIP),
         "`clip` must be Identity.*Langevin"),
        (lambda: _solve(_noisy(jc.Laplace(1.0)), clip=CLIP), "`clip` needs Gaussian"),
        (lambda: _solve(_noisy(residual_clip=CLIP), clip=CLIP), "not both"),
        (lambda: _solve(_noisy(batch=2), clip=CLIP), "`batch_size=1`"),
        (lambda: _solve(_noisy(jc.Exponential(1.0), residual_clip=CLIP)),
         "`noise` must be symmetric"),
        (lambda: _solve(_dropped(jc.noise.Mask(0.5), CLIP)),
         "`residual_clip` needs Gauss"),
        (lambda: _solve(_dropped(jc.Gaussian(0.1), CLIP), limit=jc.ZeroLossSDE(),
                        key=jr.key(0)), "`residual_clip` must be Identity"),
        (lambda: jc.solve(jc.TwoWells(jnp.ones(2)), NONE, 0.1,
                          steps=np.ones(1)), "`limit` must be named"),
        (lambda: jax.jit(lambda p: jc.solve(p, NONE, 0.1, steps=np.ones(1)))(
            LABEL), "`limit` must be named where the problem is traced"),
        (lambda: _solve(jnp.ones(2)),
         "`ZeroLossFlow` needs a problem"),
        (lambda: _solve(LABEL, limit=jc.ZeroLossSDE()), "`key`"),
        (lambda: jc.ZeroLossSDE(dt=0.0), "`dt`"),
    ],
)  # fmt: skip
def test_misuse_is_refused(make, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ValueError, match=message):
            make()
