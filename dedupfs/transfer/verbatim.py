"""One large file on its way into the store: what is new is written once, to a file of its own.

New chunks go to a temporary file of the store at their own file offsets; what the store has
already leaves a hole there. When enough of it was new the file becomes a verbatim pack as it is,
otherwise its chunks are poured into the record pack. Knows no source file.
"""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from dedupfs.errors import StoreError, StoreFullError
from dedupfs.model import Codec, Extent, RecordId, RecordKind
from dedupfs.recipe import append_extent, hole_extents
from dedupfs.store import Store
from dedupfs.store.codec import Encoder
from dedupfs.store.cutter import Cut
from dedupfs.store.disk import File
from dedupfs.store.match import match_chunks
from dedupfs.store.owner import close_lock, noted, open_lock
from dedupfs.store.syscalls import uncached_flags
from dedupfs.transfer.reader import Block

SYNC_BYTES = 64 << 20
"""After this many written bytes the kernel is asked to start writing, so that the end is short."""
_PREFIX = "import-"
_SUFFIX = ".new"
_IOV_MAX = 1024
_SAMPLES_MAX = 16


class LargeFile:
    """Takes the blocks of one file in order; a context manager that leaves no file behind."""

    def __init__(self, store: Store, *, threads: bool = True) -> None:
        """``threads``: whether this process may have another, which syncs meanwhile."""
        self._threads = threads
        self._store = store
        self.extents: list[Extent] = []
        self._new: dict[RecordId, tuple[int, int]] = {}
        self._unwritten: dict[RecordId, memoryview] = {}
        self._data_bytes = 0
        self._new_bytes = 0
        self._size = 0
        self.is_poured = False
        """Whether what is new goes to the record pack; then all extents so far are stored."""
        self._path = temporary_path(store)
        self._fd = -1
        self._syncer: _Syncer | None = None
        self._write_flags = uncached_flags()

    def __enter__(self) -> "LargeFile":
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _disk_errors(self._path):
            while True:
                self._file = noted(lambda: File(os.open(self._path, flags, 0o600), self._path))
                self._fd = self._file.fd
                flock(self._fd, LOCK_EX)
                if os.fstat(self._fd).st_nlink:
                    return self
                close_lock(self._file)  # gc took it for a dead import's before it was locked

    def __exit__(self, *exc_info: object) -> None:
        if self._syncer is not None:
            self._syncer.close()
        close_lock(self._file)
        with suppress(FileNotFoundError):
            self._path.unlink()

    def add(self, block: Block) -> None:
        """Take the next block: look its chunks up and write those that are new."""
        if not self._data_bytes:
            self.is_poured = self._is_compressible(block)
        run: list[memoryview] = []
        run_start = file_offset = block.file_offset
        for cut, is_known in zip(block.cuts, self._known(block), strict=True):
            if is_known:
                self._data_bytes += cut.length
                self.extents.append(Extent(cut.digest, cut.length))
            is_new = not is_known and self._add_cut(cut, file_offset)
            if is_new and cut.payload is not None:
                if not run:
                    run_start = file_offset
                run.append(cut.payload)
            elif run:
                self._write(run, run_start)
                run = []
            file_offset += cut.length
        if run:
            self._write(run, run_start)
        self._unwritten.clear()
        self._size = file_offset

    def _known(self, block: Block) -> Sequence[bool]:
        """Tell of each cut whether the store is known to have it; False says nothing."""
        if block.data is None or self.is_poured:
            return [False] * len(block.cuts)
        chunks = [Extent(cut.digest, cut.length) for cut in block.cuts]
        return match_chunks(self._store, chunks, block.data)

    def _is_compressible(self, block: Block) -> bool:
        """Whether most of the first chunks would be compressed: then they go to the record pack.

        A verbatim pack holds raw bytes, which for a large log costs more than it gains.
        """
        encode = Encoder(self._store.config.compression).encode
        samples = [cut.payload for cut in block.cuts if cut.payload is not None][:_SAMPLES_MAX]
        shrunk = sum(encode(payload)[0] != Codec.RAW for payload in samples)
        return shrunk * 2 > len(samples)

    def _add_cut(self, cut: Cut, file_offset: int) -> bool:
        """Add the chunk's extent; return whether its bytes have to be written at its offset."""
        if cut.payload is None:
            for extent in hole_extents(cut.length):
                append_extent(self.extents, extent)
            return False
        self._data_bytes += cut.length
        chunk_id, is_stored = self._find(cut, cut.payload)
        self.extents.append(Extent(chunk_id, cut.length))
        if is_stored:
            return False
        self._new[chunk_id] = (file_offset, cut.length)
        self._unwritten[chunk_id] = cut.payload
        self._new_bytes += cut.length
        return True

    def _find(self, cut: Cut, payload: memoryview) -> tuple[RecordId, bool]:
        """Return the chunk's id, and whether these bytes are stored under it by now."""
        if self.is_poured:
            return self._store.put(RecordKind.CHUNK, payload, digest=cut.digest), True
        chunk_id, is_known = self._store.probe_chunk(payload, digest=cut.digest)
        earlier = None if is_known else self._new.get(chunk_id)
        if earlier is None:
            return chunk_id, is_known
        if bytes(self._earlier_bytes(chunk_id, earlier)) == bytes(payload):
            return chunk_id, True
        # Two new chunks of one id, which only a crafted file has: a verbatim pack cannot say so.
        self._pour()
        return self._store.put(RecordKind.CHUNK, payload), True

    def _earlier_bytes(self, chunk_id: RecordId, place: tuple[int, int]) -> memoryview:
        payload = self._unwritten.get(chunk_id)
        if payload is not None:
            return payload
        file_offset, length = place
        with _disk_errors(self._path):
            return memoryview(os.pread(self._fd, length, file_offset))

    def _write(self, run: list[memoryview], file_offset: int) -> None:
        """Write neighbouring chunks, which are neighbours in one buffer too."""
        with _disk_errors(self._path):
            while run:
                written = self._write_some(run[:_IOV_MAX], file_offset)
                file_offset += written
                run = _behind(run, written)
        if self._write_flags:
            return  # the kernel writes it to disk at once
        if self._syncer is None:
            self._syncer = _Syncer(self._fd, self._path)
        if self._threads:
            self._syncer.written(file_offset)

    def _write_some(self, batch: list[memoryview], file_offset: int) -> int:
        """Write without leaving the bytes in the page cache, where the file system can do that."""
        if self._write_flags:
            try:
                return os.pwritev(self._fd, batch, file_offset, self._write_flags)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._write_flags = 0
        return os.pwritev(self._fd, batch, file_offset)

    def finish(self) -> list[Extent]:
        """End the file: make it a verbatim pack or pour it; return its extents."""
        enough = max(self._data_bytes, self._store.config.verbatim_bytes_min) // 2
        if self._new and not self.is_poured:
            if self._new_bytes >= enough:
                self._put_verbatim()
            else:
                self._pour()
        return self.extents

    def _put_verbatim(self) -> None:
        with _disk_errors(self._path):
            os.truncate(self._fd, self._size)
        if self._syncer is not None:
            self._syncer.close()
            self._syncer.check()
        chunks = [
            (file_offset, Extent(chunk_id, length))
            for chunk_id, (file_offset, length) in self._new.items()
        ]
        self._store.put_verbatim(self._path, chunks)

    def _pour(self) -> None:
        """Put the new chunks one by one, and whatever comes after them as well."""
        self.is_poured = True
        renamed: dict[RecordId, RecordId] = {}
        for chunk_id, place in self._new.items():
            payload = self._earlier_bytes(chunk_id, place)
            stored_id = self._store.put(RecordKind.CHUNK, payload)
            if stored_id != chunk_id:  # another process stored other bytes under it meanwhile
                renamed[chunk_id] = stored_id
        if renamed:
            self.extents = [
                Extent(renamed.get(extent.chunk_id, extent.chunk_id), extent.length)
                for extent in self.extents
            ]


