"""The norm of each example's gradient, without the gradients: from the layers.

The loss is taken apart into its operations. Where parameters meet an example's data is
a *site*, such as a product with weights. A gradient in the sites' outputs alone, a
cotangent for each, costs what a backward pass does, without the products that make
gradients of weights. Of each site, then:

- weights that are used once, in an operation that `_site_norms` knows, have the norm of
    their gradient by its formula;
- all other parameters have their own gradient, example by example, by pulling the
    cotangents back through the sites alone: it is exact whatever the operation is, and
    however often a parameter is used.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Params, PyTree
from ._norm import safe_norm
from ._program import Op, Program, program
from ._site_norms import has_formula, site_norm
from ._varying import vary, varying_axes

# Operations on weights that only move them, or change their precision.
_MOVES = {
    *("transpose", "reshape", "squeeze", "broadcast_in_dim", "expand_dims", "copy"),
    *("convert_element_type", "name", "pvary", "pcast", "sharding_constraint"),
}


class _Sites(NamedTuple):
    """Where parameters and data meet.

    - `mixed`: the operations that see data, as indices into the program's.
    - `sites`: those of them that see parameters too.
    - `known`: the values that depend on parameters alone, and on which of them.
    - `formulas`: the site and operand of each parameter that has a formula.
    """

    mixed: set[int]
    sites: list[int]
    known: dict[int, frozenset[int]]
    formulas: dict[int, tuple[int, int]]


def layer_norms(
    loss: Callable[[Params, Any], tuple[Float[Array, ""], Any]],
    params: Params,
    examples: PyTree[Array],
) -> tuple[Float[Array, " n"], Any]:
    """The norm of the gradient of each example over all leaves.

    **Arguments:**

    - `loss`: `loss(params, example)`, the loss of one example and what else it returns.
    - `params`: a pytree of arrays.
    - `examples`: a pytree of arrays with a leading axis of examples.

    **Returns:**

    The norms, shape `(n,)`, and what else the loss returned, with an axis of examples.
    """
    leaves, structure = jax.tree.flatten(params)
    size = jnp.shape(jax.tree.leaves(examples)[0])[0]

    def flat(leaves: list[Array], example: Any, one: Array) -> tuple[Array, Any]:
        value, aux = loss(jax.tree.unflatten(structure, leaves), example)
        # Or else a loss that sees no data would have no site.
        return value * one.astype(value.dtype), aux

    def of_one(example: Any, one: Array) -> tuple[Array, Any]:
        code, out = _traced(flat, leaves, example, one)
        sites = _find(code, len(leaves))
        inputs, backs, results = _cotangents(code, sites, leaves, example, one)
        norms = _by_formulas(code, sites, inputs, backs)
        rest = _by_pulling_back(code, sites, leaves, inputs, backs)
        aux = jax.tree.unflatten(out, results)[1]
        return safe_norm((norms, rest)), aux

    return jax.vmap(of_one)(examples, jnp.ones(size, jnp.float32))


def _traced(function: Any, *arguments: Any) -> tuple[Program, Any]:
    """The program of a function, and the structure of what it returns."""
    structure: list[Any] = []

    def flat(*arguments: Any) -> list[Any]:
        results, tree = jax.tree.flatten(function(*arguments))
        structure.append(tree)
        return results

    return program(flat, *arguments), structure[0]


def _find(code: Program, parameters: int) -> _Sites:
    known = {index: frozenset[int]() for index in code.constants}
    known |= {code.arguments[k]: frozenset([k]) for k in range(parameters)}
    whole = {code.arguments[k]: k for k in range(parameters)}
    mixed, sites, uses = set[int](), list[int](), dict[int, list[tuple[int, int]]]()
    for number, op in enumerate(code.ops):
        if all(index in known for index in op.inputs):
            union = frozenset[int]().union(*(known[index] for index in op.inputs))
            known |= dict.fromkeys(op.outputs, union)
            if _moves(code, op) and op.inputs[0] in whole:
                whole[op.outputs[0]] = whole[op.inputs[0]]
            continue
        mixed.add(number)
        operands = [i for i, v in enumerate(op.inputs) if known.get(v)]
        if operands:
            sites.append(number)
        for i in operands:
            for k in known[op.inputs[i]]:
                uses.setdefault(k, []).append((number, i))
    formulas = {}
    for k, places in uses.items():
        number, i = places[0]
        op = code.ops[number]
        alone = len(places) == 1 and sum(bool(known.get(v)) for v in op.inputs) == 1
        if alone and op.inputs[i] in whole and has_formula(code, op, i):
            formulas[k] = number, i
    return _Sites(mixed, sites, known, formulas)


def _moves(code: Program, op: Op) -> bool:
    """Whether the numbers of the one operand are those of the result."""
    if op.name not in _MOVES or len(op.inputs) != 1:
        return False
    before, after = code.types[op.inputs[0]], code.types[op.outputs[0]]
    real = jnp.issubdtype(after.dtype, jnp.floating)
    return before.size == after.size and real


def _cotangents(
    code: Program, sites: _Sites, leaves: list[Array], example: Any, one: Array
) -> tuple[dict[int, Any], dict[int, Array], list[Any]]:
    """The values that sites see or make, the cotangents of what they make, and the
    program's results."""
    wanted = {v for number in sites.sites for v in code.ops[number].inputs}
    made = [
        v
        for number in sites.sites
        for v in code.ops[number].outputs
        if jnp.issubdtype(code.types[v].dtype, jnp.inexact)
    ]
    arguments = [*leaves, *jax.tree.leaves(example), one]

    def tapped(taps: dict[int, Array]) -> tuple[Array, Any]:
        values = {**code.constants}
        values |= dict(zip(code.arguments, arguments, strict=True))
        for op in code.ops:
            outputs = op.run([values[v] for v in op.inputs])
            for v, value in zip(op.outputs, outputs, strict=True):
                values[v] = value + taps[v] if v in taps else value
        kept = {v: values[v] for v in wanted if not sites.known.get(v)}
        results = [values[v] for v in code.results]
        return results[0], (kept, results)

    taps = {v: jnp.zeros(code.types[v].shape, code.types[v].dtype) for v in made}
    taps = vary(taps, varying_axes(arguments))
    backs, (kept, results) = jax.grad(tapped, has_aux=True)(taps)
    return kept, backs, results


