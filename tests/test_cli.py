"""The command line: a raw file in, a verdict and two files out, errors in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from jaxclip.cli import _main

ROWS = 400


def _raw() -> pd.DataFrame:
    """Normal errors; columns as they come."""
    rng = np.random.default_rng(41)
    X = rng.normal(size=(ROWS, 2)) * [1e3, 1e-3] + [5e4, 0.0]
    town = rng.choice(["Ys", "Thule"], p=[0.6, 0.4], size=ROWS)
    price = 1e-3 * X[:, 0] - 400 * X[:, 1] + (town == "Ys") + rng.normal(size=ROWS)
    frame = pd.DataFrame({"size": X[:, 0], "slope": X[:, 1], "town": town})
    frame.loc[:6, "size"] = np.nan
    return frame.assign(country="none", price=price, remark="")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "homes.csv"
    _raw().to_csv(path, index=False)
    return path


class Asked(Exception):
    """Raised in place of the advice, with what it was asked for."""

    def __init__(self, table: Any, settings: dict[str, Any]):
        self.table, self.settings = table, settings


@pytest.fixture
def no_advice(monkeypatch) -> None:
    def advise(table, **settings):
        raise Asked(table, settings)

    monkeypatch.setattr(_main, "advise", advise)


# From a file to files


def test_a_raw_file_becomes_a_verdict_and_two_files(raw, tmp_path, capsys):
    out = tmp_path / "new" / "homes.v1"
    words = ["advise", str(raw), "--target", "price", "--out", str(out)]
    _main.main([*words, "--steps", "400", "--runs", "4", "--seed", "3"])
    printed = capsys.readouterr()
    numbers = json.loads((tmp_path / "new" / "homes.v1.json").read_text())

    # Normal errors are not to be clipped.
    assert numbers["verdict"]["decision"] != "clip"
    assert numbers["gain"]["interval"][0] <= 0.02
    law = numbers["residuals"]
    assert abs(law["excess_kurtosis"]) < 6 * np.sqrt(24 / ROWS)

    assert (numbers["data"], numbers["target"]) == ("homes.csv", "price")
    assert numbers["columns"] == ["size", "slope", "town=Thule"]
    assert (numbers["rows"], numbers["features"]) == (ROWS, 3)
    assert (numbers["seed"], numbers["steps"]) == (3, 400)
    assert numbers["versions"] == {"jax": jax.__version__, "numpy": np.__version__}
    assert numbers["notes"] == [
        "filled missing values with the median of 1 column: size (7)",
        "took 1 column of words as an indicator of each but the most frequent: "
        "town (2 values, against 'Ys')",
        "dropped 2 columns without a value: country, remark",
    ]

    assert printed.out.startswith("homes.csv: 'price' from 400 rows, 3 columns\n")
    for note in numbers["notes"]:
        assert f"\n  {note}\n" in printed.out
    assert numbers["verdict"]["sentence"] in printed.out
    assert printed.out.endswith(
        f"Numbers: {tmp_path}/new/homes.v1.json\nFigure:  {tmp_path}/new/homes.v1.png\n"
    )
    for label in ("solve the limits", "search on the rows", "choose", "run"):
        assert label in printed.err
    picture = (tmp_path / "new" / "homes.v1.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.usefixtures("no_advice")
def test_the_words_become_the_settings(raw, tmp_path):
    words = ["advise", str(raw), "--target", "price", "--features", "30"]
    words += ["--steps", "700", "--runs", "5", "--seed", "9"]
    with pytest.raises(Asked) as asked:
        _main.main([*words, "--out", str(tmp_path / "a")])
    settings = asked.value.settings
    assert {k: settings[k] for k in ("features", "steps", "runs")} == {
        "features": 30,
        "steps": 700,
        "runs": 5,
    }
    assert jax.random.key_data(settings["key"]).tolist() == [0, 9]
    assert jax.config.read("jax_enable_x64")


@pytest.mark.usefixtures("no_advice")
def test_what_the_words_are_by_default(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Asked) as asked:
        _main.main(["advise", str(raw), "--target", "price"])
    settings = asked.value.settings
    assert (settings["features"], settings["steps"], settings["runs"]) == (
        None,
        None,
        None,
    )
    np.testing.assert_array_equal(asked.value.table.y, _raw()["price"])


@pytest.mark.usefixtures("no_advice")
@pytest.mark.parametrize("target", ["worst area", "mean texture"])
def test_a_real_table_without_a_file(tmp_path, capsys, target):
    words = ["--target", target] if target != "worst area" else []
    with pytest.raises(Asked) as asked:
        _main.main(["advise", *words, "--out", str(tmp_path / "a")])
    # Ten mean measurements, of which one may be the target itself.
    columns = 10 - (target == "mean texture")
    assert asked.value.table.X.shape == (569, columns)
    assert np.isfinite(asked.value.table.X).all()
    assert asked.value.table.y.shape == (569,)
    printed = capsys.readouterr().out
    assert (
        f"breast cancer (sklearn): {target!r} from 569 rows, {columns} columns"
        in printed
    )


def test_progress_is_written_beside_the_report(capsys):
    assert list(_main._progress(range(3), "search")) == [0, 1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "search: 100%" in printed.err


# Help and errors


@pytest.mark.parametrize("words", [["--help"], ["advise", "--help"]])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as end:
        _main.main(words)
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "usage: jaxclip" in printed
    if "advise" in words:
        for word in ("--target", "--features", "--steps", "--runs", "--seed", "--out"):
            assert word in printed
    else:
        assert "advise" in printed


def _tables(path: Path) -> None:
    (path / "junk.csv").write_bytes(bytes(range(128, 256)) * 9)
    (path / "one.csv").write_text("a,b\n1,2\n")
    (path / "constant.csv").write_text("a,b\n1,2\n2,2\n3,2\n")
    (path / "short.csv").write_text("a,b,c,d\n1,2,3,5\n2,4,9,4\n3,6,1,7\n")
    (path / "exact.csv").write_text("a,b\n1,2\n2,4\n3,6\n4,8\n")
    (path / "good.csv").write_text("a,b\n1,2\n2,4\n3,5\n4,8\n")
    (path / "file").write_text("")


REFUSED: dict[str, tuple[str, str]] = {
    "no file": ("absent.csv", "There is no file"),
    "another kind": ("file", "must be a file of text (.csv, .tsv"),
    "no table": ("junk.csv", "is not a table"),
    "one row": ("one.csv", "must have at least two rows"),
    "another target": ("exact.csv --target bb", "Did you mean 'b'?"),
    "a constant target": ("constant.csv", "The target 'b' is constant (2)"),
    "few rows": ("short.csv", "must have at least ten rows. Got 3"),
    "an exact fit": ("exact.csv", "`X` explains `y` without an error"),
    "no steps": ("good.csv --steps 0", "`steps` must be at least 1"),
    "no runs": ("good.csv --runs 0", "`runs` must be at least 2"),
    "no features": ("good.csv --features 0", "`features` must be at least 1"),
    "no name": ("good.csv --out .", "`out` must be the name of a file"),
    "a file above": ("good.csv --out file/a", "`out` must be where a file can be"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_error_is_one_line(tmp_path, monkeypatch, words, message):
    _tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        _main.main(["advise", *words.split()])
    text = end.value.code
    # What Python prints of a `SystemExit` is its text, and the status is 1.
    assert isinstance(text, str)
    assert text.startswith("jaxclip: ")
    assert message in text
    assert "Traceback" not in text
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_target_of_the_real_table():
    with pytest.raises(SystemExit, match=r"^jaxclip: There is no column 'worst aria'"):
        _main.main(["advise", "--target", "worst aria"])


@pytest.mark.parametrize("words", ["advise --steps many", "advise --speed 3", "advice"])
def test_words_that_are_none(words, capsys):
    with pytest.raises(SystemExit) as end:
        _main.main(words.split())
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tyro", "pandas"])
def test_a_missing_extra_is_named(raw, monkeypatch, name):
    # An import of what is None in here fails as if it were not installed.
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"pip install 'jaxclip\[cli\]'.*" + name):
        _main.main(["advise", str(raw)])
