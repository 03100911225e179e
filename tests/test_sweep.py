"""Sweeps: the table is that of a loop over points, however it is cut and spread."""

import sys
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure

import jaxclip as jc
from jaxclip.grid import _chunks
from jaxclip.grid._axes import read_axes
from jaxclip.grid._figure import _corner, phase_diagram
from jaxclip.grid._layout import Layout

SHIFTS = jnp.array([0.5, -1.0, 2.0])
SCALES = jnp.array([1.0, 2.0, 3.0, 5.0, 8.0])
KEYS = jr.split(jr.key(7), 6)
RULES = jc.HardClip(jnp.array([0.3, 0.6, 4.0, 9.0]))
# Nesting brings the keys to the front, which is a permutation of order three.
AXES = {"scale": SCALES, "rule": RULES, "key": KEYS, "shift": SHIFTS}


def draw(scale, rule, key, shift) -> dict[str, Any]:
    x = scale * jr.normal(key, (3,)) + shift
    return {"x": x, "norm": rule.factor(jnp.linalg.norm(x), 0)}


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """The table by a loop over its points, each of them run alone."""
    alone = jax.jit(draw)
    points = [
        alone(scale=scale, key=key, rule=jc.HardClip(c), shift=shift)
        for scale in SCALES
        for c in RULES.threshold(0)
        for key in KEYS
        for shift in SHIFTS
    ]
    shape = (5, 4, 6, 3)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    return {name: x.reshape(shape + x.shape[1:]) for name, x in stacked.items()}


def assert_table(values: Any, expected: Any) -> None:
    """Equal to the rounding of a few operations that a compiler may fuse."""
    assert values.keys() == expected.keys()
    for name in expected:
        assert values[name].shape == expected[name].shape
        assert values[name].dtype == expected[name].dtype
        eps = np.finfo(expected[name].dtype).eps
        np.testing.assert_allclose(
            values[name], expected[name], rtol=50 * eps, atol=5 * eps
        )


# The table


@pytest.mark.float32
@pytest.mark.parametrize("batch_size", [1, 7, 30, None])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_table_is_a_loop_over_points(expected, devices, batch_size):
    run = jc.sweep(
        draw,
        AXES,
        devices=jax.devices()[:devices],
        batch_size=batch_size,
        progress=False,
    )
    assert_table(run.values, expected)


def test_more_devices_than_entries():
    run = jc.sweep(lambda x, y: x * y, {"x": SHIFTS, "y": SHIFTS}, progress=False)
    np.testing.assert_array_equal(run.values, np.outer(SHIFTS, SHIFTS))
    # Eight devices, and three that have work.
    assert len(jax.devices()) == 8


def test_a_point_of_sgd_run_alone():
    problem = jc.LinearModel(jc.Spectrum.isotropic(6), jc.Gaussian(1.0), jnp.ones(1))

    def final(lr, threshold, key):
        clip = jc.HardClip(threshold)
        return jc.simulate(problem, clip, lr, steps=8, every=8, key=key)

    axes = {"lr": jnp.array([0.01, 0.1]), "threshold": SCALES, "key": KEYS}
    run = jc.sweep(final, axes, batch_size=4, progress=False)
    # The result is a Curve, as `simulate` returns it.
    assert run.values.risk.shape == (2, 5, 6, 2)
    alone = jax.jit(final)(lr=0.1, threshold=SCALES[3], key=KEYS[4])
    np.testing.assert_allclose(run.values.risk[1, 3, 4], alone.risk, rtol=1e-13)
    np.testing.assert_array_equal(run.values.step[1, 3, 4], [0, 8])
    table = run.to_xarray()
    assert table.risk.dims == ("lr", "threshold", "key", "risk_0")
    assert table.params.shape == (2, 5, 6, 6)


def test_the_data_of_a_key_are_made_once():
    """Whatever the settings: of the draws, no batch has an axis for them."""
    seen = []

    def make(x):
        seen.append(x.shape)
        return np.asarray(x)

    def fn(scale, key, shift):
        like = jax.ShapeDtypeStruct((), SCALES.dtype)
        data = jr.normal(key)
        data = jax.pure_callback(make, like, data, vmap_method="expand_dims")
        return scale * data + shift

    axes = {"scale": SCALES, "key": KEYS, "shift": SHIFTS}
    devices = jax.devices()[:1]
    jc.sweep(fn, axes, devices=devices, batch_size=15, progress=False)
    # One key and its 15 settings a chunk, six times.
    assert [np.prod(shape) for shape in seen] == [1] * 6


