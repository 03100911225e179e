"""Gradients clipped per example: against a loop in numpy, in one pass and in two."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxclip as jc
from helpers import assert_within

KEY = jr.key(11)
CLIP = jc.HardClip(0.5)


def loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2


def loss_and_aux(params, example):
    return loss(params, example), {"y": example[1], "twice": 2 * example[0]}


PARAMS = {"w": jnp.array([0.5, -1.0, 0.3]), "b": jnp.array(0.1)}
BATCH = jr.normal(KEY, (12, 3)), 3.0 * jr.normal(jr.fold_in(KEY, 1), (12,))
all_ways = pytest.mark.parametrize(
    ("passes", "microbatch"), [(1, None), (1, 1), (1, 5), (2, None), (2, 5)]
)


def by_hand(batch=BATCH, params=PARAMS):
    """The losses and gradients by the formulas, in numpy: rows `(w, b)`."""
    x, y = map(np.asarray, batch)
    t = np.tanh(x @ np.asarray(params["w"]))
    residual = t + float(params["b"]) - y
    slopes = 2 * residual[:, None] * np.c_[(1 - t**2)[:, None] * x, np.ones(len(y))]
    return residual**2, slopes


def clipped(rows, threshold=0.5):
    norms = np.linalg.norm(rows, axis=1)
    return rows * np.minimum(1, threshold / np.maximum(norms, 1e-300))[:, None]


def flat(gradient):
    return np.append(np.asarray(gradient["w"]), gradient["b"])


# The same numbers, a few examples at a time


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_microbatches_give_the_same_gradient(reduce, passes):
    scope = jc.PerExample(reduce, noise_std=0.1, key=KEY)
    rule = jc.HardClip(lambda step: 0.3 + 0.1 * jnp.asarray(step, float))
    gradients = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    state = jc.transform.ClipState(jnp.asarray(2, jnp.int32))
    expected, _ = jc.as_transform(rule, scope).update(gradients, state)
    assert 0 < jnp.sum(jax.vmap(jc.safe_norm)(gradients) > 0.5) < 12
    for microbatch in (None, 1, 5, 12, 20):
        how = dict(microbatch=microbatch, passes=passes)
        gradient = jc.clipped_grad(loss, rule, scope, **how)
        value = jax.jit(partial(gradient, step=2))(PARAMS, BATCH)
        for key, leaf in expected.items():
            np.testing.assert_allclose(value[key], leaf, rtol=1e-12)


@all_ways
@pytest.mark.parametrize("within", [jc.PerTree(), jc.PerLeaf(), jc.PerUnit()])
def test_any_scope_within_an_example(within, passes, microbatch):
    if passes == 2 and not isinstance(within, jc.PerTree):
        pytest.skip("one weight for each example")
    scope = jc.PerExample(within=within)
    gradients = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    transform = jc.as_transform(CLIP, scope)
    expected, _ = transform.update(gradients, transform.init(PARAMS), PARAMS)
    how = dict(passes=passes, microbatch=microbatch)
    value = jc.clipped_grad(loss, CLIP, scope, **how)(PARAMS, BATCH)
    np.testing.assert_allclose(flat(value), flat(expected), rtol=1e-12)


def test_microbatches_bound_the_memory():
    params, batch = jnp.ones((64, 64)), jnp.ones((32, 64))

    def held(**how):
        gradient = jc.clipped_grad(
            lambda w, x: jnp.sum(jnp.tanh(x @ w)), jc.HardClip(1.0), **how
        )
        compiled = jax.jit(gradient).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes / params.nbytes

    assert held() > 31
    assert held(microbatch=4) < 7
    # Activations alone: 32 examples of 64 numbers are half of the parameters.
    assert held(passes=2) < 6


@pytest.mark.parametrize("passes", [1, 2])
def test_examples_within_a_step_keep_half_precision(passes):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BATCH)
    gradient = jc.clipped_grad(loss, CLIP, microbatch=2, passes=passes)
    value = gradient(params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(value)} == {jnp.dtype(jnp.bfloat16)}
    exact = jax.tree.map(lambda x: x.astype(float), (params, batch))
    _, rows = by_hand(exact[1], exact[0])
    # Losses and gradients have eight bits; the sum has more.
    got = flat(jax.tree.map(lambda x: x.astype(float), value))
    np.testing.assert_allclose(got, clipped(rows).mean(axis=0), atol=0.02)


@pytest.mark.float32
@all_ways
def test_single_precision(passes, microbatch):
    params, batch = jax.tree.map(lambda x: x.astype(jnp.float32), (PARAMS, BATCH))
    _, rows = by_hand(batch, params)
    how = dict(passes=passes, microbatch=microbatch)
    value = jc.clipped_grad(loss, CLIP, **how)(params, batch)
    np.testing.assert_allclose(flat(value), clipped(rows).mean(axis=0), rtol=1e-5)


# What comes beside the gradient


@all_ways
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_value_and_what_each_example_had(reduce, passes, microbatch):
    losses, rows = by_hand()
    how = dict(passes=passes, microbatch=microbatch, has_aux=True)
    scope = jc.PerExample(reduce)
    both = jc.clipped_value_and_grad(loss_and_aux, CLIP, scope, **how)
    (value, examples), gradient = both(PARAMS, BATCH)
    numpy = getattr(np, reduce)
    np.testing.assert_allclose(value, numpy(losses), rtol=1e-12)
    np.testing.assert_allclose(flat(gradient), numpy(clipped(rows), axis=0))
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(examples.losses, losses, rtol=1e-12)
    np.testing.assert_allclose(examples.norms, norms, rtol=1e-12)
    np.testing.assert_allclose(examples.factors, np.minimum(1, 0.5 / norms))
    np.testing.assert_array_equal(examples.aux["y"], BATCH[1])
    np.testing.assert_array_equal(examples.aux["twice"], 2 * BATCH[0])
    assert examples.dropped == 0
    again, aux = jc.clipped_grad(loss_and_aux, CLIP, scope, **how)(PARAMS, BATCH)
    np.testing.assert_array_equal(flat(again), flat(gradient))
    np.testing.assert_array_equal(aux["y"], BATCH[1])


def test_without_aux_there_is_none():
    (_, examples), _ = jc.clipped_value_and_grad(loss, CLIP)(PARAMS, BATCH)
    assert examples.aux is None


# Masks, groups, guards


@all_ways
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_masked_examples_count_in_nothing(reduce, passes, microbatch):
    real = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1], bool)
    # What a batch is padded with may be anything.
    padded = BATCH[0], jnp.where(real, BATCH[1], jnp.nan)
    how = dict(passes=passes, microbatch=microbatch)
    both = jc.clipped_value_and_grad(loss, CLIP, jc.PerExample(reduce), **how)
    (value, examples), gradient = both(PARAMS, padded, mask=jnp.asarray(real))
    losses, rows = (numbers[real] for numbers in by_hand())
    numpy = getattr(np, reduce)
    np.testing.assert_allclose(value, numpy(losses), rtol=1e-12)
    np.testing.assert_allclose(flat(gradient), numpy(clipped(rows), axis=0))
    np.testing.assert_allclose(examples.losses[real], losses)
    for zero in (examples.losses, examples.norms, examples.factors):
        np.testing.assert_array_equal(zero[~real], 0)
    assert examples.dropped == 0
    # And where nobody is real.
    (value, _), gradient = both(PARAMS, padded, mask=jnp.zeros(12, bool))
    np.testing.assert_array_equal([value, *flat(gradient)], 0)


def test_a_mean_over_an_expected_number():
    _, rows = by_hand()
    scope = jc.PerExample(denominator=20)
    want = clipped(rows).sum(axis=0) / 20
    value = jc.clipped_grad(loss, CLIP, scope, microbatch=5)(PARAMS, BATCH)
    np.testing.assert_allclose(flat(value), want, rtol=1e-12)
    mask = jnp.arange(12) < 7
    value = jc.clipped_grad(loss, CLIP, scope)(PARAMS, BATCH, mask=mask)
    np.testing.assert_allclose(flat(value), clipped(rows[:7]).sum(axis=0) / 20)
    transform = jc.as_transform(CLIP, scope)
    gradients = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCH)
    value, _ = transform.update(gradients, transform.init(PARAMS))
    np.testing.assert_allclose(flat(value), want, rtol=1e-12)


@all_ways
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_groups_are_clipped_together(reduce, passes, microbatch):
    """Groups of 3, of which one has one example less and one has none."""
    real = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1], bool)
    losses, rows = by_hand()
    numpy = getattr(np, reduce)
    groups = [slice(0, 3), slice(4, 6), slice(9, 12)]
    units = np.array([numpy(rows[each], axis=0) for each in groups])
    how = dict(passes=passes, microbatch=microbatch, group=3, has_aux=True)
    both = jc.clipped_value_and_grad(loss_and_aux, CLIP, jc.PerExample(reduce), **how)
    (value, examples), gradient = both(PARAMS, BATCH, mask=jnp.asarray(real))
    np.testing.assert_allclose(value, numpy([numpy(losses[each]) for each in groups]))
    np.testing.assert_allclose(flat(gradient), numpy(clipped(units), axis=0))
    norms = np.linalg.norm(units, axis=1)
    np.testing.assert_allclose(examples.norms, [*norms[:2], 0, norms[2]], rtol=1e-12)
    np.testing.assert_allclose(examples.losses, np.where(real, losses, 0))
    np.testing.assert_array_equal(examples.aux["y"], np.where(real, BATCH[1], 0))


@all_ways
def test_an_example_that_is_not_finite_is_left_out(passes, microbatch):
    bad = BATCH[0].at[4, 1].set(jnp.nan), BATCH[1].at[9].set(jnp.inf)
    how = dict(passes=passes, microbatch=microbatch)
    both = jc.clipped_value_and_grad(loss, CLIP, drop_nonfinite=True, **how)
    (value, examples), gradient = both(PARAMS, bad)
    good = np.delete(np.arange(12), [4, 9])
    losses, rows = (numbers[good] for numbers in by_hand())
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(flat(gradient), clipped(rows).mean(axis=0))
    assert examples.dropped == 2
    np.testing.assert_array_equal(np.flatnonzero(examples.factors == 0), [4, 9])
    # Otherwise the caller sees it.
    kept = jc.clipped_grad(loss, CLIP, **how)(PARAMS, bad)
    assert not np.any(np.isfinite(flat(kept)))
    # And where none is left, of a microbatch or of all.
    few = BATCH[0], BATCH[1].at[5:].set(jnp.nan)
    few = both(PARAMS, few)[1]
    np.testing.assert_allclose(flat(few), clipped(by_hand()[1][:5]).mean(axis=0))
    nothing = bad[0], jnp.full(12, jnp.nan)
    (value, examples), gradient = both(PARAMS, nothing)
    np.testing.assert_array_equal([value, *flat(gradient)], 0)
    assert examples.dropped == 12


@all_ways
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_of_an_empty_batch_the_noise_is_left(reduce, passes, microbatch):
    scope = jc.PerExample(reduce, noise_std=0.1, key=KEY)
    none = jnp.zeros((0, 3)), jnp.zeros(0)
    how = dict(passes=passes, microbatch=microbatch, has_aux=True)
    both = jc.clipped_value_and_grad(loss_and_aux, CLIP, scope, **how)
    (value, examples), gradient = both(PARAMS, none, step=3)
    noise = scope.perturb(jax.tree.map(jnp.zeros_like, PARAMS), 3)
    np.testing.assert_allclose(flat(gradient), flat(noise), rtol=1e-12)
    assert value == 0 and examples.norms.shape == examples.losses.shape == (0,)
    assert examples.aux["twice"].shape == (0, 3)


# Thresholds that adapt


@all_ways
@pytest.mark.parametrize(
    "policy",
    [
        jc.policy.Percentile(30.0, window=16),
        jc.policy.AdaGC(warmup=1),
        jc.policy.Criterion(window=64),
    ],
)
def test_adaptive_thresholds(policy, passes, microbatch):
    """As the transform has them, over three steps and in microbatches too."""
    clip, scope = jc.Adaptive(policy), jc.PerExample()
    transform = jc.as_transform(clip, scope)
    gradient = jc.clipped_grad(loss, clip, scope, passes=passes, microbatch=microbatch)
    state, expected = gradient.init(PARAMS), transform.init(PARAMS)
    for scale in (1.0, 0.3, 2.0):
        batch = BATCH[0] * scale, BATCH[1]
        gradients = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, batch)
        want, expected = transform.update(gradients, expected)
        value, state = gradient(PARAMS, batch, state=state)
        np.testing.assert_allclose(flat(value), flat(want), rtol=1e-10)
        for mine, other in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-10)
    # Poisson sampling: nobody was seen.
    empty = jax.tree.map(lambda leaf: leaf[:0], BATCH)
    _, after = gradient(PARAMS, empty, state=state)
    assert after.step == state.step + 1
    for mine, other in zip(*map(jax.tree.leaves, (after, state)), strict=True):
        if mine.shape or jnp.issubdtype(mine.dtype, jnp.floating):
            np.testing.assert_array_equal(mine, other)


@all_ways
def test_random_keys_in_a_batch(passes, microbatch):
    """Dropout: each example has a key, and copies of one where it is masked."""

    def dropped(params, example):
        x, y, key = example
        kept = jr.bernoulli(key, 0.5, x.shape).astype(x.dtype)
        return loss(params, (kept * x, y))

    keys = jr.split(KEY, 12)
    kept = jax.vmap(lambda key: jr.bernoulli(key, 0.5, (3,)))(keys)
    _, rows = by_hand((np.where(kept, BATCH[0], 0), BATCH[1]))
    how = dict(passes=passes, microbatch=microbatch)
    gradient = jc.clipped_grad(dropped, CLIP, **how)
    batch = (*BATCH, keys)
    value = gradient(PARAMS, batch, mask=jnp.arange(12) < 7)
    np.testing.assert_allclose(flat(value), clipped(rows[:7]).mean(axis=0))
    nobody = gradient(PARAMS, jax.tree.map(lambda leaf: leaf[:0], batch))
    np.testing.assert_array_equal(flat(nobody), 0)


# Noise


def test_noise_differs_from_step_to_step_and_from_key_to_key():
    scope = jc.PerExample(noise_std=0.1, key=KEY)
    gradient = jc.clipped_grad(loss, CLIP, scope)
    with pytest.raises(ValueError, match=r"`step` is needed.*step=k.*fresh `key`"):
        gradient(PARAMS, BATCH)
    first, second = (flat(gradient(PARAMS, BATCH, step=k)) for k in (0, 1))
    assert np.all(first != second)
    np.testing.assert_array_equal(first, flat(gradient(PARAMS, BATCH, step=0)))
    other = jc.clipped_grad(loss, CLIP, jc.PerExample(noise_std=0.1))
    with pytest.raises(ValueError, match="`key` is needed"):
        other(PARAMS, BATCH, step=0)
    third, fourth = (flat(other(PARAMS, BATCH, key=jr.key(k))) for k in (0, 1))
    assert np.all(third != fourth)
    state = gradient.init(PARAMS)
    fifth, state = gradient(PARAMS, BATCH, state=state)
    sixth, _ = gradient(PARAMS, BATCH, state=state)
    np.testing.assert_array_equal(flat(fifth), first)
    np.testing.assert_array_equal(flat(sixth), second)


def test_noise_has_its_deviation_in_every_part_of_a_complex_number():
    scope = jc.PerExample("sum", noise_std=0.7, key=KEY)
    params = {"c": jnp.zeros(4000, complex), "r": jnp.zeros(4000)}
    noise = jax.tree.map(np.asarray, scope.perturb(params, 0))
    for part in (noise["c"].real, noise["c"].imag, noise["r"]):
        square = part**2
        error = np.std(square) / np.sqrt(len(square))
        assert_within(np.mean(square), error, 0.49)
    together = noise["c"].real * noise["c"].imag
    assert_within(np.mean(together), np.std(together) / np.sqrt(4000), 0.0)


# Several devices

_MESH = dict(axis_types=(AxisType.Auto,))


@all_ways
@pytest.mark.parametrize("made_varying", [False, True])
def test_inside_of_shard_map(made_varying, passes, microbatch):
    """There the gradient of a parameter that devices share is a sum over them."""
    mesh = jax.make_mesh((4,), ("d",), **_MESH)
    how = dict(passes=passes, microbatch=microbatch and 2)
    both = jc.clipped_value_and_grad(loss, CLIP, **how)

    def mean(params, x, y):
        if made_varying:
            params = jax.lax.pcast(params, "d", to="varying")
        (value, examples), gradient = both(params, (x, y))
        return jax.lax.pmean((value, gradient), "d"), examples.norms

    specs = dict(in_specs=(P(), P("d"), P("d")), out_specs=((P(), P()), P("d")))
    run = jax.jit(jax.shard_map(mean, mesh=mesh, **specs))
    (value, gradient), norms = run(PARAMS, *BATCH)
    losses, rows = by_hand()
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(flat(gradient), clipped(rows).mean(axis=0))
    np.testing.assert_allclose(norms, np.linalg.norm(rows, axis=1), rtol=1e-12)


def test_noise_inside_of_shard_map_is_refused():
    mesh = jax.make_mesh((4,), ("d",), **_MESH)
    scope = jc.PerExample(noise_std=0.1, key=KEY)
    gradient = partial(jc.clipped_grad(loss, CLIP, scope), PARAMS, step=0)
    specs = dict(in_specs=(P("d"),), out_specs=P("d"))
    with pytest.raises(ValueError, match=r"`scope` has noise.*psum.*perturb"):
        jax.shard_map(gradient, mesh=mesh, **specs)(BATCH)


@all_ways
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_spread_over_devices(kind, passes, microbatch):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    how = dict(passes=passes, microbatch=microbatch and 4)
    gradient = jc.clipped_grad(loss, CLIP, **how)
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("d")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    _, rows = by_hand()
    for call in (gradient, jax.jit(gradient)):
        for context in (contextlib.nullcontext, partial(jax.set_mesh, mesh)):
            with context():
                value = jax.tree.map(np.asarray, call(params, batch))
            np.testing.assert_allclose(flat(value), clipped(rows).mean(axis=0))


# Misuse


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(microbatch=0), "`microbatch` must be at least 1"),
        (dict(group=0), "`group` must be at least 1"),
        (dict(passes=3), "`passes` must be 1.*or 2.*Got 3"),
        (
            dict(passes=2, scope=jc.PerExample(within=jc.PerLeaf())),
            r"`passes=2` needs one norm.*Got within=PerLeaf.*`passes=1`",
        ),
    ],
)
def test_misuse_of_clipped_grad(how, message):
    with pytest.raises(ValueError, match=message):
        jc.clipped_grad(loss, CLIP, **how)
    with pytest.raises(ValueError, match=message):
        jc.clipped_value_and_grad(loss, CLIP, **how)


@pytest.mark.parametrize(
    ("how", "call", "message"),
    [
        (dict(group=5), {}, "`group` must divide.*Got group=5 and a batch of 12"),
        ({}, dict(mask=jnp.ones(3, bool)), r"`mask` must hold a boolean.*\(3,\)"),
        ({}, dict(mask=jnp.ones(12)), "`mask` must hold a boolean.*float"),
        ({}, dict(key=KEY), "`key` draws the noise of the scope, which has none"),
        (
            {},
            dict(step=1, state=jc.transform.ClipState(jnp.asarray(0, jnp.int32))),
            "`step` and `state` were both given.*step=1",
        ),
        (dict(clip=jc.Adaptive(jc.policy.AdaGC())), {}, "`state` is needed.*init"),
        (
            dict(loss=lambda p, e: e[0]),
            {},
            r"`loss\(params, example\)` must return one number",
        ),
    ],
)
def test_misuse_of_a_clipped_gradient(without_type_checks, how, call, message):
    how = dict(loss=loss, clip=CLIP) | how
    with pytest.raises(ValueError, match=message):
        jc.clipped_grad(**how)(PARAMS, BATCH, **call)


def test_a_sum_has_no_denominator():
    with pytest.raises(ValueError, match=r"`denominator`.*Got 3.*sum"):
        jc.PerExample("sum", denominator=3)
    with pytest.raises(ValueError, match="`denominator` must be positive"):
        jc.PerExample(denominator=0)
    problem = jc.LinearModel(jc.Spectrum.isotropic(4), jc.Gaussian(1.0), jnp.ones(1))
    scope = jc.PerExample(denominator=3)
    with pytest.raises(ValueError, match="`scope` must have no `denominator` here"):
        jc.simulate(problem, CLIP, 0.1, steps=1, scope=scope, key=KEY)


@pytest.mark.parametrize("rest", [jr.key(0), jnp.arange(3), True, 3, jnp.tanh])
def test_what_has_no_gradient_is_named(rest, without_type_checks):
    params = {"w": PARAMS["w"], "model": {"rest": rest}}
    with pytest.raises(ValueError, match=r"`params` must be floats.*`model\.rest`"):
        jc.clipped_grad(lambda p, x: x @ p["w"], CLIP)(params, BATCH[0])
