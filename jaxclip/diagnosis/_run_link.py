"""A link of an optax chain, run on a sequence of gradients, and what was seen of it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from .._optimiser import with_optimiser
from .._types import PyTree
from ..clip import Identity
from ..transform import GuardState, MonitorState, SpikeState, safe_norm

# What changes a norm by less than this has not acted.
_ACTED = 1e-5


class Watched(NamedTuple):
    """What a monitor saw: the norm before and after its clip, and by how much the parts
    changed, at each step. Shape `(t,)`."""

    given: Float[Array, " t"]
    out: Float[Array, " t"]
    change: Float[Array, " t"]

    @property
    def acted(self) -> Bool[Array, " t"]:
        """On which steps the clip changed anything."""
        return self.change > _ACTED * self.given


class Outcome(NamedTuple):
    """What came out of a link.

    - `out`: with a leading axis of steps.
    - `monitors`: what each monitor in it saw.
    - `skipped`: how many steps each guard against spikes in it left out.
    """

    out: PyTree[Array]
    monitors: tuple[Watched, ...]
    skipped: tuple[Array, ...]


def run_link(
    link: optax.GradientTransformation | None,
    params: PyTree[Any],
    sequence: PyTree[Array],
    *,
    free: bool = False,
) -> Outcome:
    """Runs a link from its start on a sequence, at parameters that stay as they are.

    **Arguments:**

    - `link`: the link; `None` for none, of which everything comes out as it is.
    - `sequence`: gradients, with a leading axis of steps.
    - `free`: whether the clips of this library that are within it clip nothing.
    """
    if link is None:
        return Outcome(sequence, (), ())
    # Optax mixes precisions.
    with jax.numpy_dtype_promotion("standard"):
        extra = optax.with_extra_args_support(link)
        return with_optimiser(_run, extra, params, sequence, free)


@eqx.filter_jit
def _run(optimiser: Any, params: Any, sequence: Any, free: bool) -> Outcome:
    extra = {"clip": Identity()} if free else {}

    def step(state, gradient):
        out, state = optimiser.update(gradient, state, params, **extra)
        return state, (out, tuple(map(_watched, _found(state, MonitorState))))

    state, (out, monitors) = jax.lax.scan(step, optimiser.init(params), sequence)
    skipped = tuple(guard.skipped for guard in _found(state, SpikeState))
    return Outcome(out, monitors, skipped)


def has_guard(link: optax.GradientTransformation | None, params: PyTree[Any]) -> bool:
    """Whether there is a guard of this library in a link."""
    state = None if link is None else jax.eval_shape(link.init, params)
    return bool(_found(state, (GuardState, SpikeState)))


def _found(state: Any, kind: Any) -> list[Any]:
    """The states of a kind that are anywhere in a state, those in each other too."""

    def is_inner(node):
        return isinstance(node, kind)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_inner) if is_inner(s)]
    return found + [s for outer in found for s in _found(outer.inner, kind)]


def _watched(monitor: MonitorState) -> Watched:
    """Of the norms of all parts together what is that of the whole."""
    length = lambda x: safe_norm(jnp.ravel(x))  # noqa: E731
    norm, factor = monitor.norm, monitor.factor
    return Watched(length(norm), length(factor * norm), length((factor - 1) * norm))


@eqx.filter_jit
def compared(given: PyTree[Array], out: PyTree[Array]) -> Watched:
    """The same of what went into a link and what came out, as seen from outside."""
    with jax.numpy_dtype_promotion("standard"):
        change = jax.tree.map(jnp.subtract, out, given)
    return Watched(*(jax.vmap(safe_norm)(tree) for tree in (given, out, change)))


@eqx.filter_jit
def compared_leaves(given: PyTree[Array], out: PyTree[Array]) -> tuple[Watched, ...]:
    """The same of the whole, and then of each leaf."""
    leaves = zip(*map(jax.tree.leaves, (given, out)), strict=True)
    return compared(given, out), *(compared(*pair) for pair in leaves)
