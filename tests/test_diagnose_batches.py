"""The clip of a batch, of each example, and with noise, side by side."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

import jaxclip as jc
from helpers import assert_within, mean_and_error


def squared_error(x, example):
    features, label = example
    return (features @ x - label) ** 2 / 2


HEAVY = jc.Contaminated(0.3, 5.0, 0.1)


def least_squares(noise, key, dim, size):
    """Examples, at a point of excess risk one half."""
    features, labels = jr.split(key)
    rows = jr.normal(features, (size, dim))
    return jnp.full(dim, dim**-0.5), (rows, noise.sample(labels, (size,)))


# The theory of section 1.7 of docs/theory.md


def batch_clip(kappa, batch_size):
    """`mu` and `nu` of the clip of a batch, for Gaussian residuals in many dimensions,
    at a threshold of `kappa` root mean squares of the batch's norm."""
    q, half = kappa**2 * batch_size, batch_size / 2
    tail = sp.gammaincc(half - 0.5, q / 2) * sp.gamma(half - 0.5) / sp.gamma(half)
    mu = st.chi2.cdf(q, batch_size) + (1 - 1 / batch_size) * (q / 2) ** 0.5 * tail
    nu = st.chi2.cdf(q, batch_size + 2) + kappa**2 * st.chi2.sf(q, batch_size)
    return mu, nu


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_clip_of_a_batch_has_its_closed_form(batch_size):
    dim, size, kappas = 600, 16_000, np.array([0.5, 0.9, 1.2])
    x, batch = least_squares(jc.Gaussian(1.0), jr.key(0), dim, size)
    # The residual's variance is 2, one half each of the error and the noise.
    thresholds = kappas * (2 * dim / batch_size) ** 0.5
    found = jc.diagnose(
        squared_error,
        x,
        batch,
        thresholds=thresholds,
        batch_size=batch_size,
        group=batch_size,
    )
    mu, nu = batch_clip(kappas, batch_size)
    # What a finite dimension changes is of the order of the signal over the noise.
    finite = batch_size / dim
    assert_within(found.mu.value, found.mu.error + finite, mu, power=0.15)
    assert_within(found.nu.value, found.nu.error + finite, nu, power=0.1)
    ccc = found.ccc.error + finite
    assert_within(found.ccc.value, ccc, mu**2 / nu, power=0.15)
    # Another number of examples would be seen.
    apart = np.abs(nu - batch_clip(kappas, 2 * batch_size)[1])
    assert np.max(apart / (found.nu.error + finite)) > 4


DIM = 60


@pytest.fixture(scope="module")
def heavy():
    """For each batch size: the clip of examples, and of batches."""
    x, batch = least_squares(HEAVY, jr.key(1), DIM, 16_384)
    sizes = [1, 4, 16, 64]
    return {
        size: jc.diagnose(squared_error, x, batch, batch_size=size) for size in sizes
    }


def test_the_criterion_of_examples_in_a_batch(heavy):
    """From `mu` and `nu` of one example, and the share of the signal in its square."""
    variance = float(HEAVY.variance)
    share = 1 / (DIM + 2 + variance * DIM)
    for size, found in heavy.items():
        one = jax.vmap(lambda c: jc.moments(jc.HardClip(c), HEAVY, 0.5, DIM**0.5).ccc)(
            found.thresholds
        )
        expected = (1 + (size - 1) * share) / (1 / one + (size - 1) * share)
        value, error = (np.asarray(number) for number in found.ccc)
        # Finite size is of order 1 / DIM.
        relative = error / value + 0.01
        assert_within(np.log(value), relative, np.log(expected), power=0.3)
    # The batches make a difference that is seen.
    assert np.max(heavy[1].ccc.value) > 1.2 * np.max(heavy[64].ccc.value)


