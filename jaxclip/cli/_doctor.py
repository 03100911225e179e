"""The command `jaxclip doctor`: what is installed, and whether it works."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from ._self_test import CHECKS, Check

# What the core stands on, and what each extra brings.
CORE = (
    *("jaxclip", "jax", "jaxlib", "numpy", "equinox", "optax", "diffrax"),
    *("lineax", "optimistix", "jaxtyping"),
)
EXTRAS = {
    "cli": (
        *("duckdb", "matplotlib", "openpyxl", "pandas", "pyarrow", "scikit-learn"),
        *("skrub", "tqdm", "tyro", "xarray", "zarr"),
    ),
    "privacy": ("dp-accounting",),
}


@dataclass(frozen=True)
class Finding:
    """What a check of the self-test found.

    - `passed`: whether it is well.
    - `detail`: what was measured, or what went wrong.
    - `seconds`: how long it took.
    """

    check: Check
    passed: bool
    detail: str
    seconds: float


def doctor(show: Callable[[str], Any] = print) -> bool:
    """Prints versions, devices and settings, and the self-test as it goes.

    **Arguments:**

    - `show`: is given each line.

    **Returns:**

    Whether all is well.
    """
    for title, lines in (
        ("Versions", _versions()),
        ("Extras", _extras()),
        ("Devices", _devices()),
        ("Precision", _precision()),
        ("Cache of compiled programs", _cache()),
    ):
        show(title)
        for line in lines:
            show(f"  {line}")
    show("Self-test")
    findings = []
    for check in CHECKS:
        findings.append(found := run_check(check))
        word = "ok" if found.passed else "FAILED"
        show(f"  {word:<7} {check.name}: {found.detail} ({found.seconds:.1f} s)")
        if not found.passed:
            show(f"          {check.advice}")
    failed = sum(not found.passed for found in findings)
    seconds = sum(found.seconds for found in findings)
    show(
        f"{len(findings) - failed} of {len(findings)} checks passed in {seconds:.1f} s."
    )
    return not failed


def run_check(check: Check) -> Finding:
    """Runs a check; whatever it raises is its finding."""
    start = time.perf_counter()
    try:
        passed, detail = True, check.run()
    except Exception as error:
        # The first line: jax and equinox go on for many.
        text = (str(error).strip() or "no message").splitlines()[0]
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        passed, detail = False, kind + text
    return Finding(check, passed, detail, time.perf_counter() - start)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[str]:
    yield f"{'python':<12}{platform.python_version()} on {platform.platform()}"
    for package in CORE:
        # A checkout on the path has no version.
        missing = "not installed" + " (imported from a path)" * (package == "jaxclip")
        yield f"{package:<12}{_version(package) or missing}"


def _extras() -> Iterator[str]:
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if _version(name) is None]
        state = (
            f"absent are {', '.join(absent)}: `pip install 'jaxclip[{extra}]'`"
            if absent
            else "present"
        )
        yield f"{extra:<12}{state}"


def _setting(name: str) -> Any:
    # Of names that are made at run time, so that type checkers do not know them.
    return getattr(jax.config, name)


def _devices() -> Iterator[str]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        yield f"none can be used: {str(error).splitlines()[0]}"
        return
    for device in devices:
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = "memory not known" if memory is None else f"{memory / 2**30:.1f} GiB"
        yield f"{device.platform}:{device.id} {device.device_kind}, {size}"


def _precision() -> Iterator[str]:
    x64 = _setting("jax_enable_x64")
    yield "float64 (jax_enable_x64 is on)" if x64 else "float32 (jax_enable_x64 is off)"
    products = _setting("jax_default_matmul_precision")
    yield f"matrix products: {products or 'the default of the device'}"


def _cache() -> Iterator[str]:
    folder = _setting("jax_compilation_cache_dir")
    if folder is None or not _setting("jax_enable_compilation_cache"):
        yield "none on disk: each process compiles anew"
        yield "to keep one, set JAX_COMPILATION_CACHE_DIR to a folder"
        return
    least = _setting("jax_persistent_cache_min_compile_time_secs")
    yield f"in {folder}, of what compiles for {least:g} s or longer"
