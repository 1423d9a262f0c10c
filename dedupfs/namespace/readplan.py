"""One read of a file: its bytes, as far as they are not settled, and the pieces of the others.

Knows no file and no names. Source: docs/architecture.md, "Read".
"""

from collections.abc import Callable
from dataclasses import dataclass

from dedupfs.chunking import Buffer
from dedupfs.recipe import Piece
from dedupfs.store.store import Store


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What one read needs; frozen, so it may run in a thread while the file changes."""

    store: Store
    parts: tuple[bytes | tuple[Piece, ...], ...]

    def run_cached(self, may_wait: Callable[[], bool] | None = None) -> Buffer | None:
        """Return the bytes if none of them must be waited for; they stay until the next call.

        ``may_wait``: whether a short wait would hold up nobody else.
        """
        if len(self.parts) == 1:
            part = self.parts[0]
            return part if isinstance(part, bytes) else self.store.read_cached(part, may_wait)
        found = []
        for part in self.parts:
            data = part if isinstance(part, bytes) else self.store.read_cached(part)
            if data is None:
                return None
            found.append(bytes(data))
        return b"".join(found)

    def run(self) -> bytes:
        """Return the bytes, waiting for the disk where needed.

        Raises:
            CorruptError, MissingRecordError, StoreError: they cannot be had.
        """
        if len(self.parts) == 1:
            part = self.parts[0]
            return part if isinstance(part, bytes) else self.store.read(part)
        return b"".join(
            part if isinstance(part, bytes) else self.store.read(part) for part in self.parts
        )
