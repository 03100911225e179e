"""What norms are taken over: the corners, optax's own transforms, trees of rules."""

from functools import partial

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import jaxclip as jc
from test_transform import START, random_tree

WEIGHTS = np.array([0.3, 0.4, 1.2])

# Each scope, and what a threshold is multiplied by to be one of the Euclidean norm of a
# vector of three numbers.
SCOPES = {
    "tree": (jc.PerTree(), 1.0),
    "leaf": (jc.PerLeaf(), 1.0),
    "leaf_rms": (jc.transform.PerLeafRMS(), np.sqrt(3)),
    "leaf_share": (jc.transform.PerLeafShare(), 1.0),
    "unit": (jc.PerUnit(), 1.3),
    "coordinate": (jc.PerCoordinate(), 1.0),
    "example": (jc.PerExample("sum"), 1.0),
    "example_and_leaf": (jc.PerExample("sum", within=jc.PerLeaf()), 1.0),
}
all_scopes = pytest.mark.parametrize("name", SCOPES)


@eqx.filter_jit
def update(scope, clip, gradient, params=None):
    return jc.as_transform(clip, scope).update(gradient, START, params)[0]


@partial(jax.jit, static_argnums=0)
def derivatives(name, gradients, thresholds):
    """Value, Jacobian and derivative in the threshold of a hard clip, case by case."""
    scope, _ = SCOPES[name]
    examples = isinstance(scope, jc.PerExample)
    params = jnp.asarray(WEIGHTS).astype(gradients.dtype)

    def clipped(gradient, threshold):
        gradient = gradient[None] if examples else gradient
        return update(scope, jc.HardClip(threshold), gradient, params)

    jacobians, slopes = jax.vmap(jax.jacrev(clipped, (0, 1)))(gradients, thresholds)
    return jax.vmap(clipped)(gradients, thresholds), jacobians, slopes


def expected(g, c, unit):
    """The same by the formulas, in float64, with the derivatives where they exist."""
    n, c = np.linalg.norm(g), c * unit
    if n <= c:
        return g, np.eye(len(g)), np.zeros(len(g))
    jacobian = c / n * (np.eye(len(g)) - np.outer(g / n, g / n))
    return c / n * g, jacobian, unit * g / n


CORNERS = [
    ([3.0, 4.0, 0.0], 1.0),
    ([0.0, 0.0, 0.0], 1.0),
    ([0.0, 0.0, 0.0], 0.0),
    ([0.0, 0.0, 0.0], np.inf),
    ([3.0, 4.0, 0.0], np.inf),
    ([3.0, 4.0, 0.0], 9.0),
    ([1e30, 1.0, 0.0], 1.0),
    ([1e-25, 0.0, 0.0], 1e-30),
    ([3.0, -4.0, 12.0], 6.5),
]


@pytest.mark.float32
@all_scopes
@pytest.mark.parametrize("dtype", [jnp.float32, float])
def test_the_corners(name, dtype):
    gradients, thresholds = (jnp.array(x, dtype) for x in zip(*CORNERS, strict=True))
    results = derivatives(name, gradients, thresholds)
    eps = 4 * float(jnp.finfo(gradients.dtype).eps)
    for i, (g, c) in enumerate(CORNERS):
        g, unit = np.array(gradients[i], np.float64), SCOPES[name][1]
        if name == "coordinate":
            value, jacobian, slope = (
                np.array(
                    [expected(g[j : j + 1], c, 1.0)[k].ravel()[0] for j in range(3)]
                )
                for k in range(3)
            )
            jacobian = np.diag(jacobian)
        else:
            value, jacobian, slope = expected(g, c, unit)
        mine = [np.asarray(x[i], np.float64) for x in results]
        np.testing.assert_allclose(mine[0], value, rtol=eps, atol=1e-37)
        # A derivative that cancels leaves the rounding of the factor, at most 1; and
        # all of it where its other half, c / n^2, is too small for the precision.
        n = max(np.linalg.norm(g), 1e-150)
        lost = c * unit / n**2 < float(jnp.finfo(gradients.dtype).tiny)
        atol = min(1.0, c * unit / n) * (1.01 if lost else 2 * eps)
        np.testing.assert_allclose(mine[1], jacobian, rtol=eps, atol=atol)
        np.testing.assert_allclose(mine[2], slope, rtol=eps, atol=eps)