class _Syncer:
    """Has the file written to disk while more of it is coming, in a thread of its own."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._wake = threading.Semaphore(0)
        self._asked_bytes = 0
        self._stopped = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None

    def written(self, file_offset: int) -> None:
        """Hear that the file is written up to here."""
        if abs(file_offset - self._asked_bytes) >= SYNC_BYTES:
            self._asked_bytes = file_offset
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
                self._thread.start()
            self._wake.release()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while self._wake.acquire(blocking=False):
                pass  # several wishes are one
            if self._stopped:
                return
            try:
                os.fdatasync(self._fd)
            except OSError as exc:
                self._error = exc
                return

    def close(self) -> None:
        """End the thread; what it was asked for last may not have been done."""
        self._stopped = True
        self._wake.release()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise what a sync met: the kernel tells it once, so a later fsync would not."""
        if self._error is not None:
            with _disk_errors(self._path):
                raise self._error


def _behind(run: list[memoryview], written: int) -> list[memoryview]:
    """Return what is left of ``run`` behind its first ``written`` bytes."""
    for index, payload in enumerate(run):
        if written < len(payload):
            return [payload[written:], *run[index + 1 :]]
        written -= len(payload)
    return []


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Translate the failure of a call on the store's own disk."""
    try:
        yield
    except OSError as exc:
        kind = StoreFullError if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(f"{path}: {exc.strerror}") from exc


def temporary_path(store: Store) -> Path:
    """Return the name in the store of the one file that this process is making into a pack."""
    return store.path / "run" / f"{_PREFIX}{store.owner.hex()}{_SUFFIX}"


def remove_stale_files(store: Store) -> None:
    """Remove the temporary files of imports that died: nobody holds their lock any more."""
    for path in (store.path / "run").glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError, StoreError):
            # Not for writing: it may be a file that somebody is just adopting.
            file = open_lock(store.disk, path)
            try:
                flock(file.fd, LOCK_EX | LOCK_NB)
                path.unlink()
            finally:
                close_lock(file)
