"""The tables that scripts write: claims with their verdicts, and measurements."""

import csv
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The modules that scripts share, in a folder where they may write."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)
    import _bench
    import _claims

    yield _claims, _bench
    for name in ("_claims", "_bench"):
        sys.modules.pop(name, None)


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(monkeypatch, claims, *words: str) -> int:
    def easy(report):
        return [claims.near('a "number", near', 1.0 + report.quick, 1.0, 0.1)]

    def hard(report):
        return claims.of("section 2", [claims.at_most("a bound", np.float32(0.1), 2)])

    monkeypatch.setattr(sys, "argv", ["reproduce_it.py", *words])
    with pytest.raises(SystemExit) as end:
        claims.reproduce("about", "it", 3, [easy], [hard])
    return int(end.value.code)


def test_claims_are_a_table_and_a_quick_run_does_not_touch_it(scripts, monkeypatch):
    claims, _ = scripts
    assert run(monkeypatch, claims) == 0
    first, second = rows("results/it/claims.csv")
    assert first["claim"] == 'a "number", near'
    assert (float(first["number"]), first["verdict"]) == (1.0, "holds")
    assert (float(first["low"]), float(first["high"])) == (0.9, 1.1)
    assert (second["source"], float(second["low"])) == ("section 2", -np.inf)
    # To the last digit.
    assert float(second["number"]) == float(np.float32(0.1))
    for row in (first, second):
        assert (row["seed"], row["quick"], row["jax"]) == (
            "3",
            "False",
            jax.__version__,
        )
        assert row["device"] == jax.devices()[0].device_kind
        assert len(row["commit"]) == 40 or row["commit"] == "unknown"
    whole = Path("results/it/claims.csv").read_bytes()
    assert run(monkeypatch, claims, "--quick") == 1
    assert Path("results/it/claims.csv").read_bytes() == whole
    (quick,) = rows("results/it/quick/claims.csv")
    assert (quick["verdict"], quick["quick"]) == ("fails", "True")


def test_claims_in_a_folder_of_choice(scripts, monkeypatch):
    assert run(monkeypatch, scripts[0], "--out", "new/place", "--quick") == 1
    assert len(rows("new/place/claims.csv")) == 1
    assert not Path("results").exists()


def test_what_is_stopped_has_lost_no_part(scripts, monkeypatch):
    claims, _ = scripts

    def stopped(report):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["reproduce_it.py"])
    first = claims.exactly("done", 2, 2)
    with pytest.raises(KeyboardInterrupt):
        claims.reproduce("about", "it", 3, [lambda report: [first], stopped])
    assert [row["claim"] for row in rows("results/it/claims.csv")] == ["done"]


def test_each_part_of_a_benchmark_is_a_table(scripts):
    _, bench = scripts
    found = bench.Bench("speed", quick=False)
    found.add("ways", way="a, b", ratio=np.float64(1.5))
    found.add("memory", bytes=7)
    # A later version of the script has another column.
    found.add("ways", way="c", ratio=2, seconds=0.5)
    first, second = rows("results/bench/speed-ways.csv")
    assert (first["way"], first["ratio"], first["seconds"]) == ("a, b", "1.5", "")
    assert (second["way"], second["ratio"], second["seconds"]) == ("c", "2", "0.5")
    assert {"date", "commit", "jax", "device", "cores"} <= set(first)
    assert [row["bytes"] for row in rows("results/bench/speed-memory.csv")] == ["7"]
    before = Path("results/bench/speed-ways.csv").read_bytes()
    bench.Bench("speed", quick=True).add("ways", ratio=9)
    assert Path("results/bench/speed-ways.csv").read_bytes() == before
    assert rows("results/bench/quick/speed-ways.csv")[0]["ratio"] == "9"
    bench.Bench("speed", True, Path("else")).add("ways", ratio=3)
    assert rows("else/speed-ways.csv")[0]["ratio"] == "3"


@pytest.mark.parametrize("name", sorted(p.name for p in SCRIPTS.glob("[!_]*.py")))
def test_every_script_writes_by_what_they_share(name):
    """And so to the folder asked for, with a table, and apart where it is quick."""
    text = (SCRIPTS / name).read_text()
    shared = {
        "bench": "from _bench import Bench, arguments",
        "reproduce": "reproduce(",
        "calibrate": "Report(folder,",
    }
    assert shared[name.partition("_")[0]] in text
    assert "argparse.ArgumentParser" not in text or name == "calibrate_advise.py"
    assert '"--quick"' not in text or name == "calibrate_advise.py"
