"""What a reader remembers of records: which ones it has verified, and decoded chunks.

Thread-safe, bounded. Knows rows as bytes, no packs. Source: docs/format.md, "Index".
"""

import threading
from array import array
from collections import OrderedDict

from dedupfs.format.keys import REFERENCES_OFFSET
from dedupfs.store.disk import Buffer

DECODED_BYTES_MAX = 32 << 20
_VERIFIED_SLOTS_MIN = 1 << 12
_VERIFIED_SLOTS_MAX = 1 << 22


def row_key(record_id: bytes, row: bytes) -> bytes:
    """Return the id and all that its row says but the count of references, which changes."""
    return record_id + row[:REFERENCES_OFFSET]


class Verified:
    """Which records this process has verified, each at the very place that its row names.

    A row that says something else by now (a damaged index does) is another key, so that what it
    points at is verified anew. Eight bytes of hash a record, which lies in one of two slots; one of
    three that want the same two is forgotten, and verified once more. At most 32 MiB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._keys = array("q", bytes(8 * _VERIFIED_SLOTS_MIN))
        self._count = 0

    def covers(self, record_id: bytes, row: bytes) -> bool:
        """Whether the record was verified where ``row`` says that it lies."""
        keys = self._keys  # it may be replaced meanwhile, so what is asked is this one; no lock
        key = hash(record_id + row[:REFERENCES_OFFSET]) or 1  # row_key, without a call
        slot = key % len(keys)
        return keys[slot] == key or keys[slot ^ 1] == key

    def add(self, record_id: bytes, row: bytes) -> None:
        """Note that it was."""
        key = hash(row_key(record_id, row)) or 1
        with self._lock:
            if self._count * 3 >= len(self._keys) < _VERIFIED_SLOTS_MAX:
                self._grow()
            self._put(key)

    def _put(self, key: int) -> None:
        slot = key % len(self._keys)
        if self._keys[slot] not in (0, key) and self._keys[slot ^ 1] in (0, key):
            slot ^= 1
        self._count += not self._keys[slot]
        self._keys[slot] = key

    def _grow(self) -> None:
        keys = self._keys
        self._keys, self._count = array("q", bytes(8 * 4 * len(keys))), 0
        for key in keys:
            if key:
                self._put(key)

    def forget(self) -> None:
        """Forget all: it is not known which records lay in a pack that goes, and that is rare."""
        with self._lock:
            self._clear()


class Decoded:
    """The payloads of the zstd chunks used last, bounded by bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._payloads: OrderedDict[bytes, Buffer] = OrderedDict()

    def get(self, key: bytes) -> Buffer | None:
        """Return the payload of a chunk by its ``row_key``, if it is kept."""
        with self._lock:
            payload = self._payloads.get(key)
            if payload is not None:
                self._payloads.move_to_end(key)
            return payload

    def add(self, key: bytes, payload: Buffer) -> None:
        """Keep a payload, instead of those that were used least lately."""
        with self._lock:
            if key not in self._payloads:
                self._payloads[key] = payload
                self._bytes += len(payload)
            while self._bytes > DECODED_BYTES_MAX:
                self._bytes -= len(self._payloads.popitem(last=False)[1])

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._payloads.clear()
            self._bytes = 0
