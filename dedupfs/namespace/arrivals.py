"""Bytes that arrive nearly in order, put in order.

From its page cache the kernel sends a file's bytes as several requests at once, and what was being
written while it began comes later, or once more. Knows bytes and offsets alone.
"""

EARLY_BYTES_MAX = 32 << 20
"""How much is kept, at most, of what comes behind a gap. Gaps of up to 17 MiB were seen."""
EARLY_PIECES_MAX = 256
"""How many pieces that may be: each write looks at all of them, and one that comes from the page
cache has up to 1 MiB."""


class Arrivals:
    """The bytes behind ``start`` that are known: those without a gap, and some that are ahead."""

    def __init__(self) -> None:
        self.start = 0
        self.parts: list[bytes] = []
        """What is there from ``start`` on without a gap."""
        self.length = 0
        """How many bytes ``parts`` are."""
        self._early: dict[int, bytes] = {}
        self._early_bytes = 0

    def add(self, file_offset: int, data: bytes) -> bool:
        """Take what was written; False when it changes what is taken already, or leaves a gap that
        is too large to wait for."""
        stop = self.start + self.length
        if self._early and not self._trim_early(file_offset, file_offset + len(data)):
            return False
        if file_offset > stop:
            return self._hold(file_offset, data)
        if file_offset < stop:
            if file_offset < self.start or file_offset + len(data) < stop:
                return False
            self._cut_off(file_offset)
        self._append(data)
        while self._early:
            following = self._early.pop(self.start + self.length, None)
            if following is None:
                break
            self._early_bytes -= len(following)
            self._append(following)
        return True

    def _append(self, data: bytes) -> None:
        self.parts.append(data)
        self.length += len(data)

    def _hold(self, file_offset: int, data: bytes) -> bool:
        self._early[file_offset] = data
        self._early_bytes += len(data)
        return self._early_bytes <= EARLY_BYTES_MAX and len(self._early) <= EARLY_PIECES_MAX

    def _trim_early(self, start: int, stop: int) -> bool:
        """Drop the ends of early bytes that ``[start, stop)`` replaces; False for any other part.

        A page that was being filled when it was sent is sent again, with what was written behind.
        """
        for early_start, early in list(self._early.items()):
            early_stop = early_start + len(early)
            if start >= early_stop or stop <= early_start:
                continue
            if start < early_start or stop < early_stop:
                return False
            self._early_bytes -= early_stop - start
            if start > early_start:
                self._early[early_start] = early[: start - early_start]
            else:
                del self._early[early_start]
        return True

    def _cut_off(self, file_offset: int) -> None:
        kept = b"".join(self.parts)[: file_offset - self.start]
        self.parts = [kept] if kept else []
        self.length = len(kept)

    def take(self, length: int, rest: bytes) -> None:
        """The first ``length`` bytes are dealt with; ``rest`` is what is left of ``parts``."""
        self.start += length
        self.parts = [rest] if rest else []
        self.length = len(rest)
