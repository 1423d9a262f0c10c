"""Payloads out of packs: merged reads, verification on first touch, decoded zstd chunks.

A read puts bytes where the caller wants them, without a copy in between where the chunks are raw.
Thread-safe. Knows no index (rows are handed in by a function) and no names. Source:
docs/format.md, "Packs"; docs/architecture.md, "Read".
"""

import mmap
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.format.keys import REFERENCES_OFFSET, unpack_record_row
from dedupfs.format.pack import CHUNK_BYTES_MAX
from dedupfs.model import HOLE, Codec, RecordId, RecordKind
from dedupfs.recipe import Piece
from dedupfs.store import codec as codecs
from dedupfs.store.ahead import ReadAhead
from dedupfs.store.disk import Buffer, Disk, File
from dedupfs.store.packs import PackFiles
from dedupfs.store.patience import Patience
from dedupfs.store.remembered import Decoded, Verified, row_key

Digest = Callable[[RecordKind, Buffer, int], RecordId]
"""kind, payload, salt -> id."""

Rows = Callable[[Sequence[RecordId]], list[bytes | None]]
"""ids -> rows of RECORDS, those of pending records included."""

Unflushed = Callable[[int, int, int], bytes | None]
"""pack, pack_offset, length -> bytes that are not in the pack's file yet."""

_GAP_BYTES_MAX = 4096
"""Two reads this close in one pack are one: a record header costs less than a system call."""
_RUN_BYTES_MAX = 8 << 20
_RUN_WANTS_MAX = 200
_KINDS = frozenset(int(kind) for kind in RecordKind)
_SCRATCH_BYTES = 1 << 20
"""The longest read that the kernel asks for (max_write and read-ahead are as long)."""
_SOON_BYTES_MAX = 256 << 10
"""Longer waits are for a thread, whatever the disk."""
_SOON_PIECES_MAX = 4
"""Each piece may be a wait of its own."""
_LINE_BYTES = 64
_GAP = memoryview(bytearray(_GAP_BYTES_MAX))
"""Takes what lies between two records; nobody looks at it."""


class _Scratch(threading.local):
    """Memory that is used again for each cached read of a thread: faulting it in costs as much as
    reading it does.

    It begins a cache line behind a page: 16 bytes behind one, where malloc puts what is large,
    copying from the page cache was measured to take 1.7 times as long.
    """

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _LINE_BYTES + _SCRATCH_BYTES))[_LINE_BYTES:]


