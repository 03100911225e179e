"""optax's own tests of clipping, which its wheel carries, on our transforms."""

import unittest
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import jaxclip as jc

own = pytest.importorskip("optax.transforms._clipping_test")


class WithoutState(SimpleNamespace):
    """A transform whose `update` may be given no state, as those of optax may."""

    def update(self, updates, state, params=None):
        del state
        start = self.transform.init(updates)
        return self.transform.update(updates, start, params)


def ours(scope, threshold):
    return WithoutState(transform=jc.as_transform(jc.HardClip(threshold), scope))


def per_example(scope, gradients, threshold):
    """The sum, and what the monitor counted for each norm of an example."""
    clip = jc.as_transform(jc.HardClip(threshold), scope)
    examples = jax.tree.map(lambda leaf: leaf[0], gradients)
    total, _ = clip.update(gradients, clip.init(examples))
    _, _, parts = clip.update.clipping.examine(gradients, clip.init(examples))
    return total, jax.tree.map(jnp.sum, parts.regimes)


def by_layer(gradients, global_l2_norm_clip, uniform=True):
    share = jc.transform.PerLeafShare(by_size=not uniform)
    scope = jc.PerExample("sum", within=share)
    return per_example(scope, gradients, global_l2_norm_clip)


OURS = SimpleNamespace(
    clip=lambda max_delta: ours(jc.PerCoordinate(), max_delta),
    clip_by_block_rms=lambda threshold: ours(jc.transform.PerLeafRMS(), threshold),
    clip_by_global_norm=lambda max_norm: ours(jc.PerTree(), max_norm),
    adaptive_grad_clip=lambda clipping, axis=None: ours(
        jc.PerUnit(axis=axis), clipping
    ),
    per_example_global_norm_clip=lambda gradients, l2_norm_clip: per_example(
        jc.PerExample("sum"), gradients, l2_norm_clip
    ),
    per_example_layer_norm_clip=by_layer,
    # The ruler that the tests measure with stays optax's.
    unitwise_norm=own._clipping.unitwise_norm,
)

CASES = list(unittest.defaultTestLoader.getTestCaseNames(own.ClippingTest))


def test_all_of_them_are_here():
    assert len(CASES) >= 9
    public = {name for name in CASES if "per_example" in name or "clip_by" in name}
    assert len(public) == 4


@pytest.mark.parametrize("name", CASES)
def test_optax_own(name, monkeypatch):
    monkeypatch.setattr(own, "_clipping", OURS)
    result = unittest.TestResult()
    # They mix precisions.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        own.ClippingTest(name).run(result)
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]
    assert result.testsRun == 1
