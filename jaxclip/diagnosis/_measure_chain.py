"""The numbers of `check_chain`: each link of a chain on gradients of several sizes."""

from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jaxtyping import Array

from .._types import PyTree
from ._chain import ChainCheck, ClipUse
from ._findings import Updates, findings_of_clips
from ._guards import findings_of_guards
from ._run_link import (
    Outcome,
    Watched,
    compared,
    compared_leaves,
    has_guard,
    run_link,
)

# How far gradients are scaled, to see whether the optimiser heeds their scale, and how
# much longer a spike is than the gradient that it stands for.
_TEN, _SPIKE = 10.0, 1e6
# What grows less than this with gradients that are ten times as long does not grow.
_GROWS = 2.0

_Link: TypeAlias = optax.GradientTransformation | None


def measure_chain(
    links: tuple[_Link, optax.GradientTransformation, _Link],
    params: PyTree[Any],
    gradients: PyTree[Array],
) -> ChainCheck:
    """What `check_chain` returns.

    **Arguments:**

    - `links`: what stands before the optimiser, the optimiser, and what stands behind.
    - `params`, `gradients`: as of `check_chain`.
    """
    before, optimizer, after = links
    spiked = jax.tree.map(lambda g: g.at[-1].multiply(_SPIKE), gradients)
    clipped = run_link(before, params, gradients).out
    _same_shapes("before", gradients, clipped)
    usual = run_link(optimizer, params, clipped)
    _same_shapes("optimizer", gradients, usual.out)
    # With a clip before it, the optimiser is compared as it is, without that clip.
    alone = before is None
    free = run_link(optimizer, params, gradients, free=alone)
    longer = run_link(optimizer, params, _tenfold(gradients), free=alone)
    within = _clips_within(optimizer, params, spiked, (usual, free, longer))
    scale, growth = _differ(free.out, longer.out)
    effect, length = _differ(free.out, usual.out)
    clips, clipped_scale = (), None
    if before is not None:
        on_spike = compared(spiked, run_link(before, params, spiked).out)
        clips += (_use("before", compared(gradients, clipped), on_spike),)
        again = run_link(optimizer, params, _tenfold(clipped)).out
        clipped_scale, _ = _differ(usual.out, again)
    clips += within
    if after is not None:
        # The spike reaches the optimiser as it is: what is before it is no help here.
        spike = run_link(optimizer, params, spiked, free=alone).out
        runs = (compared(u, run_link(after, params, u).out) for u in (usual.out, spike))
        grows = bool(growth[0] > _GROWS)
        clips += (_use("after", *runs, grows=grows, behind=True),)
    if alone and any(np.any(np.asarray(seen.acted)) for seen in free.monitors):
        # A wrapper kept it from the clips that they were to do nothing.
        scale, effect, length = (
            np.full_like(x, np.nan) for x in (scale, effect, length)
        )
    updates = Updates(_names(gradients), scale, effect, length, clipped_scale)
    findings = findings_of_clips(clips, updates)
    if any(has_guard(link, params) for link in links):
        run = lambda sequence: _whole(links, params, sequence)  # noqa: E731
        findings += findings_of_guards(run, gradients, spiked)
    steps = len(jax.tree.leaves(gradients)[0])
    scale, effect, length = (float(x[0]) for x in updates[1:4])
    return ChainCheck(steps, scale, effect, length, clips, findings)


def _tenfold(gradients: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda g: _TEN * g, gradients)


def _clips_within(
    optimizer: Any, params: Any, spiked: Any, runs: tuple[Outcome, ...]
) -> tuple[ClipUse, ...]:
    """Of each monitor in the optimiser."""
    if not runs[0].monitors:
        return ()
    on_spike = run_link(optimizer, params, spiked).monitors
    uses = []
    for number, (seen, free, longer, spike) in enumerate(
        zip(*(run.monitors for run in runs), on_spike, strict=True)
    ):
        given, other = (np.asarray(x.given, np.float64) for x in (free, longer))
        grows = np.median(other) > _GROWS * np.median(given)
        name = f"monitor {number}"
        uses.append(_use(name, seen, spike, grows=bool(grows), behind=not grows))
    return tuple(uses)


def _same_shapes(name: str, given: PyTree[Array], out: PyTree[Array]) -> None:
    before, after = (jax.tree.map(np.shape, tree) for tree in (given, out))
    if before != after:
        raise ValueError(
            f"`{name}` must return updates of the gradients' shapes: give a clip per "
            f"example the gradients of examples elsewhere. Got {after} for {before}."
        )


def _whole(links: Any, params: PyTree[Any], sequence: PyTree[Array]) -> Outcome:
    """The chain of all links; `skipped` is that of all of them."""
    skipped = ()
    for link in links:
        outcome = run_link(link, params, sequence)
        sequence, skipped = outcome.out, (*skipped, *outcome.skipped)
    return Outcome(sequence, (), skipped)


def _differ(usual: PyTree[Array], other: PyTree[Array]) -> tuple[Any, Any]:
    """How much other updates differ from the usual ones, relative to these, and the
    median of their length over that of these; of the whole and of each leaf."""
    changes, lengths = [], []
    for seen in compared_leaves(usual, other):
        given, out, change = (np.asarray(x, np.float64) for x in seen)
        some, total = given > 0, np.linalg.norm(given)
        # A leaf that does not move is not changed either.
        moves = np.any(some)
        changes.append(np.linalg.norm(change) / total if moves else 0.0)
        lengths.append(np.median(out[some] / given[some]) if moves else 1.0)
        if not moves and len(changes) == 1:
            raise ValueError(
                "`optimizer` returned updates of zero for all `gradients`, of which "
                "nothing can be told: give more of them, or such as are not zero."
            )
    return np.array(changes), np.array(lengths)


def _names(tree: PyTree[Array]) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return ["", *(jax.tree_util.keystr(path) for path, _ in paths)]


def _use(
    name: str,
    seen: Watched,
    on_spike: Watched,
    *,
    grows: bool = True,
    behind: bool = False,
) -> ClipUse:
    given, out, change = (np.asarray(x, np.float64) for x in seen)
    total = np.linalg.norm(given)
    return ClipUse(
        name=name,
        acted=float(np.mean(np.asarray(seen.acted))),
        change=float(np.linalg.norm(change) / total) if total > 0 else 0.0,
        constant=bool(np.max(out) - np.min(out) <= 0.01 * np.max(out)),
        on_spike=bool(on_spike.acted[-1]),
        grows=grows,
        behind=behind,
    )