def test_a_chunk_is_compiled_once():
    traces = []

    def fn(x):
        traces.append(1)
        return x

    run = jc.sweep(fn, {"x": jnp.arange(11.0)}, batch_size=1, progress=False)
    np.testing.assert_array_equal(run.values, np.arange(11.0))
    # At one point for the table, and in the chunk: three chunks, the last one padded.
    assert len(traces) == 2


def test_results_keep_their_kinds():
    def fn(x):
        return (
            x > 1,
            [x.astype(jnp.bfloat16), jnp.full((0,), 1.0)],
            7,
            jax.lax.complex(x, x),
        )

    run = jc.sweep(fn, {"x": jnp.arange(3.0)}, progress=False)
    large, (small, nothing), constant, complex_ = run.values
    assert large.tolist() == [False, False, True]
    assert small.dtype == np.float32
    assert nothing.shape == (3, 0)
    assert constant.tolist() == [7, 7, 7]
    assert complex_.dtype == np.complex128
    assert list(run.to_xarray().data_vars) == ["0", "1.0", "1.1", "2", "3"]


def test_an_error_in_a_run_is_raised():
    def fn(x):
        return eqx.error_if(x, x > 2, "too large")

    with pytest.raises(RuntimeError, match="too large"):
        # One device: of more, JAX prints the others' errors again when it exits.
        axes, devices = {"x": jnp.arange(4.0)}, jax.devices()[:1]
        jc.sweep(fn, axes, devices=devices, progress=False)


# The labels


def test_the_labels():
    run = jc.sweep(draw, AXES, progress=False)
    table = run.to_xarray()
    assert table.norm.dims == ("scale", "rule", "key", "shift")
    assert table.x.dims == ("scale", "rule", "key", "shift", "x_0")
    np.testing.assert_array_equal(table.scale, SCALES)
    np.testing.assert_array_equal(table.key, range(6))
    np.testing.assert_array_equal(table.key_data, jr.key_data(KEYS))
    np.testing.assert_array_equal(table.rule, range(4))
    assert table["rule.threshold.value"].dims == ("rule",)
    np.testing.assert_array_equal(table["rule.threshold.value"], RULES.threshold(0))
    attrs = table.attrs
    assert attrs["jax"] == jax.__version__
    assert attrs["function"] == "draw"
    assert (attrs["device"], attrs["devices"], attrs["processes"]) == ("cpu", 8, 1)
    assert attrs["date"].startswith("20")
    assert attrs["seconds"] > 0


@pytest.mark.parametrize("stored", [False, True])
def test_the_units(tmp_path, stored):
    units = {"lr": "per step", "value": "label squared"}
    table = jc.sweep(
        lambda lr, rule: lr * rule.threshold(0),
        {"lr": SCALES, "rule": RULES},
        units=units,
        store=tmp_path if stored else None,
        progress=False,
    ).to_xarray()
    found = {name: table[name].attrs.get("units") for name in ("lr", "rule", "value")}
    assert found == {**units, "rule": None}
    # Without taking the place of what is said of an axis already.
    assert table["rule"].attrs["long_name"] == "index of rule"


def test_a_result_named_as_an_axis():
    axes = {"x": jnp.arange(3.0)}
    table = jc.sweep(lambda x: {"x": x, "y": x}, axes, progress=False).to_xarray()
    assert set(table.data_vars) == {"result.x", "y"}


# How a sweep is cut


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    devices=st.integers(1, 5),
    points=st.integers(1, 40),
)
def test_chunks_cover_a_table_once(lengths, devices, points):
    names = [f"a{i}" for i in range(len(lengths))]
    axes = {n: np.zeros(k) for n, k in zip(names, lengths, strict=True)}
    read = tuple(read_axes(axes, lambda **kwargs: 0).values())
    layout = Layout.make(read, devices, points)
    covered = np.zeros(lengths, int)
    for chunk in layout.chunks():
        region = layout.region(chunk)
        covered[region] += 1
        for index, place, length in zip(
            layout.indices(chunk), region, lengths, strict=True
        ):
            own = np.arange(length)[place]
            np.testing.assert_array_equal(index[: len(own)], own)
            assert np.all(index[len(own) :] == length - 1)
    assert np.all(covered == 1)
    used = layout.devices(devices)
    assert np.prod(layout.block) // used <= points
    # As many devices work as there are entries for.
    assert used == min(devices, max(lengths))


