"""Whether the guards of a chain stand where they guard: a bad gradient is put in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._types import PyTree
from ._chain import Finding
from ._run_link import Outcome, compared

_AROUND = (
    "Put the guard around the whole optimiser, `skip_nonfinite(optax.chain(...))`."
)


def findings_of_guards(
    run: Callable[[PyTree[Any]], Outcome], gradients: PyTree[Any], spiked: PyTree[Any]
) -> tuple[Finding, ...]:
    """What is wrong with guards, of which there is at least one.

    **Arguments:**

    - `run`: runs the whole chain.
    - `gradients`: with a leading axis of at least three steps.
    - `spiked`: the same with a spike at the last step.
    """
    usual, middle = run(gradients), len(jax.tree.leaves(gradients)[0]) // 2
    # One number alone: a guard that leaves out that number keeps the others.
    bad = run(_with(gradients, middle, jnp.nan, one=True)).out
    none = run(_with(gradients, middle, 0.0, one=False)).out
    lengths, alike = (np.asarray(x) for x in compared(bad, none)[::2])
    after = [jax.tree.map(lambda x: x[middle + 1 :], t) for t in (bad, usual.out)]
    if _is_dead(*after):
        return (
            Finding(
                "late guard",
                "After one gradient with a number that is not finite some parameters "
                "are never updated again, or by what is no number: it has entered a "
                f"state before it reached the guard. {_AROUND}",
            ),
        )
    moved = 0 < lengths[middle] < np.inf
    if moved and alike[middle] <= 1e-6 * lengths[middle]:
        return (_inner("whose gradient is not finite"),)
    last = run(spiked)
    more = [int(a) > int(b) for a, b in zip(last.skipped, usual.skipped, strict=True)]
    if any(more) and compared(last.out, last.out).given[-1] > 0:
        return (_inner("with a spike"),)
    return ()


@eqx.filter_jit
def _is_dead(updates: PyTree[Array], usual: PyTree[Array]) -> Bool[Array, ""]:
    """Whether a number that usually moves does not, or by what is not finite."""

    def dead(leaf, like):
        still = jnp.all(leaf == 0, axis=0) & jnp.any(like != 0, axis=0)
        return jnp.any(still) | ~jnp.all(jnp.isfinite(leaf))

    each = jax.tree.leaves(jax.tree.map(dead, updates, usual))
    return jnp.any(jnp.array(each))


def _inner(which: str) -> Finding:
    return Finding(
        "inner guard",
        f"A step {which} is left out by a guard, and moves the parameters all the "
        "same: what stands behind the guard goes on from a gradient of zero, and its "
        f"momentum with it. {_AROUND}",
    )


def _with(gradients: PyTree[Any], step: int, value: float, one: bool) -> PyTree[Any]:
    """The gradients with a value at a step: in the first number, or in all of them."""
    leaves, structure = jax.tree.flatten(gradients)
    number = (step, *(0,) * (leaves[0].ndim - 1)) if one else step
    first = leaves[0].at[number].set(value)
    rest = leaves[1:] if one else [leaf.at[step].set(value) for leaf in leaves[1:]]
    return structure.unflatten([first, *rest])
