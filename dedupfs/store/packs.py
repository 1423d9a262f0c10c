"""Pack files: opening them for reading, and appending to the one this process owns.

Knows nothing of the index, of ids being looked up, or of references. Source: docs/format.md,
"Packs" and "Write order".
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError
from dedupfs.format.pack import (
    HEADER_BYTES,
    PACK_HEADER_BYTES,
    TABLE_ENTRY_BYTES,
    FreeHeader,
    check_seed,
    decode_header,
    encode_free_header,
    encode_header,
    encode_pack_header,
    encode_table_entry,
    encode_trailer,
    record_id,
)
from dedupfs.model import Codec, PackKind, RecordId, RecordKind
from dedupfs.store.disk import Buffer, Disk, File
from dedupfs.store.layout import Layout
from dedupfs.store.owner import close_lock

log = logging.getLogger(__name__)

BUFFER_BYTES = 2 * 1024 * 1024
_FILES_MAX = 200
_SCAN_BYTES = 1 << 20


class PackFiles:
    """Opens packs for reading and keeps the last used ones open. Thread-safe."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk
        self._lock = threading.Lock()
        self._files: OrderedDict[int, File] = OrderedDict()

    def get(self, pack: int) -> File:
        """Return the open file of a pack of either kind.

        Raises:
            CorruptError: there is no such file.
        """
        with self._lock:
            file = self._files.get(pack)
            if file is not None:
                self._files.move_to_end(pack)
                return file
        file = self._open(pack)
        with self._lock:
            self._files[pack] = file
            if len(self._files) > _FILES_MAX:
                self._files.popitem(last=False)
        return file

    def _open(self, pack: int) -> File:
        for kind in PackKind:
            try:
                return self._disk.open(self._layout.pack(pack, kind))
            except FileNotFoundError:
                continue
        path = self._layout.pack(pack, PackKind.RECORDS)
        raise CorruptError(f"pack {pack} is missing: no {path}, nor a verbatim pack of that number")

    def forget(self, pack: int) -> None:
        """Drop the open file of a pack, because the file itself goes."""
        with self._lock:
            self._files.pop(pack, None)

    def close(self) -> None:
        """Drop every open file."""
        with self._lock:
            self._files.clear()

    def make_directory(self, path: Path) -> None:
        """Make the directory of a pack durably, unless it is there."""
        if not self._disk.listdir(path.parent):
            self._disk.mkdir(path.parent)
            self._disk.fsync_dir(path.parent.parent)