def test_the_best_threshold_for_examples_is_that_of_any_batch(heavy):
    place = int(np.argmax(heavy[1].ccc.value))
    for found in heavy.values():
        np.testing.assert_array_equal(found.thresholds, heavy[1].thresholds)
        assert found.ccc.value[place] > 0.99 * np.max(found.ccc.value)
        # Where it is flat any threshold would do.
        assert np.ptp(found.ccc.value) > 0.2


def test_batches_gain_less_the_larger_they_are(heavy):
    assert heavy[1].batch is None and heavy[1].advantage is None
    per_batch = [np.max(heavy[size].batch.ccc.value) for size in (4, 16, 64)]
    assert per_batch[0] > per_batch[1] > per_batch[2]
    assert heavy[4].batch.helps and per_batch[0] > 1.4 and per_batch[2] < 1.15
    for size in (4, 16, 64):
        found = heavy[size]
        assert found.helps and found.advantage.value > 2 * found.advantage.error
        best = np.max(found.ccc.value) / np.max(found.batch.ccc.value)
        np.testing.assert_allclose(found.advantage.value, np.log(best), rtol=1e-10)


def test_both_are_against_the_same_step(heavy):
    """The second moment of the unclipped mean, from examples and from batches."""
    for size in (4, 16, 64):
        found, batch = heavy[size], heavy[size].batch
        assert found.batch_size == batch.batch_size == batch.group == size
        assert batch.norms.shape == (16_384 // size,)
        # From all pairs, and from the batches alone.
        moment = found.signal.value * (1 + found.noise_scale.value / size)
        direct, error = mean_and_error(np.asarray(batch.norms) ** 2)
        assert_within(moment, error, direct, power=0.3 * direct)
        ours, theirs = found.noise_scale, batch.noise_scale
        np.testing.assert_allclose(ours.value, theirs.value, rtol=0.1)


def test_too_few_batches_are_not_judged():
    x, batch = least_squares(HEAVY, jr.key(1), 4, 63)
    assert jc.diagnose(squared_error, x, batch, batch_size=8).batch is None
    assert jc.diagnose(squared_error, x, batch, batch_size=7).batch is not None
    assert jc.diagnose(squared_error, x, batch, batch_size=7, group=1).batch is None


# The error of the comparison


@pytest.mark.parametrize("judged", [False, True])
def test_the_error_of_the_comparison(judged):
    def found(key):
        ours, theirs = jr.split(key)
        # With examples that fill no batch.
        x, batch = least_squares(HEAVY, ours, 10, 350)
        target = least_squares(HEAVY, theirs, 10, 200)[1] if judged else None
        return jc.diagnose(squared_error, x, batch, target=target, batch_size=4)

    runs = jax.jit(lambda keys: jax.lax.map(found, keys))(jr.split(jr.key(2), 200))
    value, error = map(np.asarray, runs.advantage)
    scatter = np.std(value)
    assert np.mean(error) == pytest.approx(scatter, rel=0.25)
    # Of two independent estimates the difference would have a larger error.
    best = jax.vmap(lambda d: d.ccc.error[d._best] / d.ccc.value[d._best])
    apart = np.hypot(best(runs), best(runs.batch))
    assert np.mean(apart) > 1.3 * scatter


# The noise of DP-SGD


def test_the_noise_is_that_of_a_private_step():
    """Against steps that are taken, through the noise of `PerExample`."""
    dim, size, z, threshold = 30, 8, 0.8, 6.0
    x, batch = least_squares(HEAVY, jr.key(3), dim, 40_000)
    found = jc.diagnose(
        squared_error,
        x,
        batch,
        thresholds=np.array([threshold]),
        batch_size=size,
        noise_multiplier=z,
    )
    assert found.batch is None and found.noise_multiplier == z
    batches = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), batch)

    def squares(key, batch):
        how = jc.PerExample("sum", noise_std=z * threshold, key=key)
        private = jc.clipped_grad(squared_error, jc.HardClip(threshold), how)
        plain = jc.clipped_grad(
            squared_error, jc.HardClip(jnp.inf), jc.PerExample("sum")
        )
        private, plain = private(x, batch, step=0), plain(x, batch)
        return jnp.sum(private**2), jnp.sum(plain**2)

    keys = jr.split(jr.key(4), len(batches[1]))
    private, plain = jax.jit(jax.vmap(squares))(keys, batches)
    ratio = np.mean(private) / np.mean(plain)
    error = np.std(private / np.mean(private) - plain / np.mean(plain))
    error *= ratio / len(keys) ** 0.5
    assert_within(found.nu.value[0], error, ratio, power=0.1 * ratio)
    # Noise of the threshold of half the size would be seen.
    noise = (z * threshold) ** 2 * dim / np.mean(plain)
    assert 0.25 * noise > 8 * error


