"""How the points of a sweep lie on the axes of its devices and chunks."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from ._axes import Axis


@dataclasses.dataclass(frozen=True)
class Layout:
    """The chunks of a sweep. Axes are in the order of nesting, keys outermost.

    - `lengths`: of the axes.
    - `block`: points of one chunk along each axis, all devices together.
    - `split`: the axis along which a chunk is spread over the devices.
    """

    lengths: tuple[int, ...]
    block: tuple[int, ...]
    split: int

    @classmethod
    def make(cls, axes: Sequence[Axis], devices: int, points: int) -> "Layout":
        """At most `points` points at once on each device.

        A block is filled from the innermost axis outwards, so that settings which share
        a key come together. What is spread over the devices is the outermost axis that
        has an entry for each of them, or else the longest.
        """
        lengths = tuple(axis.length for axis in axes)
        long_enough = [i for i, n in enumerate(lengths) if n >= devices]
        split = long_enough[0] if long_enough else int(np.argmax(lengths))
        used = min(devices, lengths[split])
        block = list(lengths)
        block[split] = -(-lengths[split] // used)
        left = points
        for i in reversed(range(len(block))):
            most = max(1, min(block[i], left))
            # Cut evenly, so that little of the last chunk is padding.
            block[i] = -(-block[i] // -(-block[i] // most))
            left //= block[i]
        block[split] *= used
        return cls(lengths, tuple(block), split)

    def devices(self, available: int) -> int:
        """How many devices share a chunk: a block made for others is kept."""
        size = self.block[self.split]
        return next(n for n in range(min(size, available), 0, -1) if size % n == 0)

    def chunks(self) -> list[tuple[int, ...]]:
        """The indices of all chunks, settings varying fastest."""
        counts = (-(-n // b) for n, b in zip(self.lengths, self.block, strict=True))
        return list(itertools.product(*(range(count) for count in counts)))

    def region(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        """Where in the table a chunk's points are; the last ones are cut short."""
        return tuple(
            slice(i * b, min((i + 1) * b, n))
            for i, b, n in zip(chunk, self.block, self.lengths, strict=True)
        )

    def indices(self, chunk: tuple[int, ...]) -> list[np.ndarray]:
        """The entries of each axis in a chunk, padded by repeating the last one."""
        return [
            np.minimum(np.arange(i * b, (i + 1) * b), n - 1)
            for i, b, n in zip(chunk, self.block, self.lengths, strict=True)
        ]
