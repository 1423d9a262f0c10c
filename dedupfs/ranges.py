"""Sets of byte ranges ``[start, stop)`` of a file: which bytes are dirty. Pure.

Ranges are kept sorted, disjoint and merged, as two parallel lists that ``bisect`` searches.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """A mutable set of integers, stored as sorted, disjoint, non-touching ranges."""

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """Count of separate ranges."""
        return len(self._starts)

    @property
    def covered_bytes(self) -> int:
        """How many bytes lie in the ranges."""
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Include ``[start, stop)``, merging what it overlaps or touches."""
        if start >= stop:
            return
        if self._stops and start == self._stops[-1]:  # appending is by far the commonest case
            self._stops[-1] = stop
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Exclude ``[start, stop)``."""
        if start >= stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        starts, stops = [], []
        if self._starts[first] < start:
            starts.append(self._starts[first])
            stops.append(start)
        if self._stops[last - 1] > stop:
            starts.append(stop)
            stops.append(self._stops[last - 1])
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def clear(self) -> None:
        """Exclude everything."""
        self._starts.clear()
        self._stops.clear()

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of the ranges that lie in ``[start, stop)``."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        return [
            (max(start, self._starts[index]), min(stop, self._stops[index]))
            for index in range(first, last)
        ]
