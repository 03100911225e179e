"""The root and the products that take the place of JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip._numerics import exact_dot, exact_einsum, safe_sqrt

pytestmark = pytest.mark.float32


@pytest.mark.parametrize("dtype", [jnp.float32, float])
def test_the_root_is_that_of_numpy(dtype):
    x = jnp.asarray([1e-30, 0.25, 1.0, 3.0, 1e30], dtype)
    root = safe_sqrt(x)
    assert root.dtype == x.dtype
    np.testing.assert_array_equal(root, np.sqrt(np.asarray(x)))
    slopes = jax.vmap(jax.grad(safe_sqrt))(x)
    np.testing.assert_allclose(slopes, 0.5 / np.sqrt(np.asarray(x)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, float])
@pytest.mark.parametrize("x", [0.0, -1.0, jnp.nan])
def test_the_root_and_its_derivatives_are_zero_at_zero(dtype, x):
    """And wherever there is none."""
    x = jnp.asarray(x, dtype)
    first = jax.grad(safe_sqrt)
    for function in (safe_sqrt, first, jax.grad(first), jax.jacfwd(first)):
        assert function(x) == 0.0
    # What it is there for: the root that JAX has is of no use at 0.
    assert not jnp.isfinite(jax.grad(jnp.sqrt)(x))


def _precisions(function, *arrays):
    """The precision of each product that a function makes."""
    equations = jax.make_jaxpr(function)(*arrays).eqns
    return [e.params["precision"] for e in equations if "dot_general" in str(e)]


_HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize(
    ("left", "right"), [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4))]
)
def test_a_product_is_exact(left, right, getkey):
    a, b = jax.random.normal(getkey(), left), jax.random.normal(getkey(), right)
    exact = np.asarray(a, float) @ np.asarray(b, float)
    np.testing.assert_allclose(exact_dot(a, b), exact, rtol=1e-5, atol=1e-6)
    assert _precisions(exact_dot, a, b) == [_HIGHEST]
    # That of JAX is what the accelerator's default is.
    assert _precisions(jnp.dot, a, b) == [None]


def test_a_product_of_a_vector_and_a_leaf_is_over_the_first_axis(getkey):
    a = jax.random.normal(getkey(), (3,))
    leaf = jax.random.normal(getkey(), (3, 2, 5))
    expected = np.tensordot(np.asarray(a), np.asarray(leaf), 1)
    np.testing.assert_allclose(exact_dot(a, leaf), expected, rtol=1e-5, atol=1e-6)


def test_a_contraction_is_exact(getkey):
    a = jax.random.normal(getkey(), (4, 3, 2))
    gram = exact_einsum("mbi,mci->mbc", a, a)
    np.testing.assert_allclose(
        gram, np.einsum("mbi,mci->mbc", a, a), rtol=1e-5, atol=1e-6
    )
    text = str(jax.make_jaxpr(lambda x: exact_einsum("mbi,mci->mbc", x, x))(a))
    assert "HIGHEST" in text and "precision=None" not in text
