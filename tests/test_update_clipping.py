"""Clips behind the optimiser: Adafactor's and StableAdamW's, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip as jc

ONE = jc.HardClip(1.0)
SHAPES = {"w": (3, 4), "b": (4,), "s": ()}
PARAMS = {n: jnp.full(shape, 0.5) for n, shape in SHAPES.items()}


def gradients(steps, scale=1.0):
    """Of rising size, so that Adam's second moment lags behind."""
    rng = np.random.default_rng(11)
    sizes = scale * np.exp(np.cumsum(rng.normal(size=steps)))
    return [
        {n: s * rng.normal(size=shape) for n, shape in SHAPES.items()} for s in sizes
    ]


def run(transform, sequence, dtype=float):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    state, update, out = transform.init(params), jax.jit(transform.update), []
    for gradient in sequence:
        gradient = {n: jnp.asarray(g, dtype) for n, g in gradient.items()}
        with jax.numpy_dtype_promotion("standard"):
            value, state = update(gradient, state, params)
        out.append(value)
    return out


def stable_adam(sequence, d=1.0, b1=0.9, b2=0.99, eps=1e-8):
    """As in the authors' code, where the moments are corrected as they are averaged."""
    v = {n: np.zeros(shape) for n, shape in SHAPES.items()}
    u = {n: np.zeros(shape) for n, shape in SHAPES.items()}
    for t, gradient in enumerate(sequence, start=1):
        b1hat = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
        b2hat = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        step, clipped = {}, {}
        for n, g in gradient.items():
            v[n] = b1hat * v[n] + (1 - b1hat) * g
            u[n] = b2hat * u[n] + (1 - b2hat) * g**2
            rms = np.sqrt(np.mean(g**2 / np.maximum(u[n], eps**2)))
            clipped[n] = rms > d
            step[n] = v[n] / (np.sqrt(u[n]) + eps) / max(1.0, rms / d)
        yield step, clipped


