"""What pictures show of schedules, rules, policies and noises, compared with numbers
that are computed in another way."""

import sys
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

import jaxclip as jc
from registry import NOISES, POLICIES_OF_NORMS, RULES

# A picture that is refused leaves no figure behind, and each test closes its own.
pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def no_figures() -> Iterator[None]:
    assert not plt.get_fignums()
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left


def lines(ax):
    """The lines of all axes of a figure by their names, which is closed."""
    found = {
        line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for each in ax.figure.axes
        for line in each.lines
        if len(line.get_xdata())
    }
    ax.figure.canvas.draw()
    plt.close(ax.figure)
    return found


def piecewise(knots, values):
    return jc.PiecewiseLinear(
        jnp.array(knots, jnp.result_type(float)), jnp.asarray(values)
    )


# Schedules


def test_a_piecewise_linear_schedule():
    schedule = piecewise([10, 50, 200], [1.0, 5.0, 0.2])
    ax = schedule.plot(label="lr")
    assert (ax.get_xlabel(), ax.get_yscale()) == ("SGD step", "log")
    assert "unit" in ax.get_ylabel()
    steps, values = (knots := lines(ax)).pop("lr")
    assert (steps[0], steps[-1]) == (0, 210)
    expected = np.exp(np.interp(steps, [10, 50, 200], np.log([1.0, 5.0, 0.2])))
    assert_allclose(values, expected, rtol=1e-12)
    ((at, marks),) = knots.values()
    assert_allclose((at, marks), ([10, 50, 200], [1.0, 5.0, 0.2]))


@pytest.mark.parametrize("knots", [[0.0], [7.0], [-3.0], [-3.0, 0.0]])
def test_a_schedule_with_few_knots(knots):
    ax = piecewise(knots, np.full(len(knots), 2.0)).plot()
    for _, values in lines(ax).values():
        assert_allclose(values, 2.0, rtol=1e-12)


def test_schedules_on_one_picture_and_at_some_steps():
    _, ax = plt.subplots()
    steps = jnp.array([0.0, 30.0])
    schedule = piecewise([10, 50], [1.0, 5.0])
    assert schedule.plot(ax, steps=steps, label="a") is ax
    assert jc.Constant(3.0).plot(ax, steps=steps, label="b") is ax
    assert jc.Constant(2.0).plot(ax, label="c") is ax
    colors = [line.get_color() for line in ax.lines if line.get_label() in "abc"]
    assert len(set(colors)) == 3
    found = lines(ax)
    assert_allclose(found["a"][1], [1.0, 5.0**0.5])
    assert_allclose(found["b"], ([0, 30], [3, 3]))
    # Across all of the axes.
    assert_allclose(found["c"], ([0, 1], [2, 2]))


def test_a_constant_that_a_logarithm_has_no_place_for():
    ax = jc.Constant(0.0).plot()
    assert ax.get_yscale() == "linear"
    plt.close(ax.figure)
    ax = jc.Constant(jnp.inf).plot()
    assert [text.get_text() for text in ax.texts] == ["inf at every step"]
    plt.close(ax.figure)


# Rules