class PackWriter:
    """Appends records to one open record pack, whose lock its ``file`` holds.

    One thread appends; others may ``read_unflushed``. ``stop`` is the offset behind the last
    record; ``committed_bytes`` what the index calls valid; ``born_in_transaction`` says that the
    pack's row will vanish if the transaction under way is rolled back.
    """

    def __init__(
        self, disk: Disk, file: File, pack: int, hash_seed: int, committed_bytes: int
    ) -> None:
        self.pack = pack
        self.committed_bytes = committed_bytes
        self.stop = committed_bytes
        self.born_in_transaction = False
        self.path = file.path
        self.sync_failed = False
        """Whether a sync failed: the kernel may have dropped what was appended, and would tell
        nobody again, so all of it must be appended anew."""
        self._disk = disk
        self._file = file
        self._hash_seed = hash_seed
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._used = 0
        self._flushed = committed_bytes
        self._synced = committed_bytes
        self._taken_over = committed_bytes
        self._table = bytearray()
        if committed_bytes < PACK_HEADER_BYTES:
            self._write(0, [encode_pack_header(pack, hash_seed)])
            self.stop = self._taken_over = self._flushed = PACK_HEADER_BYTES

    def _write(self, offset: int, buffers: list[Buffer]) -> None:
        self._disk.pwrite(self._file, buffers, offset)

    def append(
        self,
        kind: RecordKind,
        codec: Codec,
        salt: int,
        stored: Buffer,
        logical_bytes: int,
        identity: RecordId,
    ) -> int:
        """Append a record, buffered; return the offset of its payload.

        Nothing has happened when it raises.
        """
        start = self.stop
        stored_bytes = len(stored)
        seed = check_seed(self._hash_seed, self.pack, start)
        header = encode_header(kind, codec, salt, stored_bytes, logical_bytes, identity, seed)
        total = HEADER_BYTES + stored_bytes
        if self._used + total > BUFFER_BYTES:
            self.flush()
        if total > BUFFER_BYTES:
            self._write(start, [header, stored])
            self._flushed = start + total
        else:
            used = self._used
            with self._lock:
                body = used + HEADER_BYTES
                self._buffer[used:body] = header
                self._buffer[body : body + stored_bytes] = stored
                self._used = used + total
        self.stop = start + total
        self._table += encode_table_entry(
            start, kind, codec, salt, stored_bytes, logical_bytes, identity
        )
        return start + HEADER_BYTES

    def read_unflushed(self, pack_offset: int, length: int) -> bytes | None:
        """Return bytes that are still in the buffer; None when they are in the file."""
        if pack_offset < self._flushed:
            return None
        with self._lock:
            start = pack_offset - self._flushed
            if start < 0 or start + length > self._used:  # a damaged row may say anything
                return None
            return bytes(self._buffer[start : start + length])

    def flush(self) -> None:
        """Hand the buffer to the kernel; it stays as it is when that fails."""
        with self._lock:
            if self._used:
                self._write(self._flushed, [self._buffer[: self._used]])
                self._flushed += self._used
                self._used = 0

    def sync(self) -> None:
        """Make everything appended durable.

        Raises:
            StoreFullError, StoreError: it is not, now or since an earlier sync failed.
        """
        if self.sync_failed:
            raise StoreError(f"cannot sync {self.path}: an earlier sync failed")
        stop = self.stop
        self.flush()
        if self._synced < stop:
            self._sync_file(self._disk.fdatasync)
            self._synced = stop

    def _sync_file(self, sync: Callable[[File], None]) -> None:
        try:
            sync(self._file)
        except StoreError:
            self.sync_failed = True
            raise

    def erase(self, start: int, stop: int) -> None:
        """Write a free header over a record that was appended but is not wanted."""
        self.flush()
        free_bytes = stop - start - HEADER_BYTES
        header = encode_free_header(free_bytes, check_seed(self._hash_seed, self.pack, start))
        self._write(start, [header])
        self._synced = min(self._synced, start)

    def seal(self) -> None:
        """Append the table of records and the trailer, durably; can be retried."""
        self.flush()
        try:
            table = self._head_of_table() + self._table
        except CorruptError as exc:  # the table only saves a walk over the headers
            log.warning("pack sealed without a table pack=%d: %s", self.pack, exc)
            self._sync_file(self._disk.fsync)
            self._synced = self.stop
            return
        start = self.stop
        identity = record_id(self._hash_seed, RecordKind.PACK_TABLE, table)
        header = encode_header(
            RecordKind.PACK_TABLE,
            Codec.RAW,
            0,
            len(table),
            len(table),
            identity,
            check_seed(self._hash_seed, self.pack, start),
        )
        trailer_start = start + HEADER_BYTES + len(table)
        trailer = encode_trailer(
            len(table) // TABLE_ENTRY_BYTES,
            start,
            check_seed(self._hash_seed, self.pack, trailer_start),
        )
        self._write(start, [header, table, trailer])
        self._sync_file(self._disk.fsync)
        self.stop = self._flushed = self._synced = trailer_start + len(trailer)

    def _head_of_table(self) -> bytearray:
        """Return the entries of what earlier owners appended, by walking over their headers."""
        table = bytearray()
        offset = PACK_HEADER_BYTES
        block, block_start = b"", 0
        while offset < self._taken_over:
            if not block_start <= offset <= block_start + len(block) - HEADER_BYTES:
                block, block_start = self._disk.pread(self._file, _SCAN_BYTES, offset), offset
            seed = check_seed(self._hash_seed, self.pack, offset)
            try:
                header = decode_header(block, offset - block_start, seed)
            except StoreError as exc:
                raise CorruptError(f"{self.path} at {offset}: {exc}") from exc
            if isinstance(header, FreeHeader):
                offset += HEADER_BYTES + header.free_bytes
                continue
            table += encode_table_entry(
                offset,
                header.kind,
                header.codec,
                header.salt,
                header.stored_bytes,
                header.logical_bytes,
                header.record_id,
            )
            offset += HEADER_BYTES + header.stored_bytes
        return table

    def finish(self) -> None:
        """After the commit of a sealed pack: make it read-only and give its lock back."""
        self._disk.chmod(self.path, 0o400)
        close_lock(self._file)

    def close(self) -> None:
        """Cut off what was never committed and give the lock back."""
        self._used = 0
        try:
            if self._flushed > self.committed_bytes:
                self._disk.truncate(self._file, self.committed_bytes)
        finally:
            close_lock(self._file)

    def abandon(self) -> None:
        """In a forked child: have the file, and its lock, no more."""
        close_lock(self._file)

    def discard(self) -> None:
        """Remove a pack whose row was rolled back."""
        self._disk.unlink(self.path)
        close_lock(self._file)