def _by_formulas(
    code: Program, sites: _Sites, inputs: dict[int, Any], backs: dict[int, Array]
) -> list[Float[Array, ""]]:
    norms = []
    for number, position in sites.formulas.values():
        op = code.ops[number]
        others = [inputs[v] for i, v in enumerate(op.inputs) if i != position]
        norms.append(site_norm(code, op, position, others, backs[op.outputs[0]]))
    return norms


def _by_pulling_back(
    code: Program,
    sites: _Sites,
    leaves: list[Array],
    inputs: dict[int, Any],
    backs: dict[int, Array],
) -> list[Array]:
    """The gradients in all parameters without a formula."""
    rest = [k for k in range(len(leaves)) if k not in sites.formulas]

    def through(number: int) -> bool:
        seen = (sites.known.get(v, frozenset()) for v in code.ops[number].inputs)
        return any(not each.isdisjoint(rest) for each in seen)

    used = [number for number in sites.sites if through(number)]
    made = [v for number in used for v in code.ops[number].outputs if v in backs]

    def outputs(own: list[Array]) -> list[Array]:
        now = {**code.constants, **inputs}
        now |= dict(zip(code.arguments, leaves, strict=False))
        now |= {code.arguments[k]: leaf for k, leaf in zip(rest, own, strict=True)}
        results = {}
        for number, op in enumerate(code.ops):
            if number not in sites.mixed:
                now |= zip(op.outputs, op.run([now[v] for v in op.inputs]), strict=True)
            elif number in used:
                # Not added to what is known: behind a site, values are data.
                run = op.run([now[v] for v in op.inputs])
                results |= zip(op.outputs, run, strict=True)
        return [results[v] for v in made]

    if not rest:
        return []
    _, pull = jax.vjp(outputs, [leaves[k] for k in rest])
    return pull([backs[v] for v in made])[0]
