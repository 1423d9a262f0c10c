"""Payloads out of packs: merged reads, verification on first touch, decoded zstd chunks.

Thread-safe. Knows no index (rows are handed in by a function) and no names. Source:
docs/format.md, "Packs"; docs/architecture.md, "Reading".
"""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import REFERENCES_OFFSET, unpack_record_row
from dedupfs.format.pack import CHUNK_BYTES_MAX
from dedupfs.model import HOLE, Codec, RecordId, RecordKind
from dedupfs.recipe import Piece
from dedupfs.store import codec as codecs
from dedupfs.store.disk import Buffer, Disk, File
from dedupfs.store.packs import PackFiles

Digest = Callable[[RecordKind, Buffer, int], RecordId]
"""kind, payload, salt -> id."""

Rows = Callable[[Sequence[RecordId]], list[bytes | None]]
"""ids -> rows of RECORDS, those of pending records included."""

Unflushed = Callable[[int, int, int], bytes | None]
"""pack, pack_offset, length -> bytes that are not in the pack's file yet."""

_GAP_BYTES_MAX = 4096
"""Two reads this close in one pack are one: a record header costs less than a system call."""
_RUN_BYTES_MAX = 8 << 20
_DECODED_BYTES_MAX = 32 << 20
_KINDS = frozenset(int(kind) for kind in RecordKind)
_VERIFIED_SLOTS_MIN = 1 << 12
_VERIFIED_SLOTS_MAX = 1 << 24


def _key(record_id: bytes, row: bytes) -> bytes:
    """Return the id and all that its row says but the count of references, which changes."""
    return record_id + row[:REFERENCES_OFFSET]


