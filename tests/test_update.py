"""How a step is made of samples: the same words for what runs and what is solved."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc

SPECTRUM = jc.Spectrum(jnp.array([1.0, 0.4]), [3, 5])
PROBLEM = jc.LinearModel(SPECTRUM, jc.Laplace(0.7), jnp.array([1.0, 0.5]))
CLIP = jc.HardClip(1.1)
RUN = {"steps": 24, "every": 8, "key": jr.key(3)}


def falling(k):
    return jnp.where(k > 1, 0.5, 0.9)


def optax_of(momentum, weight_decay):
    """The optimiser that optax's own parts make."""
    links = [jc.as_transform(CLIP)]
    if momentum is not None:
        nesterov = isinstance(momentum, jc.algorithm.Momentum) and momentum.nesterov
        links.append(optax.trace(0.9, nesterov))
    if isinstance(weight_decay, jc.algorithm.WeightDecay):
        links.insert(0, optax.add_decayed_weights(0.3))
    elif weight_decay is not None:
        links.append(optax.add_decayed_weights(0.3))
    return optax.chain(*links, optax.scale_by_learning_rate(0.02))


@pytest.mark.parametrize("decay", [None, 0.3, jc.algorithm.WeightDecay(0.3, True)])
@pytest.mark.parametrize("momentum", [None, 0.9, jc.algorithm.Momentum(0.9, True)])
def test_the_update_is_that_of_optax(momentum, decay):
    problem = jc.FiniteSum(loss, jr.normal(jr.key(0), (16, 2)), jnp.array([1.0, -2]))
    how = {"momentum": momentum, "weight_decay": decay, "engine": jc.Direct()}
    ours = jc.simulate(problem, CLIP, 0.02, batch_size=4, **RUN, **how)
    theirs = jc.train(problem, optax_of(momentum, decay), batch_size=4, **RUN)
    np.testing.assert_allclose(ours.params, theirs.params, rtol=2e-6)
    assert ours.risk[-1] != ours.risk[0]


def loss(params, example):
    return jnp.sum(jnp.cosh(params - example))


def test_a_ridge_is_clipped_with_the_gradient_of_each_sample():
    decay = jc.algorithm.WeightDecay(0.3, clipped=True)
    update = jc.algorithm.Update(4, jc.PerExample(), weight_decay=decay)
    optimiser = update.optimiser(CLIP, jc.Constant(1.0))
    x, grads = jnp.array([3.0, -1.0]), jr.normal(jr.key(1), (4, 2))
    moved, _ = optimiser.update(grads, optimiser.init(x), x)
    ridged = np.asarray(grads) + 0.3 * np.asarray(x)
    norms = np.linalg.norm(ridged, axis=1, keepdims=True)
    expected = np.mean(ridged * np.minimum(1, 1.1 / norms), axis=0)
    np.testing.assert_allclose(moved, -expected, rtol=1e-6)


def test_a_coefficient_may_follow_the_step():
    update = jc.algorithm.Update(momentum=falling)
    optimiser = update.optimiser(jc.Identity(), jc.Constant(1.0))
    x = jnp.ones(2)
    state, m = optimiser.init(x), np.zeros(2)
    for k in range(4):
        g = jnp.array([1.0, -1.0 * k])
        moved, state = optimiser.update(g, state, x)
        m = (0.5 if k > 1 else 0.9) * m + np.asarray(g)
        np.testing.assert_allclose(moved, -m, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_update_keeps_the_precision_of_the_parameters(dtype):
    strong = jnp.asarray(0.9, jnp.float32)
    update = jc.algorithm.Update(momentum=strong, weight_decay=strong)
    optimiser = update.optimiser(CLIP, jc.Constant(0.1))
    x = jnp.ones(3, dtype)
    moved, state = jax.jit(optimiser.update)(x, optimiser.init(x), x)
    assert moved.dtype == dtype
    momenta = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == x.shape]
    assert [leaf.dtype for leaf in momenta] == [dtype]


# Misuse


@pytest.mark.parametrize(
    "named",
    [
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": jc.algorithm.WeightDecay(0.1)},
        {"weight_decay": -1.0},
        {"weight_decay": "strong"},
        {"batch_size": 0},
    ],
)
def test_misuse_is_named(named):
    (name,) = named
    with pytest.raises(ValueError, match=f"`({name}|coefficient)`"):
        jc.algorithm.Update(**named)


@pytest.mark.parametrize("engine", [jc.Blocked(), jc.Lumped()])
def test_engines_refuse_what_they_do_not_know(engine):
    for named in ({"momentum": 0.5}, {"weight_decay": 0.1}):
        (name,) = named
        with pytest.raises(ValueError, match=f"`{name}`.*Direct"):
            jc.simulate(PROBLEM, CLIP, 0.1, engine=engine, **RUN, **named)


@pytest.mark.parametrize("limit", [jc.GradientFlow(), jc.HomogenizedSDE()])
def test_limits_refuse_what_they_have_no_equation_for(limit):
    for named in ({"momentum": 0.5}, {"weight_decay": 0.1}, {"std": True}):
        (name,) = named
        how = {"steps": [1.0], "limit": limit, "key": jr.key(0)}
        with pytest.raises(ValueError, match=f"`{name}"):
            jc.solve(PROBLEM, CLIP, 0.1, **how, **named)
