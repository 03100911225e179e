"""Noise injected into a loss that can be zero."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc
from helpers import CLIPS, NOISES, OneNoise, assert_within, mean_and_error

STD = 0.3
XS = jnp.array([[0.5, -1.0], [1.5, 0.3]])


def net(w, x):
    """A model without any symmetry, of four parameters."""
    return jnp.sin(w[0] * x[0] + w[1]) * w[2] + w[3] ** 2 * x[1] + 0.3 * w[0] * w[3]


def dropped(w, x, scale):
    return net(w * jnp.concatenate([jnp.ones(2), scale]), x)


W = jnp.array([0.7, -0.4, 1.1, 0.8])
YS = jax.vmap(net, (None, 0))(W, XS)
DATA = (W, XS, YS)
MODELS = {
    "label": jc.Interpolation(net, *DATA, jc.inject.Label(jc.Gaussian(STD))),
    "label, batch": jc.Interpolation(
        net, *DATA, jc.inject.Label(jc.Gaussian(STD), batch_size=3)
    ),
    "dropout": jc.Interpolation(
        dropped, *DATA, jc.inject.Dropout(jc.noise.Mask(1 / (1 + STD**2)), units=2)
    ),
    "connect": jc.Interpolation(net, *DATA, jc.inject.DropConnect(jc.Rademacher(STD))),
    "anti": jc.Interpolation(net, *DATA, jc.inject.AntiCorrelated(jc.Uniform(STD))),
    "langevin": jc.Interpolation(net, *DATA, jc.inject.Langevin(jc.Gaussian(STD))),
    "minibatch": jc.Interpolation(net, *DATA, jc.inject.Minibatch()),
    "general": jc.problem.NoisyLoss(
        lambda w, e: (net(w, XS[0]) * (1 + e[0] * w[1] + e[1]) - YS[0]) ** 2,
        lambda w: net(w, XS[0])[None] - YS[:1],
        W,
        jc.Laplace(STD),
        shape=(2,),
    ),
}
all_models = pytest.mark.parametrize("name", MODELS)


# In these the gradient is linear in the noise: its covariance is known exactly.
@pytest.mark.parametrize("name", ["label", "label, batch", "langevin", "minibatch"])
def test_gradients_have_the_covariance_that_limits_see(name):
    problem = MODELS[name]

    @jax.jit
    def moments(problem):
        examples = jax.vmap(problem.example, (None, 0))(jr.key(1), jnp.arange(20_000))
        gradients = jax.vmap(problem.gradient, (None, 0))(W, examples)
        g = problem.diffusion(W)
        return gradients, problem.variance * (g @ g.T)

    gradients, covariance = moments(problem)
    mean, error = mean_and_error(gradients)
    assert_within(mean, error + 1e-15, np.zeros(4), power=0.05)
    mean, error = mean_and_error(gradients[:, :, None] * gradients[:, None, :])
    assert_within(mean, error + 1e-15, covariance, power=0.1)


@all_models
def test_the_regularizer_is_what_noise_adds_to_the_loss(name):
    problem = MODELS[name]
    w = W + 0.1

    @jax.jit
    def values(problem):
        size = 1e-3
        noise = jax.vmap(jax.grad(problem.loss, 1), (None, 0))
        eye = size * jnp.eye(int(np.prod(problem.shape)))
        up, down = noise(w, eye), noise(w, -eye)
        return problem.regularizer(w), jnp.trace(up - down) / (4 * size)

    ours, difference = values(problem)
    assert ours == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


@all_models
def test_without_noise_it_is_the_loss(name):
    problem = MODELS[name]
    np.testing.assert_allclose(problem.residuals(W), 0, atol=1e-15)
    assert problem.risk(W) < 1e-30
    r = problem.residuals(W + 0.1)
    scale = 1.0 if name == "general" else 1 / 4
    assert problem.risk(W + 0.1) == pytest.approx(float(scale * r @ r), rel=1e-12)


# Exact identities of a step, whatever the noise and the clip


class OneClip(jc.AbstractClip):
    """One rule of a list: all of them under one compilation."""

    index: jax.Array

    def factor(self, norm, step):
        rules = [lambda n, c=clip: c.factor(n, step) for clip in CLIPS.values()]
        return jax.lax.switch(self.index, rules, norm)

    def kinks(self, step):
        return ()


def every_noise_and_clip(make, lr=0.05, steps=40):
    """The parameters at each step, for every noise, clip and clip of residuals."""
    noises = tuple(NOISES.values())

    @jax.jit
    def run(noise, clip, inner):
        problem = make(OneNoise(noise, noises), OneClip(inner))
        curve = jc.simulate(
            problem, OneClip(clip), lr, steps=steps, key=jr.key(7), observe=lambda w: w
        )
        return curve.observed

    cases = np.array([(n, (n + k) % 8, 5 * k % 8) for n in range(12) for k in range(8)])
    return np.asarray(jax.vmap(run)(*jnp.asarray(cases.T)))


def assert_identity(before, after, size, lr):
    """A' = A (1 - a^2 q^2) with q read off the step, to rounding."""
    (u, v), (u1, v1) = before, after
    # The larger factor gives q with the smaller rounding.
    q = np.where(abs(v) > abs(u), (u - u1) / (lr * v), (v - v1) / (lr * u))
    expected = (u**2 - v**2) * (1 - lr**2 * q**2)
    gap = np.abs(u1**2 - v1**2 - expected)
    fine = np.isfinite(gap) & (size < 1e6)
    assert fine.mean() > 0.7
    assert np.all(gap[fine] <= 1e-12 * (1 + size[fine]))