def test_noise_moves_nothing_but_nu():
    x, batch = least_squares(HEAVY, jr.key(3), 30, 400)
    private = jax.jit(
        lambda z: jc.diagnose(squared_error, x, batch, batch_size=8, noise_multiplier=z)
    )
    plain = jc.diagnose(squared_error, x, batch, batch_size=8, group=1)
    silent, loud = private(0.0), private(1.5)
    assert silent.batch is loud.batch is None
    for name in ("mu", "nu", "ccc"):
        ours, theirs = getattr(silent, name), getattr(plain, name)
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-9)
        np.testing.assert_allclose(ours.error, theirs.error, rtol=1e-9)
    np.testing.assert_allclose(loud.mu.value, plain.mu.value, rtol=1e-9)
    np.testing.assert_allclose(loud.noise_scale, plain.noise_scale, rtol=1e-9)
    added = np.asarray(loud.nu.value - plain.nu.value)
    square = np.asarray(loud.thresholds) ** 2
    np.testing.assert_allclose(added / square, added[0] / square[0], rtol=1e-9)
    # More noise asks for a smaller threshold.
    assert loud.threshold < plain.threshold and not loud.helps
    words = str(loud)
    assert words.startswith("With noise of 1.5 times the threshold")
    assert "against one with neither" in words and "helps" not in words


def test_complex_numbers_are_two_numbers():
    def loss(params, example):
        return squared_error(jnp.concatenate([params["r"], params["i"]]), example)

    def complex_loss(params, example):
        c = params["c"]
        return loss({"r": c.real, "i": c.imag}, example)

    x, batch = least_squares(HEAVY, jr.key(5), 6, 80)
    how = {"batch_size": 4, "noise_multiplier": 1.0}
    real = jc.diagnose(loss, {"r": x[:3], "i": x[3:]}, batch, **how)
    found = jc.diagnose(complex_loss, {"c": x[:3] + 1j * x[3:]}, batch, **how)
    np.testing.assert_allclose(found.ccc.value, real.ccc.value, rtol=1e-9)
    grouped = jc.diagnose(complex_loss, {"c": x[:3] + 1j * x[3:]}, batch, batch_size=4)
    real = jc.diagnose(loss, {"r": x[:3], "i": x[3:]}, batch, batch_size=4)
    np.testing.assert_allclose(grouped.batch.ccc.value, real.batch.ccc.value, rtol=1e-9)


# Precision and scale


