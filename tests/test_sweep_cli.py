"""`jaxclip sweep`: flags or a file in, a table, a summary and a picture out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import LogNorm, to_rgba
from numpy.testing import assert_allclose

import jaxclip as jc
from helpers import asked_settings
from jaxclip._picture import NOT_FINITE
from jaxclip.cli import _main
from jaxclip.cli._heat_map import heat_map
from jaxclip.cli._settings import Settings, problem_of
from jaxclip.cli._sweep import Summary
from jaxclip.grid._chunks import Program

SMALL = [
    "--dim",
    "6",
    "--steps",
    "24",
    "--lrs",
    "3",
    "--thresholds",
    "2",
    "--seeds",
    "3",
    "--batch-size",
    "2",
]


# From flags to files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A command that was interrupted in the middle, and run again."""
    folder = tmp_path_factory.mktemp("sweep")
    out, compute, chunks = folder / "new" / "grid", Program.run, []
    words = ["sweep", *SMALL, "--double", "--out", str(out)]

    def recorded(self, chunk):
        if len(chunks) == 2:
            chunks.append(None)
            raise KeyboardInterrupt
        chunks.append(chunk)
        return compute(self, chunk)

    before = jax.config.read("jax_enable_x64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "run", recorded)
        with pytest.raises(KeyboardInterrupt):
            _main.main(words)
        assert not out.with_name("grid.json").exists()
        _main.main(words)
    jax.config.update("jax_enable_x64", before)
    return out, chunks


def test_a_command_goes_on_where_it_was(finished):
    _, chunks = finished
    done = [chunk for chunk in chunks if chunk is not None]
    assert len(chunks) == len(done) + 1
    assert len(done) == len(set(done))


def test_the_table_is_that_of_runs_alone(finished):
    out, _ = finished
    table = xr.open_zarr(out / "table.zarr", consolidated=False, chunks=None)
    assert table["value"].dims == ("lr", "threshold", "key")
    problem = problem_of(Settings(dim=6))
    trace = problem.spectrum.trace
    assert_allclose(table["lr"] * trace, np.geomspace(0.02, 4, 3), rtol=1e-12)
    thresholds = table["threshold"] / problem.spectrum.feature_norm
    assert_allclose(thresholds, [0.05, 50], rtol=1e-12)
    assert_allclose(problem.risk(problem.init()), 1, rtol=1e-12)
    alone = jc.simulate(
        problem,
        jc.HardClip(float(table["threshold"][1])),
        float(table["lr"][2]),
        steps=24,
        every=24,
        key=jr.split(jr.key(0), 3)[1],
    )
    assert_allclose(table["value"][2, 1, 1], alone.risk[-1], rtol=1e-10)


def test_the_summary_and_the_picture(finished):
    out, _ = finished
    numbers = json.loads(out.with_name("grid.json").read_text())
    table = xr.open_zarr(out / "table.zarr", consolidated=False, chunks=None)
    median = np.sort(table["value"].values, axis=-1)[..., 1]
    best = numbers["best"]
    assert_allclose(best["median_final_risk"], median.min())
    at = table.sel(lr=best["lr"], threshold=best["threshold"], method="nearest")
    assert_allclose(np.median(at["value"]), median.min())
    assert_allclose(best["lr_times_trace"], best["lr"] * numbers["trace"])
    assert_allclose(
        best["threshold_over_feature_norm"], best["threshold"] / numbers["feature_norm"]
    )
    assert numbers["share_diverged"] == np.mean(median > 10)
    assert numbers["settings"]["double"] is True
    assert numbers["provenance"]["jax"] == jax.__version__
    assert out.with_name("grid.png").read_bytes().startswith(b"\x89PNG")


def _summary(risks) -> Summary:
    settings = Settings(start=2.0, scale=3.0)
    values = {
        "settings": settings,
        "trace": 4.0,
        "feature_norm": 2.0,
        "lrs": np.array([0.1, 0.2]),
        "thresholds": np.array([1.0, 10.0, 100.0]),
        "median": np.asarray(risks),
        "attrs": {},
    }
    return Summary(**values)


def test_what_has_diverged():
    """Above ten times the larger of the start's 2 and the noise's 9."""
    summary = _summary([[5.0, 89.0, 91.0], [np.inf, 3.0, 7.0]])
    assert summary.limit == 90
    assert summary.to_dict()["share_diverged"] == 2 / 6
    assert summary.best == {
        "lr": 0.2,
        "lr_times_trace": 0.8,
        "threshold": 10.0,
        "threshold_over_feature_norm": 5.0,
        "median_final_risk": 3.0,
    }
    none = _summary([[np.inf] * 3, [100.0] * 3])
    assert none.best is None
    assert none.to_dict()["share_diverged"] == 1
    none.figure()


# From words to settings


def test_a_file_and_flags(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(
        'noise = "cauchy"\nlr_min = 1\nlr-max = 2.5\ndouble = true\nseeds = 5\n'
    )
    expected = Settings(noise="cauchy", lr_min=1.0, lr_max=2.5, double=True, seeds=5)
    assert asked_settings(monkeypatch, ["sweep", "--config", "a.toml"]) == expected
    # A flag wins, wherever it is.
    more = ["sweep", "--seeds", "7", "--config=a.toml", "--no-double"]
    assert asked_settings(monkeypatch, more) == dataclasses.replace(
        expected, seeds=7, double=False
    )
    assert asked_settings(monkeypatch, ["sweep"]) == Settings()


ALL = {
    "isotropic": jc.Spectrum.isotropic(9),
    "power-law": jc.Spectrum.power_law(9, 1.5),
    "marchenko-pastur": jc.Spectrum.marchenko_pastur(9, 0.3),
}
NOISES = {
    "gaussian": jc.Gaussian(2.0),
    "student-t": jc.StudentT(5.0, 2.0),
    "cauchy": jc.Cauchy(2.0),
    "laplace": jc.Laplace(2.0),
    "uniform": jc.Uniform(2.0),
    "rademacher": jc.Rademacher(2.0),
    "sparse-sign": jc.noise.SparseSign(2.0, 0.3),
    "contaminated": jc.Contaminated(2.0, 7.0, 0.3),
    "exponential": jc.Exponential(2.0),
}


@pytest.mark.parametrize("spectrum", ALL)
def test_the_spectra(spectrum):
    settings = Settings(spectrum=spectrum, dim=9, exponent=1.5, ratio=0.3, start=0.7)
    problem = problem_of(settings)
    assert_allclose(problem.spectrum.eigenvalues, ALL[spectrum].eigenvalues)
    assert_allclose(problem.risk(problem.init()), 0.7, rtol=1e-12)
    # The same error in every dimension.
    assert_allclose(jnp.ptp(problem.init()), 0, atol=1e-15)


@pytest.mark.parametrize("noise", NOISES)
def test_the_noises(noise):
    settings = Settings(noise=noise, scale=2.0, df=5.0, prob=0.3, outlier_scale=7.0)
    drawn = problem_of(settings).noise.sample(jr.key(0), (5,))
    np.testing.assert_array_equal(drawn, NOISES[noise].sample(jr.key(0), (5,)))


REFUSED = {
    "no steps": ("--steps 0", "`steps` must be at least 1"),
    "no seeds": ("--seeds 0", "`seeds` must be at least 1"),
    "no rates": ("--lrs 0", "`lrs` must be at least 1"),
    "a negative rate": ("--lr-min -1", "`lr_min` and `lr_max` must be positive"),
    "the wrong order": ("--threshold-min 99", "and in this order. Got 99.0 and 50.0"),
    "no dimension": ("--dim 0", "`dim` must be at least 1"),
    "no start": ("--start 0", "`start` must be positive and finite"),
    "no noise": ("--scale 0", "`scale` must be positive"),
    "no batch": ("--batch-size 0", "`batch_size` must be at least 1"),
    "no file": ("--config absent.toml", "`config` 'absent.toml' cannot be read"),
    "no TOML": ("--config bad.toml", "`config` 'bad.toml' cannot be read"),
    "a list": ("--config list.toml", "one number or word a line. Got lrs = [1, 2]"),
    "no folder": ("--out full", "`store` must be a folder that a sweep wrote"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_error_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("dim dim\n")
    (tmp_path / "list.toml").write_text("lrs = [1, 2]\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        _main.main(["sweep", *SMALL, *words.split()])
    assert str(end.value.code).startswith("jaxclip: ")
    assert message in str(end.value.code)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", ["noise = 'white'", "speed = 3", "steps = 1.5"])
def test_a_file_with_a_wrong_line(tmp_path, capsys, line):
    (tmp_path / "a.toml").write_text(line)
    with pytest.raises(SystemExit) as end:
        _main.main(["sweep", "--config", str(tmp_path / "a.toml")])
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# The picture


def test_the_heat_map():
    risks = np.array([[1.0, 2.0, np.inf], [4.0, 0.5, 101.0]])
    lrs, thresholds = np.array([0.1, 1.0]), np.array([1.0, 10.0, 100.0])
    ax, bar = heat_map(lrs, thresholds, risks, limit=100.0, title="name").axes
    (mesh,) = ax.collections
    shown = mesh.get_array()
    # The first axis of a mesh is the vertical one.
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~(risks.T <= 100))
    np.testing.assert_array_equal(shown.compressed(), [1, 4, 2, 0.5])
    assert mesh.get_clim() == (0.5, 4)
    assert tuple(mesh.get_cmap().get_bad()) == to_rgba(NOT_FINITE)
    assert isinstance(mesh.norm, LogNorm)
    (star,) = ax.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1.0, 10.0)
    # A cell reaches half of the way to the next point, on the scale that is drawn.
    assert_allclose(ax.get_xlim(), [10**-1.5, 10**0.5])
    assert_allclose(ax.get_ylim(), [10**-0.5, 10**2.5])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "1 / trace" in ax.get_xlabel()
    assert "feature norm" in ax.get_ylabel()
    assert "risk" in bar.get_ylabel()
    assert ax.get_title() == "name"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["best: 0.5", "diverged: above 100"]


def test_a_heat_map_of_one_setting():
    heat_map(np.ones(1), np.ones(1), np.full((1, 1), 0.3), limit=1.0)


def test_a_heat_map_where_all_diverge(tmp_path):
    risks = np.full((2, 3), np.inf)
    figure = heat_map(np.array([0.1, 1.0]), np.ones(3).cumsum(), risks, limit=1.0)
    figure.savefig(tmp_path / "map.png")
    (ax,) = figure.axes
    assert np.ma.getmaskarray(ax.collections[0].get_array()).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "diverged: above 1"
    ]
