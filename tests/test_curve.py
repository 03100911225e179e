"""What a curve says of itself: labelled arrays, a picture, and no number but risks."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import jaxclip as jc
from jaxclip._curve import finite_or_infinite

STEPS = np.array([0, 10, 20, 40])


@pytest.fixture
def ax() -> Iterator[Any]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def _curve(*batch: int) -> jc.Curve:
    """Curves of one batch, no two numbers alike."""
    risk = np.random.default_rng(3).lognormal(size=(*batch, 4))
    step = np.broadcast_to(STEPS, risk.shape)
    return jc.Curve(jnp.asarray(step), jnp.asarray(risk))


# As a labelled array


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_risk_as_a_labelled_array(batch):
    curve = _curve(*batch)
    data = curve.to_xarray()
    assert data.risk.dims == (*["batch_0", "batch_1"][: len(batch)], "step")
    assert list(data.data_vars) == ["risk"]
    np.testing.assert_array_equal(data.step, STEPS)
    np.testing.assert_array_equal(data.risk, curve.risk)
    np.testing.assert_array_equal(data.risk.sel(step=20), curve.risk[..., 2])
    assert data.risk.attrs["long_name"] == "excess risk"
    assert data.step.attrs["long_name"] == "SGD step"


@pytest.mark.parametrize("batch", [(), (3,)])
def test_what_was_observed_as_labelled_arrays(batch):
    curve = _curve(*batch)
    norms = jnp.asarray(np.random.default_rng(4).normal(size=(*batch, 4)))
    errors = jnp.asarray(np.random.default_rng(5).normal(size=(*batch, 4, 2, 5)))
    curve = jc.Curve(curve.step, curve.risk, observed={"norm": norms, "e": [errors]})
    data = curve.to_xarray()
    dims = data.risk.dims
    norm, error = data["observed['norm']"], data["observed['e'][0]"]
    assert norm.dims == dims
    assert error.dims == (*dims, "observed['e'][0]_0", "observed['e'][0]_1")
    np.testing.assert_array_equal(norm, norms)
    np.testing.assert_array_equal(error.sel(step=40), errors[..., 3, :, :])


def test_a_bare_observation_has_a_name():
    curve = jc.Curve(jnp.asarray(STEPS), jnp.ones(4), observed=jnp.arange(4.0))
    data = curve.to_xarray()
    np.testing.assert_array_equal(data["observed"], np.arange(4.0))


class Half(eqx.Module):
    """Whose method holds an array, which `observe` must not take for structure."""

    by: jax.Array = eqx.field(converter=jnp.asarray)

    def sum(self, params):
        return jnp.sum(params) / self.by


def test_runs_as_labelled_arrays():
    problem = jc.LinearModel(jc.Spectrum([2.0, 0.5]), jc.Gaussian(1.0), [1.0, 1.0])

    rule = jc.HardClip(1.0)

    def run(key, lr):
        return jc.simulate(
            problem, rule, lr, steps=6, every=2, key=key, observe=Half(2.0).sum
        )

    keys, lrs = jr.split(jr.key(6), 2), jnp.array([0.1, 0.2, 0.3])
    curves = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(keys, lrs)
    data = curves.to_xarray()
    assert dict(data.sizes) == {"batch_0": 2, "batch_1": 3, "step": 4}
    np.testing.assert_array_equal(data.step, [0, 2, 4, 6])
    np.testing.assert_array_equal(data.risk[1, 2], curves.risk[1, 2])
    # It was half of the sum of the parameters that was observed.
    last = curves.params.sum(axis=-1) / 2
    np.testing.assert_allclose(data.observed[:, :, -1], last, rtol=1e-12)


def test_curves_at_different_steps_have_no_common_axis(ax):
    curve = _curve(3)
    curve = jc.Curve(curve.step.at[1, 2].add(1), curve.risk)
    message = "`step` must be the same for all curves of a batch"
    with pytest.raises(ValueError, match=message):
        curve.to_xarray()
    with pytest.raises(ValueError, match=message):
        curve.plot(ax)


# As a picture


def test_the_picture_of_one_curve(ax):
    curve = _curve()
    assert curve.plot(ax, color="#0072B2", label="SGD", ls="--") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_array_equal(line.get_ydata(), curve.risk)
    assert (line.get_label(), line.get_color(), line.get_linestyle()) == (
        "SGD",
        "#0072B2",
        "--",
    )
    assert len(ax.collections) == 0
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("SGD step", "excess risk")
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")


def _band(ax: Any) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper edge of the one band of a picture, at each step."""
    (collection,) = ax.collections
    (path,) = collection.get_paths()
    at = [path.vertices[path.vertices[:, 0] == step, 1] for step in STEPS]
    return np.array([y.min() for y in at]), np.array([y.max() for y in at])


@pytest.mark.parametrize("batch", [(11,), (1, 11)])
@pytest.mark.parametrize(
    ("band", "lowest"), [({}, 1), ({"band": 0.8}, 1), ({"band": 0.4}, 3)]
)
def test_the_picture_of_a_batch(ax, batch, band, lowest):
    curve = _curve(*batch)
    curve.plot(ax, color="#D55E00", **band)
    (line,) = ax.lines
    runs = np.asarray(curve.risk).reshape(11, 4)
    np.testing.assert_allclose(line.get_ydata(), runs.sum(axis=0) / 11, rtol=1e-14)
    # Of 11 runs the quantiles at multiples of a tenth are runs.
    ordered = np.sort(runs, axis=0)
    low, high = _band(ax)
    np.testing.assert_array_equal(low, ordered[lowest])
    np.testing.assert_array_equal(high, ordered[10 - lowest])
    color = ax.collections[0].get_facecolor()[0]
    np.testing.assert_allclose(color, to_rgba("#D55E00", 0.2))


def test_runs_that_diverged_have_a_picture(ax):
    risk = np.asarray(_curve(11).risk).copy()
    risk[4:8, 2], risk[:, 3] = np.inf, np.inf
    jc.Curve(_curve(11).step, jnp.asarray(risk)).plot(ax)
    (line,) = ax.lines
    assert np.isfinite(line.get_ydata()).tolist() == [True, True, False, False]
    ax.figure.canvas.draw()


def test_a_picture_of_its_own():
    curve = _curve()
    ax = curve.plot()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve.risk)
    plt.close(ax.figure)


# Numbers that are no risk


def test_what_is_no_number_is_infinite():
    risk = jnp.array([0.0, 3.0, jnp.inf, -jnp.inf, jnp.nan])
    expected = [0.0, 3.0, np.inf, np.inf, np.inf]
    np.testing.assert_array_equal(finite_or_infinite(risk), expected)
    np.testing.assert_array_equal(jax.jit(finite_or_infinite)(risk), expected)


def test_the_gradient_of_a_finite_risk_is_its_own():
    slope = jax.grad(lambda x: finite_or_infinite(x**2))
    assert slope(jnp.asarray(3.0)) == 6.0
