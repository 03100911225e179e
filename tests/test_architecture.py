"""The shape of the package: which way imports point, and what is public."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxclip as jc

ROOT = Path(jc.__file__).parent
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}

# What each room, and each module of the ground floor, may import of the others. Each
# imports only what is above it: this table is itself a proof that there is no cycle.
_GROUND = {"_types", "_checks", "_numerics", "_static", "_repr", "_picture"}
_MODEL = {*_GROUND, "_random", "_schedule", "_curve", "noise", "clip", "problem"}
IMPORTS = {
    "_types": set(),
    "_checks": set(),
    "_numerics": set(),
    "_static": set(),
    "_repr": set(),
    "_picture": {"_checks"},
    "_random": {"_types"},
    "_optimiser": {"_static"},
    "_schedule": _GROUND,
    "_curve": {"_checks", "_picture", "_repr", "_types"},
    "_version": set(),
    "noise": _GROUND,
    "clip": {*_GROUND, "_schedule", "noise"},
    "transform": {*_GROUND, "_schedule", "clip"},
    "problem": {*_GROUND, "_random", "clip", "noise"},
    "sgd": {*_MODEL, "_optimiser", "transform"},
    "limit": {*_MODEL, "transform"},
    "criterion": {*_MODEL, "transform", "limit"},
    "curvature": {*_GROUND, "clip"},
    "tuning": {*_GROUND, "_optimiser", "transform"},
    "grid": _GROUND,
    "privacy": _GROUND,
    "diagnosis": {*_GROUND, "_optimiser", "clip", "transform"},
    "advice": {*_MODEL, "transform", "sgd", "limit", "criterion", "tuning"},
    "cli": {*_MODEL, "transform", "sgd", "limit", "grid", "advice"},
}

# What a user of the core needs, without any extra.
CORE = {"jax", "numpy", "equinox", "optax", "diffrax", "lineax", "optimistix"}
CORE |= {"jaxtyping", *sys.stdlib_module_names}


def _unit(source: str) -> str:
    """The module or folder of the package that a file belongs to."""
    return source.split("/")[0].removesuffix(".py")


def _internal(source: str) -> Iterator[tuple[str, ...]]:
    """What a file imports of the package outside of its own room: the path of each
    module, such as `("problem",)` or `("problem", "linear", "_rows")`."""
    package = source.split("/")[:-1]
    for node in ast.walk(SOURCES[source]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = base + (node.module.split(".") if node.module else [])
            paths = [target] if target else [[alias.name] for alias in node.names]
            yield from (tuple(path) for path in paths if path[0] != _unit(source))


def _absolute(nodes: typing.Iterable[ast.AST]) -> Iterator[str]:
    """The names of the packages that some statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


# Imports


def test_the_table_points_one_way():
    above: set[str] = set()
    for unit, allowed in IMPORTS.items():
        assert allowed <= above, f"{unit} may import {allowed - above}, below it"
        above.add(unit)


def test_the_table_is_complete():
    assert {_unit(source) for source in SOURCES} - {"__init__"} == set(IMPORTS)


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "__init__.py"])
def test_imports_point_one_way(source):
    wrong = {path[0] for path in _internal(source)} - IMPORTS[_unit(source)]
    assert not wrong, f"{source} imports {wrong}"


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "__init__.py"])
def test_rooms_take_from_each_other_at_the_door(source):
    """What another room's `__init__` hands out, and nothing from its files."""
    inside = {".".join(path) for path in _internal(source) if len(path) > 1}
    assert not inside, f"{source} imports {inside}"


def test_imports_are_seen():
    """Of every form that the sources have: the test above can fail."""
    seen = {source: set(_internal(source)) for source in SOURCES}
    assert {("clip",), ("problem",), ("_types",)} <= seen["limit/_solve.py"]
    assert {("clip",), ("problem",)} <= seen["sgd/engine/_base.py"]
    assert {("_checks",), ("_types",)} <= seen["_schedule.py"]
    assert ("problem",) in seen["criterion/_schedules.py"]
    assert "jax" in set(_absolute(ast.walk(SOURCES["_checks.py"])))


