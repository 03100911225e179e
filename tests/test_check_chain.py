"""Chains in which clipping goes wrong in silence are named, and others are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip as jc

check_chain = jc.diagnosis.check_chain
PARAMS = {"w": jnp.ones((6, 4)), "b": jnp.zeros(4)}
STEPS = 24


def gradients(size=1.0, spread=0.5, dtype=float, steps=STEPS):
    """With a mean direction, and norms about `size`."""
    rng = np.random.default_rng(0)
    sizes = size * np.exp(spread * rng.normal(size=steps))
    flat = rng.normal(size=(steps, 28)) + 1.0
    flat *= (sizes / np.linalg.norm(flat, axis=1))[:, None]
    tree = {"w": flat[:, :24].reshape(steps, 6, 4), "b": flat[:, 24:]}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def hard(threshold, *scope):
    return jc.as_transform(jc.HardClip(threshold), *scope)


def kinds(*args, data=None, **links):
    check = check_chain(*args, PARAMS, gradients() if data is None else data, **links)
    return [finding.kind for finding in check.findings], check


# What fails, and by what name

ADAM, RMS = optax.adam(1e-3), jc.transform.PerLeafRMS()
NORMALIZED = optax.chain(jc.as_transform(jc.Normalize()), optax.sgd(0.1))
FAILING = {
    "epsilon": {
        "adam": (ADAM, {"before": hard(1e-9)}),
        "a clip of optax": (ADAM, {"before": optax.clip_by_global_norm(1e-9)}),
        "a chain": (optax.chain(hard(1e-9), ADAM), {}),
        "a watched chain": (optax.chain(jc.monitor(hard(1e-9)), ADAM), {}),
        "muon": (optax.contrib.muon(1e-3, eps=1e-5), {"before": hard(1e-9)}),
    },
    "idle": {
        "adam": (ADAM, {"before": hard(1e-3)}),
        "muon": (optax.contrib.muon(1e-3), {"before": hard(1e-3)}),
        "a watched chain": (optax.chain(jc.monitor(hard(1e-3)), ADAM), {}),
        "lion": (optax.lion(1e-3), {"before": hard(1e-3)}),
    },
    "no effect": {
        "sign": (optax.sign_sgd(1e-3), {"before": hard(0.5)}),
        "normalize": (NORMALIZED, {"before": hard(0.5)}),
        "always": (optax.sign_sgd(1e-3), {"before": hard(1e-3)}),
        "a watched chain": (
            optax.chain(jc.monitor(hard(0.5)), optax.sign_sgd(1e-3)),
            {},
        ),
    },
    "rate": {
        "sgd": (optax.sgd(0.1), {"before": hard(1e-3)}),
        "behind muon": (optax.contrib.muon(1.0), {"after": hard(0.1)}),
        "a watched chain": (
            optax.chain(ADAM, jc.monitor(hard(1e-4)), optax.scale(0.1)),
            {},
        ),
    },
    "never": {
        "behind adam": (ADAM, {"after": hard(1.0)}),
        "watched behind adam": (optax.chain(ADAM, jc.monitor(hard(1.0))), {}),
        "infinite": (ADAM, {"before": hard(np.inf)}),
        "behind another": (
            optax.chain(hard(0.5), jc.monitor(hard(2.0)), optax.sgd(0.1)),
            {},
        ),
    },
    "late guard": {
        "skip": (optax.chain(ADAM, jc.skip_nonfinite(optax.identity())), {}),
        "zero": (optax.chain(ADAM, jc.zero_nonfinite(optax.identity())), {}),
        "after": (ADAM, {"after": jc.skip_nonfinite(hard(4e-3))}),
    },
    "inner guard": {
        "adam": (optax.chain(jc.skip_nonfinite(hard(1.0)), ADAM), {}),
        "before": (ADAM, {"before": jc.skip_nonfinite(hard(1.0))}),
        "spike": (
            optax.chain(jc.skip_spikes(optax.identity(), jc.HardClip(99.0)), ADAM),
            {},
        ),
    },
}
CASES = [(kind, name) for kind, cases in FAILING.items() for name in cases]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_fails_is_named(kind, name):
    optimizer, links = FAILING[kind][name]
    found, check = kinds(optimizer, **links)
    assert found == [kind]
    assert str(check).startswith(f"{kind}: ")


HEALTHY = {
    "sgd": (optax.sgd(0.1), {"before": hard(1.0)}),
    "momentum": (optax.sgd(0.1, momentum=0.9), {"before": hard(1.0)}),
    "adam": (ADAM, {"before": hard(1.0)}),
    "a rare clip": (ADAM, {"before": hard(10.0)}),
    "adamw": (optax.adamw(1e-3), {"before": optax.clip_by_global_norm(1.0)}),
    "a chain": (optax.chain(hard(1.0), ADAM), {}),
    "a watched chain": (optax.chain(jc.monitor(hard(1.0)), ADAM), {}),
    "leaves": (ADAM, {"before": hard(0.5, jc.PerLeaf())}),
    "adaptive": (
        ADAM,
        {"before": jc.as_transform(jc.Adaptive(jc.policy.Percentile(50.0)))},
    ),
    "stabilised": (
        ADAM,
        {"before": jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer()))},
    ),
    "lion": (optax.lion(1e-3), {"before": hard(1.0)}),
    "behind": (optax.scale_by_rms(0.99), {"after": hard(1.5, RMS)}),
    "guarded": (jc.skip_nonfinite(optax.chain(hard(1.0), ADAM)), {}),
    "zeroed": (jc.zero_nonfinite(optax.chain(hard(1.0), ADAM)), {}),
    "a guard without memory behind": (
        optax.sgd(0.1),
        {"before": jc.skip_nonfinite(hard(1.0))},
    ),
    "spikes": (jc.skip_spikes(ADAM, jc.HardClip(99.0)), {}),
    "watched in a guard": (
        jc.skip_nonfinite(optax.chain(jc.monitor(hard(1.0)), ADAM)),
        {},
    ),
    "no clip": (ADAM, {}),
    "behind a wrapper": (
        optax.MultiSteps(
            optax.chain(jc.monitor(hard(0.5)), ADAM), 2
        ).gradient_transformation(),
        {},
    ),
    "a part": (
        optax.partition(
            {"a": optax.chain(jc.monitor(hard(0.8)), ADAM), "b": optax.sgd(0.1)},
            {"w": "a", "b": "b"},
        ),
        {},
    ),
    "a schedule from 0": (
        optax.adamw(optax.warmup_constant_schedule(0.0, 1e-3, 5)),
        {"before": hard(1.0)},
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_well_has_no_finding(name):
    optimizer, links = HEALTHY[name]
    found, check = kinds(optimizer, **links)
    assert found == []
    assert str(check).startswith("Nothing was found on 24 gradients")


# The numbers, each known in closed form


def test_a_clip_below_epsilon_in_numbers():
    """One number, of one size: c / (c + eps) is left of the step."""
    params, data = jnp.zeros(()), jnp.full(20, 1e7)
    check = check_chain(optax.adam(1.0), params, data, before=hard(1e-9))
    assert check.shortening == pytest.approx(1 / 11, rel=1e-3)
    assert check.effect == pytest.approx(10 / 11, rel=1e-3)
    assert check.scale < 1e-12 and check.steps == 20
    (clip,) = check.clips
    assert clip.acted == 1 and clip.constant and clip.on_spike and clip.grows
    # At ten times the length it would be 10 / 20.
    assert "change its updates by 4.5:" in check.findings[0].sentence


def test_the_numbers_of_a_healthy_clip():
    data = gradients()
    norms = np.linalg.norm(
        np.concatenate([np.reshape(x, (STEPS, -1)) for x in data.values()], 1), axis=1
    )
    removed = np.linalg.norm(np.maximum(norms - 1, 0)) / np.linalg.norm(norms)
    ratio = np.median(np.minimum(1, 1 / norms))
    for optimizer, links in (
        (optax.sgd(0.1), {"before": hard(1.0)}),
        (optax.chain(jc.monitor(hard(1.0)), optax.sgd(0.1)), {}),
    ):
        check = check_chain(optimizer, PARAMS, data, **links)
        (clip,) = check.clips
        assert clip.acted == np.mean(norms > 1) and 0.2 < clip.acted < 0.8
        assert clip.change == pytest.approx(removed, rel=1e-6)
        assert check.effect == pytest.approx(removed, rel=1e-6)
        assert check.shortening == pytest.approx(ratio, rel=1e-6)
        assert check.scale == pytest.approx(9.0, rel=1e-6)
        assert not clip.constant and not clip.behind


def test_a_part_that_stalls_is_named():
    parts = {
        "a": optax.chain(jc.monitor(hard(1e-9)), ADAM),
        "b": optax.sgd(0.1),
    }
    found, check = kinds(optax.partition(parts, {"w": "a", "b": "b"}))
    assert found == ["epsilon"]
    assert "updates of `['w']` are 0.0" in check.findings[0].sentence
    # The other part hides it in the whole.
    assert check.scale > 1 and check.shortening > 0.9


def test_clips_that_cannot_be_left_out():
    optimizer, _ = HEALTHY["behind a wrapper"]
    check = check_chain(optimizer, PARAMS, gradients())
    assert np.isnan(check.effect) and "could not be left out" in str(check)
    assert check.clips[0].acted > 0.2


def test_three_clips_are_told_apart():
    chain = optax.chain(jc.monitor(hard(0.8)), ADAM)
    found, check = kinds(chain, before=hard(1.2), after=hard(1.0))
    assert [clip.name for clip in check.clips] == ["before", "monitor 0", "after"]
    assert [clip.behind for clip in check.clips] == [False, False, True]
    # The shorter one behind it does all that `before` does.
    assert found == ["no effect", "never"]
    for finding, name in zip(check.findings, ("before", "after"), strict=True):
        assert f"`{name}`" in finding.sentence
    acted = [clip.acted for clip in check.clips]
    assert 0 < acted[0] < acted[1] < 1 and acted[2] == 0


def test_without_a_clip_to_watch_it_says_so():
    check = check_chain(optax.chain(hard(1.0), ADAM), PARAMS, gradients())
    assert check.clips == () and "No clip could be watched" in str(check)
    # It is left out of the comparison all the same.
    assert check.effect > 0.01


@pytest.mark.float32
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_in_other_precisions(dtype):
    data = gradients(dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    for threshold, kind in ((1.0, []), (1e-9, ["epsilon"])):
        check = check_chain(ADAM, params, data, before=hard(threshold))
        assert [f.kind for f in check.findings] == kind


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_chain(ADAM, PARAMS, gradients(steps=2)), "at least 3 steps"),
        (
            lambda: check_chain(ADAM, {"w": jnp.ones(3)}, gradients()),
            "structure and shapes of `params`",
        ),
        (
            lambda: check_chain(
                ADAM, PARAMS, jax.tree.map(lambda x: x * jnp.nan, gradients())
            ),
            "`gradients` must be finite",
        ),
        (
            lambda: check_chain(optax.set_to_zero(), PARAMS, gradients()),
            "returned updates of zero",
        ),
        (
            lambda: check_chain(
                ADAM,
                PARAMS["w"],
                gradients()["w"],
                before=jc.as_transform(jc.HardClip(1.0), jc.PerExample()),
            ),
            "`before` must return updates of the gradients' shapes",
        ),
        (
            lambda: jax.jit(lambda g: check_chain(ADAM, PARAMS, g).scale)(gradients()),
            "runs outside of `jax.jit`",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_changed():
    """Neither the gradients nor what a transform remembers."""
    data = gradients()
    kept = jax.tree.map(np.array, data)
    first = check_chain(ADAM, PARAMS, data, before=hard(1.0))
    second = check_chain(ADAM, PARAMS, data, before=hard(1.0))
    assert first.effect == second.effect and first.clips == second.clips
    jax.tree.map(np.testing.assert_array_equal, data, kept)