def test_settings_of_a_key_come_together():
    axes = {"lr": np.zeros(64), "key": jr.split(jr.key(0), 16), "c": np.zeros(64)}
    read = read_axes(axes, lambda lr, key, c: 0)
    nested = (read["key"], read["lr"], read["c"])
    assert Layout.make(nested, 1, 256).block == (1, 4, 64)
    assert Layout.make(nested, 8, 256).block == (8, 4, 64)
    # Evenly: not 256 of 300, and then 44 with 212 of padding.
    (many,) = read_axes({"x": np.zeros(300)}, lambda x: 0).values()
    assert Layout.make((many,), 1, 256).block == (150,)
    # Few settings: as many keys as fill the batch. Fewer keys than devices: settings.
    assert Layout.make((read["key"],), 1, 256).block == (16,)
    assert Layout.make(nested, 32, 256).block == (2, 64, 64)


def test_a_batch_is_made_to_fit_the_memory(monkeypatch):
    def fn(x):
        # 1 MB a point, which no compiler can leave out.
        return jnp.sort(jnp.sin(x * jnp.arange(125_000.0)))[::1000]

    free = 20 * 2**20
    monkeypatch.setattr(_chunks, "_free", lambda devices: free)
    read = tuple(read_axes({"x": np.ones(100)}, fn).values())
    devices = jax.devices()[:1]
    source = _chunks.Source(lambda leaves: fn(leaves[0]), "fn")
    program = _chunks.build(source, read, devices, None)
    (points,) = program.layout.block
    assert 1 <= points <= 10
    assert _chunks._needed(program.compiled) <= free / 2
    # What is asked for is taken.
    program = _chunks.build(source, read, devices, 50)
    assert program.layout.block == (50,)


def test_the_memory_of_the_host_is_known():
    assert 2**26 < _chunks._host_memory() < 2**50


# Progress


def _square(**progress: Any) -> None:
    # Three chunks: one point at once on each device.
    axes, devices = {"x": jnp.arange(9.0)}, jax.devices()[:4]
    jc.sweep(lambda x: x**2, axes, devices=devices, batch_size=1, **progress)


def test_progress_is_on_stderr(capsys):
    _square()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "sweep: 100%" in printed.err
    assert "3/3" in printed.err


@pytest.mark.parametrize("tqdm", [True, False])
def test_no_progress(monkeypatch, capsys, tqdm):
    if not tqdm:
        # An import of what is None in here fails as if it were not installed.
        monkeypatch.setitem(sys.modules, "tqdm", None)
    _square(progress=not tqdm)
    assert capsys.readouterr().err == ""


# Misuse

