"""Pictures: where the heights, widths and channels of a batch are, and their bytes as whole lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batchkit.errors import SchemaError
from batchkit.transforms.leaves import Array, Leaf, choice

__all__ = ["FORMATS", "Pictures"]

FORMATS = ("channels_last", "channels_first")


@dataclass(frozen=True, slots=True)
class Pictures:
    """A C-contiguous batch of pictures: (rows, height, width[, channels]) or (rows, channels, height, width).

    Whatever the format, it is ``planes`` times ``height`` lines a row, each of ``width`` pixels,
    and a pixel is ``depth`` neighbouring numbers.
    """

    array: Array
    planes: int
    height: int
    width: int
    depth: int
    first: bool

    @classmethod
    def of(cls, leaf: Leaf, data_format: str, who: str) -> Pictures:
        """Return the leaf as pictures; raises :class:`SchemaError` for another rank."""
        first = choice(data_format, f"{who}(data_format)", FORMATS) == "channels_first"
        shape = leaf.array.shape
        if len(shape) not in (3, 4):
            wanted = "(rows, channels, height, width)" if first else "(rows, height, width, channels)"
            raise SchemaError(
                f"{leaf.where} has shape {shape}: pictures are {wanted}, or (rows, height, width). "
                "Reshape them in a map()"
            )
        if 0 in shape[1:]:
            raise SchemaError(f"{leaf.where} has shape {shape}: the pictures are empty. Leave such rows out")
        planes, depth = (shape[1], 1) if first else (1, shape[3] if len(shape) == 4 else 1)
        if len(shape) == 3:
            planes = 1
        height, width = shape[2:] if first and len(shape) == 4 else shape[1:3]
        return cls(np.ascontiguousarray(leaf.array), planes, height, width, depth, first)

    def __len__(self) -> int:
        return len(self.array)

    def shape(self, rows: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of an array of so many pictures of another size."""
        if self.array.ndim == 3:
            return rows, height, width
        return (rows, self.planes, height, width) if self.first else (rows, height, width, self.depth)

    def like(self, array: Array) -> Pictures:
        """Return ``array``, which has one of the shapes of :meth:`shape`, as pictures of the same format."""
        at = 2 if self.first and array.ndim == 4 else 1
        height, width = array.shape[at : at + 2]
        return Pictures(array, self.planes, height, width, self.depth, self.first)

    def cells(self) -> Array:
        """Return a view (rows, planes, height, width, depth)."""
        return self.array.reshape(len(self), self.planes, self.height, self.width, self.depth)

    def windows(self, height: int, width: int) -> Array:
        """Return a view of all windows of a size: [row, top, left] is (planes, height) lines of one item each.

        An item is a line of the window as plain bytes, so NumPy copies it whole. There is at
        least one row, and the window is not larger than the pictures.
        """
        pixel = self.depth * self.array.itemsize
        line = self.width * pixel
        plane = self.height * line
        shape = (len(self), self.height - height + 1, self.width - width + 1, self.planes, height)
        strides = (self.planes * plane, line, pixel, plane, line)
        item: np.dtype[Any] = np.dtype((np.void, width * pixel))
        return np.ndarray(shape, item, buffer=self.array.data, strides=strides)

    def lines(self) -> Array:
        """Return a view of whole lines: (rows, planes, height), one item each."""
        return self.windows(self.height, self.width)[:, 0, 0]

    def frame(self, vertical: int, horizontal: int, fill: Any, rows: int) -> Pictures:
        """Return new pictures, so many and so much larger on each side, with ``fill`` everywhere."""
        shape = self.shape(rows, self.height + 2 * vertical, self.width + 2 * horizontal)
        # np.full writes number by number; zeros come many at a time.
        return self.like(np.full(shape, fill, self.array.dtype) if fill else np.zeros(shape, self.array.dtype))
