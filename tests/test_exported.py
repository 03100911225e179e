"""Every verb is exported for every platform, as a program without the host in it.

The checks of equinox are callbacks unless `EQX_ON_ERROR=nan`, which it reads when it is
imported: the programs are made in a process of their own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import registry
import test_compile_count
import test_compile_limits

PLATFORMS = ("cpu", "cuda", "tpu")

# A case is a function of one number, on which its arguments depend.
CASES: dict[str, Callable[[Any], Any]] = {
    **test_compile_count.CASES,
    **test_compile_limits.CALLS,
}
# What is no program, and why. Each of these says so where its arguments are traced.
HOST = {
    "sweep": "runs its chunks from Python, and keeps what fails",
    "tune": "decides from Python when to stop",
    "tune: optimistix": "as `tune`",
    "tune: optax": "as `tune`",
    "stable_lr: rows": "iterates in numpy until it has converged",
    "random_features": "made of a table, once, in float64",
    "check_chain": "judges its measurements in words",
    "spectrum: data": "read from a table, part by part",
    "spectrum: features": "decomposed in numpy, once, in float64",
    "scaling_law": "its phase is a word, by comparing numbers",
}
# Verbs without numbers to trace.
NO_NUMBERS = {"default_engine": "returns an engine, chosen by a type"}
EXPORTED = [name for name in CASES if name not in HOST | NO_NUMBERS]
# What is lowered for long, and takes the same ways as the others; and a verb's second
# case, where the first one is exported too.
SLOW = test_compile_limits._SLOW - {"score"}
SLOW |= {
    name for name in EXPORTED if re.split("[:,]", name)[0] in set(EXPORTED) - {name}
}


def leaves(result):
    return [leaf for leaf in jax.tree.leaves(result) if eqx.is_array_like(leaf)]


def program(call: Callable[[Any], Any]) -> jax.export.Exported:
    function = jax.jit(lambda i: leaves(call(i)))
    return jax.export.export(function, platforms=PLATFORMS)(jnp.zeros((), int))


def to_the_host(text: str) -> set[str]:
    """What a program calls by name in Python, or sends to the host."""
    called = set(re.findall(r"custom_call @(\w+)", text))
    sent = set(re.findall(r"(?:stablehlo|mhlo)\.(?:send|recv|infeed|outfeed)", text))
    return {name for name in called if "callback" in name or "python" in name} | sent


def report(names: list[str]) -> None:
    """In the process of its own: a line for each program that is not as it should."""
    for name in names:
        try:
            exported = program(CASES[name])
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:400]!r}")
            continue
        if exported.platforms != PLATFORMS:
            print(f"{name}: exported for {exported.platforms}")
        elif found := to_the_host(exported.mlir_module()):
            print(f"{name}: calls the host by {found}")


def elsewhere(code: str, *arguments: str) -> str:
    """The output of Python code in another process, without the checks of types."""
    here = Path(__file__).parent
    environment = os.environ | {
        "EQX_ON_ERROR": "nan",
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_verb_is_exported(slow):
    names = [name for name in EXPORTED if (name in SLOW) == slow]
    assert names
    code = "import sys, test_exported as t; t.report(sys.argv[1:]); print('all done')"
    assert elsewhere(code, *names) == "all done\n"


@pytest.mark.parametrize("name", HOST)
@pytest.mark.usefixtures("without_type_checks")
def test_what_runs_on_the_host_says_so(name):
    says_so = pytest.raises(ValueError, match=r"traced|tracing|Tracer")
    # Types that mix are the cases' own.
    with says_so, jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(lambda i: leaves(CASES[name](i)), jnp.zeros((), int))


def test_every_verb_has_a_program_or_a_reason():
    """The limits and criteria; the others are `test_compile_count.CASES` themselves."""
    cases = {re.split("[:,]", name)[0] for name in CASES}
    # `solve` runs the limits; `advise` measures on a table, from Python.
    verbs = test_compile_count.LIMITS - {"solve", "advise"}
    assert verbs | registry.LIMITS.keys() <= cases
    assert HOST.keys() | NO_NUMBERS.keys() <= CASES.keys(), "a reason for no verb"


def test_a_check_is_seen():
    """What the test above would find: this process has callbacks for what is traced."""
    checked = jax.jit(lambda lr: test_compile_count.final_risk(lr, 1.0, jr.key(0)))
    with pytest.raises(Exception, match="callback"):
        jax.export.export(checked, platforms=PLATFORMS)(jnp.zeros(()))
    text = jax.jit(checked).lower(jnp.zeros(())).as_text()
    assert any("callback" in name for name in to_the_host(text))


def risks(values: list[float]) -> None:
    """In the process of its own: what an exported program returns for some rates."""
    run = jax.jit(lambda lr: test_compile_count.final_risk(lr, 1.0, jr.key(0)))
    exported = jax.export.export(run, platforms=PLATFORMS)(jnp.zeros(()))
    print(*(float(exported.call(jnp.asarray(lr))) for lr in values))


def test_an_exported_program_computes_the_same():
    """And a rate that is refused here is NaN there, with which a run diverges."""
    code = "import test_exported as t; t.risks([0.1, 0.3, -1.0])"
    *good, refused = map(float, elsewhere(code).split())
    here = [test_compile_count.final_risk(lr, 1.0, jr.key(0)) for lr in (0.1, 0.3)]
    np.testing.assert_allclose(good, here, rtol=1e-12)
    assert refused == np.inf
    with pytest.raises(ValueError, match="lr"):
        test_compile_count.final_risk(-1.0, 1.0, jr.key(0))
