"""Sweeps on disk: nothing finished is lost or computed twice, nothing is mixed up."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

import jaxclip as jc
from jaxclip.grid import _disk, _fingerprint, _store
from jaxclip.grid._axes import read_axes
from jaxclip.grid._chunks import Program
from jaxclip.grid._disk import locked

X = jnp.arange(5.0)
AXES = {"x": X, "key": jr.split(jr.key(3), 2), "y": jnp.array([0.5, 2.0, 4.0])}
CHUNKS = 2 * 5  # a key and a value of x each, with the three of y


def fn(x, key, y) -> dict[str, Any]:
    noise = jr.normal(key, (2,))
    return {"sum": x + y * noise, "zero": 0 * x, "tree": (x > y, jnp.zeros((0,)))}


def run(store: Path | None, **settings: Any) -> jc.Sweep:
    given: dict[str, Any] = {"batch_size": 3, "devices": jax.devices()[:1]}
    return jc.sweep(fn, AXES, store=store, progress=False, **given | settings)


@pytest.fixture(scope="module")
def expected() -> jc.Sweep:
    return run(None)


def assert_same(result: jc.Sweep, expected: jc.Sweep) -> None:
    """Bit for bit."""
    for mine, other in zip(
        jax.tree.leaves(result.values), jax.tree.leaves(expected.values), strict=True
    ):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch) -> None:
    """No test here cuts the power, and a disk may take its time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, ...]]:
    """The chunks that are computed from now on."""
    chunks = []
    compute = Program.run

    def recorded(self, chunk):
        chunks.append(chunk)
        return compute(self, chunk)

    monkeypatch.setattr(Program, "run", recorded)
    return chunks


def failing_sync(monkeypatch, error: int, after: int) -> Callable[[], None]:
    """A disk that fails with an error number after so many files of chunks; undone by
    a call."""
    written = []

    def sync(path):
        written.append(path)
        if sum(path.is_file() and "c" in path.parts for path in written) > after:
            raise OSError(error, os.strerror(error), str(path))
        _disk.sync(path)

    monkeypatch.setattr(_store, "sync", sync)
    return lambda: monkeypatch.setattr(_store, "sync", _disk.sync)


# The table


@pytest.mark.float32
def test_a_store_holds_the_table(tmp_path, expected):
    stored = run(tmp_path / "new" / "store")
    assert_same(stored, expected)
    assert stored.store == tmp_path / "new" / "store"
    # Read when it is used, and not before: neither here nor by xarray.
    assert not any(isinstance(leaf, np.ndarray) for leaf in stored.leaves)
    table = stored.to_xarray()
    assert not table["sum"].variable._in_memory
    xr.testing.assert_equal(table, expected.to_xarray())
    assert {**table.attrs, "seconds": 0, "date": ""} == {
        **expected.to_xarray().attrs,
        "seconds": 0,
        "date": "",
    }
    # It needs nothing of ours to be read.
    alone = xr.open_zarr(stored.store / "table.zarr", consolidated=False, chunks=None)
    xr.testing.assert_equal(alone, expected.to_xarray())
    assert alone.attrs["jax"] == jax.__version__


def kinds(x):
    whole = jnp.asarray(x, int)
    return {
        "float": x,
        "complex": x * (1 + 1j),
        "int": whole,
        "uint": whole.astype(jnp.uint8),
        "bool": x >= 0,
    }


