"""How long the disk has made reads wait lately: whether one more wait is worth a thread.

A hop to a thread and back costs as much as a fast disk does; a slow one must hold up nobody else.
Knows durations, no files and no threads. Source: docs/architecture.md, "Paths".
"""

SHORT_NS = 500_000
"""While waits take less than this on average, who waits may do so in place."""
_LONG_NS = 8 * SHORT_NS
"""A wait counts as so much at most: one alone reaches the limit, and some sixteen short ones
make up for it."""
_WEIGHT = 1 / 8


class Patience:
    """A moving average of waits; a race of two threads that note one loses one of them."""

    def __init__(self) -> None:
        self._mean_ns: float = SHORT_NS
        """Nothing is known at first, so the first wait is nobody else's."""
        self.waits = 0
        """How many were noted."""

    @property
    def is_short(self) -> bool:
        """Whether a wait is likely to be short."""
        return self._mean_ns < SHORT_NS

    def note(self, waited_ns: int) -> None:
        """A read took so long."""
        self.waits += 1
        self._mean_ns += _WEIGHT * (min(waited_ns, _LONG_NS) - self._mean_ns)
