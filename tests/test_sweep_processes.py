"""Sweeps in many processes under `jax.distributed`: one table, in all of them."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxclip as jc

PROCESS = """
import sys
import jax

rank, port, out, store = int(sys.argv[1]), *sys.argv[2:5]
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import jax.numpy as jnp, jax.random as jr, numpy as np
import jaxclip as jc
from jaxclip.grid._chunks import Program

chunks, compute = [], Program.run

def recorded(self, chunk):
    chunks.append(chunk)
    if store == "broken" and rank == 1:
        raise OSError(28, "No space left on device")
    return compute(self, chunk)

Program.run = recorded

def fn(x, key, y):
    return {"a": x + y * jr.normal(key), "b": x > 2}

axes = {"x": jnp.arange(7.0), "key": jr.split(jr.key(0), 3), "y": jnp.arange(2.0)}
if store == "broken":
    try:
        jc.sweep(fn, axes, batch_size=4)
    except Exception as error:
        print(type(error).__name__, error)
    raise SystemExit
memory = jc.sweep(fn, axes, batch_size=4)
stored = jc.sweep(fn, axes, batch_size=4, store=store)
again = jc.sweep(fn, axes, store=store)
# Twice, and not once more for the store that was finished.
assert len(chunks) == len(set(chunks)) * 2, chunks
for run in (memory, stored, again):
    assert run.attrs["processes"] == 2 and run.attrs["devices"] == 2
np.savez(out, memory=memory.values["a"], stored=stored.values["a"],
         again=again.values["a"], flag=memory.values["b"], chunks=chunks)
"""


def run(out: Path, store: str) -> list[tuple[str, str]]:
    """What both processes print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROCESS,
                str(rank),
                str(port),
                f"{out}{rank}",
                store,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    return printed


def test_two_processes(tmp_path):
    printed = run(tmp_path / "out", str(tmp_path / "store"))
    axes = {"x": jnp.arange(7.0), "key": jr.split(jr.key(0), 3), "y": jnp.arange(2.0)}
    alone = jc.sweep(
        lambda x, key, y: {"a": x + y * jr.normal(key), "b": x > 2},
        axes,
        devices=jax.devices()[:1],
        batch_size=4,
        progress=False,
    )
    shares = []
    for rank in range(2):
        with np.load(f"{tmp_path / 'out'}{rank}.npz") as found:
            for name in ("memory", "stored", "again"):
                np.testing.assert_array_equal(found[name], alone.values["a"])
            np.testing.assert_array_equal(found["flag"], alone.values["b"])
            shares.append({tuple(chunk) for chunk in found["chunks"]})
    # Each chunk by one of them.
    assert shares[0] and shares[1] and not shares[0] & shares[1]
    # One bar a sweep, and none for the one that was finished. By its first sight: at
    # its end it may be drawn more than once, and what JAX logs may be in its line.
    bars = [len(re.findall(r"sweep: +0%[^\r\n]*00:00<", text)) for _, text in printed]
    assert bars == [2, 0], printed


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path):
    """Instead of leaving the others to wait for it."""
    (first, _), (second, _) = run(tmp_path / "out", "broken")
    # After what the connection says of itself.
    said = [text.splitlines()[-1] for text in (first, second)]
    assert said[0].startswith("RuntimeError Process 1 of this sweep failed")
    assert said[1].startswith("OSError [Errno 28]")