@pytest.mark.parametrize("batch", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_a_step_of_the_product(batch):
    data = jnp.array([2.0, 0.5]), jnp.ones((1, 1)), jnp.ones(1)

    def make(noise, inner):
        def model(w, x):
            return w[0] * w[1] * x[0]

        return jc.Interpolation(
            model, *data, jc.inject.Label(noise, batch_size=batch), residual_clip=inner
        )

    path = every_noise_and_clip(make)
    u, v = path[..., 0], path[..., 1]
    size = u[:, 1:] ** 2 + v[:, 1:] ** 2 + u[:, :-1] ** 2 + v[:, :-1] ** 2
    assert np.abs(u[:, 1:] - u[:, :-1]).max() > 1e-3
    assert_identity((u[:, :-1], v[:, :-1]), (u[:, 1:], v[:, 1:]), size, 0.05)


def test_a_step_of_a_diagonal_network():
    xs = jr.normal(jr.key(0), (3, 5))
    data = 1 + 0.3 * jr.normal(jr.key(1), (2, 5)), xs, jnp.array([0.2, -0.3, 1.0])

    def make(noise, inner):
        def model(w, x):
            return jnp.sum(x * w[0] * w[1])

        return jc.Interpolation(
            model, *data, jc.inject.Label(noise), residual_clip=inner
        )

    u, v = np.moveaxis(every_noise_and_clip(make), -2, 0)
    size = u[:, 1:] ** 2 + v[:, 1:] ** 2 + u[:, :-1] ** 2 + v[:, :-1] ** 2
    assert_identity((u[:, :-1], v[:, :-1]), (u[:, 1:], v[:, 1:]), size, 0.05)


def test_clips_of_single_residuals():
    """A threshold for each residual, of which a batch takes those of its rows."""
    clip = jc.HardClip(jnp.array([0.1, 0.2]))
    whole = jc.Interpolation(
        net, *DATA, jc.inject.Label(jc.Gaussian(STD)), residual_clip=clip
    )
    slopes = jax.vmap(jax.grad(net), (None, 0))(W, XS)
    noise = jnp.array([0.7, -0.9])
    expected = (-0.1 * slopes[0] + 0.2 * slopes[1]) / 2
    np.testing.assert_allclose(whole.gradient(W, noise), expected, rtol=1e-12)
    some = jc.Interpolation(
        net, *DATA, jc.inject.Label(jc.Gaussian(STD), batch_size=1), residual_clip=clip
    )
    picked = some.gradient(W, (jnp.array([1]), jnp.array([-0.9])))
    np.testing.assert_allclose(picked, 0.2 * slopes[1], rtol=1e-12)


def test_the_mask_of_dropout():
    mask = jc.noise.Mask(0.8)
    draws = mask.sample(jr.key(0), (10_000,))
    assert set(np.round(np.unique(draws), 12)) == {-1.0, 0.25}
    mean, error = mean_and_error(draws)
    assert_within(mean, error, 0.0, power=0.03)
    assert mask.variance == pytest.approx(0.25, rel=1e-12)
    law = mask.residual(0.0)
    assert law.expect(lambda r: r**2, ()) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.Interpolation(net, W, XS, YS[:1], jc.inject.Minibatch()),
         "`xs` and `ys`"),
        (lambda: jc.inject.Label(jc.Gaussian(1.0), batch_size=0), "`batch_size`"),
        (lambda: jc.inject.Minibatch(batch_size=0), "`batch_size`"),
        (lambda: jc.Interpolation(net, jnp.arange(4), XS, YS, jc.inject.Minibatch()),
         "floats"),
        (lambda: jc.inject.Dropout(jc.noise.Mask(0.5), units=0), "`units`"),
        (lambda: jc.Interpolation(net, *DATA, jc.Gaussian(1.0)),
         "`injection` must say.*Gaussian"),
        (lambda: jc.Interpolation(net, *DATA, jc.inject.Langevin(jc.Gaussian(1.0)),
                                  residual_clip=jc.HardClip(1.0)),
         "`residual_clip` must be Identity.*Langevin"),
        (lambda: jc.noise.Mask(1.5), "`keep`"),
        (lambda: jc.Interpolation(lambda w, x: x, *DATA,
                                  jc.inject.AntiCorrelated(jc.Gaussian(1.0))).risk(W),
         r"`model`.*\(2, 2\).*\(2,\)"),
        (lambda: jc.problem.NoisyLoss(lambda w, e: w, lambda w: w, W, jc.Gaussian(1.0),
                              shape=(1,)), "must return one number"),
    ],
)  # fmt: skip
def test_misuse_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
