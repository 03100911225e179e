"""`jaxclip doctor`: on an install that is well, and on one that is not."""

import dataclasses
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from packaging.requirements import Requirement

from jaxclip.cli import _doctor, _main, _self_test


def named(word: str) -> _self_test.Check:
    (check,) = (check for check in _self_test.CHECKS if word in check.name)
    return check


def test_it_asks_for_what_the_package_asks_for():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    def packages(lines):
        return {Requirement(line).name for line in lines}

    assert packages(project["dependencies"]) <= set(_doctor.CORE)
    for extra, asked in _doctor.EXTRAS.items():
        assert packages(project["optional-dependencies"][extra]) == set(asked)


@pytest.mark.optimised
def test_a_healthy_install(capsys):
    """The checks run here as they are; nothing ends the program."""
    _main.main(["doctor"])
    text = capsys.readouterr().out
    assert re.search(rf"jax +{re.escape(jax.__version__)}\n", text)
    assert re.search(r"python +3\.", text)
    assert re.search(r"privacy +(present|absent)", text)
    assert "cpu:0" in text
    precision = "float64" if jax.config.jax_enable_x64 else "float32"
    assert f"{precision} (jax_enable_x64 is " in text
    assert str(jax.config.jax_compilation_cache_dir) in text
    checks = len(_self_test.CHECKS)
    assert text.count("  ok ") == checks
    assert f"{checks} of {checks} checks passed" in text
    assert "FAILED" not in text


def test_a_check_that_fails(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such device\nand a page of frames")

    good, bad = (
        dataclasses.replace(named("optax"), run=run)
        for run in (lambda: "all the same", broken)
    )
    monkeypatch.setattr(_doctor, "CHECKS", (good, bad))
    with pytest.raises(SystemExit) as end:
        _main.main(["doctor"])
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    (ok,) = (line for line in lines if line.startswith("  ok "))
    assert "all the same" in ok
    (at,) = (i for i, line in enumerate(lines) if line.startswith("  FAILED "))
    assert "RuntimeError: no such device (" in lines[at]
    # What to do.
    assert "JAX_PLATFORMS=cpu" in lines[at + 1]
    assert lines[-1].startswith("1 of 2 checks passed")


def finding(word: str) -> _doctor.Finding:
    return _doctor.run_check(named(word))


def test_a_clip_that_is_another_is_seen(monkeypatch):
    assert finding("optax").passed
    monkeypatch.setattr(
        _self_test.optax, "clip_by_global_norm", lambda c: optax.clip(c)
    )
    assert not finding("optax").passed


@pytest.mark.parametrize("wrong", [jnp.linalg.norm, lambda x: jnp.nan * x[0]])
def test_a_norm_that_overflows_is_seen(monkeypatch, wrong):
    assert finding("norms").passed
    monkeypatch.setattr(_self_test, "safe_norm", wrong)
    found = finding("norms")
    assert not found.passed and "relative errors" in found.detail


def test_a_second_compilation_is_seen(monkeypatch):
    assert finding("compiles nothing").passed
    simulate = _self_test.simulate

    def anew(*args, **settings):
        # A program of its own at each call.
        jax.jit(lambda x: x + 1)(np.ones(3))
        return simulate(*args, **settings)

    monkeypatch.setattr(_self_test, "simulate", anew)
    found = finding("compiles nothing")
    assert not found.passed and "1 at the second" in found.detail


def test_a_limit_that_is_off_is_seen(monkeypatch):
    solve = _self_test.solve

    def off(*args, **settings):
        curve = solve(*args, **settings)
        return dataclasses.replace(curve, risk=1.15 * curve.risk)

    monkeypatch.setattr(_self_test, "solve", off)
    found = finding("solve")
    assert not found.passed and "standard errors" in found.detail


def test_without_an_extra_it_runs_and_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.setattr(_doctor, "CHECKS", ())
    version = _doctor._version
    monkeypatch.setattr(
        _doctor, "_version", lambda p: None if p == "tyro" else version(p)
    )
    _main.main(["doctor"])
    assert "absent are tyro: `pip install 'jaxclip[cli]'`" in capsys.readouterr().out


def test_devices_that_cannot_be_used(capsys, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(_doctor, "CHECKS", (named("optax"),))
    with pytest.raises(SystemExit):
        _main.main(["doctor"])
    text = capsys.readouterr().out
    assert "none can be used: Unable to initialize backend" in text
