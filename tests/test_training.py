"""Transforms in training runs: on meshes, donated, copied, exported, watched."""

import copy
import re
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.experimental import sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxclip as jc
from jaxclip.transform import _sums
from jaxclip.transform._norm import reals

X64 = jax.config.jax_enable_x64
HARD = jc.HardClip(1.0)


def numpy_norm(tree) -> float:
    leaves = [np.abs(np.asarray(leaf, np.complex128)) for leaf in jax.tree.leaves(tree)]
    scale = max((leaf.max(initial=0) for leaf in leaves), default=0) or 1.0
    return scale * np.sqrt(sum(np.sum((leaf / scale) ** 2) for leaf in leaves))


# Meshes

# A leaf of each kind: FSDP, tensor parallel, over both axes, and replicated.
SPECS = {
    "fsdp": P("data", None),
    "tensor": P(None, "model"),
    "both": P("data", "model"),
    "joint": P(("data", "model"), None),
    "bias": P(),
}
SHAPES = {**dict.fromkeys(SPECS, (16, 24)), "bias": (24,)}
TREE = {
    name: np.random.default_rng(i).normal(size=shape).astype(np.float32)
    for i, (name, shape) in enumerate(SHAPES.items())
}
TRANSFORMS = {
    "tree": jc.as_transform(HARD),
    "leaf": jc.as_transform(jc.SoftClip(1.0), jc.PerLeaf()),
    "rms": jc.as_transform(jc.HardClip(0.5), jc.transform.PerLeafRMS()),
    "unit": jc.as_transform(jc.HardClip(0.5), jc.PerUnit()),
    "coordinate": jc.as_transform(jc.HardClip(0.5), jc.PerCoordinate()),
    "monitor": jc.monitor(jc.as_transform(jc.HardClip(0.5), jc.PerCoordinate())),
    "adaptive": jc.as_transform(jc.Adaptive(jc.policy.ZScore(), jc.SoftClip)),
    "adaptive leaves": jc.as_transform(
        jc.Adaptive(jc.policy.AdaGC(warmup=1)), jc.PerLeaf()
    ),
    "adaptive coordinates": jc.as_transform(
        jc.Adaptive(jc.policy.SecondMoment(0.5)), jc.PerCoordinate()
    ),
    "adaptive units": jc.as_transform(
        jc.Adaptive(jc.policy.QuantileDescent()), jc.PerUnit()
    ),
    "criterion": jc.as_transform(jc.Adaptive(jc.policy.Criterion(decay=0.5))),
    "band": jc.as_transform(jc.Adaptive(jc.policy.AGGC(0.5, 1.5)), jc.PerLeaf()),
    "stabilised": jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer())),
    "stable_adam": jc.algorithm.stable_adam(jc.HardClip(0.9)),
    "skip": jc.skip_nonfinite(jc.as_transform(HARD)),
    "spikes": jc.skip_spikes(optax.sgd(0.1), jc.HardClip(1e3)),
}
KINDS = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}


def two_updates(transform, gradients, params):
    """The second of two updates and the state after it."""
    state = transform.init(params)
    _, state = transform.update(gradients, state, params)
    return transform.update(jax.tree.map(lambda g: 2 * g, gradients), state, params)


def placed(mesh, tree):
    return {
        name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name]))
        for name, leaf in tree.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_mesh_gives_the_numbers_of_one_device(name, kind):
    """And nothing travels but sums, of one number for each norm or leaf."""
    run = partial(two_updates, TRANSFORMS[name])
    params = {name: leaf + 1 for name, leaf in TREE.items()}
    alone = jax.jit(run)(TREE, params)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(KINDS[kind],) * 2)
    with jax.set_mesh(mesh):
        arguments = placed(mesh, TREE), placed(mesh, params)
        compiled = jax.jit(run).lower(*arguments).compile()
        spread = compiled(*arguments)
    for one, many in zip(*map(jax.tree.leaves, (alone, spread)), strict=True):
        np.testing.assert_allclose(many, one, rtol=2e-6, atol=1e-7)
    text = compiled.as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", text)
    # One norm for each unit is the most: 24 of each matrix.
    for shapes in re.findall(r"= (\S.*?) all-reduce(?:-start)?\(", text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes):
            assert np.prod([int(n) for n in shape.split(",") if n] or [1]) <= 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", [jc.PerExample(), jc.PerExample(within=jc.PerLeaf())])
