"""Long work in slices: how large the next one may be, and which of it may run in another thread.

Knows nothing of what the work is. Source: docs/architecture.md, "Concurrency contract".
"""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.015
"""How long one slice is meant to keep others waiting, its commit included: who waits for two of
them and for a slow disk still waits less than 50 ms."""

Steps = Generator[Callable[[], object], None, T]
"""Work that is done between the yields, by the thread that owns the store's transactions; what is
yielded is to be called before it goes on, in any thread."""


def run_steps(steps: Steps[T]) -> T:
    """Do all of it here and now."""
    while True:
        try:
            work = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        work()


class Pace:
    """How many items make a slice of ``slice_s``, learnt from the slices before."""

    def __init__(self, first: int, *, least: int, most: int, slice_s: float = SLICE_S) -> None:
        self.limit = first
        self._least = least
        self._most = most
        self._slice_s = slice_s

    def note(self, items: int, took_s: float) -> None:
        """Hear how long a slice of ``items`` has taken; one that was short tells little."""
        if not items or took_s <= 0:
            return
        fitting = int(items * self._slice_s / took_s)
        if fitting < self.limit or items >= self.limit:
            self.limit = max(self._least, min(fitting, 2 * self.limit, self._most))
