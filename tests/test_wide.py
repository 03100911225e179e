"""Wide networks: their tangent kernel, and gradient descent with a floor on them."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import assert_within, finite_difference

RNG = np.random.default_rng(3)
X = RNG.normal(size=(4, 3))
X *= np.sqrt(3) / np.linalg.norm(X, axis=1, keepdims=True)
Y = np.array([1.0, -1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def network():
    return jc.curvature.WideNetwork([3, 5, 6, 1], key=jr.key(0))


def test_it_is_a_network_in_ntk_scaling(network):
    first, second, last = (np.asarray(w) for w in network.weights)
    hidden = np.tanh(second @ np.tanh(first @ X[0] / 3**0.5) / 5**0.5)
    assert network(jnp.asarray(X[0])) == pytest.approx((last @ hidden)[0] / 6**0.5)
    linear = jc.curvature.WideNetwork([3, 2], key=jr.key(1), activation=jax.nn.relu)
    expected = np.asarray(linear.weights[0]) @ X[1] / 3**0.5
    np.testing.assert_allclose(linear(jnp.asarray(X[1])), expected, rtol=1e-14)


def test_weights_are_standard_normal():
    (weight,) = jc.curvature.WideNetwork([200, 200], key=jr.key(2)).weights
    assert_within(weight.mean(), 1 / 200, 0.0)
    assert_within((weight**2).mean(), 2**0.5 / 200, 1.0, power=0.05)
    one, other = jc.curvature.WideNetwork([4, 4, 4], key=jr.key(3)).weights
    assert not np.any(np.asarray(one) == np.asarray(other))


def test_the_kernel_is_that_of_finite_differences(network):
    """Of the outputs in every single weight."""
    kernel = jax.jit(lambda w: jc.curvature.tangent_kernel(lambda w, x: w(x), w, X))(
        network
    )
    leaves, structure = jax.tree.flatten(network)

    jacobian = []
    for which, leaf in enumerate(leaves):

        def outputs(t, direction, which=which):
            moved = [x + t * direction if i == which else x
                     for i, x in enumerate(leaves)]  # fmt: skip
            return jax.vmap(jax.tree.unflatten(structure, moved))(X)

        for direction in np.eye(leaf.size).reshape(-1, *leaf.shape):
            along = partial(outputs, direction=direction)
            jacobian.append(finite_difference(along, 0.0, 1e-3))
    jacobian = np.stack(jacobian)
    np.testing.assert_allclose(kernel, jacobian.T @ jacobian, atol=1e-8)


def test_a_kernel_of_a_pytree_of_parameters():
    def model(params, x):
        return params["w"] @ x["a"] + 3 * params["b"]

    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    kernel = jc.curvature.tangent_kernel(model, params, {"a": jnp.asarray(X)})
    np.testing.assert_allclose(kernel, X @ X.T + 9, rtol=1e-14)


def test_largest_curvature_is_the_largest_eigenvalue():
    matrix = RNG.normal(size=(4, 4))
    matrix = matrix @ matrix.T

    def loss(params):
        x = jnp.concatenate([params["a"], params["b"]])
        return x @ matrix @ x / 2 + jnp.sum(x)

    params = {"a": jnp.ones(1), "b": jnp.ones(3)}
    curvature = jc.curvature.largest_curvature(
        loss, params, key=jr.key(0), iterations=200
    )
    assert curvature == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-10)


# A quadratic loss, on which everything is known: mu = 0.5 and beta = 2.

CURVATURES = np.array([0.5, 2.0])
DELTA, THRESHOLD, STEPS = 0.25, 0.3, 60


@pytest.fixture(scope="module")
def descent():
    def loss(x, example):
        del example
        return jnp.sum(CURVATURES * x**2) / 2

    problem = jc.FiniteSum(loss, jnp.array([3.0, 2.0]), np.zeros(1))

    def run(delta):
        clip = jc.DeltaClip(THRESHOLD, delta)
        return jc.simulate(problem, clip, 0.5, steps=STEPS, key=jr.key(0),
            observe=lambda x: jc.safe_norm(CURVATURES * x))  # fmt: skip

    return jax.jit(run)


def check(curve, **changes):
    settings = {"clip": jc.DeltaClip(THRESHOLD, DELTA), "lr": 0.5, "mu": 0.5}
    settings |= {"floor": DELTA, "loss": curve.risk, "norm": curve.observed, **changes}
    loss, norm = settings.pop("loss"), settings.pop("norm")
    clip, lr = settings.pop("clip"), settings.pop("lr")
    return jc.curvature.pl_violations(
        jnp.asarray(loss), jnp.asarray(norm), clip, lr, **settings
    )


def counts(violations):
    return tuple(int(x) for x in jax.tree.leaves(violations))


def test_descent_on_a_pl_loss_breaks_nothing(descent):
    curve = descent(DELTA)
    assert counts(check(curve)) == (0, 0, 0, 0)
    # All three regimes were seen.
    regime = np.searchsorted([THRESHOLD, THRESHOLD / DELTA], curve.observed)
    assert set(regime) == {0, 1, 2}


def test_every_violation_is_seen(descent):
    curve = descent(DELTA)
    loss, norm = np.asarray(curve.risk), np.asarray(curve.observed)
    # A gradient that is too small for the loss at one step.
    small = np.where(np.arange(STEPS + 1) == 7, 0.1 * norm, norm)
    assert check(curve, norm=small).inequality == 1
    raised = np.where(np.arange(STEPS + 1) == 7, loss[6] * 1.01, loss)
    assert check(curve, loss=raised).descent == 1
    # With the factor that only the hard clip's absence would give.
    assert check(curve, floor=1.0).rate > 3
    # The path is 3.6 long, and the bound is that for a larger mu.
    assert check(curve, mu=30.0).path > 10
    assert check(curve, mu=30.0).inequality == STEPS + 1
    # A step that should leave less than nothing of the loss: only the start is right.
    assert check(curve, mu=30.0).rate == STEPS


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_run_that_diverged_is_not_one_without_violations(descent, bad):
    """A NaN compares false, so that a count of what is above a bound would miss it."""
    curve = descent(DELTA)
    late = np.arange(STEPS + 1) >= 40
    gone = jax.jit(check)(
        curve,
        loss=jnp.where(late, bad, curve.risk),
        norm=jnp.where(late, bad, curve.observed),
    )
    # From step 40 on: the steps into them, and the paths up to them, for `descent` and
    # `path`, whose last is at the step before the end.
    least = STEPS + 1 - 40
    assert gone.rate == least
    assert gone.descent == least
    assert gone.path == least - 1
    assert gone.inequality == least
    lost = check(curve, loss=np.full(STEPS + 1, bad))
    assert counts(lost) == (STEPS + 1, STEPS, STEPS + 1, STEPS)


@pytest.mark.float32
def test_the_rate_is_right_where_one_step_is_below_rounding():
    """A loss that falls by the guaranteed rate itself, and one by half of it."""
    steps, decay = 20_000, 3.02e-6 if jnp.result_type(float) == jnp.float32 else 1e-13
    share = np.exp(np.log1p(-np.float64(decay)) * np.arange(steps + 1))
    slow = np.exp(np.log1p(-np.float64(decay) / 2) * np.arange(steps + 1))
    keep, late = (
        jc.curvature.pl_violations(
            jnp.asarray(loss, jnp.result_type(float)),
            jnp.ones(steps + 1),
            jc.Identity(),
            1.0,
            mu=decay,
            floor=1.0,
        ).rate
        for loss in (share, slow)
    )
    assert keep == 0
    assert int(late) > 0.9 * steps


def test_with_mu_of_the_path_itself_the_inequality_is_an_identity():
    """Half the smallest eigenvalue at the start can be wrong, and it is for a deep
    linear model $F = u v$ whose target has the other sign: its kernel is $u^2 + v^2$,
    and $u^2 - v^2$ stays what it was."""
    u, v, target, lr, kernels, losses = 1.2, 0.8, -0.5, 0.02, [], []
    for _ in range(300):
        residual = u * v - target
        kernels.append(u**2 + v**2)
        losses.append(residual**2 / 2)
        u, v = u - lr * residual * v, v - lr * residual * u
    kernel, loss = np.array(kernels), np.array(losses)
    assert kernel.min() < 0.4 * kernel[0]
    model = jc.curvature.tangent_kernel(
        lambda w, x: w[0] * w[1] * x, jnp.array([1.2, 0.8]), np.ones(1)
    )
    assert model[0, 0] == pytest.approx(kernel[0])

    def broken(mu):
        norm = jnp.sqrt(jnp.asarray(2 * kernel * loss))
        return jc.curvature.pl_violations(
            jnp.asarray(loss), norm, jc.Identity(), lr, mu=mu, floor=1.0
        ).inequality

    assert broken(kernel.min()) == 0
    assert broken(kernel[0] / 2) == np.sum(kernel < kernel[0] / 2) > 10


def test_steps_below_the_precision_are_left_out():
    loss = np.array([1.0, 0.5, 1e-18, 1e-17])
    norm = np.sqrt(2 * loss)
    curve = jc.Curve(jnp.arange(4), jnp.asarray(loss))
    kept = check(curve, norm=norm, clip=jc.Identity(), lr=0.3, mu=1.0, floor=1.0)
    # From 1e-18 to 1e-17 is rounding, and no violation.
    assert counts(kept)[1] == 0
    larger = check(
        curve, loss=loss * [1, 1, 1e6, 1e6], norm=norm * [1, 1, 1e3, 1e3],
        clip=jc.Identity(), lr=0.3, mu=1.0, floor=1.0,
    )  # fmt: skip
    assert counts(larger)[1] == 1


def test_a_hard_clip_is_above_its_floor_and_has_a_slower_rate(descent):
    curve = descent(0.0)
    floor = jc.curvature.hard_clip_floor(
        curve.risk[0], THRESHOLD, 0.5, curve.step.astype(float), largest=2.0
    )
    assert jnp.all(curve.risk >= floor * (1 - 1e-12))
    assert floor[0] == pytest.approx(float(curve.risk[0]), rel=1e-14)
    # By hand at step 2: the root of 2 L falls by sqrt(2) 0.5 0.3 each step.
    root = np.sqrt(2 * float(curve.risk[0])) - 2 * np.sqrt(2) * 0.15
    assert floor[2] == pytest.approx(root**2 / 2, rel=1e-12)
    assert floor[-1] == 0
    # On the path it has a factor of its own that it never falls below.
    smallest = THRESHOLD / float(curve.observed.max())
    hard = jc.HardClip(THRESHOLD)
    assert counts(check(curve, clip=hard, floor=smallest)) == (0, 0, 0, 0)
    assert check(curve, clip=hard, floor=1.0).rate > 0


@pytest.mark.slow
def test_a_wide_network_keeps_its_kernel():
    """And the wider, the better: the guarantee of delta-GClip rests on that."""

    def drift(width, key):
        network = jc.curvature.WideNetwork([3, width, 1], key=key)

        def loss(network, data):
            return jnp.sum((jax.vmap(network)(data[0]) - data[1]) ** 2) / 2

        problem = jc.FiniteSum(loss, network, (X[None], Y[None]))

        def smallest(w):
            kernel = jc.curvature.tangent_kernel(lambda w, x: w(x), w, X)
            return jnp.linalg.eigvalsh(kernel)[0]

        curve = jc.simulate(problem, jc.DeltaClip(0.1, 0.25), 0.2, steps=200,
            every=100, key=key, observe=smallest)  # fmt: skip
        return jnp.max(jnp.abs(curve.observed / curve.observed[0] - 1)), curve.risk

    keys = jr.split(jr.key(4), 8)
    narrow, wide = (
        jax.jit(jax.vmap(lambda key, m=m: drift(m, key)[0]))(keys) for m in (16, 256)
    )
    assert wide.mean() < narrow.mean() / 2


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.curvature.WideNetwork([3], key=jr.key(0)), r"`sizes`.*\[3\]"),
        (
            lambda: jc.curvature.WideNetwork([3, 0, 1], key=jr.key(0)),
            "`sizes` must be at least",
        ),
        (
            lambda: jc.curvature.largest_curvature(
                jnp.sum, jnp.ones(2), key=jr.key(0), iterations=0
            ),
            "`iterations`",
        ),
        (
            lambda: jc.curvature.pl_violations(
                jnp.ones(3), jnp.ones(2), jc.Identity(), 0.1, mu=1.0, floor=1.0
            ),
            r"\(3,\) and \(2,\)",
        ),
        (
            lambda: jc.curvature.pl_violations(
                jnp.ones(2), jnp.ones(2), jc.Identity(), 0.1, mu=-1e-17, floor=1.0
            ),
            "`mu` must be positive",
        ),
        (
            lambda: jc.curvature.pl_violations(
                jnp.ones(2), jnp.ones(2), jc.Identity(), jnp.nan, mu=1.0, floor=1.0
            ),
            "`lr` must be positive",
        ),
        (
            lambda: jc.curvature.pl_violations(
                jnp.ones(2), jnp.ones(2), jc.Identity(), 0.1, mu=1.0, floor=0.0
            ),
            "`floor` must be positive",
        ),
    ],
)
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