def test_what_was_not_computed_reads_as_nothing(tmp_path, monkeypatch):
    """The table of a sweep that stopped in between: NaN, and no zero for a result."""
    program_run = Program.run

    def fail(self, chunk):
        if chunk == (1,):
            raise KeyboardInterrupt
        return program_run(self, chunk)

    monkeypatch.setattr(Program, "run", fail)
    axes = {"x": jnp.arange(3.0)}
    one = {"batch_size": 1, "devices": jax.devices()[:1], "progress": False}
    with jax.numpy_dtype_promotion("standard"), pytest.raises(KeyboardInterrupt):
        jc.sweep(kinds, axes, store=tmp_path, **one)
    table = xr.open_zarr(tmp_path / "table.zarr", chunks=None, consolidated=False)
    np.testing.assert_array_equal(table["float"], [0.0, np.nan, np.nan])
    np.testing.assert_array_equal(np.isnan(table["complex"]), [False, True, True])
    np.testing.assert_array_equal(table["int"], [0, *[np.iinfo(int).min] * 2])
    np.testing.assert_array_equal(table["uint"], [0, 255, 255])
    np.testing.assert_array_equal(table["bool"], [True, False, False])
    monkeypatch.setattr(Program, "run", program_run)
    with jax.numpy_dtype_promotion("standard"):
        values = jc.sweep(kinds, axes, store=tmp_path, **one).values
    np.testing.assert_array_equal(values["float"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(values["int"], [0, 1, 2])


def test_a_finished_sweep_is_read(tmp_path, expected, computed):
    run(tmp_path)
    assert len(computed) == CHUNKS
    del computed[:]
    # As it was cut when the store was made, whatever is asked for now.
    again = run(tmp_path, batch_size=15, devices=jax.devices())
    assert_same(again, expected)
    assert computed == []
    assert again.attrs["seconds"] > 0


def test_other_devices_go_on(tmp_path, expected, computed, monkeypatch):
    repair = failing_sync(monkeypatch, errno.EIO, after=18)
    with pytest.raises(OSError, match="Input/output error"):
        run(tmp_path)
    repair()
    first = len(computed) - 1
    # Of three files each.
    assert first == 6
    assert_same(run(tmp_path, devices=jax.devices()[2:]), expected)
    # The one during which the disk failed, and those after it.
    assert len(computed) == CHUNKS + 1


def test_a_chunk_longer_than_the_table(tmp_path):
    """Five entries on four devices: two on each, and three of them padding."""
    stored = jc.sweep(lambda x: x + 1, {"x": X}, store=tmp_path, progress=False)
    np.testing.assert_array_equal(stored.values, X + 1)
    np.testing.assert_array_equal(stored.to_xarray()["value"], X + 1)
    # What a killed process has left of it is not read.
    (tmp_path / "done" / "0").unlink()
    (tmp_path / "table.zarr" / "value" / "c" / "0").write_bytes(b"half a ch")
    again = jc.sweep(lambda x: x + 1, {"x": X}, store=tmp_path, progress=False)
    np.testing.assert_array_equal(again.values, X + 1)


# Interruptions


def test_a_record_comes_after_what_it_records(tmp_path, monkeypatch):
    """A disk that loses its power keeps what it was told to, which is the chunk first:
    its files, and the folders that name them."""
    synced: set[int] = set()
    written = []

    def checked(path, content):
        if path.parent.name == "done":
            table = tmp_path / "new" / "table.zarr"
            files = [tmp_path / "new", table, *table.rglob("*")]
            assert {file.stat().st_ino for file in files} <= synced
            written.append(path)
        _disk.write_json(path, content)
        assert path.stat().st_ino in synced

    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    monkeypatch.setattr(_store, "write_json", checked)
    run(tmp_path / "new")
    assert len(written) == CHUNKS


@pytest.mark.parametrize("after", [0, 5, CHUNKS - 1])
def test_an_interruption(tmp_path, expected, computed, monkeypatch, after):
    compute = Program.run

    def interrupted(self, chunk):
        if len(computed) == after:
            raise KeyboardInterrupt
        return compute(self, chunk)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Program, "run", interrupted)
        run(tmp_path)
    assert_same(run(tmp_path), expected)
    assert len(computed) == len(set(computed)) == CHUNKS


KILLED = """
import sys, time
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, numpy as np
import jaxclip as jc
from jaxclip.grid._chunks import Program

weights, compute = jnp.linspace(0, 1, 3000), Program.run

def slow(self, chunk):
    time.sleep(float(sys.argv[3]))
    print("chunk", flush=True)
    return compute(self, chunk)

Program.run = slow

@jax.jit
def inner(x):
    return jax.nn.relu(x) * jnp.sum(weights)

def fn(x, key):
    # Neither may tell one process from another: a check at run time, a derivative
    # by hand.
    x = eqx.error_if(x, x < 0, "negative")
    return inner(x) + jr.normal(key)

axes = {"x": jnp.arange(8.0), "key": jr.split(jr.key(0), 4)}
run = jc.sweep(fn, axes, batch_size=2, store=sys.argv[1] or None, progress=False)
np.save(sys.argv[2], run.values)
"""


def start(store: Path | str, out: Path, wait: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store), str(out), str(wait)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out.npy"
    with start(store, out, 0.05) as first:
        assert first.stdout
        for _ in range(6):
            assert first.stdout.readline() == "chunk\n"
        first.send_signal(signal.SIGKILL)
    finished = len(list((store / "done").iterdir()))
    assert 5 <= finished < 16
    assert not out.exists()
    # At once with a run that is not interrupted, in memory.
    whole = start("", tmp_path / "whole.npy", 0)
    with start(store, out, 0) as second:
        printed, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    # Nothing that was finished is computed again.
    assert printed.count("chunk") == 16 - finished
    whole.communicate(timeout=120)
    np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "whole.npy"))