@pytest.mark.float32
@all_scopes
def test_a_vmap_over_thresholds_is_a_loop(name):
    thresholds = jnp.array([0.0, 0.2, 1.0, 5.0, jnp.inf])
    gradients = jnp.tile(jnp.array([0.3, -1.2, 0.4]), (5, 1))
    values, *_ = derivatives(name, gradients, thresholds)
    for c, value in zip(thresholds, values, strict=True):
        alone, *_ = derivatives(name, gradients[:1], c[None])
        np.testing.assert_allclose(value, alone[0], rtol=1e-6)


@pytest.mark.float32
@all_scopes
def test_precisions_and_empty_leaves(name):
    scope, _ = SCOPES[name]
    gradient = {
        "bfloat16": jnp.array([3.0, -4.0], jnp.bfloat16),
        "float16": jnp.array([3e4, 4e4], jnp.float16),
        "complex": jnp.array([3.0 + 4.0j, 0.0]),
        "none": None,
        "empty": jnp.zeros((0, 2)),
    }
    params = jax.tree.map(jnp.ones_like, gradient)
    if isinstance(scope, jc.PerExample):
        gradient = jax.tree.map(lambda leaf: leaf[None], gradient)
    # float32 on purpose: another precision than that of any leaf.
    for threshold in (jnp.asarray(1.0, jnp.float32), optax.constant_schedule(1.0)):
        value = update(scope, jc.HardClip(threshold), gradient, params)
        assert jax.tree.structure(value) == jax.tree.structure(params)
        for leaf, like in zip(*map(jax.tree.leaves, (value, params)), strict=True):
            assert (leaf.dtype, leaf.shape) == (like.dtype, like.shape)
    if name in ("tree", "example"):
        largest = {"float16": [0.6, 0.8], "complex": [(3 + 4j) / 5e4, 0.0]}
    elif name == "coordinate":
        largest = {"float16": [1.0, 1.0], "complex": [0.6 + 0.8j, 0.0]}
    else:
        length = {"leaf_rms": np.sqrt(2), "unit": np.sqrt(2), "leaf_share": 0.5}
        length = length.get(name, 1.0)
        largest = {
            "float16": np.array([0.6, 0.8]) * length,
            "complex": np.array([0.6 + 0.8j, 0.0]) * length,
        }
    for key, numbers in largest.items():
        leaf = value[key].astype(complex)
        np.testing.assert_allclose(leaf, numbers, rtol=2e-3, atol=1e-12)


# Agreement with optax

sizes = st.sampled_from([1e-3, 0.1, 1.0, 30.0])
thresholds = st.sampled_from([1e-3, 0.2, 1.0, 7.0])


def by_layer(gradient, threshold, uniform):
    # optax takes a flat list.
    leaves, structure = jax.tree.flatten(gradient)
    total, _ = optax.per_example_layer_norm_clip(leaves, threshold, uniform)
    return jax.tree.unflatten(structure, total)


def through(transform):
    return lambda g, params: transform.update(g, optax.EmptyState(), params)[0]


PAIRS = {
    "clip": (jc.PerCoordinate(), lambda c: through(optax.clip(c))),
    "block_rms": (
        jc.transform.PerLeafRMS(),
        lambda c: through(optax.clip_by_block_rms(c)),
    ),
    "agc": (jc.PerUnit(), lambda c: through(optax.adaptive_grad_clip(c))),
    "layers": (
        jc.PerExample("sum", within=jc.transform.PerLeafShare()),
        lambda c: lambda g, _: by_layer(g, c, True),
    ),
    "layers_by_size": (
        jc.PerExample("sum", within=jc.transform.PerLeafShare(by_size=True)),
        lambda c: lambda g, _: by_layer(g, c, False),
    ),
}


