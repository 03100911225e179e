"""The picture of a run that goes on: when it is drawn, and what is in it."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxclip as jc
from jaxclip.transform import _live_plot
from jaxclip.transform._live_plot import LivePlot


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Notebook:
    """What IPython has in a kernel, as far as it is asked for."""

    version_info = (9, 0, 0)  # matplotlib asks

    def __init__(self):
        self.shown, self.updated = [], []

    def get_ipython(self):
        return types.SimpleNamespace(kernel=object())

    def Image(self, data, format):
        assert format == "png"
        return data

    def display(self, image, display_id):
        assert display_id is True
        self.shown.append(image)
        return self

    def update(self, image):
        self.updated.append(image)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_live_plot, "time", clock)
    return clock


@pytest.fixture
def notebook(monkeypatch):
    notebook = Notebook()
    display = types.SimpleNamespace(Image=notebook.Image, display=notebook.display)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return notebook


PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}


TREE, HARD = jc.PerTree(), jc.HardClip(2.0)


def states(number, scope=TREE, clip=HARD):
    """The states of a monitor, at gradients whose norm is 1, 2, 3 ..."""
    transform = jc.monitor(jc.as_transform(clip, scope))
    state = transform.init(PARAMS)
    unit = jax.tree.map(lambda x: x / optax.tree.norm(PARAMS), PARAMS)
    for i in range(1, number + 1):
        gradient = jax.tree.map(lambda x, i=i: i * x, unit)
        _, state = transform.update(gradient, state)
        yield state


def recorded(number, plot, **settings):
    for state in states(number, **settings):
        plot.record(jc.clip_metrics(state, PARAMS))
    return plot


def test_it_is_drawn_in_place_and_not_too_often(notebook, clock):
    plot = LivePlot(seconds=2.0)
    times = []
    for state in states(40):
        clock.now += 0.3
        before = len(notebook.shown) + len(notebook.updated)
        plot.record(jc.clip_metrics(state))
        if len(notebook.shown) + len(notebook.updated) > before:
            times.append(clock.now)
    # Every seventh record: the first one after two seconds.
    np.testing.assert_allclose(np.diff([100.0, *times]), 2.1)
    assert len(times) == 5
    assert len(notebook.shown) == 1 and len(notebook.updated) == 4
    pictures = notebook.shown + notebook.updated
    assert all(png.startswith(b"\x89PNG") for png in pictures)
    assert len(set(pictures)) == 5
    # The last records are shown when that is asked for.
    plot.show()
    assert len(notebook.updated) == 5


def test_a_slow_picture_leaves_time_to_train(notebook, clock, monkeypatch):
    def slow(steps, columns):
        clock.now += 10.0
        return draw(steps, columns)

    draw = _live_plot.metrics_figure
    monkeypatch.setattr(_live_plot, "metrics_figure", slow)
    plot = LivePlot(seconds=1.0)
    for state in states(6):
        clock.now += 0.5
        plot.record(jc.clip_metrics(state))
    assert len(notebook.shown + notebook.updated) == 3


def test_outside_of_a_notebook_it_keeps_the_records(clock, monkeypatch):
    drawn = []
    monkeypatch.setattr(_live_plot, "metrics_figure", lambda *args: drawn.append(args))
    for module in (None, types.SimpleNamespace(get_ipython=lambda: None)):
        # A shell in a terminal is none, either: it has no kernel.
        monkeypatch.setitem(sys.modules, "IPython", module)
        plot = LivePlot(seconds=0.0)
        clock.now += 5.0
        recorded(3, plot).show()
        assert not drawn
        assert plot.to_dict()["norm"] == pytest.approx([1.0, 2.0, 3.0])


def test_without_matplotlib_a_notebook_says_so_at_once(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        LivePlot()


@pytest.mark.float32
def test_what_is_kept():
    plot = recorded(4, LivePlot())
    kept = plot.to_dict()
    assert kept["step"] == kept["updates"] == [1, 2, 3, 4]
    np.testing.assert_allclose(kept["norm"], [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(kept["threshold"], 2.0)
    np.testing.assert_allclose(kept["removed"], [0, 0, 1 / 3, 1 / 2], atol=1e-6)
    np.testing.assert_allclose(kept["clipped"], [0, 0, 1 / 3, 1 / 2], atol=1e-6)
    np.testing.assert_allclose(kept["regime/1"], [0, 0, 1, 2])
    table = plot.to_xarray()
    assert table["norm"].dims == ("step",)
    np.testing.assert_array_equal(table["step"], [1, 2, 3, 4])
    np.testing.assert_array_equal(table["regime.1"], kept["regime/1"])
    assert repr(plot) == "LivePlot(4 records)"


def test_steps_and_numbers_of_ones_own(tmp_path):
    plot = LivePlot()
    for i, state in enumerate(states(3)):
        metrics = jc.clip_metrics(state) | {"train/loss": 1.0 / (1 + i)}
        plot.record(metrics, step=None if i == 1 else 10 * i)
    assert plot.to_dict()["step"] == [0, 2, 20]
    assert plot.to_dict()["train/loss"] == pytest.approx([1, 1 / 2, 1 / 3])
    plot.to_xarray().to_zarr(tmp_path / "run.zarr", consolidated=False)


def test_what_is_not_finite_is_none_in_json():
    adaptive = jc.Adaptive(jc.policy.ZScore(2.0))
    kept = recorded(2, LivePlot(), clip=adaptive).to_dict()
    assert json.loads(json.dumps(kept, allow_nan=False))["threshold"] == [None, None]


@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_long_run_is_thinned_out(most):
    """The records that are left are evenly spaced, from the first one on."""
    plot = LivePlot(most=most)
    for i in range(300):
        plot.record({"norm": float(i)})
        kept = plot.to_dict()["norm"]
        assert len(kept) <= most
        assert len(kept) >= most // 2 or i < most
        assert kept == list(range(0, i + 1, int(max(kept[1:2] or [1]))))


def test_a_state_may_be_donated():
    """What was recorded is there when the state it came from is not."""
    clip = jc.monitor(jc.as_transform(jc.HardClip(2.0)))
    update = jax.jit(clip.update, donate_argnums=1)
    plot, state = LivePlot(), clip.init(PARAMS)
    for i in range(3):
        before = state
        gradient = jax.tree.map(lambda x, i=i: (i + 1) * x, PARAMS)
        _, state = update(gradient, state)
        assert before.updates.is_deleted()
        plot.record(jc.clip_metrics(state))
    norm = float(optax.tree.norm(PARAMS))
    assert plot.to_dict()["norm"] == pytest.approx([norm, 2 * norm, 3 * norm])


def test_many_records_wait_for_no_more_than_a_few_arrays(monkeypatch):
    monkeypatch.setattr(_live_plot, "_WAITING", 5)
    plot = LivePlot()
    for i in range(23):
        plot.record({"norm": jnp.asarray(float(i))})
        waiting = sum(isinstance(row, dict) for row in plot._rows)
        assert waiting == (i + 1) % 5
    assert plot.to_dict()["norm"] == list(range(23))


def test_what_is_drawn():
    figure = recorded(4, LivePlot()).figure()
    above, below = figure.axes
    norm, threshold = above.lines
    np.testing.assert_allclose(norm.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(norm.get_ydata(), [1, 2, 3, 4])
    np.testing.assert_allclose(threshold.get_ydata(), 2.0)
    assert above.get_yscale() == "log"
    assert norm.get_color() == threshold.get_color()
    recent, removed = below.lines
    np.testing.assert_allclose(recent.get_ydata(), [0, 0, 1 / 3, 1 / 2])
    np.testing.assert_allclose(removed.get_ydata(), [0, 0, 1 / 3, 1 / 2], atol=1e-9)
    assert above.get_title() == "clipped so far: 50%"


def test_a_line_for_each_leaf():
    above, _ = recorded(3, LivePlot(), scope=jc.PerLeaf()).figure().axes
    labels = [line.get_label() for line in above.lines if line.get_linestyle() == "-"]
    assert labels == ["norm b", "norm w"]


def test_the_longest_of_many_leaves():
    plot = LivePlot()
    for _ in range(2):
        plot.record({f"norm/{i}": float(i % 20) for i in range(30)})
    above, _ = plot.figure().axes
    labels = {line.get_label() for line in above.lines}
    assert labels == {f"norm {i}" for i in range(10, 20)}
    assert "10 largest of 30" in above.get_ylabel()


def test_two_monitors():
    clips = [jc.monitor(jc.as_transform(jc.HardClip(c))) for c in (2.0, 1.0)]
    chain = optax.chain(*clips)
    plot, state = LivePlot(), chain.init(PARAMS)
    for _ in range(3):
        _, state = chain.update(PARAMS, state)
        plot.record(jc.clip_metrics(state))
    above, below = plot.figure().axes
    labels = [line.get_label() for line in above.lines]
    assert labels == ["norm 0", "_child1", "norm 1", "_child3"]
    np.testing.assert_allclose(above.lines[2].get_ydata(), 2.0)
    assert len(below.lines) == 4
    assert above.get_title() == "clipped so far: 100%, 100%"
    assert plot.to_dict()["step"] == [1, 2, 3]


@pytest.mark.parametrize("norm", [0.0, np.nan, np.inf])
def test_norms_that_have_no_place_on_the_axis(norm, tmp_path):
    plot = LivePlot()
    plot.record({"norm": norm, "threshold": np.inf, "nonfinite": 2, "recent": np.nan})
    figure = plot.figure()
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_title() == "2 gradients not finite"


def test_nothing_recorded(notebook):
    plot = LivePlot()
    plot.show()
    assert not notebook.shown
    assert plot.to_dict() == {"step": []}
    assert plot.to_xarray().sizes == {"step": 0}
    plot.figure()


@pytest.mark.usefixtures("without_type_checks")
def test_misuse():
    plot = LivePlot()
    (state,) = states(1)
    for wrong in (state, {}, {"norm": jnp.ones(2)}, 3.0):
        with pytest.raises(ValueError, match=r"`metrics` must be a dictionary"):
            plot.record(wrong)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda s: plot.record(jc.clip_metrics(s)))(state)
    plot.record(jc.clip_metrics(state))
    with pytest.raises(ValueError, match=r"same names.*loss"):
        plot.record(jc.clip_metrics(state) | {"loss": 1.0})
    with pytest.raises(ValueError, match="`seconds`"):
        LivePlot(seconds=-1.0)
    with pytest.raises(ValueError, match="`most`"):
        LivePlot(most=1)


def test_a_second_record_compiles_nothing():
    plot = LivePlot()
    found = []
    for i, state in enumerate(states(6)):
        if i == 1:
            jax.monitoring.register_event_duration_secs_listener(
                lambda event, *args, **others: found.append(event)
            )
        metrics = jc.clip_metrics(state)
        found.clear()
        plot.record(metrics)
        assert not [event for event in found if "compile" in event]
    plot.to_dict()