class _Verified:
    """Which records this process has verified, each at the very place that its row names.

    A row that says something else by now (a damaged index does) is another key, so that what it
    points at is verified anew. Eight bytes of hash a record, in a table that forgets one of two
    that want the same slot: that one is verified once more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._keys = array("q", bytes(8 * _VERIFIED_SLOTS_MIN))
        self._count = 0

    def covers(self, record_id: bytes, row: bytes) -> bool:
        key = hash(_key(record_id, row)) or 1
        with self._lock:
            return self._keys[key % len(self._keys)] == key

    def add(self, record_id: bytes, row: bytes) -> None:
        key = hash(_key(record_id, row)) or 1
        with self._lock:
            if self._count * 2 >= len(self._keys) < _VERIFIED_SLOTS_MAX:
                self._grow()
            self._put(key)

    def _put(self, key: int) -> None:
        slot = key % len(self._keys)
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


class _Decoded:
    """The payloads of the zstd chunks used last, bounded by bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = 0
        self._payloads: OrderedDict[bytes, Buffer] = OrderedDict()

    def get(self, key: bytes) -> Buffer | None:
        with self._lock:
            payload = self._payloads.get(key)
            if payload is not None:
                self._payloads.move_to_end(key)
            return payload

    def add(self, key: bytes, payload: Buffer) -> None:
        with self._lock:
            if key not in self._payloads:
                self._payloads[key] = payload
                self._bytes += len(payload)
            while self._bytes > _DECODED_BYTES_MAX:
                self._bytes -= len(self._payloads.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._payloads.clear()
            self._bytes = 0


@dataclass(slots=True)
class _Want:
    """Bytes ``[start, stop)`` of a pack, of which one piece is made.

    ``whole``: the range is the whole stored record, to be decoded or verified.
    """

    index: int
    piece: Piece
    row: bytes
    pack: int
    start: int
    stop: int
    whole: bool


class Reader:
    """Reads records and pieces of chunks."""

    def __init__(
        self, disk: Disk, files: PackFiles, digest: Digest, rows: Rows, unflushed: Unflushed
    ) -> None:
        self._disk = disk
        self._files = files
        self._digest = digest
        self._rows = rows
        self._unflushed = unflushed
        self._verified = _Verified()
        self._decoded = _Decoded()

    def read(self, pieces: Sequence[Piece]) -> bytes:
        """Return the bytes of ``pieces``, one behind the other; see ``Store.read``."""
        data = self._read_fresh(pieces, self._fetch)
        assert data is not None
        return data

    def read_cached(self, pieces: Sequence[Piece]) -> bytes | None:
        """Return the bytes of ``pieces`` if the page cache has all of them, else None."""
        return self._read_fresh(pieces, self._fetch_cached)

    def _read_fresh(self, pieces: Sequence[Piece], fetch: "_Fetch") -> bytes | None:
        """Read; when that fails because a record has gone or moved meanwhile, look it up again."""
        rows = self._rows([piece.chunk_id for piece in pieces])
        try:
            return self._read(pieces, rows, fetch)
        except CorruptError:
            again = self._rows([piece.chunk_id for piece in pieces])
            if again == rows:
                raise
        return self._read(pieces, again, fetch)

    def _read(
        self, pieces: Sequence[Piece], rows: list[bytes | None], fetch: "_Fetch"
    ) -> bytes | None:
        parts: list[Buffer] = [b""] * len(pieces)
        wants: list[_Want] = []
        for index, (piece, row) in enumerate(zip(pieces, rows, strict=True)):
            if piece.chunk_id == HOLE:
                parts[index] = bytes(piece.length)
            elif row is None:
                raise MissingRecordError(f"chunk {piece.chunk_id.hex()} is not in the store")
            else:
                part = self._from_memory(piece, row)
                if part is None:
                    wants.append(self._want(index, piece, row))
                else:
                    parts[index] = part
        first = 0
        while first < len(wants):
            last = _run_end(wants, first)
            run = wants[first:last]
            start = run[0].start
            data = fetch(self._files.get(run[0].pack), run[-1].stop - start, start)
            if data is None:
                return None
            for want in run:
                parts[want.index] = self._cut(want, data, start)
            first = last
        if len(parts) == 1:
            return bytes(parts[0])
        return b"".join(parts)

    def _from_memory(self, piece: Piece, row: bytes) -> Buffer | None:
        """Return a piece whose record is in the writer's buffer or among the decoded ones."""
        _kind, codec, _salt, pack, offset, stored_bytes, logical_bytes, _ = unpack_record_row(row)
        stop = piece.chunk_offset + piece.length
        if stop > logical_bytes:
            raise CorruptError(
                f"chunk {piece.chunk_id.hex()} has {logical_bytes} bytes; {stop} are asked for"
            )
        if codec == Codec.RAW:
            return self._unflushed(pack, offset + piece.chunk_offset, piece.length)
        key = _key(piece.chunk_id, row)
        payload = self._decoded.get(key)
        if payload is None:
            stored = self._unflushed(pack, offset, stored_bytes)
            if stored is None:
                return None
            payload = codecs.decode(codec, stored, logical_bytes)
            self._decoded.add(key, payload)
        return memoryview(payload)[piece.chunk_offset : stop]

    def _want(self, index: int, piece: Piece, row: bytes) -> _Want:
        kind, codec, _salt, pack, offset, stored_bytes, logical, _refs = unpack_record_row(row)
        stop = offset + stored_bytes
        if kind != RecordKind.CHUNK or max(stored_bytes, logical) > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"chunk {piece.chunk_id.hex()} is a record of {kind=} and {logical} bytes"
            )
        if codec == Codec.RAW and self._verified.covers(piece.chunk_id, row):
            start = offset + piece.chunk_offset
            return _Want(index, piece, row, pack, start, start + piece.length, whole=False)
        return _Want(index, piece, row, pack, offset, stop, whole=True)

    def _cut(self, want: _Want, data: Buffer, data_start: int) -> Buffer:
        """Return the bytes of one piece out of those of its run, verified and decoded."""
        start, stop = want.start - data_start, want.stop - data_start
        if not want.whole and start == 0 and stop == len(data):
            return data
        view = memoryview(data)[start:stop]
        if not want.whole:
            if len(view) < stop - start:
                raise CorruptError(f"pack {want.pack} ends before {want.stop}")
            return view
        payload = self.checked(want.piece.chunk_id, want.row, view)
        if payload is not view:
            self._decoded.add(_key(want.piece.chunk_id, want.row), payload)
        piece = want.piece
        return memoryview(payload)[piece.chunk_offset : piece.chunk_offset + piece.length]

    def checked(self, record_id: RecordId, row: bytes, stored: Buffer) -> Buffer:
        """Decode the whole stored record; compare it with its id unless that was done before.

        Raises:
            CorruptError: with pack, offset, what was expected and what was found.
        """
        kind, codec, salt, pack, offset, _stored, logical_bytes, _ = unpack_record_row(row)
        try:
            payload = codecs.decode(codec, stored, logical_bytes)
        except CorruptError as exc:
            raise CorruptError(f"{self._place(record_id, pack, offset)}: {exc}") from exc
        if not self._verified.covers(record_id, row):
            if kind not in _KINDS:
                raise CorruptError(f"record {record_id.hex()} has unknown {kind=}")
            actual = self._digest(RecordKind(kind), payload, salt)
            if actual != record_id:
                raise CorruptError(
                    f"{self._place(record_id, pack, offset)}: expected digest "
                    f"{record_id.hex()}, actual {actual.hex()}"
                )
            self._verified.add(record_id, row)
        return payload

    def _place(self, record_id: RecordId, pack: int, offset: int) -> str:
        path = self._files.get(pack).path
        return f"damaged record {record_id.hex()} in {path} at pack_offset={offset}"

    def stored(self, row: bytes) -> Buffer:
        """Return the stored bytes of a whole record, unchecked; fewer if its pack is too short."""
        _kind, codec, _salt, pack, offset, stored_bytes, logical, _refs = unpack_record_row(row)
        if stored_bytes > logical or (codec == Codec.RAW and stored_bytes < logical):
            raise CorruptError(f"a record of {logical} bytes is stored in {stored_bytes}")
        data = self._unflushed(pack, offset, stored_bytes)
        if data is None:
            data = self._disk.pread(self._files.get(pack), stored_bytes, offset)
        return data

    def payload(self, record_id: RecordId, row: bytes) -> Buffer:
        """Return the decoded and verified payload of a whole record."""
        return self.checked(record_id, row, self.stored(row))

    def equal(
        self, row: bytes, kind: RecordKind, payload: Buffer, record_id: RecordId | None = None
    ) -> bool:
        """Whether the record of ``row`` holds exactly ``payload``; a damaged one does not.

        ``record_id``: what ``payload`` has been digested to, which verifies the record.
        """
        found_kind, codec, _salt, _pack, _offset, _stored, logical_bytes, _ = unpack_record_row(row)
        if found_kind != kind or logical_bytes != len(payload):
            return False
        try:
            found = codecs.decode(codec, self.stored(row), logical_bytes)
        except StoreError:
            return False
        # startswith is one memcmp for any buffer; == with a memoryview compares item by item.
        whole = found if isinstance(found, bytes) else bytes(found)
        if not whole.startswith(payload):
            return False
        if record_id is not None:
            self._verified.add(record_id, row)
        return True

    def open_pack(self, pack: int) -> File:
        """Return the open file of a pack of either kind; CorruptError when it is missing."""
        return self._files.get(pack)

    def forget_pack(self, pack: int) -> None:
        """Drop what is remembered of a pack that goes."""
        self._files.forget(pack)
        self._verified.forget()
        self._decoded.clear()

    def _fetch(self, file: File, length: int, offset: int) -> Buffer | None:
        return self._disk.pread(file, length, offset)

    def _fetch_cached(self, file: File, length: int, offset: int) -> Buffer | None:
        buffer = memoryview(bytearray(length))
        return buffer if self._disk.pread_cached(file, buffer, offset) else None


_Fetch = Callable[[File, int, int], Buffer | None]


def _run_end(wants: list[_Want], first: int) -> int:
    """Return the index behind the last of the wants that one read with ``first`` serves."""
    last = first + 1
    limit = wants[first].start + _RUN_BYTES_MAX
    while last < len(wants):
        before, want = wants[last - 1], wants[last]
        near = before.stop <= want.start <= before.stop + _GAP_BYTES_MAX
        if want.pack != before.pack or not near or want.stop > limit:
            break
        last += 1
    return last