def test_examples_on_a_mesh(scope, kind):
    """The examples over one axis and the weights over the other."""
    transform = jc.as_transform(HARD, scope)
    batch = np.random.default_rng(3).normal(size=(8, 16, 24)).astype(np.float32)
    tree = {"w": batch, "b": batch[:, 0] / 3}
    alone, _ = transform.update(tree, transform.init(None))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(KINDS[kind],) * 2)
    specs = {"w": P("data", None, "model"), "b": P("data", "model")}
    with jax.set_mesh(mesh):
        spread = {
            k: jax.device_put(tree[k], NamedSharding(mesh, specs[k])) for k in tree
        }
        value = jax.jit(lambda g: transform.update(g, transform.init(None))[0])(spread)
    for key, expected in alone.items():
        np.testing.assert_allclose(value[key], expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    "scope",
    [
        jc.PerTree(axis_name="shards"),
        jc.PerLeaf(axis_name="shards"),
        jc.transform.PerLeafRMS(axis_name=("shards",)),
        jc.PerUnit(axis_name="shards"),
    ],
)
def test_shards_of_the_users_own(scope, checked):
    """Inside of `shard_map`, by the name of the axis, and the derivative too."""
    mesh = jax.make_mesh((4,), ("shards",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.asarray(TREE["fsdp"]) + 1, "b": jnp.asarray(TREE["bias"])}
    weight = jnp.asarray(TREE["tensor"])

    def clipped(scope, gradient, params):
        transform = jc.as_transform(jc.HardClip(0.3), scope)
        return transform.update(gradient, transform.init(params), params)[0]

    # Along the first axis of the matrix, whose columns are the units; the bias whole on
    # every device. Without JAX's account of it, that would count four times.
    keys = ("w", "b") if checked else ("w",)
    tree = {key: params[key] for key in keys}
    specs = {"w": P("shards", None), "b": P()}
    specs = {key: specs[key] for key in keys}

    def loss(g, scope, spread):
        def part(g, p):
            return clipped(scope, jax.tree.map(jnp.multiply, g, p), p)

        if spread:
            part = jax.shard_map(
                part,
                mesh=mesh,
                in_specs=(specs, specs),
                out_specs=specs,
                check_vma=checked,
            )
        out = part(g, tree)
        return jnp.sum(out["w"] * weight), out

    plain = type(scope)()
    run = jax.value_and_grad(loss, has_aux=True)
    expected = run(tree, plain, False)
    if checked:
        ours = jax.jit(lambda g: run(g, scope, True))(tree)
    else:
        ours, expected = loss(tree, scope, True), expected[0]
    for one, many in zip(*map(jax.tree.leaves, (expected, ours)), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def test_four_shards_have_norm_one():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    transform = jc.as_transform(HARD, jc.PerTree(axis_name="d"))

    def step(g):
        return transform.update(g, transform.init(g))[0]

    run = jax.shard_map(step, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    assert numpy_norm(run(jnp.arange(1.0, 9.0))) == pytest.approx(1.0)


# The norm


@pytest.mark.float32
@pytest.mark.parametrize("how", [_sums.branching, _sums.branchless])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_norms_at_any_scale(how, dtype):
    """Both ways to sum, whatever the machine of this test takes."""
    if dtype == "float64" and not X64:
        pytest.skip("there is no float64")
    with jax.numpy_dtype_promotion("standard"):
        check_norms_at_any_scale(jax.jit(lambda x: how(reals(x), 0, None)), dtype)


def check_norms_at_any_scale(run, dtype):
    most = 304 if dtype == "float64" else 37
    for power in np.linspace(-most, most, 25):
        for size in (1, 3, 1000):
            x = np.random.default_rng(size).uniform(0.2, 3, size) * 10.0**power
            x = jnp.asarray(x, dtype)
            largest = float(jnp.finfo(x.dtype).max)
            expected = numpy_norm(x) if numpy_norm(x) < largest else np.inf
            assert run(x) == pytest.approx(expected, rel=2e-6)
    # Ranges beside each other; a range whose sum is out of the other's reach.
    for numbers in ([1e-20, 1e-15, 1.0], [3e20, 1.0], [1e13, 4e13], [2e-14, 1e-14]):
        x = jnp.array(numbers, dtype)
        assert run(x) == pytest.approx(numpy_norm(x), rel=2e-6)
    assert run(jnp.zeros(3, dtype)) == 0
    for bad, expected in ((jnp.inf, jnp.inf), (jnp.nan, jnp.nan)):
        for beside in (0.0, 1e-30, 1.0, 1e30):
            value = run(jnp.array([beside, bad], dtype))
            np.testing.assert_array_equal(value, expected)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("numbers", [[9e37], [2e38, 2e38], [1e38, 1.0], [1.2e-38]])
@pytest.mark.parametrize("jit", [False, True])
def test_a_gradient_near_the_ends_of_float32(numbers, dtype, jit):
    gradient = jnp.array(numbers, dtype)
    update = lambda g, c: jc.as_transform(jc.HardClip(c)).update(g, None)[0]  # noqa: E731
    update = jax.jit(update) if jit else update
    assert jc.safe_norm(gradient) == pytest.approx(numpy_norm(gradient), rel=1e-6)
    for threshold in (1.0, 1e-9):
        expected = min(threshold, numpy_norm(gradient))
        value = update(gradient, jnp.asarray(threshold, jnp.float32))
        assert numpy_norm(value) == pytest.approx(expected, rel=1e-2)
    # A rule that drops such a gradient does, and one that keeps a part of it does.
    norm = numpy_norm(gradient)
    skipped = jc.as_transform(jc.SkipClip(1.0)).update(gradient, None)[0]
    assert numpy_norm(skipped) == (0 if norm > 1 else norm)
    kept = jc.as_transform(jc.DeltaClip(1.0, 0.5)).update(gradient, None)[0]
    expected = norm / 2 if norm > 1 else norm
    assert numpy_norm(kept) == pytest.approx(expected, rel=1e-2)


@pytest.mark.float32
@pytest.mark.parametrize("passes", [1, 2])
def test_an_example_near_the_end_of_float32_is_left_out(passes):
    """The weight of each in the sum is one number, and its is too small for one."""
    batch = jnp.array([[2e38, 2e38], [3.0, 4.0]], jnp.float32)
    scope = jc.PerExample("sum")
    value, _ = jc.as_transform(HARD, scope).update(batch, None)
    np.testing.assert_allclose(value, [0.6, 0.8], rtol=1e-6)
    gradient = jc.clipped_grad(jnp.vdot, HARD, scope, passes=passes)
    value = gradient(jnp.zeros(2, jnp.float32), batch)
    np.testing.assert_allclose(value, [0.6, 0.8], rtol=1e-6)


# State


@pytest.mark.float32
def test_a_rule_without_memory_has_no_state():
    gradient = {"a": jnp.array([3.0, 4.0])}
    for clip in (HARD, jc.Normalize(), jax.tree.map(jc.HardClip, {"a": 1.0})):
        scope = jc.PerLeaf() if isinstance(clip, dict) else jc.PerTree()
        transform = jc.as_transform(clip, scope)
        assert transform.init(gradient) == optax.EmptyState()
        for state in (optax.EmptyState(), None):
            value, after = transform.update(gradient, state)
            assert after == state
            np.testing.assert_allclose(value["a"], [0.6, 0.8], rtol=1e-6)


@pytest.mark.usefixtures("mixing")
def test_what_depends_on_the_step_counts():
    gradient = jnp.array([4.0])
    noisy = jc.PerExample(noise_std=1.0, key=jr.key(0))
    for transform in (
        jc.as_transform(jc.HardClip(lambda step: 1.0 + step)),
        jc.as_transform(jc.HardClip(lambda step: 2.0 if step > 1 else 1.0)),
        jc.as_transform(
            jc.HardClip(jc.PiecewiseLinear(np.array([0, 9]), np.array([1.0, 2.0])))
        ),
        jc.as_transform(jc.Adaptive(jc.policy.ZScore())),
        jc.as_transform(HARD, noisy),
    ):
        assert transform.init(gradient).step == 0
    with pytest.raises(ValueError, match="does not count"):
        jc.as_transform(HARD).update(
            gradient, optax.EmptyState(), clip=jc.HardClip(lambda step: 1.0 + step)
        )


def test_a_rule_at_an_update_in_place_of_several_that_adapt():
    rules = {name: jc.Adaptive(jc.policy.Percentile(100.0)) for name in "ab"}
    transform = jc.as_transform(rules, jc.PerLeaf())
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
    before = transform.update(gradient, transform.init(gradient))[1]
    value, state = transform.update(gradient, before, clip=HARD)
    np.testing.assert_allclose(value["a"], [0.6, 0.8])
    np.testing.assert_allclose(value["b"], [0.5])
    # The thresholds are as they were, and the update is counted.
    jax.tree.map(np.testing.assert_array_equal, state.policies, before.policies)
    assert state.step == before.step + 1


def optimisers() -> dict[str, optax.GradientTransformation]:
    clip = jc.as_transform(HARD)
    adaptive = jc.Adaptive(jc.policy.Percentile())
    return {
        "monitor": optax.chain(jc.monitor(clip), optax.adam(1e-3)),
        "leaves": jc.monitor(jc.as_transform(HARD, jc.PerLeaf())),
        "guarded": jc.skip_nonfinite(optax.chain(jc.monitor(clip), optax.adam(1e-3))),
        "steps": optax.MultiSteps(optax.chain(jc.monitor(clip), optax.adam(1e-3)), 2),
        "finite": optax.apply_if_finite(jc.monitor(clip), 3),
        "momentum": jc.algorithm.mixed_momentum(HARD),
        "adaptive": jc.skip_nonfinite(jc.as_transform(adaptive, jc.PerLeaf())),
        "coordinates": jc.as_transform(adaptive, jc.PerCoordinate()),
        "criterion": jc.monitor(jc.as_transform(jc.Adaptive(jc.policy.Criterion()))),
        "units": jc.monitor(
            jc.as_transform(jc.Adaptive(jc.policy.AdaGC()), jc.PerUnit())
        ),
        "band": jc.as_transform(jc.Adaptive(jc.policy.AGGC(0.5, 1.5)), jc.PerLeaf()),
        "stabilised": jc.monitor(
            jc.as_transform(jc.Adaptive(jc.policy.GradientStabilizer()), jc.PerUnit())
        ),
        "stable_adam": jc.algorithm.stable_adam(adaptive),
        "spider": jc.algorithm.spider(HARD, jc.algorithm.PeriodicSpider(4)),
        "feedback": jc.algorithm.error_feedback(clip),
        "zeroed": jc.zero_nonfinite(jc.monitor(clip)),
        "spikes": jc.skip_spikes(optax.adam(1e-3), jc.Adaptive(jc.policy.ZScore())),
    }


PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}


def extra(name) -> dict[str, Any]:
    return {"previous_gradient": PARAMS} if name == "spider" else {}


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("name", optimisers())
def test_states_are_donated(name):
    transform = optimisers()[name]
    step = jax.jit(
        lambda g, s: transform.update(g, s, PARAMS, **extra(name)), donate_argnums=1
    )
    _, state = step(PARAMS, transform.init(PARAMS))
    step(PARAMS, state)


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("name", optimisers())
def test_states_tell_what_belongs_to_a_parameter(name):
    """What is mapped as a parameter has its shape, with axes behind it at most."""
    transform = optimisers()[name]
    if isinstance(transform, optax.MultiSteps):
        transform = transform.gradient_transformation()
    state = transform.init(PARAMS)
    shapes = jax.tree.map(jnp.shape, PARAMS, is_leaf=eqx.is_array)
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731

    def of_parameter(leaf, shape):
        # Of a norm for each unit one axis has length 1.
        for size, full in zip(jnp.shape(leaf), shape.value, strict=False):
            assert size in (1, full)
        assert jnp.ndim(leaf) >= len(shape.value)
        return leaf

    class Shape:
        def __init__(self, value):
            self.value = value

    wrapped = jax.tree.map(Shape, shapes, is_leaf=is_shape)
    same = optax.tree_map_params(
        transform, of_parameter, state, wrapped, transform_non_params=jnp.asarray
    )
    assert jax.tree.structure(same) == jax.tree.structure(state)


class Trainer(eqx.Module):
    optimiser: optax.GradientTransformation
    params: Any


@pytest.mark.parametrize("name", ["plain", "monitor", "adaptive"])
def test_a_transform_is_copied_flattened_and_handed_over(name):
    clip = jc.Adaptive(jc.policy.ZScore()) if name == "adaptive" else jc.HardClip(0.5)
    transform = jc.as_transform(clip)
    transform = jc.monitor(transform) if name == "monitor" else transform
    expected, _ = transform.update(PARAMS, transform.init(PARAMS))

    @eqx.filter_jit
    def step(optimiser, gradient, state):
        return optimiser.update(gradient, state)

    for other in (
        copy.copy(transform),
        copy.deepcopy(transform),
        jax.tree.map(lambda x: x, Trainer(transform, PARAMS)).optimiser,
        jax.tree.map(lambda x: x, {"a": transform})["a"],
        jax.tree.unflatten(*jax.tree.flatten(transform)[::-1]),
    ):
        value, _ = step(other, PARAMS, other.init(PARAMS))
        np.testing.assert_allclose(value["w"], expected["w"], rtol=1e-6)
        if name == "plain":
            # A monitor still finds what it watches.
            jc.monitor(other).init(PARAMS)


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("of", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_parameters_and_gradients_of_two_precisions(of):
    params, gradient = (jnp.ones(3, dtype) for dtype in of)
    for inner in (optax.adam(0.1), optax.sgd(0.1, 0.9)):
        chain = optax.chain(jc.monitor(jc.as_transform(HARD)), inner)
        for transform in (jc.skip_nonfinite(chain), jc.skip_spikes(chain, HARD)):
            state = transform.init(params)
            update = jax.jit(transform.update)
            with_types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
            value, state = update(gradient, state, params)
            value, state = update(gradient, state, params)
            assert jnp.all(jnp.isfinite(value))
            assert jax.tree.structure(with_types) == jax.tree.structure(
                jax.tree.map(lambda x: (x.shape, x.dtype), state)
            )


# Programs for other machines


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize("name", [*optimisers(), "inject", "examples"])
def test_a_step_is_exported_for_every_platform(name):
    """In which there is no callback to the host."""
    if name == "inject":
        make = optax.inject_hyperparams(
            lambda c, z: optax.chain(
                jc.as_transform(jc.HardClip(c)),
                jc.as_transform(jc.Adaptive(jc.policy.ZScore(z)), jc.PerLeaf()),
            )
        )
        transform = make(c=1.0, z=2.0)
    elif name == "examples":
        noisy = jc.PerExample(noise_std=1.0, key=jr.key(0))
        transform = jc.as_transform(HARD, noisy)
    else:
        transform = (
            TRANSFORMS["coordinate"] if name == "sharded" else optimisers()[name]
        )
    platforms = ["cpu", "cuda", "tpu"]
    run = jax.jit(lambda g, s: transform.update(g, s, PARAMS, **extra(name)))
    gradient = jax.tree.map(lambda x: jnp.stack([x] * 2), PARAMS)
    gradient = gradient if name == "examples" else PARAMS
    exported = jax.export.export(run, platforms=platforms)(
        gradient, transform.init(PARAMS)
    )
    assert exported.platforms == tuple(platforms)
    assert "callback" not in exported.mlir_module()


# Trees as they come


@pytest.mark.float32
def test_a_model_with_functions_in_it():
    model = eqx.nn.MLP(2, 1, 8, 1, key=jr.key(0))
    gradient = jax.tree.map(lambda x: x, model)
    norm = numpy_norm(eqx.filter(model, eqx.is_inexact_array))
    for scope in (jc.PerTree(), jc.PerLeaf(), jc.PerUnit(unit=0), jc.PerCoordinate()):
        for clip in (jc.HardClip(0.1), jc.Adaptive(jc.policy.ZScore())):
            transform = jc.monitor(jc.as_transform(clip, scope))
            # Of one compilation each, and by itself below.
            update = eqx.filter_jit(transform.update)
            value, _ = update(gradient, transform.init(model), model)
            assert value.activation is model.activation
    value, _ = jc.as_transform(jc.HardClip(0.1)).update(gradient, None)
    assert norm > 0.5
    assert numpy_norm(eqx.filter(value, eqx.is_inexact_array)) == pytest.approx(0.1)


@pytest.mark.float32
@pytest.mark.parametrize("jit", [False, True])
def test_a_sparse_gradient(jit):
    """Of which an entry is given twice, as the rows of an embedding are."""
    entries = jnp.array([3.0, 1.0, 1.0, 4.0])
    places = jnp.array([[0, 0], [1, 1], [1, 1], [2, 0]])
    matrix = sparse.BCOO((entries, places), shape=(3, 2))
    tree = {"embedding": matrix, "b": jnp.array([6.0])}
    norm = np.sqrt(9 + 4 + 16 + 36)
    assert jc.safe_norm(tree) == pytest.approx(norm)
    update = jc.as_transform(HARD).update
    value, _ = (jax.jit(update) if jit else update)(tree, None)
    dense = np.array([[3.0, 0], [0, 2.0], [4.0, 0]]) / norm
    np.testing.assert_allclose(value["embedding"].todense(), dense, rtol=1e-6)
    np.testing.assert_allclose(value["b"], [6.0 / norm], rtol=1e-6)


def test_what_is_no_gradient_passes():
    zero = np.zeros(2, jax.dtypes.float0)
    others = {"n": zero, "k": jr.key(0), "f": jnp.sin, "o": None, "flag": True}
    tree = {"a": jnp.array([3.0, 4.0]), **others}
    value, _ = jc.as_transform(HARD).update(tree, None)
    np.testing.assert_allclose(value["a"], [0.6, 0.8])
    assert value["n"] is zero and value["k"] is tree["k"] and value["f"] is jnp.sin


GUARDS = {
    "skip": lambda inner: jc.skip_nonfinite(inner),
    "zero": lambda inner: jc.zero_nonfinite(inner),
    "spikes": lambda inner: jc.skip_spikes(inner, jc.HardClip(1e3)),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", GUARDS)
def test_guards_pass_what_is_no_gradient(name, jit):
    """A model with functions in it, keys, flags, indices: in both cases."""
    zero = np.zeros(2, jax.dtypes.float0)
    table = sparse.BCOO.fromdense(jnp.array([[0.0, 12.0], [0.0, 0.0]]))
    others = {"n": zero, "k": jr.key(0), "f": jnp.sin, "o": None, "on": jnp.array(True)}
    transform = GUARDS[name](jc.monitor(jc.as_transform(HARD)))
    update = eqx.filter_jit(transform.update) if jit else transform.update
    for bad in (False, True):
        row = jnp.array([3.0, jnp.nan if bad else 4.0])
        tree = {"a": row, "t": table, **others}
        value, state = update(tree, transform.init(tree))
        left = np.array([3.0, 0.0 if bad else 4.0])
        gone = bad and name != "zero"
        shrunk = 0.0 if gone else 1 / np.hypot(np.linalg.norm(left), 12.0)
        expected = left * shrunk
        np.testing.assert_allclose(value["a"], expected, rtol=1e-6)
        np.testing.assert_allclose(value["t"].data, [12.0 * shrunk], rtol=1e-6)
        assert value["n"].dtype == zero.dtype and value["o"] is None
        assert value["f"] is jnp.sin
        assert value["on"] and value["k"] == tree["k"]
        counted = state.skipped if name == "spikes" else state.nonfinite
        assert int(counted) == int(bad)


# Thresholds that adapt


@pytest.mark.parametrize("scope", [jc.PerTree(), jc.PerLeaf(), jc.PerCoordinate()])
@pytest.mark.parametrize("tree", [{}, {"a": None}, {"f": jnp.sin}])
def test_a_tree_without_gradients(scope, tree):
    for clip in (HARD, jc.Adaptive(jc.policy.ZScore())):
        transform = jc.monitor(jc.as_transform(clip, scope))
        value, state = transform.update(tree, transform.init(tree))
        assert value == tree
        assert jc.clip_metrics(state)["clipped"] == 0


POLICIES = {
    "percentile": jc.policy.Percentile(10.0),
    "quantile": jc.policy.QuantileDescent(),
    "z_score": jc.policy.ZScore(),
    "ada_gc": jc.policy.AdaGC(),
    "second_moment": jc.policy.SecondMoment(),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("before", [0, 200])
def test_a_part_without_gradients_is_not_frozen_for_good(name, before):
    """An expert that got no tokens, or a layer that was frozen, for 3000 updates."""
    transform = jc.as_transform(jc.Adaptive(POLICIES[name]), jc.PerLeaf())
    sizes = jnp.concatenate([jnp.ones(before), jnp.zeros(3000), jnp.ones(3000)])

    def step(state, size):
        gradient = {"expert": jnp.array([size, 0.0])}
        value, state = transform.update(gradient, state)
        return state, jnp.linalg.norm(value["expert"])

    state = transform.init({"expert": jnp.zeros(2)})
    lengths = jax.jit(lambda s: jax.lax.scan(step, s, sizes)[1])(state)
    assert lengths[-1] > 0.5


def test_an_adaptive_skip_passes_ordinary_gradients():
    transform = jc.as_transform(jc.Adaptive(jc.policy.ZScore(), jc.SkipClip))
    norms = 3 + jr.normal(jr.key(0), (300,)) / 3

    def step(state, norm):
        value, state = transform.update(jnp.array([norm]), state)
        return state, value[0]

    _, values = jax.lax.scan(
        step, transform.init(jnp.zeros(1)), norms.at[200].set(90.0)
    )
    assert values[200] == 0
    assert jnp.mean(values > 0) > 0.95


# Units


def test_units_of_every_layout():
    linear, conv = (
        eqx.nn.Linear(5, 3, key=jr.key(0)),
        eqx.nn.Conv2d(2, 4, 3, key=jr.key(1)),
    )
    params = eqx.filter({"lin": linear, "conv": conv}, eqx.is_inexact_array)
    gradient = jax.tree.map(lambda x: jr.normal(jr.key(3), x.shape), params)

    def by_hand(g, w):
        axes = tuple(range(1, g.ndim))
        size = np.maximum(np.sqrt(np.sum(w**2, axes, keepdims=True)), 1e-3)
        norm = np.sqrt(np.sum(g**2, axes, keepdims=True))
        return g * np.minimum(1, 0.1 * size / norm)

    def named(path, leaf):
        return tuple(range(1, leaf.ndim)) if "weight" in path else None

    for scope in (
        jc.PerUnit(unit=0),
        jc.PerUnit(axis=(1, 2, 3)),
        jc.PerUnit(axis=named),
    ):
        transform = jc.as_transform(jc.HardClip(0.1), scope)
        value, _ = transform.update(gradient, None, params)
        for key in params:
            expected = by_hand(*(np.asarray(t[key].weight) for t in (gradient, params)))
            np.testing.assert_allclose(value[key].weight, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="give one of them"):
        jc.PerUnit(axis=0, unit=1)
    with pytest.raises(ValueError, match="axis of units"):
        jc.as_transform(HARD, jc.PerUnit(unit=2)).update(PARAMS, None, PARAMS)


# What is seen


def test_metrics_of_every_monitor():
    clip = jc.monitor(jc.as_transform(jc.HardClip(1.0)), window=2)
    state = clip.init(PARAMS)
    for size in (3.0, 0.5, 0.25, 4.0):
        _, state = jax.jit(clip.update)({"w": jnp.array([size]), "b": None}, state)
    metrics = jax.jit(jc.clip_metrics)({"train": (state, jnp.ones(3))})
    expected = {
        "norm": 4.0, "factor": 0.25, "threshold": 1.0, "removed": 0.75, "clipped": 0.5,
        # 1, then (1 + 0) / 2, then half of the way to each.
        "recent": 0.625, "updates": 4, "nonfinite": 0, "regime/0": 2, "regime/1": 2,
    }  # fmt: skip
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].shape == ()
        np.testing.assert_allclose(metrics[name], value)
    leaves = jc.monitor(jc.as_transform(jc.SoftClip(2.0), jc.PerLeaf()))
    chain = optax.chain(leaves, jc.monitor(jc.as_transform(jc.Normalize())))
    _, state = chain.update(PARAMS, chain.init(PARAMS))
    names = jc.clip_metrics(state, PARAMS)
    np.testing.assert_allclose(names["0/norm/w"], np.sqrt(12))
    np.testing.assert_allclose(names["0/threshold/b"], 2.0)
    assert names["1/threshold"] == np.inf
    assert "0/norm/1" in jc.clip_metrics(state)
    with pytest.raises(ValueError, match="a monitor in it"):
        jc.clip_metrics(optax.EmptyState())


@pytest.mark.usefixtures("mixing")
def test_a_spike_moves_nothing():
    """Against the run in which it never was."""
    spikes = {3: 50.0, 7: jnp.nan}
    guarded = jc.skip_spikes(optax.adam(0.1), jc.HardClip(10.0))
    plain = optax.adam(0.1)
    ours, theirs = guarded.init(PARAMS), plain.init(PARAMS)
    update = jax.jit(guarded.update)
    for step in range(10):
        gradient = jax.tree.map(lambda x, s=step: jnp.cos(s + x), PARAMS)
        value, ours = update(
            jax.tree.map(lambda g, s=step: spikes.get(s, 1.0) * g, gradient), ours
        )
        if step in spikes:
            assert not np.any(value["w"])
            continue
        expected, theirs = plain.update(gradient, theirs)
        np.testing.assert_allclose(value["w"], expected["w"], rtol=1e-12)
    assert ours.skipped == 2
    for clip in (jc.Identity(), jc.Normalize()):
        with pytest.raises(ValueError, match="must have a threshold"):
            jc.skip_spikes(plain, clip)


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        (jc.policy.AdaGC(3.0), True),
        (jc.policy.Percentile(99.0), True),
        (jc.policy.QuantileDescent(0.99, initial=1.0), True),
        (jc.policy.ZScore(4.0), False),
    ],
)
def test_gradients_that_have_become_larger_for_good(policy, passes):
    """Ten times as large: what the docstring says of each policy."""
    few, many = jr.normal(jr.key(0), (500,)), jr.normal(jr.key(1), (1000,))
    norms = jnp.concatenate([1 + few / 10, 10 + many])
    guarded = jc.skip_spikes(optax.sgd(1.0), jc.Adaptive(policy))

    def step(state, norm):
        value, state = guarded.update(jnp.array([norm]), state)
        return state, value[0] != 0

    _, moved = jax.jit(lambda s: jax.lax.scan(step, s, norms))(
        guarded.init(jnp.zeros(1))
    )
    assert jnp.mean(moved[100:500]) > 0.97
    assert jnp.mean(moved[-500:]) > 0.97 if passes else not jnp.any(moved[500:])


def test_a_spike_needs_a_rule(without_type_checks):
    with pytest.raises(ValueError, match="`clip` must be a clipping rule"):
        jc.skip_spikes.__wrapped__(optax.sgd(0.1), 100.0)


@pytest.mark.parametrize("guard", [jc.skip_nonfinite, jc.zero_nonfinite])
def test_a_skipped_step_has_no_part_in_a_hypergradient(guard):
    x = jr.normal(jr.key(0), (16, 3)).at[3].set(jnp.nan)
    y = jr.normal(jr.key(1), (16,))

    def loss(w, example):
        return (jnp.dot(w, example[0]) - example[1]) ** 2

    def after(c):
        clip = jc.as_transform(jc.HardClip(c))
        optimiser = guard(optax.chain(clip, optax.sgd(0.1)))
        return jc.unroll(jax.grad(loss), jnp.ones(3), optimiser, (x, y))[0][0]

    with jax.numpy_dtype_promotion("standard"):
        expected = (after(1 + 1e-6) - after(1 - 1e-6)) / 2e-6
        assert jax.grad(after)(1.0) == pytest.approx(float(expected), abs=1e-6)
        forward = jax.jvp(after, (1.0,), (1.0,))[1]
    assert forward == pytest.approx(float(expected), abs=1e-6)


@pytest.fixture
def mixing():
    """Some of optax's own transforms mix precisions, and steps with numbers."""
    with jax.numpy_dtype_promotion("standard"):
        yield
