"""Adaptive thresholds of a padded batch, and of one spread over devices by `shard_map`:
against the examples that count, on one device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxclip as jc
from registry import POLICIES

KEY = jr.key(5)
SIZE = 16


def loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2


PARAMS = {"w": jnp.array([0.5, -1.0, 0.3]), "b": jnp.array(0.1)}
# Three batches of which the norms differ in size, so that thresholds move.
BATCHES = [
    (scale * jr.normal(jr.fold_in(KEY, i), (SIZE, 3)), 3 * jr.normal(KEY, (SIZE,)))
    for i, scale in enumerate((1.0, 0.3, 2.0))
]
WAYS = [(1, None), (1, 3), (2, None), (2, 3)]
# Of these the threshold of an example hangs on its place in the batch.
BY_PLACE = {"RandomThreshold"}


def cases(left_out: Any = ()):
    """Each policy in one of the ways that a batch is gone through, and all ways for
    the one that compares gradients."""
    names = [name for name in POLICIES if name not in left_out]
    each = [(name, *WAYS[i % 4]) for i, name in enumerate(names)]
    each += [("Criterion", *way) for way in WAYS]
    return pytest.mark.parametrize(
        ("name", "passes", "microbatch"), sorted(set(each), key=str)
    )


def steps(gradient, batches, masks=None, state=None):
    """The values and gradients of some steps, and the state after them."""
    state = gradient.init(PARAMS) if state is None else state
    found = []
    for i, batch in enumerate(batches):
        mask = None if masks is None else masks[i]
        out, state = gradient(PARAMS, batch, state=state, mask=mask)
        (value, examples), total = out
        found.append((value, total, examples.dropped))
    return found, state


def assert_same(found, expected, rtol=1e-9):
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-12)


# Over devices


def spread(run, devices, checked=True):
    """A function of batches (and masks), each spread over the devices."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,))
    how: Any = dict(mesh=mesh, in_specs=P("d"), out_specs=P(), check_vma=checked)
    return jax.jit(jax.shard_map(run, **how))


@cases()
def test_devices_have_the_threshold_of_all_examples(name, passes, microbatch):
    """By type, too: JAX knows what is returned to be the same on all of them."""
    clip = jc.Adaptive(POLICIES[name])
    how: Any = dict(passes=passes, microbatch=microbatch and 1)
    alone = jc.clipped_value_and_grad(loss, clip, **how)
    scope = jc.PerExample(axis_name="d")
    many = jc.clipped_value_and_grad(loss, clip, scope, **how)
    expected = steps(alone, BATCHES)
    assert_same(spread(partial(steps, many), 8)(BATCHES), expected)
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(expected[1]))


@pytest.mark.parametrize("name", ["QuantileDescent", "Criterion"])
def test_without_jaxs_account_of_what_varies(name):
    clip = jc.Adaptive(POLICIES[name])
    many = jc.clipped_value_and_grad(loss, clip, jc.PerExample(axis_name="d"))
    run = spread(partial(steps, many), 4, checked=False)
    expected = steps(jc.clipped_value_and_grad(loss, clip), BATCHES)
    assert_same(run(BATCHES), expected)


def test_a_quantile_by_its_formula():
    """Of all the examples of a padded batch that count, over two axes of a mesh."""
    policy = jc.policy.QuantileDescent(0.7, lr=0.3, initial=1.0)
    scope = jc.PerExample("sum", axis_name=("a", "b"))
    gradient = jc.clipped_grad(loss, jc.Adaptive(policy), scope)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mask = jnp.arange(SIZE) % 3 > 0

    def run(batch, mask):
        return gradient(PARAMS, batch, mask=mask, state=gradient.init(PARAMS))

    where = P(("a", "b"))
    run = jax.shard_map(run, mesh=mesh, in_specs=where, out_specs=P())
    total, state = jax.jit(run)(BATCHES[0], mask)
    rows = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, BATCHES[0])
    rows = np.c_[rows["w"], rows["b"]][np.asarray(mask)]
    norms = np.linalg.norm(rows, axis=1)
    moved = np.exp(-0.3 * (np.mean(norms <= 1.0) - 0.7))
    np.testing.assert_allclose(state.policies[0], [moved], rtol=1e-12)
    expected = np.sum(rows * np.minimum(1, 1 / norms)[:, None], axis=0)
    np.testing.assert_allclose(np.r_[total["w"], total["b"]], expected, rtol=1e-12)


@pytest.mark.parametrize("policy", ["AdaGC", "ZScore", "Criterion"])
def test_a_transform_of_examples_over_devices(policy):
    """The monitor counts the examples of all, too; what travels are sums."""
    clip = jc.Adaptive(POLICIES[policy])

    def run(scope, batches):
        transform = jc.monitor(jc.as_transform(clip, scope))
        state = transform.init(PARAMS)
        value = None
        for batch in batches:
            rows = jax.vmap(jax.grad(loss), (None, 0))(own, batch)
            value, state = transform.update(rows, state, PARAMS)
        return value, state

    own = PARAMS
    expected = run(jc.PerExample(), BATCHES)

    def of_part(batches):
        nonlocal own
        own = jax.lax.pcast(PARAMS, "d", to="varying")
        return run(jc.PerExample(axis_name="d"), batches)

    many = spread(of_part, 4)
    assert_same(many(BATCHES), expected)
    text = many.lower(BATCHES).compile().as_text() or ""
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_one_noise_for_all_devices(reduce):
    how: Any = dict(noise_std=0.5, key=KEY)
    expected = jc.clipped_grad(loss, jc.HardClip(0.5), jc.PerExample(reduce, **how))
    scope = jc.PerExample(reduce, **how, axis_name="d")
    gradient = jc.clipped_grad(loss, jc.HardClip(0.5), scope)
    many = spread(lambda batch: gradient(PARAMS, batch, step=3), 8)
    assert_same(many(BATCHES[0]), expected(PARAMS, BATCHES[0], step=3))