def test_the_package_does_not_import_itself_by_name():
    for source, tree in SOURCES.items():
        assert "jaxclip" not in set(_absolute(ast.walk(tree))), source


@pytest.mark.parametrize("source", SOURCES)
def test_extras_are_imported_where_they_are_used(source):
    """At the top of a module only what the core depends on."""
    assert set(_absolute(SOURCES[source].body)) <= CORE


# Sizes: a file is one idea, and a function can be read in one sitting

_MOST_LINES, _MOST_LINES_OF_A_FUNCTION = 250, 60


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_is_read_in_one_sitting(source):
    lines = len((ROOT / source).read_text().splitlines())
    assert lines <= _MOST_LINES, f"{source} has {lines} lines"


def _too_long(tree: ast.AST) -> dict[str, int]:
    """Functions with too many lines, their docstring included, and how many."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    return {name: n for name, n in lengths.items() if n > _MOST_LINES_OF_A_FUNCTION}


@pytest.mark.parametrize("source", SOURCES)
def test_a_function_is_read_in_one_sitting(source):
    assert not _too_long(SOURCES[source])


def test_a_long_function_is_seen():
    body = "    pass\n" * _MOST_LINES_OF_A_FUNCTION
    assert _too_long(ast.parse("def short():\n" + body[:-9])) == {}
    assert _too_long(ast.parse("def long():\n" + body)) == {"long": 61}


# Nothing runs at import

_STATEMENTS = (
    *(ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign),
    *(ast.FunctionDef, ast.ClassDef),
)


@pytest.mark.parametrize("source", SOURCES)
def test_modules_only_define(source):
    first, *rest = SOURCES[source].body
    assert isinstance(first, ast.Expr), f"{source} has no docstring"
    assert ast.get_docstring(SOURCES[source])
    for node in rest:
        test = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        main = "__name__" in test or test == "TYPE_CHECKING"
        assert isinstance(node, _STATEMENTS) or main, ast.unparse(node)


_IMPORT = """
import sys
import jax, numpy, equinox, optax, diffrax, lineax, optimistix, jaxtyping
from jax._src import xla_bridge
before = dict(jax.config.values)
import jaxclip
changed = {k for k, v in jax.config.values.items() if before.get(k) != v}
assert not changed, changed
assert not xla_bridge.backends_are_initialized(), "a device is in use"
extras = {"matplotlib", "pandas", "sklearn", "tqdm", "tyro", "xarray", "zarr"}
extras |= {"dp_accounting", "duckdb", "openpyxl", "polars", "pyarrow", "skrub"}
assert not extras & set(sys.modules), extras & set(sys.modules)
"""


def test_import_changes_nothing():
    """In a new process: neither JAX's configuration nor a device is touched."""
    run = subprocess.run(
        [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_version_is_that_of_the_installed_package():
    try:
        expected = importlib.metadata.version("jaxclip")
    except importlib.metadata.PackageNotFoundError:
        expected = "0+unknown"  # a checkout on the path, not installed
    assert jc.__version__ == expected


def test_the_version_is_written_once_more_in_the_citation():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    citation = (root / "CITATION.cff").read_text().splitlines()
    assert f"version: {project['version']}" in citation


# The public names

_NAMESPACES = ("algorithm", "curvature", "inject", "policy", "privacy")
# What stands at a room's door for its other users is not only for other rooms: every
# class, and these functions.
_ROOMS = ("advice", "clip", "criterion", "diagnosis", "grid", "limit", "noise")
_ROOMS += ("problem", "sgd", "transform", "tuning")
_AT_A_DOOR = {
    "check_chain",
    "default_engine",
    "fisher_information",
    "limit_map",
    "random_features",
}
_AT_A_DOOR |= {"time_scale"}


def _public() -> Iterator[tuple[str, Any]]:
    """Names as a user writes them after `jaxclip.`: flat ones, those in namespaces, and
    those at the door of a room."""
    flat = {name: getattr(jc, name) for name in jc.__all__}
    flat = {n: v for n, v in flat.items() if not inspect.ismodule(v) and n[0] != "_"}
    yield from flat.items()
    for room in (*_NAMESPACES, *_ROOMS):
        for name, value in vars(getattr(jc, room)).items():
            wanted = room in _NAMESPACES or inspect.isclass(value) or name in _AT_A_DOOR
            if wanted and not inspect.ismodule(value) and name not in flat:
                yield f"{room}.{name}", value


PUBLIC = {name: value for name, value in _public() if "._" not in name}


def test_there_are_few_flat_names():
    flat = [name for name in dir(jc) if not name.startswith("_")]
    assert len(flat) <= 90, len(flat)


def test_every_name_of_the_stub_is_there():
    """What type checkers read is what a user finds."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    for node in stub.body:
        assert isinstance(node, ast.ImportFrom) and node.level == 1, ast.unparse(node)
        for alias in node.names:
            assert alias.name == alias.asname, f"{alias.name} must be `X as X`"
            assert hasattr(jc, alias.name)
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        jc.missing  # noqa: B018


def test_a_name_is_imported_when_it_is_used():
    """A rule and its transform do without the solvers of differential equations."""
    code = """
import sys, jaxclip
assert "jax" not in sys.modules
jaxclip.as_transform(jaxclip.HardClip(1.0))
assert "optax" in sys.modules and "diffrax" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("source", [s for s in SOURCES if s.endswith("/__init__.py")])
def test_an_init_only_lists_names(source):
    for node in SOURCES[source].body[1:]:
        assert isinstance(node, ast.ImportFrom) and node.level == 1, ast.unparse(node)
        for alias in node.names:
            assert alias.name == alias.asname, f"{alias.name} must be `X as X`"


def test_no_room_has_the_name_of_what_it_hands_out():
    """`import jaxclip.x` gives a room, and `jaxclip.y` the verb."""
    rooms = {source.split("/")[0] for source in SOURCES if "/" in source}
    assert not rooms & set(PUBLIC)


def test_a_name_is_in_one_place():
    """Flat, or in one namespace."""
    last = [name.rpartition(".")[2] for name in PUBLIC]
    assert len(last) == len(set(last))


def _functions() -> Iterator[tuple[str, Any]]:
    """Public functions, and public methods and properties that are our own."""
    for name, value in PUBLIC.items():
        if not inspect.isclass(value):
            # Beneath a `filter_jit`, what was written.
            yield name, inspect.unwrap(value)
            continue
        for attribute, member in vars(value).items():
            member: Any = getattr(member, "__func__", member)
            if isinstance(member, property):
                member = member.fget
            member = inspect.unwrap(getattr(member, "method", member))
            if not attribute.startswith("_") and inspect.isfunction(member):
                yield f"{name}.{attribute}", member


FUNCTIONS = dict(_functions())


def test_public_functions_are_found():
    found = {"simulate", "best_clip", "Spectrum.power_law", "Spectrum.trace"}
    assert found | {
        "Curve.plot",
        "HardClip.factor",
        "clip.Moments.csc",
        "inject.Label.drift",
    } <= set(FUNCTIONS)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert doc and len(doc) > 20
    # Not the signature that a dataclass writes for itself.
    assert not doc.startswith(name.rpartition(".")[2] + "(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented(name):
    # A method may have the docstring of the abstract one.
    owner, _, attribute = name.rpartition(".")
    value = getattr(PUBLIC[owner], attribute) if owner in PUBLIC else PUBLIC[name]
    assert inspect.getdoc(value)


def _owner(name: str) -> str:
    """The class of a method; a function itself."""
    owner = name.rpartition(".")[0]
    return owner if owner in PUBLIC else name


def _names_in(doc: str) -> set[str]:
    """The names in backticks; and those in the docstring that this one refers to, where
    it says that its arguments are those of another."""
    doc = " ".join(doc.split())
    elsewhere = re.findall(
        r"(?:arguments|others) are those of \[`jaxclip\.([\w.]+)`", doc
    )
    texts = [doc, *(inspect.getdoc(PUBLIC[name]) or "" for name in elsewhere)]
    return {name for text in texts for name in re.findall(r"`(\w+)`", text)}


def _check_parameters(value: Any, doc: str) -> None:
    # A field that is private is not for a user to give.
    parameters = {n for n in inspect.signature(value).parameters if n[0] != "_"}
    parameters -= {"self"}
    unnamed = parameters - _names_in(doc)
    assert not unnamed, f"the docstring has no word on {sorted(unnamed)}"


@pytest.mark.parametrize("name", [n for n in PUBLIC if n in FUNCTIONS])
def test_docstrings_of_functions_name_every_parameter(name):
    _check_parameters(FUNCTIONS[name], inspect.getdoc(PUBLIC[name]) or "")


@pytest.mark.parametrize(
    "name",
    [n for n, v in PUBLIC.items() if inspect.isclass(v) and not inspect.isabstract(v)],
)
def test_docstrings_of_classes_name_every_parameter(name):
    """Their own, or that of a class of the package that they derive from."""
    ours = [c for c in PUBLIC[name].__mro__ if c.__module__.startswith("jaxclip")]
    doc = " ".join(inspect.getdoc(each) or "" for each in ours)
    _check_parameters(PUBLIC[name], doc)


# What a user derives from: the docstring of an abstract method is all that its author
# has to go by. A final class documents only what differs.
_INTERFACES = [
    *("AbstractClip", "AbstractNoise", "AbstractProblem", "noise.AbstractLaw"),
    *("problem.AbstractLandscape", "problem.AbstractLinear", "problem.AbstractLoss"),
    *("limit.AbstractLimit", "sgd.AbstractEngine", "transform.AbstractScope"),
    *("policy.AbstractPolicy", "algorithm.AbstractSpiderVariant"),
    "inject.AbstractInjection",
]


@pytest.mark.parametrize("name", _INTERFACES)
def test_docstrings_of_interfaces_name_every_parameter(name):
    methods = set(vars(PUBLIC[name])) & PUBLIC[name].__abstractmethods__
    assert methods
    for method in methods & {f.rpartition(".")[2] for f in FUNCTIONS}:
        member = vars(PUBLIC[name])[method]
        if inspect.isfunction(member):
            _check_parameters(member, inspect.getdoc(member) or "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        if parameter.name not in ("self", "cls"):
            assert parameter.annotation is not parameter.empty, parameter


def _classes_in(annotation: Any) -> Iterator[type]:
    """The package's own classes in an annotation, however deep."""
    for part in typing.get_args(annotation):
        yield from _classes_in(part)
    # jaxtyping's arrays are classes as well, made where they are written.
    ours = inspect.isclass(annotation) and annotation.__module__.startswith("jaxclip")
    if ours and annotation.__name__[0] != "_" and not hasattr(annotation, "array_type"):
        yield annotation


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_signature_names_is_public(name):
    value = PUBLIC[name]
    hints = [getattr(value, "__annotations__", {})]
    hints += [f.__annotations__ for n, f in FUNCTIONS.items() if _owner(n) == name]
    public = set(filter(inspect.isclass, PUBLIC.values()))
    for at, annotation in (item for each in hints for item in each.items()):
        if at.startswith("_"):
            continue
        private = set(_classes_in(annotation)) - public
        assert not private, f"{private} stands in {annotation}"


# matplotlib's own arguments; and those of the abstract method, handed on as they are.
_STARRED = {"Curve.plot", "Sweep.plot"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_arguments_in_bulk(name):
    kinds = {p.kind for p in inspect.signature(FUNCTIONS[name]).parameters.values()}
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    if name not in _STARRED:
        assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize(
    "name",
    [
        *("simulate", "train", "solve", "moments", "tune", "sweep"),
        *("diagnose", "unroll", "basins"),
        *("curvature.sharpness", "curvature.loss_barrier"),
    ],
)
def test_how_to_do_it_is_keyword_only(name):
    """What to do is positional, with `step` the one default among it."""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        optional = parameter.default is not parameter.empty
        if optional and parameter.name != "step":
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