@pytest.mark.parametrize("d", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_stable_adam_step_by_step(d, scale):
    """Where epsilon is small, and where it is as large as the gradients."""
    sequence = gradients(30, scale)
    # A leaf that has had no gradient yet.
    sequence[0]["b"] *= 0
    found = run(jc.algorithm.stable_adam(jc.HardClip(d)), sequence)
    acted = 0
    for value, (step, clipped) in zip(found, stable_adam(sequence, d), strict=True):
        for n in SHAPES:
            np.testing.assert_allclose(value[n], step[n], rtol=1e-9)
        acted += sum(clipped.values())
    assert 2 < acted < 80


def test_without_a_clip_it_is_adam():
    sequence = gradients(10)
    transform = jc.algorithm.stable_adam(jc.Identity(), b1=0.8, b2=0.95, eps=1e-3)
    theirs = run(optax.scale_by_adam(0.8, 0.95, 1e-3), sequence)
    for value, expected in zip(run(transform, sequence), theirs, strict=True):
        for n in SHAPES:
            np.testing.assert_allclose(value[n], expected[n], rtol=1e-9)


@pytest.mark.float32
def test_the_whole_of_stable_adamw():
    """With decay and rate, in float32."""
    lr, decay = 2e-3, 0.2
    chain = optax.chain(
        jc.algorithm.stable_adam(ONE),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(lr),
    )
    sequence = gradients(20)
    found = run(chain, sequence, jnp.float32)
    for value, (step, _) in zip(found, stable_adam(sequence), strict=True):
        for n in SHAPES:
            expected = -lr * (step[n] + decay * 0.5)
            np.testing.assert_allclose(value[n], expected, rtol=1e-4, atol=1e-8)


def test_another_rule_and_another_part():
    sequence = gradients(5)
    whole = jc.algorithm.stable_adam(jc.SoftClip(0.7), scope=jc.PerTree())
    plain = run(optax.scale_by_adam(b2=0.99), sequence)
    nu = {n: np.zeros(shape) for n, shape in SHAPES.items()}
    for t, (value, free) in enumerate(
        zip(run(whole, sequence), plain, strict=True), start=1
    ):
        square = 0.0
        for n, g in sequence[t - 1].items():
            nu[n] = 0.99 * nu[n] + 0.01 * g**2
            square += np.sum(g**2 * (1 - 0.99**t) / nu[n])
        for n in SHAPES:
            factor = 0.7 / (0.7 + np.sqrt(square))
            np.testing.assert_allclose(value[n], factor * free[n], rtol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
def test_other_precisions_keep_their_types(dtype):
    gradient = {n: jnp.full(shape, 1e-3, dtype) for n, shape in SHAPES.items()}
    transform = jc.algorithm.stable_adam(ONE)
    kind = lambda leaf: leaf.dtype  # noqa: E731
    state = transform.init(gradient)
    for scale in (1.0, 1e3):
        scaled = jax.tree.map(lambda g, s=scale: g * jnp.asarray(s, dtype), gradient)
        value, new = transform.update(scaled, state)
        assert jax.tree.map(kind, new) == jax.tree.map(kind, state)
        state = new
    # A thousand times as large: the RMS is 10 and the step would be 1.
    for leaf in jax.tree.leaves(value):
        assert leaf.dtype == dtype
        root = np.sqrt((0.01 + 0.99 * 1e-6) / (1 - 0.99**2))
        move = (0.1 + 0.9 * 1e-4) / (1 - 0.9**2) / root
        np.testing.assert_allclose(np.abs(leaf), move * root, rtol=3e-2)


def test_a_bad_traced_number_is_none():
    def out(b2):
        transform = jc.algorithm.stable_adam(ONE, b2=b2)
        return transform.update(PARAMS, transform.init(PARAMS))[0]["w"]

    assert jnp.all(jnp.isnan(jax.jit(out)(1.5)))
    assert jnp.all(jnp.isfinite(jax.jit(out)(0.5)))


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_rule_is_refused():
    with pytest.raises(ValueError, match="`clip` must be a clipping rule"):
        jc.algorithm.stable_adam(1.0)  # pyright: ignore[reportArgumentType]  it is none


# Adafactor


def test_the_root_mean_square_behind_adam():
    ours = optax.chain(
        optax.scale_by_adam(b2=0.99),
        jc.as_transform(jc.HardClip(0.4), jc.transform.PerLeafRMS()),
    )
    theirs = optax.chain(optax.scale_by_adam(b2=0.99), optax.clip_by_block_rms(0.4))
    sequence, acted = gradients(30), 0
    plain = run(optax.scale_by_adam(b2=0.99), sequence)
    for value, expected, free in zip(
        run(ours, sequence), run(theirs, sequence), plain, strict=True
    ):
        for n in SHAPES:
            np.testing.assert_allclose(value[n], expected[n], rtol=1e-12)
            # And the formula as it is printed.
            rms = np.sqrt(np.mean(np.square(free[n])))
            np.testing.assert_allclose(value[n], free[n] / max(1, rms / 0.4))
            acted += rms > 0.4
    assert 3 < acted < 80


def test_adafactor_with_our_clip():
    def adafactor(clip):
        return optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=2),
            clip,
            optax.scale_by_learning_rate(1e-2, flip_sign=False),
            optax.scale_by_param_block_rms(),
            optax.scale(-1.0),
        )

    ours = adafactor(jc.as_transform(jc.HardClip(1.0), jc.transform.PerLeafRMS()))
    whole = optax.adafactor(1e-2, min_dim_size_to_factor=2, clipping_threshold=1.0)
    without = adafactor(optax.identity())
    sequence = gradients(12)
    results = [run(t, sequence) for t in (ours, whole, without)]
    for value, expected, _ in zip(*results, strict=True):
        for n in SHAPES:
            np.testing.assert_allclose(value[n], expected[n], rtol=1e-9)
    differ = [not np.allclose(v["w"], f["w"]) for v, _, f in zip(*results, strict=True)]
    assert 1 < sum(differ) < 12