@pytest.mark.parametrize("left", ["nothing", "a part", "no table", "half a table"])
def test_killed_while_the_store_was_made(tmp_path, expected, left):
    (tmp_path / "lock").touch()
    if left == "a part":
        (tmp_path / "sweep.json.part").write_text('{"iden')
    elif left != "nothing":
        run(tmp_path)
        (tmp_path / "table.zarr").rename(tmp_path / "table.zarr.part")
        for record in (tmp_path / "done").iterdir():
            record.unlink()
        if left == "no table":
            (tmp_path / "done").rmdir()
    assert_same(run(tmp_path), expected)
    assert not list(tmp_path.rglob("*.part"))


def test_what_zarr_left_is_cleared(tmp_path, expected, computed):
    run(tmp_path)
    record = tmp_path / "done" / "1-3-0"
    record.unlink()
    chunk = tmp_path / "table.zarr" / "sum" / "c" / "3" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:7])
    chunk.with_name("0.123.partial").touch()
    del computed[:]
    assert_same(run(tmp_path), expected)
    assert computed == [(1, 3, 0)]
    assert not list(tmp_path.rglob("*.partial"))


# What makes a sweep another one


def _identity(fn, axes) -> dict[str, Any]:
    return _fingerprint.fingerprint(jax.make_jaxpr(fn)(1.0), axes, jax.devices())


def test_a_store_is_resumed_in_colour_and_without(monkeypatch):
    # In a terminal or a notebook JAX prints programs in colour, to a file without.
    def many(x):
        return jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i * jnp.cos(x), x)

    found = []
    for colour in (False, True):
        monkeypatch.setattr("jax._src.pretty_printer.CAN_USE_COLOR", colour)
        found.append(_identity(many, ()))
        assert ("\x1b" in str(jax.make_jaxpr(many)(1.0))) == colour
    assert found[0] == found[1]


