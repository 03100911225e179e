"""A function as a flat list of JAX's own operations, each with numbered values.

What a compiler would call straight-line code: calls within calls are written out where
they are harmless (`jit`, `checkpoint`), and left whole where they are not (loops,
conditions, functions with a derivative of their own).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal, Primitive

# Calls that compute what their body does, by the names in JAX 0.9 to 0.12, and the
# parameter that holds the body.
_CALLS = {
    **{"jit": "jaxpr", "pjit": "jaxpr"},
    **{"checkpoint": "jaxpr", "remat": "jaxpr", "remat2": "jaxpr"},
    **{"closed_call": "call_jaxpr", "core_call": "call_jaxpr"},
}


class Op(NamedTuple):
    """One operation: its inputs and outputs are indices of values, and `context` holds
    the settings of JAX under which it was written."""

    primitive: Primitive
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    context: Any

    @property
    def name(self) -> str:
        return self.primitive.name

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs at these inputs, traced or not."""
        bound = self.primitive.get_bind_params(self.params)
        # JAX 0.9 tells apart what later is all in one dictionary.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        with self.context.manager:
            out = self.primitive.bind(*functions, *inputs, **params)
        return list(out) if self.primitive.multiple_results else [out]


class Program(NamedTuple):
    """What a function does.

    - `ops`: in the order in which they run.
    - `types`: the abstract value of each value: shape and dtype.
    - `constants`: the values that are known already.
    - `arguments`, `results`: indices of the function's flat arguments and results.
    """

    ops: list[Op]
    types: list[Any]
    constants: dict[int, Any]
    arguments: list[int]
    results: list[int]


def program(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of a function at arguments of these shapes, which are not read."""
    closed = jax.make_jaxpr(function)(*arguments)
    code = Program([], [], {}, [], [])
    code.arguments.extend(_new(code, var.aval) for var in closed.jaxpr.invars)
    constants = [_constant(code, value) for value in closed.consts]
    code.results.extend(_inline(code, closed.jaxpr, constants, code.arguments))
    return code


def _inline(
    code: Program, jaxpr: Jaxpr, constants: Sequence[int], inputs: Sequence[int]
) -> list[int]:
    """Adds what a piece of code does, and returns the indices of its results."""
    # A piece that is called twice is the same object: its variables are told apart by
    # the call, each with a dictionary of its own.
    known = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> int:
        literal = isinstance(atom, Literal)
        return _constant(code, atom.val, atom.aval) if literal else known[atom]

    for eqn in jaxpr.eqns:
        given = tuple(read(atom) for atom in eqn.invars)
        body = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        if body is None:
            outputs = [_new(code, var.aval) for var in eqn.outvars]
            code.ops.append(
                Op(eqn.primitive, eqn.params, given, tuple(outputs), eqn.ctx)
            )
        elif isinstance(body, Jaxpr):
            outputs = _inline(code, body, (), given)
        else:
            held = [_constant(code, value) for value in body.consts]
            outputs = _inline(code, body.jaxpr, held, given)
        known |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _new(code: Program, kind: Any) -> int:
    code.types.append(kind)
    return len(code.types) - 1


def _constant(code: Program, value: Any, kind: Any = None) -> int:
    index = _new(code, jax.typeof(value) if kind is None else kind)
    code.constants[index] = value
    return index