ONE = {"x": jnp.arange(3.0)}
MISUSES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no function": (3, ONE, {}, "`fn` must be a function"),
    "a list": (abs, [1, 2], {}, "`axes` must be a dictionary"),
    "no axes": (abs, {}, {}, "`axes` must be a dictionary .* at least one"),
    "no name": (abs, {"a b": ONE["x"]}, {}, "Got the name 'a b'"),
    "another name": (lambda x: x, {"y": ONE["x"]}, {}, "exactly what it takes: .*'x'"),
    "a name too few": (lambda x, y: x, ONE, {}, "exactly what it takes: .*'y'"),
    "a name too many": (lambda: 0, ONE, {}, "exactly what it takes: .*'x'"),
    "an empty axis": (lambda x: x, {"x": jnp.zeros(0)}, {}, "axis `x` is empty"),
    "an empty tree": (lambda x: x, {"x": ()}, {}, "axis `x` holds no array"),
    "unequal lengths": (
        lambda x: x,
        {"x": {"a": jnp.zeros(2), "b": jnp.zeros(3)}},
        {},
        r"axis `x` must have the same length .*\{'a': 2, 'b': 3\}",
    ),
    "a number": (lambda x: x, {"x": 1.0}, {}, "axis `x` is one number"),
    "a list of numbers": (lambda x: x, {"x": [1.0, 2.0]}, {}, r"axis `x.0` is one num"),
    "words": (lambda x: x, {"x": "ab"}, {}, "axis `x` must be an array of numbers"),
    "one key": (lambda x: 0, {"x": jr.key(0)}, {}, "axis `x` is one key"),
    "rbg keys": (
        lambda x: 0,
        {"x": jr.split(jr.key(0, impl="rbg"), 2)},
        {},
        "axis `x` has 'rbg' keys.*threefry",
    ),
    "no result": (lambda x: None, ONE, {}, "`fn` must return an array or more"),
    "a word": (lambda x: {"a": "b"}, ONE, {}, "arrays of numbers.* Got a str, 'b'"),
    "a key": (lambda x: jr.key(0), ONE, {}, "Got random keys"),
    "two of a name": (
        lambda x: {"a": {"b": x}, "a.b": x},
        ONE,
        {},
        "different names",
    ),
    "no points": (lambda x: x, ONE, {"batch_size": 0}, "`batch_size` must be at least"),
    "half a point": (lambda x: x, ONE, {"batch_size": 0.5}, "`batch_size` must be a P"),
    "a unit of nothing": (
        lambda x: x,
        ONE,
        {"units": {"y": "m"}},
        "`units` must name axes or results, of x, value. Got y",
    ),
    "no devices": (lambda x: x, ONE, {"devices": []}, "`devices` must be one or more"),
    "a device twice": (
        lambda x: x,
        ONE,
        {"devices": jax.devices()[:1] * 2},
        "one or more different",
    ),
}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("fn", "axes", "settings", "message"), MISUSES.values(), ids=MISUSES.keys()
)
def test_misuse(fn, axes, settings, message):
    with pytest.raises(ValueError, match=message):
        jc.sweep(fn, axes, progress=False, **settings)


# Numbers that the precision has not

OUTSIDE = {
    "an integer": np.array([1, 2**31], np.int64),
    "a negative integer": np.array([-(2**31) - 1, 1], np.int64),
    "an unsigned integer": np.array([2**32], np.uint64),
    "a large float": np.array([1.0, 1e39]),
    "a small float": np.array([1e-50, 1.0]),
    "a complex number": np.array([1.0, 1e39 + 1j]),
}


