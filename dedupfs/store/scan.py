"""Walking over a pack file without the index: records, free ranges, damage.

Knows no index rows. A walk goes from header to header; behind damage it goes on at the next
header that the pack's table or a search finds. Source: docs/format.md, "Scanning a pack".
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.pack import (
    HEADER_BYTES,
    PACK_HEADER_BYTES,
    RECORD_MAGIC,
    TRAILER_BYTES,
    FreeHeader,
    RecordHeader,
    check_seed,
    decode_header,
    decode_pack_header,
    decode_pack_table,
    decode_trailer,
    record_id,
)
from dedupfs.model import Location, RecordId, RecordKind
from dedupfs.store import codec as codecs
from dedupfs.store.disk import Buffer, Disk, File
from dedupfs.store.reader import Digest

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ScannedRecord:
    """A record whose header is sound; its payload has not been looked at."""

    record_id: RecordId
    location: Location

    @property
    def start(self) -> int:
        """Offset of the header."""
        return self.location.pack_offset - HEADER_BYTES

    @property
    def stop(self) -> int:
        """Offset behind the payload."""
        return self.location.pack_offset + self.location.stored_bytes


@dataclass(frozen=True, slots=True)
class ScannedFree:
    """A free range ``[start, stop)``, its header included."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes ``[start, stop)`` that are no record; ``torn`` when a crash may have cut them short."""

    start: int
    stop: int
    reason: str
    torn: bool = False


Scanned = ScannedRecord | ScannedFree | Damage


class PackScanner:
    """Reads one record pack from its start; ``stop`` limits it to the committed bytes."""

    def __init__(
        self, disk: Disk, file: File, pack: int, hash_seed: int, stop: int | None = None
    ) -> None:
        self.pack = pack
        self.size = disk.size(file)
        self.stop = self.size if stop is None else min(stop, self.size)
        self.table_offset: int | None = None
        self._disk = disk
        self._file = file
        self._hash_seed = hash_seed
        self._block: bytes = b""
        self._block_start = 0

    def _bytes_at(self, offset: int, length: int) -> tuple[Buffer, int]:
        """Return a buffer that holds ``[offset, offset + length)``, and where in it that starts."""
        if not self._block_start <= offset <= self._block_start + len(self._block) - length:
            self._block = self._disk.pread(self._file, max(_BLOCK_BYTES, length), offset)
            self._block_start = offset
        return self._block, offset - self._block_start

    def read_trailer(self) -> int | None:
        """Return where the table of a sealed pack starts, or None when the pack is not sealed."""
        start = self.size - TRAILER_BYTES
        if start < PACK_HEADER_BYTES:
            return None
        seed = check_seed(self._hash_seed, self.pack, start)
        try:
            trailer = decode_trailer(self._disk.pread(self._file, TRAILER_BYTES, start), seed)
        except StoreError:
            return None
        return trailer.table_offset

    def _table(self) -> list[int]:
        """Return the header offsets that the pack's table lists; none when it cannot be read."""
        offset = self.read_trailer()
        if offset is None:
            return []
        try:
            header = self._header(offset)
            if not isinstance(header, RecordHeader) or header.kind != RecordKind.PACK_TABLE:
                return []
            payload = self._disk.pread(self._file, header.stored_bytes, offset + HEADER_BYTES)
            if record_id(self._hash_seed, header.kind, payload, header.salt) != header.record_id:
                return []
            return [entry.header_offset for entry in decode_pack_table(payload)] + [offset]
        except StoreError:
            return []

    def _header(self, offset: int) -> RecordHeader | FreeHeader:
        buffer, start = self._bytes_at(offset, HEADER_BYTES)
        return decode_header(buffer, start, check_seed(self._hash_seed, self.pack, offset))

    def scan(self) -> Iterator[Scanned]:
        """Yield everything in order of offset, without gaps up to the table or the end."""
        if not self.stop:  # made, but nothing was ever committed to it
            return
        offset = PACK_HEADER_BYTES
        try:
            decode_pack_header(
                self._disk.pread(self._file, PACK_HEADER_BYTES, 0), self.pack, self._hash_seed
            )
        except CorruptError as exc:
            yield Damage(0, PACK_HEADER_BYTES, str(exc))
        except StoreError as exc:
            if self.size >= PACK_HEADER_BYTES:
                raise
            yield Damage(0, self.stop, str(exc), torn=True)
            return
        while offset < self.stop:
            found = self._next(offset)
            if found is None:
                return
            yield found
            offset = found.stop

    def _next(self, offset: int) -> Scanned | None:
        """Return what starts at ``offset``; None at the table, with which a sealed pack ends."""
        if offset + HEADER_BYTES > self.stop:
            return Damage(offset, self.stop, "the pack ends inside a record header", torn=True)
        try:
            header = self._header(offset)
        except StoreError as exc:
            return Damage(offset, self._resync(offset + 1), str(exc))
        start = offset + HEADER_BYTES
        if isinstance(header, FreeHeader):
            return ScannedFree(offset, min(start + header.free_bytes, self.stop))
        if start + header.stored_bytes > self.stop:
            return Damage(offset, self.stop, "the pack ends inside a record", torn=True)
        if header.kind == RecordKind.PACK_TABLE:
            self.table_offset = offset
            return None
        location = Location(
            header.kind,
            header.codec,
            header.salt,
            self.pack,
            start,
            header.stored_bytes,
            header.logical_bytes,
        )
        return ScannedRecord(header.record_id, location)

    def _resync(self, offset: int) -> int:
        """Return the next place at or behind ``offset`` where a sound header starts."""
        table = self._table()
        for index in range(bisect_right(table, offset - 1), len(table)):
            if self.is_header(table[index]):
                return table[index]
        while offset + HEADER_BYTES <= self.stop:
            block = self._disk.pread(self._file, _BLOCK_BYTES + HEADER_BYTES, offset)
            at = block.find(RECORD_MAGIC)
            while at >= 0:
                if self.is_header(offset + at):
                    return offset + at
                at = block.find(RECORD_MAGIC, at + 1)
            offset += _BLOCK_BYTES
        return self.stop

    def is_header(self, offset: int) -> bool:
        """Whether a sound header starts here; its checksum is bound to this very place."""
        if offset + HEADER_BYTES > self.stop:
            return False
        try:
            self._header(offset)
        except StoreError:
            return False
        return True


def read_payload(
    disk: Disk, file: File, digest: Digest, identity: RecordId, location: Location
) -> Buffer:
    """Read a record's payload from the file and verify it, whatever was verified before.

    Raises:
        CorruptError: it is not what its id says; names the pack, the offset and both ids.
    """
    stored = disk.pread(file, location.stored_bytes, location.pack_offset)
    where = f"record {identity.hex()} in {file.path} at pack_offset={location.pack_offset}"
    try:
        payload = codecs.decode(location.codec, stored, location.logical_bytes)
    except CorruptError as exc:
        raise CorruptError(f"damaged {where}: {exc}") from exc
    actual = digest(location.kind, payload, location.salt)
    if actual != identity:
        raise CorruptError(
            f"damaged {where}: expected digest {identity.hex()}, actual {actual.hex()}"
        )
    return payload
