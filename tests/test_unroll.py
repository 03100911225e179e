"""A window of training that one can differentiate through."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxclip as jc
from helpers import finite_difference

STEPS, BATCH = 11, 4
XS = jr.normal(jr.key(0), (STEPS, BATCH, 3))
YS = jnp.sin(2 * XS[..., 0]) + jr.cauchy(jr.key(1), (STEPS, BATCH))
MODEL = eqx.nn.MLP(3, "scalar", 4, 1, activation=jnp.tanh, key=jr.key(2))


def loss(model, example):
    x, y = example
    return (model(x) - y) ** 2


def mean_loss(model, batch):
    return jnp.mean(jax.vmap(loss, (None, 0))(model, batch))


per_example = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))


def optimiser(clip, lr):
    # A momentum, so that there is a state to keep.
    sgd = optax.sgd(lr, momentum=0.5)
    return optax.chain(jc.as_transform(clip, jc.PerExample()), sgd)


def validation_loss(log_setting, segment=None):
    """After training, as a function of the logarithms of a threshold and a rate."""
    threshold, lr = jnp.exp(log_setting)
    transform = optimiser(jc.HardClip(threshold), lr)
    model, _ = jc.unroll(per_example, MODEL, transform, (XS, YS), segment=segment)
    return mean_loss(model, (XS[0], YS[0]))


SETTING = jnp.log(jnp.array([0.9, 0.05]))


@pytest.fixture(scope="module")
def mixing():
    """optax's own transforms mix precisions."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("mixing")
def test_equals_a_loop():
    transform = optimiser(jc.HardClip(0.9), 0.05)
    model, state = MODEL, transform.init(eqx.filter(MODEL, eqx.is_inexact_array))
    for batch in zip(XS, YS, strict=True):
        updates, state = transform.update(per_example(model, batch), state)
        model = eqx.apply_updates(model, updates)
    ours, final = jc.unroll(per_example, MODEL, transform, (XS, YS))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        *(eqx.filter((m, s), eqx.is_array) for m, s in [(ours, final), (model, state)]),
    )
    assert ours.activation is MODEL.activation


@pytest.mark.usefixtures("mixing")
def test_goes_on_from_a_state():
    transform = optimiser(jc.HardClip(0.9), 0.05)
    whole, _ = jc.unroll(per_example, MODEL, transform, (XS, YS))
    half, state = jc.unroll(per_example, MODEL, transform, (XS[:5], YS[:5]))
    rest = jc.unroll(per_example, half, transform, (XS[5:], YS[5:]), state=state)[0]
    np.testing.assert_allclose(
        rest.layers[0].weight, whole.layers[0].weight, rtol=1e-12
    )


@pytest.fixture(scope="module")
def backward(mixing):
    return jax.jit(jax.value_and_grad(validation_loss))(SETTING)


@pytest.mark.usefixtures("mixing")
def test_both_modes_are_the_finite_difference(backward):
    forward = jax.jit(jax.jacfwd(validation_loss))(SETTING)
    np.testing.assert_allclose(forward, backward[1], rtol=1e-10)
    value = jax.jit(validation_loss)
    for i in range(2):
        along = jnp.zeros(2).at[i].set(1.0)
        slope = finite_difference(lambda t, d=along: value(SETTING + t * d), 0.0, 1e-4)
        np.testing.assert_allclose(forward[i], slope, rtol=1e-7)
        assert abs(slope) > 1e-3


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("segment", [4, 50])
def test_segments_change_nothing(backward, segment):
    found = jax.jit(jax.value_and_grad(lambda s: validation_loss(s, segment)))(SETTING)
    np.testing.assert_allclose(found[0], backward[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], backward[1], rtol=1e-10)


@pytest.mark.usefixtures("mixing")
def test_segments_bound_the_memory():
    batches = jnp.ones((256, 1, 500))

    def memory(segment):
        def end(lr):
            def gradient(x, batch):
                return jnp.tanh(x + batch[0])

            x, _ = jc.unroll(
                gradient, jnp.zeros(500), optax.sgd(lr), batches, segment=segment
            )
            return jnp.sum(x)

        compiled = jax.jit(jax.grad(end)).lower(0.1).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # 16 starts of segments and 16 steps of one, in place of 256 of either.
    assert memory(None) < 0.3 * memory(256)


@pytest.mark.slow
@pytest.mark.usefixtures("mixing")
def test_a_threshold_is_tuned():
    def objective(clip):
        model, _ = jc.unroll(per_example, MODEL, optimiser(clip, 0.05), (XS, YS))
        return mean_loss(model, (XS[0], YS[0]))

    init = jc.HardClip(jc.PiecewiseLinear(0, 0.05))
    best, history = jc.tune(objective, init, steps=12, optimiser=optax.adam(0.4))
    assert jnp.min(history) < 0.95 * history[0]
    assert best.threshold.values[0] > 0.1


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((XS, YS[:3]), r"the same leading axis .*\(3,\), \(11,\)"),
        (XS[:0], "at least 1 steps. Got 0"),
        ((), "the same leading axis"),
        (jnp.zeros(()), "the same leading axis"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_errors(batches, message):
    with pytest.raises(ValueError, match=message):
        jc.unroll(per_example, MODEL, optax.sgd(0.1), batches)


def test_a_segment_has_a_step():
    with pytest.raises(ValueError, match="`segment` must be at least 1"):
        jc.unroll(per_example, MODEL, optax.sgd(0.1), (XS, YS), segment=0)