@partial(jax.jit, static_argnums=0)
def both(name, gradient, params, threshold, cotangent):
    """Value and pulled back cotangent, ours and optax's."""
    scope, theirs = PAIRS[name]

    def ours(gradient, params, threshold):
        return update(scope, jc.HardClip(threshold), gradient, params)

    results = []
    for way in (ours, lambda g, p, c: theirs(c)(g, p)):
        value, pull = jax.vjp(way, gradient, params, threshold)
        results.append((value, pull(cotangent)))
    return results


@pytest.mark.parametrize("name", PAIRS)
@hypothesis.settings(max_examples=15)
@given(seed=st.integers(0, 2**31), size=sizes, threshold=thresholds)
def test_agrees_with_optax(name, seed, size, threshold):
    tree = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(3), "d": jnp.zeros((2, 2, 2))}}
    params, cotangent = random_tree(seed, tree, 1.0), random_tree(seed + 1, tree, 1.0)
    if isinstance(PAIRS[name][0], jc.PerExample):
        tree = jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), tree)
    gradient = random_tree(seed + 2, tree, size)
    # optax's own transforms mix precisions.
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = both(name, gradient, params, jnp.asarray(threshold), cotangent)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        scale = float(jnp.max(jnp.abs(other), initial=0.0))
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-11 * (scale + 1))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *(((4,), None), ((1, 4), None), ((3, 2), None), ((2, 3, 2), None)),
        *(((2, 2, 3, 2), None), ((2, 2, 2, 3, 2), None)),
        *(((3, 2), 1), ((2, 3, 2), (0, -1))),
    ],
)
def test_units_are_those_of_optax(shape, axis):
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    params = jnp.asarray(np.random.default_rng(1).normal(size=shape))
    transform = optax.adaptive_grad_clip(0.3, axis=axis)
    theirs, _ = transform.update(gradient, optax.EmptyState(), params)
    ours = update(jc.PerUnit(axis=axis), jc.HardClip(0.3), gradient, params)
    assert not np.allclose(ours, gradient)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# Golden vectors

G = jnp.array([3.0, -4.0, 12.0])


@pytest.mark.parametrize(
    ("scope", "clip", "value"),
    [
        (jc.PerCoordinate(), jc.HardClip(3.5), (3, -3.5, 3.5)),
        (jc.transform.PerLeafRMS(), jc.HardClip(1.0), (0.399704, -0.532939, 1.598816)),
        (jc.PerUnit(), jc.HardClip(0.01), (0.001154, -0.001538, 0.004615)),
    ],
)
def test_golden_vectors(scope, clip, value):
    params = jnp.array([0.3, 0.4, 0.0])
    np.testing.assert_allclose(update(scope, clip, G, params), value, rtol=0, atol=1e-6)


def test_golden_vectors_of_leaves():
    gradient = [jnp.array([3.0, -4.0]), jnp.array([12.0])]
    value = update(jc.PerLeaf(), jc.DeltaClip(6.0, 0.2), gradient)
    np.testing.assert_allclose(value[0], [3, -4])
    np.testing.assert_allclose(value[1], [6])


# Trees of rules

PARAMS = {"a": jnp.array([3.0, -4.0]), "b": (jnp.array([12.0]), None)}


def test_a_threshold_for_each_leaf():
    thresholds = {"a": 1.0, "b": (optax.constant_schedule(6.0), None)}
    rules = jax.tree.map(jc.HardClip, thresholds)
    value = update(jc.PerLeaf(), rules, PARAMS)
    np.testing.assert_allclose(value["a"], [0.6, -0.8])
    np.testing.assert_allclose(value["b"][0], [6.0])
    # A rule may stand for all leaves below it, and be of another kind.
    value = update(jc.PerLeaf(), {"a": jc.Identity(), "b": jc.SoftClip(12.0)}, PARAMS)
    np.testing.assert_allclose(value["a"], [3.0, -4.0])
    np.testing.assert_allclose(value["b"][0], [6.0])
    # Among examples, too.
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
    value = update(jc.PerExample("sum", within=jc.PerLeaf()), rules, batch)
    np.testing.assert_allclose(value["a"], [1.2, -1.6])