def test_what_is_the_same_on_all_devices_counts_once():
    """A batch that is not spread, of which JAX knows it."""
    clip, scope = jc.Adaptive(POLICIES["AdaGC"]), jc.PerExample("sum", axis_name="d")
    gradient = jc.clipped_value_and_grad(loss, clip, scope)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        partial(steps, gradient), mesh=mesh, in_specs=P(), out_specs=P()
    )
    alone = jc.clipped_value_and_grad(loss, clip, jc.PerExample("sum"))
    assert_same(jax.jit(run)(BATCHES), steps(alone, BATCHES))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("verb", ["clipped_grad", "as_transform"])
def test_a_threshold_for_each_device_is_said(verb, checked):
    clip = jc.Adaptive(jc.policy.AdaGC())

    def run(scope, batch):
        if verb == "clipped_grad":
            gradient = jc.clipped_grad(loss, clip, scope)
            return gradient(PARAMS, batch, state=gradient.init(PARAMS))[0]
        transform = jc.as_transform(clip, scope)
        return transform.update(batch, transform.init(batch))[0]

    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    how: Any = dict(mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=checked)
    batch = BATCHES[0] if verb == "clipped_grad" else BATCHES[0][0]
    with pytest.raises(
        ValueError, match=r"(?s)those of one device.*\['d'\].*axis_name"
    ):
        jax.shard_map(partial(run, jc.PerExample()), **how)(batch)
    if verb == "as_transform":
        jax.shard_map(partial(run, jc.PerExample(axis_name=())), **how)(batch)


# A mask


def padded(batch, place):
    """Rows that are not real before, between and behind others: of these places."""
    return jax.tree.map(lambda leaf: leaf.at[place].set(jnp.nan), batch)


MASKS = [
    jnp.array([i not in out for i in range(SIZE)])
    for out in ({0, 5, 15}, set(), {1, 2, 3, 4, 8, 11})
]


@cases(BY_PLACE)
def test_padding_counts_in_no_threshold(name, passes, microbatch):
    gradient = jc.clipped_value_and_grad(
        loss, jc.Adaptive(POLICIES[name]), passes=passes, microbatch=microbatch
    )
    batches = [padded(batch, ~mask) for batch, mask in zip(BATCHES, MASKS, strict=True)]
    found, state = jax.jit(partial(steps, gradient))(batches, MASKS)
    real = [
        jax.tree.map(lambda leaf, mask=mask: leaf[mask], batch)
        for batch, mask in zip(BATCHES, MASKS, strict=True)
    ]
    expected, after = steps(gradient, real)
    assert_same((found, state), (expected, after))
    # Of a batch with nobody in it nothing is learnt.
    _, same = steps(gradient, batches[:1], [jnp.zeros(SIZE, bool)], state)
    assert same.step == state.step + 1
    assert_same(same.policies, state.policies)


@cases(BY_PLACE)
def test_what_is_not_finite_counts_in_no_threshold(name, passes, microbatch):
    """As if it were masked; and with a mask, in groups, over devices, too."""
    how: Any = dict(
        passes=passes, microbatch=microbatch and 1, drop_nonfinite=True, group=2
    )
    clip = jc.Adaptive(POLICIES[name])
    alone = jc.clipped_value_and_grad(loss, clip, **how)
    scope = jc.PerExample(axis_name="d")
    many = jc.clipped_value_and_grad(loss, clip, scope, **how)
    batches = [(x.at[6].set(jnp.inf), y) for x, y in BATCHES]
    found, state = spread(partial(steps, many), 4)(batches, MASKS)
    # The seventh and the eighth are one group.
    masks = [mask.at[6:8].set(False) for mask in MASKS]
    expected, after = steps(alone, BATCHES, masks)
    assert all(dropped == 1 for *_, dropped in found)
    assert_same([each[:2] for each in found], [each[:2] for each in expected])
    assert_same(state, after)


def test_a_policy_that_knows_no_mask():
    """One of a user's own, without a method for it."""

    class Largest(jc.policy.AbstractPolicy):
        def init(self, dtype, index):
            return jnp.zeros((), dtype)

        def threshold(self, norms, state, step):
            return jnp.max(norms), jnp.max(norms)

    clip = jc.Adaptive(Largest())
    for drop, call in ((False, dict(mask=MASKS[0])), (True, {})):
        gradient = jc.clipped_grad(loss, clip, drop_nonfinite=drop)
        with pytest.raises(ValueError, match=r"AbstractMaskedPolicy.*Got Largest"):
            gradient(PARAMS, BATCHES[0], state=gradient.init(PARAMS), **call)
