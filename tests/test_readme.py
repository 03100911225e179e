"""The examples of the README run as printed."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_examples(tmp_path, monkeypatch) -> None:
    # One of them writes a store.
    monkeypatch.chdir(tmp_path)
    assert len(blocks()) == 3
    scope = {}
    # Users have jax's own defaults.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks():
            exec(block, scope)
        # Runs and ODE agree, and the tuning helped.
        mean = scope["runs"].risk.mean(axis=0)
        assert jnp.allclose(mean, scope["ode"].risk, rtol=0.1)
        assert scope["history"].min() < scope["history"][0] - 0.01
        # Of a grid whose ends are all but unclipped, and too small to learn.
        table, best = scope["table"], scope["best"]
        assert table["value"].dims == ("lr", "threshold", "key")
        assert 0 < int(best["threshold"]) < 7
        rule = scope["Redescending"](jnp.array(2.0))
        assert rule.factor(2.0, 0) == 0.5


def test_every_public_name_in_the_readme_exists() -> None:
    import jaxclip as jc

    names = set(re.findall(r"\bjc\.([A-Za-z_]+)", README.read_text()))
    assert {"simulate", "solve", "tune"} <= names
    assert not {name for name in names if not hasattr(jc, name)}