class _Want(NamedTuple):
    """Bytes ``[start, stop)`` of a pack, read into ``target``, for the place ``out_start``.

    ``whole``: they are a whole stored record, to be verified or decoded; then ``target`` may be
    memory of its own, from which the piece is cut.
    """

    pack: int
    start: int
    stop: int
    target: memoryview
    out_start: int
    piece: Piece
    row: bytes
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
        self._verified = Verified()
        self._decoded = Decoded()
        self._ahead = ReadAhead(disk)
        self.patience = Patience()
        self._scratch = _Scratch()
        self.verified_chunks = 0
        """How often a record was compared with its id, since the store was opened."""

    def read(self, pieces: Sequence[Piece]) -> bytes:
        """Return the bytes of ``pieces``, one behind the other; see ``Store.read``."""
        found = bytearray(sum([piece.length for piece in pieces]))
        self._read_fresh(pieces, memoryview(found), self._fetch, waits=True)
        return bytes(found)

    def read_cached(
        self, pieces: Sequence[Piece], may_wait: Callable[[], bool] | None = None
    ) -> Buffer | None:
        """Return the bytes of ``pieces`` if the page cache has all of them, else None.

        They are there until this thread's next call. ``may_wait`` is asked when they are not: see
        ``Store.read_cached``.
        """
        length = sum([piece.length for piece in pieces])
        if length <= _SCRATCH_BYTES:
            found = self._scratch.view[:length]
        else:
            found = memoryview(bytearray(length))
        fetch: _Fetch = self._fetch_cached
        if may_wait is not None and len(pieces) <= _SOON_PIECES_MAX:
            fetch = partial(self._fetch_soon, may_wait)
        return found if self._read_fresh(pieces, found, fetch) else None

    def _read_fresh(
        self, pieces: Sequence[Piece], out: memoryview, fetch: "_Fetch", *, waits: bool = False
    ) -> bool:
        """Read; look a record up again when it has gone or moved meanwhile.

        A part of a verified chunk does not tell that by itself: where others had the time
        (``waits``, or a wait in place), its place may be punched by now.
        """
        ids = [piece.chunk_id for piece in pieces]
        waits_before = self.patience.waits
        rows = self._rows(ids)
        while True:
            failure: CorruptError | None = None
            done = False
            try:
                done = self._read(pieces, rows, out, fetch)
            except CorruptError as exc:
                failure = exc
            if failure is None and not waits and self.patience.waits == waits_before:
                return done
            before, rows = rows, self._rows(ids)
            if list(map(_place_in, before)) == list(map(_place_in, rows)):
                if failure is not None:
                    raise failure
                return done

    def _read(
        self, pieces: Sequence[Piece], rows: list[bytes | None], out: memoryview, fetch: "_Fetch"
    ) -> bool:
        wants: list[_Want] = []
        start = 0
        for piece, row in zip(pieces, rows, strict=True):
            if piece.chunk_id == HOLE:
                out[start : start + piece.length] = bytes(piece.length)
            elif row is None:
                raise MissingRecordError(f"chunk {piece.chunk_id.hex()} is not in the store")
            else:
                want = self._want(piece, row, out, start)
                if want is not None:
                    wants.append(want)
            start += piece.length
        first = 0
        while first < len(wants):
            last = _run_end(wants, first)
            if not self._read_run(wants[first:last], out, fetch):
                return False
            first = last
        return True

    def _want(self, piece: Piece, row: bytes, out: memoryview, out_start: int) -> _Want | None:
        """Say what of a pack is to be read; None when the piece is in memory, and now in ``out``.

        In memory: in the writer's buffer, or among the decoded ones.
        """
        kind, codec, _salt, pack, offset, stored_bytes, logical, _refs = unpack_record_row(row)
        chunk_start, length = piece.chunk_offset, piece.length
        chunk_stop = chunk_start + length
        if chunk_stop > logical:
            raise CorruptError(
                f"chunk {piece.chunk_id.hex()} has {logical} bytes; {chunk_stop} are asked for"
            )
        target = out[out_start : out_start + length]
        raw = codec == Codec.RAW
        if raw:
            ready: Buffer | None = self._unflushed(pack, offset + chunk_start, length)
        else:
            ready = self._from_decoded(piece, row, pack, offset, stored_bytes)
        if ready is not None:
            target[:] = ready
            return None
        if kind != RecordKind.CHUNK or max(stored_bytes, logical) > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"chunk {piece.chunk_id.hex()} is a record of {kind=} and {logical} bytes"
            )
        if raw and self._verified.covers(piece.chunk_id, row):
            start, stop = offset + chunk_start, offset + chunk_stop
            return _Want(pack, start, stop, target, out_start, piece, row, whole=False)
        if not raw or length != stored_bytes:
            target = memoryview(bytearray(stored_bytes))
        stop = offset + stored_bytes
        return _Want(pack, offset, stop, target, out_start, piece, row, whole=True)

    def _from_decoded(
        self, piece: Piece, row: bytes, pack: int, offset: int, stored_bytes: int
    ) -> Buffer | None:
        key = row_key(piece.chunk_id, row)
        payload = self._decoded.get(key)
        if payload is None:
            stored = self._unflushed(pack, offset, stored_bytes)
            if stored is None:
                return None
            _kind, codec, _salt, _pack, _offset, _stored, logical, _refs = unpack_record_row(row)
            payload = codecs.decode(codec, stored, logical)
            self._decoded.add(key, payload)
        return memoryview(payload)[piece.chunk_offset : piece.chunk_offset + piece.length]

    def _read_run(self, run: Sequence[_Want], out: memoryview, fetch: "_Fetch") -> bool:
        """Read neighbours at once; return False if that would have to wait."""
        pack, start = run[0].pack, run[0].start
        buffers = []
        at = start
        for want in run:
            if at < want.start:
                buffers.append(_GAP[: want.start - at])
            buffers.append(want.target)
            at = want.stop
        length = fetch(pack, self._files.get(pack), buffers, start, at)
        if length < 0:
            return False
        for want in run:
            if want.stop > start + length:
                place = self._place(want.piece.chunk_id, pack, want.start)
                raise CorruptError(f"{place}: the pack ends before {want.stop}")
            if want.whole:
                self._take(want, out)
        return True

    def _take(self, want: _Want, out: memoryview) -> None:
        """Verify and decode a whole record, and put what was asked for in its place."""
        piece = want.piece
        payload = self.checked(piece.chunk_id, want.row, want.target)
        if payload is not want.target:
            self._decoded.add(row_key(piece.chunk_id, want.row), payload)
        elif piece.length == len(payload):
            return  # it was read where it belongs
        start = piece.chunk_offset
        part = memoryview(payload)[start : start + piece.length]
        out[want.out_start : want.out_start + piece.length] = part

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
            self.verified_chunks += 1
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
            file = self._files.get(pack)
            self._ahead.waits(pack, file, offset, offset + stored_bytes)
            data = self._disk.pread(file, stored_bytes, offset)
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

    def _fetch(
        self, pack: int, file: File, buffers: Sequence[memoryview], start: int, stop: int
    ) -> int:
        self._ahead.waits(pack, file, start, stop)
        if stop - start > _SOON_BYTES_MAX:
            return self._disk.preadv(file, buffers, start)
        began_ns = time.perf_counter_ns()
        length = self._disk.preadv(file, buffers, start)
        self.patience.note(time.perf_counter_ns() - began_ns)
        return length

    def _fetch_soon(
        self,
        may_wait: Callable[[], bool],
        pack: int,
        file: File,
        buffers: Sequence[memoryview],
        start: int,
        stop: int,
    ) -> int:
        length = self._fetch_cached(pack, file, buffers, start, stop)
        if length >= 0 or stop - start > _SOON_BYTES_MAX:
            return length
        # The attempt has begun to read what it did not find, so this waits for that alone.
        if self.patience.is_short and may_wait():
            return self._fetch(pack, file, buffers, start, stop)
        return length

    def _fetch_cached(
        self, pack: int, file: File, buffers: Sequence[memoryview], start: int, stop: int
    ) -> int:
        if not self._disk.preadv_cached(file, buffers, start):
            return -1
        self._ahead.passes(pack, file, start, stop)
        return stop - start


_Fetch = Callable[[int, File, Sequence[memoryview], int, int], int]
"""pack, its file, where the bytes go, start, stop -> bytes read; -1: not without waiting."""


def _place_in(row: bytes | None) -> bytes | None:
    """Return all that a row says but the count of references, which changes."""
    return row if row is None else row[:REFERENCES_OFFSET]


def _run_end(wants: list[_Want], first: int) -> int:
    """Return the index behind the last of the wants that one read with ``first`` serves."""
    last = first + 1
    limit = wants[first].start + _RUN_BYTES_MAX
    while last < min(len(wants), first + _RUN_WANTS_MAX):
        before, want = wants[last - 1], wants[last]
        near = before.stop <= want.start <= before.stop + _GAP_BYTES_MAX
        if want.pack != before.pack or not near or want.stop > limit:
            break
        last += 1
    return last