def test_thresholds_of_leaves_are_tuned():
    def length(thresholds):
        rules = jax.tree.map(jc.HardClip, thresholds)
        return jc.safe_norm(update(jc.PerLeaf(), rules, PARAMS))

    slope = jax.grad(length)({"a": 3.0, "b": (4.0, None)})
    np.testing.assert_allclose([slope["a"], slope["b"][0]], [0.6, 0.8])


def test_thresholds_from_the_users_own_parameters():
    transform = optax.chain(jc.as_transform(jc.HardClip(1.0)), optax.scale(2.0))
    state = transform.init(G)
    value, state = transform.update(G, state, clip=jc.HardClip(6.5), unknown=1)
    np.testing.assert_allclose(value, [3, -4, 12])
    assert state[0] == optax.EmptyState()
    with pytest.raises(ValueError, match="`clip` given to `update` must not be adap"):
        transform.update(G, state, clip=jc.Adaptive(jc.policy.AdaGC()))


# Errors


@pytest.mark.parametrize("scope", [jc.PerTree(), jc.PerLeaf()])
@pytest.mark.parametrize(
    "thresholds", [{"a": 1.0}, {"a": 1.0, "c": 2.0}, [1.0, 2.0], {"a": [1.0], "b": 1.0}]
)
def test_a_tree_of_rules_that_does_not_match(scope, thresholds):
    rules = jax.tree.map(jc.HardClip, thresholds)
    with pytest.raises(ValueError, match=r"pytree of rules that does not match.*norms"):
        update(scope, rules, PARAMS)


@pytest.mark.parametrize(
    "bad", [1.0, {"a": 1.0}, {"a": jc.HardClip(1.0), "b": 2.0}, {}]
)
def test_what_is_no_rule(without_type_checks, bad):
    with pytest.raises(ValueError, match="`clip` must be a clipping rule"):
        jc.as_transform.__wrapped__(bad)
    with pytest.raises(ValueError, match=r"`threshold`.*non-negative"):
        jax.tree.map(jc.HardClip, {"a": 1.0, "b": -1.0})


def test_units_need_parameters():
    with pytest.raises(ValueError, match="was given none"):
        update(jc.PerUnit(), jc.HardClip(1.0), G)
    with pytest.raises(ValueError, match="of the parameters' shapes"):
        update(jc.PerUnit(), jc.HardClip(1.0), G, jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"up to 5.*`axis`"):
        tensor = jnp.ones((2,) * 6)
        update(jc.PerUnit(), jc.HardClip(1.0), tensor, tensor)
    with pytest.raises(ValueError, match="`eps` must be positive"):
        jc.PerUnit(eps=0.0)


def test_examples_are_not_nested():
    with pytest.raises(ValueError, match="`within` must be a scope of one example"):
        jc.PerExample(within=jc.PerExample())


def test_integers_become_floats():
    value = update(jc.PerTree(), jc.HardClip(2.5), jnp.array([3, 4]))
    np.testing.assert_allclose(value, [1.5, 2.0])


def test_only_a_mean_and_a_sum_are_weights(without_type_checks):
    """A median of clipped gradients is no factor for each of them."""
    with pytest.raises(ValueError, match=r'`reduce` must be "mean" or "sum".*median'):
        jc.PerExample(jnp.median)
    batch = jnp.array([[0.4, 0.7], [3.0, 4.0]])
    for reduce, numpy in (("mean", np.mean), ("sum", np.sum)):
        transform = jc.as_transform(jc.HardClip(1.0), jc.PerExample(reduce))
        ours, _ = transform.update(batch, transform.init(batch[0]))
        right = numpy([[0.4, 0.7], [0.6, 0.8]], axis=0)
        np.testing.assert_allclose(ours, right, rtol=1e-6)