def single(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@pytest.mark.parametrize("power", [-66, 60])
def test_at_any_scale(power):
    """Gradients of 1e-20 and of 1e18, whose squares float32 does not hold."""
    x, batch = single(least_squares(HEAVY, jr.key(6), 20, 512))

    def found(scale):
        def loss(x, example):
            return jnp.float32(scale) * squared_error(x, example)

        return jc.diagnose(loss, x, batch, batch_size=4), jc.diagnose(
            loss, x, batch, batch_size=4, noise_multiplier=1.0
        )

    scale = 2.0**power
    for ours, one in zip(found(scale), found(1.0), strict=True):
        assert ours.ccc.value.dtype == jnp.float32
        assert one.helps == ours.helps
        for part, other in [(ours, one), (ours.batch, one.batch)]:
            if other is None:
                continue
            np.testing.assert_allclose(part.threshold, scale * other.threshold, 1e-4)
            np.testing.assert_allclose(part.ccc.value, other.ccc.value, 1e-4)
            np.testing.assert_allclose(part.ccc.error, other.ccc.error, 1e-3)
            np.testing.assert_allclose(part.noise_scale, other.noise_scale, 1e-4)
        # As is what depends on the signal alone.
        assert str(ours)[:20] == str(one)[:20]
        assert f"{one.signal.value * scale**2:.2g}"[:3] in str(ours)


def test_parameters_of_half_precision():
    x, batch = single(least_squares(HEAVY, jr.key(7), 20, 512))

    def loss(x, example):
        return squared_error(x.astype(jnp.float32), example)

    wide = jc.diagnose(loss, x, batch, batch_size=4)
    half = jc.diagnose(loss, x.astype(jnp.bfloat16), batch, batch_size=4)
    for ours, reference in [(half, wide), (half.batch, wide.batch)]:
        assert ours.ccc.value.dtype == ours.norms.dtype == jnp.float32
        np.testing.assert_allclose(ours.norms, reference.norms, rtol=0.02)
        np.testing.assert_allclose(ours.ccc.value, reference.ccc.value, rtol=0.02)


def test_a_group_is_a_mean_where_the_loss_is_of_half_precision():
    """A weight of one third, in bfloat16, would make it 0.2 % too large."""

    def loss(x, example):
        return jnp.vdot(x, example).astype(jnp.bfloat16)

    x, batch, threshold = jnp.ones(2), jnp.ones((24, 2)), np.array([1.0])
    how = {"batch_size": 3, "group": 3}
    found = jc.diagnose(loss, x, batch, thresholds=threshold, **how)
    np.testing.assert_allclose(found.norms, 2**0.5, rtol=1e-6)


# In words and as a figure


def test_both_verdicts(heavy):
    found = heavy[16]
    words = str(found)
    assert words.startswith("Clipping per example helps now: at the threshold")
    assert "\nClipping per batch of 16 helps now" in words
    ratio = float(np.exp(found.advantage.value))
    assert "Per example is better than per batch: each at its best" in words
    assert f"{ratio:.3f} times that per batch" in words
    assert "16384 examples" in words and "1024 means of 16 examples" in words
    assert words.count("<- best") == 2

    def told(value, error):
        other = jc.diagnosis.Estimate(jnp.asarray(value), jnp.asarray(error))
        return str(eqx.tree_at(lambda d: d.advantage, found, other))

    assert "Per batch is better than per example" in told(-0.3, 0.1)
    assert "Which of the two is better cannot be told" in told(-0.3, 0.2)
    assert "Which of the two is better cannot be told" in told(0.3, 0.2)
    assert "Which of the two is better cannot be told" in told(np.nan, 0.1)
    lost = eqx.tree_at(lambda d: d.batch._signal.value, found, jnp.asarray(0.0))
    assert "Which of the two is better cannot be told" in str(lost)
    assert "Cannot tell: the mean gradient is lost" in str(lost)


def test_groups_in_words():
    x, batch = least_squares(HEAVY, jr.key(8), 10, 512)
    found = jc.diagnose(squared_error, x, batch, batch_size=8, group=4)
    assert str(found).startswith("Clipping per group of 4 ")


def test_both_curves(heavy):
    found = heavy[16]
    ax = found.plot(label="now")
    one, other, *_ = ax.lines
    np.testing.assert_array_equal(one.get_xdata(), found.thresholds)
    np.testing.assert_array_equal(other.get_xdata(), found.batch.thresholds)
    np.testing.assert_array_equal(other.get_ydata(), found.batch.ccc.value)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["now, per example", "now, per batch of 16"]
    assert len(ax.collections) == 2
    plt.close(ax.figure)
