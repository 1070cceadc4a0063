"""Connected objects of a mask that arrives in bands from top to bottom. Shapes: H, W height and width in pixels."""
from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """An object's number of pixels and the mean probability inside it."""

    pixels: int
    mean_probability: float


class Objects:
    """Collects the objects of a mask: pixels that share an edge belong to one object.

    An object is known by its first pixel in reading order, `row * W + column`, by which outlines find it again.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []   # of each label, a label of the same object; labels never shrink
        self._first: list[int] = []
        self._pixels: list[int] = []
        self._total: list[float] = []
        self._top, self._above = 0, np.zeros(0, np.int64)

    def add(self, mask: np.ndarray, probability: np.ndarray) -> None:
        """Appends a band: mask (rows, W) bool, probability (rows, W) float."""
        from scipy import ndimage  # only objects need it
        labels, count = ndimage.label(mask)
        start, width = len(self._parent), mask.shape[1]
        where = np.flatnonzero(labels)
        own = labels.ravel()[where]
        first = np.zeros(count + 1, np.int64)
        first[own[::-1]] = where[::-1]   # the last assignment counts, which is that of the first pixel
        self._parent += range(start, start + count)
        self._first += (first[1:] + self._top * width).tolist()
        self._pixels += np.bincount(own, minlength=count + 1)[1:].tolist()
        self._total += np.bincount(own, probability.ravel()[where], count + 1)[1:].tolist()
        below = np.where(labels[0] > 0, labels[0] + start, 0)
        if self._top:
            touching = (below > 0) & (self._above > 0)
            for upper, lower in np.unique(np.stack([self._above, below])[:, touching], axis=1).T.tolist():
                self._join(upper - 1, lower - 1)
        self._above = np.where(labels[-1] > 0, labels[-1].astype(np.int64) + start, 0)
        self._top += len(mask)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label

    def _join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parent[high] = low

    def found(self) -> dict[int, Found]:
        """Every object by its first pixel."""
        sums: dict[int, list] = {}
        for label in range(len(self._parent)):
            entry = sums.setdefault(self._root(label), [self._first[label], 0, 0.0])
            entry[0] = min(entry[0], self._first[label])
            entry[1] += self._pixels[label]
            entry[2] += self._total[label]
        return {first: Found(pixels, total / pixels) for first, pixels, total in sums.values()}