N = np.array([0.01, 0.3, 0.8, 1.7, 40.0])
FACTORS = {
    "HardClip": np.minimum(1, 0.8 / N),
    "SoftClip": 0.8 / (0.8 + N),
    "RootSoftClip": 0.8 / np.sqrt(0.8**2 + N**2),
    "DeltaClip": np.minimum(1, np.maximum(0.2, 0.8 / N)),
    "SkipClip": np.where(N <= 0.8, 1.0, 0.0),
    "Normalize": 1 / (N + 0.3),
    "SpiderClip": np.minimum(1, np.minimum(0.5 / N, (2 / 3) / N**2)),
    "Identity": np.ones(5),
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_picture_of_a_rule(name):
    ax = RULES[name].plot(norms=jnp.asarray(N))
    assert ax.get_xscale() == "log"
    assert "gradient's unit" in ax.get_xlabel() and ax.get_ylabel() == "factor"
    right = ax.figure.axes[1]
    assert right.get_yscale() == "log" and "norm after" in right.get_ylabel()
    legend = {text.get_text() for text in right.get_legend().get_texts()}
    found = lines(ax)
    assert legend == set(found)
    assert_allclose(found["factor"], (N, FACTORS[name]), rtol=1e-12)
    after = found["norm after clipping"]
    assert_allclose(after, (N, N * FACTORS[name]), rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_where_a_rule_is_drawn(name):
    """Where something happens to be seen: the factor changes by more than half of its
    range, or it never does; and thresholds are marked."""
    rule = RULES[name]
    found = lines(rule.plot())
    norms, factor = found["factor"]
    assert np.all(np.diff(norms) > 0) and len(norms) > 300
    wide = np.asarray(rule.factor(jnp.geomspace(1e-9, 1e9, 50), 0))
    if name not in ("Identity", "Rescale"):
        assert np.ptp(factor) > 0.5 * np.ptp(wide)
    marks = {label: x[0] for label, (x, _) in found.items() if x[0] == x[-1]}
    kinks = [float(kink) for kink in rule.kinks(0) if 0 < kink < np.inf]
    assert set(kinks) <= set(marks.values())
    assert ("threshold 0.8" in marks) == hasattr(rule, "threshold")


def test_a_rule_at_a_step_and_two_on_one_picture():
    _, ax = plt.subplots()
    falling = jc.HardClip(piecewise([0, 10], [4.0, 1.0]))
    assert falling.plot(ax, step=5, label="half way") is ax
    jc.HardClip(jnp.inf).plot(ax, label="none")
    # They share the axis to the right.
    assert len(ax.figure.axes) == 2
    found = lines(ax)
    norms, factor = found["half way: factor"]
    assert_allclose(factor, np.minimum(1, 2 / norms), rtol=1e-12)
    assert "half way: threshold 2" in found
    assert np.all(found["none: factor"][1] == 1)
    assert list(found).count("norm before") == 1


# Policies


@pytest.mark.parametrize("name", POLICIES_OF_NORMS)
def test_what_a_policy_would_have_made_of_norms(name):
    """Against the transform, update by update."""
    clip = jc.Adaptive(POLICIES_OF_NORMS[name])
    draw = np.random.default_rng(5)
    norms = draw.lognormal(size=12)
    norms[4] = np.inf
    found = lines(clip.plot(norms=norms))
    before = np.where(np.isfinite(norms), norms, np.nan)
    assert_allclose(found["norm before"][1], before)
    (label,) = (label for label in found if label.startswith("norm after"))
    transform = jc.as_transform(clip)
    update = jax.jit(transform.update)
    state, after = transform.init(jnp.zeros(1)), []
    for norm in norms:
        clipped, state = update(jnp.array([norm]), state)
        after.append(float(clipped[0]))
    finite = np.isfinite(norms)
    assert_allclose(found[label][1][finite], np.array(after)[finite], rtol=1e-10)
    share = np.mean(np.array(after)[finite] < norms[finite] * (1 - 1e-6))
    assert f"{share:.0%} shortened" in label
    assert len(found["threshold"][1]) == 12


def test_policies_that_have_no_picture():
    with pytest.raises(ValueError, match=r"Got `Criterion`, which also sees where"):
        jc.Adaptive(jc.policy.Criterion(window=64)).plot(norms=jnp.ones(3))
    clip = jc.Adaptive(jc.policy.Percentile(10.0, window=4))
    with pytest.raises(ValueError, match="`norms` must be not negative"):
        clip.plot(norms=jnp.array([1.0, -1.0]))


# Noises, against another library

DENSITIES = {
    "Gaussian": scipy.stats.norm(),
    "Laplace": scipy.stats.laplace(scale=0.5**0.5),
    "Uniform": scipy.stats.uniform(-(3**0.5), 2 * 3**0.5),
    "Exponential": scipy.stats.expon(-1),
    "StudentT": scipy.stats.t(3),
    "Cauchy": scipy.stats.cauchy(),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_the_picture_of_a_noise(name):
    noise, law = NOISES[name], DENSITIES[name]
    ax = noise.plot()
    assert ax.get_yscale() == ax.figure.axes[1].get_yscale() == "log"
    assert "unit" in ax.get_xlabel() and "unit" in ax.get_ylabel()
    # As many decades on either side.
    decades = [np.diff(np.log(each.get_ylim())) for each in ax.figure.axes]
    assert_allclose(*decades)
    found = lines(ax)
    x, density = found["density"]
    # Not on a step itself.
    away = np.min(np.abs(np.abs(x)[:, None] - [1.0, 3**0.5]), axis=1) > 1e-5
    seen = away & ~np.isnan(density)
    assert_allclose(density[seen], law.pdf(x[seen]), rtol=1e-7)
    assert np.all(law.pdf(x[away & np.isnan(density)]) < 1e-13)
    total = np.trapezoid(np.nan_to_num(density), x)
    assert_allclose(total, law.cdf(x[-1]) - law.cdf(x[0]), rtol=2e-3)
    _, tail = found["probability of what is farther out"]
    expected = np.where(x < 0, law.cdf(x), law.sf(x))
    seen = ~np.isnan(tail) & (x != 0) & (expected > 1e-12)
    assert seen.sum() > 50
    assert_allclose(tail[seen], expected[seen], rtol=1e-6, atol=1e-12)
    if name == "Cauchy":
        assert len(found) == 2
        return
    normal = scipy.stats.norm(scale=float(noise.variance) ** 0.5)
    assert_allclose(found["normal density of this variance"][1], normal.pdf(x))
    assert x[-1] == pytest.approx(6 * float(noise.variance) ** 0.5)


def test_the_picture_of_a_mixture():
    x, density = lines(NOISES["Contaminated"].plot())["density"]
    expected = 0.9 * scipy.stats.norm.pdf(x) + 0.1 * scipy.stats.norm.pdf(x, scale=10)
    assert_allclose(density, expected, rtol=1e-9)


STEMS = {
    "Rademacher": {-1: 0.5, 1: 0.5},
    "SparseSign": {-0.8 / 0.2**0.5: 0.1, 0: 0.8, 0.8 / 0.2**0.5: 0.1},
    "Mask": {-1: 0.4, 1 / 0.6 - 1: 0.6},
    "Empirical": dict.fromkeys([-1.9, -0.7, -0.4, 0.1, 0.3, 1.1, 1.5], 1 / 7),
}


@pytest.mark.parametrize("name", STEMS)
def test_noises_of_single_values_are_stems(name):
    ax = NOISES[name].plot(label="it")
    (stems,) = ax.containers
    at, heights = stems.markerline.get_data()
    assert_allclose((at, heights), (list(STEMS[name]), list(STEMS[name].values())))
    assert (ax.get_ylabel(), ax.get_ylim()[0]) == ("probability", 0)
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    std = float(NOISES[name].variance) ** 0.5
    assert_allclose(marks, [-std, std])
    plt.close(ax.figure)


def test_values_that_are_there_twice_have_one_stem():
    ax = jc.Empirical(np.array([1.0, 1.0, -2.0, 1.0])).plot()
    assert_allclose(ax.containers[0].markerline.get_data(), ([-2, 1], [0.25, 0.75]))
    plt.close(ax.figure)
    ax = jc.Gaussian(0.0).plot()
    assert_allclose(ax.containers[0].markerline.get_data(), ([0], [1]))
    plt.close(ax.figure)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_two_noises_on_one_picture_at_any_scale(scale):
    _, ax = plt.subplots()
    assert jc.Laplace(scale).plot(ax, label="Laplace") is ax
    jc.Cauchy(scale).plot(ax, label="Cauchy")
    assert len(ax.figure.axes) == 2
    for name in ("Laplace", "Cauchy"):
        x, density = lines(ax)[f"{name}: density"]
        law = DENSITIES[name]
        assert_allclose(density * scale, law.pdf(x / scale), rtol=1e-6)


# What has no picture


def several(make):
    return eqx.filter_vmap(make)(jnp.array([1.0, 2.0]))


BATCHES = {
    "constant": jc.Constant(jnp.ones(3)),
    "schedule": several(lambda x: piecewise([0, 1], jnp.stack([x, x]))),
    "rule": several(jc.HardClip),
    "soft": several(jc.SoftClip),
    "array": jc.HardClip(jnp.ones(3)),
    "noise": several(jc.Laplace),
    "mixture": several(lambda x: jc.Contaminated(x, 2 * x, 0.1)),
    "empirical": several(lambda x: jc.Empirical(x * jnp.array([-1.0, 2.0]))),
}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_refused(name):
    with pytest.raises(ValueError, match=r"`plot` draws one .*Take one of them"):
        BATCHES[name].plot()


def test_one_of_a_batch_has_a_picture():
    rule = jax.tree.map(lambda x: x[0], several(jc.HardClip))
    assert "threshold 1" in lines(rule.plot())


def test_what_is_traced_is_refused():
    for make in (jc.Constant, jc.HardClip, jc.Laplace):

        def draw(x, make=make):
            make(x).plot()
            return x

        with pytest.raises(ValueError, match="must be known before tracing"):
            jax.jit(draw)(jnp.asarray(1.0))


@pytest.mark.usefixtures("without_type_checks")
def test_numbers_that_are_none_are_refused():
    rule = jax.jit(jc.HardClip)(jnp.asarray(-1.0))
    with pytest.raises(ValueError, match="holds a number that it does not allow"):
        rule.plot()
    with pytest.raises(ValueError, match="`norms` must be finite and not negative"):
        jc.HardClip(1.0).plot(norms=jnp.array([jnp.nan]))
    with pytest.raises(ValueError, match="`steps` must be a vector"):
        jc.Constant(1.0).plot(steps=jnp.asarray(3.0))
    with pytest.raises(ValueError, match="`band` must be a fraction"):
        jc.Curve(jnp.arange(2.0), jnp.ones(2)).plot(band=95)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    sweep = jc.sweep(
        lambda x, y: x * y, {"x": jnp.ones(2), "y": jnp.ones(2)}, progress=False
    )
    drawn = jc.Constant(1.0), jc.HardClip(1.0), jc.Laplace(1.0), sweep
    for each in (*drawn, jc.Curve(jnp.arange(2.0), jnp.ones(2))):
        with pytest.raises(ImportError, match=r"pip install 'jaxclip\[cli\]'"):
            each.plot()


def test_a_second_picture_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend" in event else None
    )

    def draw(i):
        policy = jc.policy.QuantileDescent(0.5, 0.1 + i)
        for each in (
            piecewise([0, 10], [1.0 + i, 2.0]).plot(),
            jc.SoftClip(1.0 + i).plot(),
            jc.Laplace(1.0 + i).plot(),
            jc.Adaptive(policy).plot(norms=1.0 + i * np.arange(9.0)),
        ):
            plt.close(each.figure)

    draw(0)
    assert compiled
    compiled.clear()
    draw(1)
    assert not compiled


@pytest.mark.float32
def test_pictures_in_single_precision():
    x, density = lines(jc.Laplace(1.0).plot())["density"]
    assert_allclose(density, DENSITIES["Laplace"].pdf(x), rtol=1e-4)
    norms, factor = lines(jc.HardClip(1e-30).plot())["factor"]
    assert_allclose(factor, np.minimum(1, 1e-30 / norms), rtol=1e-5)