def _make(kind: str, changed: bool) -> Callable[[Any], Any]:
    """A function anew, as another process would make it."""
    big = np.arange(3000.0)
    # In the middle, which the text of an array leaves out.
    big[1500] += 1e-9 * changed
    small = 0.1 + 1e-16 * 8 * changed
    weights = jnp.asarray(big)

    @jax.jit
    def inner(x):
        return x * weights.sum()

    return {
        "array": lambda x: x + weights.sum(),
        "nested": inner,
        "scan": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c + weights[i], x),
        "number": lambda x: x * small,
        "result": lambda x: (x, small),
        "switch": lambda x: jax.lax.cond(x > 0, inner, lambda x: x, x),
        "gradient": jax.grad(lambda x: jax.nn.softplus(inner(x))),
        "check": lambda x: eqx.error_if(inner(x), x < 0, "negative"),
        "loop": lambda x: jax.lax.while_loop(
            lambda c: c < 9, lambda c: c + inner(c) + 9, x
        ),
        "callback": lambda x: jax.pure_callback(
            lambda y: y, jax.ShapeDtypeStruct((), X.dtype), inner(x)
        ),
        "key": lambda x: x + jr.normal(jr.fold_in(jr.key(4 + changed), 0)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("array", "nested", "scan", "number", "result"),
        *("switch", "gradient", "check", "loop", "callback", "key"),
    ],
)
def test_what_a_function_closes_over(kind):
    first, same, other = (_identity(_make(kind, c), []) for c in (False, False, True))
    assert first == same
    assert first != other


class Rule(eqx.Module):
    """An axis with a part that is no array, as a user's rule may have."""

    threshold: Any
    power: Callable[[Any], Any] = eqx.field(static=True)


def test_what_an_axis_holds():
    jaxpr = jax.make_jaxpr(abs)(1.0)
    # All of them alive at once: each has a function at a place of its own.
    rules = [Rule(X + shift, lambda x: x**2) for shift in (0, 0, 1e-9)]
    first, same, other = (
        _fingerprint.fingerprint(
            jaxpr,
            list(read_axes({"rule": rule}, lambda rule: 0).values()),
            jax.devices(),
        )
        for rule in rules
    )
    assert first == same
    assert first != other


def _refused(store: Path, message: str, run_again: Callable[[], Any]) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message) as refused:
        run_again()
    assert str(store) in str(refused.value)
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert before == after


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("small") / "store"
    jc.sweep(lambda x: x + X, {"x": X}, store=store, progress=False)
    return store


OTHER: dict[str, tuple[Any, Any, str]] = {
    "the function": (lambda x: x - X, {"x": X}, "different are function"),
    "a fixed argument": (lambda x: x + 2 * X, {"x": X}, "different are function"),
    "its numbers": (lambda x: x + (X + 1e-9), {"x": X}, "fixed arguments"),
    "an axis": (lambda x: x + X, {"x": X.at[2].add(1e-9)}, "different are axes"),
    "another axis": (lambda x, y: x + X + y, {"x": X, "y": X}, "function, axes"),
    "the precision": (
        lambda x: x + X,
        {"x": jnp.asarray(X, jnp.float32)},
        "function, .*axes",
    ),
}


@pytest.mark.parametrize(("fn", "axes", "message"), OTHER.values(), ids=OTHER.keys())
def test_another_sweep(small, fn, axes, message):
    with jax.numpy_dtype_promotion("standard"):
        _refused(
            small, message, lambda: jc.sweep(fn, axes, store=small, progress=False)
        )


def test_another_version(small, monkeypatch):
    def again():
        return jc.sweep(lambda x: x + X, {"x": X}, store=small, progress=False)

    again()
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    _refused(small, r"jax \(.* in the store, 0\.0\.1 now\)", again)
    monkeypatch.undo()
    monkeypatch.setattr(_fingerprint, "version", lambda package: "0.0.2")
    _refused(small, r"jaxclip \(.* in the store, 0\.0\.2 now\)", again)
    monkeypatch.undo()
    with jax.default_matmul_precision("float32"):
        _refused(small, r"precision \(", again)


# What may go wrong on a disk


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path, expected, computed, monkeypatch, error):
    repair = failing_sync(monkeypatch, error, after=18)
    with pytest.raises(OSError, match=r"is full.*finished is kept") as full:
        run(tmp_path)
    assert full.value.errno == error
    repair()
    assert_same(run(tmp_path), expected)
    assert len(set(computed)) == CHUNKS == len(computed) - 1


