"""Losses beyond the squared one, their risks and minimisers, and noise on the step."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from jaxtyping import Array
from scipy.integrate import dblquad
from sklearn.linear_model import LogisticRegression

import jaxclip as jc
from helpers import assert_within, finite_difference, mean_and_error

float32 = pytest.mark.float32
Settings: TypeAlias = dict[str, Any]

KEY = jr.key(23)
SPECTRUM = jc.Spectrum([2.0, 0.5, 0.1], [1, 2, 3])
ERROR0 = [1.0, 0.3, 2.0]
NOISE = jc.Exponential(0.7)

LOSSES: dict[str, Any] = {
    "squared": jc.SquaredLoss(),
    "huber": jc.HuberLoss(0.6),
    "pinball": jc.PinballLoss(0.3),
    "logistic": jc.LogisticLoss(),
}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())

rng = np.random.default_rng(8)
X = rng.normal(size=(80, 6)) * np.array([1.5, 1.0, 0.7, 0.5, 0.2, 0.4])
Y = X @ rng.normal(size=6) + rng.standard_t(2.5, size=80)
CLASSES = (rng.uniform(size=80) < scipy.special.expit(Y)).astype(float)


def _targets(loss) -> np.ndarray:
    return CLASSES if isinstance(loss, jc.LogisticLoss) else Y


SYNTHETIC: dict[str, Any] = {
    "squared": jc.LinearModel(SPECTRUM, NOISE, ERROR0),
    "huber": jc.LinearModel(SPECTRUM, NOISE, ERROR0, jc.HuberLoss(0.6)),
    "pinball": jc.LinearModel(SPECTRUM, NOISE, ERROR0, jc.PinballLoss(0.3)),
    "logistic": jc.Logistic(SPECTRUM, [1.0, 0.0, 3.0], [-0.5, 0.7, 0.0]),
}
ROWS: dict[str, Any] = {
    name: jc.Regression(X, _targets(loss), loss=loss) for name, loss in LOSSES.items()
}


class OneOf(jc.problem.AbstractLinear):
    """One of several problems of the same dimension: all through one compilation."""

    index: Array
    problems: tuple[jc.problem.AbstractLinear, ...]

    def _switch(self, method, *arguments):
        branches = [lambda *a, p=p: getattr(p, method)(*a) for p in self.problems]
        return jax.lax.switch(self.index, branches, *arguments)

    def init(self):
        return self._switch("init")

    def example(self, stream, index):
        return self._switch("example", stream, index)

    def slope(self, prediction, target):
        return self._switch("slope", prediction, target)

    def risk(self, params):
        return self._switch("risk", params)


PROBLEMS = (*SYNTHETIC.values(), *ROWS.values())


# The losses

_BY_HAND = {
    "squared": lambda p, y: (p - y) ** 2 / 2,
    "huber": lambda p, y: scipy.special.huber(0.6, p - y),
    "pinball": lambda p, y: np.where(y > p, 0.3 * (y - p), 0.7 * (p - y)),
    "logistic": lambda p, y: np.logaddexp(0, p) - y * p,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_slope(name):
    loss = LOSSES[name]
    prediction = np.linspace(-3.03, 3.01, 40)
    target = np.tile([0.0, 1.0], 20)
    p, y = jnp.asarray(prediction), jnp.asarray(target)
    value = jax.jit(jax.vmap(loss.value))(p, y)
    expected = _BY_HAND[name](prediction, target)
    np.testing.assert_allclose(value, expected, rtol=1e-13, atol=1e-15)
    slope = jax.jit(jax.vmap(loss.slope))(p, y)
    differences = finite_difference(lambda p: _BY_HAND[name](p, target), p, 1e-3)
    np.testing.assert_allclose(slope, differences, rtol=1e-9)


@float32
def test_the_logistic_loss_far_out():
    """Where log(1 + e^p) and y p cancel, or e^p overflows."""
    loss, far = jc.LogisticLoss(), jnp.array([-100.0, 30.0, 60.0])
    ones = jnp.ones(3)
    right = np.asarray(jax.vmap(loss.value)(far, ones))
    np.testing.assert_allclose(right, [100.0, np.exp(-30), np.exp(-60)], rtol=1e-6)
    wrong = jax.vmap(loss.value)(far, 0 * ones)
    np.testing.assert_allclose(wrong, [0, 30, 60], rtol=1e-6, atol=1e-30)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.HuberLoss(0.0), "`threshold` must be positive"),
        (lambda: jc.PinballLoss(1.0), r"`level` must be the level.*Got 1\.0"),
        (lambda: jc.PinballLoss(-0.1), "`level` must be"),
        (
            lambda: jc.LinearModel(SPECTRUM, NOISE, [1.0], jc.HuberLoss(1.0)),
            r"`start` must have one",
        ),
        (lambda: jc.Logistic(SPECTRUM, [1.0, -1.0, 1.0]), "`optimum` must be norms"),
        (lambda: jc.Logistic(SPECTRUM, ERROR0, [1.0]), "`start` must have one"),
        (
            lambda: jc.Logistic(SPECTRUM, ERROR0, [1.0, 0.0, np.inf]),
            "`start` must be finite",
        ),
        (lambda: jc.Regression(X, Y, loss="huber"), "`loss` must be one such as"),
        (
            lambda: jc.Regression(X, 2 * CLASSES - 1, loss=jc.LogisticLoss()),
            r"`y` must be 0 or 1.*from -1 to 1.*take \(y \+ 1\) / 2",
        ),
        (
            lambda: jc.Regression(X, (X[:, 0] > 0) * 1.0, loss=jc.LogisticLoss()),
            "no minimiser on the rows.*where a plane separates",
        ),
        (
            lambda: jax.jit(lambda c: jc.Regression(X, Y, loss=jc.HuberLoss(c)))(1.0),
            "`loss` must be known before tracing",
        ),
        (
            lambda: jc.LinearModel.from_regression(ROWS["huber"]),
            "`regression` must have the squared loss.*Got a HuberLoss",
        ),
        (lambda: jc.stable_lr(ROWS["huber"]), "with the squared loss"),
    ],
)
def test_misuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Streaming problems


@pytest.mark.parametrize("name", ["huber", "pinball"])
def test_the_data_are_those_of_least_squares(name):
    least_squares, problem = SYNTHETIC["squared"], SYNTHETIC[name]
    draw = jax.vmap(lambda p, i: p.example(KEY, i), (None, 0))
    expected, seen = (draw(p, jnp.arange(5)) for p in (least_squares, problem))
    jax.tree.map(np.testing.assert_array_equal, expected, seen)
    np.testing.assert_array_equal(problem.init(), least_squares.init())
    np.testing.assert_array_equal(
        problem.risk(problem.init()), least_squares.risk(problem.init())
    )


def test_every_loss_has_the_same_minimiser():
    """The mean gradient is 0 at x*, with skewed noise too, and not elsewhere."""
    indices = jnp.arange(40_000)

    @jax.jit
    @jax.vmap
    def gradients(which, x):
        problem = OneOf(which, tuple(SYNTHETIC[n] for n in ("huber", "pinball")))
        draw = jax.vmap(problem.example, (None, 0))(KEY, indices)
        return jax.vmap(problem.gradient, (None, 0))(x, draw)

    at = jnp.zeros((2, 6))
    mean, error = mean_and_error(gradients(jnp.arange(2), at), axis=1)
    assert_within(mean, error, 0.0, power=0.05)
    moved, error = mean_and_error(gradients(jnp.arange(2), at.at[:, 0].set(0.5)), 1)
    assert np.all(moved[:, 0] > 20 * error[:, 0])


# The logistic problem


def test_logistic_labels_follow_the_optimum():
    problem = SYNTHETIC["logistic"]
    A, y = jax.jit(jax.vmap(problem.example, (None, 0)))(KEY, jnp.arange(40_000))
    optimum = np.repeat([1.0, 0.0, 3.0 / 3**0.5], [1, 2, 3])
    assert set(np.unique(y)) == {0.0, 1.0}
    residual = np.asarray(y) - scipy.special.expit(np.asarray(A) @ optimum)
    assert_within(*mean_and_error(residual[:, None] * np.asarray(A)), 0.0, power=0.02)
    start = np.repeat([-0.5, 0.7 / 2**0.5, 0.0], [1, 2, 3])
    np.testing.assert_allclose(problem.init(), start, rtol=1e-15)
    np.testing.assert_array_equal(jc.Logistic(SPECTRUM, ERROR0).init(), np.zeros(6))


_POINTS = np.array(
    [
        [1.0, 0.0, 0.0, 3**0.5, 3**0.5, 3**0.5],  # the optimum itself
        [0.9, 0.1, 0.0, 1.7, 1.7, 1.7],
        [-0.5, 0.4, 0.4, 0.0, 0.0, 0.0],
        [-1.0, 0.0, 0.0, -(3**0.5), -(3**0.5), -(3**0.5)],
        [9.0, -4.0, 4.0, 2.0, 0.0, 1.0],
    ]
)


def test_the_logistic_risk_is_the_expected_loss():
    problem = SYNTHETIC["logistic"]
    A, y = jax.jit(jax.vmap(problem.example, (None, 0)))(KEY, jnp.arange(100_000))
    A, y = np.asarray(A), np.asarray(y)
    risk = np.asarray(jax.jit(jax.vmap(problem.risk))(jnp.asarray(_POINTS)))
    assert abs(risk[0]) < 1e-15
    best = _BY_HAND["logistic"](A @ _POINTS[0], y)
    for point, value in zip(_POINTS[1:], risk[1:], strict=True):
        loss = _BY_HAND["logistic"](A @ point, y) - best
        assert_within(*mean_and_error(loss), value, power=0.6 * value)


def _by_quadrature(signal, cross, error):
    """The excess log loss by an integral over both Gaussian variables."""
    slope = cross / signal
    rest = np.sqrt(error - slope * cross)

    def inside(v, u):
        s = np.sqrt(signal) * u
        delta = slope * s + rest * v
        loss = np.logaddexp(0, s + delta) - np.logaddexp(0, s)
        loss -= scipy.special.expit(s) * delta
        return loss * np.exp(-(u**2 + v**2) / 2) / (2 * np.pi)

    return dblquad(inside, -9, 9, -9, 9, epsabs=1e-13, epsrel=1e-10)[0]


@pytest.mark.parametrize(
    ("signal", "cross", "error"),
    [(1.0, 0.3, 0.5), (2.0, -1.9, 2.5), (1.0, -0.5, 3.99), (1.0, -0.5, 4.0)],
)
def test_the_logistic_risk_by_quadrature(signal, cross, error):
    """On both sides of where one formula takes over from the other."""
    size = np.sqrt(error - cross**2 / signal)
    problem = jc.Logistic(jc.Spectrum([1.0, 1.0]), [np.sqrt(signal), 0.0])
    x = jnp.array([np.sqrt(signal) + cross / np.sqrt(signal), size])
    expected = _by_quadrature(signal, cross, error)
    np.testing.assert_allclose(problem.risk(x), expected, rtol=1e-9)


@float32
def test_the_logistic_risk_next_to_the_optimum():
    """There it is a quadratic form, to the relative precision of the parameters."""
    problem = jc.Logistic(jc.Spectrum([1.0, 1.0]), [0.0, 0.0])
    small = jnp.array([3e-4, 4e-4])
    np.testing.assert_allclose(problem.risk(small), (5e-4) ** 2 / 8, rtol=1e-5)
    huge = problem.risk(jnp.array([3e3, 4e3]))
    np.testing.assert_allclose(huge, 5e3 / np.sqrt(2 * np.pi) - np.log(2), rtol=1e-5)
    gradient = jax.grad(problem.risk)(jnp.zeros(2))
    np.testing.assert_array_equal(gradient, [0, 0])


# On rows


@all_losses
def test_the_rows_risk_is_the_excess_loss(loss):
    problem = jc.Regression(X, _targets(loss), loss=loss)
    name = next(n for n, other in LOSSES.items() if other is loss)
    points = np.asarray(problem.optimum) + np.array([[0.0], [0.01], [-0.5]])
    means = [_BY_HAND[name](X @ x, _targets(loss)).mean() for x in points]
    risk = jax.jit(jax.vmap(problem.risk))(jnp.asarray(points))
    np.testing.assert_allclose(risk, np.array(means) - means[0], rtol=1e-9, atol=1e-15)
    assert np.all(np.diff(risk) > 0)


def test_the_minimiser_of_the_huber_loss():
    residual = X @ np.asarray(ROWS["huber"].optimum) - Y
    assert np.mean(np.abs(residual) > 0.6) > 0.3
    np.testing.assert_allclose(X.T @ np.clip(residual, -0.6, 0.6) / 80, 0, atol=1e-10)


def test_the_minimiser_of_the_pinball_loss():
    """Against linear programming."""
    n, d = X.shape
    cost = np.concatenate([np.zeros(2 * d), np.full(n, 0.3), np.full(n, 0.7)])
    equations = np.hstack([X, -X, np.eye(n), -np.eye(n)])
    solved = scipy.optimize.linprog(cost, A_eq=equations, b_eq=Y, bounds=(0, None)).x
    expected = solved[:d] - solved[d : 2 * d]
    np.testing.assert_allclose(ROWS["pinball"].optimum, expected, rtol=1e-9)


def test_the_minimiser_of_the_logistic_loss():
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = fit.fit(X, CLASSES).coef_[0]
    np.testing.assert_allclose(ROWS["logistic"].optimum, expected, rtol=1e-4)
    residual = scipy.special.expit(X @ np.asarray(ROWS["logistic"].optimum)) - CLASSES
    # The search ends where the loss no longer falls by more than rounding.
    np.testing.assert_allclose(X.T @ residual / 80, 0, atol=1e-10)


@float32
def test_the_minimiser_does_not_depend_on_the_precision():
    problem = jc.Regression(X, Y, loss=jc.HuberLoss(0.5))
    residual = X @ np.asarray(problem.optimum, float) - Y
    gradient = X.T @ np.clip(residual, -0.5, 0.5) / 80
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


# One trajectory, whatever the engine

_MEAN, _NOISY = jc.PerExample(), jc.PerExample(noise_std=0.2)


@pytest.mark.parametrize(
    ("scope", "batch_size"),
    [
        (_NOISY, 8),
        # Each is compiled for every loss and both engines.
        *(
            pytest.param(*mode, marks=pytest.mark.slow)
            for mode in (
                *((jc.PerTree(), 1), (jc.PerTree(), 8)),
                *((_MEAN, 1), (_MEAN, 8), (_NOISY, 1)),
            )
        ),
    ],
)
def test_blocked_is_direct(scope, batch_size):
    """For every loss, drawn and on rows, with a schedule of rates."""

    def run(engine):
        def one(index):
            settings: Settings = dict(
                steps=10,
                every=5,
                key=KEY,
                batch_size=batch_size,
                scope=scope,
                engine=engine,
            )
            lr = jc.PiecewiseLinear(np.array([0, 10]), np.array([0.2, 0.05]))
            return jc.simulate(OneOf(index, PROBLEMS), clip, lr, **settings)

        clip = jc.HardClip(1.5)
        return jax.jit(jax.vmap(one))(jnp.arange(len(PROBLEMS)))

    direct, blocked = run(jc.Direct()), run(jc.Blocked(3 * batch_size))
    # The noise is made in single precision, and some compilers round its last digit
    # otherwise in another program.
    noisy = scope is _NOISY
    tolerance = 1e-7 if noisy else 1e-12
    np.testing.assert_allclose(blocked.risk, direct.risk, rtol=tolerance)
    np.testing.assert_allclose(blocked.params, direct.params, atol=tolerance)
    assert len(np.unique(np.asarray(direct.risk[:, -1]))) == len(PROBLEMS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [jc.Blocked(12), jc.Direct()])
def test_gradient_is_the_finite_difference(engine):
    """In the learning rate, the threshold and the size of the noise."""

    def final(index, at):
        lr, threshold, std = at
        return jc.simulate(
            OneOf(index, tuple(SYNTHETIC.values())),
            jc.HardClip(threshold),
            lr,
            steps=5,
            every=5,
            key=KEY,
            engine=engine,
            batch_size=4,
            scope=jc.PerExample(noise_std=std),
        ).risk[-1]

    at, indices = jnp.array([0.15, 0.8, 0.3]), jnp.arange(len(SYNTHETIC))
    gradients = jax.jit(jax.vmap(jax.grad(final, argnums=1), (0, None)))(indices, at)
    values = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))
    expected = finite_difference(
        lambda h: values(indices, at[None, :] + h * jnp.eye(3)), 0.0, 1e-5
    )
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-8)


# Noise on the step


def test_noise_of_the_transform():
    """It is normal, of the size asked for, new at every step and for every leaf."""
    scope = jc.PerExample(noise_std=0.5, key=KEY)
    transform = jc.as_transform(jc.HardClip(1.0), scope)
    updates = {"a": jnp.zeros((2, 4000)), "b": jnp.zeros((2, 4000), jnp.bfloat16)}
    state = transform.init(updates)
    first, state = transform.update(updates, state)
    second, _ = transform.update(updates, state)
    assert first["b"].dtype == jnp.bfloat16
    draws = np.stack(
        [np.asarray(v, float) for f in (first, second) for v in f.values()]
    )
    assert_within(*mean_and_error(draws, axis=1), 0.0)
    assert_within(*mean_and_error(draws**2, axis=1), 0.25, power=0.03)
    correlations = np.corrcoef(draws)[np.triu_indices(4, 1)]
    assert np.all(np.abs(correlations) < 4 / 4000**0.5)
    again, _ = transform.update(updates, transform.init(updates))
    np.testing.assert_array_equal(again["a"], first["a"])


def test_noise_is_added_after_the_reduction():
    updates = jnp.array([[3.0, 4.0], [0.0, 0.5]])
    scope = jc.PerExample(noise_std=0.1, key=KEY)
    transform = jc.as_transform(jc.HardClip(1.0), scope)
    noisy, _ = transform.update(updates, transform.init(updates))
    noise = scope.perturb(jnp.zeros(2), 0)
    np.testing.assert_allclose(noisy - noise, [0.3, 0.65], rtol=1e-12)


def test_noise_adds_to_the_risk_what_theory_says():
    r"""Without clipping the mean of $v_j = \|z_j\|^2 / 2$ is known in any dimension:
    section 1.5 of docs/theory.md, with $\gamma^2 \sigma^2 d_j / 2$ for the noise."""
    lr, std, steps = 0.1, 0.8, 12
    problem = jc.LinearModel(SPECTRUM, jc.Laplace(0.5), ERROR0)

    @jax.jit
    @jax.vmap
    def runs(key):
        scope = jc.PerExample(noise_std=std)
        how: Settings = dict(steps=steps, every=4, key=key, scope=scope)
        return jc.simulate(problem, jc.Identity(), lr, **how).risk

    lam, d = np.array([2.0, 0.5, 0.1]), np.array([1, 2, 3])
    v = np.array(ERROR0) ** 2 / 2
    expected = [lam @ v]
    for _ in range(steps):
        risk = lam @ v
        shrunk = v * (1 - 2 * lr * lam + 2 * lr**2 * lam**2)
        v = shrunk + lr**2 * d * (lam * (2 * risk + 0.25) + std**2) / 2
        expected.append(lam @ v)
    risk = runs(jr.split(KEY, 4000))
    mean, error = mean_and_error(risk[:, 1:])
    added = lr**2 * std**2 * (lam @ d) / 2 * 4
    assert_within(mean, error, expected[4::4], power=added)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jc.PerExample(noise_std=-1.0), "`noise_std` must be non-negative"),
        (lambda: jc.PerExample(key=KEY), "`key` draws the noise.*there is none"),
        (
            lambda: jc.PerExample(noise_std=1.0).perturb(jnp.zeros(2), 0),
            "needs a `key` that draws its noise",
        ),
        (
            lambda: jc.simulate(
                SYNTHETIC["squared"],
                jc.Identity(),
                0.1,
                steps=1,
                key=KEY,
                scope=jc.PerExample(noise_std=1.0, key=KEY),
            ),
            "`scope` must have no `key` of its own",
        ),
    ],
)
def test_misuse_of_noise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.float32
@pytest.mark.parametrize("engine", [jc.Direct(), jc.Blocked()])
def test_the_noise_of_privacy_knows_nothing_of_the_samples(engine):
    """Drawn from a sample's own key it would be its features, bit by bit."""
    dim, steps = 4000, 3
    problem = jc.LinearModel(jc.Spectrum.isotropic(dim), jc.Gaussian(1.0), [1.0])
    key = jr.key(3)
    curve = jc.simulate(
        # A threshold of 0: what is left of a step is its noise.
        *(problem, jc.HardClip(0.0), 1.0),
        **dict(steps=steps, key=key, engine=engine, observe=lambda x: x),
        scope=jc.PerExample(noise_std=1.0),
    )
    noise = np.diff(np.asarray(curve.observed, np.float64), axis=0)
    assert noise.std() == pytest.approx(1.0, rel=0.05)
    stream = problem.stream(key)
    features = jax.vmap(problem.example, (None, 0))(stream, jnp.arange(8))[0]
    rows = np.concatenate([noise, features]) / np.sqrt(dim)
    beside = rows @ rows.T - np.diag(np.sum(rows**2, axis=1))
    # Standard errors of a correlation; the largest of 55.
    assert np.abs(beside).max() * np.sqrt(dim) < 4.5


@pytest.mark.parametrize("loss", [jc.HuberLoss(1.0), jc.PinballLoss(0.5)])
def test_criteria_are_of_the_squared_loss(loss):
    problem = jc.LinearModel(SPECTRUM, NOISE, ERROR0, loss)
    message = (
        "needs a `LinearModel` with the squared loss. Got a (Huber|Pinball)Loss; le"
    )
    for use in (
        lambda: jc.max_ccc(problem, 0.1, steps=10),
        lambda: jc.ceiling(problem, 0.1, steps=[0.0, 1.0]),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match=r"`problem` must be .* with the squared loss"):
        jc.stable_lr(problem)
