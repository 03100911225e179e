"""How far the stages of the advice are."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Stage = TypeVar("Stage")
# A function of an iterable and a label that returns the iterable, and shows how much of
# it has been used.
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def once(track: Progress, label: str, stage: Callable[[], Stage]) -> Stage:
    """A stage that is one step of the progress."""
    (result,) = (stage() for _ in track([0], label))
    return result


def as_track(progress: bool | Progress | None) -> Progress:
    """A function that shows how far an iterable is, or does not."""
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return _silent
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _silent
    return lambda iterable, label: tqdm(iterable, desc=f"{label:>20}", leave=False)


def _silent(iterable: Iterable[Any], label: str) -> Iterable[Any]:
    del label
    return iterable