def test_a_full_disk_before_the_first_chunk(tmp_path, expected, computed, monkeypatch):
    # The files of the coordinates, of which there are four, are written first.
    repair = failing_sync(monkeypatch, errno.ENOSPC, after=2)
    with pytest.raises(OSError, match="is full"):
        run(tmp_path)
    assert computed == []
    repair()
    assert_same(run(tmp_path), expected)


def _read_only(monkeypatch) -> None:
    """As an administrator, for whom no folder is read-only by its mode."""
    open_file = os.open

    def refuse(path, flags, *rest, **kwargs):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return open_file(path, flags, *rest, **kwargs)

    monkeypatch.setattr(_disk.os, "open", refuse)


def test_a_read_only_folder(tmp_path, expected, computed, monkeypatch):
    with monkeypatch.context() as patch:
        _read_only(patch)
        with pytest.raises(OSError, match="cannot be written to"):
            run(tmp_path)
    assert computed == []
    run(tmp_path)
    with monkeypatch.context() as patch:
        _read_only(patch)
        # Finished: there is nothing to write.
        assert_same(run(tmp_path), expected)
        (tmp_path / "done" / "0-0-0").unlink()
        del computed[:]
        # Not finished: said before the work is done in vain.
        with pytest.raises(OSError, match="cannot be written to"):
            run(tmp_path)
    assert computed == []


@pytest.mark.parametrize("damage", ["a bit", "cut", "deleted", "the record"])
def test_a_damaged_chunk(tmp_path, expected, computed, damage):
    run(tmp_path)
    del computed[:]
    # Of key 1, x 2: files are in the user's order, names in that of nesting.
    chunk = tmp_path / "table.zarr" / "sum" / "c" / "2" / "1" / "0" / "0"
    record = tmp_path / "done" / "1-2-0"
    content = bytearray(chunk.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    elif damage == "cut":
        chunk.write_bytes(content[:5])
    elif damage == "deleted":
        chunk.unlink()
    else:
        record.write_text(record.read_text()[:20])
    if damage == "the record":
        again = run(tmp_path)
    else:
        with pytest.warns(UserWarning, match=r"Chunk 1-2-0 .* computed again") as said:
            again = run(tmp_path)
        assert str(chunk) in str(said[0].message)
    assert computed == [(1, 2, 0)]
    assert_same(again, expected)


def test_a_damaged_chunk_is_not_read(tmp_path):
    stored = run(tmp_path)
    chunk = tmp_path / "table.zarr" / "sum" / "c" / "2" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        assert stored.values


@pytest.mark.parametrize("what", ["a file", "other files", "a zarr", "no record"])
def test_no_store(tmp_path, what):
    store = tmp_path / "store"
    if what == "a file":
        store.write_text("hello")
    elif what == "other files":
        store.mkdir()
        (store / "thesis.tex").write_text("hello")
    elif what == "a zarr":
        xr.Dataset({"x": 1}).to_zarr(store, consolidated=False)
    else:
        run(store)
        (store / "sweep.json").write_text('{"ident')
    _refused(store, "must be a folder that a sweep wrote", lambda: run(store))


def test_two_sweeps_at_once(tmp_path, expected):
    with locked(tmp_path), pytest.raises(BlockingIOError, match="Another sweep is wr"):
        run(tmp_path)
    # What is left of a lock blocks nobody.
    assert (tmp_path / "lock").exists()
    assert_same(run(tmp_path), expected)
    # And the first lets it go when it is done, whether it fails or not.
    with locked(tmp_path):
        pass


def test_two_processes_at_once(tmp_path):
    store = tmp_path / "store"
    with start(store, tmp_path / "out.npy", 0.5) as first:
        assert first.stdout
        assert first.stdout.readline() == "chunk\n"
        begin = time.perf_counter()
        with pytest.raises(BlockingIOError), locked(store):
            pass
        # At once, without waiting.
        assert time.perf_counter() - begin < 1
        first.kill()
    with locked(store):
        pass
