"""A differentiable simulator of stochastic gradient descent with clipping.

A name is imported with its room when it is first used: who takes a rule as an optax
transform does not wait for the solvers of differential equations. Which room a name is
from stands in `__init__.pyi`, once for this module and for type checkers.
"""

import ast as _ast
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

_STUB = _ast.parse(_Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    alias.name: f".{node.module or alias.name}"
    for node in _STUB.body
    if isinstance(node, _ast.ImportFrom)
    for alias in node.names
}
_ROOMS = {name for name, home in _HOMES.items() if home == f".{name}"}
# The other rooms are there too (`jaxclip.noise.SmoothLaw`), for who adds to them.
__all__ = sorted(  # pyright: ignore[reportUnsupportedDunderAll]
    (_HOMES.keys() - _ROOMS) | {"curvature", "privacy"}
)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _import_module(_HOMES[name], __name__)
    value = home if name in _ROOMS else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