@pytest.mark.float32
@pytest.mark.parametrize("values", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_no_number_of_an_axis_is_changed(values):
    """With x64 they come back as they are; without it they are refused by value."""

    def values_of(axis):
        return jc.sweep(lambda x: {"x": x["a"]}, {"x": {"a": axis}}, progress=False)

    if jax.config.read("jax_enable_x64"):
        np.testing.assert_array_equal(values_of(values).values["x"], values)
        return
    with pytest.raises(ValueError, match=r"The axis `x\.a` holds .* cannot hold"):
        values_of(values)
    # What fits is kept, or rounded as ever.
    largest = np.array([-(2**31), 2**31 - 1], np.int64)
    np.testing.assert_array_equal(values_of(largest).values["x"], largest)
    fits = np.array([0.1, -3.0, np.inf, np.nan, 0.0])
    result = values_of(fits).values["x"]
    np.testing.assert_array_equal(result, fits.astype(np.float32))


def test_integers_beyond_every_type():
    with pytest.raises(ValueError, match="within the range of its type"):
        jc.sweep(lambda x: x, {"x": np.array([2**70])}, progress=False)


# The point that fails


def refuse(x, c, key):
    bad = (x > 1.5) & (c["a"] == 3)
    x = eqx.error_if(x, bad, "x is too large for this a")
    return x * c["a"].astype(x.dtype) + 0 * jr.normal(key)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_point_that_fails_is_named(batch_size):
    axes = {
        "x": jnp.array([1.0, 2.0, 3.0]),
        "c": {"a": jnp.array([1, 3]), "b": jnp.array([0.5, 0.25])},
        "key": jr.split(jr.key(0), 2),
    }
    with pytest.raises(RuntimeError) as caught:
        jc.sweep(refuse, axes, batch_size=batch_size, progress=False)
    data = str(jr.key_data(axes["key"])[0])
    assert str(caught.value) == (
        f"`fn` failed at the point key[0] (key data {data}), x=2.0, "
        "c[1] (a = 3, b = 0.25): x is too large for this a"
    )
    # Without that value nothing fails.
    axes["c"] = jax.tree.map(lambda leaf: leaf[:1], axes["c"])
    assert jc.sweep(refuse, axes, progress=False).values.shape == (3, 1, 2)


def test_a_host_function_that_raises():
    def on_host(x):
        if x > 1.5:
            raise RuntimeError("the host says no")
        return np.asarray(x)

    def fn(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(on_host, shape, x, vmap_method="sequential")

    with pytest.raises(RuntimeError, match=r"(?s)the point x=2\.0: .*the host says no"):
        jc.sweep(fn, {"x": jnp.arange(3.0)}, progress=False)


# The picture


def product(x, y, key):
    return {"seen": x * y + 0 * jr.normal(key), "all": jnp.full(2, x)}


@pytest.fixture(scope="module")
def products():
    """Over axes that are even on one scale each, with keys between them."""
    axes = {"x": jnp.array([0.1, 1.0, 10.0]), "key": KEYS[:2]}
    axes["y"] = jnp.array([1.0, 2.0, 3.0])
    units = {"x": "per step", "seen": "share"}
    return jc.sweep(product, axes, units=units, progress=False)


def test_a_phase_diagram(products):
    ax = products.plot(Figure().subplots(), name="seen", vmin=0, cmap="magma")
    (mesh,), bar = ax.collections, ax.figure.axes[1]
    assert isinstance(mesh.norm, Normalize) and not isinstance(mesh.norm, LogNorm)
    # The first axis of a mesh is the vertical one.
    expected = np.outer([1.0, 2.0, 3.0], [0.1, 1.0, 10.0])
    np.testing.assert_allclose(mesh.get_array(), expected)
    assert (mesh.get_clim(), mesh.get_cmap().name) == ((0, 30), "magma")
    # A cell reaches half of the way to the next point, on the scale that is drawn.
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    np.testing.assert_allclose(ax.get_xlim(), [10**-1.5, 10**1.5])
    np.testing.assert_allclose(ax.get_ylim(), [0.5, 3.5])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (per step)", "y")
    assert bar.get_ylabel() == "seen (share), median over 2 runs"
    assert ax.get_legend() is None


def shown(ax):
    """What a phase diagram shows, with the first axis in front as in a table, and the
    label of its colour bar; its figure is closed."""
    (mesh,) = ax.collections
    labels = [other.get_ylabel() for other in ax.figure.axes if other is not ax]
    plt.close(ax.figure)
    return mesh, mesh.get_array().T, labels


def test_a_phase_diagram_is_the_median_over_keys():
    """And in order, whatever the order of the points was."""
    axes = {"key": KEYS, "a": jnp.array([2.0, 0.0, 1.0]), "b": jnp.arange(2.0)}
    found = jc.sweep(
        lambda key, a, b: a - 1 + b * jr.normal(key), axes, units={"value": "risk"},
        progress=False,
    )  # fmt: skip
    before, count = plt.get_fignums(), len(KEYS)
    mesh, values, labels = shown(found.plot())
    assert plt.get_fignums() == before
    # The upper one of the two in the middle.
    expected = np.sort(found.values, axis=0)[count // 2][[1, 2, 0]]
    np.testing.assert_allclose(values, expected)
    assert labels == [f"risk, median over {count} runs"]
    # Some are negative, of which there is no logarithm.
    assert not isinstance(mesh.norm, LogNorm)
    _, values, labels = shown(found.plot(statistic=np.mean))
    np.testing.assert_allclose(values, found.values.mean(axis=0)[[1, 2, 0]])
    assert labels == [f"risk, mean over {count} runs"]
    with pytest.raises(
        ValueError, match=r"`statistic` must make one number.*shape \(\) of"
    ):
        found.plot(statistic=lambda runs, axis: runs.mean())
    assert plt.get_fignums() == before


def test_heavy_tails_leave_a_phase_diagram_its_contrast():
    """Under Cauchy noise, one run in some has a risk above all others: in the mean, on
    a linear scale, one cell is all there is to see."""

    def heavy(lr, threshold, key):
        return lr * threshold + lr**2 * jnp.abs(jr.cauchy(key)) ** 3

    axes = {"lr": jnp.geomspace(0.1, 10, 7), "threshold": jnp.geomspace(0.1, 10, 6)}
    keys = jr.split(jr.key(3), 21)
    found = jc.sweep(heavy, axes | {"key": keys}, progress=False)
    mesh, values, _ = shown(found.plot())
    assert isinstance(mesh.norm, LogNorm)
    # The median of a monotone function of |Cauchy| is that of its median.
    middle = np.median(np.abs(jax.vmap(jr.cauchy)(keys)))
    lr, threshold = np.meshgrid(*axes.values(), indexing="ij")
    np.testing.assert_allclose(values, lr * threshold + lr**2 * middle**3, rtol=1e-6)

    def spread(mesh):
        """How many of eight shades the cells have."""
        shades = np.floor(8 * np.asarray(mesh.norm(mesh.get_array())).clip(0, 0.999))
        return len(np.unique(shades))

    assert spread(mesh) == 8
    # What it was: the check can fail.
    before, _, _ = shown(found.plot(statistic=np.mean, norm="linear"))
    assert spread(before) < 5


def test_cells_that_diverged_have_their_own_colour():
    def fn(x, y, key):
        lost = jnp.where(x > 2, jnp.nan, jnp.inf)
        # Of three runs one at y = 1, and two at y = 2.
        return jnp.where(key < y, lost, x * y)

    axes = {"x": jnp.arange(1.0, 4.0), "y": jnp.arange(3.0), "key": jnp.arange(3.0)}
    table = jc.sweep(fn, axes, progress=False)
    values = table.to_xarray()["value"].transpose("x", "y", "key")
    ax = phase_diagram(values, None, None, {})
    (mesh,) = ax.collections
    mask = np.ma.getmaskarray(mesh.get_array()).T
    np.testing.assert_array_equal(mask, [[False, False, True]] * 3)
    # Zeros, of which there is no logarithm, have the colour of the least.
    assert isinstance(mesh.norm, LogNorm) and mesh.norm.vmin == 1
    assert mesh.norm(np.zeros(1)).tolist() == [0.0]
    ax.figure.canvas.draw()
    colors = mesh.get_facecolors().reshape(3, 3, 4)
    assert np.all(colors[2] == to_rgba("#D55E00")) and not np.any(
        np.all(colors[:2] == to_rgba("#D55E00"), axis=-1)
    )
    (label,) = [text.get_text() for text in ax.get_legend().get_texts()]
    assert label == "diverged (not finite): 3 of 9 cells"
    # In the corner with the most of them: x to the right, y upwards.
    assert _corner(mask) == "upper right"
    assert [_corner(mask[:, ::-1]), _corner(np.arange(9).reshape(3, 3) < 2)] == [
        "lower right",
        "lower left",
    ]
    plt.close(ax.figure)


def test_a_phase_diagram_where_all_diverge():
    axes = {"x": jnp.arange(2.0), "y": jnp.arange(2.0)}
    found = jc.sweep(lambda x, y: x * y + jnp.inf, axes, progress=False)
    ax = found.plot()
    ax.figure.canvas.draw()
    assert ax.figure.axes == [ax]
    assert "4 of 4 cells" in ax.get_legend().get_texts()[0].get_text()
    plt.close(ax.figure)


def test_the_share_of_what_is_true():
    axes = {"x": jnp.arange(2.0), "y": jnp.arange(2.0), "key": KEYS}
    found = jc.sweep(
        lambda x, y, key: jr.uniform(key) < (x + y) / 2, axes, progress=False
    )
    _, values, labels = shown(found.plot())
    np.testing.assert_allclose(values, found.values.mean(axis=-1))
    assert labels == [f"value, mean over {len(KEYS)} runs"]


def test_what_is_no_phase_diagram(products):
    with pytest.raises(ValueError, match=r"one of all, seen\. Got 'other'"):
        products.plot(name="other")
    with pytest.raises(ValueError, match=r"one number a point.*'all' with the dimen"):
        products.plot(name="all")
    line = jc.sweep(lambda x: x, {"x": SHIFTS}, progress=False)
    with pytest.raises(ValueError, match=r"needs two axes.*Got the axes \['x'\]"):
        line.plot()
    assert not plt.get_fignums()
