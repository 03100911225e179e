"""What is shown of rules, schedules and results: their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip as jc

SHOWN = {
    "HardClip(threshold=1.5)": jc.HardClip(1.5),
    "DeltaClip(threshold=2, delta=0.1)": jc.DeltaClip(2.0, 0.1),
    "HardClip(threshold=[1, 2])": jc.HardClip(jnp.array([1.0, 2.0])),
    "HardClip(threshold=[0, 1, ..., 8] (9))": jc.HardClip(jnp.arange(9.0)),
    "SoftClip(threshold=PiecewiseLinear(knots=[0, 9], values=[1, 0.5]))": jc.SoftClip(
        jc.PiecewiseLinear(np.array([0.0, 9.0]), np.array([1.0, 0.5]))
    ),
    "HardClip(threshold=linear_schedule)": jc.HardClip(
        # A function is shown by its name.
        optax.linear_schedule(1.0, 0.5, 10)
    ),
    "Constant(value=3)": jc.Constant(3),
    "Laplace(std=0.25)": jc.Laplace(0.25),
    "Setting(clip=Identity(), lr=Constant(value=0.1))": jc.criterion.Setting(
        jc.Identity(), jc.Constant(0.1)
    ),
}


@pytest.mark.float32
@pytest.mark.parametrize("text", SHOWN)
def test_a_repr_has_the_numbers(text):
    ours = repr(SHOWN[text])
    if "linear_schedule" in text:
        text = text.replace("linear_schedule", "schedule")
    assert ours == text


def test_a_curve_shows_its_ends():
    curve = jc.Curve(jnp.arange(9), jnp.linspace(1.0, 0.2, 9), jnp.ones((2, 3)))
    text = repr(curve)
    assert "step=[0, 1, ..., 8] (9)" in text
    assert "risk=[1, 0.9, ..., 0.2] (9)" in text
    assert "[2,3]" in text


def test_numbers_that_are_not_known_are_shown_by_their_type():
    seen = []

    def threshold(c):
        seen.append(repr(jc.HardClip(c)))
        return c

    jax.jit(threshold)(1.0)
    assert seen[0].startswith("HardClip(threshold=") and "f" in seen[0]
    assert "key" in repr(jc.policy.RandomThreshold(1.0, key=jax.random.key(0)))
    assert repr(jc.Empirical(np.array([-1.0, 1.0]))).startswith("Empirical(")


def test_arrays_that_are_gone_or_small_are_shown():
    """A rule whose numbers were donated can still stand in an error message."""
    rule = jc.HardClip(jnp.asarray(2.0, jnp.bfloat16))
    assert repr(rule) == "HardClip(threshold=2)"
    for leaf in jax.tree.leaves(rule):
        leaf.delete()
    assert repr(rule) == "HardClip(threshold=bf16[])"
